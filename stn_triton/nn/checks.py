"""Checks of a layer's arguments and inputs, and of the output of its localisation network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stn_triton import tracing, validation
from stn_triton.plain import plain


def output_width(module: nn.Module) -> int | None:
    """Number of features that a module returns, read from its last layer; None if unknown."""
    if isinstance(module, nn.Sequential):
        with_parameters = [child for child in module if next(child.parameters(), None) is not None]
        return output_width(with_parameters[-1]) if with_parameters else None
    width = plain("out_features", getattr(module, "out_features", None))
    return width if validation.is_int(width) else None


def not_the_identity(localization: nn.Module, identity: Tensor) -> None:
    """Refuse a last bias that equals the identity: the layer would add the identity to it."""
    linear = [module for module in localization.modules() if isinstance(module, nn.Linear)]
    bias = linear[-1].bias if linear else None
    if bias is None or bias.shape != identity.shape or not identity.any():
        return
    if torch.equal(bias.detach().to(identity), identity):
        raise ValueError(
            "localization must end in a bias of zeros with head=False, because the layer adds the identity, "
            f"got {identity.tolist()}"
        )


@tracing.check
def image(x: Tensor, dim: int) -> None:
    """Check that the image ``x`` is (N, C, ...) with ``dim`` spatial axes."""
    if validation.tensor("x", x).ndim != dim + 2:
        shape = "(N, C, H, W)" if dim == 2 else "(N, C, D, H, W)"
        other = {4: 2, 5: 3}.get(x.ndim)
        hint = f": for such inputs make the layer with dim={other}" if other else ""
        raise ValueError(f"x must have shape {shape} for dim={dim}, got {tuple(x.shape)}{hint}")


@tracing.check
def looked_at(name: str, seen: Tensor, x: Tensor, in_channels: int) -> None:
    """Check the input of the localisation network, which is ``x`` or ``features``."""
    if validation.tensor(name, seen).ndim < 2 or seen.shape[0] != x.shape[0] or seen.shape[1] != in_channels:
        raise ValueError(
            f"{name} must have shape ({x.shape[0]}, {in_channels}, ...) for a layer made with "
            f"in_channels={in_channels}, got {tuple(seen.shape)}"
        )


@tracing.check
def located(found: Tensor, x: Tensor, width: int | None, remedy: str) -> None:
    """Check the output of a localisation network; ``width`` is None if a replaced head does not state it."""
    if not isinstance(found, Tensor):
        raise TypeError(f"localization must return a torch.Tensor, {validation.got(found)}")
    if width is None and found.ndim == 2:
        width = found.shape[1]
    if found.ndim != 2 or found.shape[0] != x.shape[0] or found.shape[1] != width:
        if found.ndim == 2 and found.shape[0] == x.shape[0]:
            hint = remedy.format(found.shape[1])
        else:
            hint = "end it in a Flatten, or a Linear layer"
        raise ValueError(
            f"localization must return shape ({x.shape[0]}, {width}), got {tuple(found.shape)}: {hint}"
        )
