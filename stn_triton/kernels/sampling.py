"""The samples of output pixels: the tile of a program, its map, and the taps of each sample.

Shared by all kernels whose programs own output pixels. Coordinates, masks and weights are computed once per
pixel and used for all channels of a block.

Antialiasing samples as if the output were larger by a whole factor per axis, and averages the samples of each
pixel. `samples_per_pixel` computes the factors from the matrix: 1 for a matrix that does not shrink.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import is_inside, pixel_offset, tile_origin, tile_pixels
from stn_triton.kernels.coordinates import (
    centred,
    fold_theta,
    per_axis_halves,
    row_constant,
    samples_per_pixel,
    sources,
    theta_scales,
)
from stn_triton.kernels.displacement import displaced, displacement
from stn_triton.kernels.structs import Map, Sample, Window
from stn_triton.kernels.taps import FILL, WRAP, ZEROS, all_taps, per_axis_limits


@triton.jit
def window_of(theta, image_index_ptr, points, images, per_image, C, sizes_in, sizes_out, K: tl.constexpr):
    """The output pixels of this program, and their map."""
    m, c_first, origin = tile_origin(C, sizes_out, K)
    pixels = tile_pixels(origin, K)
    mask = is_inside(pixels, sizes_out, K)
    n, exists = image_of(image_index_ptr, m, images, per_image, K)
    map = map_of(theta, m, sizes_in, sizes_out, K)
    bends = displacement(theta, m, pixels, map.scales, points, sizes_out, K)
    return Window(m, n, exists, c_first, pixels, mask, map, bends)


@triton.jit
def image_of(image_index_ptr, m, images, per_image, K: tl.constexpr):
    """Image that matrix m warps, and whether it exists. Without an index, each has `per_image` matrices."""
    if K.HAS_INDEX:
        n = tl.load(image_index_ptr + m)
        exists = (n >= 0) & (n < images)
        n = tl.where(exists, n, 0)
    else:
        n = m // per_image
        exists = m >= 0
    return n, exists


@triton.jit
def map_of(theta, m, sizes_in, sizes_out, K: tl.constexpr):
    """Return the map of matrix m, from samples of the output to the input, in pixels."""
    scales = theta_scales(sizes_in, sizes_out, K)
    a = fold_theta(theta, m, scales, K)
    samples = ()
    for _ in tl.static_range(K.DIM):
        samples = samples + (1,)
    count = 1
    if K.ANTIALIAS:
        samples = samples_per_pixel(a, K)
        sizes = ()
        for k in tl.static_range(K.DIM):
            sizes = sizes + (sizes_out[k] * samples[k],)
            count *= samples[k]
        scales = theta_scales(sizes_in, sizes, K)
        a = fold_theta(theta, m, scales, K)
    else:
        sizes = sizes_out
    return Map(a, scales, samples, count, sizes)


@triton.jit
def sample_at(window, number, sizes_in, K: tl.constexpr):
    """Sample `number` of each output pixel."""
    map = window.map
    base = ()
    for k in tl.static_range(K.DIM):
        index = window.pixels[k] * map.samples[k] + number % map.samples[k]
        base = base + (centred(index, map.sizes[k], K),)
        number = number // map.samples[k]
    constants = ()
    for k in tl.static_range(K.ROWS):
        constants = constants + (row_constant(map.a, base, k, K),)
    constants = displaced(constants, window.bends, K)
    halves = per_axis_halves(sizes_in, K)
    positions, divisor = sources(map.a, base[0], constants, halves, K)
    lows, highs = per_axis_limits(sizes_in, K)
    numbers, weights, slopes = all_taps(positions, lows, highs, K)
    indices = ()
    for i in tl.static_range(K.DIM * K.TAPS):
        indices = indices + (numbers[i].to(tl.int32) + (sizes_in[i // K.TAPS] - 1) // 2,)
    return Sample(base, positions, divisor, indices, weights, slopes)


@triton.jit
def tap_of(numbers, i: tl.constexpr, K: tl.constexpr):
    """Pick the numbers of tap i, one per axis. Taps are numbered along x first."""
    if K.DIM == 3:
        result = (
            numbers[i % K.TAPS],
            numbers[K.TAPS + i // K.TAPS % K.TAPS],
            numbers[2 * K.TAPS + i // (K.TAPS * K.TAPS)],
        )
    else:
        result = (numbers[i % K.TAPS], numbers[K.TAPS + i // K.TAPS])
    return result


@triton.jit
def tap_addresses(start, strides, indices, K: tl.constexpr):
    """Start of every tap, and the offsets of its pixels from there.

    Taps that lie side by side share the offsets of the first one: a scalar start costs less than offsets of
    every tap, and in a contiguous row it is a constant in the load. Under wrap, taps may lie far apart.
    """
    starts = ()
    offsets = ()
    offset = pixel_offset(tap_of(indices, 0, K), strides, K)
    for i in tl.static_range(K.TAPS**K.DIM):
        tap_start = start
        if K.PADDING == ZEROS or K.PADDING == FILL or (K.TAPS <= 2 and K.PADDING != WRAP):
            for _ in tl.static_range(i % K.TAPS):
                tap_start += strides[K.DIM - 1]
            for _ in tl.static_range(i // K.TAPS % K.TAPS):
                tap_start += strides[K.DIM - 2]
            if K.DIM == 3:
                for _ in tl.static_range(i // (K.TAPS * K.TAPS)):
                    tap_start += strides[0]
        else:
            offset = pixel_offset(tap_of(indices, i, K), strides, K)
        starts = starts + (tap_start,)
        offsets = offsets + (offset,)
    return starts, offsets


@triton.jit
def product(numbers, K: tl.constexpr):
    """Product of one number per axis."""
    result = numbers[0] * numbers[1]
    if K.DIM == 3:
        result *= numbers[2]
    return result
