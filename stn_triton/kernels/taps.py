"""From a position to pixels and weights: interpolation (mode) and what lies outside (padding_mode).

On each axis a position has TAPS pixels: 1 (nearest), 2 (bilinear) or 4 (bicubic, A = -0.75 as in PyTorch).
Positions and pixels count from the pixel (size - 1)//2 and are floating-point numbers, exact below 2**24.

A padding is what it does to a position (`padded`) and to the pixel of a tap (`padded_pixel`). PyTorch's order
is kept: border and reflection change the position before its cell is decided, for one and two taps; for four
they change each tap. Wrap changes pixels only, so that one tap may be the last pixel and the next the first;
what is not finite is the first pixel. A position that is NaN is taken for one far to the left: nothing under
zeros and fill, the first pixel under the others.
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
    """The position, so near that it can be converted to an integer: far outside is outside."""
    if K.PADDING == ZEROS or K.PADDING == FILL:
        position = bounded(position, low - 4, high + 4)
    return position


@triton.jit
def mirrors(low, high, ALIGN_CORNERS: tl.constexpr):
    """Reflection mirrors at the first and last pixel, or at their outer edges: the first mirror, the span."""
    edge: tl.constexpr = 0.0 if ALIGN_CORNERS else 0.5
    return low - edge, high - low + 2 * edge


@triton.jit
def fold_of(position, low, high, ALIGN_CORNERS: tl.constexpr):
    """Between which mirrors a position lies: 0 within the image, -1 left of it, and so on."""
    start, span = mirrors(low, high, ALIGN_CORNERS)
    span = tl.where(span > 0, span, 1)
    above = position - start
    fold = tl.floor(above / span)
    rest = tl.fma(-fold, span, above)
    return tl.where(rest < 0, fold - 1, tl.where(rest >= span, fold + 1, fold))


@triton.jit
def is_odd(number):
    """Of a whole floating-point number."""
    return number - 2 * tl.floor(0.5 * number) == 1


@triton.jit
def nearest(cell, fraction, first):
    """The whole number nearest to their sum; half to even, as counted from `first`."""
    up = (fraction > 0.5) | ((fraction == 0.5) & is_odd(cell - first))
    return tl.where(up, cell + 1, cell)


@triton.jit
def reflected(position, low, high, K: tl.constexpr):
    """The position mirrored until it lies between the mirrors, and 1 or -1 for its direction there. Exact."""
    start, span = mirrors(low, high, K.ALIGN_CORNERS)
    fold = fold_of(position, low, high, K.ALIGN_CORNERS)
    odd = is_odd(fold)
    mirrored = tl.where(odd, tl.fma(fold + 1, span, 2 * start) - position, tl.fma(-fold, span, position))
    mirrored = tl.where(span > 0, mirrored, low)
    return bounded(mirrored, start, start + span), tl.where(odd, -1.0, 1.0).to(position.dtype)


@triton.jit
def wrapped(pixel, low, high):
    """The pixel of the image that a pixel repeats, whole periods away. Exact; of one too far to count any."""
    turns = fold_of(pixel, low, high, False)
    return bounded(tl.fma(-turns, high - low + 1, pixel), low, high)


@triton.jit
def padded(position, low, high, K: tl.constexpr):
    """The position that is interpolated at, and its derivative by the position given: 1, -1 or 0."""
    direction = tl.full(position.shape, 1, position.dtype)
    if K.PADDING == WRAP:
        direction = tl.where(is_finite(position), direction, 0)
        position = tl.where(is_finite(position), position, low)
    if K.PADDING == REFLECTION:
        position, direction = reflected(position, low, high, K)
    if K.PADDING == BORDER or K.PADDING == REFLECTION:
        if K.TAPS == 4:
            # Else the slopes of taps that are all the edge cancel up to rounding only.
            if K.PADDING == BORDER:
                direction = tl.where((position >= low - 1) & (position < high + 1), direction, 0)
            position = bounded(position, low - 4, high + 4)
        else:
            direction = tl.where((position > low) & (position < high), direction, 0)
            position = bounded(position, low, high)
    return position, direction


@triton.jit
def padded_pixel(pixel, low, high, K: tl.constexpr):
    """The pixel that is read for a tap, of the cell of a `padded` position."""
    if K.PADDING == WRAP:
        pixel = wrapped(pixel, low, high)
    if K.TAPS == 4:
        if K.PADDING == REFLECTION:
            pixel, _ = reflected(pixel, low, high, K)
        if K.PADDING == BORDER or K.PADDING == REFLECTION:
            pixel = bounded(pixel, low, high)
    return pixel


@triton.jit
def cubic_near(x):
    """Weight of a tap at distance x, up to 1."""
    return (1.25 * x - 2.25) * x * x + 1


@triton.jit
def cubic_far(x):
    """Weight of a tap at distance x, from 1 to 2."""
    return ((-0.75 * x + 3.75) * x - 6) * x + 3


@triton.jit
def cubic_near_slope(x):
    """Derivative of `cubic_near`."""
    return (3.75 * x - 4.5) * x


@triton.jit
def cubic_far_slope(x):
    """Derivative of `cubic_far`."""
    return (-2.25 * x + 7.5) * x - 6


@triton.jit
def axis_taps(position, low, high, K: tl.constexpr):
    """Of a position on one axis: its pixels, their weights, and the weights' derivatives by the position."""
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
        weights = (
            cubic_far(1 + fraction),
            cubic_near(fraction),
            cubic_near(1 - fraction),
            cubic_far(2 - fraction),
        )
        slopes = (
            direction * cubic_far_slope(1 + fraction),
            direction * cubic_near_slope(fraction),
            -direction * cubic_near_slope(1 - fraction),
            -direction * cubic_far_slope(2 - fraction),
        )
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
    """On one axis: whether a pixel is a tap of a position, its weight there, and the weight's derivative.

    The last two mean nothing where it is no tap. Several taps of four can be the same pixel where the padding
    moves them.
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
