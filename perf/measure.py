"""Timing: samples of several functions, taken in turns so that a drift of the machine meets all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

Samples = dict[str, list[float]]


@dataclass(frozen=True)
class Effort:
    """How long to measure one pass of one workload."""

    seconds: float
    min_rounds: int
    gpu_rounds: int
    gpu_ms_per_round: int


FULL = Effort(seconds=2.0, min_rounds=10, gpu_rounds=5, gpu_ms_per_round=40)
QUICK = Effort(seconds=0.1, min_rounds=5, gpu_rounds=2, gpu_ms_per_round=10)


def sample(functions: Mapping[str, Callable[[], object]], device: torch.device, effort: Effort) -> Samples:
    """Milliseconds of each call of each function, which must have been called once before."""
    if device.type == "cpu":
        return _sample_cpu(functions, effort)
    return _sample_gpu(functions, effort)


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles."""
    low, median, high = np.quantile(samples, (0.2, 0.5, 0.8))
    return float(low), float(median), float(high)


def _sample_cpu(functions: Mapping[str, Callable[[], object]], effort: Effort) -> Samples:
    samples: Samples = {name: [] for name in functions}
    # A new order each round: what one function leaves in the caches then meets all the others.
    shuffled = random.Random(0)
    order = list(functions)
    end = time.perf_counter() + effort.seconds
    rounds = 0
    while order and (rounds < effort.min_rounds or time.perf_counter() < end):
        shuffled.shuffle(order)
        for name in order:
            start = time.perf_counter()
            functions[name]()
            samples[name].append((time.perf_counter() - start) * 1e3)
        rounds += 1
    return samples


def _sample_gpu(functions: Mapping[str, Callable[[], object]], effort: Effort) -> Samples:
    """CUDA events around each call, with the L2 cache flushed before it.

    The flush also lets the host run ahead: its time counts only where it is longer than flush and kernels.
    """
    from triton.testing import do_bench

    samples: Samples = {name: [] for name in functions}
    for _ in range(effort.gpu_rounds):
        for name, function in functions.items():
            warmup = effort.gpu_ms_per_round // 2
            samples[name] += do_bench(function, warmup=warmup, rep=effort.gpu_ms_per_round, return_mode="all")
    return samples
