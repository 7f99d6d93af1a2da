"""Small localisation networks: from an image or volume of any size to a vector of features."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_triton import tracing, validation

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}
_LAYERS = (nn.Linear, *_CONVOLUTIONS.values())


class ConvolutionalLocalization(nn.Module):
    """Convolutions, each with ReLU and 2 x 2 max pooling, then one fully connected layer.

    The kind of localisation network that Jaderberg et al. 2015 put before CNNs. It takes any input size: what
    the convolutions see is averaged into a few cells, not into one, for a single cell would not say where
    anything is. Weights start as in He et al. 2015, biases at zero: PyTorch's own start lets the signal
    shrink from layer to layer until all images look alike, and the crop goes where it is best for the average
    of them (kevinzakka's spatial-transformer-network#10).

    Args:
        in_channels: C of the input.
        dim: 2 for images, 3 for volumes.
        channels: output channels of each convolution.
        kernel_size: of the convolutions; odd.
        cells: along each axis, how many cells are given to the fully connected layer.
        out_features: F.

    Shape:
        (N, C, H, W) or (N, C, D, H, W) to (N, F).

    Example:
        >>> import torch, stn_triton
        >>> localization = stn_triton.nn.ConvolutionalLocalization(3)
        >>> localization(torch.rand(2, 3, 50, 76)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self,
        in_channels: int,
        *,
        dim: int = 2,
        channels: Sequence[int] = (8, 16),
        kernel_size: int = 5,
        cells: int = 6,
        out_features: int = 32,
    ) -> None:
        super().__init__()
        kernel_size = validation.count("kernel_size", kernel_size)
        if kernel_size % 2 != 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        in_channels = validation.count("in_channels", in_channels)
        widths = (in_channels, *validation.counts("channels", channels))
        self.dim = validation.dimension(dim)
        self.cells = validation.count("cells", cells)
        self.out_features = validation.count("out_features", out_features)
        self.convolutions = nn.ModuleList(
            [
                _CONVOLUTIONS[self.dim](before, after, kernel_size, padding=kernel_size // 2)
                for before, after in itertools.pairwise(widths)
            ]
        )
        self.linear = nn.Linear(widths[-1] * self.cells**self.dim, self.out_features)
        for layer in (*self.convolutions, self.linear):
            # FSDP and others call reset_parameters of every module, of children after their parents, so each
            # layer starts itself. They stay plain layers, because quantisation replaces those alone.
            layer.reset_parameters = functools.partial(_start, layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start anew: weights as in He et al. 2015, biases at zero."""
        reset_parameters(*self.convolutions, self.linear)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, [*self.convolutions, self.linear])
        for convolution in self.convolutions:
            x = _halve(convolution(x)).relu()
        return self.linear(_average(x, self.dim, self.cells).flatten(1)).relu()


class FullyConnectedLocalization(nn.Module):
    """Fully connected layers with ReLU on the pixels, the whole image averaged to a size that is given.

    The localisation network of the ST-FCN of Jaderberg et al. 2015: two layers of 32. Theirs has one weight
    per pixel and so one input size; this one takes any.

    Args:
        in_channels: C of the input.
        dim: 2 for images, 3 for volumes.
        hidden: outputs of each layer; the last is F.
        cells: pixels along each axis to which the input is averaged first. (Where the input is as large,
            nothing is averaged.)

    Shape:
        (N, C, H, W) or (N, C, D, H, W) to (N, F).

    Example:
        >>> import torch, stn_triton
        >>> localization = stn_triton.nn.FullyConnectedLocalization(1, cells=28)
        >>> localization(torch.rand(2, 1, 42, 42)).shape
        torch.Size([2, 32])
    """

    def __init__(
        self, in_channels: int, *, dim: int = 2, hidden: Sequence[int] = (32, 32), cells: int = 16
    ) -> None:
        super().__init__()
        self.dim = validation.dimension(dim)
        self.cells = validation.count("cells", cells)
        in_channels = validation.count("in_channels", in_channels)
        widths = (in_channels * self.cells**self.dim, *validation.counts("hidden", hidden))
        self.out_features = widths[-1]
        self.layers = nn.ModuleList(
            [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        )

    def reset_parameters(self) -> None:
        """Start anew: weights and biases as those of any ``nn.Linear``."""
        reset_parameters(*self.layers)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, self.layers)
        x = _average(x, self.dim, self.cells).flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def reset_parameters(*modules: nn.Module) -> None:
    """Start modules anew: each by its own ``reset_parameters``, else what is in it."""
    for module in modules:
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
        else:
            reset_parameters(*module.children())


def _start(layer: nn.Module) -> None:
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    nn.init.zeros_(layer.bias)


@tracing.check
def _check_input(x: Tensor, dim: int, layers: Sequence[nn.Module]) -> None:
    validation.tensor("x", x)
    if x.ndim != dim + 2:
        shape = "(N, C, H, W)" if dim == 2 else "(N, C, D, H, W)"
        raise ValueError(
            f"the input of a localisation network made with dim={dim} must have shape {shape}, "
            f"got {tuple(x.shape)}"
        )
    if not x.is_floating_point():
        raise TypeError(
            f"the input of a localisation network must have a floating dtype, got {x.dtype}: "
            "bring the image to about [0, 1] first, or give features"
        )
    first = next(iter(layers), None)
    if type(first) not in _LAYERS:  # one that took the place of another knows what it takes
        return
    # Its parameters, for a weight that hooks compute is that of the last call; replicas of nn.DataParallel
    # have none.
    dtype = next(first.parameters(), first.weight).dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the input of a localisation network must have the dtype of its parameters, {dtype}, "
            f"got {x.dtype}: convert one of them, x.to({dtype}) or layer.to({x.dtype})"
        )


@tracing.overridable
def _halve(x: Tensor) -> Tensor:
    """Max pooling by 2 along each axis that is longer than 1.

    Volumes plane by plane, then along the depth: ``max_pool3d`` has no deterministic backward on a GPU, and
    joining the depth to another axis bounds it in an exported program. Of equal values along the depth each
    gets an equal share of the gradient.
    """
    window = [tracing.at_most(2, extent) for extent in tracing.exportable_shape_of(x)[2:]]
    if x.ndim == 4:
        return F.max_pool2d(x, window)
    planes = F.max_pool2d(x.flatten(0, 1), window[1:]).unflatten(0, x.shape[:2])
    return planes.unfold(2, window[0], window[0]).amax(-1)


@tracing.overridable
def _average(x: Tensor, dim: int, cells: int) -> Tensor:
    """The mean over each of ``cells`` equal parts of every axis, pixels at their borders counted by share.

    Where ``cells`` divides the size it is ``F.adaptive_avg_pool2d``, which otherwise lets cells overlap, and
    which has no deterministic backward on a GPU.
    """
    last = dim + 1  # not -1, which the older ONNX exporter's movedim gets wrong
    for axis in range(2, dim + 2):
        extent = x.shape[axis]
        edges = torch.arange(cells + 1, dtype=torch.float32, device=x.device) * (extent / cells)
        # One pixel more, of no weight: Inductor of torch 2.13 multiplies wrongly over a symbolic axis of 1.
        pixels = torch.arange(extent + 1, dtype=torch.float32, device=x.device)[:, None]
        share = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
        weights = (share.clamp(min=0) * (cells / extent)).to(x.dtype)
        x = (F.pad(x.movedim(axis, last), (0, 1)) @ weights).movedim(last, axis)
    return x
