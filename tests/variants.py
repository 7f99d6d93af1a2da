"""All combinations of the operator's options, with example arguments for each."""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from stn_triton.check import cases
from stn_triton.options import MODES, PADDING_MODES, Options, Tangents

KINDS = ("plain", "many", "index", "projective", "antialias", "antialias index")


class Variant(NamedTuple):
    dim: int
    mode: str
    padding_mode: str
    kind: str
    align_corners: bool

    def exists(self) -> bool:
        """Whether the operator has this combination: volumes have no bicubic mode and no projective maps."""
        return self.dim == 2 or not (self.mode == "bicubic" or self.kind == "projective")

    def options(self) -> Options:
        return Options(self.mode, self.padding_mode, self.align_corners, "antialias" in self.kind)

    def name(self) -> str:
        corners = "corners" if self.align_corners else "edges"
        return f"{self.dim}d-{self.mode}-{self.padding_mode}-{self.kind}-{corners}"


PRODUCT = [Variant(*v) for v in itertools.product((2, 3), MODES, PADDING_MODES, KINDS, (False, True))]
EXISTING = [v for v in PRODUCT if v.exists()]
# Interpreted kernels are slow: without a GPU each variant has one corner convention, in turns.
CELLS = (
    EXISTING if torch.cuda.is_available() else [v for i, v in enumerate(EXISTING) if (i + i // 2) % 2 == 0]
)
# Antialiasing under reflection takes longest to interpret: mirror images times samples.
LIGHT = [v for v in EXISTING if not ("antialias" in v.kind and v.padding_mode == "reflection")]


class Case(NamedTuple):
    """Arguments of the operators."""

    input: Tensor
    theta: Tensor
    size: tuple[int, ...]
    grad: Tensor
    fill: Tensor | None
    image_index: Tensor | None

    def to(self, device, dtype, memory_format=torch.contiguous_format) -> "Case":
        """Convert the tensors. Theta and fill values stay fp32 if ``dtype`` has 16 bits."""
        wide = torch.promote_types(dtype, torch.float32)
        return Case(
            self.input.to(device, dtype).contiguous(memory_format=memory_format),
            self.theta.to(device, wide),
            self.size,
            self.grad.to(device, dtype).contiguous(memory_format=memory_format),
            None if self.fill is None else self.fill.to(device, wide),
            None if self.image_index is None else self.image_index.to(device),
        )


def maps(count: int, dim: int, shrink: float) -> Tensor:
    """Draw mild matrices that put a good third of the output outside and no coordinate at a kink."""
    return shrink * cases.maps(count, dim)


def case(variant: Variant, channels: int = 2, size_in=None, size=None) -> Case:
    """Draw two fp64 images; with an index three, of which one is used twice and one not at all."""
    generator = torch.Generator().manual_seed(0)
    randn = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    size_in = size_in or ((4, 7) if variant.dim == 2 else (2, 4, 3))
    size = size or ((5, 3) if variant.dim == 2 else (3, 2, 2))
    index = torch.tensor([2, 0, 2]) if "index" in variant.kind else None
    images = 2 if index is None else 3
    matrices = {"many": 4}.get(variant.kind, 2 if index is None else 3)
    theta = cases.maps_of_kind(
        matrices, variant.dim, variant.kind == "projective", variant.options().antialias
    )
    return Case(
        randn(images, channels, *size_in),
        theta,
        size,
        randn(matrices, channels, *size),
        randn(channels) if variant.padding_mode == "fill" else None,
        index,
    )


def tangents_of(args: Case) -> Tangents:
    """Draw a random tangent of input, theta and fill values, in their dtypes and on their devices."""
    generator = torch.Generator().manual_seed(3)
    return Tangents(
        *(
            None if t is None else torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)
            for t in (args.input, args.theta, args.fill)
        )
    )
