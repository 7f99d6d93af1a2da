"""From a position to pixels and weights: interpolation (mode), and padding outside the image (padding_mode).

On each axis a position has TAPS pixels: 1 (nearest), 2 (bilinear) or 4 (bicubic, A = -0.75 as in PyTorch).
Positions and pixels count from the pixel (size - 1)//2 and are floating-point numbers, exact below 2**24.

A padding changes the position (`padded`) or the pixel of a tap (`padded_pixel`), in PyTorch's order. With one
or two taps, border and reflection change the position before its cell is computed; with four they change each
tap. Wrap changes only pixels, so that one tap may be the last pixel and the next one the first. Under wrap a
position that is not finite becomes the first pixel. The other paddings treat NaN as a position far to the
left: outside the image under zeros and fill, the first pixel under border and reflection.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import is_finite
from stn_triton.options import PADDINGS

ZEROS = tl.constexpr(PADDINGS["zeros"].code)
BORDER = tl.constexpr(PADDINGS["border"].code)
REFLECTION = tl.constexpr(PADDINGS["reflection"].code)
FILL = tl.constexpr(PADDINGS["fill"].code)
WRAP = tl.constexpr(PADDINGS["wrap"].code)


@triton.jit
def limits(size, K: tl.constexpr):
    """The first and the last pixel of an axis."""
    whole = (size - 1) // 2
    return tl.cast(-whole, K.DTYPE), tl.cast(size - 1 - whole, K.DTYPE)


@triton.jit
def per_axis_limits(sizes, K: tl.constexpr):
    """`limits` of each axis: the first pixels and the last ones."""
    lows = ()
    highs = ()
    for k in tl.static_range(K.DIM):
        low, high = limits(sizes[k], K)
        lows = lows + (low,)
        highs = highs + (high,)
    return lows, highs


@triton.jit
def bounded(position, low, high):
    """The position, moved into [low, high]; low if it is NaN."""
    return tl.minimum(tl.where(position > low, position, low), high)


@triton.jit
def near(position, low, high, K: tl.constexpr):
    """The position, limited so that it can be converted to an integer; far outside it stays outside."""
    if K.PADDING == ZEROS or K.PADDING == FILL:
        position = bounded(position, low - 4, high + 4)
    return position


@triton.jit
def mirrors(low, high, ALIGN_CORNERS: tl.constexpr):
    """Return the position of the first mirror and its distance to the last one.

    Mirrors lie at the centres of the outermost pixels, or at their outer edges.
    """
    edge: tl.constexpr = 0.0 if ALIGN_CORNERS else 0.5
    return low - edge, high - low + 2 * edge


@triton.jit
def fold_of(position, low, high, ALIGN_CORNERS: tl.constexpr):
    """Number of the interval between mirrors that a position lies in: 0 within the image, -1 left of it."""
    start, span = mirrors(low, high, ALIGN_CORNERS)
    span = tl.where(span > 0, span, 1)
    above = position - start
    fold = tl.floor(above / span)
    rest = tl.fma(-fold, span, above)
    return tl.where(rest < 0, fold - 1, tl.where(rest >= span, fold + 1, fold))


@triton.jit
def is_odd(number):
    """Whether a whole floating-point number is odd."""
    return number - 2 * tl.floor(0.5 * number) == 1


@triton.jit
def nearest(cell, fraction, first):
    """The whole number nearest to cell + fraction; half to even, counted from `first`."""
    up = (fraction > 0.5) | ((fraction == 0.5) & is_odd(cell - first))
    return tl.where(up, cell + 1, cell)


@triton.jit
def reflected(position, low, high, K: tl.constexpr):
    """Mirror a position until it lies between the mirrors, exactly. Also returns its direction, 1 or -1."""
    start, span = mirrors(low, high, K.ALIGN_CORNERS)
    fold = fold_of(position, low, high, K.ALIGN_CORNERS)
    odd = is_odd(fold)
    mirrored = tl.where(odd, tl.fma(fold + 1, span, 2 * start) - position, tl.fma(-fold, span, position))
    mirrored = tl.where(span > 0, mirrored, low)
    return bounded(mirrored, start, start + span), tl.where(odd, -1.0, 1.0).to(position.dtype)


@triton.jit
def wrapped(pixel, low, high):
    """Move a pixel into the image by whole periods, exactly; a pixel too far away to count becomes any."""
    turns = fold_of(pixel, low, high, False)
    return bounded(tl.fma(-turns, high - low + 1, pixel), low, high)


@triton.jit
def padded(position, low, high, K: tl.constexpr):
    """The position at which to interpolate, and its derivative by the given position: 1, -1 or 0."""
    direction = tl.full(position.shape, 1, position.dtype)
    if K.PADDING == WRAP:
        direction = tl.where(is_finite(position), direction, 0)
        position = tl.where(is_finite(position), position, low)
    if K.PADDING == REFLECTION:
        position, direction = reflected(position, low, high, K)
    if K.PADDING == BORDER or K.PADDING == REFLECTION:
        if K.TAPS == 4:
            # Where all four taps are the edge pixel, their slopes would cancel only up to rounding.
            if K.PADDING == BORDER:
                direction = tl.where((position >= low - 1) & (position < high + 1), direction, 0)
            position = bounded(position, low - 4, high + 4)
        else:
            direction = tl.where((position > low) & (position < high), direction, 0)
            position = bounded(position, low, high)
    return position, direction


@triton.jit
def padded_pixel(pixel, low, high, K: tl.constexpr):
    """The pixel to read for a tap of a `padded` position."""
    if K.PADDING == WRAP:
        pixel = wrapped(pixel, low, high)
    if K.TAPS == 4:
        if K.PADDING == REFLECTION:
            pixel, _ = reflected(pixel, low, high, K)
        if K.PADDING == BORDER or K.PADDING == REFLECTION:
            pixel = bounded(pixel, low, high)
    return pixel


@triton.jit
def cubic(fraction):
    """Weights of the four taps of Keys' cubic kernel with A = -0.75, and their derivatives by the position.

    The polynomials are factored at their zeros, so that a weight next to a zero has its full precision. Only
    at the zero is it zero (or below the smallest number): a pixel of weight zero is left out, with its NaN.

    Args:
        fraction: distance to the second tap, from 0 to 1; the third is 1 further on.
    """
    rest = 1 - fraction
    outer = -0.75 * fraction * rest
    weights = (
        outer * rest,
        rest * ((1 - 1.25 * fraction) * fraction + 1),
        fraction * ((1 - 1.25 * rest) * rest + 1),
        outer * fraction,
    )
    slopes = (
        (2.25 * fraction - 0.75) * rest,
        (3.75 * fraction - 4.5) * fraction,
        (4.5 - 3.75 * rest) * rest,
        (0.75 - 2.25 * rest) * fraction,
    )
    return weights, slopes


@triton.jit
def axis_taps(position, low, high, K: tl.constexpr):
    """Pixels of a position on one axis, their weights, and the derivatives of the weights by the position."""
    position, direction = padded(position, low, high, K)
    cell = tl.floor(position)
    fraction = position - cell
    if K.PADDING == WRAP:
        cell = wrapped(cell, low, high)
    if K.TAPS == 1:
        pixel = nearest(cell, fraction, low)
        pixels = (padded_pixel(pixel, low, high, K),)
        weights = (tl.full(position.shape, 1, position.dtype),)
        slopes = (tl.zeros(position.shape, position.dtype),)
    elif K.TAPS == 2:
        pixels = (cell, padded_pixel(cell + 1, low, high, K))
        weights = (1 - fraction, fraction)
        slopes = (-direction, direction)
    else:
        pixels = ()
        for i in tl.static_range(4):
            pixels = pixels + (padded_pixel(cell + (i - 1), low, high, K),)
        weights, (s0, s1, s2, s3) = cubic(fraction)
        slopes = (direction * s0, direction * s1, direction * s2, direction * s3)
    return pixels, weights, slopes


@triton.jit
def all_taps(positions, lows, highs, K: tl.constexpr):
    """`axis_taps` of every axis, one after the other."""
    pixels = ()
    weights = ()
    slopes = ()
    for k in tl.static_range(K.DIM):
        position = near(positions[k], lows[k], highs[k], K)
        p, w, s = axis_taps(position, lows[k], highs[k], K)
        pixels = pixels + p
        weights = weights + w
        slopes = slopes + s
    return pixels, weights, slopes


@triton.jit
def weight_on(pixel, position, low, high, K: tl.constexpr):
    """Whether a pixel is a tap of a position on one axis, its weight, and the weight's derivative.

    Weight and derivative are meaningless where the pixel is no tap. Several taps of four can be the same
    pixel where the padding moves them.
    """
    pixels, weights, slopes = axis_taps(position, low, high, K)
    is_tap = pixels[0] == pixel
    weight = weights[0]
    slope = slopes[0]
    if K.TAPS == 4:
        weight = tl.where(is_tap, weight, 0)
        slope = tl.where(is_tap, slope, 0)
    for i in tl.static_range(1, K.TAPS):
        is_this = pixels[i] == pixel
        is_tap = is_tap | is_this
        if K.TAPS == 4:
            weight += tl.where(is_this, weights[i], 0)
            slope += tl.where(is_this, slopes[i], 0)
        else:
            weight = tl.where(is_this, weights[i], weight)
            slope = tl.where(is_this, slopes[i], slope)
    return is_tap, weight, slope
