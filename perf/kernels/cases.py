"""Which kernels a check of the machine code compiles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import triton.language as tl

from stn_triton import tuning
from stn_triton.options import MODES, PADDING_MODES, Options

PLAIN = tuning.variant_of(2, False, False, False, Options())


def variants() -> list[str]:
    """Every variant that can be compiled."""
    names = []
    kinds = ("affine", "antialias", "projective", "spline")
    for tangent, dim, mode, padding, kind, many in itertools.product(
        (False, True), (2, 3), MODES, PADDING_MODES, kinds, (False, True)
    ):
        if dim == 2 or (mode != "bicubic" and kind in ("affine", "antialias")):
            points = (0.0,) if kind == "spline" else ()
            options = Options(mode, padding, antialias=kind == "antialias", points=points)
            names.append(tuning.variant_of(dim, kind == "projective", many, tangent, options))
    return names


def kernels_of(variant: str) -> list[str]:
    """The kernels that a variant is launched with."""
    flags = variant.split("-")
    kernels = ["forward", "backward_input"]
    if "nearest" not in flags:
        kernels.append("theta")
        if not {"many", "tangent", "spline"} & set(flags):
            kernels.append("backward")
    return kernels + ["fill"] * ("fill" in flags) + ["reach", "scatter"] * ("spline" in flags)


Case = tuple[tuple[tuning.Bucket, tuning.Config, str], dict[str, object]]


def shipped(archs: Sequence[str]) -> list[Case]:
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


def every_variant(archs: Sequence[str]) -> list[Case]:
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
