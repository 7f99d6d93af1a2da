"""Who computes: this operator's kernels, its plain PyTorch path, and PyTorch's eager pair."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import stn_triton
from perf.accuracy import interpreted

KERNELS, REFERENCE, PAIR = "kernels", "reference", "eager"
LABELS = {KERNELS: "kernels", REFERENCE: "CPU path", PAIR: "pair"}
UNADDRESSED = (
    "PyTorch's CPU sampler addresses 16-bit images by 16-bit offsets: beyond 32,768 pixels it reads and "
    "writes other memory, so it is not run"
)
_ADDRESSED = 2**15


class Result(NamedTuple):
    """What is set against fp64."""

    output: Tensor
    grad_input: Tensor
    grad_theta: Tensor


Provider = Callable[[Tensor, Tensor, Tensor, torch.dtype | None], Result]
"""Of input, theta, gradient of the output, and the dtype of autocast or None."""


def pair_forward(input: Tensor, theta: Tensor) -> Tensor:
    """The eager pair on its arguments as they are."""
    grid = F.affine_grid(theta, list(input.shape), align_corners=False)
    return F.grid_sample(input, grid, align_corners=False)


def _autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def _differentiated(forward: Callable[[Tensor, Tensor], Tensor]) -> Provider:
    def run(input: Tensor, theta: Tensor, grad: Tensor, autocast: torch.dtype | None) -> Result:
        input, theta = input.detach().requires_grad_(), theta.detach().requires_grad_()
        with _autocast(input.device, autocast):
            output = forward(input, theta)
        return Result(output.detach(), *torch.autograd.grad(output, (input, theta), grad.to(output.dtype)))

    return run


pair: Provider = _differentiated(pair_forward)
operator: Provider = _differentiated(stn_triton.affine_grid_sample)


def interpreted_kernels(input: Tensor, theta: Tensor, grad: Tensor, autocast: torch.dtype | None) -> Result:
    """The operator's launches, on CPU tensors."""
    from stn_triton import launch

    with interpreted.rounding_as_gpus(input.shape[2:]), _autocast(input.device, autocast):
        output = launch.forward(input, theta, size=input.shape[2:])
        return Result(output, *launch.backward(grad, input, theta)[:2])


def of(device: torch.device) -> dict[str, Provider]:
    """The providers of a device by name; those of the operator first."""
    if device.type == "cpu":
        return {KERNELS: interpreted_kernels, REFERENCE: operator, PAIR: pair}
    return {KERNELS: operator, PAIR: pair}


def refusal(provider: str, input: Tensor, autocast: torch.dtype | None) -> str:
    """Why a provider must not be run on such images; empty if it may."""
    is_half = input.element_size() == 2 and autocast is None
    if provider != PAIR or input.is_cuda or not is_half or input[0, 0].numel() <= _ADDRESSED:
        return ""
    return "" if _addresses_beyond(input.dtype) else UNADDRESSED


@functools.cache
def _addresses_beyond(dtype: torch.dtype) -> bool:
    """Whether the pair samples a larger CPU image rightly: one amid NaNs, so that no other memory is read."""
    side = 256
    images = torch.full((3, 1, 1, side, side), torch.nan, dtype=dtype)[1].fill_(1)
    places = torch.linspace(-0.8, 0.8, side).to(dtype)
    grid = torch.stack(torch.meshgrid(places, places, indexing="xy"), -1)[None]
    return bool(((F.grid_sample(images, grid, align_corners=False) - 1).abs() < 0.1).all())
