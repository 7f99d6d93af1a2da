"""The rows of the check: results against the oracle, beside PyTorch's pair, and properties."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from stn_triton.check import properties
from stn_triton.check.cases import GRID, KINDS, LAYOUTS, SCATTERED, Case, make, rotation
from stn_triton.check.engine import Engine
from stn_triton.check.judge import Finding, against_truth, beside_pair
from stn_triton.options import LABEL_DTYPES, MODES, PADDING_MODES, PADDINGS, PAIR_PADDINGS, Options

PLAIN = Options()
CORNERS = (False, True)
BASIC = {
    "rotation": rotation(20, 1, 0.013, -0.041),
    "rotation by 98": rotation(98, 0.31, 0.21, 0.007),
    "zoom out": [[2.03, 0.11, 0.013], [0.07, 1.97, 0.031]],
    "zoom in": rotation(2, 0.3, 0.1, 0.2),
    "shift": [[1, 0, 0.513], [0, 1, -0.237]],
    "anisotropic": [[0.213, 0.017, 0.011], [0.023, 2.91, 0.029]],
    "shear": [[1.013, 1.917, 0.023], [0.011, 0.983, 0.047]],
    "mirror": [[-1.01, 0.02, 0.013], [0.03, 0.97, 0.02]],
}
DEGENERATE = {
    "singular": [[0.61, 0.52, 0.013], [0.61, 0.52, 0.013]],
    "nearly singular": [[0.61, 0.52, 0.013], [0.61, 0.52 + 1e-6, 0.013]],
    "a single row": [[1.03, 0, 0.013], [0, 0, 0.1]],
    "a single point": [[0, 0, 0.13], [0, 0, 0.21]],
    "outside": [[1, 0, 5], [0, 1, 0.1]],
}
# Finite ones are not used with paddings that repeat the image, where the fraction of so large a number would
# matter. Output sizes must be even, so that no output position is zero.
WILD = {
    "far outside": [[1, 0, 1e6], [0, 1, 0.1]],
    "huge": [[1e30, 0, 0.1], [0, 1, 0.1]],
    "huge shift": [[1, 0, 3e38], [0, 1, 0.1]],
    "infinite": [[math.inf, 0, 0.1], [0, 1, 0.1]],
    "infinite shift": [[1, 0, -math.inf], [0, 1, 0.1]],
    "NaN": [[1, 0, math.nan], [0, 1, 0.1]],
    "NaN everywhere": [[math.nan] * 3] * 2,
}
NOT_FINITE = {name: theta for name, theta in WILD.items() if "NaN" in name or "infinite" in name}
# Coordinates lie on pixels in both corner conventions, at the sizes of ``_kinked``.
KINKED = {
    "identity": [[1, 0, 0], [0, 1, 0]],
    "half a turn": [[-1, 0, 0], [0, -1, 0]],
    "axis swap": [[0, 1, 0], [1, 0, 0]],
    "whole shift": [[1, 0, 1], [0, 1, -0.5]],
    "zoom": [[0.5, 0, 0], [0, 0.5, 0]],
    "shrink": [[2, 0, 0], [0, 2, 0]],
}
EDGES = (1, 7, 8, 9, 15, 16, 17, 33)


class Row(NamedTuple):
    """One line of the table, or two: one for the output and one for the gradients."""

    section: str
    name: str
    find: Callable[[Engine, bool], Iterator[list[Finding]]]
    """Yields the findings case by case; fewer cases if quick."""
    unavailable: Callable[[Engine], str | None] = lambda engine: None
    """Reason why an engine cannot run the row, or None."""


def _every(quick: bool, step: int, items: Sequence) -> Sequence:
    """Take every ``step``-th item of a product if quick, shifted so that all factors occur."""
    return [item for i, item in enumerate(items) if (i + i // step) % step == 0] if quick else items


def _truths(make_cases: Callable[[Engine, bool], Iterator[Case]]):
    """Make a row that compares cases with the oracle; scattered sums in deterministic mode and without."""

    def find(engine, quick):
        for case in make_cases(engine, quick):
            yield against_truth(case, engine)
            if case.is_scattered and engine.has_kernels:
                yield against_truth(case, engine, is_poisoned=False)

    return find


def _modes(dim: int, mode: str):
    def make_cases(engine, quick):
        for padding_mode, corners in itertools.product(PADDING_MODES, CORNERS):
            for theta in [None] if quick else [None, *BASIC.values()] if dim == 2 else [None]:
                options = Options(mode, padding_mode, corners)
                for sizes in [(None, None), ((3, 5, 4), (4, 3, 5))][: 1 if dim == 2 or quick else 2]:
                    yield make(engine.device, options, dim=dim, theta=theta, size_in=sizes[0], size=sizes[1])

    return make_cases


def _kinds(*kinds: str, dims: Sequence[int] = (2, 3)):
    """Make cases of some kinds of map with all modes and paddings; for volumes only cheap ones."""

    def make_cases(engine, quick):
        product = list(itertools.product(kinds, dims, MODES, PADDING_MODES, CORNERS))
        for kind, dim, mode, padding_mode, corners in _every(quick, 5, product):
            if dim == 3 and (mode == "bicubic" or (kind == "antialias" and padding_mode == "reflection")):
                continue
            yield make(engine.device, Options(mode, padding_mode, corners), kind, dim=dim)

    return make_cases


def _splines(engine, quick):
    points = list(itertools.product((GRID, SCATTERED), MODES, PADDING_MODES, CORNERS))
    for flat, mode, padding_mode, corners in _every(quick, 7, points):
        options = Options(mode, padding_mode, corners, points=flat)
        yield make(engine.device, options, "spline", size_in=(5, 7), size=(6, 5))


def _dtype(dtype: torch.dtype):
    """Make cases of a dtype with all modes and kinds, which differ in loads, stores and coordinates."""

    def make_cases(engine, quick):
        product = list(itertools.product(KINDS, MODES, PADDING_MODES, ("contiguous", "channels_last")))
        for kind, mode, padding_mode, layout in _every(quick, 17, _every(True, 3, product)):
            yield make(
                engine.device, Options(mode, padding_mode), kind, dtype=dtype, layout=layout, channels=3
            )
        for mode, padding_mode in itertools.product(MODES[:2], PADDING_MODES[: 1 if quick else None]):
            yield make(engine.device, Options(mode, padding_mode), dim=3, dtype=dtype)

    return make_cases


def _bytes(engine, quick):
    for mode, padding_mode, layout in _every(
        quick, 5, list(itertools.product(MODES, PADDING_MODES, ("contiguous", "channels_last")))
    ):
        for kind in ("plain", "many", "antialias"):
            options = Options(mode, padding_mode)
            yield make(engine.device, options, kind, dtype=torch.uint8, layout=layout, channels=3)


def _labels(engine, quick):
    kinds = ("plain", "many", "index", "spline", "projective")
    product = list(itertools.product(LABEL_DTYPES, PADDING_MODES, kinds, ("contiguous", "channels_last")))
    for dtype, padding_mode, kind, layout in _every(True, 17 if quick else 7, product):
        options = Options("nearest", padding_mode)
        yield make(engine.device, options, kind, dtype=dtype, layout=layout, channels=3)
    yield make(engine.device, Options("nearest"), dim=3, dtype=torch.int64)


def _layouts(*names: str):
    def make_cases(engine, quick):
        dims = (2,) if quick else (2, 3)
        channels = (3, 16) if "channels_last" in names else (3,)
        for name, dim, count, kind in itertools.product(names, dims, channels, ("plain", "many", "index")):
            yield make(engine.device, PLAIN, kind, dim=dim, layout=name, channels=count)
        for name, mode in itertools.product(names, MODES):
            options = Options(mode, "border")
            yield make(engine.device, options, layout=name, channels=3, size_in=(6, 9), size=(7, 6))

    return make_cases


def _sizes(engine, quick):
    theta = rotation(33, 0.8, 0.1, 0.05)
    for height, width in _every(quick, 5, list(itertools.product(EDGES, EDGES))):
        for mode in ("bilinear",) if quick else MODES:
            sizes = ((height, width), (width, height))
            yield make(engine.device, Options(mode), theta=theta, size_in=sizes[0], size=sizes[1], channels=1)
    for sizes in (((1, 1), (1, 1)), ((1, 1), (5, 9)), ((5, 9), (1, 1))):
        for padding_mode, corners in itertools.product(PADDING_MODES, CORNERS):
            options = Options("bilinear", padding_mode, corners)
            yield make(engine.device, options, theta=theta, size_in=sizes[0], size=sizes[1])


def _maps(thetas: dict[str, list], paddings: Sequence[str] = PADDING_MODES):
    def make_cases(engine, quick):
        for theta, mode, padding_mode in itertools.product(
            thetas.values(), ("bilinear",) if quick else MODES, paddings[:: 3 if quick else 1]
        ):
            options = Options(mode, padding_mode)
            yield make(engine.device, options, theta=theta, size_in=(7, 17), size=(8, 14))

    return make_cases


def _antialias(engine, quick):
    """Make antialiased cases: all options; shrinks around 1 + 1/64; one beyond 64 samples."""
    yield from _kinds("antialias")(engine, quick)
    for scale, sizes in ((1.0122, ((9, 6), (9, 6))), (1.032, ((9, 6), (9, 6))), (1.2, ((3, 70), (2, 1)))):
        theta = [[scale, 0, 0.0156], [0, scale, -0.024]]
        yield make(
            engine.device, Options("bilinear"), "antialias", theta=theta, size_in=sizes[0], size=sizes[1]
        )


def _wild(engine, quick):
    for repeats, thetas in ((False, WILD), (True, NOT_FINITE)):
        names = [name for name, padding in PADDINGS.items() if padding.repeats == repeats]
        yield from _maps(thetas, names)(engine, quick)


def _kinked(engine, quick):
    for theta, mode, padding_mode, corners in itertools.product(
        KINKED.values(), ("bilinear", "bicubic"), PADDING_MODES[:: 3 if quick else 1], CORNERS
    ):
        size = (3, 5) if corners else (4, 6)
        options = Options(mode, padding_mode, corners)
        yield make(engine.device, options, theta=theta, size_in=size, size=size, is_kinked=True)


def _pair(dtype: torch.dtype, dim: int = 2):
    def find(engine, quick):
        paddings = PAIR_PADDINGS[:1] if quick else PAIR_PADDINGS
        sizes = ((65, 93), (71, 57)) if dim == 2 else ((11, 17, 13), (9, 15, 19))
        for mode, padding_mode, corners in itertools.product(
            ("bilinear", "bicubic")[: 4 - dim], paddings, CORNERS
        ):
            options = Options(mode, padding_mode, corners)
            # A dozen maps, because grad_theta has few numbers per map.
            yield beside_pair(
                make(
                    engine.device, options, dim=dim, dtype=dtype, images=12, size_in=sizes[0], size=sizes[1]
                ),
                engine,
            )

    return find


def _halves(dtype: torch.dtype) -> Callable[[Engine], str | None]:
    def unavailable(engine):
        if dtype != torch.bfloat16 or engine.has_bfloat16():
            return None
        major, minor = torch.cuda.get_device_capability(engine.device)
        return f"this GPU (compute capability {major}.{minor}) has no bfloat16"

    return unavailable


TRUTH = "Against an independent computation in fp64"
PAIR = "Beside PyTorch's pair: at most twice its error against fp64"
PROPERTIES = "Properties checked without a reference"

ROWS = (
    *(Row(TRUTH, f"images, {mode}", _truths(_modes(2, mode))) for mode in MODES),
    *(Row(TRUTH, f"volumes, {mode}", _truths(_modes(3, mode))) for mode in MODES[:2]),
    Row(TRUTH, "projective", _truths(_kinds("projective", dims=(2,)))),
    Row(TRUTH, "splines", _truths(_splines)),
    Row(TRUTH, "many thetas per image", _truths(_kinds("many", "single image", "one for all"))),
    Row(TRUTH, "image_index", _truths(_kinds("index"))),
    Row(TRUTH, "antialias", _truths(_antialias)),
    *(
        Row(TRUTH, str(dtype).removeprefix("torch."), _truths(_dtype(dtype)), _halves(dtype))
        for dtype in (torch.float64, torch.bfloat16, torch.float16)
    ),
    Row(TRUTH, "uint8", _truths(_bytes)),
    Row(TRUTH, "labels", _truths(_labels)),
    Row(TRUTH, "channels_last", _truths(_layouts("channels_last"))),
    Row(TRUTH, "sliced and strided", _truths(_layouts(*list(LAYOUTS)[2:]))),
    Row(TRUTH, "sizes from 1x1", _truths(_sizes)),
    Row(TRUTH, "rotate, zoom, shift, shear", _truths(_maps(BASIC))),
    Row(TRUTH, "singular, outside", _truths(_maps(DEGENERATE))),
    Row(TRUTH, "huge, infinite, NaN", _truths(_wild)),
    Row(TRUTH, "exactly on pixels", _truths(_kinked)),
    Row(PAIR, "images in fp32", _pair(torch.float32)),
    Row(PAIR, "images in bfloat16", _pair(torch.bfloat16), _halves(torch.bfloat16)),
    Row(PAIR, "images in float16", _pair(torch.float16)),
    Row(PAIR, "volumes in fp32", _pair(torch.float32, 3)),
    *(Row(PROPERTIES, *row) for row in properties.ROWS),
)
