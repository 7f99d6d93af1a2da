"""Small localisation networks: from an image or volume of any size to a vector of features."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_triton import tracing, validation

_CONVOLUTIONS = {2: nn.Conv2d, 3: nn.Conv3d}


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
        if validation.count("kernel_size", kernel_size) % 2 != 1:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        widths = (in_channels, *channels)
        self.dim = validation.dimension(dim)
        self.cells = validation.count("cells", cells)
        self.out_features = validation.count("out_features", out_features)
        self.convolutions = nn.ModuleList(
            [
                _CONVOLUTIONS[dim](before, after, kernel_size, padding=kernel_size // 2)
                for before, after in itertools.pairwise(widths)
            ]
        )
        self.linear = nn.Linear(widths[-1] * cells**dim, out_features)
        for layer in (*self.convolutions, self.linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, self.linear.weight.dtype)
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
        widths = (in_channels * cells**dim, *hidden)
        self.out_features = widths[-1]
        self.layers = nn.ModuleList(
            [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
        )

    @tracing.without_annotations
    def forward(self, x: Tensor) -> Tensor:
        """(N, C, [D,] H, W) to (N, F)."""
        _check_input(x, self.dim, self.layers[0].weight.dtype)
        x = _average(x, self.dim, self.cells).flatten(1)
        for layer in self.layers:
            x = layer(x).relu()
        return x


@tracing.check
def _check_input(x: Tensor, dim: int, dtype: torch.dtype) -> None:
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
    if x.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
        raise TypeError(
            f"the input of a localisation network must have the dtype of its parameters, {dtype}, "
            f"got {x.dtype}: convert one of them, x.to({dtype}) or layer.to({x.dtype})"
        )


@tracing.overridable
def _halve(x: Tensor) -> Tensor:
    """Max pooling by 2 along each axis that is longer than 1.

    Volumes plane by plane, for ``max_pool3d`` has no deterministic backward on a GPU.
    """
    window = [tracing.at_most(2, extent) for extent in tracing.exportable_shape_of(x)[2:]]
    if x.ndim == 4:
        return F.max_pool2d(x, window)
    planes = F.max_pool2d(x.flatten(1, 2), window[1:]).unflatten(1, x.shape[1:3])
    return F.max_pool2d(planes.flatten(3), (window[0], 1)).unflatten(3, planes.shape[3:])


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
