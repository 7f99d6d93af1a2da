"""Backward: grad_input and, in the same pass, grad_theta, gathered, without atomics.

A program owns a tile of *input* pixels and a block of channels. Over the output pixels o that sample input
pixel p (`search.py` finds candidates, `weight_on` decides by the very coordinate of the forward),

    grad_input[p] = sum of w(o, p) * grad_output[o]
    d/dc_k        = sum over channels of input[p] * grad_output[o], times the derivative of w(o, p)

and row k of grad_theta sums d/dc_k times (u, v, 1), see `parameters.py`.

Around this gather stand loops that most programs run once: over the matrices of an image, culled many at a
time by the tile that they reach; over the mirror images of reflection, each output pixel belonging to one.

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
from stn_triton.kernels.taps import FILL, REFLECTION, per_axis_limits
from stn_triton.kernels.walk import SLOTS, empty_slots, row_shares, visit, walk

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
    DIM: tl.constexpr,
    PADDING: tl.constexpr,
    INDEX: tl.constexpr,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The tile's own pixels, less the fill values that take their place outside."""
    start = block_start(input_ptr, n, c_start, outer_strides[0], outer_strides[1])
    offset = pixel_offset(pixels, strides, DIM, INDEX)
    image = load_block(start, outer_strides[1], offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE)
    if PADDING == FILL:
        image = subtract_fill(image, fill_ptr, fill_stride, c_start, channels, GROUPS, RUN_C, DTYPE)
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
    theta_tangent_ptr,
    starts_ptr,
    order_ptr,
    per_image,
    C,
    D_in,
    H_in,
    W_in,
    D_out,
    H_out,
    W_out,
    grad_input_stride_n,
    grad_input_stride_c,
    grad_input_stride_d,
    grad_input_stride_h,
    grad_input_stride_w,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_d,
    grad_output_stride_h,
    grad_output_stride_w,
    input_stride_n,
    input_stride_c,
    input_stride_d,
    input_stride_h,
    input_stride_w,
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    fill_stride,
    theta_tangent_stride_n,
    theta_tangent_stride_row,
    theta_tangent_stride_column,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    MANY: tl.constexpr,
    TANGENT: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_input of a tile, and the tile's share of grad_theta if it is wanted.

    For TANGENT (grad_input alone), the gradient of the tangent: the weights are how fast weights change.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h, grad_input_stride_d)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h, grad_output_stride_d)
    input_strides = (input_stride_w, input_stride_h, input_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    ROWS: tl.constexpr = DIM + 1 if PROJECTIVE else DIM
    LISTED: tl.constexpr = STEPS_C > 1
    tl.static_assert(
        not LISTED
        or (
            DIM == 2
            and TAPS <= 2
            and not (MANY or PROJECTIVE or ANTIALIAS or TANGENT or PADDING == REFLECTION)
        )
    )

    n, c_first, origin = tile_origin(C, D_in, H_in, W_in, DIM, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    pixel_mask = is_inside(pixels, sizes_in, DIM)
    halves = per_axis_halves(sizes_in, DIM, DTYPE)
    lows, highs = per_axis_limits(sizes_in, DIM, DTYPE)
    numbers = ()
    for k in tl.static_range(DIM):
        numbers = numbers + (tl.cast(pixels[k] - (sizes_in[k] - 1) // 2, DTYPE),)
    at_edge = touches_edge(origin, sizes_in, DIM, BLOCK_H, BLOCK_W)
    sums = zero_vectors(ROWS * (DIM + 1) if NEEDS_THETA else 0, PIXELS, DTYPE)
    if not TANGENT:
        b = ()

    m = n.to(tl.int64)
    chunks = 1
    if not MANY:
        a, scales, samples, samples_all, sizes = map_of(
            theta_ptr,
            m,
            theta_strides,
            sizes_in,
            sizes_out,
            ANTIALIAS,
            ALIGN_CORNERS,
            DIM,
            PROJECTIVE,
            DTYPE,
        )
    if MANY:
        slot_first, slot_end = slots_of(starts_ptr, n, per_image, HAS_INDEX)
        chunks = tl.cdiv(slot_end - slot_first, CULLED).to(tl.int32)

    if LISTED:
        _block, _sums, found, kept = walk(
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
            grad_output_ptr,
            grad_output_stride_c,
            grad_output_strides,
            0,
            (),
            (),
            (),
            tl.zeros((PIXELS,), tl.int32),
            empty_slots(PIXELS, DTYPE),
            True,
            DIM,
            PROJECTIVE,
            TAPS,
            PADDING,
            ALIGN_CORNERS,
            ANTIALIAS,
            TANGENT,
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
        dots = zero_vectors(SLOTS, PIXELS, DTYPE)

    steps = steps_of(C - c_first, BLOCK_C, STEPS_C)
    if LISTED:
        for step in range(tl.where(is_listed, steps, 0)):
            c_start = c_first + step * BLOCK_C
            channels = C - c_start
            accumulator = zero_block(GROUPS, PIXELS, RUN_C, DTYPE)
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
                    DIM,
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
                    offset = pixel_offset((kept[3 * s], kept[3 * s + 1]), grad_output_strides, DIM, INDEX)
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
            offset = pixel_offset(pixels, grad_input_strides, DIM, INDEX)
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
        accumulator = zero_block(GROUPS, PIXELS, RUN_C, DTYPE)
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
                DIM,
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
                if not PROJECTIVE and PADDING != REFLECTION:
                    coarse = theta_scales(sizes_in, sizes_out, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE)
                    matrices = matrix_at(order_ptr, tl.where(reached, slots, slot_first), HAS_INDEX)
                    maps = fold_theta(theta_ptr, matrices, theta_strides, coarse, DIM, PROJECTIVE, DTYPE)
                    # Antialiasing samples up to half a pixel beyond the middle of the last one.
                    edges = output_lasts(sizes_out, 0 if ANTIALIAS else 1, DIM, DTYPE)
                    reached = tile_is_reached(
                        reached,
                        maps,
                        origin,
                        sizes_in,
                        edges,
                        halves,
                        DIM,
                        TAPS,
                        PADDING,
                        BLOCK_H,
                        BLOCK_W,
                        DTYPE,
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
                        DIM,
                        PROJECTIVE,
                        DTYPE,
                    )
                if TANGENT:
                    b = fold_theta(
                        theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, PROJECTIVE, DTYPE
                    )
                grad_output_start = block_start(
                    grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c
                )
                accumulator, sums, _found, _slots = walk(
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
                    (),
                    (),
                    False,
                    DIM,
                    PROJECTIVE,
                    TAPS,
                    PADDING,
                    ALIGN_CORNERS,
                    ANTIALIAS,
                    TANGENT,
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
        offset = pixel_offset(pixels, grad_input_strides, DIM, INDEX)
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

    if NEEDS_THETA:
        if LISTED:
            for s in tl.static_range(SLOTS):
                for _ in range(tl.where(is_listed & (s < longest), 1, 0)):
                    v = centred(kept[3 * s + 1], sizes[1], DTYPE)
                    constants = ()
                    for k in tl.static_range(ROWS):
                        constants = constants + (row_constant(a, (v, v), k, DIM),)
                    u, positions, divisor, _hit, weights, slopes = visit(
                        a,
                        kept[3 * s],
                        constants,
                        numbers,
                        halves,
                        lows,
                        highs,
                        sizes,
                        (),
                        False,
                        DIM,
                        PROJECTIVE,
                        TAPS,
                        PADDING,
                        ALIGN_CORNERS,
                        DTYPE,
                    )
                    rows = row_shares(
                        dots[s],
                        s < found,
                        weights,
                        slopes,
                        positions,
                        halves,
                        divisor,
                        DIM,
                        PROJECTIVE,
                        DTYPE,
                    )
                    sums = add_column(sums, rows, u, 0, DIM, ROWS)
                    sums = add_column(sums, rows, v, 1, DIM, ROWS)
                    sums = add_column(sums, rows, 1.0, DIM, DIM, ROWS)
        row = partial_ptr + tl.program_id(0).to(tl.int64) * (ROWS * (DIM + 1))
        store_sums(row, sums, scales, DIM + 1, ROWS, DIM)
