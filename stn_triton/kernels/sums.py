"""The gradient of theta: sums of the derivatives by the rows of a matrix over all output pixels.

A program stores its share; a later pass adds the shares up in a fixed order. With dc_k the derivative by the
position on axis k, row k of theta gets dc_k times (u, v, 1). A projective map c_k = h_k/h_w passes dc_k/h_w
to row k and -sum of dc_k c_k/h_w to the last row.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import is_visible


@triton.jit
def add_three(a0, a1, a2, b0, b1, b2):
    """Combine three sums in one reduction."""
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def store_sums(row, sums, scales, columns, K: tl.constexpr):
    """Sum each vector over the pixels and store it at `row`, as the gradient of a matrix with `columns`."""
    for i in tl.static_range(0, K.ROWS * (K.DIM + 1), 3):
        totals = tl.reduce((sums[i], sums[i + 1], sums[i + 2]), 0, add_three)
        for j in tl.static_range(3):
            entry = row + (i + j) // (K.DIM + 1) * columns + (i + j) % (K.DIM + 1)
            tl.store(entry, totals[j] * scales[i + j])


@triton.jit
def zero_vectors(COUNT: tl.constexpr, K: tl.constexpr):
    """COUNT vectors of zeros, with one number per pixel."""
    vectors = ()
    for _ in tl.static_range(COUNT):
        vectors = vectors + (tl.zeros((K.PIXELS,), K.DTYPE),)
    return vectors


@triton.jit
def add_rows(sums, rows, COUNT: tl.constexpr):
    """Add one vector to each sum."""
    result = ()
    for i in tl.static_range(COUNT):
        result = result + (sums[i] + rows[i],)
    return result


@triton.jit
def add_column(sums, rows, base, column: tl.constexpr, K: tl.constexpr):
    """Add the derivatives by rows, times the coordinate `base`, to one column of a matrix of sums."""
    result = ()
    for i in tl.static_range(K.ROWS * (K.DIM + 1)):
        if i % (K.DIM + 1) == column:
            result = result + (sums[i] + rows[i // (K.DIM + 1)] * base,)
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
def row_derivatives(along, sample, halves, K: tl.constexpr):
    """Derivatives by the rows of the matrix, from the derivatives by positions."""
    if K.PROJECTIVE:
        inverse = 1 / tl.where(is_visible(sample.divisor), sample.divisor, 1)
        rows = ()
        last = tl.zeros((K.PIXELS,), K.DTYPE)
        for k in tl.static_range(K.DIM):
            row = along[k] * inverse
            rows = rows + (row,)
            last -= tl.where(row != 0, row * (sample.positions[k] - halves[k]), 0)
        rows = rows + (last,)
    else:
        rows = along
    return rows


@triton.jit
def add_along(along, dot, derivatives, K: tl.constexpr):
    """Add a tap's share, `dot` times the derivatives of its weight, to the derivatives by positions."""
    result = ()
    for k in tl.static_range(K.DIM):
        result = result + (along[k] + dot * derivatives[k],)
    return result
