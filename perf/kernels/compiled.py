"""What the machine code of compiled kernels shows."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import triton

from perf.kernels import disassembly

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def described(compiled: triton.compiler.CompiledKernel, arch: str) -> dict[str, object]:
    """What the machine code of a kernel for an architecture such as sm_90 or gfx942 shows.

    ``registers`` per thread (vector registers on AMD), ``stack`` and ``shared`` in bytes, ``spills``,
    ``occupancy`` (the share of the warps that a multiprocessor can hold; None for an architecture that is not
    known here), counts of instructions, and ``code`` for NVIDIA, see `disassembly.Code`.
    """
    result = {"shared": compiled.metadata.shared}
    result |= _amd(compiled) if arch.startswith("gfx") else _nvidia(compiled)
    known = arch in _LIMITS
    warps, registers = compiled.metadata.num_warps, result["registers"]
    return {**result, "occupancy": _occupancy(arch, warps, registers, result["shared"]) if known else None}


def _nvidia(compiled: triton.compiler.CompiledKernel) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        sass = _run("nvdisasm", "-c", cubin)
    code = disassembly.read(sass)
    opcodes = disassembly.opcodes(sass)
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": _count(opcodes, r"LDL|STL"),
        "instructions": opcodes.total(),
        "atomics": _count(opcodes, r"REDG?\b|ATOM"),
        "fp64": _count(opcodes, r"DADD|DMUL|DFMA|DSETP|MUFU\.\w*64H"),
        "loads": _count(opcodes, r"LDG"),
        "wide_loads": _count(opcodes, r"LDG.*\.128"),
        "stores": _count(opcodes, r"STG"),
        "wide_stores": _count(opcodes, r"STG.*\.128"),
        "code": code,
    }


def _amd(compiled: triton.compiler.CompiledKernel) -> dict[str, object]:
    assembly = compiled.asm["amdgcn"]
    opcodes = Counter(re.findall(r"^\s+([a-z]+_[a-z0-9_]+)\b", assembly, re.M))

    def noted(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])

    return {
        "registers": noted("vgpr_count"),
        "stack": noted("private_segment_fixed_size"),
        "spills": noted("vgpr_spill_count"),
        "instructions": sum(n for name, n in opcodes.items() if name[:2] in ("v_", "s_", "gl", "ds", "bu")),
        "atomics": _count(opcodes, r".*_atomic"),
        "fp64": _count(opcodes, r"v_(add|mul|fma|rcp)_f64"),
        "loads": _count(opcodes, r"(global|buffer)_load"),
        "wide_loads": _count(opcodes, r"(global|buffer)_load_dwordx4"),
        "stores": _count(opcodes, r"(global|buffer)_store"),
        "wide_stores": _count(opcodes, r"(global|buffer)_store_dwordx4"),
    }


def _count(opcodes: Counter[str], pattern: str) -> int:
    return sum(n for name, n in opcodes.items() if re.match(pattern, name))


@dataclass(frozen=True)
class _Limits:
    """Of one multiprocessor: warps, blocks, registers in 32 bits, how many go to a warp at once, bytes."""

    warps: int
    blocks: int
    registers: int
    granularity: int
    shared: int


_NVIDIA = _Limits(warps=64, blocks=32, registers=2**16, granularity=256, shared=227 * 1024)
_LIMITS = {
    "sm_80": replace(_NVIDIA, shared=163 * 1024),
    "sm_90": _NVIDIA,
    "sm_100": _NVIDIA,
    # A compute unit: four times 512 vector registers for each of 64 lanes, at most 8 warps each.
    "gfx942": _Limits(warps=32, blocks=32, registers=4 * 512 * 64, granularity=8 * 64, shared=64 * 1024),
}
ARCHITECTURES = tuple(_LIMITS)


def target_of(arch: str) -> tuple[str, object, int]:
    """What Triton compiles for: backend, architecture and lanes of a warp."""
    return ("hip", arch, 64) if arch.startswith("gfx") else ("cuda", int(arch.removeprefix("sm_")), 32)


def _occupancy(arch: str, warps: int, registers: int, shared: int) -> float:
    limits = _LIMITS[arch]
    lanes = 64 if arch.startswith("gfx") else 32
    per_warp = -(-registers * lanes // limits.granularity) * limits.granularity
    blocks = min(limits.blocks, limits.warps // warps, limits.registers // (per_warp * warps))
    if shared:
        blocks = min(blocks, limits.shared // (shared + 1024))
    return blocks * warps / limits.warps


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
