"""Parameter groups for an optimizer, each with its own learning rate."""

from __future__ import annotations

from typing import Any

from torch import nn

from stn_triton import validation
from stn_triton.nn.transformer import SpatialTransformer


def parameter_groups(model: nn.Module, lr: float, localization_lr_scale: float = 0.1) -> list[dict[str, Any]]:
    """Group a model's parameters for an optimizer, with a lower learning rate for localisation networks.

    A small step of theta moves the whole crop, so localisation networks need smaller steps than the rest of
    the model. Jaderberg et al. 2015 train theirs at 0.1 (SVHN) to 1e-4 (CUB) of the other learning rate.
    With one rate for everything, the crop may run out of the image (stnbhwd#22).

    Args:
        model: a module that is or contains a ``SpatialTransformer``.
        lr: learning rate of the parameters outside spatial transformers.
        localization_lr_scale: learning rate of the parameters inside them, as a share of ``lr``.

    Returns:
        One or two groups, ``{"params": ..., "lr": ..., "name": "model" or "localization"}``. Schedulers
        multiply both rates. Parameters that need no gradient are left out. A network that computes
        ``features`` for ``forward`` is outside the layer: its rate is ``lr``.

    Raises:
        TypeError: ``model`` is not a module, or a rate is not a number.
        ValueError: ``model`` has no spatial transformer, or a rate is negative or not finite.

    Example:
        >>> import torch, stn_triton
        >>> model = torch.nn.Sequential(stn_triton.SpatialTransformer(1), torch.nn.Conv2d(1, 8, 3))
        >>> groups = stn_triton.nn.parameter_groups(model, lr=0.01)
        >>> [(group["name"], group["lr"], len(group["params"])) for group in groups]
        [('model', 0.01, 2), ('localization', 0.001, 8)]
        >>> optimizer = torch.optim.SGD(groups, momentum=0.9)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got one of type {type(model).__name__}")
    lr = _rate("lr", lr)
    localization_lr_scale = _rate("localization_lr_scale", localization_lr_scale)
    layers = [module for module in model.modules() if isinstance(module, SpatialTransformer)]
    if not layers:
        raise ValueError(
            f"model must have a SpatialTransformer in it, got a {type(model).__name__} without one: "
            "give model.parameters() to the optimizer"
        )
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = (
        {"params": [p for p in learnt if id(p) not in inside], "lr": lr, "name": "model"},
        {
            "params": [p for p in learnt if id(p) in inside],
            "lr": lr * localization_lr_scale,
            "name": "localization",
        },
    )
    return [group for group in groups if group["params"]]


def _rate(name: str, value: float) -> float:
    rate = validation.number(name, value)
    if rate < 0:
        raise ValueError(f"{name} must be at least 0, got {rate!r}")
    return rate
