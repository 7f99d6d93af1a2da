"""``python -m perf.evidence.readme [speed.csv]``: make the README's table and picture of a GPU.

They are made of ``perf/results/nvidia-h200.csv``, which is replaced by the file that is given.
"""

from __future__ import annotations

import re
import shutil
import sys

from perf import files
from perf.evidence.outcome import draw, markdown
from perf.evidence.runner import ROOT

MEASURED = ROOT / "perf" / "results" / "nvidia-h200.csv"
README = ROOT / "README.md"
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
    """The part of the README that ``markdown`` wrote."""
    found = _TABLE.search(text)
    if not found:
        raise ValueError(
            f"{README.name} has no table with the header `| workload |`; expected one to replace"
        )
    return found[0]


if __name__ == "__main__":
    main()
