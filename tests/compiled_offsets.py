"""How wide offsets are in compiled kernels; run by test_large.py, where Triton does not interpret.

Prints a line of JSON per kernel: what of its intermediate representation (TTIR) is computed from strides.
"""

import functools
import json
import os
import re
from unittest import mock

os.environ["TRITON_ALWAYS_COMPILE"] = "1"  # what is in Triton's cache has no stages to stop between

import variant_calls
from triton import knobs
from triton.compiler import compiler

from perf.kernels import ahead
from stn_triton import policy

CASES = (
    ("forward", {"padding_mode": "fill"}),
    ("forward", {"mode": "bicubic", "padding_mode": "reflection", "matrices": "index", "channels": 16}),
    ("forward", {"dim": 3, "has_tangents": True, "channels": 1}),
    ("forward", {"padding_mode": "fill", "kind": "spline"}),
    ("backward", {"padding_mode": "fill", "channels": 64}),
    ("backward_input", {"matrices": "many", "layout": "channels_last"}),
    ("backward_input", {"padding_mode": "border", "matrices": "index", "channels": 1}),
    ("theta", {"padding_mode": "fill", "kind": "projective", "has_tangents": True}),
    ("theta", {"dim": 3, "kind": "antialias", "matrices": "index", "layout": "channels_last"}),
    ("fill", {"padding_mode": "fill", "matrices": "index"}),
    ("scatter", {"kind": "spline", "matrices": "index", "layout": "channels_last"}),
    ("scatter", {"dim": 3, "padding_mode": "fill", "has_tangents": True}),
    ("scatter_input", {"kind": "projective", "matrices": "many"}),
    ("exact", {"kind": "spline", "is_exact": True}),
    ("settle_kernel", {"kind": "spline", "is_exact": True}),
)
TARGET = ("cuda", 90, 32)
_LINE = re.compile(r"\s*(%[\w.]+)(?::\d+)? = \"?([\w.]+)\"?(.*?) : (.*?)(?: loc\(|$)")
_PASSES_ON = ("arith.extsi", "arith.trunci", "arith.muli", "arith.addi", "arith.subi")
_SHAPES = ("tt.splat", "tt.broadcast", "tt.expand_dims", "tt.reshape", "ttg.convert_layout")


def facts(ttir):
    """Per stride, the widths of what is computed from it; and those of what is added to whole pointers."""
    strides, pointers, source = {}, {}, {}
    for line in ttir.splitlines():
        if "tt.func" in line and "public" in line:
            source = {f"%{name}": {name} for name in re.findall(r"%(\w*stride[\w.]*): i\d+", line)}
        match = _LINE.match(line)
        if match is None:
            continue
        result, operation, operands, types = match.groups()
        names = re.findall(r"%[\w.]+", operands)
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


def ttir(kernel, has_tangents=False, **call):
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

    bucket = None

    def choose(chosen, run):
        nonlocal bucket
        bucket = chosen
        return compiled_config(chosen)

    def is_other(*, fn, **_):
        if kernel.endswith("_kernel"):
            return not fn.name.endswith(kernel)
        return bucket is None or bucket.kernel != kernel or (has_tangents and "tangent" not in bucket.variant)

    with (
        mock.patch.object(compiler, "make_backend", make_backend),
        mock.patch.object(knobs.runtime, "jit_cache_hook", is_other),
    ):
        run = functools.partial(variant_calls.run, has_tangents=has_tangents, **call)
        try:
            ahead.compile_call(run, TARGET, choose)
        except _DoneError as done:
            return str(done)
    raise AssertionError("Triton has no stage of that name")


def main():
    for kernel, changes in CASES:
        for is_far in (False, True):
            found = facts(ttir(kernel, is_far=is_far, **changes))
            about = {"kernel": kernel, "dim": changes.get("dim", 2), "is_exact": "is_exact" in changes}
            print(json.dumps({**about, "is_far": is_far, **found}))


def compiled_config(bucket):
    """Small blocks, of which there is less to read; a gather of many channels lists its pixels."""
    config = {**policy.default(bucket), "BLOCK_H": 8, "BLOCK_W": 8, "num_warps": 2}
    if bucket.has_steps() and bucket.channels > 16:
        return {**config, "BLOCK_C": 2, "STEPS_C": 2, "RUN_C": 1}
    return config


if __name__ == "__main__":
    main()
