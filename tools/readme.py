"""Make the README's table and picture of a GPU from the rows of `python -m perf evidence`.

    python tools/readme.py                                        # from the committed rows
    python tools/readme.py perf-results/evidence-DATE/speed.csv   # commit these rows, and make both from them

The committed rows are perf/results/nvidia-h200.csv. Only a full run on the same GPU replaces them. Rows of
another GPU belong beside them, with a name of their own.

Exit codes: 0 done; 2 a wrong argument.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from perf import UsageError, files  # noqa: E402
from perf.evidence.outcome import draw, markdown  # noqa: E402

MEASURED = ROOT / "perf" / "results" / "nvidia-h200.csv"
README = ROOT / "README.md"
# The table from its header on, and the line below it that says what measured it.
_TABLE = re.compile(r"^\| workload \|.*(?:\n\|.*)*(?:\n\n.*; copy bandwidth .*)?$", re.M)


def main(arguments: Sequence[str] | None = None) -> int:
    """Replace the rows if a file is named, then the table and the picture."""
    summary, _, rest = __doc__.partition("\n\n")
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("readme.py", description=summary, epilog=rest, formatter_class=raw)
    parser.add_argument("speed", nargs="?", type=Path, default=MEASURED, help="rows that replace those here")
    path = parser.parse_args(arguments).speed
    try:
        run, device = files.read_run(path), files.read_run(MEASURED).facts["device"]
    except UsageError as error:
        parser.error(str(error))
    if run.quick or run.facts["device"] != device:
        kind = "a quick run" if run.quick else "a run"
        parser.error(f"{path}: {kind} on {run.facts['device']}; expected a full run on {device}")
    if path.resolve() != MEASURED:
        shutil.copyfile(path, MEASURED)
    draw(run, MEASURED.with_suffix(".png"))
    text = README.read_text()
    README.write_text(text.replace(table_of(text), markdown(run)))
    return 0


def table_of(text: str) -> str:
    """The part of the README that ``markdown`` wrote."""
    found = _TABLE.search(text)
    if not found:
        raise ValueError(f"{README}: no table with the header `| workload |`; expected one to replace")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
