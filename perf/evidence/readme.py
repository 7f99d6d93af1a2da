"""``python -m perf.evidence.readme [speed.csv]``: make the README's table and picture of a GPU.

They are made of ``perf/results/nvidia-h200.csv``, which is replaced by the file that is given.
"""

from __future__ import annotations

import re
import shutil
import sys

import pandas as pd

from perf import files, setting
from perf.evidence.outcome import draw, means
from perf.evidence.runner import ROOT

MEASURED = ROOT / "perf" / "results" / "nvidia-h200.csv"
README = ROOT / "README.md"
_PASSES = ("forward", "forward+backward")
_FORMS = {"ms": "{:.2f}", "calls": "{:.2f}x", "graphs": "{:.2f}x", "corners": "{:.2f}x"}
# The table from its header on, and the line below it that says what measured it.
_TABLE = re.compile(r"^\| workload \|.*(?:\n\|.*)*(?:\n\n.*; copy bandwidth .*)?$", re.M)


def main() -> None:
    """Take over the file named on the command line, then replace the table and the picture."""
    if len(sys.argv) > 1:
        shutil.copyfile(sys.argv[1], MEASURED)
    run = files.runs(files.read_speed(MEASURED))[-1]
    draw(run, MEASURED.with_suffix(".png"))
    text = README.read_text()
    README.write_text(text.replace(committed(text), markdown(run)))


def committed(text: str) -> str:
    """The part of the README that :func:`markdown` wrote."""
    found = _TABLE.search(text)
    if not found:
        raise ValueError(
            f"{README.name} has no table with the header `| workload |`; expected one to replace"
        )
    return found[0]


def markdown(run: files.Run) -> str:
    """The README's table: a row per workload, its passes side by side; then the machine that measured it."""
    found = means(run.rows)
    found = found.reindex(pd.MultiIndex.from_product([found.index.unique("workload"), _PASSES]))
    heads = [head for name in _PASSES for head in (f"{name}, ms", *list(_FORMS)[1:])]
    lines = ["| workload | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for workload, passes in found.groupby(level=0, sort=False):
        first = run.rows[run.rows["workload"] == workload].iloc[0]
        size = "" if first["shape"].endswith(first["size"]) else f" to {first['size']}"
        layout = "" if first["layout"] == "NCHW" else f", {first['layout']}"
        values = [(form, row[name]) for _, row in passes.iterrows() for name, form in _FORMS.items()]
        cells = " | ".join(form.format(value) if pd.notna(value) else "-" for form, value in values)
        lines.append(f"| {workload}: {first['shape']}{size}, {first['dtype']}{layout} | {cells} |")
    copy = run.rows["copy_gb_per_s"].median()
    return "\n".join([*lines, "", f"{setting.summary(run.facts)}; copy bandwidth {copy:,.0f} GB/s."])


if __name__ == "__main__":
    main()
