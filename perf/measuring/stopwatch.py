"""Timing: samples of several functions, taken in turns so that a drift of the machine meets all of them.

Each function is a list of runs that differ only in where their arguments lie in memory. They are called one
after the other, so that the memory that a run reads has left the cache since its last turn.
"""

import collections
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Samples = dict[str, list[float]]
Runs = Sequence[Callable[[], object]]


@dataclass(frozen=True)
class Effort:
    """How long to measure one pass of one workload under one map."""

    cpu_seconds: float  # for all providers together; but at least ``cpu_rounds``
    cpu_rounds: int
    gpu_rounds: int
    gpu_ms_per_round: float  # for each provider
    most_copies: int  # largest number of copies of the arguments


FULL = Effort(cpu_seconds=1.0, cpu_rounds=5, gpu_rounds=5, gpu_ms_per_round=12, most_copies=256)
QUICK = Effort(cpu_seconds=0.1, cpu_rounds=3, gpu_rounds=3, gpu_ms_per_round=4, most_copies=4)
_UNTIMED = 5  # calls at the beginning of a turn: after a wait the host is slow (on an EPYC up to 3.6 times)


def cache_bytes(device: torch.device) -> int:
    """The size of the last cache before the memory; 32 MiB where it is unknown."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    sizes = [p.read_text() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size.strip().removesuffix("K")) * 1024 for size in sizes), default=32 * 2**20)


def copies_beyond_cache(least_bytes: int, device: torch.device, effort: Effort) -> int:
    """How many copies of arguments, of which a call reads ``least_bytes``, exceed the cache twice."""
    return min(max(math.ceil(2 * cache_bytes(device) / max(least_bytes, 1)), 1), effort.most_copies)


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """The 20, 50 and 80 % quantiles."""
    return tuple(np.quantile(samples, (0.2, 0.5, 0.8)).tolist())


def sample(functions: Mapping[str, Runs], device: torch.device, effort: Effort) -> Samples:
    """Milliseconds of each call of each function, the first run of which must have been called."""
    if device.type != "cpu":
        return _sample_gpu(functions, effort)
    samples: Samples = {name: [] for name in functions}
    order, shuffled = list(functions), random.Random(0)
    turns = {name: itertools.cycle(runs) for name, runs in functions.items()}
    end = time.perf_counter() + effort.cpu_seconds
    while len(samples[order[0]]) < effort.cpu_rounds or time.perf_counter() < end:
        shuffled.shuffle(order)  # what one function leaves in the caches then meets all the others
        for name in order:
            run = next(turns[name])
            start = time.perf_counter()
            run()
            samples[name].append((time.perf_counter() - start) * 1e3)
    return samples


def _sample_gpu(functions: Mapping[str, Runs], effort: Effort) -> Samples:
    """CUDA events around each call; the host waits only between the turns of functions.

    So a call that takes the host longer to launch than the GPU to do counts with the host's time.
    """
    turns = {name: itertools.cycle(runs) for name, runs in functions.items()}
    calls = {}
    for name, turn in turns.items():
        estimate = sorted(_timed_calls(turn, 3, len(functions[name]), before=_UNTIMED))[1]
        calls[name] = min(max(round(effort.gpu_ms_per_round / max(estimate, 1e-3)), 3), 100)
    samples: Samples = {name: [] for name in functions}
    for _ in range(effort.gpu_rounds):
        for name, turn in turns.items():
            before = min(_UNTIMED, calls[name] // 4)  # long calls are few, and the host's time is not theirs
            samples[name] += _timed_calls(turn, calls[name], len(functions[name]), before)
    return samples


def _timed_calls(turn: Iterator[Callable[[], object]], count: int, copies: int, before: int) -> list[float]:
    """Milliseconds of each of the next calls, by events of the GPU, after some that are not timed."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(count)]
    for event in itertools.chain(*events):  # the first record makes an event, in a call's time otherwise
        event.record()
    # Results stay a while, or all calls would write into the same memory, which is in the cache.
    results: collections.deque[object] = collections.deque(maxlen=copies)
    for _ in range(before):
        results.append(next(turn)())
    for start, end in events:
        run = next(turn)
        start.record()
        results.append(run())
        end.record()
    torch.cuda.synchronize()
    return [start.elapsed_time(end) for start, end in events]


_failed_captures: list[str] = []


def replayed(functions: Mapping[str, Runs], effort: Effort) -> tuple[dict[str, float], dict[str, Exception]]:
    """Medians, in milliseconds per call, of CUDA graphs of each function's runs; and why others have none.

    A replay launches all of a graph at once, so the host's time does not count. After a failed capture none
    is tried in this process: PyTorch before 2.12 leaves its allocator believing that the capture goes on.
    """
    graphs, errors = {}, {}
    for name, runs in functions.items():
        if _failed_captures:
            errors[name] = RuntimeError(f"not tried, since a capture of {_failed_captures[0]} failed")
            continue
        try:
            graphs[name] = [_captured(runs).replay]
        except Exception as error:  # any error belongs in the report
            _failed_captures.append(name)
            errors[name] = error.__context__ or error
            torch.cuda.synchronize()
    samples = _sample_gpu(graphs, effort)
    return {name: quantiles(values)[1] / len(functions[name]) for name, values in samples.items()}, errors


def _captured(runs: Runs) -> torch.cuda.CUDAGraph:
    # PyTorch wants a call on a side stream before the capture.
    stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
    stream.wait_stream(current)
    with torch.cuda.stream(stream):
        runs[0]()
    current.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            results = [run() for run in runs]  # all at once, so that each has memory of its own
            del results
    finally:
        torch.cuda.set_stream(current)  # a failed capture leaves its own
    return graph


def is_alive(device: torch.device) -> bool:
    """Whether a GPU still works for this process; after an illegal address it does not."""
    try:
        torch.zeros(1, device=device).cpu()
    except RuntimeError:
        return False
    return True


def peak_bytes(run: Callable[[], object]) -> int:
    """Bytes that a call on the current GPU allocates at most, besides its arguments."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() - before
