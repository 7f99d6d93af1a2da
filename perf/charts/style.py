"""Parts that all charts share: colours, markers, line styles, the head of a figure and its legend.

Each chart can be read without colour: losses are hatched, providers differ in marker and line style.
"""

import io
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from perf import setting
from perf.files import EAGER, OPERATOR, Run
from perf.measuring.providers import PROVIDERS

WIDTH, FONT = 12.5, 10  # width of every figure in inches, size of its letters in points
INK, MUTED, WIN, LOSS = "#111111", "#444444", "#1f4e8c", "#b3401d"
RC = mpl.rc_params_from_file(Path(__file__).with_name("charts.mplstyle"), use_default_template=False)
GRAPHS = "graphs"  # the operator in CUDA graphs, where a chart marks providers


_LOOKS = {
    OPERATOR: (WIN, "o", "-"),
    EAGER: ("#8a8a8a", "s", "--"),
    "eager-corners": ("#b58900", "^", "-."),
    "eager-broadcast": ("#5b8c5a", "D", ":"),
    "compile": ("#4fa3e0", "v", (0, (6, 1.5))),
    "scatter": ("#b84a8c", "*", (0, (4, 1, 1, 1))),
    GRAPHS: (INK, "d", ""),
}
"""Colour, marker and line style of each provider; all providers that this version does not know share one."""
_UNKNOWN = ("#555555", "X", (0, (1, 3)))
_LABELS = {name: provider.label for name, provider in PROVIDERS.items()}
_LABELS[GRAPHS] = "operator and pair in CUDA graphs"


def line(provider: str) -> dict[str, object]:
    """Options of ``Axes.plot`` for a provider, with its name for readers as the label."""
    color, marker, style = _LOOKS.get(provider, _UNKNOWN)
    options = {"color": color, "marker": marker, "linestyle": style, "markerfacecolor": "white"}
    if provider == OPERATOR:
        options |= {"linewidth": 2.2, "markerfacecolor": color, "zorder": 3}
    return options | {"label": _LABELS.get(provider, shorten(provider, 24))}


def shorten(text: str, limit: int) -> str:
    """Cut a text that is longer than the chart has room for."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def without(rows: pd.DataFrame) -> str:
    """Say how many rows a chart cannot show, by status; nothing if it shows all."""
    found = rows["status"].value_counts().items()
    return f"Not shown: {', '.join(f'{n} {shorten(name, 20)}' for name, n in found)}." if len(rows) else ""


def figure(run: Run, title: str, note: str, body: float, legend: Sequence[Artist]) -> Figure:
    """Make a figure with a title, facts of the run, a note and a legend, for axes ``body`` inches high."""
    notes = [setting.summary(run.facts), *run.notes, note]
    lines = [line for text in notes for line in textwrap.wrap(shorten(text, 450), 150)]
    made = Figure((WIDTH, 1.2 + 0.17 * len(lines) + body), layout="constrained")
    # Two empty lines leave room for the title, whose letters are larger.
    made.suptitle("\n".join(["", "", *lines]), x=0.01, ha="left", fontsize=FONT - 1, color=MUTED)
    made.text(0.01, 1 - 0.1 / made.get_figheight(), title, va="top", fontsize=FONT + 4, fontweight="bold")
    made.legend(handles=list(legend), loc="outside lower center", ncols=min(len(legend), 7))
    return made


def render(made: Figure, form: str) -> bytes:
    """Return the figure as ``png`` or ``svg``, the same bytes each time."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with mpl.rc_context(RC), warnings.catch_warnings():
        # A name from a file may have letters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        made.savefig(file, format=form, metadata=metadata)
    return file.getvalue()
