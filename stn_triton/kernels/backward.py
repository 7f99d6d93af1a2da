"""Backward: grad_input and, in the same pass, grad_theta, gathered, without atomics.

A program owns a tile of *input* pixels and a block of channels. Over the output pixels o that sample input
pixel p (`search.py` finds candidates, `weight_on` decides by the very coordinate of the forward),

    grad_input[p] = sum of w(o, p) * grad_output[o]
    d/dc_k        = sum over channels of input[p] * grad_output[o], times the derivative of w(o, p)

and row k of grad_theta sums d/dc_k times (u, v, 1), see `parameters.py`.

Around this gather stand loops that most programs run once: over the matrices of an image, culled many at a
time by the tile that they reach; over the mirror images of reflection, each output pixel belonging to one.

Pairs of weight zero are loaded for their derivatives, so if grad_theta is wanted an Inf or NaN in grad_output
reaches the grad_input of neighbours at weight zero, as in PyTorch. Without grad_theta it does not.
"""

import triton
import triton.language as tl

from stn_triton.kernels.block import (
    UNSPECIALIZED,
    add_scaled,
    block_start,
    dot_channels,
    is_inside,
    load_block,
    pixel_offset,
    store_block,
    subtract_fill,
    tile_origin,
    tile_pixels,
    zero_block,
)
from stn_triton.kernels.coordinates import (
    centred,
    fold_theta,
    is_visible,
    per_axis_halves,
    sources,
    theta_scales,
)
from stn_triton.kernels.forward import map_of, product
from stn_triton.kernels.parameters import (
    add_along,
    add_column,
    add_rows,
    row_derivatives,
    store_partial,
    where_hit,
    zero_vectors,
)
from stn_triton.kernels.search import (
    affine_range,
    axis_interval,
    candidates_per_row,
    first_index,
    has_samples,
    line_end,
    mirror_images_reached,
    output_lasts,
    projective_range,
    range_count,
    reaches_of,
    strip_end,
    tile_is_reached,
    touches_edge,
    wedge_lines,
)
from stn_triton.kernels.tangent import change_of, slopes_of, velocities_at
from stn_triton.kernels.taps import BORDER, FILL, REFLECTION, fold_of, per_axis_limits, weight_on

# Above this many candidates per row it pays to ask how many the tile really has.
LONG_ROW = tl.constexpr(8)
# Matrices whose reach is tested at once.
CULLED = tl.constexpr(128)


@triton.jit
def slots_of(starts_ptr, n, per_image, HAS_INDEX: tl.constexpr):
    """Where the matrices of image n begin and end, in the order of images."""
    if HAS_INDEX:
        first = tl.load(starts_ptr + n)
        end = tl.load(starts_ptr + n + 1)
    else:
        first = n.to(tl.int64) * per_image
        end = first + per_image
    return first, end


@triton.jit
def matrix_at(order_ptr, slot, HAS_INDEX: tl.constexpr):
    """The matrix, or matrices, in a slot."""
    if HAS_INDEX:
        m = tl.load(order_ptr + slot)
    else:
        m = slot
    return m


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    partial_ptr,
    grad_input_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    theta_tangent_ptr,
    starts_ptr,
    order_ptr,
    per_image,
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
    theta_tangent_stride_n,
    theta_tangent_stride_row,
    theta_tangent_stride_column,
    DIM: tl.constexpr,
    PROJECTIVE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDING: tl.constexpr,
    ALIGN_CORNERS: tl.constexpr,
    ANTIALIAS: tl.constexpr,
    HAS_INDEX: tl.constexpr,
    MANY: tl.constexpr,
    TANGENT: tl.constexpr,
    INDEX: tl.constexpr,
    DTYPE: tl.constexpr,
    NEEDS_THETA: tl.constexpr,
    EVEN_C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_W: tl.constexpr,
):
    """grad_input of a tile, and the tile's share of grad_theta if it is wanted.

    For TANGENT (grad_input alone), the gradient of the tangent: the weights are how fast weights change.
    """
    sizes_in = (W_in, H_in, D_in)
    sizes_out = (W_out, H_out, D_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h, grad_input_stride_d)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h, grad_output_stride_d)
    input_strides = (input_stride_w, input_stride_h, input_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    theta_tangent_strides = (theta_tangent_stride_n, theta_tangent_stride_row, theta_tangent_stride_column)
    element: tl.constexpr = grad_input_ptr.dtype.element_ty
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    ROWS: tl.constexpr = DIM + 1 if PROJECTIVE else DIM

    n, c_start, origin = tile_origin(C, D_in, H_in, W_in, DIM, BLOCK_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, element, DIM, BLOCK_H, BLOCK_W)
    pixel_mask = is_inside(pixels, sizes_in, DIM)
    channels = C - c_start
    halves = per_axis_halves(sizes_in, DIM, DTYPE)
    lows, highs = per_axis_limits(sizes_in, DIM, DTYPE)
    numbers = ()
    for k in tl.static_range(DIM):
        numbers = numbers + (tl.cast(pixels[k] - (sizes_in[k] - 1) // 2, DTYPE),)
    at_edge = touches_edge(origin, sizes_in, DIM, BLOCK_H, BLOCK_W)

    accumulator = zero_block(GROUPS, PIXELS, RUN_C, DTYPE)
    if NEEDS_THETA:
        input_start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
        offset = pixel_offset(pixels, input_strides, DIM, INDEX)
        image = load_block(
            input_start, input_stride_c, offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
        )
        if PADDING == FILL:
            image = subtract_fill(image, fill_ptr, fill_stride, c_start, channels, GROUPS, RUN_C, DTYPE)
        sums = zero_vectors(ROWS * (DIM + 1), PIXELS, DTYPE)

    m = n.to(tl.int64)
    chunks = 1
    if not MANY:
        a, scales, samples, samples_all, sizes = map_of(
            theta_ptr,
            m,
            theta_strides,
            sizes_in,
            sizes_out,
            ANTIALIAS,
            ALIGN_CORNERS,
            DIM,
            PROJECTIVE,
            DTYPE,
        )
    if MANY:
        slot_first, slot_end = slots_of(starts_ptr, n, per_image, HAS_INDEX)
        chunks = tl.cdiv(slot_end - slot_first, CULLED).to(tl.int32)
    for chunk in range(chunks):
        hits = 1
        if MANY:
            lanes = tl.arange(0, CULLED)
            slots = slot_first + chunk * CULLED + lanes
            reached = slots < slot_end
            if not PROJECTIVE and PADDING != REFLECTION:
                coarse = theta_scales(sizes_in, sizes_out, ALIGN_CORNERS, DIM, PROJECTIVE, DTYPE)
                matrices = matrix_at(order_ptr, tl.where(reached, slots, slot_first), HAS_INDEX)
                maps = fold_theta(theta_ptr, matrices, theta_strides, coarse, DIM, PROJECTIVE, DTYPE)
                # Antialiasing samples up to half a pixel beyond the middle of the last one.
                edges = output_lasts(sizes_out, 0 if ANTIALIAS else 1, DIM, DTYPE)
                reached = tile_is_reached(
                    reached,
                    maps,
                    origin,
                    sizes_in,
                    edges,
                    halves,
                    DIM,
                    TAPS,
                    PADDING,
                    BLOCK_H,
                    BLOCK_W,
                    DTYPE,
                )
            hits = tl.sum(reached.to(tl.int32))
        for _ in range(hits):
            if MANY:
                lane = tl.min(tl.where(reached, lanes, CULLED))
                reached = reached & (lanes != lane)
                m = matrix_at(order_ptr, slot_first + chunk * CULLED + lane, HAS_INDEX)
                a, scales, samples, samples_all, sizes = map_of(
                    theta_ptr,
                    m,
                    theta_strides,
                    sizes_in,
                    sizes_out,
                    ANTIALIAS,
                    ALIGN_CORNERS,
                    DIM,
                    PROJECTIVE,
                    DTYPE,
                )
            lasts = output_lasts(sizes, 1, DIM, DTYPE)
            spans, reaches = reaches_of(a, lasts, sizes_in, DIM, PROJECTIVE, TAPS, DTYPE)
            column_count = candidates_per_row(a, reaches, sizes, lasts, DIM, PROJECTIVE)
            if ANTIALIAS:
                share = 1 / tl.cast(samples_all, DTYPE)
            if TANGENT:
                b = fold_theta(theta_tangent_ptr, m, theta_tangent_strides, scales, DIM, PROJECTIVE, DTYPE)
            grad_output_start = block_start(
                grad_output_ptr, m, c_start, grad_output_stride_n, grad_output_stride_c
            )

            copies = 1
            if PADDING == REFLECTION:
                copies, mirror_firsts, mirror_counts, is_everywhere = mirror_images_reached(
                    a, lasts, spans, sizes_in, lows, highs, halves, DIM, PROJECTIVE, ALIGN_CORNERS, DTYPE
                )
                column_count = tl.where(is_everywhere, sizes[0], column_count)
                if ALIGN_CORNERS:
                    for k in tl.static_range(DIM):
                        column_count = tl.where(sizes_in[k] == 1, sizes[0], column_count)
            if PADDING == BORDER:
                column_count = tl.where(at_edge, sizes[0], column_count)
            is_ragged = column_count > LONG_ROW
            is_sampled = has_samples(a, origin, sizes_in, DIM, PROJECTIVE, PADDING, BLOCK_H, BLOCK_W)
            for copy in range(tl.where(is_sampled, copies, 0)):
                targets, los, his, mirrors_here = (), (), (), ()
                closed = pixel_mask
                rest = copy
                for k in tl.static_range(DIM):
                    mirror = tl.zeros((), DTYPE)
                    anywhere = False
                    if PADDING == REFLECTION:
                        mirror = mirror_firsts[k] + (rest % mirror_counts[k]).to(DTYPE)
                        rest = rest // mirror_counts[k]
                        anywhere = is_everywhere
                        mirrors_here = mirrors_here + (mirror,)
                    reach = 0.5 * TAPS if PROJECTIVE else reaches[k]
                    target, lo, hi, is_closed = axis_interval(
                        numbers[k], mirror, anywhere, reach, lows[k], highs[k], PADDING, ALIGN_CORNERS
                    )
                    targets = targets + (target - halves[k],)
                    los = los + (lo - halves[k],)
                    his = his + (hi - halves[k],)
                    closed = closed & is_closed
                constants = ()
                for k in tl.static_range(ROWS):
                    constants = constants + (a[k * (DIM + 1) + DIM],)
                if PROJECTIVE:
                    lines = wedge_lines(a, los, his, reaches, lasts, DTYPE)

                slice_count = 1
                if DIM == 3:
                    first, last = affine_range(
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
                        2,
                        DIM,
                        DTYPE,
                    )
                    slice_first = first_index(first, lasts[2])
                    slice_count = tl.max(tl.where(pixel_mask, range_count(slice_first, last, lasts[2]), 0))
                for i in range(slice_count):
                    slice_mask = pixel_mask
                    row_base = constants
                    if DIM == 3:
                        od = slice_first + i
                        slice_mask = pixel_mask & (od < sizes[2])
                        w = centred(od, sizes[2], DTYPE)
                        row_base = ()
                        for k in tl.static_range(ROWS):
                            row_base = row_base + (tl.fma(a[k * 4 + 2], w, constants[k]),)
                    if PROJECTIVE:
                        first, last = projective_range(a, lines, closed, lasts, DTYPE)
                    else:
                        first, last = affine_range(
                            a,
                            targets,
                            los,
                            his,
                            closed,
                            row_base,
                            reaches,
                            spans,
                            sizes_in,
                            lasts,
                            1,
                            DIM,
                            DTYPE,
                        )
                    row_first = first_index(first, lasts[1])
                    row_count = tl.max(tl.where(slice_mask, range_count(row_first, last, lasts[1]), 0))
                    for j in range(row_count):
                        oh = row_first + j
                        v = centred(oh, sizes[1], DTYPE)
                        row_mask = slice_mask & (oh < sizes[1])
                        row_constants = ()
                        for k in tl.static_range(ROWS):
                            row_constants = row_constants + (tl.fma(a[k * (DIM + 1) + 1], v, row_base[k]),)
                        if PROJECTIVE:
                            line_constants = ()
                            for k in tl.static_range(4):
                                line_constants = line_constants + (lines[3 * k + 1] * v + lines[3 * k + 2],)
                            first = line_end(lines, line_constants, lasts[0], 0, False)
                        else:
                            first = strip_end(los, his, a, row_constants, lasts, 0, DIM, False)
                        column_first = first_index(first, lasts[0])
                        count = column_count
                        if is_ragged:
                            if PROJECTIVE:
                                last = line_end(lines, line_constants, lasts[0], 0, True)
                            else:
                                last = strip_end(los, his, a, row_constants, lasts, 0, DIM, True)
                            longest = tl.where(row_mask, range_count(column_first, last, lasts[0]), 0)
                            count = tl.minimum(tl.max(longest), column_count)
                        if NEEDS_THETA:
                            row_sums = zero_vectors(ROWS, PIXELS, DTYPE)
                        for column in range(count):
                            ow = column_first + column
                            u = centred(ow, sizes[0], DTYPE)
                            positions, divisor = sources(a, u, row_constants, halves, DIM, PROJECTIVE)
                            hit = row_mask & (ow < sizes[0])
                            if PROJECTIVE:
                                hit = hit & is_visible(divisor)
                            weights, slopes = (), ()
                            for k in tl.static_range(DIM):
                                is_tap, weight, slope = weight_on(
                                    numbers[k], positions[k], lows[k], highs[k], TAPS, PADDING, ALIGN_CORNERS
                                )
                                hit = hit & is_tap
                                weights = weights + (weight,)
                                slopes = slopes + (slope,)
                                if PADDING == REFLECTION:
                                    fold = fold_of(positions[k], lows[k], highs[k], ALIGN_CORNERS)
                                    hit = tl.where(is_everywhere, hit, hit & (fold == mirrors_here[k]))
                            weight = product(weights, DIM)
                            if TANGENT:
                                base = (u, v, w) if DIM == 3 else (u, v)
                                velocities, _growth = velocities_at(
                                    b, base, positions, halves, divisor, DIM, PROJECTIVE
                                )
                                weight = change_of(velocities, weights, slopes, DIM)
                            weight = tl.where(hit, weight, 0)
                            if not NEEDS_THETA:
                                hit = hit & (weight != 0)
                            output_pixel = (ow, oh)
                            if DIM == 3:
                                output_pixel = (ow, oh, od)
                            if ANTIALIAS:
                                weight *= share
                                coarse_pixel = ()
                                for k in tl.static_range(DIM):
                                    coarse_pixel = coarse_pixel + (output_pixel[k] // samples[k],)
                                output_pixel = coarse_pixel
                            offset = pixel_offset(output_pixel, grad_output_strides, DIM, INDEX)
                            gradient = load_block(
                                grad_output_start,
                                grad_output_stride_c,
                                offset,
                                hit,
                                channels,
                                GROUPS,
                                RUN_C,
                                EVEN_C,
                                DTYPE,
                            )
                            accumulator = add_scaled(accumulator, gradient, weight, GROUPS)
                            if NEEDS_THETA:
                                dot = dot_channels(image, gradient, GROUPS)
                                if ANTIALIAS:
                                    dot *= share
                                along = add_along(
                                    zero_vectors(DIM, PIXELS, DTYPE),
                                    dot,
                                    slopes_of(weights, slopes, DIM),
                                    DIM,
                                )
                                along = where_hit(hit, along, DIM)
                                rows = row_derivatives(along, positions, halves, divisor, DIM, PROJECTIVE)
                                row_sums = add_rows(row_sums, rows, ROWS)
                                sums = add_column(sums, rows, u, 0, DIM, ROWS)
                        if NEEDS_THETA:
                            sums = add_column(sums, row_sums, v, 1, DIM, ROWS)
                            sums = add_column(sums, row_sums, 1.0, DIM, DIM, ROWS)
                            if DIM == 3:
                                sums = add_column(sums, row_sums, w, 2, DIM, ROWS)

    grad_input_start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
    offset = pixel_offset(pixels, grad_input_strides, DIM, INDEX)
    store_block(
        grad_input_start,
        grad_input_stride_c,
        offset,
        pixel_mask,
        channels,
        accumulator,
        GROUPS,
        RUN_C,
        EVEN_C,
    )
    if NEEDS_THETA:
        store_partial(partial_ptr, sums, scales, ROWS * (DIM + 1))
