"""Errors against fp64: the arguments, the providers that compute, and how their errors are judged.

Images are waves of 8 pixels and more, as smooth as photographs are at the scale of pixels. The gradient of
the output is that of registration: the difference to the same picture a pixel and a half away. (In white
noise the gradient of theta is a sum of random signs, of which little is left but rounding.)

At whole positions the derivative jumps, and rounding chooses the side. A few such samples would outweigh all
other errors of the gradient of theta. So samples nearer than 1/64 pixel get no gradient, and at the identity
the gradient of theta is left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

import stn_triton
from perf.accuracy import interpreted
from perf.measuring import maps
from perf.measuring.providers import plain_pair
from perf.tuning.launches import OntoKernels

SIZES, QUICK_SIZES = (28, 224, 1024, 4096, 8192), (28, 224)
IDENTITY = "identity"
MAPS = (maps.RANDOM, IDENTITY)
AUTOCASTS: dict[torch.dtype, tuple[torch.dtype | None, ...]] = {
    torch.float32: (None, torch.bfloat16, torch.float16),
    torch.bfloat16: (None, torch.bfloat16),
    torch.float16: (None, torch.float16),
}
"""The dtypes of images and theta, and for each those of autocast; None is without autocast."""
IMAGES, PIXELS = 8, 2**20
"""Images of a cell, enough that no error is one matrix's chance; and pixels, few enough to interpret."""
QUANTITIES = ("forward", "grad_input", "grad_theta")
KERNELS, REFERENCE, PAIR = "kernels", "reference", "eager"
LABELS = {KERNELS: "kernels", REFERENCE: "CPU path", PAIR: "pair"}
UNADDRESSED = (
    "PyTorch's CPU sampler addresses 16-bit images by 16-bit offsets: beyond 32,768 pixels it reads and "
    "writes other memory, so it is not run"
)
BETTER, EQUAL, WORSE, ALONE = "better", "equal", "WORSE", "no rival"
_SAME, _SAME_MAX = 1.02, 2.0
"""RMS and largest errors whose ratio is smaller are equal; the largest hangs on a single pixel."""
_WAVES, _PERIODS = 16, (8.0, 64.0)
_MOVED = (1.3, 0.7)
_MARGIN = 2.0**-6
_LARGEST_GRADIENT = 2.0**14  # of theta; fp16 ends at 65,504


class Result(NamedTuple):
    """The tensors that are compared with fp64."""

    output: Tensor
    grad_input: Tensor
    grad_theta: Tensor


class Case(NamedTuple):
    """Arguments, rounded to their dtype, and the results in fp64."""

    input: Tensor
    theta: Tensor
    grad: Tensor
    truth: Result


def _differentiated(forward: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Result]:
    """A provider: takes input, theta, gradient of the output, and the dtype of autocast or None."""

    def run(input: Tensor, theta: Tensor, grad: Tensor, autocast: torch.dtype | None) -> Result:
        input, theta = input.detach().requires_grad_(), theta.detach().requires_grad_()
        with torch.autocast(input.device.type, dtype=autocast, enabled=autocast is not None):
            output = forward(input, theta)
        return Result(output.detach(), *torch.autograd.grad(output, (input, theta), grad.to(output.dtype)))

    return run


pair = _differentiated(plain_pair)
operator = _differentiated(stn_triton.affine_grid_sample)


def interpreted_kernels(input: Tensor, theta: Tensor, grad: Tensor, autocast: torch.dtype | None) -> Result:
    """Run the operator's kernels on CPU tensors."""
    with interpreted.rounding_as_gpus(input.shape[2:]), OntoKernels():
        return operator(input, theta, grad, autocast)


def refusal(input: Tensor, autocast: torch.dtype | None) -> str:
    """Why the pair must not be run on such images; empty if it may."""
    is_half = input.element_size() == 2 and autocast is None
    return UNADDRESSED if is_half and not input.is_cuda and input[0, 0].numel() > 2**15 else ""


def short(dtype: torch.dtype | None) -> str:
    """``fp32``, ``bf16`` or ``fp16``; empty for None."""
    name = "" if dtype is None else str(dtype).removeprefix("torch.")
    return name.replace("bfloat", "bf").replace("float", "fp")


def make(dtype: torch.dtype, size: int, map_name: str, device: torch.device) -> Case:
    """Make the arguments of a cell. The largest absolute value of an image is 1, before rounding."""
    sides = min(size, PIXELS // IMAGES // size), size  # of a square, or of a strip of a large one
    generator = torch.Generator().manual_seed(size)
    # Normalised as for a square of that size: along the strip, positions are those of the square.
    theta = torch.eye(2, 3).repeat(IMAGES, 1, 1)
    if map_name != IDENTITY:
        theta = maps.matrices(map_name, IMAGES, (size, size), generator)
    theta = theta.to(device, dtype)
    images = torch.stack([_picture(sides, generator, device) for _ in range(IMAGES)])[:, None].to(dtype)
    exact = images.double(), theta.double()
    moved = exact[1].clone()
    moved[:, :, 2] += 2 * moved.new_tensor(_MOVED) / moved.new_tensor(sides[::-1])
    grad = plain_pair(*exact) - plain_pair(exact[0], moved)
    if map_name != IDENTITY:
        grid = F.affine_grid(exact[1], list(images.shape), align_corners=False)
        positions = ((grid + 1) * grid.new_tensor(sides[::-1]) - 1) / 2
        to_jump = (positions - positions.round()).abs().amin(-1)
        grad = torch.where(to_jump[:, None] < _MARGIN, 0, grad)
    grad /= grad.abs().max()
    excess = pair(*exact, grad, None).grad_theta.abs().max().item() / _LARGEST_GRADIENT
    # Divided by a power of two, which changes no rounding.
    grad = (grad / 2 ** max(math.ceil(math.log2(excess)), 0)).to(dtype)
    truth = pair(*exact, grad.double(), None)
    if map_name == IDENTITY:  # known better than fp64 computes it
        truth = Result(exact[0], grad.double(), truth.grad_theta)
    return Case(images, theta, grad, truth)


def _picture(sides: Sequence[int], generator: torch.Generator, device: torch.device) -> Tensor:
    """Waves in random directions, in fp64."""
    y, x = (torch.arange(n, dtype=torch.float64, device=device) for n in sides)
    total = x.new_zeros(tuple(sides))
    low, high = _PERIODS
    for period, angle, phase in torch.rand(_WAVES, 3, generator=generator, dtype=torch.float64).tolist():
        frequency = 2 * math.pi / (low * (high / low) ** period)
        along = x * math.cos(math.pi * angle) + y[:, None] * math.sin(math.pi * angle)
        total += torch.cos(frequency * along + 2 * math.pi * phase)
    return total / total.abs().max()


def rows_of(dtype: torch.dtype, size: int, map_name: str, device: torch.device) -> list[dict[str, Any]]:
    """Measure images of a dtype: a row per autocast, quantity and provider, with its verdict."""
    case = make(dtype, size, map_name, device)
    shape = "x".join(map(str, case.input.shape))
    cell = {"dtype": short(dtype), "size": size, "shape": shape, "map": map_name}
    providers = {KERNELS: operator, PAIR: pair}
    if device.type == "cpu":
        providers = {KERNELS: interpreted_kernels, REFERENCE: operator, PAIR: pair}
    rows = []
    for autocast in AUTOCASTS[dtype]:
        reason = refusal(case.input, autocast)
        errors = {PAIR: [(math.nan, math.nan)] * len(QUANTITIES)}
        for name, run in providers.items():
            if name != PAIR or not reason:
                errors[name] = errors_of(run(case.input, case.theta, case.grad, autocast), case)
        for i, quantity in enumerate(QUANTITIES[: 2 if map_name == IDENTITY else 3]):
            for name, own in errors.items():
                verdict = "" if name == PAIR else judged(own[i], errors[PAIR][i], reason)
                row = {**cell, "autocast": short(autocast), "quantity": quantity, "provider": name}
                row |= {"rms": own[i][0], "max": own[i][1], "verdict": verdict, "reason": reason}
                rows.append(row)
    return rows


def errors_of(result: Result, case: Case) -> list[tuple[float, float]]:
    """RMS and largest error of the output, grad_input and grad_theta.

    Units are the largest value of an image, the largest gradient of the output, and the norm of each matrix's
    gradient.
    """
    errors = []
    for quantity, actual, truth in zip(QUANTITIES, result, case.truth, strict=True):
        error = actual.double() - truth
        if quantity == "grad_input":
            error /= case.grad.abs().max()
        if quantity == "grad_theta":
            error = error.flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        errors.append((error.square().mean().sqrt().item(), error.abs().max().item()))
    return errors


def judged(ours: Sequence[float], theirs: Sequence[float], refusal: str) -> str:
    """The verdict on RMS and largest error, given the pair's or why it has none. NaN counts as infinite."""
    if refusal:
        return ALONE if all(map(math.isfinite, ours)) else WORSE
    rms, largest, rms_pair, largest_pair = (n if math.isfinite(n) else math.inf for n in (*ours, *theirs))
    if rms > _SAME * rms_pair or largest > _SAME_MAX * largest_pair:
        return WORSE
    return BETTER if rms * _SAME < rms_pair else EQUAL
