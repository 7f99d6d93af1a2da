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
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from stn_triton import search, tables
from stn_triton.options import INPUT_DTYPES, Options
from stn_triton.search import Config, Launch

CONFIG_KEYS = ("BLOCK_C", "STEPS_C", "RUN_C", "BLOCK_H", "BLOCK_W", "num_warps")
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES}
_MANY_PROGRAMS = 4096
SHIPPED = Path(__file__).parent / "tuned"
MOST_CANDIDATES = 6
"""Configurations that a search in a call tries; compiling them is what takes long."""
epoch = 0
"""Grows when `autotune` is entered. Between two such moments a bucket always gets the same configuration.

Except from a chooser, and in a CUDA graph capture, where a bucket that should be searched gets its default.
"""
_searching = threading.Lock()
_counting = threading.Lock()
_asking = 0  # contexts that are open; those of several threads may overlap
_found: dict[tuple[str, Bucket], Config] = {}
_chooser: Chooser | None = None
LANES_C = 16
"""Channels from which on lanes run over channels, where these lie side by side."""


class Bucket(NamedTuple):
    """Launches that share a configuration. Raw sizes would mean a tuning for every image size."""

    kernel: str
    """forward, backward, backward_input (no grad_theta), scatter (the same with atomics), theta or fill."""
    variant: str
    """What is compiled differently: 2d-bilinear-zeros and so on, see ``variant_of``."""
    layout: str
    """nchw; channels_last; channels_last_16 if the channel count is a multiple of 16: 128-bit accesses."""
    dtype: str
    """Of the image: float32 and so on."""
    channels: int
    """Rounded up to a power of two, at most 128."""
    pixels: int
    """Of one plane that programs tile, rounded up to a power of 8, 64 to 32768."""
    planes: int
    """Images times channels, rounded up to a power of 8, 8 to 4096: whether small tiles must fill the GPU."""

    def name(self) -> str:
        """The bucket as a key of a table."""
        names = (self.kernel, self.variant, self.layout, self.dtype)
        return "/".join((*names, f"c{self.channels}", f"p{self.pixels}", f"n{self.planes}"))

    @classmethod
    def parse(cls, name: str) -> Bucket | None:
        """The bucket of a key; None if it is no key."""
        match = re.fullmatch(r"(\w+)/([\w-]+)/(nchw|channels_last(?:_16)?)/(\w+)/c(\d+)/p(\d+)/n(\d+)", name)
        return match and cls(*match.groups()[:4], *map(int, match.groups()[4:]))

    def is_boxed(self) -> bool:
        """Whether it is a gather by boxes, see `kernels/boxes.py`."""
        return self.kernel == "backward_input" and "spline" in self.variant.split("-")

    def is_heavy(self) -> bool:
        """Whether a thread keeps so much per pixel that it should have fewer channels."""
        heavy = {"3d", "bicubic", "reflection", "projective", "tangent"}
        return self.is_boxed() or bool(heavy & set(self.variant.split("-")))

    def has_steps(self) -> bool:
        """Whether a program may go through several blocks of channels one after the other.

        A gather must list the output pixels of its tile for that, see `kernels/backward.py`.
        """
        flags = set(self.variant.split("-"))
        return self.kernel != "fill" and not (self.is_heavy() or flags & {"antialias", "many"})

    def lane(self) -> int:
        """Channels that one lane reads at once."""
        return 16 // getattr(torch, self.dtype).itemsize if self.layout == "channels_last_16" else 1


@functools.lru_cache(maxsize=1024)
def variant_of(dim: int, projective: bool, many: bool, tangent: bool, options: Options) -> str:
    """The name of what is compiled; align_corners changes a few scalars only."""
    flags = {
        "projective": projective,
        "spline": bool(options.points),
        "many": many,
        "antialias": options.antialias,
        "tangent": tangent,
    }
    names = (f"{dim}d", options.mode, options.padding_mode)
    return "-".join((*names, *(name for name, is_set in flags.items() if is_set)))


@functools.lru_cache(maxsize=1024)
def bucket_of(
    kernel: str, variant: str, channels_last: bool, dtype: torch.dtype, n: int, c: int, pixels: int
) -> Bucket:
    """The bucket of a launch over n images of c channels and so many pixels."""
    layout = ("channels_last_16" if c % 16 == 0 else "channels_last") if channels_last else "nchw"
    name = str(dtype).removeprefix("torch.")
    sizes = _up(c, 1, 1, 128), _up(pixels, 3, 64, 2**15), _up(n * c, 3, 8, 4096)
    return Bucket(kernel, variant, layout, name, *sizes)


def _up(value: int, step: int, least: int, most: int) -> int:
    exponent = max(value - 1, 0).bit_length()
    return min(max(2 ** (-(-exponent // step) * step), least), most)


def space(bucket: Bucket) -> list[Config]:
    """The configurations worth trying for a bucket, the default first."""
    configs = [default(bucket)]
    blocks_c = [c for c in (1, 4, 8, 16, 32, 64, 128) if c <= bucket.channels]
    runs_c = (1,) if bucket.layout == "nchw" or bucket.channels < 16 else (1, 16, 32)
    tiles = (((2, 8), 2), ((4, 8), 4), ((8, 8), 2), ((8, 8), 4), ((8, 16), 4), ((16, 16), 4), ((16, 16), 8))
    for block_c, steps_c, run_c, (tile, num_warps) in itertools.product(
        blocks_c, (1, 2, 4, 8, 16), runs_c, tiles
    ):
        config = _config(block_c, steps_c, run_c, *tile, num_warps)
        elements = block_c * tile[0] * tile[1] // (32 * num_warps)
        is_worth_it = elements >= min(bucket.channels, 4) and (steps_c == 1 or block_c >= 8)
        if is_worth_it and _fits(bucket, config) and config not in configs:
            configs.append(config)
    return configs


def _fits(bucket: Bucket, config: Config) -> bool:
    """Whether each thread has something to do and registers for it, and the kernel has such loops.

    A thread has one lane or two, and at most 32 values: what a kernel unrolls is bounded by that. With 256
    threads at most, each may have the 255 registers that there are.
    """
    block_c, steps_c, run_c, block_h, block_w, num_warps = (config[key] for key in CONFIG_KEYS)
    threads = 32 * num_warps
    lanes = run_c * block_h * block_w // bucket.lane()
    return (
        bucket.lane() <= run_c <= block_c
        and (run_c == 1 or bucket.layout != "nchw")
        and block_c * steps_c <= bucket.channels
        and (steps_c == 1 or bucket.has_steps())
        and block_c * block_h * block_w <= 32 * threads
        and threads <= lanes <= 2 * threads
        and num_warps <= 8
    )


def default(bucket: Bucket) -> Config:
    """Conservative: 128 threads, each with one pixel and up to 16 channels of it, fewer if it keeps more.

    Where there is work for many programs, one goes through several blocks of channels, or a thread through
    two pixels: what a program does once then counts for less.
    """
    values = 8 if bucket.kernel == "theta" or bucket.is_heavy() else 16
    if bucket.dtype == "float64":
        values //= 4 if bucket.is_heavy() else 2
    flags = set(bucket.variant.split("-"))
    if {"bicubic", "tangent"} <= flags:  # weights and slopes of 16 taps
        values //= 4 if "antialias" in flags else 2
    values = max(values, 1)
    if bucket.layout == "nchw" or bucket.channels < 16:
        block_h, block_w = (8, 8) if bucket.pixels <= 64 or bucket.is_boxed() else (8, 16)
        config = _config(min(bucket.channels, values), 1, 1, block_h, block_w, block_h * block_w // 32)
    else:
        run_c = 16
        if bucket.layout == "channels_last":  # lanes of single channels, whose masks cost registers
            run_c, values = 4, min(values, 8)
        lanes = run_c // bucket.lane()
        block_h, block_w = {1: (8, 16), 2: (8, 8), 4: (4, 8), 8: (2, 8)}[lanes]
        groups = max(values // bucket.lane(), 1)
        config = _config(min(bucket.channels, groups * run_c), 1, run_c, block_h, block_w, 4)
    return _larger(bucket, config) if bucket.has_steps() and bucket.dtype != "float64" else config


def _larger(bucket: Bucket, config: Config) -> Config:
    """More work for a program, as long as there remain thousands of them."""

    def programs(config: Config) -> int:  # at most eight times as many as there are
        tile = config["BLOCK_C"] * config["STEPS_C"] * config["BLOCK_H"] * config["BLOCK_W"]
        return bucket.planes * bucket.pixels // tile

    if bucket.kernel.startswith("backward"):
        # A list of output pixels pays from about 32 channels on a thread.
        if bucket.layout == "nchw":
            for steps_c in (16, 8, 4):
                larger = {**config, "BLOCK_C": 8, "STEPS_C": steps_c}
                if 8 * steps_c <= bucket.channels and programs(larger) >= _MANY_PROGRAMS:
                    return larger
        return config
    while config["BLOCK_C"] * config["STEPS_C"] < min(bucket.channels, 64):
        larger = {**config, "STEPS_C": 2 * config["STEPS_C"]}
        if programs(larger) < _MANY_PROGRAMS:
            break
        config = larger
    larger = {**config, "BLOCK_H": 16}
    is_small = bucket.layout == "nchw" and config["BLOCK_H"] == 8 and config["BLOCK_W"] == 16
    return larger if is_small and programs(larger) >= _MANY_PROGRAMS else config


def _config(*values: int) -> Config:
    return dict(zip(CONFIG_KEYS, values, strict=True))


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


@contextlib.contextmanager
def autotune() -> Iterator[None]:
    """Let calls on a GPU search for the fastest block sizes: a context, or a decorator of a function.

    The first call of each kind (kernel, mode, padding, layout, dtype, channels, pixels) that the shipped
    table does not have compiles at most 6 configurations, on all cores, and times them on its own arguments.
    After 30 seconds it takes the best so far. The choice stays until the process ends; nothing is written. It
    holds in all threads, since PyTorch has one for backwards. Calls in a CUDA graph capture do not search.

    ``STN_TRITON_AUTOTUNE=1``, set before the first call, does the same for a whole process.

    Example:
        >>> with stn_triton.autotune():
        ...     loss = training_step(batch)
    """
    global _asking, epoch
    with _counting:
        _asking += 1
        epoch += 1
    try:
        yield
    finally:
        with _counting:
            _asking -= 1


def configuration(bucket: Bucket, device: torch.device, run: Launch) -> Config:
    """The configuration for a bucket on a device; ``run`` launches the kernel with one, for a search."""
    if _chooser is not None:
        return _chooser(bucket, run)
    if device.type != "cuda":
        return default(bucket)
    name = _device_name(device.index)
    known = shipped(name).get(bucket) or _found.get((name, bucket))
    if known is not None:
        return known
    is_asked = _asking or os.environ.get("STN_TRITON_AUTOTUNE") == "1"
    if not is_asked or torch.cuda.is_current_stream_capturing():
        return default(bucket)
    with _searching:  # one thread searches, the others wait for what it finds
        if (name, bucket) not in _found:
            _found[name, bucket] = search.fastest_of(candidates(bucket, MOST_CANDIDATES), run, bucket.name())
    return _found[name, bucket]


def candidates(bucket: Bucket, most: int) -> list[Config]:
    """What a search tries for a bucket, the default first."""
    return search.nearest(space(bucket), most)


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
    if bucket.dtype not in _DTYPES or not isinstance(config, dict) or sorted(config) != sorted(CONFIG_KEYS):
        return False
    if not all(type(v) is int and 0 < v <= 256 and v & (v - 1) == 0 for v in config.values()):
        return False
    return _fits(bucket, config)
