"""Going through the output pixels that sample a tile of input pixels: the loops of the gather.

Rows and columns come from `search.py`, which finds candidates; `visit` decides by the very coordinate of the
forward.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import add_rows, add_scaled, dot_channels, load_block, pixel_offset
from stn_triton.kernels.coordinates import centred, sources
from stn_triton.kernels.parameters import add_column, where_hit, zero_vectors
from stn_triton.kernels.search import (
    axis_interval,
    candidates_per_row,
    first_index,
    has_samples,
    output_lasts,
    range_count,
    reaches_of,
    row_range,
    strip_end,
)
from stn_triton.kernels.taps import BORDER, weight_on

# Above this many candidates per row it pays to ask how many the tile really has.
LONG_ROW = tl.constexpr(8)
# Output pixels that a program keeps per input pixel, to go through them once for each block of channels.
SLOTS = tl.constexpr(9)


@triton.jit
def visit(
    a,
    ow,
    row_constants,
    numbers,
    halves,
    lows,
    highs,
    sizes,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Output pixels in column ow: where they lie, whether they sample the tile's pixels, and the weights."""
    u = centred(ow, sizes[0], DTYPE)
    positions, _ = sources(a, u, row_constants, halves, 2, False)
    hit = ow < sizes[0]
    weights, slopes = (), ()
    for k in tl.static_range(2):
        is_tap, weight, slope = weight_on(
            numbers[k], positions[k], lows[k], highs[k], TAPS, PADDING, ALIGN_CORNERS
        )
        hit = hit & is_tap
        weights = weights + (weight,)
        slopes = slopes + (slope,)
    return u, hit, weights, slopes


@triton.jit
def push(slots, pixel, weight, hit):
    """Where hit, put an output pixel into the first slot and move all others one on; the last is lost."""
    values = (pixel[0], pixel[1], weight)
    result = ()
    for i in tl.static_range(3 * SLOTS):
        result = result + (tl.where(hit, values[i] if i < 3 else slots[i - 3], slots[i]),)
    return result


@triton.jit
def empty_slots(PIXELS: tl.constexpr, DTYPE: tl.constexpr):
    """Column, row and weight of no output pixels."""
    slots = ()
    for _ in tl.static_range(SLOTS):
        nowhere = tl.zeros((PIXELS,), tl.int32)
        slots = slots + (nowhere, nowhere, tl.zeros((PIXELS,), DTYPE))
    return slots


@triton.jit
def row_shares(dot, hit, weights, slopes):
    """What pairs with the products `dot` of image and gradient add to the derivatives by theta's rows."""
    return where_hit(hit, (dot * (slopes[0] * weights[1]), dot * (slopes[1] * weights[0])), 2)


@triton.jit
def walk(
    a,
    samples,
    samples_all,
    sizes,
    sizes_in,
    origin,
    pixel_mask,
    numbers,
    halves,
    lows,
    highs,
    at_edge,
    grad_output_start,
    grad_output_stride_c,
    grad_output_strides,
    channels,
    image,
    accumulator,
    sums,
    found,
    slots,
    COLLECT: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    EVEN_C: tl.constexpr,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Go through the output pixels that sample the tile under one matrix.

    Adds what they give to `accumulator` (grad_input) and `sums` (grad_theta); or, for COLLECT, puts them into
    `slots` and counts them in `found`.
    """
    lasts = output_lasts(sizes, 1, DTYPE)
    spans, reaches = reaches_of(a, lasts, sizes_in, TAPS, DTYPE)
    column_count = candidates_per_row(a, reaches, sizes, lasts)
    if PADDING == BORDER:
        column_count = tl.where(at_edge, sizes[0], column_count)
    is_ragged = column_count > LONG_ROW
    if ANTIALIAS:
        share = 1 / tl.cast(samples_all, DTYPE)
    targets, los, his = (), (), ()
    closed = pixel_mask
    for k in tl.static_range(2):
        lo, hi, is_closed = axis_interval(numbers[k], reaches[k], lows[k], highs[k], PADDING)
        targets = targets + (numbers[k] - halves[k],)
        los = los + (lo - halves[k],)
        his = his + (hi - halves[k],)
        closed = closed & is_closed

    first, last = row_range(a, targets, los, his, closed, reaches, spans, sizes_in, lasts, DTYPE)
    row_first = first_index(first, lasts[1])
    row_count = tl.max(tl.where(pixel_mask, range_count(row_first, last, lasts[1]), 0))
    is_sampled = has_samples(a, origin, sizes_in, PADDING, BLOCK_H, BLOCK_W)
    for j in range(tl.where(is_sampled, row_count, 0)):
        oh = row_first + j
        v = centred(oh, sizes[1], DTYPE)
        row_mask = pixel_mask & (oh < sizes[1])
        row_constants = (tl.fma(a[1], v, a[2]), tl.fma(a[4], v, a[5]))
        first = strip_end(los, his, a, row_constants, lasts, 0, False)
        column_first = first_index(first, lasts[0])
        count = column_count
        if is_ragged:
            last = strip_end(los, his, a, row_constants, lasts, 0, True)
            longest = tl.where(row_mask, range_count(column_first, last, lasts[0]), 0)
            count = tl.minimum(tl.max(longest), column_count)
        if NEEDS_THETA and not COLLECT:
            row_sums = zero_vectors(2, BLOCK_H * BLOCK_W, DTYPE)
        for column in range(count):
            ow = column_first + column
            u, hit, weights, slopes = visit(
                a,
                ow,
                row_constants,
                numbers,
                halves,
                lows,
                highs,
                sizes,
                TAPS,
                PADDING,
                ALIGN_CORNERS,
                DTYPE,
            )
            hit = hit & row_mask
            weight = tl.where(hit, weights[0] * weights[1], 0)
            if not NEEDS_THETA:
                hit = hit & (weight != 0)
            if COLLECT:
                slots = push(slots, (ow, oh), weight, hit)
                found += hit.to(tl.int32)
            else:
                output_pixel = (ow, oh)
                if ANTIALIAS:
                    weight *= share
                    output_pixel = (ow // samples[0], oh // samples[1])
                offset = pixel_offset(output_pixel, grad_output_strides, 2, INDEX)
                gradient = load_block(
                    grad_output_start,
                    grad_output_stride_c,
                    offset,
                    hit,
                    channels,
                    GROUPS,
                    RUN_C,
                    EVEN_C,
                    DTYPE,
                )
                accumulator = add_scaled(accumulator, gradient, weight, GROUPS)
                if NEEDS_THETA:
                    dot = dot_channels(image, gradient, GROUPS)
                    if ANTIALIAS:
                        dot *= share
                    rows = row_shares(dot, hit, weights, slopes)
                    row_sums = add_rows(row_sums, rows, 2)
                    sums = add_column(sums, rows, u, 0, 2, 2)
        if NEEDS_THETA and not COLLECT:
            sums = add_column(sums, row_sums, v, 1, 2, 2)
            sums = add_column(sums, row_sums, 1.0, 2, 2, 2)
    return accumulator, sums, found, slots
