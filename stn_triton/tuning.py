"""Block sizes: which there are, which to use, and how they are found.

Configurations are data. A bucket (kernel, layout, dtype, channels, pixels) names a configuration in a table
of one GPU: first the table that the package ships (``tuned/<gpu>.json``), then the user's own, in the
cache directory. A bucket in neither is tuned on its first call and written to the user's, unless a CUDA
graph is being captured or ``STN_TRITON_AUTOTUNE=0``; then the default is used.

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stn_triton import tables
from stn_triton.options import INPUT_DTYPES, Options

Config = dict[str, int]
CONFIG_KEYS = ("BLOCK_C", "STEPS_C", "RUN_C", "BLOCK_H", "BLOCK_W", "num_warps")
_DTYPES = {str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES}
_MANY_PROGRAMS = 4096
SHIPPED = Path(__file__).parent / "tuned"
_NOISE = 0.02
_lock = threading.Lock()
_loading = threading.Lock()
_tables: dict[str, dict[Bucket, Config]] = {}
_chooser: Chooser | None = None
LANES_C = 16
"""Channels from which on lanes run over channels, where these lie side by side."""
epoch = 0
"""Grows whenever a later call may get other block sizes than an earlier one for the same bucket."""


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


def _after_fork() -> None:
    """The child has no thread that would ever release the locks it inherited."""
    global _lock, _loading
    _lock, _loading = threading.Lock(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


Launch = Callable[[Config], object]
"""Runs a kernel with a configuration, on the arguments of the call at hand."""
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
    """Whether block sizes are left to the function of `choosing`."""
    return _chooser is not None


def configuration(bucket: Bucket, device: torch.device, run: Launch) -> Config:
    """The configuration for a bucket on a device; ``run`` launches the kernel with one, for tuning."""
    if _chooser is not None:
        return _chooser(bucket, run)
    if device.type != "cuda":
        return default(bucket)
    name = _device_name(device.index)
    table = _table(name)
    found = table.get(bucket)
    if found is not None:
        return found
    if os.environ.get("STN_TRITON_AUTOTUNE", "1") == "0" or torch.cuda.is_current_stream_capturing():
        return default(bucket)
    with _lock:
        if bucket not in table:
            table[bucket], is_lasting = tune(bucket, run)
            if is_lasting:
                _keep(name, bucket, table[bucket])
    return table[bucket]


def tune(bucket: Bucket, run: Launch) -> tuple[Config, bool]:
    """The fastest configuration of the bucket's space, or the default if none is clearly faster or runs.

    Timed with the arguments of the call at hand, its theta included.

    Returns:
        The configuration, for this process, and whether later ones should have it too. They tune anew if the
        default could not be timed, because the GPU's memory was full for example: whatever won had no rival.
    """
    from triton.testing import do_bench

    timed = []
    for config in space(bucket):
        # One that does not compile or fit is no loss; an error of the call itself returns with the winner.
        with contextlib.suppress(Exception):
            launch = functools.partial(run, config)
            timed.append((config, do_bench(launch, warmup=5, rep=20, quantiles=(0.2, 0.5, 0.8))))
    usual = default(bucket)
    return fastest(usual, timed), any(config == usual for config, _ in timed)


def fastest(default: Config, timed: Sequence[tuple[Config, Sequence[float]]]) -> Config:
    """The configuration of the least median among those timed, each with its 20, 50 and 80 % quantiles.

    The default wins ties within noise: another must be faster by over 2 % in the median, and in most of its
    samples than in most of the default's.
    """
    quantiles = next((times for config, times in timed if config == default), None)
    if quantiles is not None:
        low, median, _ = quantiles
        most = (1 - _NOISE) * median
        timed = [entry for entry in timed if entry[1][1] < most and entry[1][2] < low]
    return min(timed, key=lambda entry: entry[1][1])[0] if timed else default


@functools.cache
def _device_name(index: int) -> str:
    return torch.cuda.get_device_name(index)


def _table(device: str) -> dict[Bucket, Config]:
    """What is known of a GPU; one dict for all threads, also for those that ask at the same time."""
    if device not in _tables:
        with _loading:
            if device not in _tables:
                _tables[device] = tables.known(device, SHIPPED, checked)
    return _tables[device]


def checked(name: str, config: object) -> tuple[Bucket, Config] | None:
    """An entry of a table; None if it is none, or one that a kernel could not run."""
    try:
        bucket = Bucket.parse(name)
    except ValueError:  # a number of thousands of digits
        return None
    is_entry = bucket is not None and bucket.name() == name and _is_valid(bucket, config)
    return (bucket, config) if is_entry else None


def write_table(path: Path, device: str, found: Mapping[Bucket, Config]) -> None:
    """Add to a table what was found for these kernels; what it has for others is dropped.

    Raises:
        OSError: it cannot be written; the table is as it was.
    """
    configs = {bucket.name(): config for bucket, config in found.items()}
    table = tables.Table(device, tables.kernels(), configs)
    tables.merge(path, table, checked)


def _keep(device: str, bucket: Bucket, config: Config) -> None:
    """Add to the user's table; a disk that refuses costs only that, and so does a place open to everyone."""
    path = tables.cache_path(device)
    if tables.distrusted(path):  # told when the table was looked for
        return
    try:
        write_table(path, device, {bucket: config})
    except OSError as error:
        tables.tell_once(f"{path} cannot be written ({error.strerror}): every process tunes anew")


def shipped_configurations() -> list[tuple[Bucket, Config]]:
    """All buckets and configurations of all shipped tables."""
    return [
        entry for path in sorted(SHIPPED.glob("*.json")) for entry in tables.load(path, checked)[0].items()
    ]


def _is_valid(bucket: Bucket, config: object) -> bool:
    """Powers of two that the bucket's kernel can use: a wrong run would address wrong memory.

    And such as a space has had or may have, though perhaps not today's: a table for older kernels is used.
    """
    if bucket.dtype not in _DTYPES or not isinstance(config, dict) or sorted(config) != sorted(CONFIG_KEYS):
        return False
    if not all(type(v) is int and 0 < v <= 256 and v & (v - 1) == 0 for v in config.values()):
        return False
    return _fits(bucket, config)
