"""Learning rates: parameters in groups for an optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn

from stn_triton import validation
from stn_triton.nn.transformer import SpatialTransformer


def parameter_groups(model: nn.Module, lr: float, localization_lr_scale: float = 0.1) -> list[dict[str, Any]]:
    """The parameters of a model for an optimizer, those of its localisation networks at a lower rate.

    A step of theta moves the whole crop, so what learns it wants smaller steps than what looks at it.
    Jaderberg et al. 2015 train their localisation networks at 0.1 (SVHN) to 1e-4 (CUB) of the rate; at one
    rate for everything the crop may run out of the image (stnbhwd#22).

    Args:
        model: with at least one ``SpatialTransformer`` in it, or one itself.
        lr: learning rate of all other parameters.
        localization_lr_scale: that of the parameters inside spatial transformers, as a share of ``lr``.

    Returns:
        One or two groups, ``{"params": ..., "lr": ..., "name": "model" or "localization"}``. Schedulers
        multiply both rates. Parameters that need no gradient are left out. A network that finds features
        elsewhere, given to ``forward`` as ``features``, is not a part of the layer: its rate is ``lr``.

    Raises:
        TypeError: ``model`` is no module (its ``parameters()``, for one), or a rate is no number.
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
            f"model must have a SpatialTransformer in it, got a {type(model).__name__} without: "
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
