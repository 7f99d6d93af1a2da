"""Decisions by formula, for each bucket: the kind of backward, the block sizes, and the compile options."""

from __future__ import annotations

import torch

from stn_triton.autotuner import Config
from stn_triton.buckets import Bucket
from stn_triton.options import Options

CONFIG_KEYS = ("BLOCK_C", "STEPS_C", "RUN_C", "BLOCK_H", "BLOCK_W", "num_warps")
_MANY_PROGRAMS = 4096
_NEIGHBOURS = (  # factors for the values of a default
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


def is_gathered(dim: int, projective: bool, tangent: bool, options: Options) -> bool:
    """Whether grad_input is gathered, each pixel's sum in a fixed order, instead of scattered.

    A formula must invert the map: affine maps of images, with a padding that does not repeat the image. For
    other maps a search takes longer than additions in memory. On an H200, 160 x 192 x 224 voxels took 464 to
    588 us gathered, 167 to 306 scattered; 64 RGB images of 224 x 224 under reflection took 350 and 133.
    """
    has_formula = dim == 2 and not (projective or options.points)
    return has_formula and not tangent and not options.padding.repeats


def share_a_kernel(mode: str) -> bool:
    """Whether one gather for both gradients is faster than a gather for input and a kernel for theta.

    One kernel reads less, but needs more registers. Bicubic RGB at the identity takes 1,316 instructions per
    pixel in one kernel, 922 + 215 in two. Bilinear RGB takes 254, and 180 + 74 in two. 256 channels in bf16
    take 91, and 59 + 22 in two, but two kernels read grad_output twice.
    """
    return mode != "bicubic"


def side(bucket: Bucket) -> int:
    """Width and height of the square of pixels that a thread of a gather owns.

    A candidate is examined once for all pixels of a square, but a square has more candidates than a pixel.
    """
    is_few = bucket.layout == "nchw" and bucket.channels <= 4 and bucket.dtype != "float64"
    is_few = is_few and bucket.pixels >= 128  # a square for each lane of a warp
    is_plain = bucket.is_gather() and not bucket.is_heavy() and "bilinear" in bucket.variant.split("-")
    return 2 if is_few and is_plain else 1


def space(bucket: Bucket) -> list[Config]:
    """At most 16 configurations worth trying for a bucket: the default, then small changes of it."""
    base = default(bucket)
    found = [base]
    if bucket.is_gather() and bucket.has_steps() and bucket.channels >= 32 and bucket.dtype != "float64":
        # A list of hits, for few channels at a time: it loads each channel from 9 output pixels. The compile
        # time grows with the square of the loads: up to 4.5 s for these blocks, 74 s for 32 channels.
        block_c, run_c, warps = (16, 16, 4) if bucket.lane() > 1 else (4, 1, 2)
        found.append(blocks(block_c, bucket.channels // block_c, run_c, 8, 8, warps))
    for factors in _NEIGHBOURS:
        if bucket.is_gather() and "STEPS_C" in factors:
            continue
        config = {key: max(int(base[key] * factors.get(key, 1)), 1) for key in CONFIG_KEYS}
        if config["BLOCK_H"] > config["BLOCK_W"]:
            config["BLOCK_H"], config["BLOCK_W"] = config["BLOCK_W"], config["BLOCK_H"]
        found.append(config)
    good = [config for i, config in enumerate(found) if config not in found[:i] and fits(bucket, config)]
    return good[:16]


def fits(bucket: Bucket, config: Config) -> bool:
    """Whether each thread has work and registers for it, and the kernel supports the configuration.

    A thread has one to four lanes and at most 32 values, which limits the code that is unrolled. With at most
    256 threads, each may have 255 registers, the most that exist.
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

    It had the fewest instructions per channel of a pixel, counted in sm_90 code (Triton 3.6; fp32 unless
    stated). Where instructions are not the bottleneck, it has more warps. Small launches get smaller tiles,
    so that their programs fill a GPU.
    """
    values, channels, is_gather = _values(bucket), bucket.channels, bucket.is_gather()
    if bucket.lane() > 1 and is_gather:
        # Two lanes read whole 32-byte sectors; more lanes would repeat the search for a pixel more often.
        # With a list of hits kernels take a fifth less time, but twice as much where a map enlarges.
        run_c = 2 * bucket.lane()
        config = blocks(min(channels, max(2 * values, run_c)), 1, run_c, 4, 4, 1)
        tiles = ((4, 8), (4, 4)) if channels < 64 else ((4, 4),)
    elif bucket.lane() > 1:
        # 23 instructions, 17 in bf16; 31 with tiles of 4 x 8 pixels. Additions in memory need an address for
        # each tap, before sm_90 also for each channel.
        adds = bucket.kernel not in ("forward", "theta", "largest", "fill")
        is_small = adds or {"bicubic", "spline"} <= set(bucket.variant.split("-"))
        warps = min(4, (16 if is_small else 32) // bucket.lane())
        config = blocks(min(channels, max(2 * values, 16)), 1, 16, 8, 8, warps)
        tiles = ((4, 8),) if is_small else ((8, 8),)
    elif bucket.layout != "nchw" and channels >= 16:
        # Each lane reads single channels, and their masks need registers.
        config = blocks(min(channels, 4 * min(values, 8)), 1, 4, 4, 8, 4)
        tiles = ((4, 8),)
    else:
        # Pixels of a thread share its setup: with 1, 2 and 4 pixels the forward of RGB takes 111, 78 and 60
        # instructions. In the gather four are a square, see `side`. A gather of one warp has no barriers and
        # fewer candidates: with two warps, 64 channels took a fifth more time. With a list of hits they took
        # a little less, but twice as much where a map enlarges.
        block_c = min(channels, 16, values)
        pixels = min(4 if channels <= 4 else 2, values // block_c)
        config = blocks(block_c, 1, 1, 8, 8, 1 if is_gather else 2)
        tiles = ((8, 16), (8, 8), (4, 8)) if is_gather else ((8, 32), (8, 16), (8, 8))
        tiles = tiles[3 - pixels.bit_length() :]
        if side(bucket) > 1:
            tiles = ((8, 16),)
    for config["BLOCK_H"], config["BLOCK_W"] in tiles:
        if config["BLOCK_H"] * config["BLOCK_W"] <= bucket.pixels and _has_many_programs(bucket, config):
            break
    return config if is_gather else _with_steps(bucket, config)


def _values(bucket: Bucket) -> int:
    """Number of values (pixels times channels) that a thread's registers can hold beside other numbers."""
    values = 4 if bucket.is_exact() else 8 if bucket.is_heavy() else 32 if bucket.is_gather() else 16
    if bucket.dtype == "float64":
        values //= 4 if bucket.is_heavy() or bucket.is_gather() else 2
    flags = set(bucket.variant.split("-"))
    if "bicubic" in flags and not bucket.is_gather() and bucket.channels > 4:
        # Each value needs 16 loads, in a scatter 16 additions too: 8 channels take 5 s to compile.
        values //= 2 if bucket.kernel in ("forward", "theta") else 4
    if "tangent" in flags and flags & {"bicubic", "3d"}:  # weights and slopes of 16 or 8 taps
        values //= 4 if "antialias" in flags or bucket.kernel.startswith("scatter") else 2
    elif "antialias" in flags and ("bicubic" if bucket.kernel == "forward" else "3d") in flags:
        values //= 1 if bucket.kernel == "theta" else 2
    return max(values, 1)


def _with_steps(bucket: Bucket, config: Config) -> Config:
    """Let programs process more channels, which share the coordinates, as long as many programs remain.

    Loops that need too many registers are left out: 16 taps that wrap, each with an address and a slope, take
    168 registers for 8 channels in bf16. In a loop over channels they take all 255 and spill 56 words.
    """
    if bucket.kernel == "scatter" and {"bicubic", "wrap"} <= set(bucket.variant.split("-")):
        return config
    while bucket.has_steps() and 2 * config["BLOCK_C"] * config["STEPS_C"] <= bucket.channels:
        larger = {**config, "STEPS_C": 2 * config["STEPS_C"]}
        if not _has_many_programs(bucket, larger):
            break
        config = larger
    return config


def _has_many_programs(bucket: Bucket, config: Config) -> bool:
    """Whether a launch has enough programs for a GPU. A bucket's two sizes may be up to 8 times too large."""
    tile = config["BLOCK_C"] * config["STEPS_C"] * config["BLOCK_H"] * config["BLOCK_W"]
    return bucket.planes * bucket.pixels // tile >= _MANY_PROGRAMS


def blocks(*values: int) -> Config:
    """A configuration with these values of ``CONFIG_KEYS``."""
    return dict(zip(CONFIG_KEYS, values, strict=True))


def compile_options(
    bucket: Bucket, config: Config, is_hip: bool = torch.version.hip is not None
) -> dict[str, object]:
    """Triton's compile options for a bucket's kernel in a configuration.

    Weighted sums may be fused (coordinates are fixed by explicit FMAs); Triton's default is going to change.
    Without a limit, ptxas sometimes aims at fewer registers than a kernel needs, and spills a few. This was
    seen in the gather, the scatter, theta's sums of whole vectors, fp64, and with several samples per pixel.
    The plain gather fits into 168 registers (twelve warps on a multiprocessor), with 128-bit loads into 176.
    Others get a limit above their need, so that ptxas does not choose its own. AMD's warps have 64 lanes.
    """
    options: dict[str, object] = {"enable_fp_fusion": True, "num_warps": config["num_warps"]}
    if is_hip:
        return {**options, "num_warps": max(config["num_warps"] // 2, 1)}
    is_gather, flags = bucket.is_gather(), bucket.variant.split("-")
    needs_many = bucket.is_heavy() + is_gather + ("antialias" in flags) > 1
    if needs_many or bucket.dtype == "float64":
        options["maxnreg"] = 255
    elif is_gather:
        options["maxnreg"] = 176 if bucket.lane() > 1 else 168
    elif bucket.kernel not in ("forward", "fill") and bucket.layout == "channels_last_16":
        options["maxnreg"] = 255 if bucket.is_heavy() else 128
    return options
