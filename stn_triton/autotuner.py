"""The search for the fastest of a few configurations: all are compiled in parallel, then each is timed."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

Config = dict[str, int]
Launch = Callable[[Config], object]
"""Runs a kernel with a configuration, on the arguments of the call at hand."""
SECONDS = 30.0
"""Time limit of a search for compilations, in seconds. Configurations that take longer are left out."""
_SECONDS_UNSAID = 2.0
_NOISE = 0.02
_LATE = "not compiled in time"
_log = logging.getLogger("stn_triton")


def nearest(configs: Sequence[Config], most: int) -> list[Config]:
    """The first configuration, and those that differ least from it, the nearest first: ``most`` in total.

    Each factor of two in a value counts one. The first is a default, and better ones tend to be near it.
    """
    first, *others = configs

    def distance(config: Config) -> float:
        return sum(abs(math.log2(value / first[key])) for key, value in config.items())

    return [first, *sorted(others, key=distance)[: most - 1]]


def fastest_of(configs: Sequence[Config], run: Launch, what: str) -> Config:
    """Find the fastest configuration, or return the first if no other is clearly faster, or if none runs.

    Configurations that are not compiled after 30 seconds are left out. A search of over two seconds logs a
    warning with the name ``what``.
    """
    from triton.testing import do_bench

    text = "stn_triton: searching for the fastest block sizes of %s, for at most about %.0f s"
    say = threading.Timer(_SECONDS_UNSAID, _log.warning, (text, what, SECONDS))
    say.daemon = True
    say.start()
    timed = []
    try:
        for config, error in zip(configs, compile_ahead(configs, run, SECONDS), strict=True):
            if error is not None:
                continue
            # A configuration that fails is left out. An error of the call itself is raised by the winner too.
            with contextlib.suppress(Exception):
                launch = functools.partial(run, config)
                timed.append((config, do_bench(launch, warmup=5, rep=20, quantiles=(0.2, 0.5, 0.8))))
    finally:
        say.cancel()
    return fastest(configs[0], timed)


def fastest(default: Config, timed: Sequence[tuple[Config, Sequence[float]]]) -> Config:
    """The configuration with the least median of those timed, each with its 20, 50 and 80 % quantiles.

    The default wins ties within noise: another one must be faster by over 2 % in the median, and its 80 %
    quantile must be below the default's 20 % quantile.
    """
    quantiles = next((times for config, times in timed if config == default), None)
    if quantiles is not None:
        low, median, _ = quantiles
        most = (1 - _NOISE) * median
        timed = [entry for entry in timed if entry[1][1] < most and entry[1][2] < low]
    return min(timed, key=lambda entry: entry[1][1])[0] if timed else default


def compile_ahead(configs: Sequence[Config], run: Launch, seconds: float) -> list[Exception | None]:
    """Compile a launch in some configurations, on all cores if this Triton can.

    Returns when all are compiled, or after ``seconds`` if at least one is. A compilation that has begun
    cannot be stopped: it goes on, and the process ends only after it.

    Returns:
        None or an exception for each configuration; TimeoutError if it is not compiled yet.
    """
    import triton

    if triton.knobs.runtime.interpret:
        return [None] * len(configs)
    mode = getattr(triton, "AsyncCompileMode", None)
    if mode is None:
        return _compile_by_launching(configs, run, seconds)

    class Aside(mode):
        """Compile kernels in other threads, where Triton would compile and launch them."""

        def submit(self, key: Any, compile_fn: Any, finalize_fn: Any, *_: Any) -> None:
            raise _SubmittedError(self.executor.submit(compile_fn), finalize_fn)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        with Aside(pool):
            begun = [_outcome(lambda config=config: run(config)) for config in configs]
        futures = [job.future for job in begun if isinstance(job, _SubmittedError)]
        done = wait(futures, seconds).done or wait(futures, return_when=FIRST_COMPLETED).done
        return [job.finish(done) if isinstance(job, _SubmittedError) else job for job in begun]
    except RuntimeError:  # the caller has an active mode of its own
        return _compile_by_launching(configs, run, seconds)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _compile_by_launching(configs: Sequence[Config], run: Launch, seconds: float) -> list[Exception | None]:
    end = time.monotonic() + seconds
    outcomes: list[Exception | None] = []
    for config in configs:
        is_late = None in outcomes and time.monotonic() > end
        outcomes.append(TimeoutError(_LATE) if is_late else _outcome(lambda config=config: run(config)))
    return outcomes


class _SubmittedError(Exception):
    """Raised to leave a launch instead of waiting for its kernel."""

    def __init__(self, future: Future, finalize: Callable[[Any], None]) -> None:
        super().__init__()
        self.future = future
        self._finalize = finalize

    def finish(self, done: set[Future]) -> Exception | None:
        """Put the kernel into Triton's cache of this process, if it is compiled."""
        if self.future not in done:
            return TimeoutError(_LATE)
        return _outcome(lambda: self._finalize(self.future.result()))


def _outcome(function: Callable[[], object]) -> Exception | None:
    try:
        function()
    except Exception as error:
        return error.with_traceback(None)  # frames would keep tensors alive
    return None
