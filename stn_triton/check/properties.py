"""Properties that need no oracle: identity, shifts, adjoints, derivatives, repetitions."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from stn_triton.check.cases import KINDS, Case, make
from stn_triton.check.engine import Engine, deterministic, threads
from stn_triton.check.judge import FACTOR, Finding, compare, results
from stn_triton.options import MODES, PADDING_MODES, Options

IDENTITY = {dim: torch.eye(dim, dim + 1).tolist() for dim in (2, 3)}


def identity(engine: Engine, quick: bool) -> Iterator[list[Finding]]:
    """Check that kernels copy bit for bit, NaN and infinity too; on a CPU, up to rounding of coordinates."""
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8)
    product = itertools.product((2, 3), MODES, PADDING_MODES, (False, True), dtypes)
    for i, (dim, mode, padding_mode, corners, dtype) in enumerate(product):
        if (dim == 3 and mode == "bicubic") or i % (7 if quick else 3):
            continue
        if dtype == torch.bfloat16 and not engine.has_bfloat16():
            continue
        size = (11, 18) if dim == 2 else (3, 5, 4)
        options = Options(mode, padding_mode, corners)
        layout = "channels_last" if i % 2 else "contiguous"
        case = make(
            engine.device, options, dim=dim, dtype=dtype, theta=IDENTITY[dim], size_in=size, size=size,
            layout=layout, channels=3, is_kinked=True,
        )  # fmt: skip
        if engine.has_kernels and dtype.is_floating_point:
            for tensor in (case.input, case.grad):
                tensor[0, :, 1, 2] = math.nan
                tensor[0, :, 2, 0] = math.inf
        # Only the input's gradient: together with theta's, NaN times a weight of 0 reaches neighbours too.
        with deterministic():
            found = results(case, input_only=True)
        yield [
            _copied(case, engine, part, actual, expected)
            for part, actual, expected in (
                ("output", found.output, case.input),
                ("grad_input", found.grad_input, case.grad),
            )
            if actual is not None
        ]


def _copied(case: Case, engine: Engine, part: str, actual: Tensor, expected: Tensor) -> Finding:
    if not engine.has_kernels:
        wide = torch.float64 if case.input.dtype == torch.float64 else torch.float32
        budget = FACTOR * torch.finfo(wide).eps * case.pixels * expected.double().abs().max().item()
        return compare(case, engine, part, actual, expected.double(), budget)
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    return _exact(case, part, actual, expected, same)


def _exact(case: Case, part: str, actual: Tensor, expected: Tensor, same: Tensor) -> Finding:
    """Compare bit for bit; the error reported is the difference, not infinity."""
    if same.all():
        return Finding(part, 0.0, 0.0, "", tuple(case.describe()))
    at = (~same).flatten().nonzero()[0].item()
    index = [i.item() for i in torch.unravel_index(torch.tensor(at), actual.shape)]
    pair = actual.flatten()[at].item(), expected.flatten()[at].item()
    error = abs(pair[0] - pair[1])
    text = f"{part}{index} is {pair[0]!r}, expected {pair[1]!r}, bit for bit"
    return Finding(part, math.inf if math.isnan(error) else error, 0.0, text, tuple(case.describe()))


def shifts(engine: Engine, quick: bool) -> Iterator[list[Finding]]:
    """Check shifts by whole pixels, for sizes at which theta expresses them exactly."""
    for (height, width), (dx, dy) in itertools.product(
        [(8, 16), (16, 8), (32, 4)][: 1 if quick else 3], [(1, 0), (0, -1), (-3, 2), (5, 3)]
    ):
        theta = [[1, 0, 2 * dx / width], [0, 1, 2 * dy / height]]
        case = make(engine.device, theta=theta, size_in=(height, width), size=(height, width), is_kinked=True)
        with deterministic():
            found = results(case)
        yield [
            _copied(case, engine, part, actual, _moved(tensor, sign * dx, sign * dy))
            for part, actual, tensor, sign in (
                ("output", found.output, case.input, 1),
                ("grad_input", found.grad_input, case.grad, -1),
            )
        ]


def _moved(tensor: Tensor, dx: int, dy: int) -> Tensor:
    """Shift pixels to the left by dx and up by dy, with 0 beyond the edge."""
    height, width = tensor.shape[2:]
    padded = torch.nn.functional.pad(tensor, (8, 8, 8, 8))
    return padded[:, :, 8 + dy : 8 + dy + height, 8 + dx : 8 + dx + width]


def _cells(engine: Engine, quick: bool, dtype: torch.dtype) -> Iterator[Case]:
    """Make a case of each kind, with all modes and paddings in turn."""
    product = itertools.product((2, 3), KINDS, MODES, PADDING_MODES)
    for i, (dim, kind, mode, padding_mode) in enumerate(product):
        is_there = dim == 2 or not (mode == "bicubic" or kind in ("projective", "spline"))
        if is_there and (i + i // 5) % (5 if quick else 2) == 0:
            yield make(engine.device, Options(mode, padding_mode, i % 3 == 0), kind, dim=dim, dtype=dtype)


def adjoint(dtype: torch.dtype):
    """Check <A x, y> = <x, A' y>, up to a few roundings of each term of the sums."""

    def find(engine: Engine, quick: bool) -> Iterator[list[Finding]]:
        for case in _cells(engine, quick, dtype):
            case = case._replace(fill=torch.zeros_like(case.fill) if case.fill is not None else None)
            with deterministic():
                found = results(case)
            there = found.output.double() * case.grad.double()
            back = found.grad_input.double() * case.input.double()
            scale = max(there.abs().sum().item(), back.abs().sum().item(), torch.finfo(dtype).tiny)
            error = abs(there.sum() - back.sum()).item() / scale
            text = f"<A x, y> is {there.sum().item():.9g}, <x, A' y> is {back.sum().item():.9g}"
            allowed = 8 * torch.finfo(dtype).eps
            yield [Finding("relative difference", error, allowed, text, tuple(case.describe()))]

    return find


def derivative(engine: Engine, quick: bool) -> Iterator[list[Finding]]:
    """Compare reverse mode, forward mode and central differences in a random direction of all arguments."""
    for case in _cells(engine, quick, torch.float64):
        with deterministic():
            yield _slopes(case)


def _slopes(case: Case) -> list[Finding]:
    generator = torch.Generator().manual_seed(1)
    leaves = [t.detach() for t in (case.input, case.theta, case.fill) if t is not None]
    directions = [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device) for t in leaves]
    if case.options.mode == "nearest":  # theta has no derivative
        directions[1] = torch.zeros_like(directions[1])
    grads = results(case)[1:]
    reverse = sum((g * d).sum() for g, d in zip(grads, directions, strict=False)).item()
    call = lambda *t: case.call(*t, *[None] * (3 - len(t)))  # noqa: E731
    _, tangent = torch.func.jvp(call, tuple(leaves), tuple(directions))
    forward = (tangent * case.grad).sum().item()
    ends = []
    for sign in (1, -1):
        output = call(*(t + sign * 1e-6 * d for t, d in zip(leaves, directions, strict=True)))
        ends.append((output * case.grad).sum().item())
    difference = (ends[0] - ends[1]) / 2e-6
    size = max(abs(reverse), 1)
    # Steps of 1e-6 lose ten digits of sixteen, and a little more to curvature.
    others = (("forward mode", forward, 1e-12), ("central differences", difference, 1e-6))
    call_lines = tuple(case.describe())
    return [
        Finding(
            name,
            abs(slope - reverse) / size,
            allowed,
            f"the slope is {slope:.9g} by {name}, {reverse:.9g} in reverse",
            call_lines,
        )
        for name, slope, allowed in others
    ]


def repeats(engine: Engine, quick: bool) -> Iterator[list[Finding]]:
    """Check that results repeat bit for bit; scattered sums only in PyTorch's deterministic mode."""
    for case in _cells(engine, quick, torch.float32):
        if case.options.antialias and case.input.ndim == 5:
            continue
        large = _larger(case)
        findings = {}
        with deterministic(large.is_scattered), threads(engine.threads):
            first = results(large)
            for _ in range(2 if quick else 3):
                for part, one, other in zip(first._fields, first, results(large), strict=True):
                    if one is not None:
                        finding = _exact(large, part, other, one, one == other)
                        if part not in findings or not finding.passed():
                            findings[part] = finding
        yield list(findings.values())


def _larger(case: Case) -> Case:
    """Enlarge a case until each image takes several programs, or threads."""
    if case.input.ndim == 5:
        return case
    wide = torch.nn.functional.interpolate(case.input, (40, 70))
    grad = case.grad.flatten(0, 1) if case.theta.ndim == 4 else case.grad
    grad = torch.nn.functional.interpolate(grad, (36, 50))
    grad = grad.unflatten(0, case.theta.shape[:2]) if case.theta.ndim == 4 else grad
    return case._replace(input=wide, grad=grad, size=(36, 50))


ROWS = (
    ("identity", identity),
    ("whole-pixel shifts", shifts),
    ("adjoint in fp64", adjoint(torch.float64)),
    ("adjoint in fp32", adjoint(torch.float32)),
    ("derivatives in fp64", derivative),
    ("determinism", repeats),
)
