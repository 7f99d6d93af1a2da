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
    without_open_end,
)
from stn_triton.kernels.taps import BORDER, axis_taps, weight_on

# Above this many candidates per row it pays to ask how many the tile really has.
LONG_ROW = tl.constexpr(8)
# Output pixels that a program keeps per input pixel, to go through them once for each block of channels.
SLOTS = tl.constexpr(9)


@triton.jit
def weights_on(
    pixel,
    position,
    low,
    high,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
):
    """`weight_on` for SIDE neighbouring pixels, from a first: which are taps, their weights, the slopes."""
    if SIDE == 1:
        is_tap, weight, slope = weight_on(pixel, position, low, high, TAPS, PADDING, ALIGN_CORNERS)
        result = (is_tap,), (weight,), (slope,)
    else:
        pixels, weights, slopes = axis_taps(position, low, high, TAPS, PADDING, ALIGN_CORNERS)
        beyond = pixel - pixels[0]
        is_before, is_same = beyond == -1, beyond == 0
        result = (
            (is_same | (beyond == 1), is_same | is_before),
            (tl.where(is_same, weights[0], weights[1]), tl.where(is_before, weights[0], weights[1])),
            (tl.where(is_same, slopes[0], slopes[1]), tl.where(is_before, slopes[0], slopes[1])),
        )
    return result


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
    row_mask,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Output pixels in column ow: where they lie, which pixels of a square they sample, and the weights.

    Hits go through the square row by row; weights and their derivatives along x, then along y. The latter
    mean nothing where a pixel is not hit.
    """
    u = centred(ow, sizes[0], DTYPE)
    positions, _ = sources(a, u, row_constants, halves, 2, False)
    taps, weights, slopes = (), (), ()
    for k in tl.static_range(2):
        t, w, s = weights_on(numbers[k], positions[k], lows[k], highs[k], SIDE, TAPS, PADDING, ALIGN_CORNERS)
        taps = taps + t
        weights = weights + w
        slopes = slopes + s
    exists = (ow < sizes[0]) & row_mask
    hits = ()
    for i in tl.static_range(SIDE * SIDE):
        hits = hits + (exists & taps[i % SIDE] & taps[SIDE + i // SIDE],)
    return u, hits, weights, slopes


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
def row_shares(dots, hit, hits, weights, slopes, SIDE: tl.constexpr):
    """What pairs with the products `dots` of image and gradient add to the derivatives by theta's rows."""
    if SIDE == 1:
        shares = (dots[0] * (slopes[0] * weights[1]), dots[0] * (slopes[1] * weights[0]))
    else:
        d = ()
        for i in tl.static_range(4):  # what the output pixel does not sample may be NaN
            d = d + (tl.where(hits[i], dots[i], 0),)
        along = weights[2] * (d[0] * slopes[0] + d[1] * slopes[1])
        along += weights[3] * (d[2] * slopes[0] + d[3] * slopes[1])
        across = slopes[2] * (d[0] * weights[0] + d[1] * weights[1])
        across += slopes[3] * (d[2] * weights[0] + d[3] * weights[1])
        shares = (along, across)
    return where_hit(hit, shares, 2)


@triton.jit
def block_of(blocks, i: tl.constexpr, GROUPS: tl.constexpr):
    """Block i of several, one after the other."""
    block = ()
    for g in tl.static_range(GROUPS):
        block = block + (blocks[i * GROUPS + g],)
    return block


@triton.jit
def add_hits(accumulator, gradient, hits, weights, GROUPS: tl.constexpr, SIDE: tl.constexpr):
    """Add the weighted gradient to the blocks of the pixels of a square that are hit."""
    result = ()
    for i in tl.static_range(SIDE * SIDE):
        block = block_of(accumulator, i, GROUPS)
        more = add_scaled(block, gradient, weights[i], GROUPS)
        if SIDE > 1:  # a gradient that a neighbour samples may be infinite
            for g in tl.static_range(GROUPS):
                result = result + (tl.where(hits[i][:, None], more[g], block[g]),)
        else:
            result = result + more
    return result


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
    SIDE: tl.constexpr,
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
    SQUARES: tl.constexpr = BLOCK_H * BLOCK_W // (SIDE * SIDE)
    lasts = output_lasts(sizes, 1, DTYPE)
    spans, reaches = reaches_of(a, lasts, sizes_in, TAPS, DTYPE)
    if ANTIALIAS:
        share = 1 / tl.cast(samples_all, DTYPE)
    middles, halfwidths, los, his = (), (), (), ()
    closed = pixel_mask
    for k in tl.static_range(2):
        lo, hi, is_closed = axis_interval(numbers[k], reaches[k], lows[k], highs[k], SIDE, PADDING)
        middles = middles + (numbers[k] + 0.5 * (SIDE - 1) - halves[k],)
        halfwidths = halfwidths + (reaches[k] + 0.5 * (SIDE - 1),)
        los = los + (lo - halves[k],)
        his = his + (hi - halves[k],)
        closed = closed & is_closed
    column_count = candidates_per_row(a, halfwidths, sizes, lasts)
    if PADDING == BORDER:
        column_count = tl.where(at_edge, sizes[0], column_count)
    is_ragged = (column_count > LONG_ROW) | (a[1] == 0)

    first, last = row_range(a, middles, los, his, closed, halfwidths, spans, sizes_in, lasts, DTYPE)
    row_first = first_index(first, lasts[1])
    row_first, row_count = without_open_end(
        row_first,
        range_count(row_first, last, lasts[1]),
        a,
        numbers[1],
        halves[1],
        sizes[1],
        1,
        SIDE,
        TAPS,
        closed,
    )
    row_count = tl.max(tl.where(pixel_mask, row_count, 0))
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
            column_first, longest = without_open_end(
                column_first,
                range_count(column_first, last, lasts[0]),
                a,
                numbers[0],
                halves[0],
                sizes[0],
                0,
                SIDE,
                TAPS,
                closed,
            )
            count = tl.minimum(tl.max(tl.where(row_mask, longest, 0)), column_count)
        if NEEDS_THETA and not COLLECT:
            row_sums = zero_vectors(2, SQUARES, DTYPE)
        for column in range(count):
            ow = column_first + column
            u, hits, weights, slopes = visit(
                a,
                ow,
                row_constants,
                numbers,
                halves,
                lows,
                highs,
                sizes,
                row_mask,
                SIDE,
                TAPS,
                PADDING,
                ALIGN_CORNERS,
                DTYPE,
            )
            products, counted = (), ()
            for i in tl.static_range(SIDE * SIDE):
                weight = tl.where(hits[i], weights[i % SIDE] * weights[SIDE + i // SIDE], 0)
                counts = hits[i] if NEEDS_THETA else hits[i] & (weight != 0)
                if ANTIALIAS:
                    weight *= share
                products = products + (weight,)
                counted = counted + (counts,)
            hit = counted[0]
            for i in tl.static_range(1, SIDE * SIDE):
                hit = hit | counted[i]
            if COLLECT:
                slots = push(slots, (ow, oh), products[0], hit)
                found += hit.to(tl.int32)
            else:
                output_pixel = (ow, oh)
                if ANTIALIAS:
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
                accumulator = add_hits(accumulator, gradient, counted, products, GROUPS, SIDE)
                if NEEDS_THETA:
                    dots = ()
                    for i in tl.static_range(SIDE * SIDE):
                        dots = dots + (dot_channels(block_of(image, i, GROUPS), gradient, GROUPS),)
                    rows = row_shares(dots, hit, hits, weights, slopes, SIDE)
                    if ANTIALIAS:
                        rows = (rows[0] * share, rows[1] * share)
                    row_sums = add_rows(row_sums, rows, 2)
                    sums = add_column(sums, rows, u, 0, 2, 2)
        if NEEDS_THETA and not COLLECT:
            sums = add_column(sums, row_sums, v, 1, 2, 2)
            sums = add_column(sums, row_sums, 1.0, 2, 2, 2)
    return accumulator, sums, found, slots
