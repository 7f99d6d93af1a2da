"""Backward of images under affine maps: grad_input and, in the same pass, grad_theta, without atomics.

A program owns a tile of *input* pixels and a block of channels. For each input pixel p it gathers from the
output pixels o that sample p. `search.py` finds candidates, and the exact coordinates of the forward decide.

    grad_input[p] = sum over o of w(o, p) * grad_output[o]
    d/dc_k        = sum over channels of input[p] * grad_output[o], times the derivative of w(o, p)

Row k of grad_theta sums d/dc_k times (u, v, 1), see `sums.py`. If an image has many matrices, many at a time
are tested for reaching the tile, and those that may are processed one after the other.

A program with several blocks of channels (LISTED) searches once: `walk` first lists the output pixels that
sample each pixel of the tile, and each block goes through the list. If more than SLOTS output pixels sample
one pixel, the program searches again for each block instead.

Pairs of weight zero are loaded for their derivatives. So with grad_theta, an Inf or NaN in grad_output
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
    steps_of,
    store_block,
    subtract_fill,
    tile_origin,
    tile_pixels,
    zero_groups,
)
from stn_triton.kernels.coordinates import centred, fold_theta, per_axis_halves, theta_scales
from stn_triton.kernels.sampling import map_of
from stn_triton.kernels.search import output_lasts, tile_is_reached, touches_edge
from stn_triton.kernels.structs import Image, Matrix, Plane, Tile, Vector
from stn_triton.kernels.sums import add_column, store_sums, zero_vectors
from stn_triton.kernels.taps import FILL, per_axis_limits
from stn_triton.kernels.walk import (
    SLOTS,
    block_of,
    empty_slots,
    matrix_at,
    row_constants,
    row_shares,
    slots_of,
    visit,
    walk,
)

# Number of matrices that are tested at once for reaching the tile.
CULLED = tl.constexpr(128)


@triton.jit
def tile_of(origin, sizes_in, K: tl.constexpr):
    """The pixels of the program, and the facts of the image that the search needs."""
    pixels = tile_pixels(origin, K)
    lows, highs = per_axis_limits(sizes_in, K)
    numbers = ()
    for k in tl.static_range(2):
        numbers = numbers + (tl.cast(pixels[k] - (sizes_in[k] - 1) // 2, K.DTYPE),)
    at_edge = touches_edge(origin, sizes_in, 0, K) | touches_edge(origin, sizes_in, 1, K)
    mask = is_inside(pixels, sizes_in, K)
    return Tile(origin, sizes_in, pixels, mask, numbers, per_axis_halves(sizes_in, K), lows, highs, at_edge)


@triton.jit
def own_pixels(tile, i: tl.constexpr, K: tl.constexpr):
    """Pixel i of each square, counted row by row, and which of these pixels lie in the image."""
    pixels = (tile.pixels[0] + i % K.SIDE, tile.pixels[1] + i // K.SIDE)
    return pixels, is_inside(pixels, tile.sizes_in, K)


@triton.jit
def load_image(input, n, c_start, channels, tile, fill, K: tl.constexpr):
    """Load the tile, one block for each pixel of a square; for FILL padding, minus the fill values.

    A square may reach beyond the image. Output pixels sample there too, so the values there are 0. Without
    NEEDS_THETA nothing is loaded.
    """
    image = ()
    if K.NEEDS_THETA:
        start = block_start(input, n, c_start)
        for i in tl.static_range(K.SIDE * K.SIDE):
            pixels, mask = own_pixels(tile, i, K)
            offset = pixel_offset(pixels, input.strides, K)
            block = load_block(start, input.stride_c, offset, mask, channels, K)
            if K.PADDING == FILL:
                block = subtract_fill(block, fill, c_start, channels, K)
                for g in tl.static_range(K.GROUPS):
                    image = image + (tl.where(mask[:, None], block[g], 0),)
            else:
                image = image + block
    return image


@triton.jit
def store_image(grad_input, n, c_start, channels, tile, accumulator, K: tl.constexpr):
    """Write the tile, one block for each pixel of a square."""
    start = block_start(grad_input, n, c_start)
    for i in tl.static_range(K.SIDE * K.SIDE):
        pixels, mask = own_pixels(tile, i, K)
        offset = pixel_offset(pixels, grad_input.strides, K)
        store_block(start, grad_input.stride_c, offset, mask, channels, block_of(accumulator, i, K), K)


@triton.jit
def add_to(vectors, index: tl.constexpr, more, COUNT: tl.constexpr):
    """Add `more` to the vector at `index`."""
    result = ()
    for i in tl.static_range(COUNT):
        result = result + (vectors[i] + more if i == index else vectors[i],)
    return result


@triton.jit(do_not_specialize=UNSPECIALIZED)
def backward_kernel(
    partial_ptr,
    grad_input_ptr,
    grad_output_ptr,
    input_ptr,
    theta_ptr,
    fill_ptr,
    starts_ptr,
    order_ptr,
    per_image,
    C,
    H_in,
    W_in,
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
    K: tl.constexpr,
):
    """Compute grad_input of a tile and, with NEEDS_THETA, the tile's share of grad_theta."""
    sizes_in = (W_in, H_in)
    sizes_out = (W_out, H_out)
    grad_input = Image(grad_input_ptr, grad_input_stride_n, grad_input_stride_c, grad_input_strides)
    grad_output = Image(grad_output_ptr, grad_output_stride_n, grad_output_stride_c, grad_output_strides)
    input = Image(input_ptr, input_stride_n, input_stride_c, input_strides)
    theta = Matrix(theta_ptr, theta_strides)
    fill = Vector(fill_ptr, fill_stride)
    LISTED: tl.constexpr = K.STEPS_C > 1
    tl.static_assert(not LISTED or (K.TAPS <= 2 and K.SIDE == 1 and not (K.MANY or K.ANTIALIAS)))

    n, c_first, origin = tile_origin(C, sizes_in, K)
    tile = tile_of(origin, sizes_in, K)
    sums = zero_vectors(6 if K.NEEDS_THETA else 0, K)
    m = n.to(tl.int64)
    chunks = 1
    if K.MANY:
        slot_first, slot_end = slots_of(starts_ptr, n, per_image, K)
        chunks = tl.cdiv(slot_end - slot_first, CULLED).to(tl.int32)
    else:
        map = map_of(theta, m, sizes_in, sizes_out, K)

    steps = steps_of(C - c_first, K)
    if LISTED:
        nowhere = Plane(grad_output_ptr, grad_output.stride_c, grad_output.strides)
        _block, _sums, found, kept = walk(
            map, tile, nowhere, 0, (), (), (), tl.zeros((K.PIXELS,), tl.int32), empty_slots(K), True, K
        )
        longest = tl.max(found)
        is_listed = longest <= SLOTS
        dots = zero_vectors(SLOTS, K)
        for step in range(tl.where(is_listed, steps, 0)):
            c_start = c_first + step * K.BLOCK_C
            channels = C - c_start
            accumulator = zero_groups(K.GROUPS, K)
            image = load_image(input, n, c_start, channels, tile, fill, K)
            start = block_start(grad_output, m, c_start)
            for s in tl.static_range(SLOTS - 1, -1, -1):  # in the order in which they were found
                for _ in range(tl.where(s < longest, 1, 0)):  # an `if` could not pass blocks on
                    offset = pixel_offset((kept[3 * s], kept[3 * s + 1]), grad_output.strides, K)
                    gradient = load_block(start, grad_output.stride_c, offset, s < found, channels, K)
                    accumulator = add_scaled(accumulator, gradient, kept[3 * s + 2], K)
                    if K.NEEDS_THETA:
                        dots = add_to(dots, s, dot_channels(image, gradient, K), SLOTS)
            store_image(grad_input, n, c_start, channels, tile, accumulator, K)
        steps = tl.where(is_listed, 0, steps)

    for step in range(steps):
        c_start = c_first + step * K.BLOCK_C
        channels = C - c_start
        accumulator = zero_groups(K.SIDE * K.SIDE * K.GROUPS, K)
        image = load_image(input, n, c_start, channels, tile, fill, K)
        for chunk in range(chunks):
            reaching = 1
            if K.MANY:
                lanes = tl.arange(0, CULLED)
                slots = slot_first + chunk * CULLED + lanes
                reached = slots < slot_end
                matrices = matrix_at(order_ptr, tl.where(reached, slots, slot_first), K)
                maps = fold_theta(theta, matrices, theta_scales(sizes_in, sizes_out, K), K)
                # Antialiasing samples up to half a pixel beyond the centre of the last pixel.
                edges = output_lasts(sizes_out, 0 if K.ANTIALIAS else 1, K)
                reached = tile_is_reached(reached, maps, tile, edges, K)
                reaching = tl.sum(reached.to(tl.int32))
            for _ in range(reaching):
                if K.MANY:
                    lane = tl.min(tl.where(reached, lanes, CULLED))
                    reached = reached & (lanes != lane)
                    m = matrix_at(order_ptr, slot_first + chunk * CULLED + lane, K)
                    map = map_of(theta, m, sizes_in, sizes_out, K)
                start = block_start(grad_output, m, c_start)
                plane = Plane(start, grad_output.stride_c, grad_output.strides)
                accumulator, sums, _found, _slots = walk(
                    map, tile, plane, channels, image, accumulator, sums, (), (), False, K
                )
        store_image(grad_input, n, c_start, channels, tile, accumulator, K)

    if K.NEEDS_THETA:
        if LISTED:
            for s in tl.static_range(SLOTS):
                for _ in range(tl.where(is_listed & (s < longest), 1, 0)):
                    v = centred(kept[3 * s + 1], map.sizes[1], K)
                    visited = visit(map, kept[3 * s], row_constants(map.a, v), tile, s < found, K)
                    rows = row_shares((dots[s],), s < found, visited, K)
                    sums = add_column(sums, rows, visited.u, 0, K)
                    sums = add_column(sums, rows, v, 1, K)
                    sums = add_column(sums, rows, 1.0, 2, K)
        row = partial_ptr + tl.program_id(0).to(tl.int64) * 6
        store_sums(row, sums, map.scales, 3, K)
