"""Run tests of the kernels on mutants: pytest collects once, and each trial is a fork of that process.

A trial therefore takes no longer than its tests: nothing is imported or collected again. The mutated kernels
are loaded from a temporary folder; the checkout is never written to.
"""

import ast
import builtins
import contextlib
import importlib
import itertools
import json
import math
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "stn_triton" / "kernels"
# Tests that launch kernels and check the results; others run the plain PyTorch path.
FILES = [
    *("test_blocks.py", "test_search.py", "test_variants.py", "test_kernels.py", "test_splines.py"),
    *("test_derivatives.py", "test_scatter.py", "test_memory.py", "test_large.py"),
]
FILES = [ROOT / "tests" / name for name in FILES]


class Trial(NamedTuple):
    """The outcome of some tests."""

    killer: str | None
    """The test that failed; None if all passed."""
    how: str
    seconds: float
    """CPU time of the trial."""
    passed: dict[str, dict]
    """For each test that passed, its ``seconds`` and the ``lines`` of marked files that it reached."""


def collected(work: Callable[[dict], object], files: Iterable[Path], options: Iterable[str]) -> int:
    """Collect the files with pytest, call ``work`` with the tests by name, and return pytest's exit code."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # kernels are interpreted
    import pytest
    import torch

    torch.set_num_threads(1)  # a forked process has no thread pool

    class Loop:
        def pytest_runtestloop(self, session: pytest.Session) -> bool:
            rewrite_kernels()
            work({f"{item.path.name}::{item.nodeid.partition('::')[2]}": item for item in session.items})
            return True

    plugins = [f"-pno:{name}" for name in ("xdist", "terminal", "cacheprovider", "faulthandler")]
    return pytest.main([*plugins, "-s", "-o", "addopts=", *options, *map(str, files)], [Loop()])


def kernel_modules() -> dict[str, ModuleType]:
    """Return the modules of kernels by name."""
    return {name: module for name, module in sys.modules.items() if name.startswith("stn_triton.kernels.")}


def rewrite_kernels() -> None:
    """Prepare the kernels for Triton's interpreter once, instead of at the first call in every fork."""
    from triton.runtime.interpreter import InterpretedFunction

    for module in kernel_modules().values():
        for function in list(vars(module).values()):
            if isinstance(function, InterpretedFunction):
                function.rewrite()


def use(file: Path) -> None:
    """Load a file of kernels in place of the package's, and update all modules that import its names."""
    sys.modules["stn_triton.kernels"].__path__ = [str(file.parent)]
    importlib.invalidate_caches()
    mutated = sys.modules[f"stn_triton.kernels.{file.stem}"]
    before = dict(vars(mutated))
    importlib.reload(mutated)
    for module in kernel_modules().values():
        for name, value in vars(mutated).items():
            if not name.startswith("_") and vars(module).get(name) is before.get(name, module):
                setattr(module, name, value)
    if "stn_triton.launch" in sys.modules:
        importlib.reload(sys.modules["stn_triton.launch"])


REACHED: dict[str, set[int]] = {}
"""Lines of kernels that marked files have reached, by file name."""


def marked(path: Path) -> str:
    """Return the source of a file of kernels in which each statement reports that it is reached.

    Tracing would need no change of the source, but takes more time than the interpreter itself.
    """
    tree = ast.parse(path.read_text())
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    for node in [inner for function in functions for inner in ast.walk(function)]:
        for body in (getattr(node, "body", None), getattr(node, "orelse", None)):
            for statement in list(body) if isinstance(body, list) else ():
                inner = getattr(statement, "body", None)
                end = inner[0].lineno - 1 if inner else statement.end_lineno
                call = f"__reached__({path.name!r}, {statement.lineno}, {end})"
                body.insert(body.index(statement), ast.parse(call).body[0])
    return ast.unparse(tree)


def _reach(name: str, first: int, last: int) -> None:
    REACHED.setdefault(name, set()).update(range(first, last + 1))


def _failure(item: object, next_item: object) -> str | None:
    """Run a test and return why it failed, or None."""
    from _pytest.runner import runtestprotocol

    for report in runtestprotocol(item, log=False, nextitem=next_item):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            return str(crash.message if crash else report.longrepr).strip().split("\n")[0][:200]
    return None


def _run(items: list, files: Iterable[Path], limits: Mapping[str, float], report: Callable) -> None:
    """Run (name, item) pairs on files of kernels until a test fails, and report each as a dictionary."""
    try:
        builtins.__reached__ = _reach
        for file in files:
            use(file)
    except Exception as error:
        return report({"failed": "import", "why": f"{type(error).__name__}: {error}"[:200]})
    for (name, item), (_, next_item) in itertools.pairwise([*items, (None, None)]):
        # A limit of CPU time stops endless loops only, not tests that are slow on a busy machine.
        limit = math.ceil(time.process_time() + limits.get(name, 3600))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        report({"started": name})
        REACHED.clear()
        start = time.process_time()
        if why := _failure(item, next_item):
            return report({"failed": name, "why": why})
        lines = {file: sorted(found) for file, found in REACHED.items()}
        report({"passed": name, "seconds": round(time.process_time() - start, 3), "lines": lines})
    return None


def _child(path: Path, *task: object) -> None:
    """Run a task in the forked process, write its reports as lines of JSON, and exit."""
    with contextlib.suppress(BaseException):
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1), os.dup2(quiet, 2)
        with path.open("w", buffering=1) as file:
            _run(*task, lambda fact: print(json.dumps(fact), file=file))
    os._exit(0)


def _outcome(path: Path, status: int, seconds: float) -> Trial:
    """Read the reports of a process that has ended."""
    started, killer, how, passed = None, None, "", {}
    for event in map(json.loads, path.read_text().splitlines()):
        started = event.get("started", started)
        killer, how = event.get("failed", killer), event.get("why", how)
        if "passed" in event:
            passed[event["passed"]] = {"seconds": event["seconds"], "lines": event["lines"]}
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        killer, how = started, "endless" if number == signal.SIGXCPU else signal.Signals(number).name
    elif killer is None and started is not None and started not in passed:
        killer, how = started, "left the process"
    return Trial(killer, how, round(seconds, 2), passed)


def run_all(tasks: Iterable[tuple], jobs: int) -> Iterator[tuple[int, Trial]]:
    """Run tasks in forks of this process, ``jobs`` at once.

    Args:
        tasks: (name, item) pairs, files of kernels that take the place of the package's, and for each name
            the seconds of CPU time after which the test counts as endless.
        jobs: number of processes at once.

    Yields:
        The number of a task and its outcome, in the order in which tasks end.
    """
    waiting, running = enumerate(tasks), {}
    with tempfile.TemporaryDirectory() as folder:
        while True:
            for number, task in itertools.islice(waiting, jobs - len(running)):
                path = Path(folder) / str(number)
                path.touch()
                process = os.fork()
                if process == 0:
                    _child(path, *task)
                running[process] = number
            if not running:
                return
            process, status, usage = os.wait4(-1, 0)
            number = running.pop(process)
            yield number, _outcome(Path(folder) / str(number), status, usage.ru_utime + usage.ru_stime)
