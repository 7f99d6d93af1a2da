"""The fastest configuration of one bucket: each is checked, timed briefly, and the best few timed again."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from perf.files import FAILED, OK, Row
from perf.measuring import stopwatch
from perf.measuring.passes import Run
from perf.measuring.suite import one_line
from perf.tuning import launches
from stn_triton import autotuner, policy
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config, Launch

TIMES = ("q20_ms", "median_ms", "q80_ms")
NUMBERS = (*TIMES, "gain")
FIRST_MS = 10  # for each configuration in the first round, which finds the finalists
ROUNDS, ROUND_MS = 5, 20  # later rounds, and the time for each finalist; in turns, because clocks drift
FINALISTS = 5  # configurations besides the default that are timed again


def config_of(row: Mapping[str, Any]) -> Config:
    """The block sizes of a row."""
    return {key: row[key] for key in policy.CONFIG_KEYS}


def named(config: Mapping[str, Any]) -> str:
    """The block sizes of a configuration, or of a row, in a line."""
    return " ".join(f"{key}={value}" for key, value in config_of(config).items())


def row_of(config: Config, is_default: bool, status: str = OK) -> Row:
    """A row of a configuration that has no times."""
    numbers = dict.fromkeys(NUMBERS, float("nan"))
    return {**config, **numbers, "is_default": is_default, "is_best": False, "status": status}


def milliseconds(launch: Launch, config: Config, ms: int) -> list[float]:
    """Time launches for so many ms by CUDA events, with the L2 cache flushed before each."""
    from triton.testing import do_bench

    return do_bench(partial(launch, config), warmup=max(ms // 4, 1), rep=ms, return_mode="all")


def search(bucket: Bucket, run: Run, configs: Sequence[Config], device: torch.device) -> list[Row]:
    """Try configurations of a bucket that ``run`` launches, the default first.

    After the default has run, the others are compiled side by side; those that take over 30 seconds are left
    out. With each of them the result of ``run`` must equal the result with the default, except for rounding.
    Only the bucket's kernel is timed. The default is the best unless another is clearly faster.

    Returns:
        A row per configuration: block sizes, quantiles of a launch in ms (those of the later rounds for
        finalists), the default's median over a finalist's, whether it is the default and the best, and the
        status: ok, or why it has no time.

    Raises:
        RuntimeError: the call does not run with the default, or the GPU no longer works.
    """
    rows = [row_of(config, is_default=config == configs[0]) for config in configs]
    expected, launch = _with(bucket, configs[0], run)
    errors = autotuner.compile_ahead(configs, launch, autotuner.SECONDS)
    for config, row, late in zip(configs, rows, errors, strict=True):
        try:
            if late is not None:
                raise late
            tensors, _ = _with(bucket, config, run)
            if wrong := difference(tensors, expected):
                row["status"] = f"{FAILED}: {wrong}"
            else:
                row |= _quantiles(milliseconds(launch, config, FIRST_MS))
        except Exception as error:  # it does not compile, or needs more than the GPU has
            row["status"] = one_line(error)
            if row["is_default"] or not stopwatch.is_alive(device):
                raise RuntimeError(f"with {named(config)}: {row['status']}") from error
    if rows[0]["status"] != OK:
        raise RuntimeError(f"with {named(rows[0])}, the default: {rows[0]['status']}")
    timed = [row for row in rows[1:] if row["status"] == OK]
    finalists = [rows[0], *sorted(timed, key=lambda row: row["median_ms"])[:FINALISTS]]
    rounds = [[milliseconds(launch, config_of(row), ROUND_MS) for row in finalists] for _ in range(ROUNDS)]
    for row, samples in zip(finalists, zip(*rounds, strict=True), strict=True):
        row |= _quantiles(list(itertools.chain(*samples)))
        row["gain"] = rows[0]["median_ms"] / row["median_ms"]
    best = autotuner.fastest(configs[0], [(config_of(row), [row[t] for t in TIMES]) for row in finalists])
    rows[configs.index(best)]["is_best"] = True
    return rows


def _quantiles(samples: list[float]) -> dict[str, float]:
    return dict(zip(TIMES, stopwatch.quantiles(samples), strict=True))


def _with(bucket: Bucket, config: Config, run: Run) -> tuple[Sequence[Tensor], Launch]:
    """Make a call with a configuration for a bucket; returns its results, and the launch of the bucket.

    PyTorch's deterministic mode fills fresh memory with NaN, so that a pixel that is not written shows. The
    library is kept from seeing this mode, because it would launch other kernels than those to tune.
    """
    hidden = mock.patch.object(torch, "are_deterministic_algorithms_enabled", return_value=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with hidden:
            tensors, found = launches.launched(run, {bucket: config})
    finally:
        torch.use_deterministic_algorithms(False)
    if bucket not in found:
        raise ValueError(f"the call launches no {bucket.name()}")
    return tensors, found[bucket]


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
