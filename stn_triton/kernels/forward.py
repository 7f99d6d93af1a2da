"""Forward: a program writes a tile of output pixels for a block of channels.

Coordinates, masks and weights are computed once per pixel and used for all channels of the block.
A tap is loaded only if it lies inside and its weight is not zero: NaN or Inf beside a sampled pixel stay
there, and the identity copies its input.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_scaled,
    block_start,
    load_block,
    pixel_offset,
    store_block,
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import centred, fold_theta, half_step, source, theta_scales


@triton.jit
def cell_of(position, size):
    """First tap of a position (half a step from the centre, see `source`) and its fraction in [0, 1].

    Clamped two cells beyond the image before the conversion to an integer; NaN goes below it.
    """
    whole = (size - 1) // 2
    lowest = tl.cast(-2 - whole, position.dtype)
    highest = tl.cast(size + 1 - whole, position.dtype)
    position = tl.where(position > lowest, position, lowest)
    position = tl.minimum(position, highest)
    cell = tl.floor(position)
    return cell.to(tl.int32) + whole, position - cell


@triton.jit
def is_inside(index, size):
    """Whether an index names a pixel of an axis."""
    return (index >= 0) & (index < size)


@triton.jit
def sampled_cells(a, oh, ow, H_in, W_in, H_out, W_out, DTYPE: tl.constexpr):
    """Of output pixels: centred coordinates u and v, first taps x0 and y0, fractions fx and fy."""
    u = centred(ow, W_out, DTYPE)
    v = centred(oh, H_out, DTYPE)
    x0, fx = cell_of(source(a[0], u, tl.fma(a[1], v, a[2]), half_step(W_in, DTYPE)), W_in)
    y0, fy = cell_of(source(a[3], u, tl.fma(a[4], v, a[5]), half_step(H_in, DTYPE)), H_in)
    return u, v, x0, y0, fx, fy


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    output_ptr,
    input_ptr,
    theta_ptr,
    C,
    H_in,
    W_in,
    H_out,
    W_out,
    output_stride_n,
    output_stride_c,
    output_stride_h,
    output_stride_w,
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
    """output[n, :, oh, ow] = the four taps around A (u, v, 1), weighted."""
    n, c_start, h_start, w_start = tile_origin(C, H_out, W_out, BLOCK_C, BLOCK_H, BLOCK_W)
    element: tl.constexpr = input_ptr.dtype.element_ty
    oh, ow = tile_pixels(h_start, w_start, element, BLOCK_H, BLOCK_W)
    pixel_mask = (oh < H_out) & (ow < W_out)

    scales = theta_scales(H_in, W_in, H_out, W_out, ALIGN_CORNERS, DTYPE)
    a = fold_theta(theta_ptr, n, theta_stride_n, theta_stride_row, theta_stride_column, scales, DTYPE)
    _, _, x0, y0, fx, fy = sampled_cells(a, oh, ow, H_in, W_in, H_out, W_out, DTYPE)

    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    channels = C - c_start
    input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
    accumulator = zero_block(GROUPS, BLOCK_H * BLOCK_W, RUN_C, DTYPE)
    for dy in tl.static_range(2):
        for dx in tl.static_range(2):
            weight = (fx if dx else 1 - fx) * (fy if dy else 1 - fy)
            mask = pixel_mask & is_inside(y0 + dy, H_in) & is_inside(x0 + dx, W_in) & (weight != 0)
            offset = pixel_offset(y0 + dy, x0 + dx, input_stride_h, input_stride_w, INDEX)
            tap = load_block(
                input_start, input_stride_c, offset, mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
            )
            accumulator = add_scaled(accumulator, tap, weight, GROUPS)

    output_start = block_start(output_ptr, n, c_start, output_stride_n, output_stride_c)
    offset = pixel_offset(oh, ow, output_stride_h, output_stride_w, INDEX)
    store_block(
        output_start, output_stride_c, offset, pixel_mask, channels, accumulator, GROUPS, RUN_C, EVEN_C
    )
