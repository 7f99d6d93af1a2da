"""The three ways to sample that are compared; each is a function of input, theta and the output's size."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import stn_triton

Sampler = Callable[..., Tensor]
"""Of input, theta, size and options."""


@dataclass(frozen=True)
class Provider:
    """A way to sample: ``make`` gives a fresh sampler for each workload and pass."""

    name: str
    label: str
    make: Callable[[], Sampler]
    # What the progress bar says while the first call runs.
    preparing: str = "checking"
    # torch.compile needs a C++ compiler or a recent GPU; the others must run everywhere.
    may_be_unavailable: bool = False


def operator(input: Tensor, theta: Tensor, size: Sequence[int], antialias: int = 1, **options: str) -> Tensor:
    """The operator under test."""
    return stn_triton.affine_grid_sample(input, theta, size, antialias=antialias > 1, **options)


def eager_pair(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    antialias: int = 1,
) -> Tensor:
    """PyTorch's grid generator and sampler, in fp32 for half-precision images.

    ``F.grid_sample`` wants the grid in the dtype of the images, and a half-precision grid cannot tell
    neighbouring pixels apart; so code that cares casts as is done here. Several matrices per image,
    (N, K, ...), sample its expanded view; antialiasing is sampling at a multiple of the size and averaging.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    images, matrices = input.to(dtype), theta.to(dtype)
    if theta.ndim == 4:
        images = images[:, None].expand(-1, theta.shape[1], *[-1] * (input.ndim - 1)).flatten(0, 1)
        matrices = matrices.flatten(0, 1)
    fine = [n * antialias for n in size]
    grid = F.affine_grid(matrices, [*images.shape[:2], *fine], align_corners=False)
    output = F.grid_sample(images, grid, mode, padding_mode, align_corners=False)
    if antialias > 1:
        output = F.avg_pool2d(output, antialias)
    if theta.ndim == 4:
        output = output.unflatten(0, theta.shape[:2])
    return output.to(input.dtype)


def _make_compiled() -> Sampler:
    from torch._inductor import config

    torch._logging.set_logs(all=logging.CRITICAL)
    # In this process: a pool of workers takes longer to start than these few small graphs to compile.
    config.compile_threads = 1
    # All workloads share one function, and beyond a few graphs per function PyTorch stops compiling.
    torch.compiler.reset()
    return torch.compile(eager_pair, fullgraph=True, dynamic=False)


EAGER = "eager"
PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider("operator", "operator", lambda: operator),
        Provider(EAGER, "eager pair", lambda: eager_pair),
        Provider("compile", "torch.compile", _make_compiled, "compiling and checking", True),
    )
}


def choose(names: Sequence[str] | None) -> list[Provider]:
    """Providers by name, the eager pair always among them; None stands for all.

    Raises:
        ValueError: a name is unknown.
    """
    for name in names or ():
        if name not in PROVIDERS:
            raise ValueError(f"--providers: unknown provider {name!r}; available: {', '.join(PROVIDERS)}")
    return [p for name, p in PROVIDERS.items() if names is None or name in names or name == EAGER]
