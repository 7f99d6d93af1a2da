"""Which output pixels sample an input pixel: its preimage, as ranges of slices, rows and columns.

An output pixel o samples input pixel p on axis k only if its position lies in [p_k - R, p_k + R], with R half
the support (1/2, 1, 2 for one, two, four taps). The edge pixels of border padding are also sampled by all
that lies beyond them, so their interval is open to that side. With the position c_k = a_k . (u, v, 1) an
interval is a strip between two parallel lines of the output plane. Nested from slices to columns,

    a strip alone    limits v to (lo - a_k2 -+ |a_k0| U)/a_k1 while u runs over [-U, U], and,
                     within a row, u to (lo - a_k1 v - a_k2)/a_k0;
    all strips       meet in a parallelogram with rows (A^-1 p)_v +- sum of R |A^-1_vk|.

Every interval is widened by the rounding of whatever goes into it: one missed candidate of weight zero would
still lose its derivative, while needless ones are rejected by the taps.

For a projective map c_k = h_k/h_w the strip is the wedge h_k - lo h_w >= 0, hi h_w - h_k >= 0. Where both
hold, h_w >= 0: nothing behind the horizon is found. The four corners of two wedges, if all lie before the
horizon, bound the rows.
"""

import triton
import triton.language as tl

from stn_triton.kernels.coordinates import is_finite
from stn_triton.kernels.taps import BORDER, REFLECTION, is_odd, mirrors


@triton.jit
def epsilon_of(DTYPE: tl.constexpr):
    """Four roundings: added to every range, relative to what it was computed from."""
    result: tl.constexpr = 2.0**-21 if tl.float32 == DTYPE else 2.0**-50
    return result


@triton.jit
def reciprocal(a):
    """1/a, finite also where a is zero; NaN if it is NaN."""
    tiny: tl.constexpr = 1e-30
    return 1 / tl.where(tl.abs(a) <= tiny, tl.where(a < 0, -tiny, tiny), a)


@triton.jit
def row_is_finite(a, k: tl.constexpr, DIM: tl.constexpr):
    """Whether all numbers of row k are finite."""
    result = is_finite(a[k * (DIM + 1)])
    for j in tl.static_range(1, DIM + 1):
        result = result & is_finite(a[k * (DIM + 1) + j])
    return result


@triton.jit
def span_of(a, lasts, k: tl.constexpr, DIM: tl.constexpr):
    """How far row k leads from its middle, within the output."""
    span = tl.abs(a[k * (DIM + 1)]) * lasts[0]
    for j in tl.static_range(1, DIM):
        span += tl.abs(a[k * (DIM + 1) + j]) * lasts[j]
    return span


@triton.jit
def magnitude_of(a, lasts, k: tl.constexpr, DIM: tl.constexpr):
    """What the terms of row k add up to at most, within the output."""
    return span_of(a, lasts, k, DIM) + tl.abs(a[k * (DIM + 1) + DIM])


@triton.jit
def strip_end(los, his, a, constants, lasts, axis: tl.constexpr, DIM: tl.constexpr, IS_LAST: tl.constexpr):
    """Where along an axis the first strip ends, or begins for not IS_LAST, within the whole output.

    Inner axes run over their whole extent; `constants` has what the outer ones give. NaN does not narrow.
    """
    end = lasts[axis] if IS_LAST else -lasts[axis]
    for k in tl.static_range(DIM):
        slope = a[k * (DIM + 1) + axis]
        lo = los[k]
        hi = his[k]
        if axis > 0:
            wide = tl.abs(a[k * (DIM + 1)]) * lasts[0]
            if axis == 2:
                wide += tl.abs(a[k * (DIM + 1) + 1]) * lasts[1]
            lo -= wide
            hi += wide
        bound = (tl.where((slope >= 0) == IS_LAST, hi, lo) - constants[k]) * reciprocal(slope)
        if IS_LAST:
            bound += lasts_slack(lasts[axis])
            end = tl.where(bound < end, bound, end)
        else:
            bound -= lasts_slack(lasts[axis])
            end = tl.where(bound > end, bound, end)
    return end


@triton.jit
def lasts_slack(last):
    """Rounding of a centred output coordinate."""
    return 2 * epsilon_of(last.dtype) * (last + 1)


@triton.jit
def line_end(lines, constants, last, axis: tl.constexpr, IS_LAST: tl.constexpr):
    """`strip_end` for the wedges of a projective map: lines (u, v, 1 each) that are not negative within."""
    end = last if IS_LAST else -last
    tiny: tl.constexpr = 1e-30
    for i in tl.static_range(4):
        slope = lines[3 * i + axis]
        bound = -constants[i] * reciprocal(slope)
        if IS_LAST:
            bound += lasts_slack(last)
            end = tl.where((slope < -tiny) & (bound < end), bound, end)
        else:
            bound -= lasts_slack(last)
            end = tl.where((slope > tiny) & (bound > end), bound, end)
    return end


@triton.jit
def first_index(first, last):
    """The first index at or after a centred coordinate, at most one beyond the last."""
    return tl.ceil(tl.minimum(first, last + 1) + last).to(tl.int32)


@triton.jit
def range_count(first, end, last):
    """How many indices there are from the first to a centred coordinate; negative if none."""
    return tl.floor(tl.maximum(end, -last - 1) + last).to(tl.int32) - first + 1


@triton.jit
def output_lasts(sizes, less, DIM: tl.constexpr, DTYPE: tl.constexpr):
    """Centred coordinates of the last output pixels; with `less` 0 of their outer edges."""
    lasts = ()
    for k in tl.static_range(DIM):
        lasts = lasts + (0.5 * tl.cast(sizes[k] - less, DTYPE),)
    return lasts


@triton.jit
def reaches_of(
    a, lasts, sizes_in, DIM: tl.constexpr, PROJECTIVE: tl.constexpr, TAPS: tl.constexpr, DTYPE: tl.constexpr
):
    """Of each row, `span_of` and half the support widened by rounding; the widening alone if projective."""
    epsilon: tl.constexpr = epsilon_of(DTYPE)
    spans = ()
    reaches = ()
    for k in tl.static_range(DIM):
        span = span_of(a, lasts, k, DIM)
        spans = spans + (span,)
        magnitude = span + tl.abs(a[k * (DIM + 1) + DIM]) + sizes_in[k]
        if PROJECTIVE:
            depth = magnitude_of(a, lasts, DIM, DIM)
            reaches = reaches + (epsilon * (magnitude + (sizes_in[k] + TAPS) * depth),)
        else:
            reaches = reaches + (0.5 * TAPS + epsilon * magnitude,)
    return spans, reaches


@triton.jit
def candidates_per_row(a, reaches, sizes, lasts, DIM: tl.constexpr, PROJECTIVE: tl.constexpr):
    """Most candidates that a pixel with closed intervals has in a row."""
    count = sizes[0]
    if not PROJECTIVE:
        longest = reaches[0] * tl.abs(reciprocal(a[0]))
        for k in tl.static_range(1, DIM):
            longest = tl.minimum(longest, reaches[k] * tl.abs(reciprocal(a[k * (DIM + 1)])))
        longest = 2 * (longest + lasts_slack(lasts[0]))
        is_short = longest < sizes[0]
        count = tl.where(is_short, tl.where(is_short, longest, 0).to(tl.int32) + 1, count)
    return count


@triton.jit
def tile_extent(k: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Pixels of a tile along an axis."""
    result: tl.constexpr = BLOCK_W if k == 0 else (BLOCK_H if k == 1 else 1)
    return result


@triton.jit
def touches_axis_edge(origin, sizes_in, k: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Whether a tile has first or last pixels of an axis."""
    return (origin[k] == 0) | (origin[k] + tile_extent(k, BLOCK_H, BLOCK_W) >= sizes_in[k])


@triton.jit
def touches_edge(origin, sizes_in, DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """Whether a tile has pixels at the edge of the image."""
    result = touches_axis_edge(origin, sizes_in, 0, BLOCK_H, BLOCK_W)
    for k in tl.static_range(1, DIM):
        result = result | touches_axis_edge(origin, sizes_in, k, BLOCK_H, BLOCK_W)
    return result


@triton.jit
def has_samples(
    a,
    origin,
    sizes_in,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """False where numbers that are not finite leave nothing to find; they sample edges, if anything."""
    result = origin[0] >= 0
    for k in tl.static_range(DIM):
        finite = row_is_finite(a, k, DIM)
        if PADDING == BORDER:
            finite = finite | touches_axis_edge(origin, sizes_in, k, BLOCK_H, BLOCK_W)
        elif PADDING == REFLECTION:
            finite = finite | (origin[k] == 0)
        result = result & finite
    if PROJECTIVE:
        result = result & row_is_finite(a, DIM, DIM)
    return result


@triton.jit
def tile_is_reached(
    reached,
    a,
    origin,
    sizes_in,
    lasts,
    halves,
    DIM: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Which of a vector of affine maps may sample a pixel of the tile, of those given. NaN may."""
    spans, reaches = reaches_of(a, lasts, sizes_in, DIM, False, TAPS, DTYPE)
    for k in tl.static_range(DIM):
        constant = a[k * (DIM + 1) + DIM]
        first = tl.cast(origin[k] - (sizes_in[k] - 1) // 2, DTYPE) - halves[k]
        below = constant + spans[k] + reaches[k] < first
        above = constant - spans[k] - reaches[k] > first + (tile_extent(k, BLOCK_H, BLOCK_W) - 1)
        if PADDING == BORDER:
            at_edge = touches_axis_edge(origin, sizes_in, k, BLOCK_H, BLOCK_W)
            below = tl.where(at_edge, False, below)
            above = tl.where(at_edge, False, above)
        reached = reached & ~below & ~above
    return reached


@triton.jit
def axis_interval(
    number, mirror, anywhere, reach, low, high, PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr
):
    """Positions that may sample a pixel on one axis: the middle, the ends, and whether both ends are closed.

    `mirror` is the number of the mirror image in which the pixel is seen; `anywhere` if that cannot be told.
    """
    target = number
    is_closed = number == number
    if PADDING == REFLECTION:
        start, period = mirrors(low, high, ALIGN_CORNERS)
        inside = number - start
        target = start + mirror * period + tl.where(is_odd(mirror), period - inside, inside)
        anywhere = anywhere | (period == 0)
        is_closed = tl.where(anywhere, False, is_closed)
    lo = target - reach
    hi = target + reach
    if PADDING == REFLECTION:
        lo = tl.where(anywhere, float("-inf"), lo)
        hi = tl.where(anywhere, float("inf"), hi)
    if PADDING == BORDER:
        is_first = number == low
        is_last = number == high
        is_closed = ~(is_first | is_last)
        lo = tl.where(is_first, float("-inf"), lo)
        hi = tl.where(is_last, float("inf"), hi)
    return target, lo, hi, is_closed


@triton.jit
def fold_range(
    a,
    lasts,
    spans,
    size,
    low,
    high,
    half,
    k: tl.constexpr,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """First and last mirror image that an output reaches on axis k; NaN if that cannot be told."""
    constant = a[k * (DIM + 1) + DIM]
    least = constant - spans[k]
    most = constant + spans[k]
    magnitude = spans[k] + tl.abs(constant) + size
    if PROJECTIVE:
        # Over a rectangle before the horizon a quotient is extreme at corners.
        depth_span = span_of(a, lasts, DIM, DIM)
        depth = a[DIM * (DIM + 1) + DIM]
        nearest = depth - depth_span
        is_safe = nearest > 16 * epsilon_of(DTYPE) * (tl.abs(depth) + depth_span)
        for corner in tl.static_range(4):
            u = lasts[0] if corner % 2 else -lasts[0]
            v = lasts[1] if corner // 2 else -lasts[1]
            h = a[k * (DIM + 1)] * u + a[k * (DIM + 1) + 1] * v + constant
            w = a[DIM * (DIM + 1)] * u + a[DIM * (DIM + 1) + 1] * v + depth
            quotient = h / tl.where(is_safe, w, 1)
            if corner == 0:
                least = quotient
                most = quotient
            else:
                least = tl.minimum(least, quotient)
                most = tl.maximum(most, quotient)
        furthest = tl.maximum(tl.abs(least), tl.abs(most))
        magnitude = (magnitude + furthest * (depth + depth_span)) / nearest
        least = tl.where(is_safe, least, float("nan"))
    slack = 4 * epsilon_of(DTYPE) * magnitude
    start, period = mirrors(low, high, ALIGN_CORNERS)
    is_single = (period == 0) & is_finite(magnitude)
    period = tl.where(period == 0, 1, period)
    first = tl.floor((least + half - slack - start) / period)
    last = tl.floor((most + half + slack - start) / period)
    return tl.where(is_single, 0, first), tl.where(is_single, 0, last)


@triton.jit
def mirror_images_reached(
    a,
    lasts,
    spans,
    sizes_in,
    lows,
    highs,
    halves,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """How many mirror images are reached; per axis the first and how many; whether to search everywhere.

    That is where they cannot be told, or where there are more of them than output columns: each may have to
    go through all rows.
    """
    firsts = ()
    counts = ()
    total = tl.full((), 1, DTYPE)
    is_few = total == 1
    for k in tl.static_range(DIM):
        first, last = fold_range(
            a,
            lasts,
            spans,
            sizes_in[k],
            lows[k],
            highs[k],
            halves[k],
            k,
            DIM,
            PROJECTIVE,
            ALIGN_CORNERS,
            DTYPE,
        )
        firsts = firsts + (first,)
        counts = counts + (last - first + 1,)
        total = total * (last - first + 1)
        # Far out, one mirror image cannot be told from the next.
        is_few = is_few & (first > -(2.0**20)) & (last < 2.0**20)
    is_everywhere = ~(is_few & (total >= 1) & (total <= 1 + 2 * lasts[0]))
    whole = ()
    for k in tl.static_range(DIM):
        whole = whole + (tl.where(is_everywhere, 1, counts[k]).to(tl.int32),)
    return tl.where(is_everywhere, 1, total).to(tl.int32), firsts, whole, is_everywhere


@triton.jit
def cofactors(a, b, c, d):
    """(ad - bc) and the sum of the magnitudes of its terms."""
    return a * d - b * c, tl.abs(a * d) + tl.abs(b * c)


@triton.jit
def inverse_row(a, axis: tl.constexpr, DIM: tl.constexpr):
    """Row `axis` (1: v, 2: w) of the inverse of an affine map's linear part; and its terms' magnitudes.

    Also the condition: the magnitude of the determinant's terms over the determinant.
    """
    if DIM == 2:
        det, size = cofactors(a[0], a[1], a[3], a[4])
        c0, s0 = -a[3], tl.abs(a[3])
        c1, s1 = a[0], tl.abs(a[0])
        coefficients = (c0, c1)
        sizes = (s0, s1)
    else:
        # Cofactors along the column of the axis.
        if axis == 2:
            c0, s0 = cofactors(a[4], a[5], a[8], a[9])
            c1, s1 = cofactors(a[8], a[9], a[0], a[1])
            c2, s2 = cofactors(a[0], a[1], a[4], a[5])
        else:
            c0, s0 = cofactors(a[6], a[4], a[10], a[8])
            c1, s1 = cofactors(a[10], a[8], a[2], a[0])
            c2, s2 = cofactors(a[2], a[0], a[6], a[4])
        det = a[axis] * c0 + a[4 + axis] * c1 + a[8 + axis] * c2
        size = tl.abs(a[axis]) * s0 + tl.abs(a[4 + axis]) * s1 + tl.abs(a[8 + axis]) * s2
        coefficients = (c0, c1, c2)
        sizes = (s0, s1, s2)
    inverse = 1 / det
    condition = size * tl.abs(inverse)
    row = ()
    magnitudes = ()
    for k in tl.static_range(DIM):
        row = row + (coefficients[k] * inverse,)
        magnitudes = magnitudes + (sizes[k] * tl.abs(inverse),)
    return row, magnitudes, condition


@triton.jit
def box(
    a, targets, reaches, spans, sizes_in, lasts, axis: tl.constexpr, DIM: tl.constexpr, DTYPE: tl.constexpr
):
    """Middle and half-height of the preimage along an axis, and whether they can be told."""
    epsilon: tl.constexpr = epsilon_of(DTYPE)
    row, magnitudes, condition = inverse_row(a, axis, DIM)
    middle = row[0] * (targets[0] - a[DIM])
    reach = tl.abs(row[0]) * reaches[0]
    error = magnitudes[0] * (spans[0] + tl.abs(a[DIM]) + sizes_in[0])
    for k in tl.static_range(1, DIM):
        constant = a[k * (DIM + 1) + DIM]
        middle += row[k] * (targets[k] - constant)
        reach += tl.abs(row[k]) * reaches[k]
        error += magnitudes[k] * (spans[k] + tl.abs(constant) + sizes_in[k])
    reach += epsilon * (error + condition * (lasts[axis] + reach) + 2 * lasts[axis] + 1)
    return middle, reach, (epsilon * condition < 0.25) & (reach < lasts[axis] + 1)


@triton.jit
def wedge_corner(x_line, y_line, last_line, magnitude, DTYPE: tl.constexpr):
    """Row v where two lines meet, its uncertainty, and whether they clearly meet before the horizon."""
    epsilon: tl.constexpr = epsilon_of(DTYPE)
    tiny: tl.constexpr = 1e-30  # below it `reciprocal` is not that of its argument
    det, det_size = cofactors(x_line[0], x_line[1], y_line[0], y_line[1])
    top_v, top_v_size = cofactors(x_line[2], x_line[0], y_line[2], y_line[0])
    top_u, top_u_size = cofactors(x_line[1], x_line[2], y_line[1], y_line[2])
    inverse = reciprocal(det)
    u = top_u * inverse
    v = top_v * inverse
    relative = det_size * tl.abs(inverse)
    error_u = epsilon * (top_u_size * tl.abs(inverse) + relative * tl.abs(u))
    error_v = epsilon * (top_v_size * tl.abs(inverse) + relative * tl.abs(v))
    depth = last_line[0] * u + last_line[1] * v + last_line[2]
    error = tl.abs(last_line[0]) * error_u + tl.abs(last_line[1]) * error_v + epsilon * magnitude
    is_clear = (tl.abs(det) > tiny) & (epsilon * relative < 0.25) & (depth > 2 * error)
    return v, error_v, is_clear


@triton.jit
def affine_range(
    a,
    targets,
    los,
    his,
    closed,
    constants,
    reaches,
    spans,
    sizes_in,
    lasts,
    axis: tl.constexpr,
    DIM: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Ends of the rows (axis 1) or slices (2) that sample each pixel, by the strips and by their meeting."""
    first = strip_end(los, his, a, constants, lasts, axis, DIM, False)
    last = strip_end(los, his, a, constants, lasts, axis, DIM, True)
    middle, reach, is_known = box(a, targets, reaches, spans, sizes_in, lasts, axis, DIM, DTYPE)
    least = tl.where(is_known, middle - reach, first)
    most = tl.where(is_known, middle + reach, last)
    first = tl.where(closed & (least > first), least, first)
    last = tl.where(closed & (most < last), most, last)
    return first, last


@triton.jit
def wedge_lines(a, los, his, slacks, lasts, DTYPE: tl.constexpr):
    """Lines (x: lower, upper; y: lower, upper) between which a pixel is sampled; open sides have none."""
    lines = ()
    depth = magnitude_of(a, lasts, 2, 2)
    for k in tl.static_range(2):
        for is_upper in tl.static_range(2):
            bound = his[k] if is_upper else los[k]
            is_limit = is_finite(bound)
            bound = tl.where(is_limit, bound, 0)
            for j in tl.static_range(3):
                value = a[3 * k + j] - bound * a[6 + j]
                if is_upper:
                    value = -value
                if j == 2:
                    value += slacks[k] + epsilon_of(DTYPE) * tl.abs(bound) * depth
                lines = lines + (tl.where(is_limit, value, 1.0 if j == 2 else 0.0),)
    return lines


@triton.jit
def line_of(lines, i: tl.constexpr):
    """Line i of several."""
    return lines[3 * i], lines[3 * i + 1], lines[3 * i + 2]


@triton.jit
def projective_range(a, lines, closed, lasts, DTYPE: tl.constexpr):
    """Ends of the rows that sample each pixel, by each line alone and by the corners of the wedges."""
    wide = ()
    for i in tl.static_range(4):
        wide = wide + (lines[3 * i + 2] + tl.abs(lines[3 * i]) * lasts[0],)
    first = line_end(lines, wide, lasts[1], 1, False)
    last = line_end(lines, wide, lasts[1], 1, True)
    horizon = (a[6], a[7], a[8])
    magnitude = magnitude_of(a, lasts, 2, 2)
    least = last
    most = first
    is_known = closed
    for corner in tl.static_range(4):
        v, error, is_clear = wedge_corner(
            line_of(lines, corner % 2),
            line_of(lines, 2 + corner // 2),
            horizon,
            magnitude,
            DTYPE,
        )
        is_known = is_known & is_clear
        error += lasts_slack(lasts[1])
        if corner == 0:
            least = v - error
            most = v + error
        else:
            least = tl.minimum(least, v - error)
            most = tl.maximum(most, v + error)
    first = tl.where(is_known & (least > first), least, first)
    last = tl.where(is_known & (most < last), most, last)
    return first, last
