"""The measurement itself: every workload, map, pass and provider, checked first and then timed."""

from __future__ import annotations

import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from perf.files import EAGER, FAILED, OK, OPERATOR
from perf.measuring import roofline, stopwatch, workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES, Run
from perf.measuring.providers import Provider, Sampler, UnavailableError
from perf.measuring.results import SKIPPED, UNAVAILABLE, Row
from perf.measuring.workloads import Data, Workload

# Where the operator or a rival takes less than the first, the host's time may count more than the GPU's: then
# all that take less than the second are also timed as CUDA graphs.
_SMALL_MS, _GRAPH_MS = 0.2, 2.0
# A backward alone runs on the stream on which its forward was recorded, which is not the one that captures.
_GRAPH_PASSES = ("forward", "forward+backward")


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    device: torch.device
    workloads: Sequence[Workload]
    maps: Sequence[str]
    passes: Sequence[str]
    providers: Sequence[Provider]
    quick: bool
    copy_gb_per_s: float
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Providers that do not run, and why."""
    own_effort: stopwatch.Effort | None = None
    replays_below_ms: float | None = None
    """Where the fastest provider takes less, CUDA graphs are timed too; None for 0.2 ms."""

    @property
    def effort(self) -> stopwatch.Effort:
        """How long each pass is measured."""
        return self.own_effort or (stopwatch.QUICK if self.quick else stopwatch.FULL)

    def maps_of(self, workload: Workload) -> Sequence[str]:
        """The maps that a workload runs under."""
        return workloads.SWEEP_MAPS if workload.sweep else self.maps

    def passes_of(self, workload: Workload) -> list[str]:
        """The passes of a workload."""
        return [p for p in self.passes if not workload.sweep or p in workloads.SWEEP_PASSES]

    def count_rows(self) -> int:
        """How many rows it gives."""
        cells = sum(len(self.maps_of(w)) * len(self.passes_of(w)) for w in self.workloads)
        return cells * len(self.providers)


def run(plan: Plan, progress: tqdm) -> Iterator[list[Row]]:
    """Measure, and yield the rows of a workload, map and pass at a time, with or without a time."""
    with warnings.catch_warnings():
        # The compiler's advice to its developers; errors still arrive as exceptions.
        warnings.simplefilter("ignore")
        lost: list[str] = []
        for number, workload in enumerate(plan.workloads, start=1):
            if progress.disable:  # where no bar is drawn, a line now and then
                print(f"{workload.name}: workload {number} of {len(plan.workloads)}", file=sys.stderr)
            samplers = _Samplers()
            for map_name in plan.maps_of(workload):
                yield from _run_map(plan, workload, map_name, samplers, lost, progress)
                if plan.device.type == "cuda" and not lost:
                    gc.collect()  # an exception and what it was raised in refer to each other
                    torch.cuda.empty_cache()


def one_line(error: BaseException, limit: int = 300) -> str:
    """What went wrong, in one line, without the name of the user's home directory."""
    text = str(error) if isinstance(error, UnavailableError) else f"{type(error).__name__}: {error}"
    text = " ".join(text.split()).replace(str(Path.home()), "~")
    text = text.partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice to the compiler's developers
    return text if len(text) <= limit else text[: limit - 3] + "..."


class _Samplers:
    """The samplers of one workload, made when first asked for, and what is known not to work."""

    def __init__(self) -> None:
        self._made: dict[str, Sampler] = {}
        self.failed: dict[tuple[str, str], str] = {}
        """By provider and pass: what failed to compile once is not compiled again for another map."""

    def get(self, provider: Provider) -> Sampler:
        if provider.name not in self._made:
            self._made[provider.name] = provider.make()
        return self._made[provider.name]


def _run_map(
    plan: Plan, workload: Workload, map_name: str, samplers: _Samplers, lost: list[str], progress: tqdm
) -> Iterator[list[Row]]:
    """The rows of a map; why the GPU no longer computes, if so, is put into ``lost``."""
    title = f"{workload.name} {map_name}"
    progress.set_description_str(f"{title}: reference in fp64")
    case, why_not = None, workload.why_not(map_name)
    if not why_not and not lost:
        try:
            case = _Case(plan, workload, map_name)
        except torch.OutOfMemoryError as error:
            why_not = one_line(error)
    for pass_name in plan.passes_of(workload):
        rows: list[Row] = []
        runs: dict[str, list[Run]] = {}
        for provider in plan.providers:
            progress.set_description_str(f"{title} {pass_name}: {provider.preparing} {provider.label}")
            row = _blank_row(plan, workload) | {"map": map_name, "pass": pass_name, "provider": provider.name}
            reason = why_not or "".join(lost) or plan.skipped.get(provider.name)
            if case is None or reason:
                row |= {"status": SKIPPED, "reason": reason}
            else:
                verdict, runs[provider.name] = case.prepare(provider, pass_name, samplers)
                row |= verdict
                if row["status"] in (FAILED, UNAVAILABLE) and not stopwatch.is_alive(plan.device):
                    lost.append(f"the GPU was lost after {provider.label} on {title} {pass_name}")
            rows.append(row)
            progress.update()
        progress.set_description_str(f"{title} {pass_name}: timing")
        passed = {row["provider"]: row for row in rows if row["status"] == OK}
        if case is not None and passed and not lost:
            case.time(pass_name, passed, {name: runs[name] for name in passed})
        yield rows


def _blank_row(plan: Plan, workload: Workload) -> Row:
    shape = workloads.shape_of(workload, plan.quick)
    return {
        "workload": workload.name,
        "shape": "x".join(map(str, shape)),
        "size": "x".join(map(str, workload.size or shape[2:])),
        "dtype": str(workload.dtype).removeprefix("torch."),
        "layout": workload.layout,
    }


class _Case:
    """A workload under a map: its data, its references and its floor."""

    def __init__(self, plan: Plan, workload: Workload, map_name: str) -> None:
        self._plan = plan
        data = workloads.make(workload, plan.device, plan.quick, map_name)
        self._gate = functools.cache(lambda align_corners: Gate(data, align_corners))
        self._gate(False)
        touched, reached = roofline.moved_bytes(data)
        self._model = roofline.model_bytes(data, touched, reached)
        least = min(touched, data.grad_output.nbytes)
        self._copies = data.copies(stopwatch.copies_beyond_cache(least, plan.device, plan.effort))

    def prepare(self, provider: Provider, pass_name: str, samplers: _Samplers) -> tuple[Row, list[Run]]:
        """Check a provider; its verdict as a part of a row, and what to time if it passed."""
        if pass_name != "forward" and not self._copies[0].input.is_floating_point():
            return {"status": UNAVAILABLE, "reason": "uint8 images have no gradients"}, []
        key = provider.name, pass_name
        if key in samplers.failed:
            return {"status": UNAVAILABLE, "reason": samplers.failed[key]}, []
        try:
            return self._checked(provider, pass_name, samplers.get(provider))
        except Exception as error:  # whatever it is, it belongs in the report
            no_memory = isinstance(error, torch.OutOfMemoryError) and provider.name != OPERATOR
            reason = one_line(error)
            if provider.may_be_unavailable:
                samplers.failed[key] = reason
            may_fail = provider.may_be_unavailable or no_memory
            return {"status": UNAVAILABLE if may_fail else FAILED, "reason": reason}, []

    def _checked(self, provider: Provider, pass_name: str, sampler: Sampler) -> tuple[Row, list[Run]]:
        make_pass = PASSES[pass_name]
        first, restore = adapted(provider, self._copies[0])
        runs = [make_pass(sampler, first)]
        tensors = dict(zip(COMPUTED[pass_name], runs[0](), strict=True))
        if "grad_theta" in tensors:
            tensors["grad_theta"] = restore(tensors["grad_theta"])
        verdict = self._gate(provider.align_corners).check(tensors, provider.slack)
        if verdict.passed:
            runs += [make_pass(sampler, replace(c, theta=first.theta.clone())) for c in self._copies[1:]]
        return {
            "status": OK if verdict.passed else FAILED,
            "reason": verdict.reason,
            "checked": verdict.tensor,
            "error": verdict.error,
            "tolerance": verdict.tolerance,
        }, runs

    def time(self, pass_name: str, rows: Mapping[str, Row], runs: Mapping[str, list[Run]]) -> None:
        """Add times, memory and the floor to the rows that passed."""
        device, effort, moved = self._plan.device, self._plan.effort, self._model[pass_name]
        samples, no_memory = _sampled(runs, device, effort)
        for name, reason in no_memory.items():
            rows[name] |= {"status": SKIPPED, "reason": reason}
        rows = {name: rows[name] for name in samples}
        for name, row in rows.items():
            row["q20_ms"], row["median_ms"], row["q80_ms"] = stopwatch.quantiles(samples[name])
            row["samples"] = len(samples[name])
            row["model_mib"], row["gb_per_s"] = moved / 2**20, moved / row["median_ms"] / 1e6
            row["roofline"] = row["gb_per_s"] / self._plan.copy_gb_per_s
            if device.type == "cuda":
                row["peak_mib"] = stopwatch.peak_bytes(runs[name][0]) / 2**20
        for row in rows.values():
            if EAGER in rows:
                row["speedup"] = rows[EAGER]["median_ms"] / row["median_ms"]
        most = self._plan.replays_below_ms or _SMALL_MS
        is_small = min((row["median_ms"] for row in rows.values()), default=most) < most
        if device.type == "cuda" and pass_name in _GRAPH_PASSES and is_small:
            # What a library does besides may not be capturable, and a capture that fails ends all of them.
            plain = {provider.name for provider in self._plan.providers if provider.matrix is None}
            quick_runs = {
                name: runs[name]
                for name, row in rows.items()
                if row["median_ms"] < _GRAPH_MS and name in plain
            }
            medians, errors = stopwatch.replayed(quick_runs, effort)
            for name, row in rows.items():
                row["graph_ms"] = medians.get(name)
                if name in errors:
                    row["reason"] = f"no CUDA graph: {one_line(errors[name])}"


def _sampled(
    runs: Mapping[str, list[Run]], device: torch.device, effort: stopwatch.Effort
) -> tuple[stopwatch.Samples, dict[str, str]]:
    """Samples of all, or of those for which the memory suffices, and why it does not for the others."""
    try:
        return stopwatch.sample(runs, device, effort), {}
    except torch.OutOfMemoryError:
        no_memory = {}
        for name, alone in runs.items():
            try:
                stopwatch.sample({name: alone}, device, effort)
            except torch.OutOfMemoryError as error:
                no_memory[name] = one_line(error)
        rest = {name: alone for name, alone in runs.items() if name not in no_memory}
        return stopwatch.sample(rest, device, effort), no_memory


def adapted(provider: Provider, data: Data) -> tuple[Data, Callable[[Tensor], Tensor]]:
    """The data with what the provider takes for theta; and how the gradient of that becomes theta's."""
    if provider.matrix is None:
        return data, lambda grad: grad
    theta = data.theta.detach().requires_grad_()
    matrix = provider.matrix(theta, data.input.shape[2:], data.size)
    return replace(data, theta=matrix.detach()), lambda grad: torch.autograd.grad(matrix, theta, grad)[0]
