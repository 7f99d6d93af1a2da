"""Where an output pixel samples.

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
