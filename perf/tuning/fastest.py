"""The fastest configuration of one bucket: each is checked, timed briefly, and the best few timed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from perf.files import OK
from perf.measuring import stopwatch
from perf.measuring.passes import Run
from perf.measuring.suite import one_line
from stn_triton import autotuner, policy, tuning
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config, Launch

Timer = Callable[[Launch, Config, int], list[float]]
"""Returns the milliseconds of each of several launches with a configuration, repeated for so many ms."""
WRONG, LOST = "wrong", "lost the GPU"
"""Beginnings of a status: the result differs from the default's; no more can run in this process."""


@dataclass(frozen=True)
class Effort:
    """How thoroughly to search a bucket."""

    first_ms: int
    """Time for each configuration in the first round, which finds the finalists."""
    rounds: int
    round_ms: int
    """Time for each finalist in each later round. They take turns, so that clock drift meets all of them."""
    finalists: int
    """Number of configurations besides the default that are timed again."""
    configs: int
    """Largest number of configurations to try."""

    def configs_of(self, bucket: Bucket) -> list[Config]:
        """The configurations to try for a bucket, the default first."""
        return tuning.candidates(bucket, self.configs)


FULL = Effort(first_ms=10, rounds=5, round_ms=20, finalists=5, configs=16)
QUICK = Effort(first_ms=5, rounds=3, round_ms=10, finalists=2, configs=4)


@dataclass
class Result:
    """The outcome for one configuration."""

    config: Config
    is_default: bool
    status: str = OK
    """ok, or why it has no time."""
    quantiles: tuple[float, float, float] | None = None
    """20, 50 and 80 % quantiles of a launch in ms; of the later rounds for finalists."""
    is_best: bool = False


def named(config: Config) -> str:
    """A configuration in a line."""
    return " ".join(f"{key}={value}" for key, value in config.items())


def time_on_gpu(launch: Launch, config: Config, ms: int) -> list[float]:
    """Time launches by CUDA events, with the L2 cache flushed before each."""
    from triton.testing import do_bench

    return do_bench(partial(launch, config), warmup=max(ms // 4, 1), rep=ms, return_mode="all")


@dataclass(frozen=True)
class Gpu:
    """The GPU to tune, the facts about it, and how to use it."""

    device: torch.device
    facts: Mapping[str, object]
    timer: Timer = time_on_gpu
    is_alive: Callable[[torch.device], bool] = stopwatch.is_alive


def search(
    bucket: Bucket, run: Run, gpu: Gpu, effort: Effort, step: Callable[[], object] = lambda: None
) -> list[Result]:
    """Try the configurations of a bucket that ``run`` launches; calls ``step`` after each.

    After the default has run, the others are compiled side by side; those that take over 30 seconds are left
    out. With each of them the result of ``run`` must equal the result with the default, except for rounding.
    Only the bucket's kernel is timed. The default is the best unless another is clearly faster.

    Raises:
        Exception: the call does not run with the default, or the GPU no longer works.
    """
    configs = effort.configs_of(bucket)
    results = [Result(config, is_default=config is configs[0]) for config in configs]
    expected = launch = None
    errors: list[Exception | None] = [None] * len(configs)
    for i, result in enumerate(results):
        try:
            if errors[i] is not None:
                raise errors[i]
            tensors, launched = _with(bucket, result.config, run)
            if i == 0:
                expected, launch = tensors, launched
                errors[1:] = autotuner.compile_ahead(configs[1:], launch, autotuner.SECONDS)
            if wrong := difference(tensors, expected):
                result.status = f"{WRONG}: {wrong}"
            else:
                result.quantiles = stopwatch.quantiles(gpu.timer(launch, result.config, effort.first_ms))
        except Exception as error:  # it does not compile, or needs more than the GPU has
            result.status = one_line(error)
            if launch is None:
                raise
            if not gpu.is_alive(gpu.device):
                raise RuntimeError(f"with {named(result.config)}: {result.status}") from error
        step()
    timed = [result for result in results if result.quantiles]
    timed.sort(key=lambda result: (not result.is_default, result.quantiles[1]))
    finalists = timed[: 1 + effort.finalists]
    samples: list[list[float]] = [[] for _ in finalists]
    for _ in range(effort.rounds):
        for result, mine in zip(finalists, samples, strict=True):
            mine += gpu.timer(launch, result.config, effort.round_ms)
    for result, mine in zip(finalists, samples, strict=True):
        result.quantiles = stopwatch.quantiles(mine)
    best = autotuner.fastest(configs[0], [(result.config, result.quantiles) for result in finalists])
    for result in finalists:
        result.is_best = result.config == best
    return results


def _with(bucket: Bucket, config: Config, run: Run) -> tuple[Sequence[Tensor], Launch]:
    """Make a call with a configuration for a bucket; returns its results, and the launch of the bucket."""
    launches: list[Launch] = []

    def choose(other: Bucket, launch: Launch) -> Config:
        if other != bucket:
            return policy.default(other)
        launches.append(launch)
        return config

    with tuning.choosing(choose), _poisoned():
        tensors = run()
    if not launches:
        raise ValueError(f"the call launches no {bucket.name()}")
    return tensors, launches[0]


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """Describe how results differ by more than rounding; empty if they do not.

    Each configuration splits the sums over an image differently. Allowed are 1e-4 of the largest value (1e-10
    in fp64) and a step of the result's dtype; a pixel left out or done twice is far beyond that.
    """
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        if (a.shape, a.dtype) != (e.shape, e.dtype):
            return f"result {i} is {tuple(a.shape)} {a.dtype}, expected {tuple(e.shape)} {e.dtype}"
        if torch.equal(a, e):
            continue
        wide = torch.promote_types(e.dtype, torch.float32)
        error = (a.to(wide) - e.to(wide)).abs().max().item()
        share = 1e-10 if wide == torch.float64 else 1e-4
        step = torch.finfo(e.dtype).eps if e.is_floating_point() else 0
        allowed = (share + step) * e.to(wide).abs().max().item() + (not e.is_floating_point())
        if not error <= allowed:  # so that a NaN is wrong
            return f"result {i} is off by {error:.2g}, allowed {allowed:.2g}"
    return ""


@contextlib.contextmanager
def _poisoned() -> Iterator[None]:
    """Within, fresh memory is NaN, so that a pixel that is not written shows."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
