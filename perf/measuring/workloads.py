"""Named workloads: the shapes that users of a spatial transformer have, and their data."""

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
    size: tuple[int, ...] | None = None  # of the output, if not the input's
    crops: int = 0
    """Matrices per image, each at a random place, in a dimension of their own; 0 for one, in its middle."""
    scale: float = 1.0  # the share of the picture, along each axis, that the identity shows
    options: Mapping[str, str | int] = field(default_factory=dict)
    """mode and padding_mode; antialias as the samples per pixel and axis that the identity needs."""
    sweep: bool = False  # whether it is one of several that differ in one number, with few maps and passes

    @property
    def layout(self) -> str:
        """The usual name of the memory format."""
        return "channels_last" if self.memory_format == torch.channels_last else "NCHW"

    def why_not(self, map_name: str) -> str:
        """Why the workload cannot run under a map; empty if it can."""
        is_mixed = "antialias" in self.options and maps.MAPS[map_name].shrink is None
        return "the eager pair has one number of samples for all images" if is_mixed else ""


_LAST, _BF16 = {"memory_format": torch.channels_last}, {"dtype": torch.bfloat16}
_PHOTOS, _LARGE, _HALF = (64, 3, 224, 224), (64, 3, 448, 448), (224, 224)
_F64, _F256, _F512 = (32, 64, 56, 56), (32, 256, 56, 56), (32, 512, 28, 28)
_CROPS = "1,000 regions of interest of one feature map; the eager pair expands it"
_BORDER = "augmentation with border padding; zoomed out until a third of the output lies outside"
_FINE = "shrinking without aliasing (no random maps); PyTorch samples more finely and averages"
_SWEEP = {"who": "a sweep: random maps alone, forward with and without backward", "sweep": True}
_ALL = (
    Workload("digits-28", "a transformer in front of a classifier of handwritten digits", (256, 1, 28, 28)),
    Workload("images-224", "augmentation of a batch of photographs", _PHOTOS),
    Workload("images-224-bf16", "augmentation in mixed precision; PyTorch samples in fp32", _PHOTOS, **_BF16),
    Workload("images-224-uint8", "augmentation of bytes; PyTorch converts and rounds", _PHOTOS, torch.uint8),
    Workload("features-64", "feature maps after the first stage of a ResNet-50", _F64),
    Workload("features-64-channels-last", "the layout that convolutions on GPUs prefer", _F64, **_LAST),
    Workload("features-256", "feature maps after the first bottlenecks of a ResNet-50", _F256),
    Workload("features-256-channels-last", "the layout that convolutions on GPUs prefer", _F256, **_LAST),
    Workload("features-512", "feature maps after the second bottlenecks of a ResNet-50", _F512),
    Workload("features-512-channels-last", "the layout that convolutions on GPUs prefer", _F512, **_LAST),
    Workload("features-256-bf16-channels-last", "a ResNet-50 in mixed precision", _F256, **_BF16, **_LAST),
    Workload("features-64-bf16", "feature maps in mixed precision", _F64, **_BF16),
    Workload("pooled-7", "a transformer in front of a network's last pooling", (32, 2048, 7, 7)),
    Workload("shrink-224", "large photographs brought to 224 without antialiasing", _LARGE, size=_HALF),
    Workload("image-4096", "one large image: microscopy, satellites, scans", (1, 3, 4096, 4096)),
    Workload("crops-7", _CROPS, (1, 256, 100, 152), size=(7, 7), crops=1000, scale=0.05),
    Workload("volume-160", "registration of volumes of a brain, trilinear", (1, 1, 160, 192, 224)),
    Workload("bicubic-224", "augmentation, bicubic", _PHOTOS, options={"mode": "bicubic"}),
    Workload("border-224", _BORDER, _PHOTOS, scale=1.2247, options={"padding_mode": "border"}),
    Workload("antialias-2", _FINE, _LARGE, size=_HALF, options={"antialias": 2}),
    Workload("antialias-4", _FINE, _LARGE, size=(112, 112), options={"antialias": 4}),
    *(Workload(f"size-{n}", shape=(8, 8, n, n), **_SWEEP) for n in (16, 64, 256, 1024)),
    *(Workload(f"batch-{n}", shape=(n, 3, 128, 128), **_SWEEP) for n in (1, 4, 16, 64, 256)),
    *(Workload(f"channels-{n}", shape=(16, n, 64, 64), **_SWEEP) for n in (1, 4, 16, 64, 256)),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
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

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Data":
        """Replace each tensor by ``change`` of it."""
        return replace(self, **{n: change(getattr(self, n)) for n in ("input", "theta", "grad_output")})

    def copies(self, count: int) -> "list[Data]":
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
    if quick:
        few = [(min(w.shape[0], _QUICK_BATCH), *w.shape[1:]) for w in found]
        found = [w if w.sweep else replace(w, shape=shape) for w, shape in zip(found, few, strict=True)]
    return found


def make(workload: Workload, device: torch.device, map_name: str | None = None) -> Data:
    """The workload's tensors under a map, with the same values on every device.

    Without a name the map is random, or the identity where the workload has no random ones.
    """
    if map_name is None:
        map_name = "identity" if workload.why_not(maps.RANDOM) else maps.RANDOM
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
    input = input.to(device, workload.dtype, memory_format=workload.memory_format)
    grad_dtype = workload.dtype if workload.dtype.is_floating_point else torch.float32
    grad_output = torch.randn(count, channels, *size, generator=generator).to(device)
    at_kink = _at_kink(theta, size_in, size, options.get("antialias", 1))
    grad_output = grad_output.masked_fill_(at_kink[:, None], 0).to(grad_dtype)
    if workload.crops:
        theta, grad_output = (t.unflatten(0, (batch, workload.crops)) for t in (theta, grad_output))
    else:
        grad_output = grad_output.to(memory_format=workload.memory_format)
    return Data(input, theta, grad_output, options)


def _at_kink(theta: Tensor, size_in: Sequence[int], size: Sequence[int], fine: int) -> Tensor:
    """Find the output pixels (N, *size) that sample at a row or column of pixel centres, within rounding.

    The derivative for theta jumps there, so two correct fp32 results may differ by the whole jump. A pixel
    has ``fine`` samples along each axis; one of them is enough, with either value of ``align_corners``.
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
