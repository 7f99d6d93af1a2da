"""The output pixels that sample an input pixel: a range of rows and, in each row, a range of columns.

Output pixel (u, v) lies at c_k = a_k0 u + a_k1 v + a_k2 on axis k. It samples input pixel p only if c_k lies
in [p_k - R, p_k + R], with R half the support (1/2, 1, 2 for one, two, four taps). Under border padding, the
edge pixels are also sampled from all positions beyond them, so their interval is open to that side. In the
output plane, |u| <= U, |v| <= V, an interval becomes a strip between two parallel lines:

    a strip alone    limits v to (lo - a_k2 -+ |a_k0| U)/a_k1 while u runs over [-U, U], and,
                     within a row, u to (lo - a_k1 v - a_k2)/a_k0;
    both strips      meet in a parallelogram with rows (A^-1 p)_v +- sum of R |A^-1_vk|.

Every interval is widened by the rounding errors of its inputs. Even a missed candidate of weight zero would
lose its derivative, while needless candidates are rejected by the taps.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import centred, is_finite
from stn_triton.kernels.taps import BORDER


@triton.jit
def epsilon_of(DTYPE: tl.constexpr):
    """Four rounding errors, relative to the numbers that a range is computed from."""
    result: tl.constexpr = 2.0**-21 if tl.float32 == DTYPE else 2.0**-50
    return result


@triton.jit
def reciprocal(a):
    """1/a, but finite where a is zero; NaN where a is NaN."""
    tiny: tl.constexpr = 1e-30
    return 1 / tl.where(tl.abs(a) <= tiny, tl.where(a < 0, -tiny, tiny), a)


@triton.jit
def lasts_slack(last):
    """Bound of the rounding error of a centred output coordinate."""
    return 2 * epsilon_of(last.dtype) * (last + 1)


@triton.jit
def output_lasts(sizes, less, K: tl.constexpr):
    """Centred coordinates (U, V) of the last output pixels; with `less` 0, those of their outer edges."""
    return 0.5 * tl.cast(sizes[0] - less, K.DTYPE), 0.5 * tl.cast(sizes[1] - less, K.DTYPE)


@triton.jit
def reaches_of(a, lasts, sizes_in, K: tl.constexpr):
    """How far the output reaches from its middle on each input axis; and half the support, widened."""
    spans, reaches = (), ()
    for k in tl.static_range(2):
        span = tl.abs(a[3 * k]) * lasts[0] + tl.abs(a[3 * k + 1]) * lasts[1]
        spans = spans + (span,)
        magnitude = span + tl.abs(a[3 * k + 2]) + sizes_in[k]
        reaches = reaches + (0.5 * K.TAPS + epsilon_of(K.DTYPE) * magnitude,)
    return spans, reaches


@triton.jit
def candidates_per_row(a, reaches, sizes, lasts):
    """Largest number of candidates per row, for a pixel with closed intervals."""
    longest = tl.minimum(reaches[0] * tl.abs(reciprocal(a[0])), reaches[1] * tl.abs(reciprocal(a[3])))
    longest = 2 * (longest + lasts_slack(lasts[0]))
    is_short = longest < sizes[0]
    return tl.where(is_short, tl.where(is_short, longest, 0).to(tl.int32) + 1, sizes[0])


@triton.jit
def touches_edge(origin, sizes_in, k: tl.constexpr, K: tl.constexpr):
    """Whether a tile contains first or last pixels of an axis."""
    extent: tl.constexpr = K.BLOCK_W if k == 0 else K.BLOCK_H
    return (origin[k] == 0) | (origin[k] + extent >= sizes_in[k])


@triton.jit
def has_samples(a, origin, sizes_in, K: tl.constexpr):
    """Whether the matrix may sample the tile: rows that are not finite sample at most edges."""
    result = origin[0] >= 0
    for k in tl.static_range(2):
        finite = is_finite(a[3 * k]) & is_finite(a[3 * k + 1]) & is_finite(a[3 * k + 2])
        if K.PADDING == BORDER:
            finite = finite | touches_edge(origin, sizes_in, k, K)
        result = result & finite
    return result


@triton.jit
def tile_is_reached(reached, a, tile, lasts, K: tl.constexpr):
    """Which of the maps in `reached` may sample a pixel of the tile. Maps with NaN may."""
    spans, reaches = reaches_of(a, lasts, tile.sizes_in, K)
    for k in tl.static_range(2):
        constant = a[3 * k + 2]
        first = tl.cast(tile.origin[k] - (tile.sizes_in[k] - 1) // 2, K.DTYPE) - tile.halves[k]
        outside = constant + spans[k] + reaches[k] < first
        last = first + ((K.BLOCK_W if k == 0 else K.BLOCK_H) - 1)
        outside = outside | (constant - spans[k] - reaches[k] > last)
        if K.PADDING == BORDER:
            outside = tl.where(touches_edge(tile.origin, tile.sizes_in, k, K), False, outside)
        reached = reached & ~outside
    return reached


@triton.jit
def axis_interval(number, reach, low, high, K: tl.constexpr):
    """Ends of the positions that may sample SIDE pixels from `number` on, and whether both are closed."""
    last = number + (K.SIDE - 1)
    lo, hi = number - reach, last + reach
    is_closed = number == number
    if K.PADDING == BORDER:
        is_first, is_last = number == low, last >= high
        is_closed = ~(is_first | is_last)
        lo = tl.where(is_first, float("-inf"), lo)
        hi = tl.where(is_last, float("inf"), hi)
    return lo, hi, is_closed


@triton.jit
def strip_end(los, his, a, constants, lasts, axis: tl.constexpr, IS_LAST: tl.constexpr):
    """End of the range along an axis that lies in the output and in both strips; its start for not IS_LAST.

    For rows (axis 1), u runs over its whole extent. `constants` has the other terms. NaN limits nothing.
    """
    end = lasts[axis] if IS_LAST else -lasts[axis]
    slack = lasts_slack(lasts[axis])
    for k in tl.static_range(2):
        slope = a[3 * k + axis]
        lo, hi = los[k], his[k]
        if axis == 1:
            wide = tl.abs(a[3 * k]) * lasts[0]
            lo -= wide
            hi += wide
        bound = (tl.where((slope >= 0) == IS_LAST, hi, lo) - constants[k]) * reciprocal(slope)
        if IS_LAST:
            bound += slack
            end = tl.where(bound < end, bound, end)
        else:
            bound -= slack
            end = tl.where(bound > end, bound, end)
    return end


@triton.jit
def meeting(a, targets, reaches, spans, sizes_in, last, K: tl.constexpr):
    """Middle and half-height of the parallelogram in which both strips meet; whether they are reliable."""
    epsilon: tl.constexpr = epsilon_of(K.DTYPE)
    inverse = 1 / (a[0] * a[4] - a[1] * a[3])
    size = tl.abs(inverse)
    condition = (tl.abs(a[0] * a[4]) + tl.abs(a[1] * a[3])) * size
    middle = a[0] * inverse * (targets[1] - a[5]) - a[3] * inverse * (targets[0] - a[2])
    reach = tl.abs(a[3]) * size * reaches[0] + tl.abs(a[0]) * size * reaches[1]
    error = tl.abs(a[3]) * size * (spans[0] + tl.abs(a[2]) + sizes_in[0])
    error += tl.abs(a[0]) * size * (spans[1] + tl.abs(a[5]) + sizes_in[1])
    reach += epsilon * (error + condition * (last + reach) + 2 * last + 1)
    return middle, reach, (epsilon * condition < 0.25) & (reach < last + 1)


@triton.jit
def row_range(a, targets, los, his, closed, reaches, spans, sizes_in, lasts, K: tl.constexpr):
    """First and last row that may sample each pixel, from the strips and from their parallelogram."""
    constants = (a[2], a[5])
    first = strip_end(los, his, a, constants, lasts, 1, False)
    last = strip_end(los, his, a, constants, lasts, 1, True)
    middle, reach, is_known = meeting(a, targets, reaches, spans, sizes_in, lasts[1], K)
    least = tl.where(is_known, middle - reach, first)
    most = tl.where(is_known, middle + reach, last)
    first = tl.where(closed & (least > first), least, first)
    last = tl.where(closed & (most < last), most, last)
    return first, last


@triton.jit
def without_open_end(first, count, map, tile, closed, axis: tl.constexpr, K: tl.constexpr):
    """Drop an index that only rounding has added at the open end of a range; return first index and count.

    Two and four taps are sampled from [p - R, p + R): an index exactly at the upper end is no candidate. This
    is tested where the matrix has a zero beside its diagonal: there the position depends on no other index.
    """
    a = map.a
    slope = a[4 * axis]
    if K.TAPS > 1:
        index = tl.where(slope < 0, first, first + count - 1)
        position = tl.fma(slope, centred(index, map.sizes[axis], K), a[3 * axis + 2]) + tile.halves[axis]
        is_beyond = closed & (position >= tile.numbers[axis] + (K.SIDE - 1 + K.TAPS // 2))
        is_beyond = tl.where(a[2 * axis + 1] == 0, is_beyond, False)
        count -= is_beyond.to(tl.int32)
        first += tl.where(slope < 0, is_beyond.to(tl.int32), 0)
    return first, count


@triton.jit
def first_index(first, last):
    """The first index at or after a centred coordinate, at most one beyond the last."""
    return tl.ceil(tl.minimum(first, last + 1) + last).to(tl.int32)


@triton.jit
def range_count(first, end, last):
    """Number of indices from the first to a centred coordinate; zero or negative if there are none."""
    return tl.floor(tl.maximum(end, -last - 1) + last).to(tl.int32) - first + 1
