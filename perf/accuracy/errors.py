"""Errors of the providers, and whether the operator's are worse than the pair's."""

from __future__ import annotations

import math
from typing import Any

import torch

from perf.accuracy import implementations, inputs
from perf.accuracy.inputs import Case

QUANTITIES = ("forward", "grad_input", "grad_theta")
BETTER, EQUAL, WORSE, ALONE = "better", "equal", "WORSE", "no rival"
# Errors that differ by less are equal; the largest hangs on a single pixel.
_SAME, _SAME_MAX = 1.02, 2.0
Row = dict[str, Any]
Error = tuple[float, float]
"""RMS and largest."""


def rows_of(
    dtype: torch.dtype,
    size: int,
    map_name: str,
    who: dict[str, implementations.Provider],
    device: torch.device,
) -> list[Row]:
    """A row per autocast, quantity and provider for images of a dtype, judged."""
    case = inputs.make(dtype, size, map_name, device)
    quantities = QUANTITIES[: 2 if map_name == inputs.IDENTITY else 3]
    images, *sides = inputs.shape_of(size)
    rows = []
    for autocast in inputs.AUTOCASTS[dtype]:
        errors: dict[str, list[Error]] = {}
        reasons: dict[str, str] = {}
        for name, provider in who.items():
            reasons[name] = implementations.refusal(name, case.input, autocast)
            errors[name] = [(math.nan, math.nan)] * len(QUANTITIES)
            if not reasons[name]:
                errors[name] = errors_of(provider(case.input, case.theta, case.grad, autocast), case)
        for i, quantity in enumerate(quantities):
            for name in who:
                rms, largest = errors[name][i]
                pair = errors[implementations.PAIR][i], reasons[implementations.PAIR]
                rows.append(
                    {
                        "dtype": inputs.short(dtype),
                        "autocast": inputs.short(autocast) if autocast else "",
                        "size": size,
                        "shape": "x".join(map(str, (images, 1, *sides))),
                        "map": map_name,
                        "quantity": quantity,
                        "provider": name,
                        "rms": rms,
                        "max": largest,
                        "verdict": "" if name == implementations.PAIR else judged((rms, largest), *pair),
                        "reason": pair[1],
                    }
                )
    return rows


def errors_of(result: implementations.Result, case: Case) -> list[Error]:
    """RMS and largest error of the output, grad_input and grad_theta.

    The output's in units of the largest value of an image, grad_input's in those of the largest gradient of
    the output; of grad_theta the norms of the matrices' errors, each as a share of its matrix's norm.
    """
    errors = []
    scales = (1.0, case.grad.abs().max().item(), 1.0)
    for quantity, actual, truth, scale in zip(QUANTITIES, result, case.truth, scales, strict=True):
        error = (actual.double() - truth) / scale
        if quantity == "grad_theta":
            error = error.flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)
        errors.append((error.square().mean().sqrt().item(), error.abs().max().item()))
    return errors


def judged(ours: Error, theirs: Error, refusal: str) -> str:
    """The verdict on an error given the pair's, or why there is none. What is not finite is infinite."""
    if refusal and all(map(math.isfinite, ours)):
        return ALONE
    (rms, largest), (rms_pair, largest_pair) = (
        [n if math.isfinite(n) else math.inf for n in error] for error in (ours, theirs)
    )
    if refusal or rms > _SAME * rms_pair or largest > _SAME_MAX * largest_pair:
        return WORSE
    return BETTER if rms * _SAME < rms_pair else EQUAL
