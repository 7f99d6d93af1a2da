"""Backward: both gradients in one pass, gathered, without atomics.

A program owns a tile of *input* pixels and a block of channels. Output pixel o touches input pixel p iff
p is one of the two taps on each axis, floor(c(o)) - p in {-1, 0} with c the very coordinate of the forward
(`source`). Over those o,

    grad_input[p] = sum of w(o, p) * grad_output[o]
    d/dc_x        = sum over channels of input[p] * grad_output[o], times -1 or 1 along x, hat along y

and grad_theta sums d/dc times (u, v, 1). The support of p is the half-open square |A o - p| <= 1; its
preimage is a parallelogram with

    rows      v in (a00 p_y - a10 p_x)/det  +-  (|a00| + |a10|)/|det|
    columns   u in (p - a_k1 v)/a_k0        +-  1/|a_k0|      for both axes k, within a row.

All pixels of an image share the number of rows and the largest count per row, so the loops are uniform and
only their starts differ. The intervals are widened by the rounding of everything that goes into them: one
missed candidate of weight zero would still lose its derivative, while needless ones are rejected by the
floor. When the rows cannot be told (det near 0), all rows are searched, each with its interval, and tiles
that no output pixel reaches are left out first.

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
    load_block,
    pixel_offset,
    store_block,
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import centred, fold_theta, half_step, source, theta_scales
from stn_triton.kernels.forward import is_inside, sampled_cells

# Above this many candidates per row it pays to ask how many the tile really has.
LONG_ROW = tl.constexpr(8)


@triton.jit
def add_all(a0, a1, a2, a3, a4, a5, b0, b1, b2, b3, b4, b5):
    """Combine six sums in one reduction."""
    return a0 + b0, a1 + b1, a2 + b2, a3 + b3, a4 + b4, a5 + b5


@triton.jit
def store_partial(partial_ptr, sums, scales):
    """Reduce six vectors over the program and store them, as gradients of theta, in the program's row."""
    totals = tl.reduce(sums, 0, add_all)
    row = partial_ptr + tl.program_id(0).to(tl.int64) * 6
    for i in tl.static_range(6):
        tl.store(row + i, totals[i] * scales[i])


@triton.jit
def interval(target, a_u, constant, reach):
    """Ends of the u with |a_u u + constant - target| <= 1, widened; NaN where everything may qualify."""
    middle = (target - constant) * inverse(a_u)
    return middle - reach, middle + reach


@triton.jit
def inverse(a):
    """1/a, finite also where a is zero."""
    tiny: tl.constexpr = 1e-30
    return 1 / tl.where(tl.abs(a) > tiny, a, tiny)


@triton.jit
def is_real(a):
    """Neither infinite nor NaN."""
    return tl.abs(a) < float("inf")


@triton.jit
def tap(position, pixel):
    """Whether a pixel is a tap of a position on one axis, its weight there, and whether it is the second."""
    cell = tl.floor(position)
    fraction = position - cell
    second = pixel - cell == 1
    return second | (pixel == cell), tl.where(second, fraction, 1 - fraction), second


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    partial_ptr,
    grad_input_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
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
    ALIGN_CORNERS: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_input of a tile, and the tile's share of grad_theta if it is wanted."""
    n, c_start, h_start, w_start = tile_origin(C, H_in, W_in, BLOCK_C, BLOCK_H, BLOCK_W)
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    element: tl.constexpr = input_ptr.dtype.element_ty
    y, x = tile_pixels(h_start, w_start, element, BLOCK_H, BLOCK_W)
    pixel_mask = (y < H_in) & (x < W_in)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    channels = C - c_start

    scales = theta_scales(H_in, W_in, H_out, W_out, ALIGN_CORNERS, DTYPE)
    a = fold_theta(theta_ptr, n, theta_stride_n, theta_stride_row, theta_stride_column, scales, DTYPE)
    half_x = half_step(W_in, DTYPE)
    half_y = half_step(H_in, DTYPE)
    pixel_x = (x - (W_in - 1) // 2).to(DTYPE)
    pixel_y = (y - (H_in - 1) // 2).to(DTYPE)
    target_x = pixel_x - half_x
    target_y = pixel_y - half_y
    last_u = 0.5 * tl.cast(W_out - 1, DTYPE)
    last_v = 0.5 * tl.cast(H_out - 1, DTYPE)

    # The search, from numbers that the whole image shares. `epsilon` is four roundings, relative.
    epsilon: tl.constexpr = 2.0**-21 if tl.float32 == DTYPE else 2.0**-50
    span_x = tl.abs(a[0]) * last_u + tl.abs(a[1]) * last_v
    span_y = tl.abs(a[3]) * last_u + tl.abs(a[4]) * last_v
    magnitude_x = span_x + tl.abs(a[2]) + W_in
    magnitude_y = span_y + tl.abs(a[5]) + H_in
    reach_x = 1 + epsilon * magnitude_x
    reach_y = 1 + epsilon * magnitude_y

    inverse_det = 1 / (a[0] * a[4] - a[1] * a[3])
    condition = (tl.abs(a[0] * a[4]) + tl.abs(a[1] * a[3])) * tl.abs(inverse_det)
    row_reach = (tl.abs(a[0]) * reach_y + tl.abs(a[3]) * reach_x) * tl.abs(inverse_det)
    row_reach += epsilon * (
        (tl.abs(a[0]) * magnitude_y + tl.abs(a[3]) * magnitude_x) * tl.abs(inverse_det)
        + condition * (last_v + row_reach)
        + H_out
    )
    rows_known = (epsilon * condition < 0.25) & (2 * row_reach < H_out)
    row_middle = (a[0] * (target_y - a[5]) - a[3] * (target_x - a[2])) * inverse_det
    row_first = tl.where(rows_known, row_middle - row_reach, -last_v)
    row_first = tl.where(row_first > -last_v, row_first, -last_v)
    row_first = tl.ceil(tl.minimum(row_first, last_v + 1) + last_v).to(tl.int32)
    row_count = tl.where(rows_known, 2 * row_reach, 0).to(tl.int32) + 1
    row_count = tl.where(rows_known, row_count, H_out)

    column_reach_x = reach_x * tl.abs(inverse(a[0])) + epsilon * W_out
    column_reach_y = reach_y * tl.abs(inverse(a[3])) + epsilon * W_out
    longest = 2 * tl.minimum(column_reach_x, column_reach_y)
    column_count = tl.where(longest < W_out, longest, 0).to(tl.int32) + 1
    column_count = tl.where(longest < W_out, column_count, W_out)

    # Tiles outside the image of the output rectangle have nothing to gather, and no tile has where a factor
    # is not finite. False for NaN.
    middle_x = tl.cast(w_start - (W_in - 1) // 2, DTYPE) + 0.5 * (BLOCK_W - 1) - half_x
    middle_y = tl.cast(h_start - (H_in - 1) // 2, DTYPE) + 0.5 * (BLOCK_H - 1) - half_y
    is_reached = (tl.abs(middle_x - a[2]) <= span_x + 0.5 * BLOCK_W + reach_x) & (
        tl.abs(middle_y - a[5]) <= span_y + 0.5 * BLOCK_H + reach_y
    )
    is_finite = is_real(a[0]) & is_real(a[1]) & is_real(a[3]) & is_real(a[4])
    row_count = tl.where(is_reached & is_finite, row_count, 0)

    grad_output_start = block_start(grad_output_ptr, n, c_start, grad_output_stride_n, grad_output_stride_c)
    accumulator = zero_block(GROUPS, PIXELS, RUN_C, DTYPE)
    if NEEDS_THETA:
        input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
        offset = pixel_offset(y, x, input_stride_h, input_stride_w, INDEX)
        image = load_block(
            input_start, input_stride_c, offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
        )
        sum_xu = tl.zeros((PIXELS,), DTYPE)
        sum_xv = tl.zeros((PIXELS,), DTYPE)
        sum_x = tl.zeros((PIXELS,), DTYPE)
        sum_yu = tl.zeros((PIXELS,), DTYPE)
        sum_yv = tl.zeros((PIXELS,), DTYPE)
        sum_y = tl.zeros((PIXELS,), DTYPE)

    for j in range(row_count):
        oh = row_first + j
        v = centred(oh, H_out, DTYPE)
        row_mask = pixel_mask & (oh < H_out)
        constant_x = tl.fma(a[1], v, a[2])
        constant_y = tl.fma(a[4], v, a[5])
        first_x, last_x = interval(target_x, a[0], constant_x, column_reach_x)
        first_y, last_y = interval(target_y, a[3], constant_y, column_reach_y)
        first = tl.where(first_x > -last_u, first_x, -last_u)
        first = tl.where(first_y > first, first_y, first)
        column_first = tl.ceil(tl.minimum(first, last_u + 1) + last_u).to(tl.int32)
        count = column_count
        if column_count > LONG_ROW:
            last = tl.where(last_x < last_u, last_x, last_u)
            last = tl.where(last_y < last, last_y, last)
            last = tl.where(row_mask, tl.maximum(last, -last_u - 1), -last_u - 1)
            count = tl.max(tl.floor(last + last_u).to(tl.int32) - column_first) + 1
            count = tl.minimum(count, column_count)
        if NEEDS_THETA:
            row_x = tl.zeros((PIXELS,), DTYPE)
            row_y = tl.zeros((PIXELS,), DTYPE)
        for k in range(count):
            ow = column_first + k
            u = centred(ow, W_out, DTYPE)
            hit_x, weight_x, second_x = tap(source(a[0], u, constant_x, half_x), pixel_x)
            hit_y, weight_y, second_y = tap(source(a[3], u, constant_y, half_y), pixel_y)
            hit = row_mask & (ow < W_out) & hit_x & hit_y
            weight_x = tl.where(hit, weight_x, 0)
            weight_y = tl.where(hit, weight_y, 0)
            weight = weight_x * weight_y
            if not NEEDS_THETA:
                hit = hit & (weight != 0)
            offset = pixel_offset(oh, ow, grad_output_stride_h, grad_output_stride_w, INDEX)
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
                product = dot_channels(image, gradient, GROUPS)
                product = tl.where(hit, product, 0)
                along_x = product * tl.where(second_x, weight_y, -weight_y)
                along_y = product * tl.where(second_y, weight_x, -weight_x)
                row_x += along_x
                row_y += along_y
                sum_xu += along_x * u
                sum_yu += along_y * u
        if NEEDS_THETA:
            sum_xv += row_x * v
            sum_yv += row_y * v
            sum_x += row_x
            sum_y += row_y

    grad_input_start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
    offset = pixel_offset(y, x, grad_input_stride_h, grad_input_stride_w, INDEX)
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
        store_partial(partial_ptr, (sum_xu, sum_xv, sum_x, sum_yu, sum_yv, sum_y), scales)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def theta_kernel(
    partial_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
    C,
    H_in,
    W_in,
    H_out,
    W_out,
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
    ALIGN_CORNERS: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_theta alone, by output pixels as in the forward: four taps each, nothing to search."""
    n, c_start, h_start, w_start = tile_origin(C, H_out, W_out, BLOCK_C, BLOCK_H, BLOCK_W)
    element: tl.constexpr = input_ptr.dtype.element_ty
    oh, ow = tile_pixels(h_start, w_start, element, BLOCK_H, BLOCK_W)
    pixel_mask = (oh < H_out) & (ow < W_out)

    scales = theta_scales(H_in, W_in, H_out, W_out, ALIGN_CORNERS, DTYPE)
    a = fold_theta(theta_ptr, n, theta_stride_n, theta_stride_row, theta_stride_column, scales, DTYPE)
    u, v, x0, y0, fx, fy = sampled_cells(a, oh, ow, H_in, W_in, H_out, W_out, DTYPE)

    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    channels = C - c_start
    grad_output_start = block_start(grad_output_ptr, n, c_start, grad_output_stride_n, grad_output_stride_c)
    offset = pixel_offset(oh, ow, grad_output_stride_h, grad_output_stride_w, INDEX)
    gradient = load_block(
        grad_output_start, grad_output_stride_c, offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
    )
    input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
    along_x = tl.zeros((BLOCK_H * BLOCK_W,), DTYPE)
    along_y = tl.zeros((BLOCK_H * BLOCK_W,), DTYPE)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            mask = pixel_mask & is_inside(y0 + dy, H_in) & is_inside(x0 + dx, W_in)
            offset = pixel_offset(y0 + dy, x0 + dx, input_stride_h, input_stride_w, INDEX)
            image = load_block(
                input_start, input_stride_c, offset, mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
            )
            product = tl.where(mask, dot_channels(image, gradient, GROUPS), 0)
            weight_x = fx if dx else 1 - fx
            weight_y = fy if dy else 1 - fy
            along_x += product * (weight_y if dx else -weight_y)
            along_y += product * (weight_x if dy else -weight_x)
    sums = (along_x * u, along_x * v, along_x, along_y * u, along_y * v, along_y)
    store_partial(partial_ptr, sums, scales)
