"""The two passes that are measured, as functions without arguments that return the tensors they compute."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perf.providers import Sampler
from perf.workloads import Data

Run = Callable[[], tuple[Tensor, ...]]


def forward(sampler: Sampler, data: Data) -> Run:
    """The forward pass of inference: nothing is recorded for a backward."""
    return lambda: (sampler(data.input, data.theta, data.size, **data.options),)


def forward_backward(sampler: Sampler, data: Data) -> Run:
    """A training step's share: forward, then the gradients of input and theta for a fixed grad_output."""
    input, theta = data.input.detach().requires_grad_(), data.theta.detach().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        output = sampler(input, theta, data.size, **data.options)
        return output.detach(), *torch.autograd.grad(output, (input, theta), data.grad_output)

    return run


PASSES = {"forward": forward, "forward+backward": forward_backward}
