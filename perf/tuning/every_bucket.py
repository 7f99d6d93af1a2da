"""Every bucket that a call can reach, each with a representative call.

Kinds of calls times sizes of images. Which bucket a size falls into is asked of ``tuning.bucket_of``, so what
no call can reach (few planes of many channels; volumes with bicubic) is not among them.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from perf.measuring.passes import Run
from perf.measuring.workloads import SEED
from perf.tuning.launches import Case, Plan
from stn_triton import launch, splines, tuning
from stn_triton.options import MODES, PADDING_MODES, Options, Tangents
from stn_triton.reference import coordinate_dtype

MAX_ELEMENTS = 2**26
"""Of one tensor of images: 256 MiB in fp32. A call has at most five."""
MAX_PLANES = 2048
"""More fill no GPU better."""
_PER_IMAGE = 4
_DEPTH = 8
_CHANNELS = (1, 2, 3, 8, 12, 16, 28, 32, 60, 64, 124, 128)
_SIDES = (7, 14, 56, 224)
_POINTS = tuple(splines.regular_points(4, 4))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8)


class Kind(NamedTuple):
    """What a call does, whatever the size of its images."""

    kernel: str
    dim: int
    options: Options
    projective: bool
    many: bool
    tangent: bool
    dtype: torch.dtype
    channels_last: bool

    def exists(self) -> bool:
        """Whether any call launches this."""
        needs_theta = self.kernel in ("backward", "theta")
        is_spline = bool(self.options.points)
        impossible = (
            self.dim == 3 and (self.options.mode == "bicubic" or self.projective or is_spline),
            (self.options.antialias, self.projective, is_spline).count(True) > 1,
            self.kernel == "scatter" and not is_spline,
            self.kernel == "backward" and is_spline,
            self.kernel == "backward_input" and is_spline and self.channels_last,  # as if it were not
            self.many and self.kernel != "backward_input",  # only the gather tells them apart
            self.tangent and self.kernel == "backward",  # its two gradients are then summed apart
            needs_theta and self.options.mode == "nearest",  # zero
            self.kernel == "fill" and self.options.padding_mode != "fill",
            self.dtype == torch.uint8 and (self.tangent or self.kernel != "forward"),
        )
        return not any(impossible)

    def bucket(self, images: int, channels: int, side: int) -> tuning.Bucket:
        """The bucket of a call on so many images, or slices of volumes."""
        variant = tuning.variant_of(self.dim, self.projective, self.many, self.tangent, self.options)
        pixels = side * side
        last = self.channels_last
        return tuning.bucket_of(self.kernel, variant, last, self.dtype, images, channels, pixels)


def kinds() -> Iterator[Kind]:
    """All of them, those that most calls have first."""
    for tangent, dim, mode, padding, spline, antialias, projective, many in itertools.product(
        (False, True), (2, 3), MODES, PADDING_MODES, *[(False, True)] * 4
    ):
        options = Options(mode, padding, antialias=antialias, points=_POINTS if spline else ())
        for dtype, channels_last, kernel in itertools.product(
            _DTYPES, (False, True), ("forward", "backward", "backward_input", "scatter", "theta", "fill")
        ):
            kind = Kind(kernel, dim, options, projective, many, tangent, dtype, channels_last)
            if kind.exists():
                yield kind


def plan() -> Plan:
    """Every bucket with a call of its own."""
    found: Plan = {}
    for kind in kinds():
        for images, channels, side in sizes(kind.channels_last):
            make = functools.partial(_run, kind, images, channels, side)
            found[kind.bucket(images, channels, side)] = Case("generated", make)
    return found


@functools.cache
def sizes(channels_last: bool) -> list[tuple[int, int, int]]:
    """Images, channels and side of square planes: of each bucket the most planes that memory allows."""
    plain = Kind("forward", 2, Options(), False, False, False, torch.float32, channels_last)
    found = {}
    for channels, side, exponent in itertools.product(_CHANNELS, _SIDES, range(12)):
        images = 2**exponent
        planes = images * channels
        if channels_last and channels == 1:  # which is the same as contiguous
            continue
        if planes <= MAX_PLANES and planes * side * side <= MAX_ELEMENTS:
            found[plain.bucket(images, channels, side)] = images, channels, side
    return list(found.values())


def _run(kind: Kind, images: int, channels: int, side: int, device: torch.device) -> Run:
    """The call on random images and mild random maps."""
    generator = torch.Generator(device).manual_seed(SEED) if device.type != "meta" else None
    depth = min(images, _DEPTH) if kind.dim == 3 else 1
    size = (side, side) if kind.dim == 2 else (depth, side, side)
    images //= depth
    per_image = _PER_IMAGE if kind.many else 1
    # As much output as input, with many matrices as without.
    size_out = tuple(-(-n // 2) for n in size) if kind.many else size
    exact = coordinate_dtype(kind.dtype)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=exact)

    def pictures(count: int, size: tuple[int, ...]) -> Tensor:
        form = torch.channels_last if kind.dim == 2 else torch.channels_last_3d
        form = form if kind.channels_last else torch.contiguous_format
        values = normal(count, channels, *size)
        if kind.dtype == torch.uint8:
            values = values.mul(64).add(128).clamp(0, 255)
        return values.to(kind.dtype, memory_format=form)

    def matrices(strength: float) -> Tensor:
        theta = strength * normal(images * per_image, kind.dim, kind.dim + 1)
        if kind.projective:
            last = 0.2 * strength * normal(images * per_image, 1, kind.dim + 1)
            theta = torch.cat((theta, last), dim=1)
        if kind.options.points:
            weights = 0.1 * strength * normal(images * per_image, 2, len(_POINTS) // 2)
            theta = torch.cat((theta, weights), dim=2)
        return theta

    zoom = 2.0 if kind.options.antialias else 1.0
    columns = kind.dim + 1 + len(kind.options.points) // 2
    identity = torch.eye(kind.dim + int(kind.projective), columns, device=device, dtype=exact)
    identity[: kind.dim] *= zoom
    theta = matrices(0.1) + identity
    input, grad_output = pictures(images, size), pictures(images * per_image, size_out)
    fill = normal(channels) if kind.options.padding_mode == "fill" else None
    tangents = None
    if kind.tangent:
        fill_tangent = None if fill is None else normal(channels)
        tangents = Tangents(pictures(images, size), matrices(0.01), fill_tangent)
    if kind.kernel == "forward":
        return lambda: (launch.forward(input, theta, size_out, kind.options, fill, None, tangents),)
    wanted = {"backward": (True, True, False), "theta": (False, True, False), "fill": (False, False, True)}
    mask = wanted.get(kind.kernel, (True, False, False))

    def run() -> tuple[Tensor, ...]:
        with _deterministic(kind.kernel == "backward_input"):
            grads = launch.backward(grad_output, input, theta, kind.options, mask, fill, None, tangents)
        return tuple(grad for grad in grads if grad is not None)

    return run


@contextlib.contextmanager
def _deterministic(is_on: bool) -> Iterator[None]:
    """PyTorch's mode, which chooses between gather and scatter for splines."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(is_on)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
