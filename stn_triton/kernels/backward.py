"""Backward of images under affine maps: grad_input and, in the same pass, grad_theta, without atomics.

A program owns a tile of *input* pixels and a block of channels, and gathers. Over the output pixels o that
sample input pixel p (`search.py` finds candidates, the very coordinate of the forward decides),

    grad_input[p] = sum of w(o, p) * grad_output[o]
    d/dc_k        = sum over channels of input[p] * grad_output[o], times the derivative of w(o, p)

and row k of grad_theta sums d/dc_k times (u, v, 1), see `parameters.py`. If an image has many matrices, those
that may reach the tile are gathered one after the other; which ones is tested for many at a time.

Pairs of weight zero are loaded for their derivatives, so if grad_theta is wanted an Inf or NaN in grad_output
reaches the grad_input of neighbours at weight zero, as in PyTorch. Without grad_theta it does not.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_scaled,
    block_start,
    dot_channels,
    is_inside,
    load_block,
    pixel_offset,
    steps_of,
    store_block,
    subtract_fill,
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import centred, fold_theta, per_axis_halves, row_constant, theta_scales
from stn_triton.kernels.forward import map_of
from stn_triton.kernels.parameters import add_column, store_sums, zero_vectors
from stn_triton.kernels.search import output_lasts, tile_is_reached, touches_edge
from stn_triton.kernels.taps import FILL, per_axis_limits
from stn_triton.kernels.walk import SLOTS, block_of, empty_slots, row_shares, visit, walk

# Matrices whose reach is tested at once.
CULLED = tl.constexpr(128)


@triton.jit
def slots_of(starts_ptr, n, per_image, HAS_INDEX: tl.constexpr):
    """Where the matrices of image n begin and end, in the order of images."""
    if HAS_INDEX:
        first = tl.load(starts_ptr + n)
        end = tl.load(starts_ptr + n + 1)
    else:
        first = n.to(tl.int64) * per_image
        end = first + per_image
    return first, end


@triton.jit
def matrix_at(order_ptr, slot, HAS_INDEX: tl.constexpr):
    """The matrix, or matrices, in a slot."""
    if HAS_INDEX:
        m = tl.load(order_ptr + slot)
    else:
        m = slot
    return m


@triton.jit
def only_inside(block, mask, GROUPS: tl.constexpr):
    """The block, 0 where masked: a square may have pixels beyond the image, which output pixels do sample."""
    result = ()
    for g in tl.static_range(GROUPS):
        result = result + (tl.where(mask[:, None], block[g], 0),)
    return result


@triton.jit
def load_image(
    input_ptr,
    n,
    c_start,
    channels,
    pixels,
    pixel_mask,
    outer_strides,
    strides,
    fill_ptr,
    fill_stride,
    PADDING: tl.constexpr,
    INDEX: tl.constexpr,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The tile's own pixels, less the fill values that take their place outside."""
    start = block_start(input_ptr, n, c_start, outer_strides[0], outer_strides[1])
    offset = pixel_offset(pixels, strides, 2, INDEX)
    image = load_block(start, outer_strides[1], offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE)
    if PADDING == FILL:
        image = subtract_fill(image, fill_ptr, fill_stride, c_start, channels, GROUPS, RUN_C, DTYPE)
        image = only_inside(image, pixel_mask, GROUPS)
    return image


@triton.jit
def add_to(vectors, index: tl.constexpr, more, COUNT: tl.constexpr):
    """The vectors, with something added to one of them."""
    result = ()
    for i in tl.static_range(COUNT):
        result = result + (vectors[i] + more if i == index else vectors[i],)
    return result


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    partial_ptr,
    grad_input_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    starts_ptr,
    order_ptr,
    per_image,
    C,
    H_in,
    W_in,
    H_out,
    W_out,
    grad_input_stride_n,
    grad_input_stride_c,
    grad_input_stride_h,
    grad_input_stride_w,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_h,
    grad_output_stride_w,
    input_stride_n,
    input_stride_c,
    input_stride_h,
    input_stride_w,
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    fill_stride,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    MANY: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    EVEN_C: tl.constexpr,
    SIDE: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_input of a tile, and the tile's share of grad_theta if it is wanted."""
    sizes_in = (W_in, H_in)
    sizes_out = (W_out, H_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h)
    input_strides = (input_stride_w, input_stride_h)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    SQUARES: tl.constexpr = BLOCK_H * BLOCK_W // (SIDE * SIDE)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    LISTED: tl.constexpr = STEPS_C > 1
    tl.static_assert(not LISTED or (TAPS <= 2 and SIDE == 1 and not (MANY or ANTIALIAS)))

    n, c_first, origin = tile_origin(C, 1, H_in, W_in, 2, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    square = tile_pixels((0, 0), 2, BLOCK_H // SIDE, BLOCK_W // SIDE)
    pixels = (origin[0] + SIDE * square[0], origin[1] + SIDE * square[1])
    pixel_mask = is_inside(pixels, sizes_in, 2)
    halves = per_axis_halves(sizes_in, 2, DTYPE)
    lows, highs = per_axis_limits(sizes_in, 2, DTYPE)
    numbers = ()
    for k in tl.static_range(2):
        numbers = numbers + (tl.cast(pixels[k] - (sizes_in[k] - 1) // 2, DTYPE),)
    at_edge = touches_edge(origin, sizes_in, 0, BLOCK_H, BLOCK_W)
    at_edge = at_edge | touches_edge(origin, sizes_in, 1, BLOCK_H, BLOCK_W)
    sums = zero_vectors(6 if NEEDS_THETA else 0, SQUARES, DTYPE)

    m = n.to(tl.int64)
    chunks = 1
    if MANY:
        slot_first, slot_end = slots_of(starts_ptr, n, per_image, HAS_INDEX)
        chunks = tl.cdiv(slot_end - slot_first, CULLED).to(tl.int32)
    else:
        a, scales, samples, samples_all, sizes = map_of(
            theta_ptr, m, theta_strides, sizes_in, sizes_out, ANTIALIAS, ALIGN_CORNERS, 2, False, DTYPE
        )

    steps = steps_of(C - c_first, BLOCK_C, STEPS_C)
    if LISTED:
        _block, _sums, found, kept = walk(
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
            grad_output_ptr,
            grad_output_stride_c,
            grad_output_strides,
            0,
            (),
            (),
            (),
            tl.zeros((SQUARES,), tl.int32),
            empty_slots(SQUARES, DTYPE),
            True,
            SIDE,
            TAPS,
            PADDING,
            ALIGN_CORNERS,
            ANTIALIAS,
            INDEX,
            DTYPE,
            NEEDS_THETA,
            EVEN_C,
            GROUPS,
            RUN_C,
            BLOCK_H,
            BLOCK_W,
        )
        longest = tl.max(found)
        is_listed = longest <= SLOTS
        dots = zero_vectors(SLOTS, SQUARES, DTYPE)
        for step in range(tl.where(is_listed, steps, 0)):
            c_start = c_first + step * BLOCK_C
            channels = C - c_start
            accumulator = zero_block(GROUPS, SQUARES, RUN_C, DTYPE)
            image = ()
            if NEEDS_THETA:
                image = load_image(
                    input_ptr,
                    n,
                    c_start,
                    channels,
                    pixels,
                    pixel_mask,
                    (input_stride_n, input_stride_c),
                    input_strides,
                    fill_ptr,
                    fill_stride,
                    PADDING,
                    INDEX,
                    GROUPS,
                    RUN_C,
                    EVEN_C,
                    DTYPE,
                )
            grad_output_start = block_start(
                grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c
            )
            for s in tl.static_range(SLOTS - 1, -1, -1):  # in the order in which they were found
                for _ in range(tl.where(s < longest, 1, 0)):
                    offset = pixel_offset((kept[3 * s], kept[3 * s + 1]), grad_output_strides, 2, INDEX)
                    gradient = load_block(
                        grad_output_start,
                        grad_output_stride_c,
                        offset,
                        s < found,
                        channels,
                        GROUPS,
                        RUN_C,
                        EVEN_C,
                        DTYPE,
                    )
                    accumulator = add_scaled(accumulator, gradient, kept[3 * s + 2], GROUPS)
                    if NEEDS_THETA:
                        dots = add_to(dots, s, dot_channels(image, gradient, GROUPS), SLOTS)
            grad_input_start = block_start(
                grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c
            )
            offset = pixel_offset(pixels, grad_input_strides, 2, INDEX)
            store_block(
                grad_input_start,
                grad_input_stride_c,
                offset,
                pixel_mask,
                channels,
                accumulator,
                GROUPS,
                RUN_C,
                EVEN_C,
            )
        steps = tl.where(is_listed, 0, steps)

    for step in range(steps):
        c_start = c_first + step * BLOCK_C
        channels = C - c_start
        accumulator = zero_block(SIDE * SIDE * GROUPS, SQUARES, RUN_C, DTYPE)
        image = ()
        if NEEDS_THETA:
            for i in tl.static_range(SIDE * SIDE):
                own = (pixels[0] + i % SIDE, pixels[1] + i // SIDE)
                image = image + load_image(
                    input_ptr,
                    n,
                    c_start,
                    channels,
                    own,
                    is_inside(own, sizes_in, 2),
                    (input_stride_n, input_stride_c),
                    input_strides,
                    fill_ptr,
                    fill_stride,
                    PADDING,
                    INDEX,
                    GROUPS,
                    RUN_C,
                    EVEN_C,
                    DTYPE,
                )

        for chunk in range(chunks):
            hits = 1
            if MANY:
                lanes = tl.arange(0, CULLED)
                slots = slot_first + chunk * CULLED + lanes
                reached = slots < slot_end
                coarse = theta_scales(sizes_in, sizes_out, ALIGN_CORNERS, 2, False, DTYPE)
                matrices = matrix_at(order_ptr, tl.where(reached, slots, slot_first), HAS_INDEX)
                maps = fold_theta(theta_ptr, matrices, theta_strides, coarse, 2, False, DTYPE)
                # Antialiasing samples up to half a pixel beyond the middle of the last one.
                edges = output_lasts(sizes_out, 0 if ANTIALIAS else 1, DTYPE)
                reached = tile_is_reached(
                    reached, maps, origin, sizes_in, edges, halves, TAPS, PADDING, BLOCK_H, BLOCK_W, DTYPE
                )
                hits = tl.sum(reached.to(tl.int32))
            for _ in range(hits):
                if MANY:
                    lane = tl.min(tl.where(reached, lanes, CULLED))
                    reached = reached & (lanes != lane)
                    m = matrix_at(order_ptr, slot_first + chunk * CULLED + lane, HAS_INDEX)
                    a, scales, samples, samples_all, sizes = map_of(
                        theta_ptr,
                        m,
                        theta_strides,
                        sizes_in,
                        sizes_out,
                        ANTIALIAS,
                        ALIGN_CORNERS,
                        2,
                        False,
                        DTYPE,
                    )
                grad_output_start = block_start(
                    grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c
                )
                accumulator, sums, _found, _slots = walk(
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
                    (),
                    (),
                    False,
                    SIDE,
                    TAPS,
                    PADDING,
                    ALIGN_CORNERS,
                    ANTIALIAS,
                    INDEX,
                    DTYPE,
                    NEEDS_THETA,
                    EVEN_C,
                    GROUPS,
                    RUN_C,
                    BLOCK_H,
                    BLOCK_W,
                )

        grad_input_start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
        for i in tl.static_range(SIDE * SIDE):
            own = (pixels[0] + i % SIDE, pixels[1] + i // SIDE)
            store_block(
                grad_input_start,
                grad_input_stride_c,
                pixel_offset(own, grad_input_strides, 2, INDEX),
                is_inside(own, sizes_in, 2),
                channels,
                block_of(accumulator, i, GROUPS),
                GROUPS,
                RUN_C,
                EVEN_C,
            )

    if NEEDS_THETA:
        if LISTED:
            for s in tl.static_range(SLOTS):
                for _ in range(tl.where(is_listed & (s < longest), 1, 0)):
                    v = centred(kept[3 * s + 1], sizes[1], DTYPE)
                    constants = (row_constant(a, (v, v), 0, 2), row_constant(a, (v, v), 1, 2))
                    u, hits, weights, slopes = visit(
                        a,
                        kept[3 * s],
                        constants,
                        numbers,
                        halves,
                        lows,
                        highs,
                        sizes,
                        s < found,
                        SIDE,
                        TAPS,
                        PADDING,
                        ALIGN_CORNERS,
                        DTYPE,
                    )
                    rows = row_shares((dots[s],), s < found, hits, weights, slopes, SIDE)
                    sums = add_column(sums, rows, u, 0, 2, 2)
                    sums = add_column(sums, rows, v, 1, 2, 2)
                    sums = add_column(sums, rows, 1.0, 2, 2, 2)
        row = partial_ptr + tl.program_id(0).to(tl.int64) * 6
        store_sums(row, sums, scales, 3, 2, 2)
