"""The measurement itself: every workload, map, pass and provider, checked first and then timed."""

import functools
import gc
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from perf.files import FAILED, OK, OPERATOR, UNAVAILABLE, Row
from perf.measuring import roofline, stopwatch, workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES, Run
from perf.measuring.providers import Provider, Sampler
from perf.measuring.workloads import Workload

# Providers that take less are also timed as CUDA graphs: in a call the host's time may exceed the GPU's.
_GRAPH_MS = 2.0
# A backward alone runs on the stream on which its forward was recorded, which is not the one that captures.
_GRAPH_PASSES = ("forward", "forward+backward")
MakeSampler = Callable[[], Sampler]
LOST = "the GPU was lost, the run ends here"
"""Beginning of the reason of a row after which nothing more can run in this process."""


@dataclass(frozen=True)
class Plan:
    """All that is to be measured."""

    device: torch.device
    workloads: Sequence[Workload]
    maps: Sequence[str]
    passes: Sequence[str]
    providers: Sequence[Provider]
    effort: stopwatch.Effort

    def cells_of(self, workload: Workload) -> tuple[list[str], list[str]]:
        """The maps and the passes of a workload."""
        maps = workloads.SWEEP_MAPS if workload.sweep else self.maps
        passes = [p for p in self.passes if not workload.sweep or p in workloads.SWEEP_PASSES]
        return [name for name in maps if not workload.why_not(name)], passes

    def count_rows(self) -> int:
        """How many rows it gives."""
        cells = [self.cells_of(workload) for workload in self.workloads]
        return sum(len(maps) * len(passes) for maps, passes in cells) * len(self.providers)


def run(plan: Plan, progress: tqdm) -> Iterator[list[Row]]:
    """Measure, and yield the rows of a workload, map and pass at a time, with or without a time.

    Ends early if the GPU does not compute any more, with a row that says so.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's advice to its developers
        for number, workload in enumerate(plan.workloads, start=1):
            if progress.disable:
                print(f"{workload.name}: workload {number} of {len(plan.workloads)}", file=sys.stderr)
            samplers = {provider.name: functools.cache(provider.make) for provider in plan.providers}
            maps, passes = plan.cells_of(workload)
            for map_name in maps:
                progress.set_description_str(f"{workload.name} {map_name}: reference in fp64")
                case = Case(plan, workload, map_name)
                for pass_name in passes:
                    rows = case.measure(pass_name, samplers, progress)
                    yield rows
                    if rows[-1]["reason"].startswith(LOST):
                        return
                del case  # its memory must be free before the next one is made
                _free_memory()


def one_line(error: BaseException, limit: int = 300) -> str:
    """An error in one line, without the name of the user's home directory."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).replace(str(Path.home()), "~")
    text = text.partition(" Set TORCHDYNAMO_VERBOSE")[0]  # advice to the compiler's developers
    return text if len(text) <= limit else text[: limit - 3] + "..."


class Case:
    """A workload under a map: its data, its references and its floor."""

    def __init__(self, plan: Plan, workload: Workload, map_name: str) -> None:
        self._plan, self._no_data = plan, ""
        shape, size = ("x".join(map(str, n)) for n in (workload.shape, workload.size or workload.shape[2:]))
        self._row = {"workload": workload.name, "map": map_name, "shape": shape, "size": size}
        self._row |= {"dtype": str(workload.dtype).removeprefix("torch."), "layout": workload.layout}
        try:
            data = workloads.make(workload, plan.device, map_name)
            self._gate = functools.cache(lambda align_corners: Gate(data, align_corners))
            self._gate(False)
            touched, reached = roofline.moved_bytes(data)
            self._model = roofline.model_bytes(data, touched, reached)
            least = min(touched, data.grad_output.nbytes)
            self._copies = data.copies(stopwatch.copies_beyond_cache(least, plan.device, plan.effort))
        except torch.OutOfMemoryError as error:
            self._no_data = one_line(error)

    def measure(self, pass_name: str, samplers: Mapping[str, MakeSampler], progress: tqdm) -> list[Row]:
        """Check and time a pass of all providers; return their rows, up to the one that lost the GPU."""
        rows: dict[str, Row] = {}
        runs: dict[str, list[Run]] = {}
        for provider in self._plan.providers:
            name = provider.name
            progress.set_description_str(f"{self._row['workload']} {self._row['map']} {pass_name}: {name}")
            verdict, runs[name] = self.prepare(provider, pass_name, samplers[name])
            rows[name] = {**self._row, "pass": pass_name, "provider": name, **verdict}
            if verdict["status"] != OK and not stopwatch.is_alive(self._plan.device):
                rows[name] |= {"status": FAILED, "reason": f"{LOST}: {verdict['reason']}"}
                return list(rows.values())
            progress.update()
        passed = {name: row for name, row in rows.items() if row["status"] == OK}
        if passed and self._time(pass_name, passed, runs):
            for name, row in passed.items():  # alone, so that one that is too large costs no other
                if reason := self._time(pass_name, {name: row}, runs):
                    # A rival may need too much memory, the operator may not.
                    row |= {"status": FAILED if name == OPERATOR else UNAVAILABLE, "reason": reason}
        return list(rows.values())

    def prepare(self, provider: Provider, pass_name: str, make_sampler: MakeSampler) -> tuple[Row, list[Run]]:
        """Check a provider; its verdict as a part of a row, and the runs to time if it passed."""
        if self._no_data:
            return {"status": UNAVAILABLE, "reason": self._no_data}, []
        if pass_name != "forward" and not self._copies[0].input.is_floating_point():
            return {"status": UNAVAILABLE, "reason": "uint8 images have no gradients"}, []
        try:
            make_run = functools.partial(PASSES[pass_name], make_sampler())
            runs = [make_run(self._copies[0])]
            tensors = dict(zip(COMPUTED[pass_name], runs[0](), strict=True))
            verdict = self._gate(provider.align_corners).check(tensors)
            runs += map(make_run, self._copies[1:]) if verdict.passed else ()
        except Exception as error:  # any error belongs in the report
            no_memory = isinstance(error, torch.OutOfMemoryError) and provider.name != OPERATOR
            may_fail = provider.may_be_unavailable or no_memory
            return {"status": UNAVAILABLE if may_fail else FAILED, "reason": one_line(error)}, []
        found = {"checked": verdict.tensor, "error": verdict.error, "tolerance": verdict.tolerance}
        return {"status": OK if verdict.passed else FAILED, "reason": verdict.reason, **found}, runs

    def _time(self, pass_name: str, rows: Mapping[str, Row], runs: Mapping[str, list[Run]]) -> str:
        """Time the providers of rows in turns; return why the memory does not suffice, or an empty text."""
        try:
            self._add_times(pass_name, rows, {name: runs[name] for name in rows})
            return ""
        except torch.OutOfMemoryError as error:
            reason = one_line(error)
        _free_memory()
        return reason

    def _add_times(self, pass_name: str, rows: Mapping[str, Row], runs: Mapping[str, list[Run]]) -> None:
        device, effort, moved = self._plan.device, self._plan.effort, self._model[pass_name]
        samples = stopwatch.sample(runs, device, effort)
        found: dict[str, Row] = {name: {} for name in rows}  # kept if the memory suffices to the end
        for name, row in found.items():
            row["q20_ms"], row["median_ms"], row["q80_ms"] = stopwatch.quantiles(samples[name])
            row["samples"] = len(samples[name])
            row["model_mib"], row["gb_per_s"] = moved / 2**20, moved / row["median_ms"] / 1e6
            if device.type == "cuda":
                row["peak_mib"] = stopwatch.peak_bytes(runs[name][0]) / 2**20
        short = {name: runs[name] for name, row in found.items() if row["median_ms"] < _GRAPH_MS}
        if device.type == "cuda" and pass_name in _GRAPH_PASSES and short:
            medians, errors = stopwatch.replayed(short, effort)
            for name, row in found.items():
                row["graph_ms"] = medians.get(name)
                if name in errors:
                    row["reason"] = f"no CUDA graph: {one_line(errors[name])}"
        for name, row in rows.items():
            row |= found[name]


def _free_memory() -> None:
    gc.collect()  # an exception and what it was raised in refer to each other
    torch.cuda.empty_cache()
