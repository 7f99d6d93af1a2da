"""What is timed of a sampler: functions without arguments that return the tensors they compute.

The backward passes run over a graph that is recorded once and kept, so that they are timed alone.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from perf.measuring.providers import Sampler
from perf.measuring.workloads import Data

Run = Callable[[], tuple[Tensor, ...]]


def forward(sampler: Sampler, data: Data) -> Run:
    """The forward pass of inference: nothing is recorded for a backward."""
    return lambda: (sampler(data.input, data.theta, data.size, **data.options),)


def backward(sampler: Sampler, data: Data) -> Run:
    """The gradients of input and theta for a fixed grad_output."""
    return _backward(sampler, data, of_input=True, of_theta=True)


def forward_backward(sampler: Sampler, data: Data) -> Run:
    """A training step's share: forward, then the gradients of input and theta."""
    input, theta = data.input.detach().requires_grad_(), data.theta.detach().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        output = sampler(input, theta, data.size, **data.options)
        return output.detach(), *torch.autograd.grad(output, (input, theta), data.grad_output)

    return run


def theta_alone(sampler: Sampler, data: Data) -> Run:
    """The gradient of theta alone: a transformer in front of a network, on images."""
    return _backward(sampler, data, of_input=False, of_theta=True)


def input_alone(sampler: Sampler, data: Data) -> Run:
    """The gradient of input alone: augmentation inside a network, by given maps."""
    return _backward(sampler, data, of_input=True, of_theta=False)


def _backward(sampler: Sampler, data: Data, *, of_input: bool, of_theta: bool) -> Run:
    input = data.input.detach().requires_grad_(of_input)
    theta = data.theta.detach().requires_grad_(of_theta)
    output = sampler(input, theta, data.size, **data.options)
    wanted = (input,) * of_input + (theta,) * of_theta
    return lambda: torch.autograd.grad(output, wanted, data.grad_output, retain_graph=True)


PASSES: dict[str, Callable[[Sampler, Data], Run]] = {
    "forward": forward,
    "backward": backward,
    "forward+backward": forward_backward,
    "theta": theta_alone,
    "input": input_alone,
}
COMPUTED = {
    "forward": ("output",),
    "backward": ("grad_input", "grad_theta"),
    "forward+backward": ("output", "grad_input", "grad_theta"),
    "theta": ("grad_theta",),
    "input": ("grad_input",),
}
"""The names of what the runs of each pass return, in order."""
