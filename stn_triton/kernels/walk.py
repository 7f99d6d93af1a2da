"""The loops of the gather over the output pixels that sample a tile of input pixels.

`search.py` finds candidates, as ranges of rows and columns. `visit` computes their exact coordinates, as the
forward does, and so decides which pixels they sample.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import add_scaled, dot_channels, load_block, pixel_offset
from stn_triton.kernels.coordinates import centred, sources
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
from stn_triton.kernels.structs import Visit
from stn_triton.kernels.sums import add_column, add_rows, where_hit, zero_vectors
from stn_triton.kernels.taps import BORDER, axis_taps, weight_on

# Above this many candidates per row it pays to compute how many the tile really has.
LONG_ROW = tl.constexpr(8)
# Output pixels that a program remembers per input pixel, so that one search serves all blocks of channels.
SLOTS = tl.constexpr(9)


@triton.jit
def slots_of(starts_ptr, n, per_image, K: tl.constexpr):
    """First slot of image n, and the slot after its last one, in the list of matrices sorted by image."""
    if K.HAS_INDEX:
        first = tl.load(starts_ptr + n)
        end = tl.load(starts_ptr + n + 1)
    else:
        first = n.to(tl.int64) * per_image
        end = first + per_image
    return first, end


@triton.jit
def matrix_at(order_ptr, slot, K: tl.constexpr):
    """Number of the matrix in a slot, or numbers for a vector of slots."""
    if K.HAS_INDEX:
        m = tl.load(order_ptr + slot)
    else:
        m = slot
    return m


@triton.jit
def weights_on(pixel, position, low, high, K: tl.constexpr):
    """`weight_on` for SIDE neighbours, beginning with `pixel`: which are taps, their weights, the slopes."""
    if K.SIDE == 1:
        is_tap, weight, slope = weight_on(pixel, position, low, high, K)
        result = (is_tap,), (weight,), (slope,)
    else:
        pixels, weights, slopes = axis_taps(position, low, high, K)
        beyond = pixel - pixels[0]
        is_before, is_same = beyond == -1, beyond == 0
        result = (
            (is_same | (beyond == 1), is_same | is_before),
            (tl.where(is_same, weights[0], weights[1]), tl.where(is_before, weights[0], weights[1])),
            (tl.where(is_same, slopes[0], slopes[1]), tl.where(is_before, slopes[0], slopes[1])),
        )
    return result


@triton.jit
def row_constants(a, v):
    """Source coordinates in row v of the output without the terms along u."""
    return tl.fma(a[1], v, a[2]), tl.fma(a[4], v, a[5])


@triton.jit
def visit(map, ow, constants, tile, row_mask, K: tl.constexpr):
    """Compute which pixels of each square the output pixels in column ow sample, and with which weights."""
    u = centred(ow, map.sizes[0], K)
    positions, _ = sources(map.a, u, constants, tile.halves, K)
    taps, weights, slopes = (), (), ()
    for k in tl.static_range(2):
        t, w, s = weights_on(tile.numbers[k], positions[k], tile.lows[k], tile.highs[k], K)
        taps = taps + t
        weights = weights + w
        slopes = slopes + s
    exists = (ow < map.sizes[0]) & row_mask
    hits = ()
    for i in tl.static_range(K.SIDE * K.SIDE):
        hits = hits + (exists & taps[i % K.SIDE] & taps[K.SIDE + i // K.SIDE],)
    return Visit(u, hits, weights, slopes)


@triton.jit
def push(slots, pixel, weight, hit):
    """Where hit, put an output pixel into the first slot and shift the others by one; the last is lost."""
    values = (pixel[0], pixel[1], weight)
    result = ()
    for i in tl.static_range(3 * SLOTS):
        result = result + (tl.where(hit, values[i] if i < 3 else slots[i - 3], slots[i]),)
    return result


@triton.jit
def empty_slots(K: tl.constexpr):
    """Zeros for the columns, rows and weights of output pixels."""
    slots = ()
    for _ in tl.static_range(SLOTS):
        nowhere = tl.zeros((K.PIXELS,), tl.int32)
        slots = slots + (nowhere, nowhere, tl.zeros((K.PIXELS,), K.DTYPE))
    return slots


@triton.jit
def row_shares(dots, hit, visited, K: tl.constexpr):
    """Shares of a visit in the derivatives by theta's rows, from products `dots` of image and gradient."""
    weights, slopes = visited.weights, visited.slopes
    if K.SIDE == 1:
        shares = (dots[0] * (slopes[0] * weights[1]), dots[0] * (slopes[1] * weights[0]))
    else:
        d = ()
        for i in tl.static_range(4):  # at a pixel that is not sampled it may be NaN
            d = d + (tl.where(visited.hits[i], dots[i], 0),)
        along = weights[2] * (d[0] * slopes[0] + d[1] * slopes[1])
        along += weights[3] * (d[2] * slopes[0] + d[3] * slopes[1])
        across = slopes[2] * (d[0] * weights[0] + d[1] * weights[1])
        across += slopes[3] * (d[2] * weights[0] + d[3] * weights[1])
        shares = (along, across)
    return where_hit(hit, shares, 2)


@triton.jit
def block_of(blocks, i: tl.constexpr, K: tl.constexpr):
    """Block i of a tuple that holds several."""
    block = ()
    for g in tl.static_range(K.GROUPS):
        block = block + (blocks[i * K.GROUPS + g],)
    return block


@triton.jit
def add_hits(accumulator, gradient, hits, weights, K: tl.constexpr):
    """Add the weighted gradient to the blocks of the pixels of a square that are hit."""
    result = ()
    for i in tl.static_range(K.SIDE * K.SIDE):
        block = block_of(accumulator, i, K)
        more = add_scaled(block, gradient, weights[i], K)
        if K.SIDE > 1:  # 0 times an infinite gradient would be NaN
            for g in tl.static_range(K.GROUPS):
                result = result + (tl.where(hits[i][:, None], more[g], block[g]),)
        else:
            result = result + more
    return result


@triton.jit
def walk(
    map, tile, plane, channels, image, accumulator, sums, found, slots, COLLECT: tl.constexpr, K: tl.constexpr
):
    """Go through the output pixels that sample the tile under one matrix.

    Add their shares to `accumulator` (grad_input) and `sums` (grad_theta). With COLLECT, put the output
    pixels into `slots` instead, and count them in `found`.
    """
    a, sizes = map.a, map.sizes
    lasts = output_lasts(sizes, 1, K)
    spans, reaches = reaches_of(a, lasts, tile.sizes_in, K)
    if K.ANTIALIAS:
        share = 1 / tl.cast(map.count, K.DTYPE)
    middles, halfwidths, los, his = (), (), (), ()
    closed = tile.mask
    for k in tl.static_range(2):
        lo, hi, is_closed = axis_interval(tile.numbers[k], reaches[k], tile.lows[k], tile.highs[k], K)
        middles = middles + (tile.numbers[k] + 0.5 * (K.SIDE - 1) - tile.halves[k],)
        halfwidths = halfwidths + (reaches[k] + 0.5 * (K.SIDE - 1),)
        los = los + (lo - tile.halves[k],)
        his = his + (hi - tile.halves[k],)
        closed = closed & is_closed
    column_count = candidates_per_row(a, halfwidths, sizes, lasts)
    if K.PADDING == BORDER:
        column_count = tl.where(tile.at_edge, sizes[0], column_count)
    is_ragged = (column_count > LONG_ROW) | (a[1] == 0)

    first, last = row_range(a, middles, los, his, closed, halfwidths, spans, tile.sizes_in, lasts, K)
    row_first = first_index(first, lasts[1])
    row_count = range_count(row_first, last, lasts[1])
    row_first, row_count = without_open_end(row_first, row_count, map, tile, closed, 1, K)
    row_count = tl.max(tl.where(tile.mask, row_count, 0))
    is_sampled = has_samples(a, tile.origin, tile.sizes_in, K)
    for j in range(tl.where(is_sampled, row_count, 0)):
        oh = row_first + j
        v = centred(oh, sizes[1], K)
        row_mask = tile.mask & (oh < sizes[1])
        constants = row_constants(a, v)
        first = strip_end(los, his, a, constants, lasts, 0, False)
        column_first = first_index(first, lasts[0])
        count = column_count
        if is_ragged:
            last = strip_end(los, his, a, constants, lasts, 0, True)
            longest = range_count(column_first, last, lasts[0])
            column_first, longest = without_open_end(column_first, longest, map, tile, closed, 0, K)
            count = tl.minimum(tl.max(tl.where(row_mask, longest, 0)), column_count)
        if K.NEEDS_THETA and not COLLECT:
            row_sums = zero_vectors(2, K)
        for column in range(count):
            ow = column_first + column
            visited = visit(map, ow, constants, tile, row_mask, K)
            products, counted = (), ()
            for i in tl.static_range(K.SIDE * K.SIDE):
                weight = visited.weights[i % K.SIDE] * visited.weights[K.SIDE + i // K.SIDE]
                weight = tl.where(visited.hits[i], weight, 0)
                counts = visited.hits[i] if K.NEEDS_THETA else visited.hits[i] & (weight != 0)
                if K.ANTIALIAS:
                    weight *= share
                products = products + (weight,)
                counted = counted + (counts,)
            hit = counted[0]
            for i in tl.static_range(1, K.SIDE * K.SIDE):
                hit = hit | counted[i]
            if COLLECT:
                slots = push(slots, (ow, oh), products[0], hit)
                found += hit.to(tl.int32)
            else:
                output_pixel = (ow, oh)
                if K.ANTIALIAS:
                    output_pixel = (ow // map.samples[0], oh // map.samples[1])
                offset = pixel_offset(output_pixel, plane.strides, K)
                gradient = load_block(plane.start, plane.stride_c, offset, hit, channels, K)
                accumulator = add_hits(accumulator, gradient, counted, products, K)
                if K.NEEDS_THETA:
                    dots = ()
                    for i in tl.static_range(K.SIDE * K.SIDE):
                        dots = dots + (dot_channels(block_of(image, i, K), gradient, K),)
                    rows = row_shares(dots, hit, visited, K)
                    if K.ANTIALIAS:
                        rows = (rows[0] * share, rows[1] * share)
                    row_sums = add_rows(row_sums, rows, 2)
                    sums = add_column(sums, rows, visited.u, 0, K)
        if K.NEEDS_THETA and not COLLECT:
            sums = add_column(sums, row_sums, v, 1, K)
            sums = add_column(sums, row_sums, 1.0, 2, K)
    return accumulator, sums, found, slots
