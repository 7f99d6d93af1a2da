"""The rows of ``numerics`` as a file, as text with the tables of docs/numerics.md, and as a chart."""

import itertools
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from perf import UsageError, setting
from perf.accuracy.errors import IDENTITY, KERNELS, LABELS, PAIR, QUANTITIES, REFERENCE, WORSE
from perf.charts import style
from perf.files import FACTS
from perf.measuring.maps import RANDOM

_TEXT = ("dtype", "autocast", "shape", "map", "quantity", "provider", "verdict", "reason", *FACTS)
_KINDS = {**dict.fromkeys(_TEXT, str), "size": int, "rms": float, "max": float}
_WORSE = ["verdict", "provider", "quantity", "size", "dtype", "autocast", "map", "rms", "max"]
_SHOWN = {"fp32": "bf16", "bf16": "bf16", "fp16": "fp16"}
"""The dtype of autocast that the tables and the chart show, by the images' dtype; the file has more."""
_LINES = {
    "eager pair, under autocast": (PAIR, {"color": style.LOSS, "marker": "^", "linestyle": "-."}),
    "eager pair": (PAIR, {"color": "#8a8a8a", "marker": "s", "linestyle": "--"}),
    "operator's CPU path": (REFERENCE, {"color": "#4fa3e0", "marker": "x", "linestyle": (0, (6, 1.5))}),
    "operator's kernels": (KERNELS, {"color": style.WIN, "marker": "o", "linestyle": "-"}),
}
"""Provider and looks of the chart's lines by label; the last is drawn on top."""


def read(path: Path) -> pd.DataFrame:
    """Read the rows of an earlier run.

    Raises:
        UsageError: there is no such file, or ``numerics`` did not write it.
    """
    options = {"dtype": _KINDS, "usecols": list(_KINDS), "keep_default_na": False}
    try:
        table = pd.read_csv(path, na_values={"rms": "", "max": ""}, **options)
        if table["date"].nunique(dropna=False) > 1:
            raise ValueError("it is cut off, or of several runs")
        return table
    except (OSError, ValueError) as error:
        expected = "expected a CSV that `python -m perf numerics` wrote"
        raise UsageError(f"--results: {path}: {' '.join(str(error).split())}; {expected}") from None


def number(value: float) -> str:
    """``1.8e-7``; ``-`` for none."""
    if pd.isna(value):
        return "-"
    return f"{value:.1e}".replace("e-0", "e-") if value else "0"


def text(table: pd.DataFrame) -> str:
    """The tables, then the reasons and the verdicts."""
    parts = [markdown(table)]
    parts += [f"-: {reason}." for reason in table["reason"].unique() if reason]
    verdicts = table.loc[table["provider"] != PAIR, "verdict"].value_counts()
    parts.append("Against the pair: " + ", ".join(f"{n} {name}" for name, n in verdicts.items()) + ".")
    worse = table.loc[table["verdict"] == WORSE, _WORSE]
    if len(worse):
        parts.append(worse.to_string(index=False))
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
    table = table[table["map"] == RANDOM]
    dtypes, sizes = (list(table[column].unique()) for column in ("dtype", "size"))
    with mpl.rc_context(style.RC):
        made = Figure((12.5, 2.6 * len(dtypes) + 1.4), layout="constrained")
        title = "Affine sampling: RMS error against fp64 over size. Units and gaps: docs/numerics.md"
        made.suptitle(f"{title}\n{setting.summary(table.iloc[0].to_dict())}", fontsize=style.FONT)
        grid = made.subplots(len(dtypes), len(QUANTITIES), sharex=True, sharey=True, squeeze=False)
        for (i, dtype), (j, quantity) in itertools.product(enumerate(dtypes), enumerate(QUANTITIES)):
            ax = grid[i][j]
            rows = table[(table["dtype"] == dtype) & (table["quantity"] == quantity)]
            for label, (name, looks) in _LINES.items():
                autocast = _SHOWN[dtype] if "autocast" in label else ""
                own = rows[(rows["provider"] == name) & (rows["autocast"] == autocast)]
                if len(own):
                    ax.loglog(own["size"], own["rms"], label=label, mfc="none", **looks)
            ax.set_title("" if i else quantity)
            ax.set_ylabel("" if j else f"{dtype}, autocast {_SHOWN[dtype]}\nRMS error")
            ax.set_xlabel("width of the images" if i == len(dtypes) - 1 else "")
            ax.set_xticks(sizes, list(map(str, sizes)), fontsize=style.FONT - 2)
            ax.yaxis.set_major_formatter("{x:.0e}")
            ax.minorticks_off()
            ax.grid()
        entries = grid[0][0].get_legend_handles_labels()
        made.legend(*entries, loc="outside lower center", ncols=len(_LINES), frameon=False)
    return made
