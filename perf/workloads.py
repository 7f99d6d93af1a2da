"""Named workloads: the shapes that users of a spatial transformer have, and their data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

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
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    gpu_only: bool = False
    size: tuple[int, ...] | None = None
    """Of the output, if not the input's."""
    crops: int = 0
    """Matrices per image, in a dimension of their own, each showing about a twentieth of it; 0 for one."""
    zoom: float | None = None
    """The map of every image, instead of mild random ones: more than 1 shows more than the image."""
    options: Mapping[str, str | int] = field(default_factory=dict)
    """mode and padding_mode; antialias as the samples per pixel and axis that the map asks for."""

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
        Workload(
            "volume-160",
            "registration of volumes of a brain, trilinear",
            (1, 1, 160, 192, 224),
            gpu_only=True,
        ),
        Workload(
            "crops-7",
            "1,000 regions of interest of one feature map; the eager pair expands it",
            (1, 256, 100, 152),
            size=(7, 7),
            crops=1000,
            gpu_only=True,
        ),
        Workload(
            "bicubic-224",
            "affine augmentation of a batch of photographs, bicubic",
            (64, 3, 224, 224),
            options={"mode": "bicubic"},
            gpu_only=True,
        ),
        Workload(
            "border-224",
            "augmentation with border padding, a third of the output outside",
            (64, 3, 224, 224),
            zoom=1.2247,
            options={"padding_mode": "border"},
            gpu_only=True,
        ),
        *(
            Workload(
                f"antialias-{factor}",
                f"shrinking {factor} times without aliasing; the eager pair samples {factor} times the size "
                "and averages",
                (64, 3, 448, 448),
                size=(448 // factor,) * 2,
                zoom=1.0,
                options={"antialias": factor},
                gpu_only=True,
            )
            for factor in (2, 4)
        ),
    )
}


@dataclass(frozen=True)
class Data:
    """Tensors of one workload, and the options to sample with."""

    input: Tensor
    theta: Tensor
    grad_output: Tensor
    options: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, ...]:
        """Of the output."""
        return tuple(self.grad_output.shape[2 - self.input.ndim :])

    def to(self, dtype: torch.dtype) -> Data:
        """The same values with every tensor in ``dtype``."""
        return replace(
            self,
            input=self.input.to(dtype),
            theta=self.theta.to(dtype),
            grad_output=self.grad_output.to(dtype),
        )


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
    batch, channels, *size_in = workload.shape
    batch = min(batch, _QUICK_BATCH) if quick else batch
    size = workload.size or tuple(size_in)
    theta = _maps(workload, batch, len(size), generator)
    input = torch.randn(batch, channels, *size_in, generator=generator)
    grad_output = torch.randn(len(theta), channels, *size, generator=generator)
    if "antialias" not in workload.options:  # a sample at a jump is averaged with others
        grad_output *= ~_at_cell_border(theta, size_in, size)[:, None]
    if workload.crops:
        theta, grad_output = (t.unflatten(0, (batch, workload.crops)) for t in (theta, grad_output))

    def place(images: Tensor) -> Tensor:
        form = workload.memory_format if images.ndim == input.ndim else torch.contiguous_format
        return images.to(device, workload.dtype, memory_format=form)

    return Data(place(input), theta.to(device), place(grad_output), workload.options)


def _maps(workload: Workload, batch: int, dim: int, generator: torch.Generator) -> Tensor:
    """One matrix after the other: (batch times crops, D, D + 1)."""
    if workload.zoom is not None:
        # A shift that is no whole number of pixels.
        theta = torch.eye(dim, dim + 1) * workload.zoom
        theta[:, dim] = 0.00123
        return theta.repeat(batch, 1, 1)
    if dim == 3:
        flat = random_affine(batch, generator)
        theta = torch.eye(3, 4).repeat(batch, 1, 1)
        theta[:, :2, :2], theta[:, :2, 3] = flat[:, :, :2], flat[:, :, 2]
        return theta
    theta = random_affine(batch * max(workload.crops, 1), generator)
    if workload.crops:
        theta[:, :, :2] *= 0.05
        theta[:, :, 2] = 1.8 * torch.rand(len(theta), 2, generator=generator) - 0.9
    return theta


def random_affine(batch: int, generator: torch.Generator) -> Tensor:
    """Mild maps (batch, 2, 3): rotated by up to 30 degrees, scaled by 0.8 to 1.25, shifted by up to 10 %."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(batch, generator=generator)

    angle = uniform(-math.pi / 6, math.pi / 6)
    scale = torch.exp(uniform(math.log(0.8), math.log(1.25)))
    cos, sin = scale * angle.cos(), scale * angle.sin()
    rows = torch.stack((cos, -sin, uniform(-0.2, 0.2), sin, cos, uniform(-0.2, 0.2)), dim=1)
    return rows.view(batch, 2, 3)


def _at_cell_border(theta: Tensor, size_in: Sequence[int], size: Sequence[int]) -> Tensor:
    """Which output pixels (N, *size) sample within rounding of a row or column of pixel centres.

    The derivative for theta jumps there, so two correct fp32 results may differ by the whole jump.
    """
    grid = F.affine_grid(theta.double(), [len(theta), 1, *size], align_corners=False)
    pixels = ((grid + 1) * torch.tensor(list(reversed(size_in))) - 1) / 2
    return ((pixels - pixels.round()).abs() < _CELL_BORDER).any(-1)
