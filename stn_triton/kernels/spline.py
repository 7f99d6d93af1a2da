"""What a thin plate spline adds to an affine map.

A spline's matrix has, after the affine columns, a weight for each control point p_i, see
`stn_triton/splines.py`. In row k they add to the source position

    sum over i of w_ki phi(|o - p_i|^2),    phi(s) = s log2 s,

with the output position o in normalised coordinates and the sum brought to pixels. Some forty instructions
per point and pixel, thirty of them for the logarithm, shared by all channels. Weights of zero, which offsets
of zero have, add exactly zero. FMAs are explicit, as in `coordinates.py`, so that forward and backward round
alike.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import centred, ratio


@triton.jit
def phi_at(base, units, points_ptr, i):
    """Phi of the distance from control point i, at centred output coordinates."""
    point = points_ptr + 2 * i
    x = tl.fma(base[0], units[0], -tl.load(point))
    y = tl.fma(base[1], units[1], -tl.load(point + 1))
    square = tl.fma(x, x, y * y)
    return square * tl.log2(tl.maximum(square, 1e-37))


@triton.jit
def units_of(sizes_out, ALIGN_CORNERS: tl.constexpr, DTYPE: tl.constexpr):
    """Normalised coordinates per output pixel."""
    two = tl.full((), 2, DTYPE)
    return ratio(two, sizes_out[0], ALIGN_CORNERS), ratio(two, sizes_out[1], ALIGN_CORNERS)


@triton.jit
def bends_at(
    pixels,
    theta_ptr,
    m,
    strides,
    scales,
    points_ptr,
    point_count,
    sizes_out,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """What the weights of matrix m add to the source positions of output pixels, for x and y, in pixels."""
    base = (centred(pixels[0], sizes_out[0], DTYPE), centred(pixels[1], sizes_out[1], DTYPE))
    units = units_of(sizes_out, ALIGN_CORNERS, DTYPE)
    stride_column = tl.cast(strides[2], tl.int64)
    weights = theta_ptr + tl.cast(m, tl.int64) * strides[0] + 3 * stride_column
    x = tl.zeros(base[0].shape, DTYPE)
    y = tl.zeros(base[0].shape, DTYPE)
    for i in range(point_count):
        phi = phi_at(base, units, points_ptr, i)
        weight = weights + i * stride_column
        x = tl.fma(tl.load(weight).to(DTYPE) * scales[2], phi, x)
        y = tl.fma(tl.load(weight + strides[1]).to(DTYPE) * scales[5], phi, y)
    return x, y


@triton.jit
def store_bends(
    row,
    columns,
    along,
    pixels,
    scales,
    points_ptr,
    point_count,
    sizes_out,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Store the program's share of the gradients of the weights, from the derivatives by positions."""
    base = (centred(pixels[0], sizes_out[0], DTYPE), centred(pixels[1], sizes_out[1], DTYPE))
    units = units_of(sizes_out, ALIGN_CORNERS, DTYPE)
    for i in range(point_count):
        phi = phi_at(base, units, points_ptr, i)
        tl.store(row + 3 + i, tl.sum(along[0] * phi) * scales[2])
        tl.store(row + columns + 3 + i, tl.sum(along[1] * phi) * scales[5])
