"""Backward over output pixels: grad_input by additions in memory, and the tile's share of grad_theta.

A program owns a tile of output pixels, as in the forward, and computes their positions once for both
gradients. From the gradient g of an output pixel at the position c, with the value sum of w_i(c) x_i over its
taps i, follow

    grad_input:  w_i g is added at every tap i,
    grad_theta:  dc_k = sum over taps and channels of g x_i dw_i/dc_k, of which row k gets dc_k (u, v, 1).

A projective map c_k = h_k/h_w passes dc_k/h_w to row k and -sum of dc_k c_k/h_w to the last row. Sums for
theta are stored by each program, and added up afterwards in a fixed order.

The additions to grad_input are atomic. As floating-point numbers (ADDS == FLOATS) their order, which nobody
knows, decides the last bits. Under PyTorch's deterministic mode they are whole numbers, whose sum does not
depend on the order, in three passes:

    LARGEST  finds for each image the largest total t of the magnitudes of what one output pixel adds.
             With 2**e the power of two above it, no pixel gets more than 2**h t < 2**(h + e), where 2**h is
             the number of output pixels that sample the image, and two more bits pay for rounding.
    WHOLE    adds x = 2**(head - e) w_i g, head = 61 - h: its whole part to one 64-bit integer, and
             2**low times the rest, if there is any, to another. low is head less the bits of the number of
             additions of one output pixel, for each may leave a rest; so neither can overflow. What is below
             2**-(head + low) t is cut off: of bilinear images of 2**16 output pixels, fp32 shares have all
             their bits down to 2**-62 t, fp64 shares to 2**-33 t. What is not finite is added to grad_input
             itself, as a floating-point number: such sums are infinite or NaN in any order.
    settle_kernel   puts the two integers together in fp64, rounds, and adds what was not finite.

A compiler may contract the two passes differently, so a share may be larger than LARGEST found by rounding:
it is cut to 2**e. The second integer is touched where a share's last bit lies below 2**-head t: of 2**16
output pixels, by fp32 shares below about 2**-21 t.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_rows,
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
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import fold_theta, is_finite, is_visible, per_axis_halves
from stn_triton.kernels.forward import image_of, map_of, product, sample_at, tap_addresses, tap_of
from stn_triton.kernels.parameters import (
    add_along,
    add_column,
    row_derivatives,
    store_sums,
    zero_vectors,
)
from stn_triton.kernels.spline import bends_at, store_bends
from stn_triton.kernels.tangent import all_curves, bends_of, change_of, slopes_of, velocities_at
from stn_triton.kernels.taps import FILL, per_axis_limits

NOTHING = tl.constexpr(0)
FLOATS = tl.constexpr(1)
LARGEST = tl.constexpr(2)
WHOLE = tl.constexpr(3)
"""What is added to grad_input, see above."""
GUARD = tl.constexpr(24)
"""One output pixel adds less than 2**24 times: up to 64 samples on each axis, 16 taps or 8 in a volume."""
SETTLED = tl.constexpr(1024)
"""Elements of a program that settles."""


@triton.jit
def exponent_of(limits_ptr, n, DTYPE: tl.constexpr):
    """An e with 2**e above the largest total of image n, of which 2**-GUARD is there as its bits.

    It is the least one but for totals near zero.
    """
    bits = tl.load(limits_ptr + n)
    if tl.float64 == DTYPE:
        exponent = (bits >> 52).to(tl.int32) - 1022
    else:
        exponent = (bits >> 23) - 126
    return exponent + GUARD


@triton.jit
def power_of_two(exponent, DTYPE: tl.constexpr):
    """2**exponent as two factors: it may be no number of the dtype itself."""
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
def add_magnitudes(totals, gradient, weight, mask, GROUPS: tl.constexpr):
    """Add the magnitudes of a tap's shares, 2**-GUARD of them, so that their totals are finite."""
    result = ()
    for g in tl.static_range(GROUPS):
        share = gradient[g] * weight[:, None]
        counts = mask[:, None] & is_finite(share)
        result = result + (totals[g] + tl.where(counts, tl.abs(share) * 2.0**-GUARD, 0),)
    return result


@triton.jit
def add_shares(
    grad_input_ptr,
    whole_ptr,
    elements,
    start,
    stride_c,
    offset,
    gradient,
    weight,
    mask,
    channels,
    scale,
    most,
    low_scale,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    ADDS: tl.constexpr,
):
    """Add the gradient times a tap's weight; `start` is a pointer for FLOATS, else an element's number."""
    for g in tl.static_range(GROUPS):
        share = gradient[g] * weight[:, None]
        target = group_pointers(start, stride_c, offset, g, RUN_C)
        there = group_mask(mask, channels, g, RUN_C, EVEN_C)
        if ADDS == FLOATS:
            tl.atomic_add(target, share, mask=there, sem="relaxed")
        else:
            finite = there & is_finite(share)
            tl.atomic_add(grad_input_ptr + target, share, mask=there & ~finite, sem="relaxed")
            scaled = tl.where(finite, share, 0) * scale[0] * scale[1]
            scaled = tl.minimum(tl.maximum(scaled, -most), most)
            whole = scaled.to(tl.int64)
            tl.atomic_add(whole_ptr + target, whole, mask=whole != 0, sem="relaxed")
            rest = ((scaled - whole.to(share.dtype)) * low_scale[0] * low_scale[1]).to(tl.int64)
            tl.atomic_add(
                whole_ptr + tl.cast(elements, tl.int64) + target, rest, mask=rest != 0, sem="relaxed"
            )


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
    grad_input_stride_d,
    grad_input_stride_h,
    grad_input_stride_w,
    grad_output_stride_n,
    grad_output_stride_c,
    grad_output_stride_d,
    grad_output_stride_h,
    grad_output_stride_w,
    input_stride_n,
    input_stride_c,
    input_stride_d,
    input_stride_h,
    input_stride_w,
    theta_stride_n,
    theta_stride_row,
    theta_stride_column,
    fill_stride,
    input_tangent_stride_n,
    input_tangent_stride_c,
    input_tangent_stride_d,
    input_tangent_stride_h,
    input_tangent_stride_w,
    theta_tangent_stride_n,
    theta_tangent_stride_row,
    theta_tangent_stride_column,
    fill_tangent_stride,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    SPLINE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    TANGENT: tl.constexpr,
    ADDS: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """Add to grad_input as ADDS says, and store the tile's share of the gradient of its matrix, if wanted.

    For TANGENT, of the gradient of the tangent: a tap's weight is how fast its weight changes.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    input_strides = (input_stride_w, input_stride_h, input_stride_d)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h, grad_input_stride_d)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h, grad_output_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    input_tangent_strides = (input_tangent_stride_w, input_tangent_stride_h, input_tangent_stride_d)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    ROWS: tl.constexpr = DIM + 1 if PROJECTIVE else DIM
    NEEDS_THETA: tl.constexpr = partial_ptr is not None

    m, c_first, origin = tile_origin(C, D_out, H_out, W_out, DIM, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    n, exists = image_of(image_index_ptr, m, images, per_image, HAS_INDEX)
    pixel_mask = only_if(exists, is_inside(pixels, sizes_out, DIM))
    a, scales, samples, count, sizes = map_of(
        theta_ptr, m, theta_strides, sizes_in, sizes_out, ANTIALIAS, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE
    )

    halves = per_axis_halves(sizes_in, DIM, DTYPE)
    bends = ()
    if SPLINE:
        bends = bends_at(
            pixels,
            theta_ptr,
            m,
            theta_strides,
            scales,
            points_ptr,
            point_count,
            sizes_out,
            ALIGN_CORNERS,
            DTYPE,
        )
    if TANGENT:
        b = fold_theta(theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, PROJECTIVE, DTYPE)
        lows, highs = per_axis_limits(sizes_in, DIM, DTYPE)
        moved_bends = ()
        if SPLINE:
            moved_bends = bends_at(
                pixels,
                theta_tangent_ptr,
                m,
                theta_tangent_strides,
                scales,
                points_ptr,
                point_count,
                sizes_out,
                ALIGN_CORNERS,
                DTYPE,
            )
    share = 1 / tl.cast(count, DTYPE)
    scale, low_scale, most = (), (), 0.0
    if ADDS == WHOLE:
        scale = power_of_two(head - exponent_of(limits_ptr, n, DTYPE), DTYPE)
        low_scale = power_of_two(low, DTYPE)
        limit = power_of_two(head, DTYPE)
        most = limit[0] * limit[1]
    largest = tl.zeros((PIXELS,), DTYPE)
    sums = zero_vectors(ROWS * (DIM + 1), PIXELS, DTYPE)
    along_all = zero_vectors(DIM if SPLINE else 0, PIXELS, DTYPE)
    # What does not depend on channels is computed before the loop: the compiler moves it there.
    for step in range(steps_of(C - c_first, BLOCK_C, STEPS_C)):
        c_start = c_first + step * BLOCK_C
        channels = C - c_start
        grad_output_start = block_start(
            grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c
        )
        offset = pixel_offset(pixels, grad_output_strides, DIM, INDEX)
        gradient = load_block(
            grad_output_start,
            grad_output_stride_c,
            offset,
            pixel_mask,
            channels,
            GROUPS,
            RUN_C,
            EVEN_C,
            DTYPE,
        )
        input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
        grad_input_start = block_start(
            grad_input_ptr if ADDS == FLOATS else 0, n, c_start, grad_input_stride_n, grad_input_stride_c
        )
        totals = zero_block(GROUPS if ADDS == LARGEST else 0, PIXELS, RUN_C, DTYPE)
        if input_tangent_ptr is not None:
            input_tangent_start = block_start(
                input_tangent_ptr, n, c_start, input_tangent_stride_n, input_tangent_stride_c
            )
        for sample in range(count):
            base, positions, divisor, indices, weights, slopes = sample_at(
                a,
                pixels,
                sample,
                samples,
                sizes_in,
                sizes,
                bends,
                SPLINE,
                DIM,
                PROJECTIVE,
                TAPS,
                PADDING,
                ALIGN_CORNERS,
                DTYPE,
            )
            if NEEDS_THETA:
                starts, offsets = tap_addresses(
                    input_start, input_strides, indices, DIM, TAPS, PADDING, INDEX
                )
                if input_tangent_ptr is not None:
                    tangent_starts, tangent_offsets = tap_addresses(
                        input_tangent_start, input_tangent_strides, indices, DIM, TAPS, PADDING, INDEX
                    )
            if ADDS == FLOATS or ADDS == WHOLE:
                targets, shifts = tap_addresses(
                    grad_input_start, grad_input_strides, indices, DIM, TAPS, PADDING, INDEX
                )
            along = zero_vectors(DIM, PIXELS, DTYPE)
            if TANGENT:
                velocities, growth = velocities_at(b, base, positions, halves, divisor, DIM, PROJECTIVE)
                if SPLINE:
                    velocities = add_rows(velocities, moved_bends, DIM)
                if NEEDS_THETA:
                    curves = all_curves(positions, lows, highs, DIM, TAPS, PADDING, ALIGN_CORNERS)
                    along_velocity = zero_vectors(DIM, PIXELS, DTYPE)
            for i in tl.static_range(TAPS**DIM):
                pixel = tap_of(indices, i, DIM, TAPS)
                weight = tap_of(weights, i, DIM, TAPS)
                slope = tap_of(slopes, i, DIM, TAPS)
                mask = pixel_mask & is_inside(pixel, sizes_in, DIM)
                if PROJECTIVE:
                    mask = mask & is_visible(divisor)
                if NEEDS_THETA:
                    image = load_block(
                        starts[i], input_stride_c, offsets[i], mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
                    )
                    if PADDING == FILL:
                        image = subtract_fill(
                            image, fill_ptr, fill_stride, c_start, channels, GROUPS, RUN_C, DTYPE
                        )
                    dot = tl.where(mask, dot_channels(image, gradient, GROUPS), 0)
                    slopes_here = slopes_of(weight, slope, DIM)
                    if TANGENT:
                        along_velocity = add_along(along_velocity, dot, slopes_here, DIM)
                        curve = tap_of(curves, i, DIM, TAPS)
                        along = add_along(along, dot, bends_of(velocities, weight, slope, curve, DIM), DIM)
                        if input_tangent_ptr is not None or (
                            PADDING == FILL and fill_tangent_ptr is not None
                        ):
                            image = zero_block(GROUPS, PIXELS, RUN_C, DTYPE)
                            if input_tangent_ptr is not None:
                                image = load_block(
                                    tangent_starts[i],
                                    input_tangent_stride_c,
                                    tangent_offsets[i],
                                    mask,
                                    channels,
                                    GROUPS,
                                    RUN_C,
                                    EVEN_C,
                                    DTYPE,
                                )
                            if PADDING == FILL and fill_tangent_ptr is not None:
                                image = subtract_fill(
                                    image,
                                    fill_tangent_ptr,
                                    fill_tangent_stride,
                                    c_start,
                                    channels,
                                    GROUPS,
                                    RUN_C,
                                    DTYPE,
                                )
                            dot = tl.where(mask, dot_channels(image, gradient, GROUPS), 0)
                            along = add_along(along, dot, slopes_here, DIM)
                    else:
                        along = add_along(along, dot, slopes_here, DIM)
                if ADDS != NOTHING:
                    change = product(weight, DIM)
                    if TANGENT:
                        change = change_of(velocities, weight, slope, DIM)
                    if ANTIALIAS:
                        change *= share
                    mask = mask & (change != 0)
                    if ADDS == LARGEST:
                        totals = add_magnitudes(totals, gradient, change, mask, GROUPS)
                    else:
                        add_shares(
                            grad_input_ptr,
                            whole_ptr,
                            elements,
                            targets[i],
                            grad_input_stride_c,
                            shifts[i],
                            gradient,
                            change,
                            mask,
                            channels,
                            scale,
                            most,
                            low_scale,
                            GROUPS,
                            RUN_C,
                            EVEN_C,
                            ADDS,
                        )
            if NEEDS_THETA:
                if TANGENT and PROJECTIVE:
                    # Velocities depend on theta too, through positions and the divisor.
                    less = ()
                    last = tl.zeros((PIXELS,), DTYPE)
                    for k in tl.static_range(DIM):
                        less = less + (along[k] - along_velocity[k] * growth,)
                        last -= along_velocity[k] * velocities[k]
                    along = less
                rows = row_derivatives(along, positions, halves, divisor, DIM, PROJECTIVE)
                if TANGENT and PROJECTIVE:
                    inverse = 1 / tl.where(is_visible(divisor), divisor, 1)
                    rows = (rows[0], rows[1], rows[2] + last * inverse)
                for k in tl.static_range(DIM):
                    sums = add_column(sums, rows, base[k], k, DIM, ROWS)
                sums = add_column(sums, rows, 1.0, DIM, DIM, ROWS)
                if SPLINE:
                    along_all = add_rows(along_all, rows, DIM)
        for g in tl.static_range(GROUPS if ADDS == LARGEST else 0):
            largest = tl.maximum(largest, tl.max(totals[g], 1))
    if ADDS == LARGEST:
        most = tl.max(largest, 0)
        if tl.float64 == DTYPE:
            bits = most.to(tl.int64, bitcast=True)
        else:
            bits = most.to(tl.int32, bitcast=True)
        tl.atomic_max(limits_ptr + n, bits, sem="relaxed")
    if NEEDS_THETA:
        if ANTIALIAS:
            less = ()
            for i in tl.static_range(ROWS * (DIM + 1)):
                less = less + (sums[i] * share,)
            sums = less
        columns = DIM + 1
        if SPLINE:
            columns += point_count
        row = partial_ptr + tl.program_id(0).to(tl.int64) * (ROWS * columns)
        store_sums(row, sums, scales, columns, ROWS, DIM)
        if SPLINE:
            store_bends(
                row,
                columns,
                along_all,
                pixels,
                scales,
                points_ptr,
                point_count,
                sizes_out,
                ALIGN_CORNERS,
                DTYPE,
            )


@triton.jit(do_not_specialize=("elements", "per_image", "head", "low"))
def settle_kernel(grad_input_ptr, whole_ptr, limits_ptr, elements, per_image, head, low, DTYPE: tl.constexpr):
    """Add the sums of whole numbers to grad_input, which has what is not finite."""
    programs = tl.cdiv(per_image, SETTLED)
    n = tl.program_id(0) // programs
    element = (tl.program_id(0) - n * programs).to(tl.int64) * SETTLED + tl.arange(0, SETTLED)
    mask = element < per_image
    element += n.to(tl.int64) * per_image
    whole = tl.load(whole_ptr + element, mask=mask, other=0)
    rest = tl.load(whole_ptr + tl.cast(elements, tl.int64) + element, mask=mask, other=0).to(tl.float64)
    less = power_of_two(-low, tl.float64)
    scale = power_of_two(exponent_of(limits_ptr, n, DTYPE) - head, tl.float64)
    most = whole.to(tl.float64)  # whose last bits the rest may carry into
    total = most + ((whole - most.to(tl.int64)).to(tl.float64) + rest * less[0] * less[1])
    total = total * scale[0] * scale[1]
    infinite = tl.load(grad_input_ptr + element, mask=mask, other=0)
    tl.store(grad_input_ptr + element, infinite + total.to(DTYPE), mask=mask)
