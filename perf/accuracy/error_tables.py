"""The rows of ``numerics`` as a file, as text with the tables of docs/numerics.md, and as a chart."""

from __future__ import annotations

import itertools
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from perf import UsageError, setting
from perf.accuracy.errors import IDENTITY, KERNELS, LABELS, PAIR, QUANTITIES, REFERENCE, WORSE
from perf.charts import style
from perf.files import EAGER, FACTS
from perf.measuring.maps import RANDOM

_TEXT = ("dtype", "autocast", "shape", "map", "quantity", "provider", "verdict", "reason", *FACTS)
_KINDS = {**dict.fromkeys(_TEXT, str), "size": int, "rms": float, "max": float}
_SHOWN = {"fp32": "bf16", "bf16": "bf16", "fp16": "fp16"}
"""The dtype of autocast that the tables and the chart show, by the images' dtype; the file has more."""
_LOOKS = {
    (PAIR, True): style.Look(style.LOSS, "^", "-."),
    (PAIR, False): style.look(EAGER),
    (REFERENCE, False): style.Look("#4fa3e0", "v", (0, (6, 1.5))),
    (KERNELS, False): style.Look(style.WIN, "o", "-"),
}
"""By provider and whether under autocast; the last is drawn on top."""
_NAMES = {KERNELS: "operator's kernels", REFERENCE: "operator's CPU path", PAIR: "eager pair"}
_NOTES = (
    "RMS error against fp64: of the output in units of the largest image value, of grad_input of the largest "
    "gradient of the output, of grad_theta of its norm. Eight maps of up to 30 degrees; images of waves."
)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a CSV, with four digits of each error."""
    table.to_csv(path, index=False, float_format="%.4g")


def read(path: Path) -> pd.DataFrame:
    """Read the rows of an earlier run.

    Raises:
        UsageError: there is no such file, or ``numerics`` did not write it.
    """
    try:
        blanks = {"rms": "", "max": ""}
        table = pd.read_csv(path, dtype=_KINDS, keep_default_na=False, na_values=blanks)
        problem = ", ".join(f"no {name}" for name in _KINDS if name not in table)
    except (OSError, ValueError) as error:
        problem = " ".join(str(error).split())
    if problem:
        expected = "expected a CSV that `python -m perf numerics` wrote"
        raise UsageError(f"--results: {path}: {problem}; {expected}")
    return table


def number(value: float) -> str:
    """``1.8e-7``; ``-`` for none."""
    if pd.isna(value):
        return "-"
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def text(table: pd.DataFrame) -> str:
    """The tables, then the reasons and the verdicts."""
    parts = [markdown(table)]
    parts += [f"-: {reason}." for reason in table["reason"].unique() if reason]
    verdicts = table.loc[table["provider"] != PAIR, "verdict"].value_counts()
    parts.append("Against the pair: " + ", ".join(f"{n} {name}" for name, n in verdicts.items()) + ".")
    for row in table[table["verdict"] == WORSE].itertuples():
        autocast = f", autocast {row.autocast}" if row.autocast else ""
        what = f"{row.quantity} at {row.size}, {row.dtype}{autocast}, map {row.map}"
        parts.append(f"{WORSE}: {LABELS[row.provider]}, {what}: {number(row.rms)}, at most {number(row.max)}")
    return "\n\n".join(parts)


def markdown(table: pd.DataFrame) -> str:
    """The tables of docs/numerics.md: dtype and size by quantity, then the identity."""
    names = [LABELS[name] for name in LABELS if name in set(table["provider"])]
    dtypes, sizes = (list(table[column].unique()) for column in ("dtype", "size"))
    lines = [f"| images | size | {' | '.join(QUANTITIES)} |", "|---" * 5 + "|"]
    for dtype, size in itertools.product(dtypes, sizes):
        cells = (_cell(table, dtype, size, RANDOM, quantity) for quantity in QUANTITIES)
        lines.append(f"| {dtype} | {size} | {' | '.join(cells)} |")
    lines += ["", f"Each cell: {' / '.join(names)} / pair under autocast. The same at the identity:", ""]
    lines += [f"| images | | {' | '.join(map(str, sizes))} |", "|---" * (2 + len(sizes)) + "|"]
    for dtype, quantity in itertools.product(dtypes, QUANTITIES[:2]):
        cells = (_cell(table, dtype, size, IDENTITY, quantity) for size in sizes)
        lines.append(f"| {dtype} | {quantity} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(table: pd.DataFrame, dtype: str, size: int, map_name: str, quantity: str) -> str:
    """RMS errors; of the operator the larger of those with and without autocast."""
    key = {"dtype": dtype, "size": size, "map": map_name, "quantity": quantity}
    cell = table[(table[list(key)] == pd.Series(key)).all(axis=1)]
    cell = cell[cell["autocast"].isin(("", _SHOWN[dtype]))]
    errors = cell.groupby("provider")["rms"].max()
    pair = cell[cell["provider"] == PAIR].set_index("autocast")["rms"]
    ours = [errors[name] for name in LABELS if name in errors and name != PAIR]
    return " / ".join(map(number, [*ours, *pair.reindex(["", _SHOWN[dtype]])]))


def chart(table: pd.DataFrame) -> Figure:
    """Draw errors over the size of the image, a panel per dtype and quantity; without an error no marker."""
    reasons = [f"No marker: {reason}." for reason in table["reason"].unique() if reason]
    notes = (setting.summary(table.iloc[0].to_dict()), _NOTES, *reasons)
    lines = [line for note in notes for line in style.wrapped(note)]
    table = table[table["map"] == RANDOM]
    dtypes, sizes = (list(table[column].unique()) for column in ("dtype", "size"))
    with mpl.rc_context(style.RC):
        made = Figure((12.5, 2.6 * len(dtypes) + 1.4), layout="constrained")
        made.suptitle("\n".join(("Affine sampling: error over size", *lines)), fontsize=style.FONT)
        grid = made.subplots(len(dtypes), len(QUANTITIES), sharex=True, sharey=True, squeeze=False)
        for (i, dtype), (j, quantity) in itertools.product(enumerate(dtypes), enumerate(QUANTITIES)):
            ax = grid[i][j]
            _draw(ax, table[(table["dtype"] == dtype) & (table["quantity"] == quantity)], _SHOWN[dtype])
            ax.set(xscale="log", yscale="log", title="" if i else quantity)
            ax.set_ylabel("" if j else f"{dtype}, autocast {_SHOWN[dtype]}\nRMS error")
            ax.set_xlabel("width of the images" if i == len(dtypes) - 1 else "")
            ax.set_xticks(sizes, list(map(str, sizes)), fontsize=style.FONT - 2)
            ax.yaxis.set_major_formatter("{x:.0e}")
            ax.minorticks_off()
            ax.grid()
        entries = grid[0][0].get_legend_handles_labels()
        made.legend(*entries, loc="outside lower center", ncols=len(_LOOKS), frameon=False)
    return made


def _draw(ax: Axes, rows: pd.DataFrame, autocast: str) -> None:
    is_interpreted = rows["device_type"].iloc[0] == "cpu"
    for (name, is_low), look in _LOOKS.items():
        own = rows[(rows["provider"] == name) & (rows["autocast"] == (autocast if is_low else ""))]
        label = _NAMES[name] + (", interpreted" if name == KERNELS and is_interpreted else "")
        options = {"color": look.color, "marker": look.marker, "linestyle": look.line, "mfc": "none"}
        options |= {"ms": 10} if name == REFERENCE else {}  # the kernels' would hide it
        if len(own):
            ax.plot(own["size"], own["rms"], label=label + (", under autocast" if is_low else ""), **options)
