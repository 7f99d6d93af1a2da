"""Named workloads: the shapes that users of a spatial transformer have, and their data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from perf import chosen
from perf.measuring import maps

SEED = 0
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
    cpu: bool = False
    """Whether a CPU has the time for it unasked."""
    quick: bool = False
    """Whether it is in the first look on a GPU; on a CPU that looks at all of its own."""
    size: tuple[int, ...] | None = None
    """Of the output, if not the input's."""
    crops: int = 0
    """Matrices per image, in a dimension of their own, each at a random place; 0 for one, in its middle."""
    scale: float = 1.0
    """The share of the picture, along each axis, that the identity shows."""
    options: Mapping[str, str | int] = field(default_factory=dict)
    """mode and padding_mode; antialias as the samples per pixel and axis that the identity asks for."""
    sweep: str = ""
    """What grows from one to the next of a row of workloads: these have few maps and passes."""

    @property
    def layout(self) -> str:
        """The memory format by the name that the field gives it."""
        return "channels_last" if self.memory_format == torch.channels_last else "NCHW"

    def why_not(self, map_name: str) -> str:
        """Why the workload cannot run under a map; empty if it can."""
        if "antialias" in self.options and maps.MAPS[map_name].shrink is None:
            return "images that shrink by different factors: the eager pair has one number of samples for all"
        return ""


SWEEP_MAPS, SWEEP_PASSES = (maps.RANDOM,), ("forward", "forward+backward")


def _feature_maps() -> Iterator[Workload]:
    """Stages of a ResNet-50, in both layouts."""
    for channels, side, where in (
        (64, 56, "after its first stage"),
        (256, 56, "at the end of its first stage of bottlenecks"),
        (512, 28, "at the end of its second stage of bottlenecks"),
    ):
        shape = (32, channels, side, side)
        plain = Workload(
            f"features-{channels}",
            f"a spatial transformer inside a convolutional network, {where}",
            shape,
            cpu=channels == 64,
            quick=channels == 256,
        )
        yield plain
        yield replace(
            plain,
            name=f"{plain.name}-channels-last",
            who="the same in channels_last, as convolutions on GPUs prefer; PyTorch's output is NCHW",
            memory_format=torch.channels_last,
        )
    yield Workload(
        "features-256-bf16-channels-last",
        "what a ResNet-50 in mixed precision has at the end of its first stage",
        (32, 256, 56, 56),
        dtype=torch.bfloat16,
        memory_format=torch.channels_last,
    )


def _sweeps() -> Iterator[Workload]:
    """One number grows at a time: what is latency, what is bandwidth, and where one ends."""
    for n in (16, 64, 256, 1024):
        yield Workload(f"size-{n}", "how time grows with the size of an image", (8, 8, n, n), sweep="size")
    for n in (1, 4, 16, 64, 256):
        yield Workload(f"batch-{n}", "how time grows with the batch", (n, 3, 128, 128), sweep="batch")
    for n in (1, 4, 16, 64, 256):
        yield Workload(f"channels-{n}", "how time grows with the channels", (16, n, 64, 64), sweep="channels")


_IMAGES = Workload(
    "images-224",
    "affine augmentation of a batch of photographs",
    (64, 3, 224, 224),
    cpu=True,
    quick=True,
)
_ALL = (
    Workload(
        "digits-28",
        "a spatial transformer in front of a classifier of handwritten digits",
        (256, 1, 28, 28),
        cpu=True,
        quick=True,
    ),
    _IMAGES,
    replace(
        _IMAGES,
        name="images-224-bf16",
        who="the same in mixed precision; PyTorch samples in fp32, since a bf16 grid cannot address a pixel",
        dtype=torch.bfloat16,
        cpu=False,
    ),
    replace(
        _IMAGES,
        name="images-224-uint8",
        who="augmentation before the conversion to floating point; PyTorch converts, samples and rounds",
        dtype=torch.uint8,
        cpu=False,
        quick=False,
    ),
    *_feature_maps(),
    Workload(
        "features-64-bf16",
        "feature maps in mixed precision",
        (32, 64, 56, 56),
        dtype=torch.bfloat16,
    ),
    Workload("pooled-7", "a spatial transformer in front of a network's last pooling", (32, 2048, 7, 7)),
    Workload(
        "shrink-224",
        "photographs of 448 pixels brought to a network's 224, sampled without antialiasing",
        (64, 3, 448, 448),
        size=(224, 224),
    ),
    Workload("image-4096", "one large image: microscopy, satellites, scans", (1, 3, 4096, 4096)),
    Workload(
        "crops-7",
        "1,000 regions of interest of one feature map; the eager pair expands it",
        (1, 256, 100, 152),
        size=(7, 7),
        crops=1000,
        scale=0.05,
    ),
    Workload("volume-160", "registration of volumes of a brain, trilinear", (1, 1, 160, 192, 224)),
    replace(
        _IMAGES,
        name="bicubic-224",
        who="affine augmentation of a batch of photographs, bicubic",
        cpu=False,
        quick=False,
        options={"mode": "bicubic"},
    ),
    replace(
        _IMAGES,
        name="border-224",
        who="augmentation with border padding; under the identity a third of the output lies outside",
        cpu=False,
        quick=False,
        scale=1.2247,
        options={"padding_mode": "border"},
    ),
    *(
        Workload(
            f"antialias-{factor}",
            f"shrinking {factor} times without aliasing; PyTorch samples {factor} times as fine and averages",
            (64, 3, 448, 448),
            size=(448 // factor,) * 2,
            options={"antialias": factor},
        )
        for factor in (2, 4)
    ),
    *_sweeps(),
)
WORKLOADS = {workload.name: workload for workload in _ALL}


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

    def copies(self, count: int) -> list[Data]:
        """This and ``count - 1`` copies of it, elsewhere in memory."""
        names = ("input", "theta", "grad_output")
        others = [replace(self, **{n: getattr(self, n).clone() for n in names}) for _ in range(count - 1)]
        return [self, *others]


def choose(names: Sequence[str] | None, device: torch.device, quick: bool = False) -> list[Workload]:
    """Workloads by name; None stands for all that the device, or a first look at it, is meant for.

    Raises:
        UsageError: a name is unknown.
    """
    if names is None:
        if device.type == "cpu":
            return [w for w in WORKLOADS.values() if w.cpu]
        return [w for w in WORKLOADS.values() if w.quick or not quick]
    return [WORKLOADS[name] for name in chosen("--workloads", names, WORKLOADS)]


def shape_of(workload: Workload, quick: bool = False) -> tuple[int, ...]:
    """The input's shape, which has a smaller batch if it must be ``quick``; a sweep's points stay apart."""
    batch, *rest = workload.shape
    return (min(batch, _QUICK_BATCH) if quick and not workload.sweep else batch, *rest)


def make(workload: Workload, device: torch.device, quick: bool = False, map_name: str | None = None) -> Data:
    """The workload's tensors under a map, the same values on every device; ``quick`` makes the batch smaller.

    Without a name the map is random, or the identity where the workload has no random ones.

    Raises:
        ValueError: the workload does not run under the map.
    """
    if map_name is None:
        map_name = "identity" if workload.why_not(maps.RANDOM) else maps.RANDOM
    if workload.why_not(map_name):
        raise ValueError(f"map_name: {workload.name} has no {map_name}: {workload.why_not(map_name)}")
    generator = torch.Generator().manual_seed(SEED)
    shape = shape_of(workload, quick)
    batch, channels, *size_in = shape
    size = workload.size or tuple(size_in)
    count = batch * max(workload.crops, 1)
    theta = maps.matrices(map_name, count, size_in, generator, workload.scale)
    if workload.crops:
        theta[:, :, -1] = 1.8 * torch.rand(count, len(size_in), generator=generator) - 0.9
    options = dict(workload.options)
    if "antialias" in options:
        options["antialias"] = max(1, round(options["antialias"] * maps.MAPS[map_name].shrink))
    if workload.dtype == torch.uint8:
        input = torch.randint(256, shape, generator=generator)
    else:
        input = torch.randn(shape, generator=generator)
    grad_output = torch.randn(count, channels, *size, generator=generator).to(device)
    at_kink = _at_kink(theta.to(device), size_in, size, options.get("antialias", 1))
    grad_output = grad_output.masked_fill_(at_kink[:, None], 0)
    if workload.crops:
        theta, grad_output = (t.unflatten(0, (batch, workload.crops)) for t in (theta, grad_output))

    def place(images: Tensor, dtype: torch.dtype) -> Tensor:
        form = workload.memory_format if images.ndim == input.ndim else torch.contiguous_format
        return images.to(device, dtype, memory_format=form)

    grad_dtype = workload.dtype if workload.dtype.is_floating_point else torch.float32
    return Data(place(input, workload.dtype), theta.to(device), place(grad_output, grad_dtype), options)


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
