"""The work of a program: the pixels of a tile, for a block of channels.

A tile is BLOCK_H x BLOCK_W pixels of an image, or of one slice of a volume. Per-axis values are tuples in the
order x, y, z; only strides keep the tensor's order z, y, x. Code for the third axis is compiled only for
volumes (DIM = 3).

A block is a tuple of groups, each a [pixels, run] tensor. A run is a number of channels that lie side by side
in memory and that neighbouring lanes read together. It is 1 for NCHW, where neighbouring lanes read
neighbouring pixels. A thread computes the coordinates of its pixel once, for all groups. Groups are separate
tensors instead of a third dimension: where no access is contiguous, versions of Triton assign lanes to
different dimensions, but with two dimensions, one of them the run, every version chooses well.
"""

import triton
import triton.language as tl

from stn_triton.kernels.taps import bounded, nearest

# Arguments that must not cause another compilation by their values: sizes, and the strides of channels.
UNSPECIALIZED = (
    *("H_in", "W_in", "H_out", "W_out", "images", "point_count", "elements", "head", "low"),
    *("input_stride_c", "output_stride_c", "grad_input_stride_c", "grad_output_stride_c"),
    "input_tangent_stride_c",
)


@triton.jit
def tile_origin(C, sizes, K: tl.constexpr):
    """Image, first channel, and first pixel (x, y, z) of this program; tiles vary fastest.

    The arithmetic is unsigned, because a division of signed numbers takes twice the instructions.
    """
    BLOCK_C: tl.constexpr = K.BLOCK_C * K.STEPS_C
    tiles_w = (tl.cast(sizes[0], tl.uint32) + (K.BLOCK_W - 1)) // K.BLOCK_W
    tiles = tiles_w * ((tl.cast(sizes[1], tl.uint32) + (K.BLOCK_H - 1)) // K.BLOCK_H)
    blocks_c = (tl.cast(C, tl.uint32) + (BLOCK_C - 1)) // BLOCK_C
    program = tl.program_id(0).to(tl.uint32)
    block = program // tiles
    tile = program - block * tiles
    row = tile // tiles_w
    x = ((tile - row * tiles_w) * K.BLOCK_W).to(tl.int32)
    y = (row * K.BLOCK_H).to(tl.int32)
    origin = (x, y)
    if K.DIM == 3:
        D = tl.cast(sizes[2], tl.uint32)
        image = block // D
        origin = (x, y, (block - image * D).to(tl.int32))
        block = image
    n = block // blocks_c
    return n.to(tl.int32), ((block - n * blocks_c) * BLOCK_C).to(tl.int32), origin


@triton.jit
def steps_of(channels, K: tl.constexpr):
    """Number of blocks that a program processes, if there are `channels` from its first channel on."""
    steps = 1
    if K.STEPS_C > 1:
        steps = tl.minimum(tl.cdiv(channels, K.BLOCK_C), K.STEPS_C)
    return steps


@triton.jit
def tile_pixels(origin, K: tl.constexpr):
    """The pixels of a tile, as vectors (x, y, z); the first pixels of its squares where SIDE is not 1.

    In an NCHW tensor a warp takes a patch of 4 x 8 pixels. In fp32 its rows are whole 32-byte sectors. It is
    compact, so that a rotated gather stays within few sectors and cache lines, in 16 bits too. The order is
    column by column, to hide from the compiler that neighbours are contiguous. Otherwise it would give each
    thread four pixels in a row, and each warp would compute all coordinates of the tile.
    """
    HEIGHT: tl.constexpr = K.BLOCK_H // K.SIDE
    WIDTH: tl.constexpr = K.BLOCK_W // K.SIDE
    ROWS: tl.constexpr = 4 if HEIGHT > 4 else HEIGHT
    pixel = tl.arange(0, K.PIXELS)
    y = origin[1] + K.SIDE * (pixel // (ROWS * WIDTH) * ROWS + pixel % ROWS)
    x = origin[0] + K.SIDE * (pixel // ROWS % WIDTH)
    if K.DIM == 3:
        pixels = (x, y, origin[2] + tl.zeros((K.PIXELS,), tl.int32))
    else:
        pixels = (x, y)
    return pixels


@triton.jit
def only_if(condition, mask):
    """`condition & mask`, of a scalar and a vector.

    With `&` the interpreter of Triton 3.9 turns the scalar into a number, and refuses numbers as masks.
    """
    return tl.where(condition, mask, False)


@triton.jit
def is_inside(pixel, sizes, K: tl.constexpr):
    """Whether a pixel lies in an image of these sizes."""
    result = (pixel[0] >= 0) & (pixel[0] < sizes[0])
    for k in tl.static_range(1, K.DIM):
        result = result & (pixel[k] >= 0) & (pixel[k] < sizes[k])
    return result


@triton.jit
def block_start(image, n, c_start):
    """Address of a block: the first element of its first plane."""
    return image.ptr + n.to(tl.int64) * image.stride_n + c_start.to(tl.int64) * image.stride_c


@triton.jit
def pixel_offset(pixel, strides, K: tl.constexpr):
    """Elements from the first pixel of a plane to another pixel; INDEX is wide enough for the plane."""
    offset = tl.cast(pixel[1], K.INDEX) * tl.cast(strides[K.DIM - 2], K.INDEX)
    offset += tl.cast(pixel[0], K.INDEX) * tl.cast(strides[K.DIM - 1], K.INDEX)
    if K.DIM == 3:
        offset += tl.cast(pixel[2], K.INDEX) * tl.cast(strides[0], K.INDEX)
    return offset


@triton.jit
def group_pointers(start, stride_c, offset, g: tl.constexpr, K: tl.constexpr):
    """Pointers to group g of a block at the offsets of pixels. A run longer than 1 has a stride_c of 1."""
    if K.RUN_C > 1:
        pointers = start + offset[:, None] + (g * K.RUN_C + tl.arange(0, K.RUN_C))[None, :]
    else:
        pointers = (start + tl.cast(stride_c, tl.int64) * g) + offset[:, None]
    return pointers


@triton.jit
def group_mask(mask, channels, g: tl.constexpr, K: tl.constexpr):
    """Mask of group g: the pixels of `mask`, and the channels that exist, the first `channels` of a block."""
    mask = mask[:, None]
    if not K.EVEN_C:
        mask = mask & (g * K.RUN_C + tl.arange(0, K.RUN_C)[None, :] < channels)
    return mask


@triton.jit
def zero_groups(COUNT: tl.constexpr, K: tl.constexpr):
    """COUNT groups of zeros; a block has K.GROUPS."""
    block = ()
    for _ in tl.static_range(COUNT):
        block = block + (tl.zeros((K.PIXELS, K.RUN_C), K.SUM),)
    return block


@triton.jit
def load_block(start, stride_c, offset, mask, channels, K: tl.constexpr):
    """Read the channels of a block at the offsets of pixels, 0 where masked."""
    block = ()
    for g in tl.static_range(K.GROUPS):
        pointers = group_pointers(start, stride_c, offset, g, K)
        group = tl.load(pointers, mask=group_mask(mask, channels, g, K), other=0)
        block = block + (group.to(K.SUM),)
    return block


@triton.jit
def store_block(start, stride_c, offset, mask, channels, block, K: tl.constexpr):
    """Write a block at the offsets of pixels, in the dtype of the tensor."""
    element: tl.constexpr = start.dtype.element_ty
    for g in tl.static_range(K.GROUPS):
        group = block[g]
        if element == tl.uint8:
            group = rounded(group)
        group = group.to(element)
        pointers = group_pointers(start, stride_c, offset, g, K)
        tl.store(pointers, group, mask=group_mask(mask, channels, g, K))


@triton.jit
def rounded(value):
    """Round to the nearest whole number from 0 to 255, half to even; NaN becomes 0."""
    value = bounded(value, 0, 255)
    return nearest(tl.floor(value), value - tl.floor(value), 0)


@triton.jit
def load_fill(fill, c_start, channels, g: tl.constexpr, K: tl.constexpr):
    """The fill values of group g, as [1, run]."""
    c = g * K.RUN_C + tl.arange(0, K.RUN_C)
    values = tl.load(fill.ptr + (c_start + c).to(tl.int64) * fill.stride, mask=c < channels, other=0)
    return values.to(K.SUM)[None, :]


@triton.jit
def subtract_fill(block, fill, c_start, channels, K: tl.constexpr):
    """Block - fill values. Derivatives need it because a tap that moves outside becomes the fill value."""
    result = ()
    for g in tl.static_range(K.GROUPS):
        result = result + (block[g] - load_fill(fill, c_start, channels, g, K),)
    return result


@triton.jit
def add_scaled(block, other, weight, K: tl.constexpr):
    """Block + other * weight, with one weight per pixel, which is 1 for labels."""
    result = ()
    for g in tl.static_range(K.GROUPS):
        result = result + (block[g] + other[g] * weight.to(K.SUM)[:, None],)
    return result


@triton.jit
def dot_channels(block, other, K: tl.constexpr):
    """Per pixel, the sum over channels of the products of two blocks."""
    total = block[0] * other[0]
    for g in tl.static_range(1, K.GROUPS):
        total += block[g] * other[g]
    return tl.sum(total, 1)
