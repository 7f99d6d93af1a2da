"""The rows of ``numerics`` as a file, as text and as the README's tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from perf import UsageError
from perf.accuracy import inputs
from perf.accuracy.errors import QUANTITIES, WORSE
from perf.accuracy.implementations import LABELS, PAIR
from perf.files import FACTS
from perf.measuring.maps import RANDOM

_TEXT = ("dtype", "autocast", "shape", "map", "quantity", "provider", "verdict", "reason", *FACTS)
_NUMBERS = {"size": int, "rms": float, "max": float}
SHOWN = {"fp32": "bf16", "bf16": "bf16", "fp16": "fp16"}
"""Of each dtype the autocast that the README and the chart show; the file has more."""


def write(table: pd.DataFrame, path: Path) -> None:
    """As a CSV; four digits of an error are more than it is worth."""
    table.to_csv(path, index=False, float_format="%.4g")


def read(path: Path) -> pd.DataFrame:
    """The rows of an earlier run.

    Raises:
        UsageError: there is no such file, or it is none that ``numerics`` wrote.
    """
    expected = "expected a CSV that `python -m perf numerics` wrote"
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = table.assign(
            **{name: pd.to_numeric(table[name]).astype(kind) for name, kind in _NUMBERS.items()}
        )
    except FileNotFoundError:
        raise UsageError(f"--results: {path}: no such file; {expected}") from None
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"--results: {path}: {' '.join(str(error).split())}; {expected}") from None
    missing = [name for name in _TEXT if name not in table]
    if missing or table.empty:
        raise UsageError(f"--results: {path}: lacks {', '.join(missing) or 'rows'}; {expected}")
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
    """All cells, a table for each map, and what has no rival or lost."""
    names = _providers(table)
    parts = []
    for map_name, rows in table.groupby("map", sort=False):
        lines = []
        for key, cell in rows.groupby(["dtype", "autocast", "size", "shape"], sort=False):
            line = dict(zip(("images", "autocast", "size", "shape"), key, strict=True))
            for quantity in QUANTITIES:
                own = cell[cell["quantity"] == quantity].set_index("provider")
                if len(own):
                    line[quantity] = "  ".join(_marked(own.loc[name]) for name in names)
            lines.append(line)
        head = f"map: {map_name}; RMS errors of {', '.join(LABELS[name] for name in names)}"
        parts.append(f"{head}\n{pd.DataFrame(lines).fillna('').to_string(index=False)}")
    parts += [f"-: {reason}." for reason in table["reason"].unique() if reason]
    lost = table[table["verdict"] == WORSE]
    verdicts = table.loc[table["provider"] != PAIR, "verdict"].value_counts()
    parts.append("Against the pair: " + ", ".join(f"{n} {name}" for name, n in verdicts.items()) + ".")
    for row in lost.itertuples():
        autocast = f", autocast {row.autocast}" if row.autocast else ""
        what = f"{row.quantity} at {row.size}, {row.dtype}{autocast}, map {row.map}"
        parts.append(f"{WORSE}: {LABELS[row.provider]}, {what}: {number(row.rms)}, at most {number(row.max)}")
    return "\n\n".join(parts)


def _marked(row: pd.Series) -> str:
    return f"{number(row['rms']):>6}{'!' if row['verdict'] == WORSE else ' '}"


def markdown(table: pd.DataFrame) -> str:
    """The README's tables: dtype and size by quantity, then the identity."""
    names = _providers(table)
    heads = [*(LABELS[name] for name in names), "pair under autocast"]
    dtypes, sizes = (list(table[column].unique()) for column in ("dtype", "size"))
    lines = [f"| images | size | {' | '.join(QUANTITIES)} |", "|---|---|---|---|---|"]
    for dtype in dtypes:
        for size in sizes:
            cells = (_cell(table, names, dtype, size, RANDOM, quantity) for quantity in QUANTITIES)
            lines.append(f"| {dtype} | {size} | {' | '.join(cells)} |")
    lines += ["", f"Each cell: {' / '.join(heads)}. The same at the identity:", ""]
    lines += [f"| images | | {' | '.join(map(str, sizes))} |", "|---|---|" + "---|" * len(sizes)]
    for dtype in dtypes:
        for quantity in QUANTITIES[:2]:
            cells = (_cell(table, names, dtype, size, inputs.IDENTITY, quantity) for size in sizes)
            lines.append(f"| {dtype} | {quantity} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(
    table: pd.DataFrame, names: Sequence[str], dtype: str, size: int, map_name: str, quantity: str
) -> str:
    """RMS errors; of the operator the larger of those with and without autocast."""
    key = {"dtype": dtype, "size": size, "map": map_name, "quantity": quantity}
    cell = table[(table[list(key)] == pd.Series(key)).all(axis=1)]
    cell = cell[cell["autocast"].isin(("", SHOWN[dtype]))]
    errors = cell.groupby("provider")["rms"].max()
    pair = cell[cell["provider"] == PAIR].set_index("autocast")["rms"]
    numbers = [*(errors[name] for name in names if name != PAIR), pair[""], pair[SHOWN[dtype]]]
    return " / ".join(map(number, numbers))


def _providers(table: pd.DataFrame) -> list[str]:
    return [name for name in LABELS if name in set(table["provider"])]
