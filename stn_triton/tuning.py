"""Block sizes: the choice between shipped tables, defaults, and searches.

Configurations are data. The package may ship a table for a GPU, ``tuned/<gpu>.json``, that maps buckets
(kernel, layout, dtype, channels, pixels) to configurations. Any other bucket has a default, computed from the
bucket alone. Without `autotune` no call searches, so results have the same bits in every process.
``python -m perf tune`` makes a table.

``triton.autotune`` is not used because its keys are exact kernel arguments instead of buckets, its results
cannot be shipped, and it would search in the capture of a CUDA graph.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from stn_triton import autotuner, policy, tables
from stn_triton.autotuner import Config, Launch
from stn_triton.buckets import Bucket
from stn_triton.options import INPUT_DTYPES

_DTYPES = {str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES}
SHIPPED = Path(__file__).parent / "tuned"
MOST_CANDIDATES = 6
"""Number of configurations that a search in a call tries. Most of its time is spent on compiling them."""
_searching = threading.Lock()
_counting = threading.Lock()
_asking = 0  # number of open contexts; those of several threads may overlap
_found: dict[tuple[str, Bucket], Config] = {}
_chooser: Chooser | None = None
Chooser = Callable[[Bucket, Launch], Config]


@contextlib.contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Leave the choice to a function, on all devices and in all threads: backwards have their own."""
    global _chooser
    before, _chooser = _chooser, chooser
    try:
        yield
    finally:
        _chooser = before


def is_choosing() -> bool:
    """Whether a function chooses. Its choice for a bucket may differ from call to call."""
    return _chooser is not None


def state() -> tuple[int, bool]:
    """A state that changes whenever a bucket's configuration may change.

    Exceptions are a chooser, and the capture of a CUDA graph, which uses defaults instead of searches.
    """
    return len(_found), _asking > 0


class autotune(contextlib.ContextDecorator):  # noqa: N801, as torch.no_grad
    """Search for the fastest block sizes in calls on a GPU, as a context or as a decorator of a function.

    Each kind of call (kernel, mode, padding, layout, dtype, channels, pixels, images) is searched once,
    unless the shipped table has it. Its first call compiles at most 6 configurations on all cores and times
    them on the arguments of the call. Configurations that are not compiled after 30 seconds are left out. The
    choice is kept until the process ends; nothing is written to disk. The context applies to all threads,
    because PyTorch has one for backwards. Calls on a CPU or in the capture of a CUDA graph do not search.

    ``STN_TRITON_AUTOTUNE=1``, set before the first call, does the same for a whole process.

    Example:
        >>> with stn_triton.autotune():
        ...     loss = training_step(batch)
    """

    def __enter__(self) -> None:
        """Begin to search."""
        global _asking
        with _counting:
            _asking += 1

    def __exit__(self, *error: object) -> None:
        """End the searches, unless another context, of any thread, is still open."""
        global _asking
        with _counting:
            _asking -= 1


def asked_by_environment() -> bool:
    """Whether STN_TRITON_AUTOTUNE turns searches on."""
    return os.environ.get("STN_TRITON_AUTOTUNE") == "1"


def configuration(bucket: Bucket, device: torch.device, run: Launch) -> Config:
    """The configuration for a bucket on a device. A search launches the kernel by ``run(configuration)``."""
    if _chooser is not None:
        return _chooser(bucket, run)
    if device.type != "cuda":
        return policy.default(bucket)
    name = _device_name(device.index)
    known = shipped(name).get(bucket) or _found.get((name, bucket))
    if known is not None:
        return known
    is_asked = _asking or asked_by_environment()
    if not is_asked or torch.cuda.is_current_stream_capturing():
        return policy.default(bucket)
    with _searching:  # one thread searches, the others wait for its result
        if (name, bucket) not in _found:
            _found[name, bucket] = autotuner.fastest_of(
                candidates(bucket, MOST_CANDIDATES), run, bucket.name()
            )
    return _found[name, bucket]


def candidates(bucket: Bucket, most: int) -> list[Config]:
    """The configurations that a search tries for a bucket, the default first."""
    return autotuner.nearest(policy.space(bucket), most)


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


@functools.cache
def shipped(device: str) -> Mapping[Bucket, Config]:
    """The table that the package ships for a GPU, empty if there is none."""
    return tables.load(SHIPPED / f"{tables.slug(device)}.json", checked, device)


def shipped_configurations() -> list[tuple[Bucket, Config]]:
    """All buckets and configurations of all shipped tables."""
    return [entry for path in sorted(SHIPPED.glob("*.json")) for entry in tables.load(path, checked).items()]


def checked(name: str, config: object) -> tuple[Bucket, Config] | None:
    """A valid entry of a table; None if the entry is malformed, or if a kernel could not run it."""
    try:
        bucket = Bucket.parse(name)
    except ValueError:  # Python refuses to parse a number of thousands of digits
        return None
    is_entry = bucket is not None and bucket.name() == name and _is_valid(bucket, config)
    return (bucket, config) if is_entry else None


def _is_valid(bucket: Bucket, config: object) -> bool:
    """Whether all values are powers of two that the bucket's kernel can use; others may address wrong memory.

    The configuration need not be in today's `policy.space`, because tables for older kernels are used too.
    """
    if (
        bucket.dtype not in _DTYPES
        or not isinstance(config, dict)
        or sorted(config) != sorted(policy.CONFIG_KEYS)
    ):
        return False
    if not all(type(value) is int and 0 < value <= 256 for value in config.values()):
        return False
    # Three channels may be one block. Triton needs powers of two only along the axis RUN_C, which is 1 then.
    is_three = bucket.channels == config["BLOCK_C"] == 3
    others = [value for key, value in config.items() if not (is_three and key == "BLOCK_C")]
    if any(value & (value - 1) for value in others):
        return False
    return policy.fits(bucket, config)
