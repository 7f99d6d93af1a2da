"""Forward: a program writes a tile of output pixels for a block of channels.

Coordinates, masks and weights are computed once per pixel and used for all channels of the block.
A tap is loaded only if it lies inside and its weight is not zero: NaN or Inf beside a sampled pixel stay
there, and the identity copies its input.

Antialiasing samples as if the output were larger, by a whole number per axis that depends on the matrix
(`samples_per_pixel`), and averages; a matrix that does not shrink has one sample.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_rows,
    add_scaled,
    block_start,
    is_inside,
    load_block,
    load_fill,
    only_if,
    pixel_offset,
    steps_of,
    store_block,
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import (
    centred,
    fold_theta,
    is_visible,
    per_axis_halves,
    row_constant,
    samples_per_pixel,
    sources,
    theta_scales,
)
from stn_triton.kernels.spline import bends_at
from stn_triton.kernels.tangent import change_of, velocities_at
from stn_triton.kernels.taps import FILL, WRAP, ZEROS, all_taps, per_axis_limits


@triton.jit
def image_of(image_index_ptr, m, images, per_image, HAS_INDEX: tl.constexpr):
    """The image that matrix m warps, and whether it exists; without an index each has `per_image`."""
    if HAS_INDEX:
        n = tl.load(image_index_ptr + m)
        exists = (n >= 0) & (n < images)
        n = tl.where(exists, n, 0)
    else:
        n = m // per_image
        exists = m >= 0
    return n, exists


@triton.jit
def map_of(
    theta_ptr,
    m,
    theta_strides,
    sizes_in,
    sizes_out,
    ANTIALIAS: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Matrix m folded for the sizes; the scales; samples per pixel and axis, and in all; sizes in samples."""
    scales = theta_scales(sizes_in, sizes_out, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE)
    a = fold_theta(theta_ptr, m, theta_strides, scales, DIM, PROJECTIVE, DTYPE)
    samples = ()
    for _ in tl.static_range(DIM):
        samples = samples + (1,)
    count = 1
    if ANTIALIAS:
        samples = samples_per_pixel(a, DIM)
        sizes = ()
        for k in tl.static_range(DIM):
            sizes = sizes + (sizes_out[k] * samples[k],)
            count *= samples[k]
        scales = theta_scales(sizes_in, sizes, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE)
        a = fold_theta(theta_ptr, m, theta_strides, scales, DIM, PROJECTIVE, DTYPE)
    else:
        sizes = sizes_out
    return a, scales, samples, count, sizes


@triton.jit
def sample_at(
    a,
    pixels,
    sample,
    samples,
    sizes_in,
    sizes,
    bends,
    SPLINE: tl.constexpr,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """One sample of output pixels: its centred coordinates, its positions, the divisor, and its taps.

    Tap pixels are whole numbers from 0 on.
    """
    base = ()
    for k in tl.static_range(DIM):
        base = base + (centred(pixels[k] * samples[k] + sample % samples[k], sizes[k], DTYPE),)
        sample = sample // samples[k]
    constants = ()
    for k in tl.static_range(DIM + 1 if PROJECTIVE else DIM):
        constants = constants + (row_constant(a, base, k, DIM),)
    if SPLINE:
        constants = add_rows(constants, bends, DIM)
    halves = per_axis_halves(sizes_in, DIM, DTYPE)
    positions, divisor = sources(a, base[0], constants, halves, DIM, PROJECTIVE)
    lows, highs = per_axis_limits(sizes_in, DIM, DTYPE)
    numbers, weights, slopes = all_taps(positions, lows, highs, DIM, TAPS, PADDING, ALIGN_CORNERS)
    indices = ()
    for i in tl.static_range(DIM * TAPS):
        indices = indices + (numbers[i].to(tl.int32) + (sizes_in[i // TAPS] - 1) // 2,)
    return base, positions, divisor, indices, weights, slopes


@triton.jit
def tap_of(numbers, i: tl.constexpr, DIM: tl.constexpr, TAPS: tl.constexpr):
    """Of numbers for each axis and tap, those of the i-th tap of all: x varies fastest."""
    if DIM == 3:
        result = (
            numbers[i % TAPS],
            numbers[TAPS + i // TAPS % TAPS],
            numbers[2 * TAPS + i // (TAPS * TAPS)],
        )
    else:
        result = (numbers[i % TAPS], numbers[TAPS + i // TAPS])
    return result


@triton.jit
def tap_addresses(
    start,
    strides,
    indices,
    DIM: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    INDEX: tl.constexpr,
):
    """Of every tap: where to start from, and the offsets of pixels from there.

    Taps that lie side by side share the offsets of the first: a scalar start costs less than offsets of every
    tap, and in a contiguous row it is a constant in the load. Under wrap the last pixel is beside the first.
    """
    starts = ()
    offsets = ()
    offset = pixel_offset(tap_of(indices, 0, DIM, TAPS), strides, DIM, INDEX)
    for i in tl.static_range(TAPS**DIM):
        tap_start = start
        if PADDING == ZEROS or PADDING == FILL or (TAPS <= 2 and PADDING != WRAP):
            for _ in tl.static_range(i % TAPS):
                tap_start += strides[0]
            for _ in tl.static_range(i // TAPS % TAPS):
                tap_start += strides[1]
            if DIM == 3:
                for _ in tl.static_range(i // (TAPS * TAPS)):
                    tap_start += strides[2]
        else:
            offset = pixel_offset(tap_of(indices, i, DIM, TAPS), strides, DIM, INDEX)
        starts = starts + (tap_start,)
        offsets = offsets + (offset,)
    return starts, offsets


@triton.jit
def add_taps(
    block,
    start,
    stride_c,
    strides,
    indices,
    masks,
    factors,
    channels,
    DIM: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    INDEX: tl.constexpr,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Block + the taps of an image times their factors."""
    starts, offsets = tap_addresses(start, strides, indices, DIM, TAPS, PADDING, INDEX)
    for i in tl.static_range(TAPS**DIM):
        tap = load_block(starts[i], stride_c, offsets[i], masks[i], channels, GROUPS, RUN_C, EVEN_C, DTYPE)
        block = add_scaled(block, tap, factors[i], GROUPS)
    return block


@triton.jit
def product(numbers, DIM: tl.constexpr):
    """The product over axes."""
    result = numbers[0] * numbers[1]
    if DIM == 3:
        result *= numbers[2]
    return result


@triton.jit(do_not_specialize=UNSPECIALIZED)
def forward_kernel(
    output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    image_index_ptr,
    points_ptr,
    input_tangent_ptr,
    theta_tangent_ptr,
    fill_tangent_ptr,
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
    output_stride_n,
    output_stride_c,
    output_stride_d,
    output_stride_h,
    output_stride_w,
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
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """output[m, :, pixel] = the taps around A (u, v, 1), weighted; or for TANGENT, how fast that changes."""
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    input_strides = (input_stride_w, input_stride_h, input_stride_d)
    output_strides = (output_stride_w, output_stride_h, output_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    input_tangent_strides = (input_tangent_stride_w, input_tangent_stride_h, input_tangent_stride_d)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C

    m, c_first, origin = tile_origin(C, D_out, H_out, W_out, DIM, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    pixel_mask = is_inside(pixels, sizes_out, DIM)
    n, exists = image_of(image_index_ptr, m, images, per_image, HAS_INDEX)
    a, scales, samples, count, sizes = map_of(
        theta_ptr, m, theta_strides, sizes_in, sizes_out, ANTIALIAS, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE
    )
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
        halves = per_axis_halves(sizes_in, DIM, DTYPE)
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

    # What does not depend on channels is computed before the loop: the compiler moves it there.
    for step in range(steps_of(C - c_first, BLOCK_C, STEPS_C)):
        c_start = c_first + step * BLOCK_C
        channels = C - c_start
        input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
        if input_tangent_ptr is not None:
            input_tangent_start = block_start(
                input_tangent_ptr, n, c_start, input_tangent_stride_n, input_tangent_stride_c
            )
        accumulator = zero_block(GROUPS, BLOCK_H * BLOCK_W, RUN_C, DTYPE)
        coverage = tl.zeros((BLOCK_H * BLOCK_W,), DTYPE)
        turnover = tl.zeros((BLOCK_H * BLOCK_W,), DTYPE)
        is_covered = pixel_mask
        is_within = pixel_mask
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
            if TANGENT:
                velocities, _growth = velocities_at(b, base, positions, halves, divisor, DIM, PROJECTIVE)
                if SPLINE:
                    velocities = add_rows(velocities, moved_bends, DIM)
            seen = only_if(exists, pixel_mask)
            if PROJECTIVE:
                seen = seen & is_visible(divisor)
            masks, factors, changing, changes = (), (), (), ()
            for i in tl.static_range(TAPS**DIM):
                weights_here = tap_of(weights, i, DIM, TAPS)
                weight = product(weights_here, DIM)
                inside = seen & is_inside(tap_of(indices, i, DIM, TAPS), sizes_in, DIM)
                mask = inside & (weight != 0)
                masks = masks + (mask,)
                factors = factors + (weight,)
                if PADDING == FILL:
                    coverage += tl.where(mask, weight, 0)
                    is_covered = is_covered & (inside | (weight == 0))
                if TANGENT:
                    change = change_of(velocities, weights_here, tap_of(slopes, i, DIM, TAPS), DIM)
                    change = tl.where(inside, change, 0)
                    changing = changing + (change != 0,)
                    changes = changes + (change,)
                    if PADDING == FILL:
                        turnover += change
                        is_within = is_within & inside
            if TANGENT:
                accumulator = add_taps(
                    accumulator,
                    input_start,
                    input_stride_c,
                    input_strides,
                    indices,
                    changing,
                    changes,
                    channels,
                    DIM,
                    TAPS,
                    PADDING,
                    INDEX,
                    GROUPS,
                    RUN_C,
                    EVEN_C,
                    DTYPE,
                )
            if not TANGENT or input_tangent_ptr is not None:
                accumulator = add_taps(
                    accumulator,
                    input_tangent_start if TANGENT else input_start,
                    input_tangent_stride_c if TANGENT else input_stride_c,
                    input_tangent_strides if TANGENT else input_strides,
                    indices,
                    masks,
                    factors,
                    channels,
                    DIM,
                    TAPS,
                    PADDING,
                    INDEX,
                    GROUPS,
                    RUN_C,
                    EVEN_C,
                    DTYPE,
                )

        result = ()
        for g in tl.static_range(GROUPS):
            group = accumulator[g]
            if PADDING == FILL:
                fill = load_fill(fill_ptr, fill_stride, c_start, channels, g, RUN_C, DTYPE)
                if TANGENT:
                    group -= tl.where(is_within[:, None], 0, turnover[:, None] * fill)
                    if fill_tangent_ptr is not None:
                        fill = load_fill(
                            fill_tangent_ptr, fill_tangent_stride, c_start, channels, g, RUN_C, DTYPE
                        )
                if not TANGENT or fill_tangent_ptr is not None:
                    group += tl.where(is_covered[:, None], 0, (count - coverage)[:, None] * fill)
            if ANTIALIAS:
                group = group / tl.cast(count, DTYPE)
            if HAS_INDEX:
                group = tl.where(exists, group, float("nan"))
            result = result + (group,)
        output_start = block_start(output_ptr, m, c_start, output_stride_n, output_stride_c)
        offset = pixel_offset(pixels, output_strides, DIM, INDEX)
        store_block(
            output_start, output_stride_c, offset, pixel_mask, channels, result, GROUPS, RUN_C, EVEN_C
        )
