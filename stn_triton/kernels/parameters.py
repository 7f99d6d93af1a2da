"""Gradients that are sums over all output pixels: helpers for theta's, and the kernel of the fill values'.

A program owns a tile of output pixels, as in the forward, and stores its share; a second, fixed-order sum
over the shares finishes. With dc_k the derivative by the position on axis k, row k of theta gets dc_k times
(u, v, 1). A projective map c_k = h_k/h_w passes dc_k/h_w to row k and -sum of dc_k c_k/h_w to the last row.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_rows,
    block_start,
    is_inside,
    load_block,
    only_if,
    pixel_offset,
    tile_origin,
    tile_pixels,
)
from stn_triton.kernels.coordinates import fold_theta, is_visible, per_axis_halves
from stn_triton.kernels.forward import image_of, map_of, product, sample_at, tap_of
from stn_triton.kernels.spline import bends_at
from stn_triton.kernels.tangent import change_of, velocities_at


@triton.jit
def add_three(a0, a1, a2, b0, b1, b2):
    """Combine three sums in one reduction."""
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def store_sums(row, sums, scales, columns, ROWS: tl.constexpr, DIM: tl.constexpr):
    """Reduce vectors over the program and store them in its row, as gradients of a matrix with `columns`."""
    for i in tl.static_range(0, ROWS * (DIM + 1), 3):
        totals = tl.reduce((sums[i], sums[i + 1], sums[i + 2]), 0, add_three)
        for j in tl.static_range(3):
            entry = row + (i + j) // (DIM + 1) * columns + (i + j) % (DIM + 1)
            tl.store(entry, totals[j] * scales[i + j])


@triton.jit
def zero_vectors(COUNT: tl.constexpr, PIXELS: tl.constexpr, DTYPE: tl.constexpr):
    """So many sums, one number per pixel each."""
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros((PIXELS,), DTYPE),)
    return vectors


@triton.jit
def add_column(sums, rows, base, column: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr):
    """Of the sums for a whole matrix, add to one column the derivatives by rows times its coordinate."""
    result = ()
    for i in tl.static_range(ROWS * (DIM + 1)):
        if i % (DIM + 1) == column:
            result = result + (sums[i] + rows[i // (DIM + 1)] * base,)
        else:
            result = result + (sums[i],)
    return result


@triton.jit
def where_hit(hit, vectors, COUNT: tl.constexpr):
    """The vectors where something was hit, else 0."""
    result = ()
    for i in tl.static_range(COUNT):
        result = result + (tl.where(hit, vectors[i], 0),)
    return result


@triton.jit
def row_derivatives(along, positions, halves, divisor, DIM: tl.constexpr, PROJECTIVE: tl.constexpr):
    """From derivatives by positions to derivatives by the rows of the matrix."""
    if PROJECTIVE:
        inverse = 1 / tl.where(is_visible(divisor), divisor, 1)
        rows = ()
        last = tl.zeros(divisor.shape, divisor.dtype)
        for k in tl.static_range(DIM):
            row = along[k] * inverse
            rows = rows + (row,)
            last -= tl.where(row != 0, row * (positions[k] - halves[k]), 0)
        rows = rows + (last,)
    else:
        rows = along
    return rows


@triton.jit
def add_along(along, dot, derivatives, DIM: tl.constexpr):
    """Add a tap's share, `dot` times the derivatives of its weight, to the derivatives by positions."""
    result = ()
    for k in tl.static_range(DIM):
        result = result + (along[k] + dot * derivatives[k],)
    return result


@triton.jit(do_not_specialize=UNSPECIALIZED)
def fill_kernel(
    partial_ptr,
    grad_output_ptr,
    theta_ptr,
    image_index_ptr,
    points_ptr,
    theta_tangent_ptr,
    images,
    per_image,
    point_count,
    C,
    D_in,
    H_in,
    W_in,
    D_out,
    H_out,
    W_out,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_d,
    grad_output_stride_h,
    grad_output_stride_w,
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    theta_tangent_stride_n,
    theta_tangent_stride_row,
    theta_tangent_stride_column,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    SPLINE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    TANGENT: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """The tile's share of the gradient of each channel's fill value: grad_output where nothing is covered.

    For TANGENT, grad_output times how fast the uncovered part grows.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h, grad_output_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C

    m, c_start, origin = tile_origin(C, D_out, H_out, W_out, DIM, BLOCK_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    _n, exists = image_of(image_index_ptr, m, images, per_image, HAS_INDEX)
    pixel_mask = only_if(exists, is_inside(pixels, sizes_out, DIM))
    a, scales, samples, count, sizes = map_of(
        theta_ptr, m, theta_strides, sizes_in, sizes_out, ANTIALIAS, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE
    )
    bends = ()
    if SPLINE:
        bends = bends_at(
            pixels,
            theta_ptr,
            m,
            theta_strides,
            scales,
            points_ptr,
            point_count,
            sizes_out,
            ALIGN_CORNERS,
            DTYPE,
        )
    if TANGENT:
        b = fold_theta(theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, PROJECTIVE, DTYPE)
        halves = per_axis_halves(sizes_in, DIM, DTYPE)
        moved_bends = ()
        if SPLINE:
            moved_bends = bends_at(
                pixels,
                theta_tangent_ptr,
                m,
                theta_tangent_strides,
                scales,
                points_ptr,
                point_count,
                sizes_out,
                ALIGN_CORNERS,
                DTYPE,
            )
    coverage = tl.zeros((BLOCK_H * BLOCK_W,), DTYPE)
    is_covered = pixel_mask
    for sample in range(count):
        base, positions, divisor, indices, weights, slopes = sample_at(
            a,
            pixels,
            sample,
            samples,
            sizes_in,
            sizes,
            bends,
            SPLINE,
            DIM,
            PROJECTIVE,
            TAPS,
            PADDING,
            ALIGN_CORNERS,
            DTYPE,
        )
        if TANGENT:
            velocities, _growth = velocities_at(b, base, positions, halves, divisor, DIM, PROJECTIVE)
            if SPLINE:
                velocities = add_rows(velocities, moved_bends, DIM)
        for i in tl.static_range(TAPS**DIM):
            weight = product(tap_of(weights, i, DIM, TAPS), DIM)
            if TANGENT:
                weight = change_of(
                    velocities, tap_of(weights, i, DIM, TAPS), tap_of(slopes, i, DIM, TAPS), DIM
                )
            inside = is_inside(tap_of(indices, i, DIM, TAPS), sizes_in, DIM)
            if PROJECTIVE:
                inside = inside & is_visible(divisor)
            coverage += tl.where(inside, weight, 0)
            is_covered = is_covered & (inside | (weight == 0))
    if TANGENT:
        rest = -coverage / tl.cast(count, DTYPE)
    else:
        rest = tl.where(is_covered, 0, (count - coverage) / tl.cast(count, DTYPE))

    channels = C - c_start
    start = block_start(grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c)
    offset = pixel_offset(pixels, grad_output_strides, DIM, INDEX)
    mask = pixel_mask & (rest != 0)
    gradient = load_block(start, grad_output_stride_c, offset, mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE)
    row = partial_ptr + tl.program_id(0).to(tl.int64) * BLOCK_C
    for g in tl.static_range(GROUPS):
        c = g * RUN_C + tl.arange(0, RUN_C)
        tl.store(row + c, tl.sum(gradient[g] * rest[:, None], 0))
