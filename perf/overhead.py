"""``python -m perf overhead``: what a call costs before anything is computed.

That is the host time of the operator's boundary. Below affine_grid_sample, the parts and what was not chosen:
the call without the checks of its arguments, the operator called directly, and an autograd.Function as
torch.func needs it.

On a CPU the operator's implementations are replaced by ones that only allocate their results, so that
checks, dispatch and autograd remain. The eager pair runs whole, on an image so small that it is all dispatch.
On a GPU, where launches return at once, both run whole, Triton's launcher included.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor

from perf import EXIT_OK, environment
from stn_triton import affine_grid_sample, derivatives, ops, reference

SIZE = (1, 1, 4, 4)
_ARGUMENTS = (None, None, list(SIZE[2:]), "bilinear", "zeros", False, False, [])


def pair(input: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's two operators."""
    return F.grid_sample(input, F.affine_grid(theta, SIZE, align_corners=False), align_corners=False)


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eager pair": pair,
    "affine_grid_sample": affine_grid_sample,
    "  without its checks": lambda *tensors: derivatives.sample(*tensors, *_ARGUMENTS),
    "  the operator itself": lambda *tensors: ops.affine_grid_sample(*tensors, *_ARGUMENTS),
    "  Function with setup_context": lambda *tensors: derivatives._Sample.apply(*tensors, *_ARGUMENTS),
}
PASSES = ("inference", "training forward", "forward + backward")


@contextlib.contextmanager
def nothing_computed() -> Iterator[None]:
    """The CPU implementations only allocate."""

    def forward(input, theta, size, *_):
        return input.new_empty(theta.shape[0], input.shape[1], *size)

    def backward(grad_output, input, theta, options, mask, *_):
        grads = (torch.empty_like(input), torch.empty_like(theta), None)
        return tuple(grad if wanted else None for grad, wanted in zip(grads, mask, strict=True))

    with mock.patch.multiple(reference, forward=forward, backward=backward):
        yield


def surroundings(device: torch.device) -> contextlib.AbstractContextManager:
    """In what to measure: on a CPU nothing is computed."""
    return nothing_computed() if device.type == "cpu" else contextlib.nullcontext()


def measure(device: torch.device, rounds: int = 30, calls: int = 100) -> dict[str, dict[str, float]]:
    """Microseconds per call, by provider and pass: the least of interleaved rounds, each a mean of calls."""
    plain = torch.randn(SIZE, device=device), torch.eye(2, 3, device=device)[None]
    leaves = tuple(t.clone().requires_grad_() for t in plain)
    grad = torch.ones(SIZE, device=device)
    runs = {
        "inference": lambda function: function(*plain),
        "training forward": lambda function: function(*leaves),
        "forward + backward": lambda function: torch.autograd.grad(function(*leaves), leaves, grad),
    }
    times = {name: {p: [] for p in PASSES} for name in PROVIDERS}
    for _ in range(rounds):
        for name, function in PROVIDERS.items():
            for p in PASSES:
                start = time.perf_counter()
                for _ in range(calls):
                    runs[p](function)
                times[name][p].append((time.perf_counter() - start) / calls * 1e6)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    return {name: {p: min(values) for p, values in row.items()} for name, row in times.items()}


def main(args: argparse.Namespace) -> int:
    """Print the host time of a call, in microseconds, and its ratio to the eager pair's."""
    device = environment.choose_device(args.device)
    print("about five seconds ...", file=sys.stderr)
    with surroundings(device):
        rows = measure(device)
    facts = environment.facts(device)
    if args.json:
        print(json.dumps({"microseconds": rows, **facts}))
        return EXIT_OK
    print(environment.summary(facts))
    if device.type == "cpu":
        print(
            "the operator's implementation replaced by an allocation; the whole eager pair, on 4 x 4 pixels"
        )
    print(f"{'us per call (ratio)':32}" + "".join(f"{p:>22}" for p in PASSES))
    for name, row in rows.items():
        ratios = {p: row[p] / rows["eager pair"][p] for p in PASSES}
        print(f"{name:32}" + "".join(f"{row[p]:14.1f} ({ratios[p]:4.2f}x)" for p in PASSES))
    return EXIT_OK
