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
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import torch

from stn_triton import autotuner, tables
from stn_triton.autotuner import Config, Launch
from stn_triton.options import INPUT_DTYPES, Options

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
MOST_CANDIDATES = 6
"""Configurations that a search in a call tries; compiling them is what takes long."""
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
    """forward; backward, a gather, or backward_input without grad_theta; scatter, the same by additions in
    memory, scatter_input without grad_theta, theta with it alone; largest, then exact or exact_input, a
    scatter in whole numbers; or fill."""
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

    def is_gather(self) -> bool:
        """Whether a program owns pixels of the input and searches those of the output that sample them."""
        return self.kernel.startswith("backward")

    def is_heavy(self) -> bool:
        """Whether a thread keeps so much per pixel that it should have fewer channels."""
        heavy = {"3d", "bicubic", "reflection", "wrap", "projective", "tangent"}
        return self.is_exact() or bool(heavy & set(self.variant.split("-")))

    def is_exact(self) -> bool:
        """Whether it adds whole numbers: two of 64 bits for each value."""
        return self.kernel.startswith("exact")

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
        is_wide = self.layout == "channels_last_16" and not self.is_exact()  # which has no registers for it
        return 16 // getattr(torch, self.dtype).itemsize if is_wide else 1


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


def is_gathered(dim: int, projective: bool, tangent: bool, options: Options) -> bool:
    """Whether grad_input is gathered: each pixel's sum in a fixed order, where a formula inverts the map.

    That is for affine maps of images, without mirrors. For other maps a search takes longer than additions in
    memory: on an H200, 160 x 192 x 224 voxels took 464 to 588 us gathered and 167 to 306 us scattered, RGB of
    64 x 224 x 224 pixels under reflection 350 and 133.
    """
    has_formula = dim == 2 and not (projective or options.points)
    return has_formula and not tangent and not options.padding.repeats


def share_a_kernel(mode: str) -> bool:
    """Whether one gather for both gradients beats a gather for the input's and a kernel for theta's.

    It reads less, but keeps more: bicubic RGB at the identity takes 1,316 instructions a pixel in one kernel,
    922 + 215 in two. Bilinear RGB takes 254 and 180 + 74, and 256 channels in bf16 91 and 59 + 22, where two
    kernels read grad_output twice.
    """
    return mode != "bicubic"


def side(bucket: Bucket) -> int:
    """How many pixels wide and high the square is that a thread of a gather owns.

    A candidate is looked at once for all pixels of a square, but a square has more candidates than a pixel.
    """
    is_few = bucket.layout == "nchw" and bucket.channels <= 4 and bucket.dtype != "float64"
    is_few = is_few and bucket.pixels >= 128  # a tile of squares for each lane of a warp
    is_plain = bucket.is_gather() and not bucket.is_heavy() and "bilinear" in bucket.variant.split("-")
    return 2 if is_few and is_plain else 1


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
    lanes = run_c * block_h * block_w // bucket.lane() // side(bucket) ** 2
    return (
        bucket.lane() <= run_c <= block_c
        and block_c % run_c == 0
        and (run_c == 1 or bucket.layout != "nchw")
        and block_c * steps_c <= bucket.channels
        and (steps_c == 1 or (bucket.has_steps() and side(bucket) == 1))
        and min(block_h, block_w) >= side(bucket)
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
    if bucket.lane() > 1 and is_gather:
        # Two lanes read whole 32-byte sectors; with more, more lanes repeat the search for each pixel. With a
        # list of hits they take a fifth less, but twice as much where a map enlarges.
        run_c = 2 * bucket.lane()
        config = _config(min(channels, max(2 * values, run_c)), 1, run_c, 4, 4, 1)
        tiles = ((4, 8), (4, 4)) if channels < 64 else ((4, 4),)
    elif bucket.lane() > 1:
        # 23 instructions, 17 in bf16; with tiles of 4 x 8 pixels 31. Additions need an address for each tap,
        # and before sm_90 for each channel.
        adds = bucket.kernel not in ("forward", "theta", "largest", "fill")
        is_small = adds or {"bicubic", "spline"} <= set(bucket.variant.split("-"))
        warps = min(4, (16 if is_small else 32) // bucket.lane())
        config = _config(min(channels, max(2 * values, 16)), 1, 16, 8, 8, warps)
        tiles = ((4, 8),) if is_small else ((8, 8),)
    elif bucket.layout != "nchw" and channels >= 16:
        # Lanes of single channels, whose masks cost registers.
        config = _config(min(channels, 4 * min(values, 8)), 1, 4, 4, 8, 4)
        tiles = ((4, 8),)
    else:
        # Pixels of a thread share its setup: with 1, 2 and 4 of them RGB takes 111, 78, 60 instructions in
        # the forward; in the gather four are a square, see `side`. A gather of one warp has no barriers and
        # fewer candidates: with two, 64 channels took a fifth more; with a list of hits a little less, but
        # twice as much where a map enlarges.
        block_c = min(channels, 16, values)
        pixels = min(4 if channels <= 4 else 2, values // block_c)
        config = _config(block_c, 1, 1, 8, 8, 1 if is_gather else 2)
        tiles = ((8, 16), (8, 8), (4, 8)) if is_gather else ((8, 32), (8, 16), (8, 8))
        tiles = tiles[3 - pixels.bit_length() :]
        if side(bucket) > 1:
            tiles = ((8, 16),)
    for config["BLOCK_H"], config["BLOCK_W"] in tiles:
        if config["BLOCK_H"] * config["BLOCK_W"] <= bucket.pixels and _has_many_programs(bucket, config):
            break
    return config if is_gather else _with_steps(bucket, config)


def _values(bucket: Bucket) -> int:
    """How many numbers, pixels times channels, a thread has registers for besides what else it keeps."""
    values = 4 if bucket.is_exact() else 8 if bucket.is_heavy() else 32 if bucket.is_gather() else 16
    if bucket.dtype == "float64":
        values //= 4 if bucket.is_heavy() or bucket.is_gather() else 2
    flags = set(bucket.variant.split("-"))
    if "bicubic" in flags and not bucket.is_gather() and bucket.channels > 4:
        # 16 loads for each, or additions too: 8 channels take 5 s to compile.
        values //= 2 if bucket.kernel in ("forward", "theta") else 4
    if "tangent" in flags and flags & {"bicubic", "3d"}:  # weights and slopes of 16 or 8 taps
        values //= 4 if "antialias" in flags or bucket.kernel.startswith("scatter") else 2
    elif "antialias" in flags and ("bicubic" if bucket.kernel == "forward" else "3d") in flags:
        values //= 1 if bucket.kernel == "theta" else 2
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
        return default(bucket)
    name = _device_name(device.index)
    known = shipped(name).get(bucket) or _found.get((name, bucket))
    if known is not None:
        return known
    is_asked = _asking or asked_by_environment()
    if not is_asked or torch.cuda.is_current_stream_capturing():
        return default(bucket)
    with _searching:  # one thread searches, the others wait for what it finds
        if (name, bucket) not in _found:
            _found[name, bucket] = autotuner.fastest_of(
                candidates(bucket, MOST_CANDIDATES), run, bucket.name()
            )
    return _found[name, bucket]


def candidates(bucket: Bucket, most: int) -> list[Config]:
    """What a search tries for a bucket, the default first."""
    return autotuner.nearest(space(bucket), most)


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
    if not all(type(value) is int and 0 < value <= 256 for value in config.values()):
        return False
    # Three channels may be a block of their own: RUN_C, which is as long as a tensor's axis, is 1 then.
    is_three = bucket.channels == config["BLOCK_C"] == 3
    others = [value for key, value in config.items() if not (is_three and key == "BLOCK_C")]
    if any(value & (value - 1) for value in others):
        return False
    return _fits(bucket, config)
