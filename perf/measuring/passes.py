"""The passes of a sampler that are timed: functions that return the tensors they compute."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from perf.measuring.providers import Sampler
from perf.measuring.workloads import Data

Run = Callable[[], tuple[Tensor, ...]]


def forward(sampler: Sampler, data: Data) -> Run:
    """The forward pass of inference: nothing is recorded for a backward."""
    return lambda: (sampler(data.input, data.theta, data.size, **data.options),)


def backward(sampler: Sampler, data: Data, of_input: bool = True, of_theta: bool = True) -> Run:
    """The gradients of input and theta, or of one alone, over a graph that is recorded once and kept."""
    input = data.input.detach().requires_grad_(of_input)
    theta = data.theta.detach().requires_grad_(of_theta)
    output = sampler(input, theta, data.size, **data.options)
    wanted = (input,) * of_input + (theta,) * of_theta
    return lambda: torch.autograd.grad(output, wanted, data.grad_output, retain_graph=True)


def forward_backward(sampler: Sampler, data: Data) -> Run:
    """A training step's share: forward, then the gradients of input and theta."""
    input, theta = data.input.detach().requires_grad_(), data.theta.detach().requires_grad_()

    def run() -> tuple[Tensor, ...]:
        output = sampler(input, theta, data.size, **data.options)
        return output.detach(), *torch.autograd.grad(output, (input, theta), data.grad_output)

    return run


PASSES: dict[str, Callable[[Sampler, Data], Run]] = {
    "forward": forward,
    "backward": backward,
    "forward+backward": forward_backward,
    "theta": functools.partial(backward, of_input=False),
    "input": functools.partial(backward, of_theta=False),
}
COMPUTED = {
    "forward": ("output",),
    "backward": ("grad_input", "grad_theta"),
    "forward+backward": ("output", "grad_input", "grad_theta"),
    "theta": ("grad_theta",),
    "input": ("grad_input",),
}
"""The names of the tensors that the runs of each pass return, in order."""
