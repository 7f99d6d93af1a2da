"""Named workloads: the shapes that users of a spatial transformer have, and their data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from perf import chosen
from perf.measuring import maps

# Not smaller: the largest error of a handful of theta gradients is chance, and the gate's tolerance with it.
_QUICK_BATCH = 16
# In pixels; far above the rounding of an fp32 coordinate at the sizes below.
_CELL_BORDER = 2e-3


@dataclass(frozen=True)
class Workload:
    """One shape to measure, and who has it."""

    name: str
    who: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    memory_format: torch.memory_format = torch.contiguous_format
    size: tuple[int, ...] | None = None
    """Of the output, if not the input's."""
    crops: int = 0
    """Matrices per image, each at a random place, in a dimension of their own; 0 for one, in its middle."""
    scale: float = 1.0
    """The share of the picture, along each axis, that the identity shows."""
    options: Mapping[str, str | int] = field(default_factory=dict)
    """mode and padding_mode; antialias as the samples per pixel and axis that the identity needs."""
    sweep: str = ""
    """The dimension that grows in a row of workloads, which have few maps and passes."""

    @property
    def layout(self) -> str:
        """The usual name of the memory format."""
        return "channels_last" if self.memory_format == torch.channels_last else "NCHW"

    def why_not(self, map_name: str) -> str:
        """Why the workload cannot run under a map; empty if it can."""
        if "antialias" in self.options and maps.MAPS[map_name].shrink is None:
            return "images that shrink by different factors: the eager pair has one number of samples for all"
        return ""


def _made() -> list[Workload]:
    last, bf16 = {"memory_format": torch.channels_last}, {"dtype": torch.bfloat16}
    photos, large, half = (64, 3, 224, 224), (64, 3, 448, 448), (224, 224)
    after_64, after_256, after_512 = (32, 64, 56, 56), (32, 256, 56, 56), (32, 512, 28, 28)
    stage, same = "feature maps of a ResNet-50, stage", "the same in channels_last; PyTorch's output is NCHW"
    mixed = "the same in mixed precision; PyTorch samples in fp32: a bf16 grid cannot address a pixel"
    crops = "1,000 regions of interest of one feature map; the eager pair expands it"
    bytes_ = "augmentation of bytes; PyTorch converts, samples and rounds"
    aliased = "photographs of 448 pixels brought to a network's 224 without antialiasing"
    border = "augmentation with border padding; under the identity a third of the output lies outside"
    fine = "shrinking {0} times without aliasing; PyTorch samples {0} times as fine and averages"
    return [
        Workload(
            "digits-28", "a transformer in front of a classifier of handwritten digits", (256, 1, 28, 28)
        ),
        Workload("images-224", "augmentation of a batch of photographs", photos),
        Workload("images-224-bf16", mixed, photos, **bf16),
        Workload("images-224-uint8", bytes_, photos, torch.uint8),
        Workload("features-64", f"{stage} 1", after_64),
        Workload("features-64-channels-last", same, after_64, **last),
        Workload("features-256", f"{stage} 1, after its bottlenecks", after_256),
        Workload("features-256-channels-last", same, after_256, **last),
        Workload("features-512", f"{stage} 2, after its bottlenecks", after_512),
        Workload("features-512-channels-last", same, after_512, **last),
        Workload("features-256-bf16-channels-last", f"{stage} 1, mixed precision", after_256, **bf16, **last),
        Workload("features-64-bf16", "feature maps in mixed precision", after_64, **bf16),
        Workload("pooled-7", "a transformer in front of a network's last pooling", (32, 2048, 7, 7)),
        Workload("shrink-224", aliased, large, size=half),
        Workload("image-4096", "one large image: microscopy, satellites, scans", (1, 3, 4096, 4096)),
        Workload("crops-7", crops, (1, 256, 100, 152), size=(7, 7), crops=1000, scale=0.05),
        Workload("volume-160", "registration of volumes of a brain, trilinear", (1, 1, 160, 192, 224)),
        Workload("bicubic-224", "augmentation, bicubic", photos, options={"mode": "bicubic"}),
        Workload("border-224", border, photos, scale=1.2247, options={"padding_mode": "border"}),
        Workload("antialias-2", fine.format(2), large, size=half, options={"antialias": 2}),
        Workload("antialias-4", fine.format(4), large, size=(112, 112), options={"antialias": 4}),
        *(
            Workload(f"{sweep}-{n}", f"how time grows with the {sweep}", shape(n), sweep=sweep)
            for sweep, numbers, shape in (
                ("size", (16, 64, 256, 1024), lambda n: (8, 8, n, n)),
                ("batch", (1, 4, 16, 64, 256), lambda n: (n, 3, 128, 128)),
                ("channels", (1, 4, 16, 64, 256), lambda n: (16, n, 64, 64)),
            )
            for n in numbers
        ),
    ]


WORKLOADS = {workload.name: workload for workload in _made()}
SWEEP_MAPS, SWEEP_PASSES = (maps.RANDOM,), ("forward", "forward+backward")
ON_CPU = ("digits-28", "images-224", "features-64", "features-64-channels-last")
QUICK = ("digits-28", "images-224", "images-224-bf16", "features-256", "features-256-channels-last")
"""The first look on a GPU; a CPU has the same workloads in every run."""


@dataclass(frozen=True)
class Data:
    """Tensors of one workload, and the options to sample with."""

    input: Tensor
    theta: Tensor
    grad_output: Tensor
    options: Mapping[str, str | int] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, ...]:
        """Lengths of the output's axes."""
        return tuple(self.grad_output.shape[2 - self.input.ndim :])

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Data:
        """Replace each tensor by ``change`` of it."""
        return replace(self, **{n: change(getattr(self, n)) for n in ("input", "theta", "grad_output")})

    def copies(self, count: int) -> list[Data]:
        """This and ``count - 1`` copies of it, elsewhere in memory."""
        return [self, *(self.mapped(Tensor.clone) for _ in range(count - 1))]


def choose(names: Sequence[str] | None, device: torch.device, quick: bool = False) -> list[Workload]:
    """Workloads by name; None stands for all that the device, or a first look at it, is meant for.

    Quick ones have a smaller batch, except for those of a sweep.

    Raises:
        UsageError: a name is unknown.
    """
    if names is None and (quick or device.type == "cpu"):
        names = ON_CPU if device.type == "cpu" else QUICK
    found = [WORKLOADS[name] for name in chosen("--workloads", names, WORKLOADS)]
    return [
        replace(w, shape=(min(w.shape[0], _QUICK_BATCH), *w.shape[1:])) if quick and not w.sweep else w
        for w in found
    ]


def make(workload: Workload, device: torch.device, map_name: str | None = None) -> Data:
    """The workload's tensors under a map, with the same values on every device.

    Without a name the map is random, or the identity where the workload has no random ones.

    Raises:
        ValueError: the workload does not run under the map.
    """
    if map_name is None:
        map_name = "identity" if workload.why_not(maps.RANDOM) else maps.RANDOM
    if workload.why_not(map_name):
        raise ValueError(f"map_name: {workload.name} has no {map_name}: {workload.why_not(map_name)}")
    generator = torch.Generator().manual_seed(0)
    batch, channels, *size_in = workload.shape
    size = workload.size or tuple(size_in)
    count = batch * max(workload.crops, 1)
    theta = maps.matrices(map_name, count, size_in, generator, workload.scale)
    if workload.crops:
        theta[:, :, -1] = 1.8 * torch.rand(count, len(size_in), generator=generator) - 0.9
    options = dict(workload.options)
    if "antialias" in options:
        options["antialias"] = max(1, round(options["antialias"] * maps.MAPS[map_name].shrink))
    if workload.dtype == torch.uint8:
        input = torch.randint(256, workload.shape, generator=generator)
    else:
        input = torch.randn(workload.shape, generator=generator)
    theta = theta.to(device)
    grad_output = torch.randn(count, channels, *size, generator=generator).to(device)
    at_kink = _at_kink(theta, size_in, size, options.get("antialias", 1))
    grad_output = grad_output.masked_fill_(at_kink[:, None], 0)
    form = {"memory_format": workload.memory_format}
    grad_form = {} if workload.crops else form
    if workload.crops:
        theta, grad_output = (t.unflatten(0, (batch, workload.crops)) for t in (theta, grad_output))
    grad_dtype = workload.dtype if workload.dtype.is_floating_point else torch.float32
    grad_output = grad_output.to(device, grad_dtype, **grad_form)
    return Data(input.to(device, workload.dtype, **form), theta, grad_output, options)


def _at_kink(theta: Tensor, size_in: Sequence[int], size: Sequence[int], fine: int) -> Tensor:
    """Which output pixels (N, *size) have a sample within rounding of a row or column of pixel centres.

    The derivative for theta jumps there, so two correct fp32 results may differ by the whole jump. Under
    either convention of corners; with ``fine`` samples per pixel and axis.
    """
    extents = torch.tensor(list(reversed(size_in)), device=theta.device, dtype=torch.float64)
    shape = [len(theta), 1, *(n * fine for n in size)]
    near = theta.new_zeros(len(theta), *shape[2:], dtype=torch.bool)
    for align_corners in (False, True):
        grid = F.affine_grid(theta.double(), shape, align_corners=align_corners)
        pixels = ((grid + 1) * (extents - int(align_corners)) - int(not align_corners)) / 2
        near |= ((pixels - pixels.round()).abs() < _CELL_BORDER).any(-1)
    for axis, n in enumerate(size, start=1):
        near = near.unflatten(axis, (n, fine)).any(axis + 1)
    return near
