"""The charts of a table: speed-up, roofline, scaling, memory, and the landscape of block sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from perf.charts import landscape, scaling, speed_up, style
from perf.charts.measures import MEMORY, ROOFLINE, SPEED, Measure
from perf.files import Run, kind, normal, runs, timed

MAIN = ("forward", "forward+backward")
PARTS = ("backward", "theta", "input")
_NOISE = "The noise of the operator's time is a whisker, each map a tick."


@dataclass(frozen=True)
class Chart:
    """A chart of one run; without its rows it has no figure and says what is missing."""

    name: str
    """For file names."""
    caption: str
    """What it shows and how to read it, in words."""
    figure: Figure | None
    missing: str


@dataclass(frozen=True)
class _Kind:
    """One of the charts that a run may have."""

    name: str
    caption: str
    has_rows: Callable[[Run], bool]
    draw: Callable[[Run], Figure]
    missing: str


def _per_workload(measure: Measure, passes: tuple[str, ...], name: str, caption: str, missing: str) -> _Kind:
    return _Kind(
        name,
        f"{caption} Bars: the operator; markers: the others. {_NOISE if measure.is_of_time else ''}".strip(),
        partial(speed_up.has_rows, measure=measure, passes=passes),
        partial(speed_up.draw, measure=measure, passes=passes),
        f"no row of {', '.join(passes)} has {missing}",
    )


_SPEED_UP = "Speed-up over the eager pair per workload; losses are hatched or filled, left of the line."
_FRACTION = "Fraction of the roofline per workload: the model's bytes per second over the copy bandwidth."
_NO_ROOFLINE = "a fraction of the roofline, which needs the copy bandwidth of the same run"
KINDS = {
    "speed": (
        _per_workload(SPEED, MAIN, "speed", _SPEED_UP, "a speed-up"),
        _per_workload(SPEED, PARTS, "speed-backward", _SPEED_UP, "a speed-up"),
        _per_workload(ROOFLINE, MAIN, "roofline", _FRACTION, _NO_ROOFLINE),
        _per_workload(ROOFLINE, PARTS, "roofline-backward", _FRACTION, _NO_ROOFLINE),
        _Kind(
            "scaling",
            "Time over size, batch and channels, with the 20 to 80 % band; dotted the time that the byte "
            "model allows.",
            lambda run: scaling.rows_of(run)["pass"].isin(MAIN).any(),
            partial(scaling.draw, passes=MAIN),
            "no workloads called size-N, batch-N or channels-N",
        ),
        _per_workload(
            MEMORY,
            MAIN,
            "memory",
            "Peak memory of a call besides its arguments, as a share of the eager pair's.",
            "peak memory beside the eager pair's; it is measured on GPUs",
        ),
    ),
    "tuning": (
        _Kind(
            "tuning",
            "Time of a kernel over its block sizes, relative to the fastest, for a few buckets.",
            lambda run: bool(landscape.choose(run.rows)),
            landscape.draw,
            "no configuration has a time",
        ),
    ),
}


def count(table: pd.DataFrame) -> int:
    """How many charts ``draw_all`` yields."""
    table = normal(table)
    return len(runs(table)) * len(KINDS[kind(table)])


def draw_all(table: pd.DataFrame) -> Iterator[tuple[Run, Chart]]:
    """Each chart of each run; runs are not mixed. With several, each has its run in its name.

    Raises:
        UsageError: the table is none of results.
    """
    table = normal(table)
    found = runs(table)
    for run in found:
        has_time = kind(table) == "tuning" or timed(run.rows).any()
        for one in KINDS[kind(table)]:
            name = one.name if len(found) == 1 else f"{one.name}-{run.name}"
            with mpl.rc_context(style.RC):
                figure = one.draw(run) if has_time and one.has_rows(run) else None
            missing = one.missing if has_time else "nothing was timed"
            yield run, Chart(name, one.caption, figure, "" if figure else missing)
