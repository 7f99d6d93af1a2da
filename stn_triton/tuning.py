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
_NEIGHBOURS = (  # of a default, by what its values are multiplied with
    {"BLOCK_W": 2, "num_warps": 2},
    {"BLOCK_W": 0.5},
    {"BLOCK_W": 2},
    {"STEPS_C": 0.5},
    {"BLOCK_C": 0.5, "BLOCK_W": 2},
    {"BLOCK_C": 2},
    {"BLOCK_C": 0.5},
    {"STEPS_C": 2},
    {"BLOCK_W": 0.5, "num_warps": 0.5},
    {"BLOCK_H": 2, "BLOCK_W": 2, "num_warps": 4},
    {"BLOCK_C": 2, "STEPS_C": 0.5},
    {"BLOCK_C": 0.5, "STEPS_C": 2},
    {"RUN_C": 2},
    {"RUN_C": 0.5},
    {"RUN_C": 0.5, "BLOCK_W": 2},
    {"BLOCK_H": 2, "num_warps": 2},
    {"BLOCK_C": 2, "BLOCK_W": 0.5},
)
SHIPPED = Path(__file__).parent / "tuned"
_NOISE = 0.02
_lock = threading.Lock()
_loading = threading.Lock()
_tables: dict[str, dict[Bucket, Config]] = {}
_chooser: Chooser | None = None


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
    """Exact up to 4, else rounded up to a power of two, at most 256."""
    pixels: int
    """Of one plane that programs tile, rounded up to a power of 8, 64 to 2^21."""
    planes: int
    """Images times channels, rounded up to a power of 8, 8 to 2^18: whether small tiles must fill the GPU."""

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

    def is_gather(self) -> bool:
        """Whether a program owns pixels of the input and searches those of the output that sample them."""
        return self.kernel.startswith("backward")

    def is_heavy(self) -> bool:
        """Whether a thread keeps so much per pixel that it should have fewer channels."""
        heavy = {"3d", "bicubic", "reflection", "projective", "tangent"}
        return self.is_boxed() or bool(heavy & set(self.variant.split("-")))

    def has_steps(self) -> bool:
        """Whether a program may go through several blocks of channels one after the other.

        A gather must list the output pixels of its tile for that, see `kernels/backward.py`.
        """
        flags = set(self.variant.split("-"))
        if self.is_gather():
            return not (self.is_heavy() or flags & {"antialias", "many"})
        return self.kernel != "fill" and not flags & {"antialias", "tangent"}

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
    sizes = c if c <= 4 else _up(c, 1, 1, 256), _up(pixels, 3, 64, 2**21), _up(n * c, 3, 8, 2**18)
    return Bucket(kernel, variant, layout, name, *sizes)


def _up(value: int, step: int, least: int, most: int) -> int:
    exponent = max(value - 1, 0).bit_length()
    return min(max(2 ** (-(-exponent // step) * step), least), most)


def is_fused(variant: str) -> bool:
    """Whether one gather for both gradients beats a gather for the input's and a kernel for theta's.

    It reads less, but keeps more: volumes at the identity take 2,630 instructions a pixel in one kernel and
    1,910 + 350 in two, bicubic RGB 1,316 and 922 + 215. Bilinear RGB takes 252 and 184 + 74, and 256 channels
    in bf16 76 and 51 + 23, where two kernels read grad_output twice.
    """
    return not {"3d", "bicubic"} & set(variant.split("-"))


def space(bucket: Bucket) -> list[Config]:
    """At most 16 configurations worth trying for a bucket: the default, then what differs little from it.

    The first six are those that a search inside a call should try.
    """
    base = default(bucket)
    found = [base]
    if bucket.is_gather() and bucket.has_steps() and bucket.channels >= 32 and bucket.dtype != "float64":
        # A list of hits, for few channels at a time: it loads each of them from 9 output pixels, and the time
        # to compile grows with the square of that. It is up to 4.5 s for these, 74 s for 32 channels.
        block_c, run_c, warps = (16, 16, 4) if bucket.lane() > 1 else (4, 1, 2)
        found.append(_config(block_c, bucket.channels // block_c, run_c, 8, 8, warps))
    for factors in _NEIGHBOURS:
        if bucket.is_gather() and "STEPS_C" in factors:
            continue
        config = {key: max(int(base[key] * factors.get(key, 1)), 1) for key in CONFIG_KEYS}
        if config["BLOCK_H"] > config["BLOCK_W"]:
            config["BLOCK_H"], config["BLOCK_W"] = config["BLOCK_W"], config["BLOCK_H"]
        found.append(config)
    good = [config for i, config in enumerate(found) if config not in found[:i] and _fits(bucket, config)]
    return good[:16]


def _fits(bucket: Bucket, config: Config) -> bool:
    """Whether each thread has something to do and registers for it, and the kernel has such loops.

    A thread has one to four lanes, and at most 32 values: what a kernel unrolls is bounded by that. With 256
    threads at most, each may have the 255 registers that there are.
    """
    block_c, steps_c, run_c, block_h, block_w, num_warps = (config[key] for key in CONFIG_KEYS)
    threads = 32 * num_warps
    lanes = run_c * block_h * block_w // bucket.lane()
    return (
        bucket.lane() <= run_c <= block_c
        and block_c % run_c == 0
        and (run_c == 1 or bucket.layout != "nchw")
        and block_c * steps_c <= bucket.channels
        and (steps_c == 1 or bucket.has_steps())
        and block_c * block_h * block_w <= 32 * threads
        and threads <= lanes <= 4 * threads
        and num_warps <= 8
    )


def default(bucket: Bucket) -> Config:
    """The configuration that is used without a search.

    It had the fewest instructions per channel of a pixel among those counted in sm_90 code (Triton 3.6; fp32
    where nothing else is said) or, where instructions do not bind, more warps for the same bound. Small
    launches get smaller tiles, so that their programs fill a GPU.
    """
    values, channels, is_gather = _values(bucket), bucket.channels, bucket.is_gather()
    if bucket.is_boxed():  # pixels are in all lanes, whatever the layout
        return _config(min(channels, values), 1, 1, 8, 8, 2)
    if bucket.lane() > 1 and is_gather:
        # Two lanes read whole 32-byte sectors; with more, more lanes repeat the search for each pixel. 256
        # channels in bf16 take 76 instructions, enlarged twice 61; with a list of hits 60, but enlarged 132.
        run_c = 2 * bucket.lane()
        config = _config(min(channels, max(2 * values, run_c)), 1, run_c, 4, 4, 1)
        tiles = ((4, 8), (4, 4)) if channels < 64 else ((4, 4),)
    elif bucket.lane() > 1:
        # 23 instructions, 17 in bf16; with tiles of 4 x 8 pixels 31.
        config = _config(min(channels, max(2 * values, 16)), 1, 16, 8, 8, 4)
        tiles = ((8, 8),)
    elif bucket.layout == "channels_last" and channels >= 16:
        # Lanes of single channels, whose masks cost registers.
        config = _config(min(channels, 4 * min(values, 8)), 1, 4, 4, 8, 4)
        tiles = ((4, 8),)
    else:
        # Pixels of a thread share its setup: with 1, 2 and 4 of them RGB takes 111, 78, 60 instructions in
        # the forward and 411, 289, 252 in the gather. A gather of one warp has no barriers and fewer
        # candidates: 64 channels take 103 instructions, with two warps 125; with a list of hits 99, but
        # enlarged twice 239 instead of 114.
        block_c = min(channels, 16, values)
        pixels = min(4 if channels <= 4 else 2, values // block_c)
        config = _config(block_c, 1, 1, 8, 8, 1 if is_gather else 2)
        tiles = ((8, 16), (8, 8), (4, 8)) if is_gather else ((8, 32), (8, 16), (8, 8))
        tiles = tiles[3 - pixels.bit_length() :]
    for config["BLOCK_H"], config["BLOCK_W"] in tiles:
        if config["BLOCK_H"] * config["BLOCK_W"] <= bucket.pixels and _has_many_programs(bucket, config):
            break
    return config if is_gather else _with_steps(bucket, config)


def _values(bucket: Bucket) -> int:
    """How many numbers, pixels times channels, a thread has registers for besides what else it keeps."""
    values = 8 if bucket.is_heavy() else 32 if bucket.is_gather() else 16
    if bucket.dtype == "float64":
        values //= 4 if bucket.is_heavy() or bucket.is_gather() else 2
    flags = set(bucket.variant.split("-"))
    if "bicubic" in flags and not bucket.is_gather() and bucket.channels > 4:
        values //= 2  # 16 loads for each: 8 channels take 5 s to compile
    if {"bicubic", "tangent"} <= flags:  # weights and slopes of 16 taps
        values //= 4 if "antialias" in flags else 2
    return max(values, 1)


def _with_steps(bucket: Bucket, config: Config) -> Config:
    """Programs go through all channels, as long as many remain: coordinates are computed once for all."""
    while bucket.has_steps() and 2 * config["BLOCK_C"] * config["STEPS_C"] <= bucket.channels:
        larger = {**config, "STEPS_C": 2 * config["STEPS_C"]}
        if not _has_many_programs(bucket, larger):
            break
        config = larger
    return config


def _has_many_programs(bucket: Bucket, config: Config) -> bool:
    """Whether a launch has enough programs for a GPU. A bucket's two sizes are rounded up by up to 8 each."""
    tile = config["BLOCK_C"] * config["STEPS_C"] * config["BLOCK_H"] * config["BLOCK_W"]
    return bucket.planes * bucket.pixels // tile >= _MANY_PROGRAMS


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
    if not all(type(value) is int and 0 < value <= 256 for value in config.values()):
        return False
    # Three channels may be a block of their own: RUN_C, which is as long as a tensor's axis, is 1 then.
    others = [value for key, value in config.items() if (key, value) != ("BLOCK_C", bucket.channels)]
    if any(value & (value - 1) for value in others):
        return False
    return _fits(bucket, config)
