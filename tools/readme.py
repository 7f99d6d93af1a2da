"""Make the README's table and picture of a GPU from the rows of `python -m perf evidence`.

    python tools/readme.py                                        # from the committed rows
    python tools/readme.py perf-results/evidence-DATE/speed.csv   # commit these rows, and make both from them

The committed rows are perf/results/nvidia-h200.csv. They are replaced only by a run of a commit on the same
GPU that has all their workloads. Rows of another GPU belong beside them, with a name of their own.

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
from perf.evidence.outcome import draw, markdown, ratios  # noqa: E402

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
        run, old = files.read_run(path), files.read_run(MEASURED)
    except UsageError as error:
        parser.error(str(error))
    lacking = ratios(old.rows).index.unique("workload").difference(ratios(run.rows).index.unique("workload"))
    problems = {
        f"a run on {run.facts['device']}": run.facts["device"] != old.facts["device"],
        "a quick run": run.quick,
        f"a run of {run.facts['commit']}": "dirty" in run.facts["commit"],
        f"without {', '.join(lacking)}": len(lacking) > 0,
    }
    if found := [problem for problem, is_so in problems.items() if is_so]:
        parser.error(f"{path}: {found[0]}; expected a full run of a commit on {old.facts['device']}")
    text = README.read_text()
    new = text.replace(table_of(text), markdown(run))
    if path.resolve() != MEASURED:
        shutil.copyfile(path, MEASURED)
    draw(run, MEASURED.with_suffix(".png"))
    README.write_text(new)
    return 0


def table_of(text: str) -> str:
    """The part of the README that ``markdown`` wrote."""
    found = _TABLE.search(text)
    if not found:
        raise ValueError(f"{README}: no table with the header `| workload |`; expected one to replace")
    return found[0]


if __name__ == "__main__":
    sys.exit(main())
