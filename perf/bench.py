"""The measurement itself: every workload, pass and provider, checked first and then timed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from perf import measure, workloads
from perf.gate import Gate
from perf.passes import PASSES, Run
from perf.providers import EAGER, Provider
from perf.results import FAILED, OK, UNAVAILABLE
from perf.workloads import Workload

Row = dict[str, Any]


def count_steps(chosen_workloads: Sequence[Workload], providers: Sequence[Provider]) -> int:
    """How often ``run`` moves the progress bar: for a check of each provider, then for the timing."""
    return len(chosen_workloads) * len(PASSES) * (len(providers) + 1)


def run(
    chosen_workloads: Sequence[Workload],
    providers: Sequence[Provider],
    device: torch.device,
    quick: bool,
    progress: tqdm,
) -> list[Row]:
    """Measure, and return a row per workload, pass and provider, with or without a time."""
    with warnings.catch_warnings():
        # The compiler's advice to its developers; errors still arrive as exceptions.
        warnings.simplefilter("ignore")
        return [
            row
            for workload in chosen_workloads
            for row in _run_workload(workload, providers, device, quick, progress)
        ]


def _run_workload(
    workload: Workload, providers: Sequence[Provider], device: torch.device, quick: bool, progress: tqdm
) -> Iterator[Row]:
    progress.set_description_str(f"{workload.name}: reference in fp64")
    data = workloads.make(workload, device, quick)
    gate = Gate(data)
    for pass_name in PASSES:
        title = f"{workload.name} {pass_name}"
        rows: list[Row] = []
        runs: dict[str, Run] = {}
        for provider in providers:
            progress.set_description_str(f"{title}: {provider.preparing} {provider.label}")
            row = {
                "workload": workload.name,
                "shape": "x".join(map(str, data.input.shape)),
                "dtype": str(workload.dtype).removeprefix("torch."),
                "layout": workload.layout,
                "pass": pass_name,
                "provider": provider.name,
            }
            try:
                runs[provider.name] = PASSES[pass_name](provider.make(), data)
                row |= _judge(gate, runs[provider.name])
            except Exception as error:  # whatever it is, it belongs in the report
                status = UNAVAILABLE if provider.may_be_unavailable else FAILED
                row |= {"status": status, "reason": one_line(error)}
            rows.append(row)
            progress.update()
        progress.set_description_str(f"{title}: timing")
        _time(rows, runs, device, measure.QUICK if quick else measure.FULL)
        progress.update()
        yield from rows


def one_line(error: BaseException, limit: int = 300) -> str:
    """What went wrong, in one line."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    text = text.partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice to the compiler's developers
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _judge(gate: Gate, run: Run) -> Row:
    verdict = gate.check(run())
    return {
        "status": OK if verdict.passed else FAILED,
        "reason": verdict.reason,
        "checked": verdict.tensor,
        "error": verdict.error,
        "tolerance": verdict.tolerance,
    }


def _time(rows: Sequence[Row], runs: dict[str, Run], device: torch.device, effort: measure.Effort) -> None:
    """Add quantiles to the rows that passed, and their speed-up over the eager pair where it has a time."""
    passed = {row["provider"]: row for row in rows if row["status"] == OK}
    samples = measure.sample({name: runs[name] for name in passed}, device, effort)
    for name, row in passed.items():
        row["q20_ms"], row["median_ms"], row["q80_ms"] = measure.quantiles(samples[name])
        row["samples"] = len(samples[name])
        if device.type == "cuda":
            row["peak_mib"] = _peak_memory(runs[name]) / 2**20
    if EAGER in passed:
        for row in passed.values():
            row["speedup"] = passed[EAGER]["median_ms"] / row["median_ms"]


def _peak_memory(run: Run) -> int:
    """Bytes that a call allocates at most, besides its arguments."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
