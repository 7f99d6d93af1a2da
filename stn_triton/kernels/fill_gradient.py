"""The gradient of the fill values: a sum over all output pixels, as far as they lie outside the image.

A program owns a tile of output pixels, as in the forward, and stores its share. A later pass adds the shares
up in a fixed order.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    block_start,
    is_inside,
    load_block,
    only_if,
    pixel_offset,
)
from stn_triton.kernels.coordinates import is_visible, per_axis_halves
from stn_triton.kernels.sampling import product, sample_at, tap_of, window_of
from stn_triton.kernels.structs import Image, Matrix, Points
from stn_triton.kernels.tangent import change_of, motion_of, velocities_at


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
    grad_output_strides,
    theta_strides,
    theta_tangent_strides,
    K: tl.constexpr,
):
    """Store the tile's share of each fill value's gradient: grad_output times the uncovered part of a pixel.

    With TANGENT, grad_output times how fast the uncovered part grows.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    grad_output = Image(grad_output_ptr, grad_output_stride_n, grad_output_stride_c, grad_output_strides)
    theta = Matrix(theta_ptr, theta_strides)
    theta_tangent = Matrix(theta_tangent_ptr, theta_tangent_strides)
    points = Points(points_ptr, point_count)

    window = window_of(theta, image_index_ptr, points, images, per_image, C, sizes_in, sizes_out, K)
    motion = motion_of(theta_tangent, window, points, sizes_out, K)
    halves = per_axis_halves(sizes_in, K)
    mask = only_if(window.exists, window.mask)
    coverage = tl.zeros((K.PIXELS,), K.DTYPE)
    is_covered = mask
    for number in range(window.map.count):
        sample = sample_at(window, number, sizes_in, K)
        if K.TANGENT:
            velocities, _growth = velocities_at(motion, sample, halves, K)
        for i in tl.static_range(K.TAPS**K.DIM):
            weight = product(tap_of(sample.weights, i, K), K)
            if K.TANGENT:
                weight = change_of(velocities, tap_of(sample.weights, i, K), tap_of(sample.slopes, i, K), K)
            inside = is_inside(tap_of(sample.indices, i, K), sizes_in, K)
            if K.PROJECTIVE:
                inside = inside & is_visible(sample.divisor)
            coverage += tl.where(inside, weight, 0)
            is_covered = is_covered & (inside | (weight == 0))
    count = tl.cast(window.map.count, K.DTYPE)
    if K.TANGENT:
        rest = -coverage / count
    else:
        rest = tl.where(is_covered, 0, (window.map.count - coverage) / count)

    start = block_start(grad_output, window.m, window.c_first)
    offset = pixel_offset(window.pixels, grad_output.strides, K)
    mask = mask & (rest != 0)
    gradient = load_block(start, grad_output.stride_c, offset, mask, C - window.c_first, K)
    row = partial_ptr + tl.program_id(0).to(tl.int64) * K.BLOCK_C
    for g in tl.static_range(K.GROUPS):
        c = g * K.RUN_C + tl.arange(0, K.RUN_C)
        tl.store(row + c, tl.sum(gradient[g] * rest[:, None], 0))
