"""``python -m perf.evidence.readme [speed.csv]``: the README's table and chart of a GPU, made anew.

Without a file, from ``perf/results/nvidia-h200.csv``; a ``speed.csv`` of a new run takes its place first.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pandas as pd

from perf import files, setting
from perf.evidence import picture
from perf.evidence.outcome import ratios
from perf.files import EAGER, geometric_mean

ROOT = Path(__file__).resolve().parents[2]
MEASURED = ROOT / "perf" / "results" / "nvidia-h200.csv"
README = ROOT / "README.md"
_COLUMNS = (("calls", EAGER), ("graphs", f"{EAGER}_graph"), ("corners", "eager-corners"))
_PASSES = ("forward", "forward+backward")


def main() -> None:
    """Take over the run named on the command line, then write what is made of it."""
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], MEASURED)
    table = files.read_speed(MEASURED)
    picture.draw(table, MEASURED.with_suffix(".png"))
    text = README.read_text()
    README.write_text(text.replace(committed(text), markdown(table)))


def markdown(table: pd.DataFrame) -> str:
    """The README's table: a row per workload, its passes side by side; then what measured it."""
    run = files.runs(table)[-1]
    found = ratios(run.rows)
    found = found.reindex(columns=[*found, *{name for _, name in _COLUMNS} - {*found}])
    heads = [head for name in _PASSES for head in (f"{name}, ms", *(title for title, _ in _COLUMNS))]
    lines = ["| workload | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for workload, rows in found.groupby("workload", sort=False):
        cells = [cell for name in _PASSES for cell in _cells(rows[rows["pass"] == name])]
        lines.append(f"| {_title(str(workload), rows.iloc[0])} | {' | '.join(cells)} |")
    copy = run.rows["copy_gb_per_s"].median()
    return "\n".join([*lines, "", f"{setting.summary(run.facts)}; copy bandwidth {copy:,.0f} GB/s."])


def committed(text: str) -> str:
    """The part of the README that :func:`markdown` wrote."""
    found = re.search(r"^\| workload \| forward, ms .*?; copy bandwidth [\d,]+ GB/s\.$", text, re.M | re.S)
    if not found:
        raise ValueError(
            f"{README.name}: has no table of `| workload | forward, ms`; expected one to replace"
        )
    return found[0]


def _title(workload: str, row: pd.Series) -> str:
    size = "" if row["shape"].endswith(row["size"]) else f" to {row['size']}"
    layout = "" if row["layout"] == "NCHW" else f", {row['layout']}"
    return f"{workload}: {row['shape']}{size}, {row['dtype']}{layout}"


def _cells(rows: pd.DataFrame) -> list[str]:
    """Milliseconds of a call, then the ratios; a dash for what was not measured."""
    if rows.empty:
        return ["-"] * (1 + len(_COLUMNS))
    values = [geometric_mean(rows[column]) for _, column in _COLUMNS]
    return [
        f"{geometric_mean(rows['median_ms']):.2f}",
        *(f"{v:.2f}x" if pd.notna(v) else "-" for v in values),
    ]


if __name__ == "__main__":
    main()
