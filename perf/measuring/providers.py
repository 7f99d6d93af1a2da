"""The ways to sample that are compared; each is a function of input, theta, the output's size and options."""

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

import stn_triton
from perf import chosen
from perf.files import EAGER, OPERATOR
from stn_triton import launch
from stn_triton.options import Options

SCATTER = "scatter"
Sampler = Callable[..., Tensor]  # a function of input, theta, size and options


@dataclass(frozen=True)
class Provider:
    """A way to sample: ``make`` gives a fresh sampler for each workload."""

    name: str
    label: str
    what: str
    make: Callable[[], Sampler]
    align_corners: bool = False  # if -1 and 1 are the centres of corner pixels; then its reference differs
    may_be_unavailable: bool = False  # as torch.compile without a C++ compiler


def operator(input: Tensor, theta: Tensor, size: Sequence[int], antialias: int = 0, **options: str) -> Tensor:
    """The operator under test."""
    return stn_triton.affine_grid_sample(input, theta, size, antialias=antialias > 0, **options)


def plain_pair(input: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's two operators without casts; the output has the size of the input."""
    return F.grid_sample(input, F.affine_grid(theta, input.shape, align_corners=False), align_corners=False)


def eager_pair(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    antialias: int = 1,
    align_corners: bool = False,
    stacks: bool = False,
    make_grid: Callable[[Tensor, Sequence[int], bool], Tensor] = F.affine_grid,
) -> Tensor:
    """PyTorch's grid generator and sampler, in fp32 for uint8 and half-precision images.

    ``F.grid_sample`` wants the grid in the dtype of the images, and a half-precision grid cannot tell
    neighbouring pixels apart; so code that cares casts as is done here. Several matrices per image,
    (N, K, ...), sample its expanded view, or with ``stacks`` a grid in which all of them stand on each other.
    Antialiasing is sampling at a multiple of the size and averaging.
    """
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    images, matrices = input.to(dtype), theta.to(dtype).flatten(0, -3)
    has_many = theta.ndim == 4
    if has_many and not stacks:
        images = images[:, None].expand(-1, theta.shape[1], *[-1] * (input.ndim - 1)).flatten(0, 1)
    shape = [len(matrices), images.shape[1], *(n * antialias for n in size)]
    grid = make_grid(matrices, shape, align_corners)
    if has_many and stacks:
        grid = grid.unflatten(0, theta.shape[:2]).flatten(1, 2)
    output = F.grid_sample(images, grid, mode, padding_mode, align_corners)
    if has_many and stacks:
        output = output.unflatten(2, (theta.shape[1], -1)).transpose(1, 2)
    elif has_many:
        output = output.unflatten(0, theta.shape[:2])
    if antialias > 1:
        pooled = F.avg_pool2d(output.reshape(-1, *output.shape[-3:]), antialias)
        output = pooled.unflatten(0, output.shape[:-3])
    return (output if input.dtype.is_floating_point else output.round().clamp(0, 255)).to(input.dtype)


def broadcast_grid(theta: Tensor, shape: Sequence[int], align_corners: bool = False) -> Tensor:
    """``F.affine_grid`` without its base grid and matrix product: each axis broadcast against its column."""
    size, dim = shape[2:], len(shape) - 2
    grid = theta[:, :, dim].view(-1, *[1] * dim, dim)
    for axis, n in enumerate(size):
        steps = torch.arange(1 - n, n, 2, device=theta.device, dtype=theta.dtype) / (n - align_corners)
        column = theta[:, :, dim - 1 - axis].view(-1, *[1] * dim, dim)
        grid = torch.addcmul(grid, steps.view(n, *[1] * (dim - axis)), column)
    return grid


eager_stacked = functools.partial(eager_pair, stacks=True)
_eager_corners = functools.partial(eager_pair, align_corners=True)
_eager_broadcast = functools.partial(eager_stacked, make_grid=broadcast_grid)


class _Scatter(Function):
    @staticmethod
    def forward(ctx, input, theta, size, options):
        ctx.save_for_backward(input, theta)
        ctx.options = options
        return stn_triton.affine_grid_sample(input, theta, size, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        given = {"options": Options(**ctx.options), "output_mask": (*ctx.needs_input_grad[:2], False)}
        grads = launch.backward(grad_output, *ctx.saved_tensors, **given, gathers=False)
        return *grads[:2], None, None


def scatter(input: Tensor, theta: Tensor, size: Sequence[int], **options: str | int) -> Tensor:
    """The operator, whose backward scatters; for one matrix per image.

    Raises:
        ValueError: images have several matrices, or are antialiased.
    """
    if theta.ndim > 3 or "antialias" in options:
        raise ValueError("the fused scatter takes one matrix per image and no antialiasing")
    return _Scatter.apply(input, theta, size, options)


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


_CORNERS = "the eager pair with align_corners=True, which reaches cuDNN on GPUs of NVIDIA"
_BROADCAST = "the grid by broadcasting, the crops of an image stacked in one grid, then F.grid_sample"
_COMPILE = "torch.compile of the eager pair; in a quick run only if it is named"
_SCATTER = "the operator with a backward by atomic additions, on a GPU; only if it is named"
_ALL = (
    Provider(OPERATOR, "operator", "stn_triton.affine_grid_sample", lambda: operator),
    Provider(EAGER, "eager pair", "F.affine_grid, then F.grid_sample", lambda: eager_pair),
    Provider("eager-corners", "eager pair, align_corners", _CORNERS, lambda: _eager_corners, True),
    Provider("eager-broadcast", "eager, broadcast grid", _BROADCAST, lambda: _eager_broadcast),
    Provider("compile", "torch.compile", _COMPILE, _make_compiled, may_be_unavailable=True),
    Provider(SCATTER, "fused scatter", _SCATTER, lambda: scatter, may_be_unavailable=True),
)
PROVIDERS = {provider.name: provider for provider in _ALL}


def choose(names: Sequence[str] | None, quick: bool = False) -> list[Provider]:
    """Providers by name, the operator and the eager pair always among them.

    None stands for all but the fused scatter, and but for torch.compile if ``quick``.

    Raises:
        UsageError: a name is unknown.
    """
    if names is None:
        names = [name for name in PROVIDERS if name != SCATTER and not (quick and name == "compile")]
    names = chosen("--providers", names, PROVIDERS)
    return [p for name, p in PROVIDERS.items() if name in (*names, OPERATOR, EAGER)]
