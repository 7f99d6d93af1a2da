"""Errors over the size of the image, on logarithmic axes."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from perf import setting
from perf.accuracy.error_tables import SHOWN
from perf.accuracy.errors import QUANTITIES
from perf.accuracy.implementations import KERNELS, LABELS, PAIR, REFERENCE
from perf.charts import style
from perf.files import EAGER, FACTS
from perf.measuring.maps import RANDOM

_LOOKS = {
    (KERNELS, False): style.Look(style.WIN, "o", "-"),
    (REFERENCE, False): style.Look("#4fa3e0", "v", (0, (6, 1.5))),
    (PAIR, False): style.look(EAGER),
    (PAIR, True): style.Look(style.LOSS, "^", "-."),
}
_NOTES = (
    "RMS error against fp64: of the output in units of the largest image value, of grad_input of the largest "
    "gradient of the output, of grad_theta of its norm. Eight maps of up to 30 degrees; images of waves."
)


def draw(table: pd.DataFrame) -> Figure:
    """A panel per dtype and quantity; what has no error has no marker."""
    with mpl.rc_context(style.RC):
        return _draw(table)


def _draw(table: pd.DataFrame) -> Figure:
    table = table[table["map"] == RANDOM]
    dtypes = list(table["dtype"].unique())
    facts = {name: table[name].iloc[0] for name in FACTS}
    notes = [_NOTES, *(f"No marker: {reason}." for reason in table["reason"].unique() if reason)]
    lines = [part for note in notes for part in style.wrapped(note)]
    shown = {key: look for key, look in _LOOKS.items() if key[0] in set(table["provider"])}
    handles = [
        Line2D([], [], label=f"{_label(name, facts)}{', under autocast' if low else ''}", **_options(look))
        for (name, low), look in shown.items()
    ]
    made, _ = style.figure(
        "Affine sampling: error over size",
        [setting.summary(facts), *lines],
        2.3 * len(dtypes) + 0.3,
        handles,
    )
    grid = made.subplots(len(dtypes), len(QUANTITIES), sharex=True, sharey=True, squeeze=False)
    for line, dtype in zip(grid, dtypes, strict=True):
        for ax, quantity in zip(line, QUANTITIES, strict=True):
            _panel(ax, table[(table["dtype"] == dtype) & (table["quantity"] == quantity)], dtype, shown)
            if ax in grid[0]:
                ax.set_title(quantity, fontsize=style.FONT, loc="left")
            if ax in grid[-1]:
                ax.set_xlabel("width of the images (log scale)", fontsize=style.FONT - 1)
        line[0].set_ylabel(
            f"{dtype}, autocast {SHOWN[dtype]}\nRMS error (log scale)", fontsize=style.FONT - 1
        )
    return made


def _panel(ax: Axes, rows: pd.DataFrame, dtype: str, shown: dict[tuple[str, bool], style.Look]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks(sorted(set(rows["size"])))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_locator(LogLocator(numticks=12))
    ax.yaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0e}"))
    ax.grid()
    ax.tick_params(labelsize=style.FONT - 1)
    for (name, low), look in reversed(shown.items()):  # the operator on top
        own = rows[(rows["provider"] == name) & (rows["autocast"] == (SHOWN[dtype] if low else ""))]
        ax.plot(own["size"], own["rms"], **_options(look))


def _options(look: style.Look) -> dict[str, object]:
    is_ours = look.color == style.WIN
    widths = {"linewidth": 2.2, "markersize": 5} if is_ours else {"linewidth": 1.3, "markersize": 6}
    if look == _LOOKS[REFERENCE, False]:  # which the kernels' hides in 16 bits
        widths["markersize"] = 10
    face = look.color if is_ours else "none"
    return {"color": look.color, "marker": look.marker, "ls": look.line, "markerfacecolor": face, **widths}


def _label(name: str, facts: dict[str, str]) -> str:
    if name == KERNELS and facts["device_type"] == "cpu":
        return "the operator's kernels, interpreted"
    return {PAIR: "eager pair", REFERENCE: "the operator's CPU path"}.get(
        name, f"the operator's {LABELS[name]}"
    )
