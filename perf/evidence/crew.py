"""Tasks done side by side, each result as it comes, in processes that may crash."""

from __future__ import annotations

import concurrent.futures as futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

T = TypeVar("T")
CRASHED = "its process crashed"


def each(
    function: Callable[..., Any], tasks: Sequence[T], workers: int, *arguments: object
) -> Iterator[tuple[T, Any]]:
    """Call ``function(task, *arguments)`` for each task; yields the task and its result, or its exception.

    Tasks begin in their order, so the longest should be first. Where a process crashes, those that ran at the
    time are tried once more, one at a time: only the one that crashes again has failed.
    """
    left = yield from _together(function, tasks, workers, arguments)
    while left:
        again = yield from _together(function, left[:1], 1, arguments)
        if again:
            yield again[0], RuntimeError(CRASHED)
        left = left[1:]


def _together(
    function: Callable[..., Any], tasks: Sequence[T], workers: int, arguments: tuple[object, ...]
) -> Iterator[tuple[T, Any]]:
    """The results of all tasks; returns those that were lost with a process."""
    # Spawned: a forked child may not use a GPU that its parent has used.
    context = multiprocessing.get_context("spawn")
    lost: list[T] = []
    with futures.ProcessPoolExecutor(min(workers, max(len(tasks), 1)), mp_context=context) as pool:
        waiting: dict[futures.Future, T] = {}
        for task in tasks:
            try:
                waiting[pool.submit(function, task, *arguments)] = task
            except BrokenProcessPool:
                lost.append(task)
        for future in futures.as_completed(waiting):
            try:
                yield waiting[future], future.result()
            except BrokenProcessPool:
                lost.append(waiting[future])
            except Exception as error:  # whatever it is, the other tasks go on
                yield waiting[future], error
    return lost
