"""What a layer is given when it is made and used, and what its localisation network returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stn_triton import functional
from stn_triton.options import THETA_DTYPES


def got(value: Any) -> str:
    """The end of an error message: what was given."""
    text = repr(value)
    return f"got {text if len(text) <= 60 else text[:57] + '...'} of type {type(value).__name__}"


def count(name: str, value: Any) -> int:
    """An int of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, {got(value)}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def dimension(value: Any) -> int:
    """2 or 3."""
    if value not in (2, 3) or isinstance(value, bool):
        raise ValueError(f"dim must be 2 (images) or 3 (volumes), got {value!r}")
    return value


def choice(name: str, value: Any, choices: Sequence[str], hint: str = "") -> str:
    """One of some strings."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}{hint}, got {value!r}")
    return value


def flag(name: str, value: Any) -> bool:
    """A bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, {got(value)}")
    return value


def number(name: str, value: Any) -> float:
    """A finite number."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, {got(value)}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return value


def output_size(size: Any, dim: int) -> int | tuple[int, ...] | None:
    """None, one int, or one per axis."""
    if size is None:
        return None
    if isinstance(size, int):
        return count("size", size)
    names = "(H_out, W_out) of images" if dim == 2 else "(D_out, H_out, W_out) of volumes"
    if not isinstance(size, Sequence) or isinstance(size, str):
        raise TypeError(f"size must be None, an int, or {names}, {got(size)}")
    if len(size) != dim:
        hint = f": with dim={len(size)} the layer takes it" if len(size) in (2, 3) else ""
        raise ValueError(f"size must be None, an int, or {names} for dim={dim}, got {tuple(size)}{hint}")
    return tuple([count("size", extent) for extent in size])


def floating(name: str, tensor: Any) -> Tensor:
    """A tensor with a floating dtype."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, {got(tensor)}")
    if tensor.dtype not in THETA_DTYPES:
        raise TypeError(f"{name} must have a floating dtype (16, 32 or 64 bits), got {tensor.dtype}")
    return tensor


def control_points(name: str, points: Any, number: int | None = None) -> tuple[float, ...]:
    """Flat: x and y of each of ``number`` control points, one after the other."""
    if number is None:
        regular = isinstance(points, Sequence) and all(isinstance(n, int) for n in points)
        number = math.prod(points) if regular else len(points) if isinstance(points, Sequence) else 0
    try:
        return tuple(functional._check_points(points, number))
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from error


def output_width(module: nn.Module) -> int | None:
    """The width of what a module returns, where it can be told from its last layer."""
    if isinstance(module, nn.Sequential):
        with_parameters = [child for child in module if next(child.parameters(), None) is not None]
        return output_width(with_parameters[-1]) if with_parameters else None
    width = getattr(module, "out_features", None)
    return width if isinstance(width, int) else None


def not_the_identity(localization: nn.Module, identity: Tensor) -> None:
    """Refuse a last bias that is the identity already: it would be added to the identity."""
    linear = [module for module in localization.modules() if isinstance(module, nn.Linear)]
    bias = linear[-1].bias if linear else None
    if bias is None or bias.shape != identity.shape or not identity.any():
        return
    if torch.equal(bias.detach().to(identity), identity):
        raise ValueError(
            "localization must end in a bias of zeros with head=False, for the layer adds the identity, "
            f"got {identity.tolist()}"
        )


def image(x: Tensor, dim: int) -> None:
    """(N, C, ...) of the right dimension."""
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, {got(x)}")
    if x.ndim != dim + 2:
        shape = "(N, C, H, W)" if dim == 2 else "(N, C, D, H, W)"
        other = {4: 2, 5: 3}.get(x.ndim)
        hint = f": for such inputs make the layer with dim={other}" if other else ""
        raise ValueError(f"x must have shape {shape} for dim={dim}, got {tuple(x.shape)}{hint}")


def looked_at(name: str, seen: Tensor, x: Tensor, in_channels: int) -> None:
    """What the localisation network is given."""
    if not isinstance(seen, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, {got(seen)}")
    if seen.ndim < 2 or seen.shape[0] != x.shape[0] or seen.shape[1] != in_channels:
        raise ValueError(
            f"{name} must have shape ({x.shape[0]}, {in_channels}, ...) for a layer made with "
            f"in_channels={in_channels}, got {tuple(seen.shape)}"
        )


def located(found: Tensor, x: Tensor, width: int, remedy: str) -> None:
    """What a localisation network returns."""
    if not isinstance(found, Tensor):
        raise TypeError(f"localization must return a torch.Tensor, {got(found)}")
    if found.ndim != 2 or found.shape[0] != x.shape[0] or found.shape[1] != width:
        if found.ndim == 2 and found.shape[0] == x.shape[0]:
            hint = remedy.format(found.shape[1])
        else:
            hint = "end it in a Flatten, or a Linear layer"
        raise ValueError(
            f"localization must return shape ({x.shape[0]}, {width}), got {tuple(found.shape)}: {hint}"
        )
