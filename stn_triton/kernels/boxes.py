"""Backward for maps whose preimage has no formula: grad_input, gathered with the help of boxes. No atomics.

An affine map says which output pixels sample an input pixel; a spline may fold, and has no inverse to ask.
`reach_kernel` walks the output once and writes, for each tile of 2 x 4 output pixels and each chunk of 8 x 8
tiles, the box of the pixels that they sample: numbers of pixels, taken from the very taps of the forward, so
that mode, padding and rounding need no thought here. Two bytes per output pixel, where a grid has eight.

In `boxes_kernel` a program owns a tile of input pixels, as in every gather. It goes through the chunks whose
box meets the tile, through their tiles that do, and there tries all 8 output pixels on all of its input
pixels, in a fixed order. [8, pixels] tensors have pixels in lanes and the 8 in registers, so that their sum
needs no exchange. Near the identity a tile of 8 x 8 tries (8 + 1 + 2)(8 + 1 + 4) = 143 output pixels for each
input pixel, where the affine gather tries 9, and computes each of their positions with all threads: this is
the deterministic way, `scatter.py` the fast one.
"""

import triton
import triton.language as tl

from stn_triton.kernels.backward import matrix_at, slots_of
from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_rows,
    block_start,
    is_inside,
    only_if,
    pixel_offset,
    store_block,
    tile_origin,
    tile_pixels,
)
from stn_triton.kernels.coordinates import fold_theta, per_axis_halves
from stn_triton.kernels.forward import map_of, sample_at
from stn_triton.kernels.spline import bends_at
from stn_triton.kernels.tangent import velocities_at

TILE_H = tl.constexpr(2)  # output pixels
TILE_W = tl.constexpr(4)
TILES = tl.constexpr(8)  # along a side of a chunk
LANES = tl.constexpr(64)  # tiles of a chunk, and chunks that are tested at once
NOTHING = tl.constexpr(2**30)


@triton.jit
def chunk_origin(chunk, W_out):
    """The first output pixel of a chunk."""
    chunks_w = tl.cdiv(W_out, TILE_W * TILES)
    row = chunk // chunks_w
    return (chunk - row * chunks_w) * (TILE_W * TILES), row * (TILE_H * TILES)


@triton.jit
def pixels_of(first, tile, pixel):
    """Output pixels, by their number in a tile, by its number in the chunk with this first pixel."""
    x = first[0] + tile % TILES * TILE_W + pixel % TILE_W
    y = first[1] + tile // TILES * TILE_H + pixel // TILE_W
    return x, y


@triton.jit
def count_chunks(H_out, W_out):
    """Of an output."""
    return tl.cdiv(H_out, TILE_H * TILES) * tl.cdiv(W_out, TILE_W * TILES)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def reach_kernel(
    boxes_ptr,
    chunk_boxes_ptr,
    theta_ptr,
    points_ptr,
    point_count,
    H_in,
    W_in,
    H_out,
    W_out,
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    DIM: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """boxes[chunk, k, tile] and chunk_boxes[k, chunk] of each matrix: first and last x, first and last y."""
    sizes_in = (W_in, H_in)
    sizes_out = (W_out, H_out)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    chunks = count_chunks(H_out, W_out)
    program = tl.program_id(0)
    m = program // chunks
    chunk = program - m * chunks
    tile = tl.arange(0, LANES)
    pixels = pixels_of(chunk_origin(chunk, W_out), tile[:, None], tl.arange(0, TILE_H * TILE_W)[None, :])
    mask = is_inside(pixels, sizes_out, DIM)
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
    _base, _positions, _divisor, indices, _weights, _slopes = sample_at(
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
    row = boxes_ptr + program.to(tl.int64) * (4 * LANES)
    for k in tl.static_range(DIM):
        least = indices[k * TAPS]
        most = indices[k * TAPS]
        for i in tl.static_range(1, TAPS):
            least = tl.minimum(least, indices[k * TAPS + i])
            most = tl.maximum(most, indices[k * TAPS + i])
        least = tl.min(tl.where(mask, least, NOTHING), 1)
        most = tl.max(tl.where(mask, most, -NOTHING), 1)
        tl.store(row + 2 * k * LANES + tile, least)
        tl.store(row + (2 * k + 1) * LANES + tile, most)
        corner = chunk_boxes_ptr + (m.to(tl.int64) * 4 + 2 * k) * chunks + chunk
        tl.store(corner, tl.min(least, 0))
        tl.store(corner + chunks, tl.max(most, 0))


@triton.jit
def meets(boxes, stride, lanes, mask, origin, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Which of the boxes have pixels of the tile."""
    first_x = tl.load(boxes + lanes, mask=mask, other=NOTHING)
    last_x = tl.load(boxes + stride + lanes, mask=mask, other=-NOTHING)
    first_y = tl.load(boxes + 2 * stride + lanes, mask=mask, other=NOTHING)
    last_y = tl.load(boxes + 3 * stride + lanes, mask=mask, other=-NOTHING)
    x = (first_x < origin[0] + BLOCK_W) & (last_x >= origin[0])
    return x & (first_y < origin[1] + BLOCK_H) & (last_y >= origin[1])


@triton.jit
def on_pixels(indices, weights, pixels, axis: tl.constexpr, TAPS: tl.constexpr):
    """[8, pixels]: on one axis, the weights of output pixels' taps on the tile's pixels."""
    result = tl.where(
        indices[axis * TAPS][:, None] == pixels[axis][None, :], weights[axis * TAPS][:, None], 0
    )
    for i in tl.static_range(1, TAPS):
        is_this = indices[axis * TAPS + i][:, None] == pixels[axis][None, :]
        result += tl.where(is_this, weights[axis * TAPS + i][:, None], 0)
    return result


@triton.jit(do_not_specialize=UNSPECIALIZED)
def boxes_kernel(
    grad_input_ptr,
    grad_output_ptr,
    theta_ptr,
    points_ptr,
    theta_tangent_ptr,
    starts_ptr,
    order_ptr,
    boxes_ptr,
    chunk_boxes_ptr,
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
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_input of a tile; for TANGENT, the gradient of the tangent: weights are how fast weights change."""
    sizes_in = (W_in, H_in)
    sizes_out = (W_out, H_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W

    n, c_start, origin = tile_origin(C, 1, H_in, W_in, DIM, BLOCK_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    channels = C - c_start
    chunks = count_chunks(H_out, W_out)
    lanes = tl.arange(0, LANES)
    number = tl.arange(0, TILE_H * TILE_W)
    halves = per_axis_halves(sizes_in, DIM, DTYPE)
    accumulator = ()
    for _g in tl.static_range(BLOCK_C):
        accumulator = accumulator + (tl.zeros((PIXELS,), DTYPE),)

    slot_first, slot_end = slots_of(starts_ptr, n, per_image, HAS_INDEX)
    for slot in range((slot_end - slot_first).to(tl.int32)):
        m = matrix_at(order_ptr, slot_first + slot, HAS_INDEX)
        a, scales, samples, _count, sizes = map_of(
            theta_ptr, m, theta_strides, sizes_in, sizes_out, False, ALIGN_CORNERS, DIM, False, DTYPE
        )
        if TANGENT:
            b = fold_theta(theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, False, DTYPE)
        gradient_start = block_start(grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c)
        chunk_boxes = chunk_boxes_ptr + m.to(tl.int64) * (4 * chunks)
        boxes = boxes_ptr + m.to(tl.int64) * chunks * (4 * LANES)
        for group in range(tl.cdiv(chunks, LANES)):
            chunk_lanes = group * LANES + lanes
            is_met = meets(chunk_boxes, chunks, chunk_lanes, chunk_lanes < chunks, origin, BLOCK_H, BLOCK_W)
            for _chunk in range(tl.sum(is_met.to(tl.int32))):
                lane = tl.min(tl.where(is_met, lanes, LANES))
                is_met = is_met & (lanes != lane)
                chunk = group * LANES + lane
                first = chunk_origin(chunk, W_out)
                tile_boxes = boxes + chunk.to(tl.int64) * (4 * LANES)
                is_tile = meets(tile_boxes, LANES, lanes, lanes >= 0, origin, BLOCK_H, BLOCK_W)
                for _tile in range(tl.sum(is_tile.to(tl.int32))):
                    tile = tl.min(tl.where(is_tile, lanes, LANES))
                    is_tile = is_tile & (lanes != tile)
                    sampling = pixels_of(first, tile, number)
                    bends = bends_at(
                        sampling,
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
                        sampling,
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
                    x = on_pixels(indices, weights, pixels, 0, TAPS)
                    y = on_pixels(indices, weights, pixels, 1, TAPS)
                    weight = x * y
                    if TANGENT:
                        velocities, _growth = velocities_at(b, base, positions, halves, divisor, DIM, False)
                        moved_bends = bends_at(
                            sampling,
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
                        weight = velocities[0][:, None] * on_pixels(indices, slopes, pixels, 0, TAPS) * y
                        weight += velocities[1][:, None] * on_pixels(indices, slopes, pixels, 1, TAPS) * x
                    hit = is_inside(sampling, sizes_out, DIM)[:, None] & (weight != 0)
                    weight = tl.where(hit, weight, 0)
                    offset = pixel_offset(sampling, grad_output_strides, DIM, INDEX)[:, None]
                    # As many pointers as weights: what no pixel of the tile wants is not loaded.
                    offset = tl.broadcast_to(offset, (TILE_H * TILE_W, PIXELS))
                    added = ()
                    for g in tl.static_range(BLOCK_C):
                        pointers = gradient_start + tl.cast(grad_output_stride_c, tl.int64) * g + offset
                        mask = hit if EVEN_C else only_if(g < channels, hit)
                        gradient = tl.load(pointers, mask=mask, other=0).to(DTYPE)
                        added = added + (accumulator[g] + tl.sum(weight * gradient, 0),)
                    accumulator = added

    block = ()
    for g in tl.static_range(BLOCK_C):
        block = block + (accumulator[g][:, None],)
    grad_input_start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
    offset = pixel_offset(pixels, grad_input_strides, DIM, INDEX)
    pixel_mask = is_inside(pixels, sizes_in, DIM)
    store_block(
        grad_input_start, grad_input_stride_c, offset, pixel_mask, channels, block, BLOCK_C, 1, EVEN_C
    )
