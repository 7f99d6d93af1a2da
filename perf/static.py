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
from stn_triton.kernels.backward import backward_kernel, theta_kernel
from stn_triton.kernels.block import UNSPECIALIZED
from stn_triton.kernels.forward import forward_kernel
from stn_triton.launch import options as launch_options

KERNELS = {
    "forward": forward_kernel,
    "backward": backward_kernel,
    "backward_input": backward_kernel,
    "theta": theta_kernel,
}
_TYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def source(
    bucket: tuning.Bucket, config: tuning.Config, align_corners: bool = False, index: tl.dtype = tl.int32
) -> ASTSource:
    """The kernel of a bucket as the launcher would specialise it for a dense, aligned tensor."""
    kernel = KERNELS[bucket.kernel]
    is_even = bucket.channels % config["BLOCK_C"] == 0 and bucket.layout != "channels_last"
    dtype = tl.float64 if bucket.dtype == "float64" else tl.float32
    constexprs = {
        "ALIGN_CORNERS": align_corners,
        "INDEX": index,
        "DTYPE": dtype,
        "EVEN_C": is_even,
        "NEEDS_THETA": bucket.kernel == "backward",
        **{key: value for key, value in config.items() if key != "num_warps"},
    }
    signature, divisible = {}, []
    for i, name in enumerate(kernel.arg_names):
        if name in constexprs:
            signature[name] = "constexpr"
        elif name in UNSPECIALIZED:
            is_wide = name.endswith("_stride_c") and index == tl.int64
            signature[name] = "i64" if is_wide else "i32"
        elif (
            name == "theta_stride_column"
            or (name.endswith("_stride_w") and bucket.layout == "nchw")
            or (name == "C" and bucket.channels == 1)
        ):
            signature[name], constexprs[name] = "constexpr", 1
        elif name.endswith("_ptr"):
            is_theta = name in ("theta_ptr", "partial_ptr")
            signature[name] = "*" + (
                _TYPES[bucket.dtype]
                if not is_theta
                else _TYPES["float64" if bucket.dtype == "float64" else "float32"]
            )
            divisible.append(i)
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
    options = {
        "num_warps": config["num_warps"],
        **launch_options(bucket.kernel, getattr(torch, bucket.dtype)),
    }
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


def shipped(archs: Sequence[int]) -> list[tuple[tuple[tuning.Bucket, tuning.Config, int], dict[str, object]]]:
    """What a full check compiles.

    Every kernel, layout and dtype in its default and shipped configurations; a small plane, the wide index
    and the other corner convention once per kernel.
    """
    cases = []
    for kernel, arch in itertools.product(KERNELS, archs):
        for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
            for channels_last, channels in ((False, 4), (False, 64), (True, 4), (True, 64), (True, 100)):
                bucket = tuning.bucket_of(kernel, channels_last, dtype, 64, channels, 224 * 224)
                cases.append(((bucket, tuning.default(bucket), arch), {}))
        for channels_last in (False, True):
            bucket = tuning.bucket_of(kernel, channels_last, torch.float32, 64, 16, 224 * 224)
            cases.append(((bucket, tuning.default(bucket), arch), {"index": tl.int64}))
        cases.append(((bucket, tuning.default(bucket), arch), {"align_corners": True}))
        bucket = tuning.bucket_of(kernel, False, torch.float32, 64, 2048, 7 * 7)
        cases.append(((bucket, tuning.default(bucket), arch), {}))
    for bucket, config in tuning.shipped_configurations():
        cases += [((bucket, config, arch), {}) for arch in archs]
    return cases


def _facts(case: tuple[tuple, dict]) -> dict[str, object]:
    result = facts(*case[0], **case[1])
    del result["sass"]
    return {**result, **{key: str(value) for key, value in case[1].items()}}


def main() -> None:
    """Print the facts of all cases, one JSON object a line."""
    parser = argparse.ArgumentParser(prog="python -m perf.static", description=main.__doc__)
    parser.add_argument("arch", type=int, nargs="*", default=[80, 90, 100], help="such as 90 for sm_90")
    archs = parser.parse_args().arch
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        for result in pool.imap(_facts, shipped(archs), chunksize=8):
            print(json.dumps(result))


def _run(tool: str, *arguments: object) -> str:
    command = [str(_TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
