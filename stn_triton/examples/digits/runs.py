"""Plans of networks to train, and their training in worker processes with a progress bar."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from stn_triton.examples.digits import data
from stn_triton.examples.digits.models import MODELS
from stn_triton.examples.digits.training import Result, Settings, State, Task, train

FIRST_SEED = 1
"""Not 0: the settings were chosen with seed 0."""
_POLL = 0.5  # seconds


@dataclass(frozen=True)
class Plan:
    """The networks and settings of a run."""

    models: dict[str, tuple[str, ...]]
    """Models by distortion."""
    seeds: int
    settings: Settings

    def tasks(self) -> list[Task]:
        """List all networks, seed by seed, so that an unfinished run has whole columns early."""
        return [
            Task(distortion, model, seed)
            for seed in range(FIRST_SEED, FIRST_SEED + self.seeds)
            for distortion, names in self.models.items()
            for model in names
        ]


FULL = Plan(
    {
        **dict.fromkeys(("R", "RTS", "P", "E"), tuple(MODELS)),
        "TC": ("fcn", "cnn", "st-fcn-affine", "st-cnn-affine"),
        "U": ("cnn",),
        "UL": ("cnn",),
    },
    seeds=3,
    settings=Settings(),
)
QUICK = Plan({"RTS": FULL.models["TC"]}, seeds=2, settings=Settings(steps=700, test_copies=4))


class WorkerError(RuntimeError):
    """A worker process ended without a result."""


def finished(
    tasks: Iterable[Task], settings: Settings, source: data.Source, folder: Path
) -> dict[Task, Result]:
    """Find the tasks whose networks are trained, and their results.

    Raises:
        UsageError: a file is damaged, or was made with other settings.
    """
    found = {task: State(folder, task, settings, source).result() for task in tasks}
    return {task: result for task, result in found.items() if result is not None}


def run(
    tasks: Sequence[Task],
    settings: Settings,
    source: data.Source,
    data_folder: Path | None,
    folder: Path,
    jobs: int,
) -> dict[Task, Result]:
    """Train every network that is not trained yet, each in one thread.

    Args:
        tasks: the networks.
        settings: settings of the run.
        source: the digits.
        data_folder: folder of the digits, for worker processes.
        folder: folder of the networks' files.
        jobs: networks trained at once; 1 trains in this process.

    Raises:
        UsageError: a file is damaged, or was made with other settings.
        WorkerError: a worker process was killed.
    """
    results = finished(tasks, settings, source, folder)
    left = [task for task in tasks if task not in results]
    if not left:
        return results
    if results:
        print(f"{len(results)} of {len(tasks)} networks are trained already, in {folder}", file=sys.stderr)
    bar = tqdm(
        total=settings.steps * len(left), unit="step", disable=None, dynamic_ncols=True, smoothing=0.02
    )
    with bar:

        def done(task: Task, result: Result) -> None:
            results[task] = result
            line = f"[{len(results)}/{len(tasks)}] {task.label}: {result.error:.2f} % error"
            tqdm.write(f"{line}, {result.cpu_seconds:.0f} s of CPU", file=sys.stderr)

        if jobs == 1 or len(left) == 1:
            for task in left:
                done(task, train(task, settings, source, folder, bar.update))
        else:
            for task, result in _in_processes(
                left, min(jobs, len(left)), bar.update, settings, data_folder, folder
            ):
                done(task, result)
    return {task: results[task] for task in tasks}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Set one thread: the networks are too small for more, and processes may be many."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _in_processes(
    tasks: Sequence[Task],
    jobs: int,
    progress: Callable[[int], None],
    settings: Settings,
    data_folder: Path | None,
    folder: Path,
) -> Iterator[tuple[Task, Result]]:
    context = multiprocessing.get_context("spawn")
    steps, stop = context.Queue(), context.Event()
    arguments = (steps, stop, settings, data_folder, folder)
    with ProcessPoolExecutor(jobs, context, _begin, arguments) as pool:
        try:
            running: dict[Future[Result], Task] = {pool.submit(_work, task): task for task in tasks}
            while running:
                ended, _ = wait(running, timeout=_POLL, return_when=FIRST_COMPLETED)
                with contextlib.suppress(queue.Empty):
                    while True:
                        progress(steps.get_nowait())
                for future in ended:
                    task = running.pop(future)
                    try:
                        yield task, future.result()
                    except BrokenExecutor as error:
                        raise WorkerError(
                            f"a worker process was killed while it trained {task.label}, perhaps for lack of "
                            "memory; the same command goes on from there, with --jobs 1 in one process"
                        ) from error
        except BaseException:
            # Workers check the event every few steps; their saved states stay.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: dict = {}


def _begin(steps, stop, settings: Settings, data_folder: Path | None, folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first stops the others
    torch.set_num_threads(1)
    _worker.update(steps=steps, stop=stop, settings=settings, folder=folder, source=data.load(data_folder))


def _work(task: Task) -> Result:
    def progress(count: int) -> None:
        if _worker["stop"].is_set() or not multiprocessing.parent_process().is_alive():
            raise InterruptedError("the run was stopped")
        _worker["steps"].put(count)

    return train(task, _worker["settings"], _worker["source"], _worker["folder"], progress)
