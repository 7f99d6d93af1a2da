"""Forward: a program writes a tile of output pixels for a block of channels.

A tap is loaded only if it lies inside and its weight is not zero. So NaN or Inf beside a sampled pixel does
not spread, and the identity copies its input.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_scaled,
    block_start,
    is_inside,
    load_block,
    load_fill,
    only_if,
    pixel_offset,
    steps_of,
    store_block,
    zero_groups,
)
from stn_triton.kernels.coordinates import is_visible, per_axis_halves
from stn_triton.kernels.sampling import product, sample_at, tap_addresses, tap_of, window_of
from stn_triton.kernels.structs import Image, Matrix, Points, Vector
from stn_triton.kernels.tangent import change_of, motion_of, velocities_at
from stn_triton.kernels.taps import FILL


@triton.jit
def add_taps(block, image, n, c_start, indices, masks, factors, channels, K: tl.constexpr):
    """Add the taps of an image, times their factors, to a block."""
    start = block_start(image, n, c_start)
    starts, offsets = tap_addresses(start, image.strides, indices, K)
    for i in tl.static_range(K.TAPS**K.DIM):
        tap = load_block(starts[i], image.stride_c, offsets[i], masks[i], channels, K)
        block = add_scaled(block, tap, factors[i], K)
    return block


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    image_index_ptr,
    points_ptr,
    input_tangent_ptr,
    theta_tangent_ptr,
    fill_tangent_ptr,
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
    output_stride_n,
    output_stride_c,
    output_strides,
    input_stride_n,
    input_stride_c,
    input_strides,
    theta_strides,
    fill_stride,
    input_tangent_stride_n,
    input_tangent_stride_c,
    input_tangent_strides,
    theta_tangent_strides,
    fill_tangent_stride,
    K: tl.constexpr,
):
    """Write output[m, :, pixel]: the weighted sum of taps around A (u, v, 1); with TANGENT, its tangent."""
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    input = Image(input_ptr, input_stride_n, input_stride_c, input_strides)
    output = Image(output_ptr, output_stride_n, output_stride_c, output_strides)
    input_tangent = Image(
        input_tangent_ptr, input_tangent_stride_n, input_tangent_stride_c, input_tangent_strides
    )
    theta = Matrix(theta_ptr, theta_strides)
    theta_tangent = Matrix(theta_tangent_ptr, theta_tangent_strides)
    points = Points(points_ptr, point_count)

    window = window_of(theta, image_index_ptr, points, images, per_image, C, sizes_in, sizes_out, K)
    motion = motion_of(theta_tangent, window, points, sizes_out, K)
    halves = per_axis_halves(sizes_in, K)
    # The compiler moves all that does not depend on channels out of this loop.
    for step in range(steps_of(C - window.c_first, K)):
        c_start = window.c_first + step * K.BLOCK_C
        channels = C - c_start
        accumulator = zero_groups(K.GROUPS, K)
        # The part of a pixel that lies inside, how fast that part changes, and whether it is the whole pixel.
        coverage = tl.zeros((K.PIXELS,), K.DTYPE)
        turnover = tl.zeros((K.PIXELS,), K.DTYPE)
        is_covered = window.mask
        is_within = window.mask
        for number in range(window.map.count):
            sample = sample_at(window, number, sizes_in, K)
            if K.TANGENT:
                velocities, _growth = velocities_at(motion, sample, halves, K)
            seen = only_if(window.exists, window.mask)
            if K.PROJECTIVE:
                seen = seen & is_visible(sample.divisor)
            masks, factors, changing, changes = (), (), (), ()
            for i in tl.static_range(K.TAPS**K.DIM):
                weights = tap_of(sample.weights, i, K)
                weight = product(weights, K)
                inside = seen & is_inside(tap_of(sample.indices, i, K), sizes_in, K)
                mask = inside & (weight != 0)
                masks = masks + (mask,)
                factors = factors + (weight,)
                if K.PADDING == FILL:
                    coverage += tl.where(mask, weight, 0)
                    is_covered = is_covered & (inside | (weight == 0))
                if K.TANGENT:
                    change = change_of(velocities, weights, tap_of(sample.slopes, i, K), K)
                    change = tl.where(inside, change, 0)
                    changing = changing + (change != 0,)
                    changes = changes + (change,)
                    if K.PADDING == FILL:
                        turnover += change
                        is_within = is_within & inside
            if K.TANGENT:
                accumulator = add_taps(
                    accumulator, input, window.n, c_start, sample.indices, changing, changes, channels, K
                )
                if input_tangent_ptr is not None:
                    accumulator = add_taps(
                        accumulator,
                        input_tangent,
                        window.n,
                        c_start,
                        sample.indices,
                        masks,
                        factors,
                        channels,
                        K,
                    )
            else:
                accumulator = add_taps(
                    accumulator, input, window.n, c_start, sample.indices, masks, factors, channels, K
                )

        result = ()
        for g in tl.static_range(K.GROUPS):
            group = accumulator[g]
            if K.PADDING == FILL:
                fill = load_fill(Vector(fill_ptr, fill_stride), c_start, channels, g, K)
                if K.TANGENT:
                    group -= tl.where(is_within[:, None], 0, turnover[:, None] * fill)
                    if fill_tangent_ptr is not None:
                        moved = Vector(fill_tangent_ptr, fill_tangent_stride)
                        fill = load_fill(moved, c_start, channels, g, K)
                if K.SUM != K.DTYPE:
                    group = tl.where(is_covered[:, None], group, fill)
                elif not K.TANGENT or fill_tangent_ptr is not None:
                    group += tl.where(is_covered[:, None], 0, (window.map.count - coverage)[:, None] * fill)
            if K.ANTIALIAS:
                group = group / tl.cast(window.map.count, K.DTYPE)
            if K.HAS_INDEX:
                if K.SUM == K.DTYPE:
                    group = tl.where(window.exists, group, float("nan"))
                else:
                    group = tl.where(window.exists, group, 0)
            result = result + (group,)
        start = block_start(output, window.m, c_start)
        offset = pixel_offset(window.pixels, output.strides, K)
        store_block(start, output.stride_c, offset, window.mask, channels, result, K)
