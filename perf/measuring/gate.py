"""The correctness gate: no speed is reported for a wrong result."""

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
    reason: str


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

        self._expected: dict[str, tuple[Tensor, torch.dtype, float]] = {}
        in_fp32 = result(torch.float32)
        for tensor, exact in result(torch.float64).items():
            dtype = data.theta.dtype if tensor == "grad_theta" else data.input.dtype
            is_float = dtype.is_floating_point
            step = torch.finfo(dtype).eps / 2 * exact.abs().max().item() if is_float else 0.5
            self._expected[tensor] = exact, dtype, 2 * _error(in_fp32[tensor], exact) + step

    def check(self, tensors: Mapping[str, Tensor]) -> Verdict:
        """Judge tensors by name: output, grad_input, grad_theta."""
        verdicts = [self._check_one(name, tensor) for name, tensor in tensors.items()]
        failed = [verdict for verdict in verdicts if not verdict.passed]
        return failed[0] if failed else max(verdicts, key=lambda v: v.error / v.tolerance)

    def _check_one(self, name: str, tensor: Tensor) -> Verdict:
        exact, dtype, tolerance = self._expected[name]
        if tensor.shape != exact.shape or tensor.dtype != dtype:
            got, expected = (f"{tuple(t.shape)} {d}" for t, d in ((tensor, tensor.dtype), (exact, dtype)))
            return Verdict(False, name, float("nan"), tolerance, f"{name} is {got}, expected {expected}")
        error = _error(tensor, exact)
        passed = error <= tolerance  # so that a NaN is wrong
        reason = "" if passed else f"{name} is off by {error:.2g}, allowed {tolerance:.2g}"
        return Verdict(passed, name, error, tolerance, reason)


def _error(tensor: Tensor, exact: Tensor) -> float:
    return (tensor.double() - exact).abs().max().item()
