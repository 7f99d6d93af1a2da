"""How wide offsets are in compiled kernels; run by test_large.py, where Triton does not interpret.

Prints a line of JSON per kernel: what of its intermediate representation (TTIR) is computed from strides.
"""

import json
import os
import re
from unittest import mock

os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # what is in Triton's cache has no stages to stop between

import torch
import triton.language as tl
from triton.compiler import compiler

from perf.kernels import compiled
from stn_triton import tuning

CASES = (
    ("forward", "2d-bilinear-fill", False, 4),
    ("forward", "2d-bicubic-reflection-many", True, 16),
    ("forward", "3d-bilinear-zeros-tangent", False, 1),
    ("forward", "2d-bilinear-fill-spline", False, 4),
    ("backward", "2d-bilinear-fill", False, 64),
    ("backward", "3d-bilinear-zeros", True, 4),
    ("backward_input", "2d-bilinear-zeros-projective-many-tangent", False, 1),
    ("backward_input", "2d-bilinear-zeros-spline-many", False, 4),
    ("theta", "2d-bilinear-fill-projective-tangent", False, 4),
    ("theta", "3d-bilinear-zeros-antialias-many", True, 4),
    ("fill", "2d-bilinear-fill-many", False, 4),
    ("scatter", "2d-bilinear-zeros-spline-many", True, 4),
    ("reach", "2d-bilinear-zeros-spline", False, 4),
)
_LINE = re.compile(r"\s*(%[\w]+)(?::\d+)? = \"?([\w.]+)\"?(.*?) : (.*?)(?: loc\(|$)")
_PASSES_ON = ("arith.extsi", "arith.trunci", "arith.muli", "arith.addi", "arith.subi")
_SHAPES = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "ttg.convert_layout")


def facts(ttir):
    """Per stride, the widths of what is computed from it; and those of what is added to whole pointers."""
    strides, pointers, source = {}, {}, {}
    for line in ttir.splitlines():
        if "tt.func" in line and "public" in line:
            source = {f"%{name}": {name} for name in re.findall(r"%(\w*stride\w*): i\d+", line)}
        match = _LINE.match(line)
        if match is None:
            continue
        result, operation, operands, types = match.groups()
        names = re.findall(r"%\w+", operands)
        width = int(re.search(r"i(\d+)>?$", types)[1]) if re.search(r"i(\d+)>?$", types) else None
        if operation == "tt.addptr" and names[0].endswith("_ptr"):
            pointers.setdefault(names[0][1:], set()).add(width)
        if operation in _PASSES_ON or operation in _SHAPES:
            from_strides = set().union(*(source.get(name, set()) for name in names))
            if from_strides:
                source[result] = from_strides
            if operation in _PASSES_ON:
                for name in from_strides:
                    strides.setdefault(name, set()).add(width)
    as_lists = lambda widths: {name: sorted(w) for name, w in widths.items()}  # noqa: E731
    return {"strides": as_lists(strides), "pointers": as_lists(pointers)}


class _DoneError(Exception):
    pass


def ttir(bucket, config, index):
    """The intermediate representation; the rest of the compilation, which takes most of its time, is left."""
    make = compiler.make_backend

    def make_backend(target):
        backend = make(target)
        add_stages = backend.add_stages

        def add(stages, *arguments):
            def stop(module, metadata):
                raise _DoneError(str(first(module, metadata)))

            add_stages(stages, *arguments)
            first = stages["ttir"]
            stages["ttir"] = stop

        backend.add_stages = add
        return backend

    with mock.patch.object(compiler, "make_backend", make_backend):
        try:
            compiled.compile(bucket, config, "sm_90", index=index)
        except _DoneError as done:
            return str(done)
    raise AssertionError("Triton has no stage of that name")


def main():
    for kernel, variant, channels_last, channels in CASES:
        bucket = tuning.bucket_of(kernel, variant, channels_last, torch.float32, 64, channels, 224 * 224)
        for index in (tl.int32, tl.int64):
            found = facts(ttir(bucket, compiled_config(bucket), index))
            print(json.dumps({"kernel": kernel, "variant": variant, "index": str(index), **found}))


def compiled_config(bucket):
    """Small blocks, of which there is less to read; a gather of many channels lists its pixels."""
    config = {**tuning.default(bucket), "BLOCK_H": 8, "BLOCK_W": 8, "num_warps": 2}
    if bucket.has_steps() and bucket.channels > 16:
        return {**config, "BLOCK_C": 2, "STEPS_C": 2, "RUN_C": 1}
    return config


if __name__ == "__main__":
    main()
