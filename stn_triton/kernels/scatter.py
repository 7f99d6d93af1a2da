"""Backward for maps whose preimage has no formula: grad_input, scattered by atomic additions.

A program owns a tile of output pixels, as in the forward, and adds their gradients times the weights of
their taps to a tensor of zeros in the dtype of coordinates: four additions per output pixel and channel. In
which order they arrive is not determined, and with it the last bits. Under PyTorch's deterministic mode
`boxes.py` takes its place, with several times the instructions.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_rows,
    block_start,
    group_mask,
    group_pointers,
    is_inside,
    load_block,
    only_if,
    pixel_offset,
    steps_of,
    tile_origin,
    tile_pixels,
)
from stn_triton.kernels.coordinates import fold_theta, per_axis_halves
from stn_triton.kernels.forward import image_of, map_of, product, sample_at, tap_addresses, tap_of
from stn_triton.kernels.spline import bends_at
from stn_triton.kernels.tangent import change_of, velocities_at


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scatter_kernel(
    grad_input_ptr,
    grad_output_ptr,
    theta_ptr,
    image_index_ptr,
    points_ptr,
    theta_tangent_ptr,
    images,
    per_image,
    point_count,
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
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    theta_tangent_stride_n,
    theta_tangent_stride_row,
    theta_tangent_stride_column,
    DIM: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    TANGENT: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Add a tile's share to grad_input; for TANGENT, to the gradient of the tangent."""
    sizes_in = (W_in, H_in)
    sizes_out = (W_out, H_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C

    m, c_first, origin = tile_origin(C, 1, H_out, W_out, DIM, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    n, exists = image_of(image_index_ptr, m, images, per_image, HAS_INDEX)
    pixel_mask = only_if(exists, is_inside(pixels, sizes_out, DIM))
    a, scales, samples, _count, sizes = map_of(
        theta_ptr, m, theta_strides, sizes_in, sizes_out, False, ALIGN_CORNERS, DIM, False, DTYPE
    )
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
    base, positions, divisor, indices, weights, slopes = sample_at(
        a,
        pixels,
        0,
        samples,
        sizes_in,
        sizes,
        bends,
        True,
        DIM,
        False,
        TAPS,
        PADDING,
        ALIGN_CORNERS,
        DTYPE,
    )
    if TANGENT:
        b = fold_theta(theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, False, DTYPE)
        halves = per_axis_halves(sizes_in, DIM, DTYPE)
        velocities, _growth = velocities_at(b, base, positions, halves, divisor, DIM, False)
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
        velocities = add_rows(velocities, moved_bends, DIM)

    for step in range(steps_of(C - c_first, BLOCK_C, STEPS_C)):
        c_start = c_first + step * BLOCK_C
        channels = C - c_start
        start = block_start(grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c)
        offset = pixel_offset(pixels, grad_output_strides, DIM, INDEX)
        gradient = load_block(
            start, grad_output_stride_c, offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
        )
        start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
        starts, offsets = tap_addresses(start, grad_input_strides, indices, DIM, TAPS, PADDING, INDEX)
        for i in tl.static_range(TAPS**DIM):
            weights_here = tap_of(weights, i, DIM, TAPS)
            weight = product(weights_here, DIM)
            if TANGENT:
                weight = change_of(velocities, weights_here, tap_of(slopes, i, DIM, TAPS), DIM)
            mask = pixel_mask & is_inside(tap_of(indices, i, DIM, TAPS), sizes_in, DIM) & (weight != 0)
            for g in tl.static_range(GROUPS):
                tl.atomic_add(
                    group_pointers(starts[i], grad_input_stride_c, offsets[i], g, RUN_C),
                    gradient[g] * weight[:, None],
                    mask=group_mask(mask, channels, g, RUN_C, EVEN_C),
                    sem="relaxed",
                )
