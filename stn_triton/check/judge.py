"""Judgement of a call's results: the truth, the allowed difference, and the worst element.

The allowed difference is rounding, in three parts:

- A coordinate is a sum of a few terms, each rounded a few times. In fp32 its error is about four eps times
  the largest term, which is ``pixels`` pixels. Two neighbouring pixels differ by up to twice the largest
  value, so a result may be off by ``FACTOR * eps * pixels * size``, where FACTOR is four times two. ``size``
  is the largest value of the tensor, but at least 1. For a sum over the output (grad_theta, grad_fill) it is
  at least the norm of the output's gradient. eps is that of fp32, or that of fp64 for fp64 images.
- At kinks, where derivatives jump, kernels are compared with a computation that rounds coordinates exactly
  as they do. Then only the sums round: ``SUMS * eps * size``.
- Each element is rounded once to its dtype, by half an eps of it; a byte by half a step.

Beside PyTorch's pair the bound is another: twice the largest error of the pair in fp32 on the same device,
and the rounding to the dtype. Among the few numbers of grad_theta the largest error is a matter of luck, so
root mean square errors are compared.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_triton.check import oracle
from stn_triton.check.cases import Case
from stn_triton.check.engine import Engine, deterministic, threads

FACTOR = 8
SUMS = 32


class Finding(NamedTuple):
    """The worst element of a tensor: its error is the largest share of the allowed error."""

    part: str
    """output, grad_input, grad_theta, grad_fill, or the name of another quantity."""
    error: float
    allowed: float
    text: str
    """The element, its value and the expected one; or the fault of the whole tensor."""
    call: tuple[str, ...] = ()
    """The arguments, in lines."""
    pair_error: float | None = None

    def passed(self) -> bool:
        """Whether the error is allowed; NaN and an infinite allowance fail."""
        return math.isfinite(self.allowed) and self.error <= self.allowed

    def share(self) -> float:
        """The error as a share of the allowed error, for finding the worst."""
        if not (math.isfinite(self.error) and math.isfinite(self.allowed)):
            return math.inf
        if self.allowed == 0:
            return math.inf if self.error else 0.0
        return self.error / self.allowed


class CallError(RuntimeError):
    """A call raised; ``args`` are its error in a line, and the call's arguments in lines."""


def results(case: Case, input_only: bool = False) -> oracle.Truth:
    """Compute output and gradients by the public function; with ``input_only``, only the input's gradient.

    Waits for the GPU, so that an illegal access raises here and not in a later call.

    Raises:
        CallError: the call raised.
    """
    lines = tuple(case.describe())  # before the call: a GPU that has failed cannot be read
    try:
        found = _results(case, input_only)
        if case.input.is_cuda:
            torch.cuda.synchronize(case.input.device)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise CallError(f"raised {type(error).__name__}: {first}", lines) from error
    return found


def _results(case: Case, input_only: bool) -> oracle.Truth:
    fill = None if case.fill is None else case.fill.detach()
    if not case.input.is_floating_point():
        return oracle.Truth(case.call(case.input, case.theta, fill), None, None, None)
    if input_only:
        leaf = case.input.detach().requires_grad_()
        output = case.call(leaf, case.theta, fill)
        return oracle.Truth(output.detach(), *torch.autograd.grad(output, leaf, case.grad), None, None)
    leaves = [t.detach().requires_grad_() for t in (case.input, case.theta, fill) if t is not None]
    output = case.call(*leaves, *[None] * (3 - len(leaves)))
    gradients = torch.autograd.grad(output, leaves, case.grad)
    return oracle.Truth(output.detach(), *gradients, *[None] * (3 - len(leaves)))


def truth(case: Case, dtype: torch.dtype = torch.float64, shares_rounding: bool = False) -> oracle.Truth:
    """Compute output and gradients by the oracle, in fp64."""
    calls = case.grad.numel() // max(math.prod(case.grad.shape[-len(case.size) - 1 :]), 1)
    theta = case.theta.detach().cpu().double().requires_grad_()
    matrices = theta.flatten(0, 1) if theta.ndim == 4 else theta
    matrices = matrices.expand(calls, *matrices.shape[1:])
    if case.is_spline:
        matrices = oracle.spline_matrices(matrices, case.options.points)
    grad = case.grad.flatten(0, 1) if theta.ndim == 4 else case.grad
    arguments = (case.size, grad, case.options, dtype, case.fill, case.image_index, shares_rounding)
    found = oracle.solve(case.input, matrices.detach(), *arguments)
    (grad_theta,) = torch.autograd.grad(matrices, theta, found.grad_theta.cpu())
    output = found.output.view(case.grad.shape)
    return found._replace(output=output, grad_theta=grad_theta.to(output.device))


def against_truth(case: Case, engine: Engine, is_poisoned: bool = True) -> list[Finding]:
    """Compare each result of a call with the truth."""
    with deterministic(is_poisoned):
        found = results(case)
    wide = torch.float64 if case.input.dtype == torch.float64 else torch.float32
    shares = case.is_kinked and engine.has_kernels
    expected = truth(case, wide if shares else torch.float64, shares)
    factor = SUMS if shares else FACTOR * case.pixels
    findings = []
    for part, actual, exact in zip(oracle.Truth._fields, found, expected, strict=True):
        if actual is None:
            continue
        if case.is_kinked and part == "grad_theta" and not shares:
            continue  # rounding decides which side of the kink is taken
        like = {"output": case.input, "grad_input": case.input, "grad_fill": case.fill}.get(part, case.theta)
        wrong = _form(case, part, actual, exact, like)
        if wrong is not None:
            findings.append(Finding(part, math.inf, 0.0, wrong, tuple(case.describe())))
            continue
        budget = factor * torch.finfo(wide).eps * _size(part, exact, case.grad)
        skipped = None
        if part == "output" and not case.is_kinked:
            is_jumping = case.options.mode == "nearest" or case.function.__name__.startswith("persp")
            skipped = case.skipped if is_jumping else None
        findings.append(compare(case, engine, part, actual, exact, budget, skipped))
    return findings


def beside_pair(case: Case, engine: Engine) -> list[Finding]:
    """Compare the errors of a call with those of the pair ``F.affine_grid`` and ``F.grid_sample``."""
    # The pair has no deterministic backward on a GPU.
    with deterministic(False), threads(engine.threads):
        found, theirs = results(case), pair(case)
    findings = []
    for part, actual, other, exact in zip(oracle.Truth._fields, found, theirs, truth(case), strict=True):
        if actual is None:
            continue
        if part == "grad_theta":
            error = _mean(other.double() - exact)
            finding = _on_average(case, part, actual, exact, 2 * error)
        else:
            error = (other.double() - exact).abs().max().item()
            finding = compare(case, engine, part, actual, exact, 2 * error)
        findings.append(finding._replace(pair_error=error))
    return findings


def _on_average(case: Case, part: str, actual: Tensor, exact: Tensor, budget: float) -> Finding:
    error = _mean(actual.double() - exact)
    allowed = budget + torch.finfo(actual.dtype).eps / 2 * _mean(exact)
    text = f"{part}, of a root mean square of {_mean(exact):.3g}"
    return Finding(part, error, allowed, text, tuple(case.describe()))


def _mean(tensor: Tensor) -> float:
    """The root mean square."""
    return tensor.square().mean().sqrt().item()


def pair(case: Case) -> oracle.Truth:
    """Compute output and gradients by PyTorch's pair in fp32."""
    input, theta = (t.detach().float().requires_grad_() for t in (case.input, case.theta))
    options = case.options
    grid = F.affine_grid(theta, [*input.shape[:2], *case.size], options.align_corners)
    output = F.grid_sample(input, grid, options.mode, options.padding_mode, options.align_corners)
    gradients = torch.autograd.grad(output, (input, theta), case.grad.float())
    return oracle.Truth(output.detach(), *gradients, None)


def compare(
    case: Case,
    engine: Engine,
    part: str,
    actual: Tensor,
    exact: Tensor,
    budget: float,
    skipped: Tensor | None = None,
) -> Finding:
    """Find the element whose error is the largest share of budget plus rounding to the dtype.

    Infinity and NaN have no allowance: where they are expected, the same must be found.
    """
    if actual.numel() == 0:
        return Finding(part, 0.0, 0.0, "no elements")
    if not math.isfinite(budget):
        text = f"{part} cannot be judged: the allowed error is {budget}"
        return Finding(part, math.inf, budget, text, tuple(case.describe()))
    if actual.dtype == torch.uint8:
        exact, rounding = exact.clamp(0, 255), torch.full_like(exact, 0.5)
    elif not actual.is_floating_point():  # labels are copied
        budget, rounding = 0, torch.zeros_like(exact)
    else:
        info = torch.finfo(actual.dtype)
        rounding = info.eps * (1 if engine.truncates(actual.dtype) else 0.5) * exact.abs() + info.tiny
    wide = actual.double()
    is_same = (wide == exact) | (wide.isnan() & exact.isnan())
    # Differences from infinity or NaN have no meaning.
    error = (wide - exact).abs().nan_to_num(math.inf, math.inf).masked_fill(is_same, 0)
    if skipped is not None:
        error = error.view(-1, *error.shape[-len(case.size) - 1 :]).masked_fill(skipped[:, None], 0)
        error = error.view(exact.shape)
    allowed = torch.where(exact.isfinite(), budget + rounding, 0)
    at = (error / allowed).masked_fill(error == 0, 0).argmax().item()
    index = [i.item() for i in torch.unravel_index(torch.tensor(at), exact.shape)]
    where = f"{part}{index} is {actual.flatten()[at].item():.9g}, expected {exact.flatten()[at].item():.9g}"
    pick = error.flatten()[at].item(), allowed.flatten()[at].item()
    return Finding(part, *pick, where, tuple(case.describe()))


def _size(part: str, exact: Tensor, grad: Tensor) -> float:
    least = grad.double().norm().item() if part in ("grad_theta", "grad_fill") else 1.0
    finite = exact[exact.isfinite()]
    return max(finite.abs().max().item() if finite.numel() else 1.0, least, 1.0)


def _form(case: Case, part: str, actual: Tensor, exact: Tensor, like: Tensor) -> str | None:
    """Describe a wrong shape, dtype or layout of a tensor; None if it is right."""
    if actual.shape != exact.shape or actual.dtype != like.dtype:
        expected = f"{tuple(exact.shape)} {like.dtype}"
        return f"{part} is {tuple(actual.shape)} {actual.dtype}, expected {expected}"
    if part == "output" and case.layout == "channels_last":
        form = torch.channels_last if case.input.ndim == 4 else torch.channels_last_3d
        folded = actual.flatten(0, 1) if actual.ndim > case.input.ndim else actual
        if not folded.is_contiguous(memory_format=form):
            return f"output has strides {actual.stride()}, expected channels_last as the input"
    return None
