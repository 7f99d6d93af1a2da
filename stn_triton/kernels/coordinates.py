"""The position in the input that an output pixel samples.

All kernels and both corner conventions use one formula, in centred coordinates: u = ow - (W_out - 1)/2 etc.
With S the input extent of an axis and So the output extent (both less one for align_corners), the source
column, counted from the centre of the input, is

    t00 * Sx/So_x * u  +  t01 * Sx/So_y * v  +  t02 * Sx/2.

`fold_theta` multiplies theta by these factors once per program. Two fused multiply-adds (FMAs) per pixel
remain, three in a volume (`row_constant`, `sources`). At the identity and at whole-pixel shifts all terms are
half-integers, so the result is exact. The centre (W_in - 1)/2 is added in two steps: its half (0 or 1/2)
before the floor, its whole part to the integer cell. The FMAs are explicit, so that forward and backward
round alike.

A projective matrix has a third row, t20 * 2/So_x * u + t21 * 2/So_y * v + t22, which divides the other two.
Where this row is not positive, the point lies behind the horizon and samples nothing.

A matrix is a tuple of its entries, row by row: (x: u, v, 1; y: u, v, 1), for volumes (x: u, v, w, 1; ...).
"""

import triton
import triton.language as tl

# Antialiasing takes at most this many samples per output pixel and axis. A shrink of up to 1/64 above a whole
# number does not add one.
MAX_SAMPLES = tl.constexpr(64)
SHRINK_TOLERANCE = tl.constexpr(1 - 2.0**-6)


@triton.jit
def ratio(extent, size_out, K: tl.constexpr):
    """Extent / So, correctly rounded; 0 where the output has a single position."""
    s_out = tl.cast(size_out, extent.dtype)
    if K.ALIGN_CORNERS:
        s_out -= 1
    divisor = tl.where(s_out > 0, s_out, 1)
    quotient = divide(extent, divisor)
    return tl.where(s_out > 0, quotient, 0)


@triton.jit
def divide(a, b):
    """Quotient, correctly rounded."""
    if a.dtype == tl.float32:
        quotient = tl.math.div_rn(a, b)
    else:
        quotient = a / b
    return quotient


@triton.jit
def is_finite(a):
    """Whether a number is finite; NaN is not."""
    return tl.abs(a) < float("inf")


@triton.jit
def theta_scales(sizes_in, sizes_out, K: tl.constexpr):
    """Factors that turn the entries of theta into pixels per centred pixel, row by row."""
    shrink: tl.constexpr = 1 if K.ALIGN_CORNERS else 0
    scales = ()
    for k in tl.static_range(K.DIM):
        extent = tl.cast(sizes_in[k] - shrink, K.DTYPE)
        for j in tl.static_range(K.DIM):
            scales = scales + (ratio(extent, sizes_out[j], K),)
        scales = scales + (0.5 * extent,)
    if K.PROJECTIVE:
        two = tl.full((), 2, K.DTYPE)
        scales = scales + (ratio(two, sizes_out[0], K), ratio(two, sizes_out[1], K), 0.5 * two)
    return scales


@triton.jit
def fold_theta(theta, m, scales, K: tl.constexpr):
    """Entries of matrix m, or of a vector of matrices, in pixels, row by row."""
    row = theta.ptr + tl.cast(m, tl.int64) * theta.strides[0]
    stride_column = tl.cast(theta.strides[2], tl.int64)
    a = ()
    for k in tl.static_range(K.ROWS):
        for j in tl.static_range(K.DIM + 1):
            a = a + (tl.load(row + j * stride_column).to(K.DTYPE) * scales[k * (K.DIM + 1) + j],)
        row += theta.strides[1]
    return a


@triton.jit
def samples_per_pixel(a, K: tl.constexpr):
    """Number of samples that antialiasing takes along each output axis: a pixel's footprint, rounded up.

    The footprint is the length that a step of one output pixel along the axis has in the input. A matrix that
    is not finite has one sample.
    """
    counts = ()
    for j in tl.static_range(K.DIM):
        square = a[j] * a[j]
        finite = is_finite(a[j])
        for k in tl.static_range(1, K.DIM):
            square = tl.fma(a[k * (K.DIM + 1) + j], a[k * (K.DIM + 1) + j], square)
            finite = finite & is_finite(a[k * (K.DIM + 1) + j])
        if square.dtype == tl.float32:
            length = tl.math.sqrt_rn(square)
        else:
            length = tl.math.sqrt(square)
        count = tl.ceil(length * SHRINK_TOLERANCE)
        count = tl.where((count > 1) & finite, count, 1)  # a square that overflows gives MAX_SAMPLES
        counts = counts + (tl.minimum(count, MAX_SAMPLES).to(tl.int32),)
    return counts


@triton.jit
def half_step(size, K: tl.constexpr):
    """The fractional part of (size - 1)/2."""
    return 0.5 * tl.cast(1 - size % 2, K.DTYPE)


@triton.jit
def centred(index, size, K: tl.constexpr):
    """Index - (size - 1)/2, exact."""
    return tl.cast(index, K.DTYPE) - 0.5 * tl.cast(size - 1, K.DTYPE)


@triton.jit
def row_constant(a, base, k: tl.constexpr, K: tl.constexpr):
    """Value of row k of the matrix in an output row, without the term along u."""
    constant = tl.fma(a[k * (K.DIM + 1) + K.DIM - 1], base[K.DIM - 1], a[k * (K.DIM + 1) + K.DIM])
    if K.DIM == 3:
        constant = tl.fma(a[k * (K.DIM + 1) + 1], base[1], constant)
    return constant


@triton.jit
def sources(a, u, constants, halves, K: tl.constexpr):
    """Source positions (x, y, z) in column u of an output row, and a projective map's divisor (else 1).

    Positions count from the pixel (size - 1)//2.
    """
    divisor = 1.0
    if K.PROJECTIVE:
        divisor = tl.fma(a[K.DIM * (K.DIM + 1)], u, constants[K.DIM])
    positions = ()
    for k in tl.static_range(K.DIM):
        position = tl.fma(a[k * (K.DIM + 1)], u, constants[k])
        if K.PROJECTIVE:
            position = divide(position, divisor)
        positions = positions + (position + halves[k],)
    return positions, divisor


@triton.jit
def is_visible(divisor):
    """Whether a point lies in front of the horizon."""
    return (divisor > 0) & (divisor < float("inf"))


@triton.jit
def per_axis_halves(sizes, K: tl.constexpr):
    """`half_step` of each axis."""
    halves = ()
    for k in tl.static_range(K.DIM):
        halves = halves + (half_step(sizes[k], K),)
    return halves
