"""Going through the output pixels that sample a tile of input pixels: the loops around every gather.

Rows and columns come from `search.py`, which finds candidates; `visit` decides by the very coordinate of the
forward. Most programs run the outer loops once: over mirror images of reflection, each output pixel belonging
to one, and over slices.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import add_rows, add_scaled, dot_channels, load_block, pixel_offset
from stn_triton.kernels.coordinates import centred, is_visible, sources
from stn_triton.kernels.forward import product
from stn_triton.kernels.parameters import (
    add_along,
    add_column,
    row_derivatives,
    where_hit,
    zero_vectors,
)
from stn_triton.kernels.search import (
    affine_range,
    axis_interval,
    candidates_per_row,
    first_index,
    has_samples,
    line_end,
    mirror_images_reached,
    output_lasts,
    projective_range,
    range_count,
    reaches_of,
    strip_end,
    wedge_lines,
)
from stn_triton.kernels.tangent import change_of, slopes_of, velocities_at
from stn_triton.kernels.taps import BORDER, REFLECTION, fold_of, weight_on

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
    mirrors_here,
    is_everywhere,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Output pixels in column ow: whether they sample the tile's pixels, where, and with which weights."""
    u = centred(ow, sizes[0], DTYPE)
    positions, divisor = sources(a, u, row_constants, halves, DIM, PROJECTIVE)
    hit = ow < sizes[0]
    if PROJECTIVE:
        hit = hit & is_visible(divisor)
    weights, slopes = (), ()
    for k in tl.static_range(DIM):
        is_tap, weight, slope = weight_on(
            numbers[k], positions[k], lows[k], highs[k], TAPS, PADDING, ALIGN_CORNERS
        )
        hit = hit & is_tap
        weights = weights + (weight,)
        slopes = slopes + (slope,)
        if PADDING == REFLECTION:
            fold = fold_of(positions[k], lows[k], highs[k], ALIGN_CORNERS)
            hit = tl.where(is_everywhere, hit, hit & (fold == mirrors_here[k]))
    return u, positions, divisor, hit, weights, slopes


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
def row_shares(
    dot,
    hit,
    weights,
    slopes,
    positions,
    halves,
    divisor,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """What pairs with the products `dot` of image and gradient add to the derivatives by theta's rows."""
    along = add_along(zero_vectors(DIM, dot.shape[0], DTYPE), dot, slopes_of(weights, slopes, DIM), DIM)
    along = where_hit(hit, along, DIM)
    return row_derivatives(along, positions, halves, divisor, DIM, PROJECTIVE)


@triton.jit
def walk(
    a,
    b,
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
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    TANGENT: tl.constexpr,
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
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    ROWS: tl.constexpr = DIM + 1 if PROJECTIVE else DIM
    lasts = output_lasts(sizes, 1, DIM, DTYPE)
    spans, reaches = reaches_of(a, lasts, sizes_in, DIM, PROJECTIVE, TAPS, DTYPE)
    column_count = candidates_per_row(a, reaches, sizes, lasts, DIM, PROJECTIVE)
    if ANTIALIAS:
        share = 1 / tl.cast(samples_all, DTYPE)
    copies = 1
    is_everywhere = False
    if PADDING == REFLECTION:
        copies, mirror_firsts, mirror_counts, is_everywhere = mirror_images_reached(
            a, lasts, spans, sizes_in, lows, highs, halves, DIM, PROJECTIVE, ALIGN_CORNERS, DTYPE
        )
        column_count = tl.where(is_everywhere, sizes[0], column_count)
        if ALIGN_CORNERS:
            for k in tl.static_range(DIM):
                column_count = tl.where(sizes_in[k] == 1, sizes[0], column_count)
    if PADDING == BORDER:
        column_count = tl.where(at_edge, sizes[0], column_count)
    is_ragged = column_count > LONG_ROW
    is_sampled = has_samples(a, origin, sizes_in, DIM, PROJECTIVE, PADDING, BLOCK_H, BLOCK_W)
    for copy in range(tl.where(is_sampled, copies, 0)):
        targets, los, his, mirrors_here = (), (), (), ()
        closed = pixel_mask
        rest = copy
        for k in tl.static_range(DIM):
            mirror = tl.zeros((), DTYPE)
            anywhere = False
            if PADDING == REFLECTION:
                mirror = mirror_firsts[k] + (rest % mirror_counts[k]).to(DTYPE)
                rest = rest // mirror_counts[k]
                anywhere = is_everywhere
                mirrors_here = mirrors_here + (mirror,)
            reach = 0.5 * TAPS if PROJECTIVE else reaches[k]
            target, lo, hi, is_closed = axis_interval(
                numbers[k], mirror, anywhere, reach, lows[k], highs[k], PADDING, ALIGN_CORNERS
            )
            targets = targets + (target - halves[k],)
            los = los + (lo - halves[k],)
            his = his + (hi - halves[k],)
            closed = closed & is_closed
        constants = ()
        for k in tl.static_range(ROWS):
            constants = constants + (a[k * (DIM + 1) + DIM],)
        if PROJECTIVE:
            lines = wedge_lines(a, los, his, reaches, lasts, DTYPE)

        slice_count = 1
        if DIM == 3:
            first, last = affine_range(
                a,
                targets,
                los,
                his,
                closed,
                constants,
                reaches,
                spans,
                sizes_in,
                lasts,
                2,
                DIM,
                DTYPE,
            )
            slice_first = first_index(first, lasts[2])
            slice_count = tl.max(tl.where(pixel_mask, range_count(slice_first, last, lasts[2]), 0))
        for i in range(slice_count):
            slice_mask = pixel_mask
            row_base = constants
            if DIM == 3:
                od = slice_first + i
                slice_mask = pixel_mask & (od < sizes[2])
                w = centred(od, sizes[2], DTYPE)
                row_base = ()
                for k in tl.static_range(ROWS):
                    row_base = row_base + (tl.fma(a[k * 4 + 2], w, constants[k]),)
            if PROJECTIVE:
                first, last = projective_range(a, lines, closed, lasts, DTYPE)
            else:
                first, last = affine_range(
                    a,
                    targets,
                    los,
                    his,
                    closed,
                    row_base,
                    reaches,
                    spans,
                    sizes_in,
                    lasts,
                    1,
                    DIM,
                    DTYPE,
                )
            row_first = first_index(first, lasts[1])
            row_count = tl.max(tl.where(slice_mask, range_count(row_first, last, lasts[1]), 0))
            for j in range(row_count):
                oh = row_first + j
                v = centred(oh, sizes[1], DTYPE)
                row_mask = slice_mask & (oh < sizes[1])
                row_constants = ()
                for k in tl.static_range(ROWS):
                    row_constants = row_constants + (tl.fma(a[k * (DIM + 1) + 1], v, row_base[k]),)
                if PROJECTIVE:
                    line_constants = ()
                    for k in tl.static_range(4):
                        line_constants = line_constants + (lines[3 * k + 1] * v + lines[3 * k + 2],)
                    first = line_end(lines, line_constants, lasts[0], 0, False)
                else:
                    first = strip_end(los, his, a, row_constants, lasts, 0, DIM, False)
                column_first = first_index(first, lasts[0])
                count = column_count
                if is_ragged:
                    if PROJECTIVE:
                        last = line_end(lines, line_constants, lasts[0], 0, True)
                    else:
                        last = strip_end(los, his, a, row_constants, lasts, 0, DIM, True)
                    longest = tl.where(row_mask, range_count(column_first, last, lasts[0]), 0)
                    count = tl.minimum(tl.max(longest), column_count)
                if NEEDS_THETA and not COLLECT:
                    row_sums = zero_vectors(ROWS, PIXELS, DTYPE)
                for column in range(count):
                    ow = column_first + column
                    u, positions, divisor, hit, weights, slopes = visit(
                        a,
                        ow,
                        row_constants,
                        numbers,
                        halves,
                        lows,
                        highs,
                        sizes,
                        mirrors_here,
                        is_everywhere,
                        DIM,
                        PROJECTIVE,
                        TAPS,
                        PADDING,
                        ALIGN_CORNERS,
                        DTYPE,
                    )
                    hit = hit & row_mask
                    weight = product(weights, DIM)
                    if TANGENT:
                        base = (u, v, w) if DIM == 3 else (u, v)
                        velocities, _growth = velocities_at(
                            b, base, positions, halves, divisor, DIM, PROJECTIVE
                        )
                        weight = change_of(velocities, weights, slopes, DIM)
                    weight = tl.where(hit, weight, 0)
                    if not NEEDS_THETA:
                        hit = hit & (weight != 0)
                    if COLLECT:
                        slots = push(slots, (ow, oh), weight, hit)
                        found += hit.to(tl.int32)
                    else:
                        output_pixel = (ow, oh)
                        if DIM == 3:
                            output_pixel = (ow, oh, od)
                        if ANTIALIAS:
                            weight *= share
                            coarse_pixel = ()
                            for k in tl.static_range(DIM):
                                coarse_pixel = coarse_pixel + (output_pixel[k] // samples[k],)
                            output_pixel = coarse_pixel
                        offset = pixel_offset(output_pixel, grad_output_strides, DIM, INDEX)
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
                            rows = row_shares(
                                dot, hit, weights, slopes, positions, halves, divisor, DIM, PROJECTIVE, DTYPE
                            )
                            row_sums = add_rows(row_sums, rows, ROWS)
                            sums = add_column(sums, rows, u, 0, DIM, ROWS)
                if NEEDS_THETA and not COLLECT:
                    sums = add_column(sums, row_sums, v, 1, DIM, ROWS)
                    sums = add_column(sums, row_sums, 1.0, DIM, DIM, ROWS)
                    if DIM == 3:
                        sums = add_column(sums, row_sums, w, 2, DIM, ROWS)
    return accumulator, sums, found, slots
