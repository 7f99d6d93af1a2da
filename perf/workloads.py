"""Named workloads: the shapes that users of a spatial transformer have, and their data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SEED = 0
# Not smaller: the largest error of a handful of theta gradients is chance, and the gate's tolerance with it.
_QUICK_BATCH = 16
# In pixels; far above the rounding of an fp32 coordinate at the sizes below.
_CELL_BORDER = 1e-3


@dataclass(frozen=True)
class Workload:
    """One shape to measure, and who has it."""

    name: str
    who: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    gpu_only: bool = False

    @property
    def layout(self) -> str:
        """The memory format by the name that the field gives it."""
        return "channels_last" if self.memory_format == torch.channels_last else "NCHW"


WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            "digits-28",
            "a spatial transformer in front of a classifier of handwritten digits",
            (256, 1, 28, 28),
        ),
        Workload("images-224", "affine augmentation of a batch of photographs", (64, 3, 224, 224)),
        Workload(
            "features-56",
            "a spatial transformer inside a convolutional network, after its first stage",
            (32, 64, 56, 56),
        ),
        Workload(
            "features-56-channels-last",
            "the same in channels_last, which convolutions on GPUs prefer; the operator's output keeps it, "
            "the eager pair returns NCHW",
            (32, 64, 56, 56),
            memory_format=torch.channels_last,
        ),
        Workload(
            "features-56-bf16",
            "the same feature maps in mixed precision; the eager pair samples in fp32 and casts back, since "
            "a bf16 grid cannot address a pixel",
            (32, 64, 56, 56),
            dtype=torch.bfloat16,
            gpu_only=True,
        ),
    )
}


@dataclass(frozen=True)
class Data:
    """Tensors of one workload; the output has the size of the input."""

    input: Tensor
    theta: Tensor
    grad_output: Tensor

    def to(self, dtype: torch.dtype) -> Data:
        """The same values with every tensor in ``dtype``."""
        return Data(self.input.to(dtype), self.theta.to(dtype), self.grad_output.to(dtype))


def choose(names: Sequence[str] | None, device: torch.device) -> list[Workload]:
    """Workloads by name; None stands for all that the device is meant for.

    Raises:
        ValueError: a name is unknown.
    """
    if names is None:
        return [w for w in WORKLOADS.values() if device.type != "cpu" or not w.gpu_only]
    for name in names:
        if name not in WORKLOADS:
            raise ValueError(f"--workloads: unknown workload {name!r}; available: {', '.join(WORKLOADS)}")
    return [workload for name, workload in WORKLOADS.items() if name in names]


def make(workload: Workload, device: torch.device, quick: bool = False) -> Data:
    """The workload's tensors, the same values on every device; ``quick`` makes the batch smaller."""
    generator = torch.Generator().manual_seed(SEED)
    batch, *rest = workload.shape
    shape = (min(batch, _QUICK_BATCH) if quick else batch, *rest)
    theta = random_affine(shape[0], generator)
    input = torch.randn(shape, generator=generator)
    grad_output = torch.randn(shape, generator=generator)
    grad_output *= ~_at_cell_border(theta, shape)[:, None]

    def place(images: Tensor) -> Tensor:
        return images.to(device, workload.dtype, memory_format=workload.memory_format)

    return Data(place(input), theta.to(device), place(grad_output))


def random_affine(batch: int, generator: torch.Generator) -> Tensor:
    """Mild maps (batch, 2, 3): rotated by up to 30 degrees, scaled by 0.8 to 1.25, shifted by up to 10 %."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    angle = uniform(-math.pi / 6, math.pi / 6)
    scale = torch.exp(uniform(math.log(0.8), math.log(1.25)))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack((cos, -sin, uniform(-0.2, 0.2), sin, cos, uniform(-0.2, 0.2)), dim=1)
    return rows.view(batch, 2, 3)


def _at_cell_border(theta: Tensor, shape: Sequence[int]) -> Tensor:
    """Which output pixels (N, H_out, W_out) sample within rounding of a row or column of pixel centres.

    The derivative for theta jumps there, so two correct fp32 results may differ by the whole jump.
    """
    grid = F.affine_grid(theta.double(), list(shape), align_corners=False)
    pixels = ((grid + 1) * torch.tensor([shape[3], shape[2]]) - 1) / 2
    return ((pixels - pixels.round()).abs() < _CELL_BORDER).any(-1)
