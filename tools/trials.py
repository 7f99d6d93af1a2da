"""Runs tests of the kernels on mutants: pytest collects once, and each trial is a fork of that process.

A mutant costs what its tests cost and no more: nothing is imported or collected again. The kernels come from
a folder, a copy of the package's with one thing changed; the checkout is never written to.
"""

import ast
import builtins
import contextlib
import importlib
import itertools
import json
import math
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

TESTS = Path(__file__).resolve().parents[1] / "tests"
KERNELS = TESTS.parent / "stn_triton" / "kernels"
# Those that launch kernels and check what comes out; others run the plain PyTorch path.
FILES = (
    *("test_blocks.py", "test_search.py", "test_variants.py"),
    *("test_kernels.py", "test_splines.py", "test_derivatives.py"),
)


class Trial(NamedTuple):
    """What a run of some tests came to; ``killer`` is the test that failed, None if all passed."""

    killer: str | None
    how: str
    seconds: float  # of CPU time
    passed: dict[str, dict]  # by test: its seconds, and the lines it reached where they were asked for


def collected(work: Callable[[dict], object], files: Iterable[Path], options: Iterable[str] = ()) -> int:
    """Let pytest collect the files, and call ``work`` with the tests by name; pytest's exit code."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # kernels are interpreted
    import hypothesis
    import pytest
    import torch

    torch.set_num_threads(1)  # a forked process has no thread pool
    # An example that fails is enough: no smaller one is looked for.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("mutants", phases=phases, database=None)
    hypothesis.settings.load_profile("mutants")

    class Loop:
        def pytest_runtestloop(self, session):
            warm()
            work({f"{item.path.name}::{item.nodeid.partition('::')[2]}": item for item in session.items})
            return True

    plugins = [f"-pno:{name}" for name in ("xdist", "terminal", "cacheprovider", "faulthandler")]
    return pytest.main([*plugins, "-s", "-o", "addopts=", *options, *map(str, files)], [Loop()])


def kernel_modules() -> dict[str, ModuleType]:
    return {name: module for name, module in sys.modules.items() if name.startswith("stn_triton.kernels.")}


def warm() -> None:
    """Triton's interpreter rewrites each function when it is first called: once, and not in every fork."""
    from triton.runtime.interpreter import InterpretedFunction

    for module in kernel_modules().values():
        for function in list(vars(module).values()):
            if isinstance(function, InterpretedFunction):
                function.rewrite()


def use(file: Path) -> None:
    """Load a file of kernels in place of the package's, and give what is in it to all that imported it."""
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
"""Lines of kernels, by file: what `marked` files add to while they run."""


def marked(path: Path) -> str:
    """The source of a file of kernels, in which each statement says that it is reached.

    Tracing would do without, but costs more than the interpreter: this costs nothing.
    """
    tree = ast.parse(path.read_text())
    bodies = [
        body
        for function in tree.body
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        for body in (getattr(node, "body", []), getattr(node, "orelse", []))
        if isinstance(body, list)
    ]
    for body in bodies:
        for statement in list(body):
            inner = getattr(statement, "body", None)
            end = inner[0].lineno - 1 if inner else statement.end_lineno
            call = f"__reached__({path.name!r}, {statement.lineno}, {end})"
            body.insert(body.index(statement), ast.parse(call).body[0])
    return ast.unparse(tree)


def _reach(name: str, first: int, last: int) -> None:
    REACHED.setdefault(name, set()).update(range(first, last + 1))


def _one(item, next_item) -> tuple[str | None, dict]:
    """Run a test. Why it failed, or None; its CPU time, and the lines of marked files that it reached."""
    from _pytest.runner import runtestprotocol

    REACHED.clear()
    start = time.process_time()
    reports = runtestprotocol(item, log=False, nextitem=next_item)
    facts: dict = {"seconds": round(time.process_time() - start, 3)}
    if REACHED:
        facts["lines"] = {name: sorted(lines) for name, lines in REACHED.items()}
    for report in reports:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            return str(crash.message if crash else report.longrepr).strip().split("\n")[0][:200], facts
    return None, facts


def _child(write: int, items: list, files: Iterable[Path], limits: Mapping[str, float]) -> None:
    """Tell of every test in a line of JSON, until one fails."""
    tell = os.fdopen(write, "w", buffering=1)
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1), os.dup2(quiet, 2)
    try:
        builtins.__reached__ = _reach
        for file in files:
            use(file)
    except Exception as error:
        print(json.dumps({"failed": "import", "why": f"{type(error).__name__}: {error}"[:200]}), file=tell)
        return
    for (name, item), (_, next_item) in zip(items, [*items[1:], (None, None)], strict=True):
        # A loop without end takes CPU time, which no other process does: busy machines kill nothing.
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        limit = math.ceil(used + limits.get(name, 3600))
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        print(json.dumps({"started": name}), file=tell)
        why, facts = _one(item, next_item)
        print(json.dumps({"failed": name, "why": why} if why else {"passed": name, **facts}), file=tell)
        if why:
            return


class Fork:
    """Runs (name, item) pairs in a process of its own until one fails.

    ``files`` of kernels take the place of the package's. ``limits`` are seconds of CPU time, by test, after
    which it is called endless.
    """

    def __init__(self, items: list, files: Iterable[Path] = (), limits: Mapping[str, float] | None = None):
        self.count, self.passed, self.started, self.killer, self.how = len(items), {}, None, None, ""
        read, write = os.pipe()
        self.process = os.fork()
        if self.process == 0:
            with contextlib.suppress(BaseException):
                os.close(read)
                _child(write, items, files, limits or {})
            os._exit(0)
        os.close(write)
        self.told = os.fdopen(read, "rb", buffering=0)
        self.rest = b""

    def fileno(self) -> int:
        return self.told.fileno()

    def listen(self) -> Trial | None:
        """Read what the process told meanwhile; in the end, what came out."""
        data = self.told.read(2**20)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for event in map(json.loads, lines):
            self.started = event.get("started", self.started)
            self.killer, self.how = event.get("failed", self.killer), event.get("why", self.how)
            if "passed" in event:
                self.passed[event.pop("passed")] = event
        return None if data else self._end()

    def _end(self) -> Trial:
        self.told.close()
        _, status, usage = os.wait4(self.process, 0)
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            self.killer = self.started
            self.how = "endless" if number == signal.SIGXCPU else signal.Signals(number).name
        elif self.killer is None and len(self.passed) < self.count:
            self.killer, self.how = self.started, "left the process"
        return Trial(self.killer, self.how, round(usage.ru_utime + usage.ru_stime, 2), self.passed)

    def kill(self) -> None:
        os.kill(self.process, signal.SIGKILL)


def in_a_copy(mutated: Path) -> Trial:
    """Run the tests of large tensors in a copy of the checkout: some compile in processes of their own.

    RuntimeError if pytest does not get to run them.
    """
    start = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as place:
        for name in ("stn_triton", "perf", "tests"):
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(TESTS.parent / name, Path(place) / name, ignore=ignored)
        shutil.copy(TESTS.parent / "pyproject.toml", place)
        shutil.copy(mutated, Path(place) / "stn_triton" / "kernels")
        options = ("-x", "-q", "-p", "no:xdist", "-o", "addopts=")
        command = [sys.executable, "-m", "pytest", *options, "tests/test_large.py"]
        done = subprocess.run(
            command, cwd=place, env={**os.environ, "PYTHONPATH": place}, capture_output=True, text=True
        )
    end = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = round(end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime, 2)
    found = re.search(r"^(?:FAILED|ERROR) tests/(.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and not found):
        raise RuntimeError(f"pytest ends with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    killer, how = found.groups("") if found else (None, "")
    return Trial(killer, how, seconds, {})


def run_all(forks: Iterable[Callable[[], Fork]], jobs: int) -> Iterator[tuple[int, Trial]]:
    """Start forks one after the other, so many at once; the number and the outcome of each as it ends."""
    waiting = enumerate(forks)
    running: dict[Fork, int] = {}
    try:
        while True:
            for number, start in itertools.islice(waiting, jobs - len(running)):
                running[start()] = number
            if not running:
                return
            for fork in select.select(list(running), [], [])[0]:
                trial = fork.listen()
                if trial is not None:
                    yield running.pop(fork), trial
    finally:
        for fork in running:
            fork.kill()
