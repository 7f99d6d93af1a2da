"""Run NVIDIA's compute-sanitizer on the tests of the kernels: memcheck, racecheck, initcheck. Needs a GPU.

    python tools/sanitize.py
    python tools/sanitize.py --tools memcheck --logs logs -- tests/test_kernels.py -k identity

Every tool runs all tests once, many times slower than usual, and writes its reports and the output of pytest
to a folder. PyTorch's memory cache is off, because a stray access within one of its large blocks would cross
no boundary. Tests of CUDA graphs, which need the cache, are left out, and so are tests of huge tensors.
For the same reason tests/memory.py lays tensors out without guard bands and poison.

Exit codes: 0 nothing found; 1 a tool found something, or a test failed; 2 no compute-sanitizer or no GPU.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

TOOLS = ("memcheck", "racecheck", "initcheck")
TESTS = (
    "tests/test_gpu.py",
    "tests/test_memory.py",
    "-k",
    "not graph and not overhead and not 2_31 and not hundred",
)
FOUND = 86  # the exit code of a tool that found errors
_SUMMARIES = (
    re.compile(r"ERROR SUMMARY: (\d+) errors?"),
    re.compile(r"RACECHECK SUMMARY: \d+ hazards? displayed \((\d+) errors?, \d+ warnings?\)"),
)


class Outcome(NamedTuple):
    """The report of one tool."""

    tool: str
    errors: int
    summaries: int
    """Number of processes that reported; 0 if nothing was checked."""
    exit_code: int

    def is_clean(self) -> bool:
        """Return whether the tool ran, found nothing, and all tests passed."""
        return self.errors == 0 and self.summaries > 0 and self.exit_code == 0

    def line(self) -> str:
        """Return the outcome as a line of text."""
        if not self.summaries:
            return f"{self.tool}: FAIL, no report: it did not run (exit code {self.exit_code})"
        what = f"{self.errors} errors in {self.summaries} processes"
        if self.exit_code not in (0, FOUND):
            what += f", and pytest failed (exit code {self.exit_code})"
        return f"{self.tool}: {'PASS' if self.is_clean() else 'FAIL'}, {what}"


def find_sanitizer() -> str | None:
    """Look for compute-sanitizer in the PATH and in CUDA toolkits at the usual places."""
    folders = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")] + ["/usr/local/cuda"]
    paths = [os.environ.get("PATH", "")] + [f"{folder}/bin" for folder in folders if folder]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(paths))


def count_errors(reports: Sequence[str]) -> tuple[int, int]:
    """Count the errors and the summaries in all reports."""
    counts = [int(n) for text in reports for pattern in _SUMMARIES for n in pattern.findall(text)]
    return sum(counts), len(counts)


def run_tool(sanitizer: str, tool: str, logs: Path, tests: Sequence[str]) -> Outcome:
    """Run the tests under a tool. Reports go to ``<tool>.<process>.log``, other output to ``<tool>.txt``."""
    for old in logs.glob(f"{tool}.*"):
        old.unlink()
    command = [sanitizer, "--tool", tool, "--target-processes", "all", "--error-exitcode", str(FOUND)]
    command += ["--log-file", str(logs / f"{tool}.%p.log"), sys.executable]
    command += ["-m", "pytest", "-p", "no:cacheprovider", "-n", "0", "-m", "full or not full", *tests]
    settings = {
        "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
        "STN_TRITON_SANITIZED": "1",
        "STN_TRITON_AUTOTUNE": "0",
    }
    environment = {**os.environ, **settings}
    with (logs / f"{tool}.txt").open("w") as output:
        done = subprocess.run(command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    reports = [path.read_text(errors="replace") for path in sorted(logs.glob(f"{tool}.*.log"))]
    return Outcome(tool, *count_errors(reports), done.returncode)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [-- ...]",
    )
    parser.add_argument(
        "--tools", nargs="+", choices=TOOLS, default=TOOLS, help="which to run (default: all)"
    )
    parser.add_argument("--logs", type=Path, default=Path("sanitizer-logs"), help="folder of the reports")
    parser.add_argument("tests", nargs="*", metavar="...", help=f"for pytest; default: {' '.join(TESTS)}")
    given = parser.parse_args(arguments)
    sanitizer = find_sanitizer()
    if sanitizer is None:
        print(
            "no compute-sanitizer in PATH, CUDA_HOME or /usr/local/cuda: install a CUDA toolkit",
            file=sys.stderr,
        )
        return 2
    if not torch.cuda.is_available():
        print("no GPU: torch.cuda finds none", file=sys.stderr)
        return 2
    given.logs.mkdir(parents=True, exist_ok=True)
    outcomes = []
    for tool in given.tools:
        print(f"{tool}: running, see {given.logs / tool}.txt", flush=True)
        outcomes.append(run_tool(sanitizer, tool, given.logs, given.tests or TESTS))
        print(outcomes[-1].line(), flush=True)
    return 0 if all(outcome.is_clean() for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
