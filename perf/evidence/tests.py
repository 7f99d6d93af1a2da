"""The project's GPU tests, side by side; each result as it comes.

Only pytest is needed, no plugin and none of `tests/conftest.py`: the tests of `test_gpu.py` use neither.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Sequence

from perf.evidence import crew
from perf.evidence.conductor import ROOT
from perf.evidence.stage import Record, Stage

GPU_TESTS = "tests/test_gpu.py"
REHEARSED, REHEARSED_LARGE = "tests/test_files.py", "directory"
"""What a rehearsal runs: tests that need no GPU."""
LARGE = "2_31"
"""In the names of tests that want most of a GPU's memory for themselves."""


def run(item: str, stage: Stage) -> Iterator[Record]:
    """The tests of a file, but for those that need a GPU for themselves."""
    if importlib.util.find_spec("pytest") is None:
        yield {"ok": True, "what": item, "problem": "not run: pytest is not installed"}
        return
    yield from _results(REHEARSED if stage.rehearse else item, stage, stage.facts["workers"])


def alone(item: str, stage: Stage) -> Iterator[Record]:
    """The tests that need a GPU for themselves, one after the other."""
    if importlib.util.find_spec("pytest") is None:
        return
    yield from _results(REHEARSED if stage.rehearse else item, stage, 1, large=True)


def _results(path: str, stage: Stage, workers: int, large: bool = False) -> Iterator[Record]:
    mark = REHEARSED_LARGE if stage.rehearse else LARGE
    groups: dict[str, list[str]] = {}
    for name in reversed(collected(path)):  # the slow ones stand at the end
        if (mark in name) == large:  # the cases of a function may share kernels: few processes do them in one
            groups.setdefault(name.partition("[")[0] if workers <= 2 else name, []).append(name)
    if not large:
        yield {"ok": True, "planned": sum(map(len, groups.values()))}
    for names, found in crew.each(outcomes, list(groups.values()), workers):
        if isinstance(found, Exception):
            yield {"ok": False, "what": names[0], "problem": f"{type(found).__name__}: {found}"}
            continue
        for name, outcome, message in found:
            yield {"ok": outcome != "failed", "what": name, "status": outcome, "problem": message}


class _Collector:
    def __init__(self) -> None:
        self.ids: list[str] = []
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_collection_finish(self, session) -> None:
        self.ids = [item.nodeid for item in session.items]

    def pytest_runtest_logreport(self, report) -> None:
        """A failure of the set-up counts as the test's."""
        if report.when == "call" or report.outcome != "passed":
            crash = getattr(report.longrepr, "reprcrash", None)
            message = (
                "" if report.passed else " ".join((crash.message if crash else str(report.longrepr)).split())
            )
            self.found[report.nodeid] = (report.outcome, message[:300])


def collected(path: str) -> list[str]:
    """The ids of the tests of a file."""
    collector = _Collector()
    _pytest(["--collect-only", path], collector)
    if not collector.ids:
        raise RuntimeError(f"{path}: pytest finds no tests")
    return collector.ids


def outcomes(ids: Sequence[str]) -> list[tuple[str, str, str]]:
    """Run tests; each with its outcome and what is wrong."""
    crew.check_gpu()
    collector = _Collector()
    _pytest(ids, collector)
    left = [(name, "failed", "it did not run") for name in ids if name not in collector.found]
    return [*((name, *found) for name, found in collector.found.items()), *left]


def _pytest(arguments: Sequence[str], plugin: _Collector) -> None:
    """Run pytest in this process, which stands in the checkout, without its configuration and conftest."""
    import pytest

    # Plugins that happen to be installed would load themselves.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ.pop("PYTEST_ADDOPTS", None)
    options = ["-q", "-c", os.devnull, "--rootdir", str(ROOT), "--noconftest", "-p", "no:cacheprovider"]
    pytest.main([*options, "-W", "ignore", *arguments], plugins=[plugin])
