"""The calls whose kernels `static` compiles: those of the workloads, and one of every variant.

A call is made on CPU tensors of which only shapes and strides are known; `perf.kernels.ahead` compiles what
it would launch on a GPU.
"""

from __future__ import annotations

import itertools
import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

import stn_triton
from perf.measuring.passes import PASSES
from perf.measuring.providers import operator
from perf.measuring.workloads import Workload
from perf.tuning import launches
from stn_triton.check.engine import deterministic
from stn_triton.options import LABEL_DTYPES, MODES, PADDING_MODES

LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
_POINTS = (2, 3)
_MAP_NORESERVE = 0x4000
"""A flag of Linux; Python's mmap has no name for it before 3.13."""


@dataclass(frozen=True)
class WorkloadCall:
    """The passes of a workload that together launch every kernel that a training step may need."""

    workload: Workload

    @property
    def name(self) -> str:
        """The workload's name."""
        return self.workload.name

    def run(self) -> None:
        """Make the calls."""
        data = launches.dry(self.workload, torch.device("cpu"))
        is_learned = self.workload.dtype.is_floating_point
        for name in ("forward", "backward", "theta", "input") if is_learned else ("forward",):
            PASSES[name](operator, data)()


@dataclass(frozen=True)
class VariantCall:
    """A forward and the gradients of each set of arguments for which a user may want them."""

    mode: str
    padding_mode: str
    dim: int = 2
    kind: str = "affine"
    """affine, antialias, projective or spline."""
    matrices: str = "one each"
    """many: theta of (N, K, ...), two per image; index: two per image by an ``image_index``."""
    has_tangents: bool = False
    """Also take second derivatives, which launch the kernels of tangents."""
    dtype: torch.dtype = torch.float32
    channels: int = 64
    layout: str = "NCHW"
    align_corners: bool = False
    is_far: bool = False
    """Whether rows lie so far apart that an offset within an image takes 64 bits."""
    is_exact: bool = False
    """Whether PyTorch's deterministic mode is on: scattered values are added as whole numbers."""

    @property
    def name(self) -> str:
        """The call in a few words."""
        words = [f"{self.dim}d", self.mode, self.padding_mode, self.kind, self.matrices]
        words += [str(self.dtype).removeprefix("torch."), f"c{self.channels}", self.layout]
        flags = {"tangents": self.has_tangents, "align_corners": self.align_corners}
        flags |= {"far": self.is_far, "exact": self.is_exact}
        return " ".join((*words, *(word for word, is_set in flags.items() if is_set)))

    def run(self) -> None:
        """Make the call once for each set of gradients."""
        function, input, theta, keywords = self._arguments()
        if not self.dtype.is_floating_point:
            function(input, theta, **keywords)
            return
        fill = keywords.get("fill_value")
        for wanted in ((input, theta, fill), (input,), (theta,)):
            for tensor in (input, theta, fill):
                if tensor is not None:
                    tensor.requires_grad_(any(tensor is one for one in wanted))
            leaves = [tensor for tensor in wanted if tensor is not None]
            output = function(input, theta, **keywords)
            grad = self._image(output).requires_grad_(self.has_tangents)
            with deterministic(self.is_exact):
                grads = torch.autograd.grad(output, leaves, grad, create_graph=self.has_tangents)
                if self.has_tangents:
                    # A gradient of fill values has one axis; its direction is expanded, as `sum` leaves it.
                    blank = [
                        torch.empty_like(g) if g.ndim > 1 else g.new_empty(()).expand_as(g) for g in grads
                    ]
                    torch.autograd.grad(grads, (grad, *leaves), blank, allow_unused=True)

    def _arguments(self) -> tuple[Callable[..., Tensor], Tensor, Tensor, dict[str, object]]:
        images, count = 4, 4 if self.matrices == "one each" else 8
        shape = (images, self.channels, *((64, 96) if self.dim == 2 else (8, 32, 48)))
        input = self._image(torch.empty(shape, device="meta"))
        keywords = {"mode": self.mode, "padding_mode": self.padding_mode, "align_corners": self.align_corners}
        function, matrix = stn_triton.affine_grid_sample, (self.dim, self.dim + 1)
        if self.kind == "projective":
            function, matrix = stn_triton.perspective_grid_sample, (3, 3)
        elif self.kind == "spline":
            function, matrix = stn_triton.thin_plate_spline_grid_sample, (math.prod(_POINTS), 2)
            keywords["points"] = _POINTS
        elif self.kind == "antialias":
            keywords["antialias"] = True
        theta = torch.zeros(count, *matrix, dtype=torch.promote_types(self.dtype, torch.float32))
        if self.padding_mode == "fill":
            step = 2 if self.is_far else 1
            dtype = self.dtype if self.dtype in LABEL_DTYPES else theta.dtype
            keywords["fill_value"] = torch.zeros(step * self.channels, dtype=dtype)[::step]
        if self.matrices == "many":
            theta = theta.unflatten(0, (images, -1))
        elif self.matrices == "index":
            keywords["image_index"] = torch.arange(count) % images
        return function, input, theta, keywords

    def _image(self, like: Tensor) -> Tensor:
        """Return memory of a tensor's shape (..., C, H, W), in the layout of the call's images."""
        outer, shape = like.shape[: -self.dim - 1], like.shape[-self.dim - 1 :]
        make = far if self.is_far else _empty
        return make((math.prod(outer), *shape), self.dtype, self.layout).unflatten(0, outer)


def variants() -> list[VariantCall]:
    """Every mode, padding, dimension, kind of map and way to share images; layouts and dtypes take turns.

    A few calls of special dtypes and strides come first, a sample with exact sums last.
    """
    names = ("channels", "layout", "dtype", "align_corners")
    turns = itertools.cycle(
        (
            (64, "NCHW", torch.float32, False),
            (64, "channels_last", torch.bfloat16, True),
            (3, "NCHW", torch.float16, True),
            (64, "channels_last", torch.float32, False),
            (64, "NCHW", torch.bfloat16, True),
            (4, "channels_last", torch.float32, False),
            (16, "NCHW", torch.float64, True),
        )
    )
    kinds, matrices = ("affine", "antialias", "projective", "spline"), ("one each", "many", "index")
    found = []
    for tangents, dim, mode, padding, kind, how in itertools.product(
        (False, True), (2, 3), MODES, PADDING_MODES, kinds, matrices
    ):
        if dim == 2 or (mode != "bicubic" and kind in kinds[:2]):
            call = VariantCall(mode, padding, dim, kind, how, tangents)
            found.append(replace(call, **dict(zip(names, next(turns), strict=True))))
    plain = VariantCall("bilinear", "zeros", channels=16)
    special = [replace(plain, dtype=torch.uint8, channels=3)]
    special += [replace(plain, mode="nearest", padding_mode="fill", dtype=dtype) for dtype in LABEL_DTYPES]
    special += [replace(plain, is_far=True, dim=dim) for dim in (2, 3)]
    special += [
        replace(plain, dtype=dtype, channels=channels, layout=layout)
        for dtype, channels, layout in itertools.product(
            (torch.float64, torch.float16), (1, 3, 64, 100), LAYOUTS
        )
    ]
    return special + found + [replace(call, is_exact=True) for call in found[::11]]


def far(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    """Return an image whose planes span over 2^31 elements: addresses without memory behind them."""
    row, n, c, *pixel, w = len(shape) - 2, *range(len(shape) - 2), len(shape) - 1
    strides, extent = [0] * len(shape), 1
    for axis in (w, *pixel, c, n) if layout == "NCHW" else (c, w, *pixel, n):
        strides[axis], extent = extent, extent * shape[axis]
    strides[row] = 2**31 // shape[row]
    size = extent + 2**31
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags), dtype=dtype)
    return memory.as_strided(shape, strides)


def _empty(shape: Sequence[int], dtype: torch.dtype, layout: str) -> Tensor:
    form = LAYOUTS[layout]
    if form == torch.channels_last and len(shape) == 5:
        form = torch.channels_last_3d
    return torch.empty(shape, dtype=dtype, memory_format=form)
