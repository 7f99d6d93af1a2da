"""Displacements of the positions that a matrix gives: none, or the bends of a thin plate spline.

A map with a displacement has columns of weights after the affine columns of its matrix. Another kind of
displacement needs a name and a number in `options.py`, and a branch here in `displacement` and in
`store_displacement`. `Points` (`structs.py`) holds the control points and their number.

A thin plate spline has a weight for each control point p_i, see `stn_triton/splines.py`. In row k the weights
add to the source position

    sum over i of w_ki phi(|o - p_i|^2),    phi(s) = s log2 s,

where the output position o runs from -1 to 1, as theta expects. The sum is converted to pixels. It takes some
forty instructions per point and pixel, thirty of them for the logarithm, and is shared by all channels.
Offsets of zero have weights of zero, which add exactly zero. FMAs are explicit, as in `coordinates.py`.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import centred, ratio
from stn_triton.kernels.sums import add_rows
from stn_triton.options import DISPLACEMENTS

THIN_PLATE = tl.constexpr(DISPLACEMENTS["thin_plate"])


@triton.jit
def displacement(theta, m, pixels, scales, points, sizes_out, K: tl.constexpr):
    """Shifts of source positions along x and y by the weights of matrix m, in pixels.

    Returns an empty tuple for a map without a displacement.
    """
    bends = ()
    if K.DISPLACEMENT == THIN_PLATE:
        base = (centred(pixels[0], sizes_out[0], K), centred(pixels[1], sizes_out[1], K))
        units = units_of(sizes_out, K)
        stride_column = tl.cast(theta.strides[2], tl.int64)
        weights = theta.ptr + tl.cast(m, tl.int64) * theta.strides[0] + 3 * stride_column
        x = tl.zeros((K.PIXELS,), K.DTYPE)
        y = tl.zeros((K.PIXELS,), K.DTYPE)
        for i in range(points.count):
            phi = phi_at(base, units, points, i)
            weight = weights + i * stride_column
            x = tl.fma(tl.load(weight).to(K.DTYPE) * scales[2], phi, x)
            y = tl.fma(tl.load(weight + theta.strides[1]).to(K.DTYPE) * scales[5], phi, y)
        bends = (x, y)
    return bends


@triton.jit
def displaced(rows, bends, K: tl.constexpr):
    """Add the bends of a displacement, if there is one, to one number per axis."""
    result = rows
    if K.DISPLACEMENT:
        result = add_rows(rows, bends, K.DIM)
    return result


@triton.jit
def store_displacement(row, columns, along, window, points, sizes_out, K: tl.constexpr):
    """Store the program's share of the gradients of the weights, from the derivatives by positions."""
    if K.DISPLACEMENT == THIN_PLATE:
        pixels, scales = window.pixels, window.map.scales
        base = (centred(pixels[0], sizes_out[0], K), centred(pixels[1], sizes_out[1], K))
        units = units_of(sizes_out, K)
        for i in range(points.count):
            phi = phi_at(base, units, points, i)
            tl.store(row + 3 + i, tl.sum(along[0] * phi) * scales[2])
            tl.store(row + columns + 3 + i, tl.sum(along[1] * phi) * scales[5])


@triton.jit
def phi_at(base, units, points, i):
    """Phi of the squared distance from control point i, at centred output coordinates."""
    point = points.ptr + 2 * i
    x = tl.fma(base[0], units[0], -tl.load(point))
    y = tl.fma(base[1], units[1], -tl.load(point + 1))
    square = tl.fma(x, x, y * y)
    return square * tl.log2(tl.maximum(square, 1e-37))


@triton.jit
def units_of(sizes_out, K: tl.constexpr):
    """Length of an output pixel along x and y, where the output runs from -1 to 1."""
    two = tl.full((), 2, K.DTYPE)
    return ratio(two, sizes_out[0], K), ratio(two, sizes_out[1], K)
