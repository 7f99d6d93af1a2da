"""Backward over output pixels: grad_input by additions in memory, and the tile's share of grad_theta.

A program owns a tile of output pixels, as in the forward, and computes their positions once for both
gradients. An output pixel at the position c has the value sum of w_i(c) x_i over its taps i. From its
gradient g follow

    grad_input:  w_i g is added at every tap i,
    grad_theta:  dc_k = sum over taps and channels of g x_i dw_i/dc_k; row k gets dc_k (u, v, 1).

A projective map c_k = h_k/h_w passes dc_k/h_w to row k and -sum of dc_k c_k/h_w to the last row. Each program
stores its sums for theta; a later pass adds them up in a fixed order.

The additions to grad_input are atomic. Floating-point numbers (ADDS == FLOATS) are added in an unknown order,
which affects the last bits. PyTorch's deterministic mode adds whole numbers instead, because their sum does
not depend on the order. It has three passes:

    LARGEST  finds for each image the largest total t of the magnitudes that one output pixel adds. Let 2**e
             be the power of two above t, and 2**h the number of output pixels that sample the image. Then no
             pixel gets more than 2**h t < 2**(h + e). Two more bits are reserved for rounding.
    WHOLE    multiplies each share: x = 2**(head - e) w_i g, head = 61 - h. The whole part of x is added to
             one 64-bit integer, and 2**low times the rest, if any, to another. Each addition may leave a
             rest, so low is head less the bits of the number of additions per output pixel. So neither
             integer can overflow. Parts below 2**-(head + low) t are cut off: of bilinear images of 2**16
             output pixels, fp32 shares keep all bits down to 2**-62 t, fp64 shares down to 2**-33 t. Shares
             that are not finite are added to grad_input itself: their sum is infinite or NaN in any order.
    settle_kernel   combines the two integers in fp64, rounds, and adds the sums that are not finite.

The compiler may round the two passes differently, so a share may be slightly larger than LARGEST found: it is
cut to 2**e. The second integer is used only where a share's last bit lies below 2**-head t: with 2**16 output
pixels, by fp32 shares below about 2**-21 t.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    block_start,
    dot_channels,
    group_mask,
    group_pointers,
    is_inside,
    load_block,
    only_if,
    pixel_offset,
    steps_of,
    subtract_fill,
    zero_groups,
)
from stn_triton.kernels.coordinates import is_finite, is_visible, per_axis_halves
from stn_triton.kernels.displacement import store_displacement
from stn_triton.kernels.sampling import product, sample_at, tap_addresses, tap_of, window_of
from stn_triton.kernels.structs import Adding, Image, Matrix, Points, Vector
from stn_triton.kernels.sums import (
    add_along,
    add_column,
    add_rows,
    row_derivatives,
    store_sums,
    zero_vectors,
)
from stn_triton.kernels.tangent import (
    all_curves,
    change_of,
    motion_of,
    slope_changes_of,
    slopes_of,
    velocities_at,
)
from stn_triton.kernels.taps import FILL, per_axis_limits

NOTHING = tl.constexpr(0)
FLOATS = tl.constexpr(1)
LARGEST = tl.constexpr(2)
WHOLE = tl.constexpr(3)
"""Codes of ADDS: the numbers that are added to grad_input, see above."""
GUARD = tl.constexpr(24)
"""An output pixel adds fewer than 2**GUARD times: 64 samples per axis, 16 taps or 8 in a volume."""
SETTLED = tl.constexpr(1024)
"""Elements per program of `settle_kernel`."""


@triton.jit
def exponent_of(limits_ptr, n, DTYPE: tl.constexpr):
    """Exponent e with 2**e above the largest total of image n; the least one, except for totals near zero.

    At limits_ptr are the bits of 2**-GUARD times the total.
    """
    bits = tl.load(limits_ptr + n)
    if tl.float64 == DTYPE:
        exponent = (bits >> 52).to(tl.int32) - 1022
    else:
        exponent = (bits >> 23) - 126
    return exponent + GUARD


@triton.jit
def power_of_two(exponent, DTYPE: tl.constexpr):
    """2**exponent as two factors, because 2**exponent itself may be out of the range of the dtype."""
    first = exponent // 2
    second = exponent - first
    if tl.float64 == DTYPE:
        first = ((first + 1023).to(tl.int64) << 52).to(DTYPE, bitcast=True)
        second = ((second + 1023).to(tl.int64) << 52).to(DTYPE, bitcast=True)
    else:
        first = ((first + 127) << 23).to(DTYPE, bitcast=True)
        second = ((second + 127) << 23).to(DTYPE, bitcast=True)
    return first, second


@triton.jit
def add_magnitudes(totals, gradient, weight, mask, K: tl.constexpr):
    """Add the magnitudes of a tap's shares, times 2**-GUARD so that the totals are finite."""
    result = ()
    for g in tl.static_range(K.GROUPS):
        share = gradient[g] * weight[:, None]
        counts = mask[:, None] & is_finite(share)
        result = result + (totals[g] + tl.where(counts, tl.abs(share) * 2.0**-GUARD, 0),)
    return result


@triton.jit
def scales_of(limits_ptr, n, head, low, K: tl.constexpr):
    """Factors that turn shares of image n into whole numbers, and the largest result, for WHOLE."""
    scale, low_scale, most = (), (), 0.0
    if K.ADDS == WHOLE:
        scale = power_of_two(head - exponent_of(limits_ptr, n, K.DTYPE), K.DTYPE)
        low_scale = power_of_two(low, K.DTYPE)
        limit = power_of_two(head, K.DTYPE)
        most = limit[0] * limit[1]
    return scale, low_scale, most


@triton.jit
def add_shares(adding, start, stride_c, offset, gradient, weight, mask, channels, K: tl.constexpr):
    """Add the gradient times a tap's weight. `start` is a pointer for FLOATS, else an offset in elements."""
    for g in tl.static_range(K.GROUPS):
        share = gradient[g] * weight[:, None]
        target = group_pointers(start, stride_c, offset, g, K)
        there = group_mask(mask, channels, g, K)
        if K.ADDS == FLOATS:
            tl.atomic_add(target, share, mask=there, sem="relaxed")
        else:
            finite = there & is_finite(share)
            tl.atomic_add(adding.grad_input_ptr + target, share, mask=there & ~finite, sem="relaxed")
            scaled = tl.where(finite, share, 0) * adding.scale[0] * adding.scale[1]
            scaled = tl.minimum(tl.maximum(scaled, -adding.most), adding.most)
            whole = scaled.to(tl.int64)
            target = adding.whole_ptr + target
            tl.atomic_add(target, whole, mask=whole != 0, sem="relaxed")
            rest = (scaled - whole.to(share.dtype)) * adding.low_scale[0] * adding.low_scale[1]
            rest = rest.to(tl.int64)
            target += tl.cast(adding.elements, tl.int64)
            tl.atomic_add(target, rest, mask=rest != 0, sem="relaxed")


@triton.jit(do_not_specialize=UNSPECIALIZED)
def scatter_kernel(
    partial_ptr,
    grad_input_ptr,
    whole_ptr,
    limits_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    image_index_ptr,
    points_ptr,
    input_tangent_ptr,
    theta_tangent_ptr,
    fill_tangent_ptr,
    elements,
    head,
    low,
    images,
    per_image,
    point_count,
    C,
    D_in,
    H_in,
    W_in,
    D_out,
    H_out,
    W_out,
    grad_input_stride_n,
    grad_input_stride_c,
    grad_input_strides,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_strides,
    input_stride_n,
    input_stride_c,
    input_strides,
    theta_strides,
    fill_stride,
    input_tangent_stride_n,
    input_tangent_stride_c,
    input_tangent_strides,
    theta_tangent_strides,
    fill_tangent_stride,
    K: tl.constexpr,
):
    """Add to grad_input according to ADDS; with NEEDS_THETA, store the tile's share of its matrix's gradient.

    With TANGENT, the gradients are those of the tangent: the change of a tap's weight replaces the weight.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    # Whole numbers are added to two tensors, so `add_shares` takes offsets instead of pointers.
    grad_input = Image(
        grad_input_ptr if K.ADDS == FLOATS else 0,
        grad_input_stride_n,
        grad_input_stride_c,
        grad_input_strides,
    )
    grad_output = Image(grad_output_ptr, grad_output_stride_n, grad_output_stride_c, grad_output_strides)
    input = Image(input_ptr, input_stride_n, input_stride_c, input_strides)
    input_tangent = Image(
        input_tangent_ptr, input_tangent_stride_n, input_tangent_stride_c, input_tangent_strides
    )
    theta = Matrix(theta_ptr, theta_strides)
    theta_tangent = Matrix(theta_tangent_ptr, theta_tangent_strides)
    points = Points(points_ptr, point_count)

    window = window_of(theta, image_index_ptr, points, images, per_image, C, sizes_in, sizes_out, K)
    motion = motion_of(theta_tangent, window, points, sizes_out, K)
    pixel_mask = only_if(window.exists, window.mask)
    halves = per_axis_halves(sizes_in, K)
    lows, highs = per_axis_limits(sizes_in, K)
    per_sample = 1 / tl.cast(window.map.count, K.DTYPE)
    scale, low_scale, most = scales_of(limits_ptr, window.n, head, low, K)
    adding = Adding(grad_input_ptr, whole_ptr, elements, scale, low_scale, most)
    largest = tl.zeros((K.PIXELS,), K.DTYPE)
    sums = zero_vectors(K.ROWS * (K.DIM + 1), K)
    along_all = zero_vectors(K.DIM if K.DISPLACEMENT else 0, K)
    # The compiler moves all that does not depend on channels out of this loop.
    for step in range(steps_of(C - window.c_first, K)):
        c_start = window.c_first + step * K.BLOCK_C
        channels = C - c_start
        start = block_start(grad_output, window.m, c_start)
        offset = pixel_offset(window.pixels, grad_output.strides, K)
        gradient = load_block(start, grad_output.stride_c, offset, pixel_mask, channels, K)
        totals = zero_groups(K.GROUPS if K.ADDS == LARGEST else 0, K)
        for number in range(window.map.count):
            sample = sample_at(window, number, sizes_in, K)
            if K.NEEDS_THETA:
                input_start = block_start(input, window.n, c_start)
                starts, offsets = tap_addresses(input_start, input.strides, sample.indices, K)
                if input_tangent_ptr is not None:
                    tangent_start = block_start(input_tangent, window.n, c_start)
                    tangent_starts, tangent_offsets = tap_addresses(
                        tangent_start, input_tangent.strides, sample.indices, K
                    )
            if K.ADDS == FLOATS or K.ADDS == WHOLE:
                target = block_start(grad_input, window.n, c_start)
                targets, shifts = tap_addresses(target, grad_input.strides, sample.indices, K)
            along = zero_vectors(K.DIM, K)
            if K.TANGENT:
                velocities, growth = velocities_at(motion, sample, halves, K)
                if K.NEEDS_THETA:
                    curves = all_curves(sample.positions, lows, highs, K)
                    along_velocity = zero_vectors(K.DIM, K)
            for i in tl.static_range(K.TAPS**K.DIM):
                weight = tap_of(sample.weights, i, K)
                slope = tap_of(sample.slopes, i, K)
                mask = pixel_mask & is_inside(tap_of(sample.indices, i, K), sizes_in, K)
                if K.PROJECTIVE:
                    mask = mask & is_visible(sample.divisor)
                if K.NEEDS_THETA:
                    image = load_block(starts[i], input.stride_c, offsets[i], mask, channels, K)
                    if K.PADDING == FILL:
                        image = subtract_fill(image, Vector(fill_ptr, fill_stride), c_start, channels, K)
                    dot = tl.where(mask, dot_channels(image, gradient, K), 0)
                    slopes = slopes_of(weight, slope, K)
                    if K.TANGENT:
                        along_velocity = add_along(along_velocity, dot, slopes, K)
                        curve = tap_of(curves, i, K)
                        along = add_along(
                            along, dot, slope_changes_of(velocities, weight, slope, curve, K), K
                        )
                        if input_tangent_ptr is not None or (
                            K.PADDING == FILL and fill_tangent_ptr is not None
                        ):
                            image = zero_groups(K.GROUPS, K)
                            if input_tangent_ptr is not None:
                                image = load_block(
                                    tangent_starts[i],
                                    input_tangent.stride_c,
                                    tangent_offsets[i],
                                    mask,
                                    channels,
                                    K,
                                )
                            if K.PADDING == FILL and fill_tangent_ptr is not None:
                                moved = Vector(fill_tangent_ptr, fill_tangent_stride)
                                image = subtract_fill(image, moved, c_start, channels, K)
                            dot = tl.where(mask, dot_channels(image, gradient, K), 0)
                            along = add_along(along, dot, slopes, K)
                    else:
                        along = add_along(along, dot, slopes, K)
                if K.ADDS != NOTHING:
                    factor = product(weight, K)
                    if K.TANGENT:
                        factor = change_of(velocities, weight, slope, K)
                    if K.ANTIALIAS:
                        factor *= per_sample
                    mask = mask & (factor != 0)
                    if K.ADDS == LARGEST:
                        totals = add_magnitudes(totals, gradient, factor, mask, K)
                    else:
                        add_shares(
                            adding,
                            targets[i],
                            grad_input.stride_c,
                            shifts[i],
                            gradient,
                            factor,
                            mask,
                            channels,
                            K,
                        )
            if K.NEEDS_THETA:
                if K.TANGENT and K.PROJECTIVE:
                    # Velocities depend on theta too, through positions and the divisor.
                    corrected = ()
                    last = tl.zeros((K.PIXELS,), K.DTYPE)
                    for k in tl.static_range(K.DIM):
                        corrected = corrected + (along[k] - along_velocity[k] * growth,)
                        last -= along_velocity[k] * velocities[k]
                    along = corrected
                rows = row_derivatives(along, sample, halves, K)
                if K.TANGENT and K.PROJECTIVE:
                    inverse = 1 / tl.where(is_visible(sample.divisor), sample.divisor, 1)
                    rows = (rows[0], rows[1], rows[2] + last * inverse)
                for k in tl.static_range(K.DIM):
                    sums = add_column(sums, rows, sample.base[k], k, K)
                sums = add_column(sums, rows, 1.0, K.DIM, K)
                if K.DISPLACEMENT:
                    along_all = add_rows(along_all, rows, K.DIM)
        for g in tl.static_range(K.GROUPS if K.ADDS == LARGEST else 0):
            largest = tl.maximum(largest, tl.max(totals[g], 1))
    if K.ADDS == LARGEST:
        total = tl.max(largest, 0)
        if tl.float64 == K.DTYPE:
            bits = total.to(tl.int64, bitcast=True)
        else:
            bits = total.to(tl.int32, bitcast=True)
        tl.atomic_max(limits_ptr + window.n, bits, sem="relaxed")
    if K.NEEDS_THETA:
        if K.ANTIALIAS:
            averages = ()
            for i in tl.static_range(K.ROWS * (K.DIM + 1)):
                averages = averages + (sums[i] * per_sample,)
            sums = averages
        columns = K.DIM + 1
        if K.DISPLACEMENT:
            columns += point_count
        row = partial_ptr + tl.program_id(0).to(tl.int64) * (K.ROWS * columns)
        store_sums(row, sums, window.map.scales, columns, K)
        store_displacement(row, columns, along_all, window, points, sizes_out, K)


@triton.jit(do_not_specialize=("elements", "per_image", "head", "low"))
def settle_kernel(grad_input_ptr, whole_ptr, limits_ptr, elements, per_image, head, low, DTYPE: tl.constexpr):
    """Add the sums of whole numbers to grad_input, which holds the sums that are not finite."""
    programs = tl.cdiv(per_image, SETTLED)
    n = tl.program_id(0) // programs
    element = (tl.program_id(0) - n * programs).to(tl.int64) * SETTLED + tl.arange(0, SETTLED)
    mask = element < per_image
    element += n.to(tl.int64) * per_image
    whole = tl.load(whole_ptr + element, mask=mask, other=0)
    rest = tl.load(whole_ptr + tl.cast(elements, tl.int64) + element, mask=mask, other=0).to(tl.float64)
    less = power_of_two(-low, tl.float64)
    scale = power_of_two(exponent_of(limits_ptr, n, DTYPE) - head, tl.float64)
    first = whole.to(tl.float64)  # may round; the error is added below
    total = first + ((whole - first.to(tl.int64)).to(tl.float64) + rest * less[0] * less[1])
    total = total * scale[0] * scale[1]
    infinite = tl.load(grad_input_ptr + element, mask=mask, other=0)
    tl.store(grad_input_ptr + element, infinite + total.to(DTYPE), mask=mask)
