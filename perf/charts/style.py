"""What all charts share: colours, markers, line styles, the head of a figure and its legend.

Each chart must also read without colour: dark stands against light, losses are hatched or filled, providers
differ in marker and line style.
"""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from perf import setting
from perf.files import EAGER, OPERATOR, Run
from perf.measuring.providers import PROVIDERS

WIDTH = 12.5
"""Of every figure, in inches."""
FONT = 10
INK, MUTED, GRID = "#111111", "#444444", "#d9d9d9"
WIN, LOSS = "#1f4e8c", "#b3401d"
HATCH = "//"
RC = {
    "font.size": FONT,
    "axes.edgecolor": MUTED,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "hatch.linewidth": 1.2,
    # Names come from files; a dollar sign is no formula.
    "text.parse_math": False,
    # Text that stays text can be searched, selected and read aloud. The salt: the same rows, the same file.
    "svg.fonttype": "none",
    "svg.hashsalt": "stn_triton",
}
_DPI = 150
_TITLE, _LINE, _LEGEND_LINE = 0.36, 0.19, 0.26  # inches
_CHARACTERS = 150  # of a subtitle across the width


@dataclass(frozen=True)
class Look:
    """How a provider is drawn."""

    color: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


_LOOKS = {
    OPERATOR: Look(WIN, "o", "-"),
    EAGER: Look("#8a8a8a", "s", "--"),
    "eager-corners": Look("#b58900", "^", "-."),
    "eager-broadcast": Look("#5b8c5a", "D", ":"),
    "compile": Look("#4fa3e0", "v", (0, (6, 1.5))),
    "kornia": Look("#9467bd", "P", (0, (3, 1, 1, 1, 1, 1))),
    "scatter": Look("#b84a8c", "*", (0, (4, 1, 1, 1))),
}
_LABELS = {name: provider.label for name, provider in PROVIDERS.items()}
# Not among the ways that users have: a kernel that the operator's own is measured against, made of Triton.
_LABELS["scatter"] = "fused scatter"
_UNKNOWN = Look("#555555", "X", (0, (1, 3)))


def look(provider: str) -> Look:
    """How a provider is drawn; one that this version does not know has a look too."""
    return _LOOKS.get(provider, _UNKNOWN)


def label(provider: str) -> str:
    """A provider's name for readers."""
    return _LABELS[provider] if provider in _LABELS else shorten(provider, 24)


def in_order(providers: Sequence[str]) -> list[str]:
    """Each provider once, the operator first and the known ones in their order."""
    known = list(dict.fromkeys([*PROVIDERS, *_LOOKS]))
    places = {name: i for i, name in enumerate(known)}
    return sorted(dict.fromkeys(providers), key=lambda name: places.get(name, len(known)))


def shorten(text: str, limit: int) -> str:
    """The text, cut if it is longer than a chart has room for."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


def duration(ms: float) -> str:
    """A time with its unit, three digits."""
    return f"{ms:.3g} ms" if ms >= 0.1 else f"{ms * 1000:.3g} µs"


def head(run: Run, notes: Sequence[str]) -> list[str]:
    """The subtitle's lines: hardware and versions, then what the reader must know."""
    lines = [setting.summary(run.facts), *notes]
    if run.facts["device_type"] == "cpu":
        lines.append("On a CPU the operator runs its plain PyTorch path, not its GPU kernels.")
    if run.quick:
        lines.append("Quick run: small batches, few repetitions.")
    return [part for line in lines for part in wrapped(shorten(line, 450))]


def wrapped(text: str) -> list[str]:
    """The lines of a subtitle."""
    return textwrap.wrap(text, _CHARACTERS)


def figure(
    title: str, lines: Sequence[str], body: float, legend: Sequence[Artist] = (), most: int = 5
) -> tuple[Figure, float]:
    """A figure with its head and legend, and where its body begins: inches from below, ``body`` high.

    The legend has at most ``most`` entries in a row.
    """
    rows = -(-len(legend) // most)
    top, foot = 0.2 + _TITLE + _LINE * len(lines), 0.1 + _LEGEND_LINE * rows
    height = top + body + foot
    made = Figure(figsize=(WIDTH, height))
    made.set_layout_engine("constrained", rect=(0, foot / height, 1, body / height))
    made.text(0.01, 1 - 0.1 / height, title, fontsize=FONT + 4, fontweight="bold", va="top", color=INK)
    y = 1 - (0.1 + _TITLE) / height
    made.text(0.01, y, "\n".join(lines), fontsize=FONT - 1, va="top", color=MUTED, linespacing=1.3)
    if legend:
        options = {"loc": "lower center", "ncols": -(-len(legend) // rows), "frameon": False}
        made.legend(handles=list(legend), fontsize=FONT - 1, **options)
    return made, foot


def render(made: Figure, form: str) -> bytes:
    """The figure as ``png`` or ``svg``, the same bytes each time."""
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None} if form == "svg" else {"Software": None}
    with mpl.rc_context(RC), warnings.catch_warnings():
        # A name from a file may have letters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", "Glyph")
        made.savefig(file, format=form, dpi=_DPI, metadata=metadata)
    return file.getvalue()
