"""Facts in the machine code of a compiled kernel: registers, occupancy, counts of instructions."""

import re
import subprocess
import tempfile
from collections import Counter

import triton

INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
"""An instruction of NVIDIA's assembly: its name with modifiers, and its operands."""
_NVIDIA = {
    "spills": r"LDL|STL",
    "instructions": r"",
    "atomics": r"REDG?\b|ATOM",
    "fp64": r"DADD|DMUL|DFMA|DSETP|MUFU\.\w*64H",
    "loads": r"LDG",
    "wide_loads": r"LDG.*\.128",
    "stores": r"STG",
    "wide_stores": r"STG.*\.128",
}
_AMD = {
    "instructions": r"v_|s_|gl|ds|bu",
    "atomics": r".*_atomic",
    "fp64": r"v_(add|mul|fma|rcp)_f64",
    "loads": r"(global|buffer)_load",
    "wide_loads": r"(global|buffer)_load_dwordx4",
    "stores": r"(global|buffer)_store",
    "wide_stores": r"(global|buffer)_store_dwordx4",
}
# Of a multiprocessor: bytes of shared memory, warps, registers, the number that a warp takes at once, lanes.
_LIMITS = {
    "sm_80": (163 * 1024, 64, 2**16, 256, 32),
    "sm_90": (227 * 1024, 64, 2**16, 256, 32),
    "sm_100": (227 * 1024, 64, 2**16, 256, 32),
    # A compute unit: four times 512 vector registers for each of 64 lanes, at most 8 warps each.
    "gfx942": (64 * 1024, 32, 4 * 512 * 64, 8 * 64, 64),
}
_BLOCKS = 32
ARCHITECTURES = tuple(_LIMITS)


def target_of(arch: str) -> tuple[str, object, int]:
    """Backend, architecture and lanes of a warp, as Triton names them."""
    return ("hip", arch, 64) if arch.startswith("gfx") else ("cuda", int(arch.removeprefix("sm_")), 32)


def described(compiled: triton.compiler.CompiledKernel, arch: str) -> dict[str, object]:
    """Read the machine code of a kernel for an architecture such as sm_90 or gfx942.

    Returns:
        ``registers`` per thread (vector registers on AMD), ``stack`` and ``shared`` in bytes, ``spills``,
        ``occupancy`` (a share of the warps that a multiprocessor can hold), and counts of instructions.
    """
    facts = _amd(compiled) if arch.startswith("gfx") else _nvidia(compiled)
    warps, shared = compiled.metadata.num_warps, compiled.metadata.shared
    most_shared, most_warps, most_registers, multiple, lanes = _LIMITS[arch]
    per_warp = -(-facts["registers"] * lanes // multiple) * multiple
    blocks = min(_BLOCKS, most_warps // warps, most_registers // (per_warp * warps))
    if shared:
        blocks = min(blocks, most_shared // (shared + 1024))
    return {**facts, "shared": shared, "occupancy": blocks * warps / most_warps}


def dump(compiled: triton.compiler.CompiledKernel, tool: str, option: str) -> str:
    """Output for a kernel of one of NVIDIA's tools, such as nvdisasm, which come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        command = [getattr(triton.knobs.nvidia, tool).path, option, file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _nvidia(compiled: triton.compiler.CompiledKernel) -> dict[str, object]:
    usage, code = dump(compiled, "cuobjdump", "-res-usage"), dump(compiled, "nvdisasm", "-c")
    opcodes = Counter(found[1] for found in INSTRUCTION.finditer(code))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        **_counts(opcodes, _NVIDIA),
    }


def _amd(compiled: triton.compiler.CompiledKernel) -> dict[str, object]:
    assembly = compiled.asm["amdgcn"]
    noted = {"registers": "vgpr_count", "stack": "private_segment_fixed_size", "spills": "vgpr_spill_count"}
    opcodes = Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\b", assembly, re.M))
    return {
        **{key: int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1]) for key, name in noted.items()},
        **_counts(opcodes, _AMD),
    }


def _counts(opcodes: Counter[str], patterns: dict[str, str]) -> dict[str, int]:
    return {
        name: sum(n for opcode, n in opcodes.items() if re.match(pattern, opcode))
        for name, pattern in patterns.items()
    }
