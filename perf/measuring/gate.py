"""The correctness gate: no speed is reported for a wrong result."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import eager_stacked
from perf.measuring.workloads import Data


class Verdict(NamedTuple):
    """The finding of the gate on the tensor that used most of its tolerance."""

    passed: bool
    tensor: str
    error: float
    tolerance: float
    reason: str = ""


class Gate:
    """The fp64 result of one workload and how much may differ from it.

    The reference is the eager pair. The tolerance of each tensor is twice the largest error of the pair in
    fp32, plus one rounding of the largest value to the tensor's dtype (for uint8, half a step).
    """

    def __init__(self, data: Data, align_corners: bool = False) -> None:
        sampler = functools.partial(eager_stacked, align_corners=align_corners)
        name = "forward+backward" if data.input.is_floating_point() else "forward"

        def result(dtype: torch.dtype) -> dict[str, Tensor]:
            wide = data.mapped(lambda tensor: tensor.to(dtype))
            return dict(zip(COMPUTED[name], PASSES[name](sampler, wide)(), strict=True))

        self._dtypes = dict.fromkeys(("output", "grad_input"), data.input.dtype)
        self._dtypes["grad_theta"] = data.theta.dtype
        self._exact, in_fp32 = result(torch.float64), result(torch.float32)
        self._tolerances = {
            name: 2 * _error(in_fp32[name], exact) + _rounding(exact, self._dtypes[name])
            for name, exact in self._exact.items()
        }

    def check(self, tensors: Mapping[str, Tensor], slack: float = 1.0) -> Verdict:
        """Judge tensors by name: output, grad_input, grad_theta; ``slack`` multiplies the tolerances."""
        verdicts = [self._check_one(name, tensor, slack) for name, tensor in tensors.items()]
        failed = [verdict for verdict in verdicts if not verdict.passed]
        return failed[0] if failed else max(verdicts, key=lambda v: v.error / v.tolerance)

    def _check_one(self, name: str, tensor: Tensor, slack: float) -> Verdict:
        exact, dtype, tolerance = self._exact[name], self._dtypes[name], slack * self._tolerances[name]
        if tensor.shape != exact.shape or tensor.dtype != dtype:
            got, expected = (f"{tuple(t.shape)} {d}" for t, d in ((tensor, tensor.dtype), (exact, dtype)))
            return Verdict(False, name, float("nan"), tolerance, f"{name} is {got}, expected {expected}")
        error = _error(tensor, exact)
        passed = error <= tolerance  # False for a NaN
        reason = "" if passed else f"{name} is off by {error:.2g}, allowed {tolerance:.2g}"
        return Verdict(passed, name, error, tolerance, reason)


def _error(tensor: Tensor, exact: Tensor) -> float:
    return (tensor.double() - exact).abs().max().item()


def _rounding(exact: Tensor, dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2 * exact.abs().max().item() if dtype.is_floating_point else 0.5
