"""``python -m perf.evidence.readme [speed.csv]``: make the README's table and picture of a GPU.

They are made of ``perf/results/nvidia-h200.csv``. A file of the same GPU replaces it, if one is given.
A file of another GPU belongs beside it, with a name of its own.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

from perf import UsageError, files
from perf.evidence.outcome import draw, markdown
from perf.evidence.runner import ROOT

MEASURED = ROOT / "perf" / "results" / "nvidia-h200.csv"
README = ROOT / "README.md"
# The table from its header on, and the line below it that says what measured it.
_TABLE = re.compile(r"^\| workload \|.*(?:\n\|.*)*(?:\n\n.*; copy bandwidth .*)?$", re.M)


def main() -> None:
    """Take over the file named on the command line, then replace the table and the picture.

    Raises:
        UsageError: the file is no full run on the README's GPU.
    """
    run = files.read_run(MEASURED)
    if len(sys.argv) > 1:
        given = files.read_run(Path(sys.argv[1]))
        if given.quick or given.facts["device"] != run.facts["device"]:
            kind = "a quick run" if given.quick else "a run"
            expected = f"a full run on {run.facts['device']}, whose figures the README has"
            raise UsageError(f"{sys.argv[1]}: {kind} on {given.facts['device']}; expected {expected}")
        if Path(sys.argv[1]).resolve() != MEASURED:
            shutil.copyfile(sys.argv[1], MEASURED)
        run = given
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
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
