"""Gradients made larger or smaller on their way."""

from __future__ import annotations

from torch import Tensor

from stn_triton import tracing, validation


@tracing.overridable
def scale_gradient(theta: Tensor, factor: float) -> Tensor:
    """Theta as it is, its gradient times a factor.

    So that a localisation network hears less of the loss than the network behind it does, whatever the
    optimizer's learning rates: gradients for theta sum over a whole crop, and the first of them may throw it
    out of the image (keras#478). It acts on everything before theta, features from elsewhere included.
    Adam and its like divide the factor out again: with them use ``parameter_groups``.

    Args:
        theta: any floating tensor, finite.
        factor: a finite number; 0 stops the gradient.

    Returns:
        ``theta``, bit for bit.

    Raises:
        TypeError: ``factor`` is no number, or ``theta`` no floating tensor.
        ValueError: ``factor`` is not finite.

    Example:
        >>> import torch, stn_triton
        >>> theta = torch.ones(3, requires_grad=True)
        >>> stn_triton.nn.scale_gradient(theta, 0.1).sum().backward()
        >>> theta.grad
        tensor([0.1000, 0.1000, 0.1000])
    """
    validation.floating("theta", theta)
    factor = validation.number("factor", factor)
    if factor == 1:
        return theta
    # Adds zero times the factor; unlike a custom backward, with every kind of derivative and compiler.
    return theta.detach() + (theta - theta.detach()) * factor
