"""Where a program works, and where an output pixel samples.

A program works on a block of [groups, pixels, run] elements: `run` channels that lie side by side in memory,
for neighbouring lanes to read together (1 for NCHW, where neighbouring lanes read neighbouring pixels), the
pixels of a tile, and as many groups of such channels as make up BLOCK_C, which one thread goes through with
the coordinates of its pixel.

Both kernels and both corner conventions use one formula, in centred coordinates. With S the input extent of
an axis and So the output extent (both less one for align_corners), u = ow - (W_out - 1)/2 and
v = oh - (H_out - 1)/2, the source column, counted from the centre of the input, is

    t00 * Sx/So_x * u  +  t01 * Sx/So_y * v  +  t02 * Sx/2.

Its factors are folded once per program (`fold_theta`), two FMAs per pixel remain (`source`). All terms are
half-integers at the identity and at whole-pixel shifts, so there the result is exact. The centre (W_in - 1)/2
is added in two steps: its half (0 or 1/2) before the floor, its whole part to the integer cell. The FMAs are
explicit, so that forward and backward round alike whatever the compiler contracts.
"""

import triton
import triton.language as tl

# Arguments whose value must not choose another compilation: sizes, and the strides of channels.
UNSPECIALIZED = (
    *("H_in", "W_in", "H_out", "W_out"),
    *("input_stride_c", "output_stride_c", "grad_input_stride_c", "grad_output_stride_c"),
)


@triton.jit
def tile_origin(C, H, W, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Image, first channel, first row and first column of this program; tiles vary fastest."""
    tiles_w = tl.cdiv(W, BLOCK_W)
    tiles = tiles_w * tl.cdiv(H, BLOCK_H)
    blocks_c = tl.cdiv(C, BLOCK_C)
    block = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    return block // blocks_c, block % blocks_c * BLOCK_C, tile // tiles_w * BLOCK_H, tile % tiles_w * BLOCK_W


@triton.jit
def tile_pixels(h_start, w_start, element: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Row and column of each pixel of a tile, as vectors, for tensors of `element` type.

    In an NCHW tensor a warp takes a patch of rows of one 32-byte sector each: wide enough for whole
    sectors, and compact, so that a rotated gather stays within few cache lines. Running down the columns
    first hides from the compiler that neighbours are contiguous: it would give each thread four pixels in
    a row, and each warp all coordinates of the tile to compute.
    """
    bytes: tl.constexpr = element.primitive_bitwidth // 8
    ROWS: tl.constexpr = bytes if bytes < BLOCK_H else BLOCK_H
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    y = pixel // (ROWS * BLOCK_W) * ROWS + pixel % ROWS
    x = pixel // ROWS % BLOCK_W
    return h_start + y, w_start + x


@triton.jit
def tile_channels(BLOCK_C: tl.constexpr, RUN_C: tl.constexpr):
    """The channels of a block as a [groups, 1, run] tile."""
    group = tl.arange(0, BLOCK_C // RUN_C)
    run = tl.arange(0, RUN_C)
    return group[:, None, None] * RUN_C + run[None, None, :]


@triton.jit
def over_tile(x):
    """A vector over pixels as a [1, pixels, 1] tile."""
    return x[None, :, None]


@triton.jit
def block_pointers(pointer, n, c_start, c, stride_n, stride_c, RUN_C: tl.constexpr, INDEX: tl.constexpr):
    """Pointers to the first pixel of each channel of a block; what is left to add fits INDEX.

    A run is only used where stride_c is 1. Elsewhere the compiler must not know stride_c (see UNSPECIALIZED):
    it would take the channels of an RGB image in channels_last for something to vectorise.
    """
    pointer += n.to(tl.int64) * stride_n
    return (
        pointer + c_start + c
        if RUN_C > 1
        else pointer + c_start.to(tl.int64) * stride_c + c.to(INDEX) * stride_c
    )


@triton.jit
def axis_scale(size_in, size_out, ALIGN_CORNERS: tl.constexpr, DTYPE: tl.constexpr):
    """S_in / S_out, correctly rounded; 0 where the output has a single position."""
    s_in = tl.cast(size_in, DTYPE)
    s_out = tl.cast(size_out, DTYPE)
    if ALIGN_CORNERS:
        s_in -= 1
        s_out -= 1
    divisor = tl.where(s_out > 0, s_out, 1)
    ratio = tl.math.div_rn(s_in, divisor) if tl.float32 == DTYPE else s_in / divisor
    return tl.where(s_out > 0, ratio, 0)


@triton.jit
def theta_scales(H_in, W_in, H_out, W_out, ALIGN_CORNERS: tl.constexpr, DTYPE: tl.constexpr):
    """What each entry of theta is multiplied by to give pixels per centred pixel, row by row."""
    shrink: tl.constexpr = 1 if ALIGN_CORNERS else 0
    return (
        axis_scale(W_in, W_out, ALIGN_CORNERS, DTYPE),
        axis_scale(W_in, H_out, ALIGN_CORNERS, DTYPE),
        0.5 * tl.cast(W_in - shrink, DTYPE),
        axis_scale(H_in, W_out, ALIGN_CORNERS, DTYPE),
        axis_scale(H_in, H_out, ALIGN_CORNERS, DTYPE),
        0.5 * tl.cast(H_in - shrink, DTYPE),
    )


@triton.jit
def fold_theta(theta_ptr, n, stride_n, stride_row, stride_column, scales, DTYPE: tl.constexpr):
    """The six numbers of image n, in pixels: (a00, a01, a02, a10, a11, a12)."""
    row_0 = theta_ptr + n.to(tl.int64) * stride_n
    row_1 = row_0 + stride_row
    return (
        tl.load(row_0).to(DTYPE) * scales[0],
        tl.load(row_0 + stride_column).to(DTYPE) * scales[1],
        tl.load(row_0 + 2 * stride_column).to(DTYPE) * scales[2],
        tl.load(row_1).to(DTYPE) * scales[3],
        tl.load(row_1 + stride_column).to(DTYPE) * scales[4],
        tl.load(row_1 + 2 * stride_column).to(DTYPE) * scales[5],
    )


@triton.jit
def half_step(size, DTYPE: tl.constexpr):
    """The fractional part of (size - 1)/2."""
    return 0.5 * tl.cast(1 - size % 2, DTYPE)


@triton.jit
def centred(index, size, DTYPE: tl.constexpr):
    """Index - (size - 1)/2, exact."""
    return index.to(DTYPE) - 0.5 * tl.cast(size - 1, DTYPE)


@triton.jit
def source(a_u, u, constant, half):
    """Source position of centred output column u on one axis; `constant` is fma(a_v, v, a_1)."""
    return tl.fma(a_u, u, constant) + half
