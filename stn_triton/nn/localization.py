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

    Jaderberg et al. 2015 put this kind of localisation network before CNNs. It takes any input size: the
    output of the convolutions is averaged into a grid of cells. A single cell would not say where anything
    is. Weights start as in He et al. 2015, biases at zero. With PyTorch's own start, signals shrink until all
    images look alike and get the same crop (kevinzakka's spatial-transformer-network#10).

    Args:
        in_channels: C of the input.
        dim: 2 for images, 3 for volumes.
        channels: output channels of each convolution.
        kernel_size: side of the convolution kernels; odd.
        cells: cells of the grid along each axis.
        out_features: F, the number of features returned.

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
            # FSDP and others call reset_parameters of every module, children after parents, so each layer
            # has its own. The layers stay plain ones, because quantisation replaces only plain layers.
            layer.reset_parameters = functools.partial(_start, layer)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise all weights as in He et al. 2015, and all biases with zero."""
        reset_parameters(*self.convolutions, self.linear)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, [*self.convolutions, self.linear])
        for convolution in self.convolutions:
            x = _halve(convolution(x)).relu()
        return self.linear(_average(x, self.dim, self.cells).flatten(1)).relu()


class FullyConnectedLocalization(nn.Module):
    """Fully connected layers with ReLU on the pixels of the input, averaged to a fixed size first.

    The ST-FCN of Jaderberg et al. 2015 has such a localisation network, with two layers of 32 outputs and one
    weight per pixel, which fixes the input size. This class takes any size.

    Args:
        in_channels: C of the input.
        dim: 2 for images, 3 for volumes.
        hidden: number of outputs of each layer; the last one is F.
        cells: pixels along each axis after averaging. An axis of this length is not averaged.

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
        """Initialise all layers as ``nn.Linear`` does."""
        reset_parameters(*self.layers)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, self.layers)
        x = _average(x, self.dim, self.cells).flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x


def reset_parameters(*modules: nn.Module) -> None:
    """Initialise each module by its own ``reset_parameters``, or else by those of its children."""
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
    if type(first) not in _LAYERS:  # a replaced layer, a quantised one for example, checks its own input
        return
    # Read from a parameter first: a weight that hooks compute is still that of the last call. Replicas of
    # nn.DataParallel have no parameters.
    dtype = next(first.parameters(), first.weight).dtype
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the input of a localisation network must have the dtype of its parameters, {dtype}, "
            f"got {x.dtype}: convert one of them, x.to({dtype}) or layer.to({x.dtype})"
        )


@tracing.overridable
def _halve(x: Tensor) -> Tensor:
    """Max pooling by 2 along each axis that is longer than 1.

    Volumes are pooled plane by plane, then along the depth: ``max_pool3d`` has no deterministic backward on
    a GPU. The depth is not joined to another axis, because that would limit its size in an exported program.
    Equal values along the depth get equal shares of the gradient.
    """
    window = [tracing.at_most(2, extent) for extent in tracing.exportable_shape_of(x)[2:]]
    if x.ndim == 4:
        return F.max_pool2d(x, window)
    planes = F.max_pool2d(x.flatten(0, 1), window[1:]).unflatten(0, x.shape[:2])
    return planes.unfold(2, window[0], window[0]).amax(-1)


@tracing.overridable
def _average(x: Tensor, dim: int, cells: int) -> Tensor:
    """Average over ``cells`` equal parts of every axis, splitting a pixel that lies in two of them.

    ``F.adaptive_avg_pool2d`` has overlapping parts unless ``cells`` divides the size, and no deterministic
    backward on a GPU.
    """
    last = dim + 1  # not -1: the older ONNX exporter gets movedim to -1 wrong
    for axis in range(2, dim + 2):
        extent = x.shape[axis]
        edges = torch.arange(cells + 1, dtype=torch.float32, device=x.device) * (extent / cells)
        # One more pixel, of weight 0: Inductor of torch 2.13 multiplies wrongly along a symbolic axis of 1.
        pixels = torch.arange(extent + 1, dtype=torch.float32, device=x.device)[:, None]
        share = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
        weights = (share.clamp(min=0) * (cells / extent)).to(x.dtype)
        x = (F.pad(x.movedim(axis, last), (0, 1)) @ weights).movedim(last, axis)
    return x
