"""The spatial transformer as a layer: localisation network, parameters, operator."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stn_triton import limits, tracing, validation
from stn_triton.functional import (
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
)
from stn_triton.nn import checks, parameters
from stn_triton.nn.gradients import scale_gradient
from stn_triton.nn.localization import ConvolutionalLocalization, reset_parameters
from stn_triton.nn.precision import without_autocast
from stn_triton.options import PADDING_MODES, is_projective
from stn_triton.plain import plain

_MODES = ("bilinear", "bicubic")


class SpatialTransformer(nn.Module):
    """Layer that learns to crop, turn and scale its input, from nothing but the loss of the whole network.

    A localisation network computes features of the input, a last linear layer turns them into the numbers of
    a transform, and the operator warps the input (Jaderberg et al. 2015, arXiv 1506.02025, section 3). The
    layer fits anywhere in a network, before images or feature maps of any size.

    The last linear layer starts at zero, and zeros are the identity: an untrained transformer returns its
    input, resampled to ``size``. With other starts the crop is often lost before anything is learnt
    (kevinzakka's spatial-transformer-network#10, #13). The last layer computes in fp32 at least, under
    autocast too: theta in bf16 is wrong by up to half a pixel in an image of 256 pixels. It is not an
    ``nn.Linear``, so that functions which initialise all linear layers of a model leave it at zero.

    Args:
        in_channels: channels of the localisation network's input, which is ``x``, or ``features`` if given.
        transform: kind of transform (in brackets its parameters for images / volumes): ``"translation"``
            (2 / 3); ``"rotation"`` (1 / 3); ``"attention"``, one scale and a shift (3 / 4);
            ``"similarity"``, attention with a rotation (4 / 7); ``"affine"`` (6 / 12); for images only
            ``"projective"`` (8) and ``"tps"``, a thin plate spline (2 per control point). Rotations do not
            shear an image that is not square.
        size: output size in pixels: (H, W) or (D, H, W), an int for all axes, or None for the input's size.
        localization: any module from (N, in_channels, ...) to (N, F). Default:
            ``ConvolutionalLocalization(in_channels, dim=dim)``.
        localization_features: F. Not needed if ``localization`` has ``out_features``, or is an
            ``nn.Sequential`` whose last module with parameters has it.
        head: False if ``localization`` itself returns the numbers of the transform, (N, K * parameters).
            Because the numbers are offsets from the identity, its last layer must start at zero.
        dim: 2 for images, 3 for volumes.
        transformers: K, the number of crops of each input. One localisation network finds them all.
        initialization: ``"identity"``, or ``"tiles"``: K crops in a grid over the input, as for CUB in
            section 4.3 of the paper. K identities would all show the same.
        scale: side of the initial crop as a share of the input's side. Translation and rotation cannot change
            it, so all their crops have it (stnbhwd#21). Default: 1, or a tile's; if bounded, 0.75 times that.
        bounded: whether the crop must stay inside the input (stnbhwd#22, matconvnet#880); for translation,
            attention, similarity and affine. The crop cannot start as the whole input, where gradients would
            be zero (see ``stn_triton/nn/parameters.py``).
        control_points: for ``"tps"``: (rows, columns) of a regular grid, or pairs (x, y), as ``points`` in
            ``thin_plate_spline_grid_sample``.
        gradient_scale: factor on the gradient of theta, see ``scale_gradient``.
        return_theta: whether ``forward`` returns (output, theta).
        mode: ``"bilinear"`` or ``"bicubic"``. This and the arguments below are as in ``affine_grid_sample``.
        padding_mode: what is sampled outside the input.
        align_corners: whether -1 and 1 are the centres of the corner pixels.
        fill_value: value outside the input for ``padding_mode="fill"``.
        antialias: whether to average where the crop shrinks; not for ``"projective"`` and ``"tps"``.

    Shape:
        Input ``x``: (N, C, H, W), or (N, C, D, H, W) for ``dim=3``, floating.
        ``features``: (N, in_channels, ...).
        Output: (N, C, H_out, W_out) or (N, C, D_out, H_out, W_out).
        Theta: (N, 2, 3), volumes (N, 3, 4), ``"projective"`` (N, 3, 3), ``"tps"`` (N, P, 2), the offsets of
        the control points; fp32, or fp64 for an fp64 layer.
        With ``transformers`` > 1, output and theta are (N, K, ...).

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: an argument has the wrong value or shape; the message says what to change.

    Example:
        >>> import torch, stn_triton
        >>> layer = stn_triton.SpatialTransformer(3, size=(32, 32))
        >>> layer(torch.rand(4, 3, 50, 76)).shape
        torch.Size([4, 3, 32, 32])

        Two crops that start as the left and the right half, found from features of another network:

        >>> layer = stn_triton.SpatialTransformer(
        ...     64, transform="attention", transformers=2, initialization="tiles", size=16, return_theta=True
        ... )
        >>> crops, theta = layer(torch.rand(4, 3, 50, 76), features=torch.rand(4, 64, 13, 19))
        >>> crops.shape, theta.shape
        (torch.Size([4, 2, 3, 16, 16]), torch.Size([4, 2, 2, 3]))
    """

    def __init__(
        self,
        in_channels: int,
        *,
        transform: str = "affine",
        size: int | Sequence[int] | None = None,
        localization: nn.Module | None = None,
        localization_features: int | None = None,
        head: bool = True,
        dim: int = 2,
        transformers: int = 1,
        initialization: str = "identity",
        scale: float | None = None,
        bounded: bool = False,
        control_points: Sequence[int] | Sequence[Sequence[float]] = (4, 4),
        gradient_scale: float = 1.0,
        return_theta: bool = False,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
        fill_value: float | Sequence[float] | None = None,
        antialias: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = validation.count("in_channels", in_channels)
        self.dim = validation.dimension(dim)
        dim = self.dim
        self.antialias = validation.flag("antialias", antialias)
        self.size = None
        if size is not None:
            other = 5 - dim
            hints = dict.fromkeys(range(8), f" for dim={dim}")
            hints[other] += f": with dim={other} the layer takes it"
            extents = validation.output_size(size, dim, hints)
            limits.check_size(extents, torch.float64, self.antialias)
            given = plain("size", size)
            self.size = given if validation.is_int(given) else tuple(extents)
        self.transformers = validation.count("transformers", transformers)
        self.gradient_scale = validation.number("gradient_scale", gradient_scale)
        self.return_theta = validation.flag("return_theta", return_theta)
        self.parametrization, start = parameters.parametrize(
            transform, dim, control_points, self.transformers, initialization, scale, bounded
        )
        self.sampling = {
            "mode": validation.choice("mode", mode, _MODES, ", which have a gradient of theta"),
            "padding_mode": validation.choice("padding_mode", padding_mode, PADDING_MODES),
            "align_corners": validation.corners(align_corners),
            "fill_value": plain("fill_value", fill_value, depth=1),
        }
        if mode == "bicubic" and dim == 3:
            raise ValueError("mode must be 'bilinear' for volumes (dim=3), got 'bicubic'")
        if self.antialias and transform in parameters.IMAGES_ONLY:
            raise ValueError(f"antialias must be False for transform={transform!r}, got {antialias!r}")
        self.control_points = plain("control_points", control_points, depth=2)
        if isinstance(fill_value, Tensor) and fill_value.ndim > 0:
            raise TypeError(
                "fill_value must be None, a number or a sequence of them, because a tensor does not move "
                f"with the layer, {validation.got(fill_value)}"
            )
        if localization is None:
            localization = ConvolutionalLocalization(self.in_channels, dim=dim)
        elif not isinstance(localization, nn.Module):
            raise TypeError(f"localization must be a torch.nn.Module, {validation.got(localization)}")
        self.localization = localization
        if validation.flag("head", head):
            if localization_features is None:
                localization_features = checks.output_width(localization)
            if localization_features is None:
                raise ValueError(
                    "localization_features must say how many features localization returns, F of (N, F), "
                    f"because a {type(localization).__name__} has no attribute out_features for it; got None"
                )
            self.head = _Head(validation.count("localization_features", localization_features), start)
        else:
            if any(start):
                raise ValueError(
                    "head must be True unless the layer starts at the identity: without a head, the last "
                    "bias of localization must set the initial crop, got head=False with "
                    f"initialization={initialization!r}, scale={scale}, bounded={bounded}"
                )
            checks.not_the_identity(localization, self.parametrization.identity())
            self.head = None

    def extra_repr(self) -> str:
        """Arguments that differ from their defaults."""
        options = {
            "transform": self.parametrization.transform,
            "size": self.size,
            "dim": self.dim,
            "transformers": self.transformers,
            "bounded": self.parametrization.bounded,
            "gradient_scale": self.gradient_scale,
            "antialias": self.antialias,
            **self.sampling,
        }
        defaults = inspect.signature(SpatialTransformer).parameters
        shown = [f"{name}={value!r}" for name, value in options.items() if value != defaults[name].default]
        return ", ".join([str(self.in_channels), *shown])

    def locate(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        """Find theta for ``x``, from ``features`` if given, without warping."""
        checks.image(x, self.dim)
        seen, name = (x, "x") if features is None else (_seen(x, features), "features")
        checks.looked_at(name, seen, x, self.in_channels)
        numbers = self.localization(seen)
        total = self.transformers * self.parametrization.count
        if self.head is None:
            checks.located(numbers, x, total, f"with head=False its last layer must have {total} outputs")
        else:
            width = getattr(self.head, "in_features", None)
            checks.located(numbers, x, width, "make the layer with localization_features={}")
            numbers = self.head(numbers)
        align_corners = self.sampling["align_corners"]
        theta = _theta(numbers, x, self.parametrization, self.transformers, align_corners)
        return scale_gradient(theta, self.gradient_scale)

    def warp(self, x: Tensor, theta: Tensor) -> Tensor:
        """Warp ``x`` by theta, with the size and the options of the layer."""
        points = self.control_points if self.parametrization.transform == "tps" else None
        return _warp(x, theta, points, self.antialias, {"size": self.size, **self.sampling})

    def reset_parameters(self) -> None:
        """Set the last layer to the initial crop; initialise the localisation network by its own method."""
        reset_parameters(*[module for module in (self.localization, self.head) if module is not None])

    @tracing.without_annotations
    def forward(
        self, x: Tensor, features: Tensor | None = None, locate_only: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Warp ``x`` by the theta that the localisation network finds in ``x``, or in ``features`` if given.

        With ``locate_only``, return theta alone. ``locate`` returns the same, but only a call of the module
        runs its hooks and its wrappers (checkpointing, ``fully_shard``).
        """
        theta = self.locate(x, features)
        if locate_only is True:  # compared, because a symbolic tracer has no truth value for it
            return theta
        output = self.warp(x, theta)
        return (output, theta) if self.return_theta else output


@tracing.overridable
def _seen(x: Tensor, features: Tensor | None) -> Tensor:
    """Choose the localisation network's input; ``torch.fx`` cannot trace whether an argument is None."""
    return x if features is None else features


@tracing.overridable
def _theta(
    numbers: Tensor,
    x: Tensor,
    parametrization: parameters.Parametrization,
    transformers: int,
    align_corners: bool,
) -> Tensor:
    """Convert a localisation network's numbers, (N, K * count), into theta for ``x``."""
    with without_autocast(x.device):
        numbers = numbers.to(torch.promote_types(numbers.dtype, torch.float32))
        if transformers > 1:
            numbers = numbers.unflatten(-1, (transformers, -1))
        sides = [tracing.at_least(1, extent - int(align_corners)) for extent in reversed(x.shape[2:])]
        return parametrization.theta(numbers, sides)


@tracing.overridable
def _warp(
    x: Tensor,
    theta: Tensor,
    points: Sequence[int] | Sequence[Sequence[float]] | None,
    antialias: bool,
    options: dict[str, Any],
) -> Tensor:
    """Warp ``x`` by theta, with the operator for its shape, or by offsets if ``points`` are given."""
    if points is not None:
        return thin_plate_spline_grid_sample(x, theta, points=points, **options)
    if is_projective(tracing.shape_of(theta)):
        return perspective_grid_sample(x, theta, **options)
    return affine_grid_sample(x, theta, antialias=antialias, **options)


@tracing.overridable
def _linear(features: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``F.linear`` in fp32 at least, under autocast too."""
    dtype = torch.promote_types(features.dtype, torch.float32)
    dtype = torch.promote_types(dtype, weight.dtype)
    with without_autocast(features.device):
        return F.linear(features.to(dtype), weight.to(dtype), bias.to(dtype))


class _Head(nn.Module):
    """The last layer: its weights start at zero, its bias at the numbers of the initial crop."""

    def __init__(self, in_features: int, start: Sequence[float]) -> None:
        super().__init__()
        self.start = tuple(start)
        self.in_features, self.out_features = in_features, len(start)
        self.weight = nn.Parameter(torch.empty(len(start), in_features))
        self.bias = nn.Parameter(torch.empty(len(start)))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set weights and bias to their start."""
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.bias.copy_(torch.tensor(self.start))

    def forward(self, features: Tensor) -> Tensor:
        return _linear(features, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
