"""Kernels compiled for GPUs that need not be here, and what their machine code shows.

Triton must not be in interpreter mode.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from perf.kernels import disassembly
from stn_triton import tuning
from stn_triton.kernels.backward import backward_kernel
from stn_triton.kernels.block import UNSPECIALIZED
from stn_triton.kernels.boxes import boxes_kernel, reach_kernel
from stn_triton.kernels.forward import forward_kernel
from stn_triton.kernels.parameters import fill_kernel, theta_kernel
from stn_triton.kernels.scatter import scatter_kernel
from stn_triton.options import Options
from stn_triton.steps import PADDINGS, compile_options

KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "backward_input": backward_kernel,
    "theta": theta_kernel,
    "fill": fill_kernel,
    "reach": reach_kernel,
    "scatter": scatter_kernel,
}
GATHERS_BY_BOXES = {"backward_input": boxes_kernel}
"""In place of those, for splines."""
_TYPES = {"uint8": "u8", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def source(
    bucket: tuning.Bucket, config: tuning.Config, align_corners: bool = False, index: tl.dtype = tl.int32
) -> ASTSource:
    """The kernel of a bucket as the launcher would specialise it for a dense, aligned tensor."""
    dim, mode, padding, *flags = bucket.variant.split("-")
    is_spline = "spline" in flags
    kernel = (KERNELS | GATHERS_BY_BOXES if is_spline else KERNELS)[bucket.kernel]
    is_even = bucket.channels % config["BLOCK_C"] == 0 and bucket.layout != "channels_last"
    coordinates = "float64" if bucket.dtype == "float64" else "float32"
    has_index = "many" in flags
    constexprs = {
        "DIM": int(dim[0]),
        "PROJECTIVE": "projective" in flags,
        "SPLINE": is_spline,
        "TAPS": Options(mode).taps(),
        "PADDING": PADDINGS[padding],
        "ALIGN_CORNERS": align_corners,
        "ANTIALIAS": "antialias" in flags,
        "HAS_INDEX": has_index,
        "TANGENT": "tangent" in flags,
        "MANY": has_index,
        "INDEX": index,
        "DTYPE": getattr(tl, coordinates),
        "EVEN_C": is_even,
        "NEEDS_THETA": bucket.kernel == "backward",
        **{key: value for key, value in config.items() if key in kernel.arg_names},
    }
    # What the launcher passes as None, 1 or 0.
    if padding != "fill":
        constexprs.update(fill_ptr=None, fill_tangent_ptr=None)
    if "tangent" not in flags:
        constexprs.update(input_tangent_ptr=None, theta_tangent_ptr=None, fill_tangent_ptr=None)
    if not has_index:
        constexprs.update(image_index_ptr=None, starts_ptr=None, order_ptr=None, per_image=1)
    if not is_spline:
        constexprs.update(points_ptr=None, point_count=0)
    if dim == "2d":
        constexprs.update(D_in=1, D_out=1)
    constexprs.update(theta_stride_column=1, theta_tangent_stride_column=1)
    if bucket.layout == "nchw":
        strides = ("output", "input", "input_tangent", "grad_output", "grad_input")
        constexprs.update({f"{name}_stride_w": 1 for name in strides})
    if bucket.channels == 1:
        constexprs["C"] = 1
    pointers = {
        "theta_ptr": _TYPES[coordinates],
        "theta_tangent_ptr": _TYPES[coordinates],
        "fill_tangent_ptr": _TYPES[coordinates],
        "partial_ptr": _TYPES[coordinates],
        "fill_ptr": _TYPES[coordinates],
        "points_ptr": _TYPES[coordinates],
        "boxes_ptr": "i32",
        "chunk_boxes_ptr": "i32",
        "image_index_ptr": "i64",
        "starts_ptr": "i64",
        "order_ptr": "i64",
    }
    if bucket.kernel == "scatter":
        pointers["grad_input_ptr"] = _TYPES[coordinates]
    signature, divisible = {}, []
    for i, name in enumerate(kernel.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            signature[name] = "*" + pointers.get(name, _TYPES[bucket.dtype])
            divisible.append(i)
        elif name in UNSPECIALIZED:
            is_wide = name.endswith("_stride_c") and index == tl.int64
            signature[name] = "i64" if is_wide else "i32"
        else:
            is_wide = index == tl.int64 and name.endswith(("_stride_n", "_stride_h"))
            signature[name] = "i64" if is_wide else "i32"
            is_multiple = bucket.layout != "channels_last"
            if (name == "C" and bucket.layout == "channels_last_16") or (
                is_multiple and "_stride_" in name and "theta" not in name
            ):
                divisible.append(i)
    constexprs = {key: value for key, value in constexprs.items() if key in kernel.arg_names}
    attributes = {(i,): [["tt.divisibility", 16]] for i in divisible}
    return ASTSource(kernel, signature, constexprs, attributes)


def compile(
    bucket: tuning.Bucket, config: tuning.Config, arch: str, **flags: object
) -> triton.compiler.CompiledKernel:
    """Compile for an architecture such as sm_90 or gfx942."""
    is_hip = arch.startswith("gfx")
    target = GPUTarget("hip", arch, 64) if is_hip else GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    return triton.compile(source(bucket, config, **flags), target, compile_options(bucket, config, is_hip))


def facts(bucket: tuning.Bucket, config: tuning.Config, arch: str, **flags: object) -> dict[str, object]:
    """What the machine code of a kernel for one architecture shows.

    ``registers`` per thread (vector registers on AMD), ``stack`` and ``shared`` in bytes, ``spills``,
    ``occupancy`` (the share of the warps that a multiprocessor can hold), counts of instructions, and
    ``code`` for NVIDIA, see `disassembly.Code`.
    """
    compiled = compile(bucket, config, arch, **flags)
    return {"bucket": bucket.name(), "config": config, "arch": arch, **described(compiled, arch)}


def described(compiled: triton.compiler.CompiledKernel, arch: str) -> dict[str, object]:
    """What the machine code of a compiled kernel shows, as `facts` has it; None where nothing is known."""
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
