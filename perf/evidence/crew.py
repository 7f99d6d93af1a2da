"""Tasks done side by side, each result as it comes, in processes that may crash."""

from __future__ import annotations

import collections
import concurrent.futures as futures
import multiprocessing
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
CRASHED = "its process crashed"


class SpoiltError(RuntimeError):
    """This process cannot go on: what follows in it would fail by no fault of its own."""


def check_gpu() -> None:
    """Raise a ``SpoiltError`` if the GPU answers no more in this process, after what ran in it before."""
    import torch

    from perf.measuring import stopwatch

    if torch.cuda.is_initialized() and not stopwatch.is_alive(torch.device("cuda")):
        raise SpoiltError("the GPU answers no more in this process")


def each(
    function: Callable[..., Any], tasks: Sequence[T], workers: int, *arguments: object
) -> Iterator[tuple[T, Any]]:
    """Call ``function(task, *arguments)`` for each task; yields the task and its result, or its exception.

    Tasks begin in their order, so the longest should be first. If a process crashes, what ran at that time is
    tried once more, one task at a time, and what had not begun goes on in new processes.
    """
    waiting, lost = collections.deque(tasks), []
    while waiting:
        yield from _together(function, waiting, workers, arguments, lost)
    for task in lost:
        again: list[T] = []
        yield from _together(function, collections.deque([task]), 1, arguments, again)
        if again:
            yield task, RuntimeError(CRASHED)


def _together(
    function: Callable[..., Any],
    waiting: collections.deque[T],
    workers: int,
    arguments: tuple[object, ...],
    lost: list[T],
) -> Iterator[tuple[T, Any]]:
    """Take tasks until none waits or a process is lost; tasks that ran at that time are put into ``lost``."""
    # Spawned: a forked child may not use a GPU that its parent has used.
    context = multiprocessing.get_context("spawn")
    is_whole = True
    with futures.ProcessPoolExecutor(min(workers, len(waiting)), mp_context=context) as pool:
        running: dict[futures.Future, T] = {}
        while running or (waiting and is_whole):
            while waiting and is_whole and len(running) < workers:
                try:
                    running[pool.submit(function, waiting[0], *arguments)] = waiting[0]
                    waiting.popleft()
                except BrokenProcessPool:
                    is_whole = False
            for future in futures.wait(running, return_when=futures.FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    result = future.result()
                except (BrokenProcessPool, SpoiltError):
                    lost.append(task)
                    is_whole = False
                except Exception as error:  # whatever it is, the other tasks go on
                    traceback.print_exception(error, file=sys.stderr)
                    yield task, error
                else:
                    yield task, result
