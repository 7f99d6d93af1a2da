"""Scaling of gradients."""

from __future__ import annotations

from torch import Tensor

from stn_triton import tracing, validation


@tracing.overridable
def scale_gradient(theta: Tensor, factor: float) -> Tensor:
    """Return theta unchanged, and multiply its gradient by a factor.

    A factor below 1 slows down the localisation network alone, whatever the optimizer's learning rates. The
    gradient of theta is a sum over a whole crop, and the first steps may throw the crop out of the image
    (keras#478). The factor acts on everything that theta is computed from, ``features`` included. Adam and
    similar optimizers divide the factor out again: with them use ``parameter_groups``.

    Args:
        theta: any floating tensor with finite values.
        factor: a finite number; 0 stops the gradient.

    Returns:
        ``theta``, bit for bit.

    Raises:
        TypeError: ``factor`` is not a number, or ``theta`` is not a floating tensor.
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
    # The second term is zero, its gradient is the factor. Unlike a custom backward, this works with every
    # kind of derivative and compiler.
    return theta.detach() + (theta - theta.detach()) * factor
