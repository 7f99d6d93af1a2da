"""Block sizes: which there are, which to use, and how to ask for a search.

Configurations are data. A bucket (kernel, layout, dtype, channels, pixels) names one in the table that the
package ships for a GPU, ``tuned/<gpu>.json``; for any other bucket there is a default, computed from the
bucket alone. No call tunes unless it is asked to (`autotune`), so results have the same bits in every
process. ``python -m perf tune`` makes a table.

``triton.autotune`` is not used because its key is made of kernel arguments, which have no buckets, its
results cannot be shipped, and it would tune inside a capture.
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
"""Configurations that a search in a call tries; compiling them is what takes long."""
_searching = threading.Lock()
_counting = threading.Lock()
_asking = 0  # contexts that are open; those of several threads may overlap
_found: dict[tuple[str, Bucket], Config] = {}
_chooser: Chooser | None = None
Chooser = Callable[[Bucket, Launch], Config]


@contextlib.contextmanager
def choosing(chooser: Chooser) -> Iterator[None]:
    """Leave the choice to a function, on every device and in every thread: PyTorch has one for backwards."""
    global _chooser
    before, _chooser = _chooser, chooser
    try:
        yield
    finally:
        _chooser = before


def is_choosing() -> bool:
    """Whether a function chooses: what it returns for a bucket may differ from call to call."""
    return _chooser is not None


def state() -> tuple[int, bool]:
    """As long as it is the same, a bucket gets the same configuration.

    Except from a chooser, and in the capture of a CUDA graph, where what should be searched gets its default.
    """
    return len(_found), _asking > 0


class autotune(contextlib.ContextDecorator):  # noqa: N801, as torch.no_grad
    """Let calls on a GPU search for the fastest block sizes: a context, or a decorator of a function.

    The first call of each kind (kernel, mode, padding, layout, dtype, channels, pixels, images) that the
    shipped table does not have compiles at most 6 configurations, on all cores, and times them on its own
    arguments. What is not compiled after 30 seconds is left out. The choice stays until the process ends;
    nothing is written. It holds in all threads, since PyTorch has one for backwards. Calls in the capture of
    a CUDA graph do not search, nor do calls on a CPU, which have no block sizes.

    ``STN_TRITON_AUTOTUNE=1``, set before the first call, does the same for a whole process.

    Example:
        >>> with stn_triton.autotune():
        ...     loss = training_step(batch)
    """

    def __enter__(self) -> None:
        """Searches begin."""
        global _asking
        with _counting:
            _asking += 1

    def __exit__(self, *error: object) -> None:
        """They end, unless another thread or context still asks for them."""
        global _asking
        with _counting:
            _asking -= 1


def asked_by_environment() -> bool:
    """Whether STN_TRITON_AUTOTUNE asks for searches."""
    return os.environ.get("STN_TRITON_AUTOTUNE") == "1"


def configuration(bucket: Bucket, device: torch.device, run: Launch) -> Config:
    """The configuration for a bucket on a device; ``run`` launches the kernel with one, for a search."""
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
    with _searching:  # one thread searches, the others wait for what it finds
        if (name, bucket) not in _found:
            _found[name, bucket] = autotuner.fastest_of(
                candidates(bucket, MOST_CANDIDATES), run, bucket.name()
            )
    return _found[name, bucket]


def candidates(bucket: Bucket, most: int) -> list[Config]:
    """What a search tries for a bucket, the default first."""
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
    """An entry of a table; None if it is none, or one that a kernel could not run."""
    try:
        bucket = Bucket.parse(name)
    except ValueError:  # a number of thousands of digits
        return None
    is_entry = bucket is not None and bucket.name() == name and _is_valid(bucket, config)
    return (bucket, config) if is_entry else None


def _is_valid(bucket: Bucket, config: object) -> bool:
    """Powers of two that the bucket's kernel can use: a wrong run would address wrong memory.

    And such as a space has had or may have, though perhaps not today's: a table for older kernels is used.
    """
    if (
        bucket.dtype not in _DTYPES
        or not isinstance(config, dict)
        or sorted(config) != sorted(policy.CONFIG_KEYS)
    ):
        return False
    if not all(type(value) is int and 0 < value <= 256 for value in config.values()):
        return False
    # Three channels may be a block of their own: RUN_C, which is as long as a tensor's axis, is 1 then.
    is_three = bucket.channels == config["BLOCK_C"] == 3
    others = [value for key, value in config.items() if not (is_three and key == "BLOCK_C")]
    if any(value & (value - 1) for value in others):
        return False
    return policy.fits(bucket, config)
