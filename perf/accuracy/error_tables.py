"""The rows of ``numerics`` as a file, as text, as the tables of docs/numerics.md and as a chart."""

from __future__ import annotations

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
_NUMBERS = {"size": int, "rms": float, "max": float}
SHOWN = {"fp32": "bf16", "bf16": "bf16", "fp16": "fp16"}
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
    expected = "expected a CSV that `python -m perf numerics` wrote"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        numbers = {name: pd.to_numeric(table[name]).astype(kind) for name, kind in _NUMBERS.items()}
    except FileNotFoundError:
        raise UsageError(f"--results: {path}: no such file; {expected}") from None
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"--results: {path}: {' '.join(str(error).split())}; {expected}") from None
    missing = [name for name in _TEXT if name not in table]
    if missing or table.empty:
        raise UsageError(f"--results: {path}: lacks {', '.join(missing) or 'rows'}; {expected}")
    return table.assign(**numbers)


def number(value: float) -> str:
    """``1.8e-7``; ``-`` for none."""
    if pd.isna(value):
        return "-"
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits}e{int(exponent)}" if exponent else digits


def text(table: pd.DataFrame) -> str:
    """RMS errors of all cells, a table for each map; then the verdicts."""
    cells = table["rms"].map(number) + (table["verdict"] == WORSE).map({True: "!", False: " "})
    shown = table.assign(cell=cells, provider=table["provider"].map(LABELS))
    parts = []
    for map_name, rows in shown.groupby("map", sort=False):
        keys = ["dtype", "autocast", "size", "shape"]
        wide = rows.pivot_table("cell", keys, ["quantity", "provider"], aggfunc="first", sort=False)
        wide.columns.names = [None, None]
        parts.append(f"map: {map_name}; RMS errors\n{wide.reset_index().to_string(index=False)}")
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
    lines = [f"| images | size | {' | '.join(QUANTITIES)} |", "|---|---|---|---|---|"]
    for dtype in dtypes:
        for size in sizes:
            cells = (_cell(table, dtype, size, RANDOM, quantity) for quantity in QUANTITIES)
            lines.append(f"| {dtype} | {size} | {' | '.join(cells)} |")
    lines += ["", f"Each cell: {' / '.join(names)} / pair under autocast. The same at the identity:", ""]
    lines += [f"| images | | {' | '.join(map(str, sizes))} |", "|---|---|" + "---|" * len(sizes)]
    for dtype in dtypes:
        for quantity in QUANTITIES[:2]:
            cells = (_cell(table, dtype, size, IDENTITY, quantity) for size in sizes)
            lines.append(f"| {dtype} | {quantity} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(table: pd.DataFrame, dtype: str, size: int, map_name: str, quantity: str) -> str:
    """RMS errors; of the operator the larger of those with and without autocast."""
    key = {"dtype": dtype, "size": size, "map": map_name, "quantity": quantity}
    cell = table[(table[list(key)] == pd.Series(key)).all(axis=1)]
    cell = cell[cell["autocast"].isin(("", SHOWN[dtype]))]
    errors = cell.groupby("provider")["rms"].max()
    pair = cell[cell["provider"] == PAIR].set_index("autocast")["rms"]
    ours = [errors[name] for name in LABELS if name in errors and name != PAIR]
    return " / ".join(map(number, [*ours, pair[""], pair[SHOWN[dtype]]]))


def chart(table: pd.DataFrame) -> Figure:
    """Draw errors over the size of the image, a panel per dtype and quantity; without an error no marker."""
    table = table[table["map"] == RANDOM]
    facts = {name: table[name].iloc[0] for name in FACTS}
    reasons = [f"No marker: {reason}." for reason in table["reason"].unique() if reason]
    lines = [line for note in (setting.summary(facts), _NOTES, *reasons) for line in style.wrapped(note)]
    dtypes = list(table["dtype"].unique())
    with mpl.rc_context(style.RC):
        made = Figure((12.5, 2.6 * len(dtypes) + 1.4), layout="constrained")
        made.suptitle("\n".join(("Affine sampling: error over size", *lines)), fontsize=style.FONT)
        grid = made.subplots(len(dtypes), len(QUANTITIES), sharex=True, sharey=True, squeeze=False)
        for axes, dtype in zip(grid, dtypes, strict=True):
            for ax, quantity in zip(axes, QUANTITIES, strict=True):
                _panel(ax, table[(table["dtype"] == dtype) & (table["quantity"] == quantity)], SHOWN[dtype])
            axes[0].set_ylabel(f"{dtype}, autocast {SHOWN[dtype]}\nRMS error")
        for top, bottom, quantity in zip(grid[0], grid[-1], QUANTITIES, strict=True):
            top.set_title(quantity)
            bottom.set_xlabel("width of the images")
        entries = grid[0][0].get_legend_handles_labels()
        made.legend(*entries, loc="outside lower center", ncols=len(_LOOKS), frameon=False)
    return made


def _panel(ax: Axes, rows: pd.DataFrame, autocast: str) -> None:
    is_interpreted = rows["device_type"].iloc[0] == "cpu"
    for (name, is_low), look in _LOOKS.items():
        own = rows[(rows["provider"] == name) & (rows["autocast"] == (autocast if is_low else ""))]
        label = _NAMES[name] + (", interpreted" if name == KERNELS and is_interpreted else "")
        options = {"color": look.color, "marker": look.marker, "linestyle": look.line, "mfc": "none"}
        options |= {"ms": 10} if name == REFERENCE else {}  # the kernels' would hide it
        if len(own):
            ax.plot(own["size"], own["rms"], label=label + (", under autocast" if is_low else ""), **options)
    sizes = sorted(set(rows["size"]))
    ax.set(xscale="log", yscale="log")
    ax.set_xticks(sizes, list(map(str, sizes)), fontsize=style.FONT - 2)
    ax.yaxis.set_major_formatter("{x:.0e}")
    ax.minorticks_off()
    ax.grid()
