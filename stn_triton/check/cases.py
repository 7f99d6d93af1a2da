"""Arguments of the calls to check: images, maps and options, the same on every machine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import stn_triton
from stn_triton import policy
from stn_triton.check import oracle
from stn_triton.options import LABEL_DTYPES, Options

KINDS = ("plain", "one for all", "many", "single image", "index", "projective", "spline", "antialias")
GRID = (-1.0, -1.0, 0.0, -1.0, 1.0, -1.0, -1.0, 1.0, 0.0, 1.0, 1.0, 1.0)
SCATTERED = (-0.9, -0.7, 0.8, -0.6, 0.1, 0.2, -0.5, 0.9)
SIZES = {2: ((4, 7), (5, 3)), 3: ((2, 4, 3), (3, 2, 2))}
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
# Each layout keeps the values (or repeats some of them) and changes their places in memory.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": lambda t: t.contiguous(memory_format=_CHANNELS_LAST[t.ndim]),
    "every second row": lambda t: t.repeat_interleave(2, -2)[..., ::2, :],
    "every second column": lambda t: t.repeat_interleave(2, -1)[..., ::2],
    "every second channel": lambda t: t.repeat_interleave(2, 1)[:, ::2],
    "transposed": lambda t: t.transpose(-2, -1).contiguous().transpose(-2, -1),
    "at an odd offset": lambda t: F.pad(t, (3, 0))[..., 3:],
    "one image expanded": lambda t: t.narrow(0, 0, 1).expand_as(t),
    "one row expanded": lambda t: t.narrow(-2, 0, 1).expand_as(t),
}
_EXPANDED = {"one image expanded": 0, "one row expanded": -2}
"""The axis along which a layout repeats its first values."""


class Case(NamedTuple):
    """Arguments of one call, and the gradient of its output."""

    input: Tensor
    theta: Tensor
    """(N, 2, 3), (1, 2, 3), (N, K, 2, 3), (N, 3, 3), or the offsets of a spline."""
    size: tuple[int, ...]
    grad: Tensor
    """In the shape of the output."""
    options: Options
    fill: Tensor | None
    image_index: Tensor | None
    layout: str
    is_kinked: bool
    """Whether coordinates lie on pixels or edges on purpose, where derivatives jump."""
    skipped: Tensor
    """(M, *size): output pixels whose coordinates lie on a kink by chance. Their gradient is 0, and so is
    that of pixels which share memory with them."""
    pixels: float
    """The largest term of a coordinate, in pixels: rounding errors are proportional to it."""

    @property
    def is_spline(self) -> bool:
        """Whether theta has the offsets of a spline."""
        return bool(self.options.points)

    @property
    def is_scattered(self) -> bool:
        """Whether the kernels sum the gradient of the image by additions in memory."""
        projective = self.theta.shape[-1] == self.theta.shape[-2]
        return not policy.is_gathered(self.input.ndim - 2, projective, False, self.options)

    @property
    def function(self) -> Callable[..., Tensor]:
        """The public function that is called."""
        if self.is_spline:
            return stn_triton.thin_plate_spline_grid_sample
        if self.theta.shape[-1] == self.theta.shape[-2]:
            return stn_triton.perspective_grid_sample
        return stn_triton.affine_grid_sample

    def keywords(self) -> dict[str, object]:
        """Keywords of the function that are not its defaults."""
        o = self.options
        given = {"mode": o.mode, "padding_mode": o.padding_mode, "align_corners": o.align_corners}
        if o.antialias:
            given["antialias"] = True
        if self.is_spline:
            given["points"] = list(zip(o.points[::2], o.points[1::2], strict=True))
        if self.image_index is not None:
            given["image_index"] = self.image_index
        return given

    def call(self, input: Tensor, theta: Tensor, fill: Tensor | None) -> Tensor:
        """Call the public function and return its output."""
        return self.function(input, theta, self.size, fill_value=fill, **self.keywords())

    def describe(self) -> list[str]:
        """Describe the call and its tensors, in lines."""
        words = [f"{k}={v.tolist() if isinstance(v, Tensor) else v!r}" for k, v in self.keywords().items()]
        words += ["fill_value=fill"] if self.fill is not None else []
        name = "offsets" if self.is_spline else "theta"
        call = f"{self.function.__name__}(input, {name}, {self.size}, {', '.join(words)})"
        kind = str(self.input.dtype).removeprefix("torch.")
        strides = f"{self.layout}, strides {self.input.stride()}"
        lines = [call, f"  input: {kind} {tuple(self.input.shape)} on {self.input.device}, {strides}"]
        for key, tensor in ((name, self.theta), ("fill", self.fill)):
            if tensor is not None:
                lines.append(f"  {key}: {str(tensor.dtype).removeprefix('torch.')} {tensor.tolist()}")
        return lines


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Random normal numbers in fp64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def maps_of_kind(count: int, dim: int, is_projective: bool = False, is_antialiased: bool = False) -> Tensor:
    """Make ``maps`` of one kind: for antialiasing they shrink more, homographies get a last row."""
    found = maps(count, dim)
    if is_antialiased:
        found = {2: 1.2, 3: 0.8}[dim] * found
    if is_projective:
        # The horizon of the second map lies within the output.
        last = torch.tensor([[[0.3, -0.2, 1.1]], [[1.3, 0.4, 0.87]]], dtype=torch.float64)
        found = torch.cat((found, last), 1)
    return found


def maps(count: int, dim: int) -> Tensor:
    """Mild random matrices (count, D, D + 1): a good third of the output lies outside the input."""
    generator = torch.Generator().manual_seed(dim)
    noise = torch.rand(count, dim, dim + 1, generator=generator, dtype=torch.float64) - 0.5
    scales = torch.linspace(0.7, 1.6, count, dtype=torch.float64)[:, None, None]
    return torch.eye(dim, dim + 1, dtype=torch.float64) * scales + 0.6 * noise


def rotation(degrees: float, scale: float = 1.0, x: float = 0.0, y: float = 0.0) -> list[list[float]]:
    """A matrix that turns, scales and shifts."""
    c, s = scale * math.cos(math.radians(degrees)), scale * math.sin(math.radians(degrees))
    return [[c, -s, x], [s, c, y]]


def make(
    device: torch.device,
    options: Options = Options(),  # noqa: B008, a tuple
    kind: str = "plain",
    *,
    dim: int = 2,
    dtype: torch.dtype = torch.float32,
    layout: str = "contiguous",
    channels: int = 2,
    images: int = 2,
    size_in: Sequence[int] | None = None,
    size: Sequence[int] | None = None,
    theta: Sequence[Sequence[float]] | None = None,
    is_kinked: bool = False,
) -> Case:
    """Make a case of a kind (see ``KINDS``); if given, ``theta`` is one matrix for all images."""
    size_in, size = tuple(size_in or SIZES[dim][0]), tuple(size or SIZES[dim][1])
    images = {"index": 3, "single image": 1}.get(kind, images)
    index = torch.tensor([2, 0, 2]) if kind == "index" else None
    count = {"one for all": 1, "many": 4, "single image": 3, "index": 3}.get(kind, images)
    if theta is not None:
        matrices = torch.tensor(theta, dtype=torch.float64).repeat(count, 1, 1)
    elif kind == "spline":
        options = options._replace(points=options.points or GRID)
        matrices = 0.2 * randn(count, len(options.points) // 2, 2, seed=1)
    else:
        matrices = maps_of_kind(count, dim, kind == "projective", kind == "antialias")
    if kind == "antialias":
        options = options._replace(antialias=True)
    wide = torch.promote_types(dtype, torch.float32) if dtype.is_floating_point else torch.float32
    matrices = matrices.to(wide)
    calls = images if kind == "one for all" else count
    input, grad = randn(images, channels, *size_in), randn(calls, channels, *size, seed=3)
    fill = randn(channels, seed=2) if options.padding_mode == "fill" else None
    if dtype == torch.uint8:
        input, fill = (60 * input + 128).clamp(0, 255), None if fill is None else 60 * fill + 128
    elif dtype in LABEL_DTYPES:
        input, fill = _labels(input, dtype), None if fill is None else _labels(fill, dtype)
    skipped, pixels = _kinks(matrices, size_in, size, options)
    skipped = skipped.expand(calls, *size)
    if not is_kinked:
        axis = _EXPANDED.get(layout)
        masked = skipped if axis is None else skipped.any(axis, keepdim=True)
        grad = grad.masked_fill(masked.unsqueeze(1), 0)
    view = LAYOUTS[layout]
    floating = dtype if dtype.is_floating_point else torch.float32
    grad = view(grad.to(device, floating))
    return Case(
        view(input.to(device, dtype)),
        (matrices.unflatten(0, (images, -1)) if kind == "many" else matrices).to(device),
        size,
        grad.unflatten(0, (images, -1)) if kind == "many" else grad,
        options,
        None if fill is None else fill.to(device, dtype if dtype in LABEL_DTYPES else wide),
        None if index is None else index.to(device),
        layout,
        is_kinked,
        skipped.to(device),
        pixels,
    )


def _labels(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn normal numbers into labels of all magnitudes, at most 2**53, which are exact in fp64."""
    if dtype == torch.bool:
        return values > 0
    return (values * 2.0 ** (min(8 * dtype.itemsize, 55) - 5)).round()


def _kinks(
    matrices: Tensor, size_in: Sequence[int], size: Sequence[int], options: Options
) -> tuple[Tensor, float]:
    """Find output pixels so near a kink that fp32 could take its other side, and the largest term.

    Kinks are at pixel centres (for nearest: at the edges between pixels) and at horizons.
    """
    if options.points:
        matrices = oracle.spline_matrices(matrices.double(), options.points)
    skipped, pixels = torch.zeros(len(matrices), *size, dtype=torch.bool), 1.0
    for m, matrix in enumerate(matrices):
        for place in oracle.places(matrix, size_in, size, options):
            near = (place.divisor.abs() < 0.05) if len(matrix) > len(size) else skipped[m]
            for position, terms, n in zip(place.positions, place.terms, reversed(size_in), strict=True):
                at = position + 0.5 if options.mode == "nearest" else position
                inside = (position > -2) & (position < n + 1)
                inside |= position.isfinite() & options.padding.repeats
                margin = 1e-3 * (1 + terms.abs() / n)
                near = near | (inside & ((at - at.round()).abs() < margin))
                counted = terms[inside & place.seen & ~near]
                pixels = max(pixels, n / 2 + counted.max().item() if counted.numel() else n / 2)
            skipped[m] |= near
    return skipped, pixels
