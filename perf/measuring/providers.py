"""The ways to sample that are compared; each is a function of input, theta, the output's size and options."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import stn_triton
from perf import chosen
from perf.files import EAGER, OPERATOR

Sampler = Callable[..., Tensor]
"""Of input, theta, size and options."""


class UnavailableError(RuntimeError):
    """A provider cannot do what a workload asks for; the message says why."""


@dataclass(frozen=True)
class Provider:
    """A way to sample: ``make`` gives a fresh sampler for each workload."""

    name: str
    label: str
    what: str
    make: Callable[[], Sampler]
    # Whether -1 and 1 are the centres of the corner pixels: then it is checked against its own reference.
    align_corners: bool = False
    # What the progress bar says while the first call runs.
    preparing: str = "checking"
    # torch.compile needs a C++ compiler or a recent GPU, others a package; the rest must run everywhere.
    may_be_unavailable: bool = False
    # What to give instead of theta, of theta and the sizes of input and output: a library's own matrix.
    matrix: Callable[[Tensor, Sequence[int], Sequence[int]], Tensor] | None = None
    # How many times the error that is allowed to the others.
    slack: float = 1.0


def operator(input: Tensor, theta: Tensor, size: Sequence[int], antialias: int = 0, **options: str) -> Tensor:
    """The operator under test."""
    return stn_triton.affine_grid_sample(input, theta, size, antialias=antialias > 0, **options)


def eager_pair(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    antialias: int = 1,
    align_corners: bool = False,
) -> Tensor:
    """PyTorch's grid generator and sampler, in fp32 for uint8 and half-precision images.

    ``F.grid_sample`` wants the grid in the dtype of the images, and a half-precision grid cannot tell
    neighbouring pixels apart; so code that cares casts as is done here. Several matrices per image,
    (N, K, ...), sample its expanded view; antialiasing is sampling at a multiple of the size and averaging.
    """
    images, matrices = _widened(input, theta)
    if theta.ndim == 4:
        images = images[:, None].expand(-1, theta.shape[1], *[-1] * (input.ndim - 1)).flatten(0, 1)
        matrices = matrices.flatten(0, 1)
    grid = F.affine_grid(matrices, [*images.shape[:2], *(n * antialias for n in size)], align_corners)
    output = F.grid_sample(images, grid, mode, padding_mode, align_corners)
    if theta.ndim == 4:
        output = output.unflatten(0, theta.shape[:2])
    return _narrowed(output, input.dtype, antialias)


def eager_stacked(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    antialias: int = 1,
    align_corners: bool = False,
    make_grid: Callable[[Tensor, Sequence[int], bool], Tensor] = F.affine_grid,
) -> Tensor:
    """The same, but the grids of all matrices of an image stand on each other, so that no image is copied."""
    images, matrices = _widened(input, theta)
    shape = [theta.shape[:-2].numel(), images.shape[1], *(n * antialias for n in size)]
    grid = make_grid(matrices.flatten(0, -3), shape, align_corners)
    if theta.ndim == 4:
        grid = grid.unflatten(0, theta.shape[:2]).flatten(1, 2)
    output = F.grid_sample(images, grid, mode, padding_mode, align_corners)
    if theta.ndim == 4:
        output = output.unflatten(2, (theta.shape[1], -1)).transpose(1, 2)
    return _narrowed(output, input.dtype, antialias)


def broadcast_grid(theta: Tensor, shape: Sequence[int], align_corners: bool = False) -> Tensor:
    """``F.affine_grid`` without its base grid and matrix product: each axis broadcast against its column."""
    size, dim = shape[2:], len(shape) - 2
    grid = theta[:, :, dim].view(-1, *[1] * dim, dim)
    for axis, n in enumerate(size):
        steps = torch.arange(1 - n, n, 2, device=theta.device, dtype=theta.dtype) / (n - align_corners)
        column = theta[:, :, dim - 1 - axis].view(-1, *[1] * dim, dim)
        grid = torch.addcmul(grid, steps.view(n, *[1] * (dim - axis)), column)
    return grid


eager_broadcast = functools.partial(eager_stacked, make_grid=broadcast_grid)


def _widened(input: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    return input.to(dtype), theta.to(dtype)


def _narrowed(output: Tensor, dtype: torch.dtype, antialias: int = 1) -> Tensor:
    if antialias > 1:
        *outer, channels, height, width = output.shape
        flat = F.avg_pool2d(output.reshape(-1, channels, height, width), antialias)
        output = flat.unflatten(0, outer)
    return (output if dtype.is_floating_point else output.round().clamp(0, 255)).to(dtype)


def _make_compiled() -> Sampler:
    from torch._functorch import config as functorch_config
    from torch._inductor import config

    torch._logging.set_logs(all=logging.CRITICAL)
    # In this process: a pool of workers takes longer to start than these few small graphs to compile.
    config.compile_threads = 1
    # The backward passes run their graph again, which a compiled one may not if it reuses its memory.
    functorch_config.donated_buffer = False
    # All workloads share one function, and beyond eight graphs per function PyTorch stops compiling: a
    # workload has up to four, for the gradients that are wanted, times three numbers of samples.
    torch.compiler.reset()
    torch._dynamo.config.recompile_limit = 64
    return torch.compile(eager_pair, fullgraph=True, dynamic=False)


def _make_kornia() -> Sampler:
    if importlib.util.find_spec("kornia") is None:
        raise UnavailableError("kornia is not installed: python -m pip install kornia")
    from kornia.geometry.transform import warp_affine

    def sampler(input: Tensor, matrix: Tensor, size: Sequence[int], **options) -> Tensor:
        if input.ndim != 4 or matrix.ndim != 3 or "antialias" in options:
            raise UnavailableError("warp_affine has a matrix for each image, no volumes and no antialiasing")
        images, matrix = _widened(input, matrix)
        return _narrowed(warp_affine(images, matrix, tuple(size), align_corners=True, **options), input.dtype)

    return sampler


def pixel_matrix(theta: Tensor, size_in: Sequence[int], size: Sequence[int]) -> Tensor:
    """What kornia takes: (N, 2, 3) from input to output pixels; -1 and 1 are the corner pixels' centres."""
    if theta.shape[-2:] != (2, 3) or theta.ndim != 3:
        return theta
    wide = theta.double()
    extents, extents_out = (
        wide.new_tensor([(n - 1) / 2 for n in reversed(sides)]) for sides in (size_in, size)
    )
    linear = wide[:, :, :2] * extents[:, None] / extents_out
    shift = (wide[:, :, 2] + 1) * extents - linear @ extents_out
    inverse = torch.linalg.inv(linear)
    return torch.cat((inverse, -inverse @ shift[:, :, None]), dim=2).to(theta.dtype)


COMPILE = "compile"
PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(OPERATOR, "operator", "stn_triton.affine_grid_sample", lambda: operator),
        Provider(EAGER, "eager pair", "F.affine_grid, then F.grid_sample", lambda: eager_pair),
        Provider(
            "eager-corners",
            "eager pair, align_corners",
            "the same with align_corners=True, which reaches cuDNN on GPUs of NVIDIA",
            lambda: functools.partial(eager_pair, align_corners=True),
            align_corners=True,
        ),
        Provider(
            "eager-broadcast",
            "eager, broadcast grid",
            "the grid by broadcasting, the crops of an image stacked in one grid, then F.grid_sample",
            lambda: eager_broadcast,
        ),
        Provider(
            COMPILE,
            "torch.compile",
            "torch.compile of the eager pair",
            _make_compiled,
            preparing="compiling and checking",
            may_be_unavailable=True,
        ),
        Provider(
            "kornia",
            "kornia",
            "kornia.geometry.warp_affine, given its own matrix, with align_corners=True, its default",
            _make_kornia,
            align_corners=True,
            may_be_unavailable=True,
            matrix=pixel_matrix,
            # It inverts a matrix of pixels, which costs digits: on a CPU its errors were up to 1.9 times what
            # is allowed to the others.
            slack=4.0,
        ),
    )
}


def choose(names: Sequence[str] | None) -> list[Provider]:
    """Providers by name, the operator and the eager pair always among them; None stands for all.

    Raises:
        UsageError: a name is unknown.
    """
    names = chosen("--providers", names, PROVIDERS)
    return [p for name, p in PROVIDERS.items() if name in (*names, OPERATOR, EAGER)]
