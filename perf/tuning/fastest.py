"""The fastest configuration of one bucket: each is checked, timed briefly, and the best few timed again."""

from __future__ import annotations

import contextlib
import math
import os
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
"""Milliseconds of each of several launches with a configuration, repeated for so many milliseconds."""
WRONG, LOST = "wrong", "lost the GPU"


@dataclass(frozen=True)
class Effort:
    """How thoroughly to search a bucket."""

    first_ms: int
    """Of timing each configuration, to drop the hopeless."""
    rounds: int
    round_ms: int
    """Of timing the default and the best few in turns, so that a drift of the clock meets all of them."""
    finalists: int
    configs: int
    """At most so many of a bucket's space."""
    most_seconds: float = math.inf
    """Leave out what takes longer than that to compile, but for the default."""

    def configs_of(self, bucket: Bucket) -> list[Config]:
        """What to try of a bucket's space, the default first."""
        default, *others = tuning.candidates(bucket, self.configs)
        return [default, *(c for c in others if seconds_of(bucket, c) <= self.most_seconds)]


FULL = Effort(first_ms=10, rounds=5, round_ms=20, finalists=5, configs=16)
QUICK = Effort(first_ms=5, rounds=3, round_ms=10, finalists=2, configs=4)


@dataclass
class Result:
    """What became of one configuration."""

    config: Config
    is_default: bool
    status: str = OK
    """ok, or why it has no time."""
    quantiles: tuple[float, float, float] | None = None
    """Of a launch, 20, 50 and 80 %, in ms; of the second timing for those that had one."""
    is_best: bool = False


def seconds_of(bucket: Bucket, config: Config) -> float:
    """About how long it takes to try a configuration, nearly all to compile it: one core, for sm_90.

    The longest are gathers that list output pixels, which unroll their loads for a block of channels: those
    of `policy.space` took up to 4.5 s of an AMD EPYC, other kernels 0.4 to 3 s.
    """
    return 4.5 if bucket.is_gather() and config["STEPS_C"] > 1 else 1.5


def expected_seconds(bucket: Bucket, configs: Sequence[Config]) -> list[float]:
    """About how long each configuration of a bucket takes: the default alone, the others on all cores."""
    first, *others = (seconds_of(bucket, config) for config in configs)
    on_one = sum(others)
    share = min(on_one / (os.cpu_count() or 1), autotuner.SECONDS) / on_one if others else 1.0
    return [first, *(share * seconds for seconds in others)]


def named(config: Config) -> str:
    """A configuration in a line."""
    return " ".join(f"{key}={value}" for key, value in config.items())


def time_on_gpu(launch: Launch, config: Config, ms: int) -> list[float]:
    """CUDA events around each launch, the L2 cache flushed before it."""
    from triton.testing import do_bench

    return do_bench(partial(launch, config), warmup=max(ms // 4, 1), rep=ms, return_mode="all")


@dataclass(frozen=True)
class Gpu:
    """What is tuned, the facts about it, and how to use it."""

    device: torch.device
    facts: Mapping[str, object]
    timer: Timer = time_on_gpu
    is_alive: Callable[[torch.device], bool] = stopwatch.is_alive


def search(
    bucket: Bucket, run: Run, gpu: Gpu, effort: Effort, step: Callable[[], object] = lambda: None
) -> list[Result]:
    """Try the configurations of a bucket that ``run`` launches; calls ``step`` after each.

    After the default the others are compiled side by side; what takes over 30 seconds is left out. The result
    of ``run`` with any of them must be that with the default, but for rounding; its timing is that of the
    bucket's kernel alone. The best is the default unless another is clearly faster.

    Raises:
        Exception: the call does not run with the default, or the GPU does not live on.
    """
    configs = effort.configs_of(bucket)
    results: list[Result] = []
    expected = launch = None
    errors: list[Exception | None] = [None] * len(configs)
    for i, config in enumerate(configs):
        result = Result(config, is_default=i == 0)
        results.append(result)
        try:
            if errors[i] is not None:
                raise errors[i]
            tensors, launched = _with(bucket, config, run)
            if i == 0:
                expected, launch = tensors, launched
                errors[1:] = autotuner.compile_ahead(configs[1:], launch, autotuner.SECONDS)
            wrong = difference(tensors, expected)
            if wrong:
                result.status = f"{WRONG}: {wrong}"
            else:
                result.quantiles = stopwatch.quantiles(gpu.timer(launch, config, effort.first_ms))
        except Exception as error:  # it does not compile, or needs more than the GPU has
            result.status = one_line(error)
            if launch is None:
                raise
            if not gpu.is_alive(gpu.device):
                raise RuntimeError(f"with {named(config)}: {result.status}") from error
        step()
    timed = [result for result in results if result.quantiles]
    timed.sort(key=lambda result: (not result.is_default, result.quantiles[1]))
    finalists = timed[: 1 + effort.finalists]
    _time_in_turns(finalists, launch, gpu.timer, effort)
    best = autotuner.fastest(configs[0], [(result.config, result.quantiles) for result in finalists])
    for result in finalists:
        result.is_best = result.config == best
    return results


def _with(bucket: Bucket, config: Config, run: Run) -> tuple[Sequence[Tensor], Launch]:
    """What a call returns if its launch of a bucket has a configuration, and that launch."""
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


def _time_in_turns(results: list[Result], launch: Launch, timer: Timer, effort: Effort) -> None:
    samples = [[] for _ in results]
    for _ in range(effort.rounds):
        for result, mine in zip(results, samples, strict=True):
            mine += timer(launch, result.config, effort.round_ms)
    for result, mine in zip(results, samples, strict=True):
        result.quantiles = stopwatch.quantiles(mine)


def difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> str:
    """How results differ by more than rounding, in words; nothing if they do not.

    Sums over an image are split differently by each configuration: 1e-4 of the largest value (1e-10 in fp64),
    and a step of the result's dtype. A pixel left out or done twice is far beyond that.
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
    """Fresh memory is NaN, so that a pixel that is not written differs from one that was right before."""
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
