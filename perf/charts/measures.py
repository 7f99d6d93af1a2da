"""What the charts with a line per workload show: speed-up, fraction of the roofline, peak memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from perf.charts import style
from perf.files import BELIEVABLE, EAGER, KEY, OK, geometric_mean


@dataclass(frozen=True)
class Measure:
    """What a chart shows of each row, and how."""

    title: str
    values: Callable[[pd.DataFrame], pd.Series]
    """Of each row; only those above 0 are drawn."""
    xlabel: str
    text: Callable[[float], str]
    detail: str
    """The column of the amount itself, and how it is written."""
    detail_text: Callable[[float], str]
    base: float
    """Where bars start: 1 for ratios, whose scale is logarithmic; 0 for shares."""
    mark_text: str
    """At the line that stands for 1."""
    is_of_time: bool
    """Falls as the time grows, so that the quantiles of the time are its noise."""
    is_loss: Callable[[float], bool]
    loss: str | None
    """What a loss is called; None: there are none."""
    eager_is_one: bool
    """The eager pair is the line, and no marker."""
    note: Callable[[pd.DataFrame], str]
    missing: str
    """Said of a row that is ok and has no value."""


@dataclass(frozen=True)
class Cell:
    """One provider on one workload and pass, over the maps."""

    mean: float
    noise: tuple[float, float]
    by_map: list[float]
    amount: float
    problems: list[str]
    """Such as "FAILED on zoom-2", "unavailable"."""


def values_of(rows: pd.DataFrame, measure: Measure) -> pd.Series:
    """The measure of each row, NaN where it has none that could be drawn."""
    values = measure.values(rows).where(rows["status"] == OK)
    return values.where(values.between(*BELIEVABLE))


def cell_of(rows: pd.DataFrame, measure: Measure) -> Cell:
    """The mean over the maps of one provider's rows, with their ``value``, of one workload and pass."""
    valid, without = rows[rows["value"].notna()], rows[rows["value"].isna()]
    values = valid["value"]
    problems = []
    for status, part in without.groupby("status", sort=False):
        what = measure.missing if status == OK else style.shorten(status, 20)
        maps = list(dict.fromkeys(style.shorten(name, 16) for name in part["map"]))
        maps = ", ".join(maps) if len(maps) < 3 else f"{len(maps)} maps"
        problems.append(f"{what} on {maps}" if len(valid) else what)
    noise = (float("nan"),) * 2
    if measure.is_of_time:
        # A quantile that a file lacks is the median: no noise is known then.
        slow, fast = (
            values * (valid["median_ms"] / valid[name].fillna(valid["median_ms"])).clip(0.01, 100)
            for name in ("q80_ms", "q20_ms")
        )
        noise = geometric_mean(slow), geometric_mean(fast)
    return Cell(
        geometric_mean(values), noise, values.tolist(), geometric_mean(valid[measure.detail]), problems
    )


def percent(value: float) -> str:
    """A share in percent, two digits of small ones."""
    return f"{100 * value:.2g} %" if 0 < value < 0.1 else f"{100 * value:.0f} %"


def _times(value: float) -> str:
    return f"{value:.2f}x" if value < 100 else f"{value:.0f}x"


def _share_of_eager(rows: pd.DataFrame) -> pd.Series:
    """Peak memory as a share of the eager pair's for the same."""
    cell = [name for name in KEY if name != "provider"]
    eager = rows[(rows["provider"] == EAGER) & (rows["status"] == OK)].set_index(cell)["peak_mib"]
    wanted = pd.MultiIndex.from_frame(rows[cell])
    return rows["peak_mib"] / eager.reindex(wanted).to_numpy()


def _copy_bandwidth(rows: pd.DataFrame) -> str:
    """What 100 % is."""
    measured = rows["copy_gb_per_s"].dropna()
    text = f"{measured.median():.4g} GB/s, measured in the same run" if len(measured) else "not in the file"
    return (
        f"Copy bandwidth: {text}. The byte model counts each unique pixel once: at 100 % a call takes no "
        "longer than a copy of those bytes."
    )


SPEED = Measure(
    title="Affine sampling: speed-up over F.affine_grid + F.grid_sample",
    values=lambda rows: rows["speedup"],
    xlabel="speed-up",
    text=_times,
    detail="median_ms",
    detail_text=style.duration,
    base=1,
    mark_text="eager pair",
    is_of_time=True,
    is_loss=lambda value: value < 1,
    loss="slower than the eager pair",
    eager_is_one=True,
    note=lambda rows: "Only right results have a time.",
    missing="no eager time",
)
ROOFLINE = Measure(
    title="Affine sampling: fraction of the roofline",
    values=lambda rows: rows["roofline"],
    xlabel="share of the copy bandwidth",
    text=percent,
    detail="gb_per_s",
    detail_text=lambda value: f"{value:.0f} GB/s" if value >= 100 else f"{value:.3g} GB/s",
    base=0,
    mark_text="100 %",
    is_of_time=True,
    is_loss=lambda value: False,
    loss=None,
    eager_is_one=False,
    note=_copy_bandwidth,
    missing="no byte model",
)
MEMORY = Measure(
    title="Affine sampling: peak memory besides the arguments",
    values=_share_of_eager,
    xlabel="share of the eager pair's",
    text=percent,
    detail="peak_mib",
    detail_text=lambda value: f"{value:.3g} MiB" if value < 1000 else f"{value / 1024:.3g} GiB",
    base=0,
    mark_text="eager pair",
    is_of_time=False,
    is_loss=lambda value: value > 1,
    loss="more than the eager pair",
    eager_is_one=True,
    note=lambda rows: "Bytes that a call allocates at most, its result included.",
    missing="nothing to compare with",
)
