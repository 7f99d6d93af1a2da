"""What the compiler makes of the kernels, without a GPU.

``facts`` compiles one kernel for one architecture and reads the machine code: registers, spills, shared
memory, access widths, atomics, fp64 arithmetic, instructions. Triton must not be in interpreter mode.
"""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from stn_triton import tuning
from stn_triton.kernels.backward import backward_kernel
from stn_triton.kernels.block import UNSPECIALIZED
from stn_triton.kernels.forward import forward_kernel
from stn_triton.kernels.parameters import fill_kernel, theta_kernel
from stn_triton.launch import PADDINGS, compile_options
from stn_triton.options import MODES, PADDING_MODES, Options

KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "backward_input": backward_kernel,
    "theta": theta_kernel,
    "fill": fill_kernel,
}
_TYPES = {"uint8": "u8", "float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def source(
    bucket: tuning.Bucket, config: tuning.Config, align_corners: bool = False, index: tl.dtype = tl.int32
) -> ASTSource:
    """The kernel of a bucket as the launcher would specialise it for a dense, aligned tensor."""
    kernel = KERNELS[bucket.kernel]
    dim, mode, padding, *flags = bucket.variant.split("-")
    is_even = bucket.channels % config["BLOCK_C"] == 0 and bucket.layout != "channels_last"
    coordinates = "float64" if bucket.dtype == "float64" else "float32"
    has_index = "many" in flags
    constexprs = {
        "DIM": int(dim[0]),
        "PROJECTIVE": "projective" in flags,
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
        **{key: value for key, value in config.items() if key != "num_warps"},
    }
    # What the launcher passes as None, 1 or 0.
    if padding != "fill":
        constexprs.update(fill_ptr=None, fill_tangent_ptr=None)
    if "tangent" not in flags:
        constexprs.update(input_tangent_ptr=None, theta_tangent_ptr=None, fill_tangent_ptr=None)
    if not has_index:
        constexprs.update(image_index_ptr=None, starts_ptr=None, order_ptr=None, per_image=1)
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
        "image_index_ptr": "i64",
        "starts_ptr": "i64",
        "order_ptr": "i64",
    }
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
    bucket: tuning.Bucket, config: tuning.Config, arch: int, **flags: object
) -> triton.compiler.CompiledKernel:
    """Compile for an NVIDIA architecture such as 90."""
    options = {"num_warps": config["num_warps"], **compile_options(bucket)}
    return triton.compile(source(bucket, config, **flags), GPUTarget("cuda", arch, 32), options)


def facts(bucket: tuning.Bucket, config: tuning.Config, arch: int, **flags: object) -> dict[str, object]:
    """What the machine code of a kernel for one architecture shows."""
    compiled = compile(bucket, config, arch, **flags)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _run("cuobjdump", "-res-usage", cubin)
        sass = _run("nvdisasm", "-c", cubin)
    instructions = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", sass)
    opcodes = Counter(name.split(".")[0] for name in instructions)
    return {
        "bucket": bucket.name(),
        "config": config,
        "arch": arch,
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack": int(re.search(r"STACK:(\d+)", usage)[1]),
        "spills": opcodes["LDL"] + opcodes["STL"],
        "shared": compiled.metadata.shared,
        "instructions": len(instructions),
        "atomics": opcodes["RED"] + opcodes["ATOM"] + opcodes["ATOMG"] + opcodes["ATOMS"],
        "fp64": sum(opcodes[name] for name in ("DADD", "DMUL", "DFMA", "DSETP", "MUFU64H")),
        "wide_loads": sum(name.startswith("LDG") and ".128" in name for name in instructions),
        "wide_stores": sum(name.startswith("STG") and ".128" in name for name in instructions),
        "loads": opcodes["LDG"],
        "stores": opcodes["STG"],
        "sass": sass,
    }


PLAIN = tuning.variant_of(2, False, False, False, Options())


def variants() -> list[str]:
    """Every variant that can be compiled."""
    names = []
    for tangent, dim, mode, padding, projective, many, antialias in itertools.product(
        (False, True), (2, 3), MODES, PADDING_MODES, *[(False, True)] * 3
    ):
        if not (dim == 3 and (mode == "bicubic" or projective)) and not (projective and antialias):
            options = Options(mode, padding, antialias=antialias)
            names.append(tuning.variant_of(dim, projective, many, tangent, options))
    return names


def kernels_of(variant: str) -> list[str]:
    """The kernels that a variant is launched with."""
    flags = variant.split("-")
    kernels = ["forward", "backward_input"]
    if "nearest" not in flags:
        kernels.append("theta")
        if not {"many", "tangent"} & set(flags):
            kernels.append("backward")
    return kernels + ["fill"] * ("fill" in flags)


Case = tuple[tuple[tuning.Bucket, tuning.Config, int], dict[str, object]]


def shipped(archs: Sequence[int]) -> list[Case]:
    """What a full check of the plain operator compiles.

    Every kernel, layout and dtype in its default and shipped configurations, with few channels and with as
    many as a bucket tells apart; a small plane, the wide index and the other corner convention once each.
    """
    cases = []
    for kernel, arch in itertools.product(kernels_of(PLAIN), archs):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for channels_last, channels in ((False, 4), (False, 128), (True, 4), (True, 128), (True, 100)):
                bucket = tuning.bucket_of(kernel, PLAIN, channels_last, dtype, 64, channels, 224 * 224)
                cases.append(((bucket, tuning.default(bucket), arch), {}))
        for channels_last in (False, True):
            bucket = tuning.bucket_of(kernel, PLAIN, channels_last, torch.float32, 64, 16, 224 * 224)
            cases.append(((bucket, tuning.default(bucket), arch), {"index": tl.int64}))
        cases.append(((bucket, tuning.default(bucket), arch), {"align_corners": True}))
        bucket = tuning.bucket_of(kernel, PLAIN, False, torch.float32, 64, 2048, 7 * 7)
        cases.append(((bucket, tuning.default(bucket), arch), {}))
    for bucket, config in tuning.shipped_configurations():
        cases += [((bucket, config, arch), {}) for arch in archs]
    return cases


def every_variant(archs: Sequence[int]) -> list[Case]:
    """Every variant and kernel once per architecture; layouts and dtypes take turns."""
    kinds = itertools.cycle(
        (
            (False, 64, torch.float32, False),
            (True, 64, torch.bfloat16, True),
            (False, 3, torch.float16, True),
            (True, 64, torch.float32, False),
            (False, 64, torch.bfloat16, True),
            (True, 4, torch.float32, False),
            (False, 16, torch.float64, True),
        )
    )
    cases = []
    for variant in variants():
        for kernel in kernels_of(variant):
            channels_last, channels, dtype, align_corners = next(kinds)
            bucket = tuning.bucket_of(kernel, variant, channels_last, dtype, 64, channels, 224 * 224)
            config = tuning.default(bucket)
            cases += [((bucket, config, arch), {"align_corners": align_corners}) for arch in archs]
    bucket = tuning.bucket_of("forward", PLAIN, False, torch.uint8, 64, 3, 224 * 224)
    return [*cases, *(((bucket, tuning.default(bucket), arch), {}) for arch in archs)]


def _facts(case: tuple[tuple, dict]) -> dict[str, object]:
    result = facts(*case[0], **case[1])
    del result["sass"]
    return {**result, **{key: str(value) for key, value in case[1].items()}}


def main() -> None:
    """Print the facts of all cases, one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m perf.static", description=main.__doc__)
    parser.add_argument("arch", type=int, nargs="*", default=[80, 90, 100], help="such as 90 for sm_90")
    parser.add_argument(
        "--variants",
        action="store_true",
        help="every mode, padding, dimension and kind of map (about 20 minutes on two cores), "
        "instead of the plain operator in every layout and dtype",
    )
    parser.add_argument(
        "--every", type=int, default=1, metavar="N", help="only every N-th case, for a sample of them"
    )
    arguments = parser.parse_args()
    cases = (every_variant if arguments.variants else shipped)(arguments.arch)[:: arguments.every]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for result in pool.imap(_facts, cases, chunksize=1):
            print(json.dumps(result), flush=True)


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
