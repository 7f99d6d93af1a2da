"""The fastest configuration of one bucket: each is checked, timed briefly, and the best few timed again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from perf.files import OK
from perf.measuring import stopwatch
from perf.measuring.passes import Run
from perf.measuring.suite import one_line
from stn_triton import autotuner, policy, tuning
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config, Launch

TIMES = ("q20_ms", "median_ms", "q80_ms")
WRONG = "wrong"
"""Beginning of a status: the result differs from the default's."""
FIRST_MS = 10
"""Time for each configuration in the first round, which finds the finalists."""
ROUNDS, ROUND_MS = 5, 20
"""Later rounds, and the time for each finalist in each. In turns, so that clock drift meets all of them."""
FINALISTS = 5
"""Number of configurations besides the default that are timed again."""


def named(config: Mapping[str, object]) -> str:
    """The block sizes of a configuration, or of a row, in a line."""
    return " ".join(f"{key}={config[key]}" for key in policy.CONFIG_KEYS)


def milliseconds(launch: Launch, config: Config, ms: int) -> list[float]:
    """Time launches for so many ms by CUDA events, with the L2 cache flushed before each."""
    from triton.testing import do_bench

    return do_bench(partial(launch, config), warmup=max(ms // 4, 1), rep=ms, return_mode="all")


def search(
    bucket: Bucket,
    run: Run,
    configs: Sequence[Config],
    device: torch.device,
    step: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Try configurations of a bucket that ``run`` launches, the default first; calls ``step`` after each.

    After the default has run, the others are compiled side by side; those that take over 30 seconds are left
    out. With each of them the result of ``run`` must equal the result with the default, except for rounding.
    Only the bucket's kernel is timed. The default is the best unless another is clearly faster.

    Returns:
        A row per configuration: block sizes, quantiles of a launch in ms (those of the later rounds for
        finalists), whether it is the default and the best, and the status: ok, or why it has no time.

    Raises:
        RuntimeError: the call does not run with the default, or the GPU no longer works.
    """
    blank = {**dict.fromkeys(TIMES, float("nan")), "is_best": False, "status": OK}
    rows = [{**config, **blank, "is_default": config == configs[0]} for config in configs]
    errors: list[Exception | None] = [None] * len(configs)
    for i, (config, row) in enumerate(zip(configs, rows, strict=True)):
        try:
            if errors[i] is not None:
                raise errors[i]
            tensors, launched = _with(bucket, config, run)
            if i == 0:
                expected, launch = tensors, launched
                errors[1:] = autotuner.compile_ahead(configs[1:], launch, autotuner.SECONDS)
            if wrong := difference(tensors, expected):
                row["status"] = f"{WRONG}: {wrong}"
            else:
                row |= _quantiles(milliseconds(launch, config, FIRST_MS))
        except Exception as error:  # it does not compile, or needs more than the GPU has
            row["status"] = one_line(error)
            if i == 0 or not stopwatch.is_alive(device):
                raise RuntimeError(f"with {named(config)}: {row['status']}") from error
        step()
    timed = [i for i, row in enumerate(rows) if row["status"] == OK]
    finalists = sorted(timed, key=lambda i: (i > 0, rows[i]["median_ms"]))[: 1 + FINALISTS]
    samples: dict[int, list[float]] = {i: [] for i in finalists}
    for _ in range(ROUNDS):
        for i in finalists:
            samples[i] += milliseconds(launch, configs[i], ROUND_MS)
    for i in finalists:
        rows[i] |= _quantiles(samples[i])
    best = autotuner.fastest(configs[0], [(configs[i], [rows[i][t] for t in TIMES]) for i in finalists])
    rows[configs.index(best)]["is_best"] = True
    return rows


def _quantiles(samples: list[float]) -> dict[str, float]:
    return dict(zip(TIMES, stopwatch.quantiles(samples), strict=True))


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
        if not e.numel():  # it has no largest value
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
    """Fill fresh memory with NaN, so that a pixel that is not written shows.

    Only PyTorch's deterministic mode fills it. The library is kept from seeing this mode, because it would
    launch other kernels than those to tune.
    """
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=before):
            yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
