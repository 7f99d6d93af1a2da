"""The correctness gate: no speed is reported for a wrong result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from perf import passes
from perf.providers import eager_pair
from perf.workloads import Data

_NAMES = ("output", "grad_input", "grad_theta")


@dataclass(frozen=True)
class Verdict:
    """What the gate found on the tensor that used most of its tolerance."""

    passed: bool
    tensor: str
    error: float
    tolerance: float
    reason: str = ""


class Gate:
    """The fp64 result of one workload and what may differ from it.

    The tolerance of each tensor is twice the largest error of the eager pair in fp32, plus one rounding of
    the largest value to the tensor's dtype.
    """

    def __init__(self, data: Data) -> None:
        self._exact = passes.forward_backward(eager_pair, data.to(torch.float64))()
        in_fp32 = passes.forward_backward(eager_pair, data.to(torch.float32))()
        self._dtypes = (data.input.dtype, data.input.dtype, data.theta.dtype)
        self._tolerances = [
            2 * _error(single, exact) + torch.finfo(dtype).eps / 2 * exact.abs().max().item()
            for single, exact, dtype in zip(in_fp32, self._exact, self._dtypes, strict=True)
        ]

    def check(self, tensors: Sequence[Tensor]) -> Verdict:
        """Judge the output alone, or output, grad_input and grad_theta."""
        if len(tensors) not in (1, len(_NAMES)):
            raise ValueError(f"expected 1 or {len(_NAMES)} tensors, got {len(tensors)}")
        verdicts = [self._check_one(i, tensor) for i, tensor in enumerate(tensors)]
        failed = [verdict for verdict in verdicts if not verdict.passed]
        return failed[0] if failed else max(verdicts, key=lambda v: v.error / v.tolerance)

    def _check_one(self, index: int, tensor: Tensor) -> Verdict:
        name, exact, dtype = _NAMES[index], self._exact[index], self._dtypes[index]
        tolerance = self._tolerances[index]
        if tensor.shape != exact.shape or tensor.dtype != dtype:
            expected = f"expected {tuple(exact.shape)} {dtype}"
            got = f"{name} is {tuple(tensor.shape)} {tensor.dtype}"
            return Verdict(False, name, float("nan"), tolerance, f"{got}, {expected}")
        error = _error(tensor, exact)
        # Written so that a NaN fails.
        if error <= tolerance:
            return Verdict(True, name, error, tolerance)
        return Verdict(
            False, name, error, tolerance, f"{name} is off by {error:.2g}, allowed {tolerance:.2g}"
        )


def _error(tensor: Tensor, exact: Tensor) -> float:
    return (tensor.double() - exact).abs().max().item()
