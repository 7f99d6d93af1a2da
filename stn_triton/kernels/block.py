"""What a program works on: the pixels of a tile, for a block of channels.

A tile is BLOCK_H x BLOCK_W pixels of an image, or of one slice of a volume. Per-axis values are tuples in the
order x, y, z; without a third axis (DIM = 2) whatever belongs to it is not compiled.

A block is a tuple of groups, each a [pixels, run] tensor. A run is the channels that lie side by side in
memory, for neighbouring lanes to read together: 1 for NCHW, where neighbouring lanes read neighbouring
pixels. One thread goes through the groups with the coordinates of its pixel, computed once. Groups are
separate tensors, not a third dimension, because Triton's versions differ in the dimension that lanes run
along where no access is contiguous: with two dimensions, one of them the run, every version picks well.
"""

import triton
import triton.language as tl

from stn_triton.kernels.taps import bounded, nearest

# Arguments whose value must not choose another compilation: sizes, and the strides of channels.
UNSPECIALIZED = (
    *("H_in", "W_in", "H_out", "W_out", "images", "point_count", "elements", "head", "low"),
    *("input_stride_c", "output_stride_c", "grad_input_stride_c", "grad_output_stride_c"),
    "input_tangent_stride_c",
)


@triton.jit
def tile_origin(
    C, D, H, W, DIM: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr
):
    """Image, first channel, and first pixel (x, y, z) of this program; tiles vary fastest.

    Unsigned, because a division of signed numbers takes twice the instructions.
    """
    tiles_w = (tl.cast(W, tl.uint32) + (BLOCK_W - 1)) // BLOCK_W
    tiles = tiles_w * ((tl.cast(H, tl.uint32) + (BLOCK_H - 1)) // BLOCK_H)
    blocks_c = (tl.cast(C, tl.uint32) + (BLOCK_C - 1)) // BLOCK_C
    program = tl.program_id(0).to(tl.uint32)
    block = program // tiles
    tile = program - block * tiles
    row = tile // tiles_w
    x = ((tile - row * tiles_w) * BLOCK_W).to(tl.int32)
    y = (row * BLOCK_H).to(tl.int32)
    origin = (x, y)
    if DIM == 3:
        image = block // tl.cast(D, tl.uint32)
        origin = (x, y, (block - image * tl.cast(D, tl.uint32)).to(tl.int32))
        block = image
    n = block // blocks_c
    return n.to(tl.int32), ((block - n * blocks_c) * BLOCK_C).to(tl.int32), origin


@triton.jit
def steps_of(channels, BLOCK_C: tl.constexpr, STEPS_C: tl.constexpr):
    """How many blocks of channels a program goes through, of so many that there are from its first."""
    steps = 1
    if STEPS_C > 1:
        steps = tl.minimum(tl.cdiv(channels, BLOCK_C), STEPS_C)
    return steps


@triton.jit
def tile_pixels(origin, DIM: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr):
    """The pixels of a tile, (x, y, z) as vectors.

    In an NCHW tensor a warp takes a patch of 4 x 8: in fp32 its rows are whole 32-byte sectors, and it is
    compact, so that a rotated gather stays within few sectors and cache lines, in 16 bits too. Running down
    the columns first hides from the compiler that neighbours are contiguous: it would give each thread four
    pixels in a row, and each warp all coordinates of the tile to compute.
    """
    ROWS: tl.constexpr = 4 if BLOCK_H > 4 else BLOCK_H
    pixel = tl.arange(0, BLOCK_H * BLOCK_W)
    y = origin[1] + pixel // (ROWS * BLOCK_W) * ROWS + pixel % ROWS
    x = origin[0] + pixel // ROWS % BLOCK_W
    if DIM == 3:
        pixels = (x, y, origin[2] + tl.zeros((BLOCK_H * BLOCK_W,), tl.int32))
    else:
        pixels = (x, y)
    return pixels


@triton.jit
def only_if(condition, mask):
    """A vector of conditions and a scalar one: `&` would do, but for the interpreter of Triton 3.9.

    It takes a comparison of scalars for a number when it meets a vector, and refuses numbers as masks.
    """
    return tl.where(condition, mask, False)


@triton.jit
def is_inside(pixel, sizes, DIM: tl.constexpr):
    """Whether a pixel lies in an image of these sizes."""
    result = (pixel[0] >= 0) & (pixel[0] < sizes[0])
    for k in tl.static_range(1, DIM):
        result = result & (pixel[k] >= 0) & (pixel[k] < sizes[k])
    return result


@triton.jit
def block_start(pointer, n, c_start, stride_n, stride_c):
    """The first element of a block's first plane."""
    return pointer + n.to(tl.int64) * stride_n + c_start.to(tl.int64) * stride_c


@triton.jit
def pixel_offset(pixel, strides, DIM: tl.constexpr, INDEX: tl.constexpr):
    """Elements from a plane's first pixel to another; INDEX is wide enough for the plane."""
    offset = tl.cast(pixel[1], INDEX) * tl.cast(strides[1], INDEX)
    offset += tl.cast(pixel[0], INDEX) * tl.cast(strides[0], INDEX)
    if DIM == 3:
        offset += tl.cast(pixel[2], INDEX) * tl.cast(strides[2], INDEX)
    return offset


@triton.jit
def group_pointers(start, stride_c, offset, g: tl.constexpr, RUN_C: tl.constexpr):
    """Pointers to group g of a block at the offsets of pixels. A run longer than 1 has a stride_c of 1.

    Offset and step are added before they meet the pointer: then both are one multiply-add on a GPU.
    """
    if RUN_C > 1:
        pointers = start + offset[:, None] + (g * RUN_C + tl.arange(0, RUN_C))[None, :]
    else:
        pointers = (start + tl.cast(stride_c, tl.int64) * g) + offset[:, None]
    return pointers


@triton.jit
def group_mask(mask, channels, g: tl.constexpr, RUN_C: tl.constexpr, EVEN_C: tl.constexpr):
    """The pixels of `mask`, and of group g the channels that exist: `channels` from the block's first."""
    mask = mask[:, None]
    if not EVEN_C:
        mask = mask & (g * RUN_C + tl.arange(0, RUN_C)[None, :] < channels)
    return mask


@triton.jit
def zero_block(GROUPS: tl.constexpr, PIXELS: tl.constexpr, RUN_C: tl.constexpr, DTYPE: tl.constexpr):
    """A block of zeros."""
    block = ()
    for _ in tl.static_range(GROUPS):
        block = block + (tl.zeros((PIXELS, RUN_C), DTYPE),)
    return block


@triton.jit
def load_block(
    start,
    stride_c,
    offset,
    mask,
    channels,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The channels of a block at the offsets of pixels, 0 where masked."""
    block = ()
    for g in tl.static_range(GROUPS):
        pointers = group_pointers(start, stride_c, offset, g, RUN_C)
        group = tl.load(pointers, mask=group_mask(mask, channels, g, RUN_C, EVEN_C), other=0)
        block = block + (group.to(DTYPE),)
    return block


@triton.jit
def store_block(
    start,
    stride_c,
    offset,
    mask,
    channels,
    block,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    EVEN_C: tl.constexpr,
):
    """Write a block at the offsets of pixels, in the dtype of the tensor."""
    element: tl.constexpr = start.dtype.element_ty
    for g in tl.static_range(GROUPS):
        group = block[g]
        if element == tl.uint8:
            group = rounded(group)
        group = group.to(element)
        pointers = group_pointers(start, stride_c, offset, g, RUN_C)
        tl.store(pointers, group, mask=group_mask(mask, channels, g, RUN_C, EVEN_C))


@triton.jit
def rounded(value):
    """To the nearest of 0 to 255, half to even; 0 if it is NaN."""
    value = bounded(value, 0, 255)
    return nearest(tl.floor(value), value - tl.floor(value), 0)


@triton.jit
def load_fill(fill_ptr, stride, c_start, channels, g: tl.constexpr, RUN_C: tl.constexpr, DTYPE: tl.constexpr):
    """The fill values of group g, as [1, run]."""
    c = g * RUN_C + tl.arange(0, RUN_C)
    fill = tl.load(fill_ptr + (c_start + c).to(tl.int64) * stride, mask=c < channels, other=0)
    return fill.to(DTYPE)[None, :]


@triton.jit
def subtract_fill(
    block,
    fill_ptr,
    fill_stride,
    c_start,
    channels,
    GROUPS: tl.constexpr,
    RUN_C: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """A tap that moves outside is replaced by the fill value, so derivatives are of the difference."""
    result = ()
    for g in tl.static_range(GROUPS):
        result = result + (block[g] - load_fill(fill_ptr, fill_stride, c_start, channels, g, RUN_C, DTYPE),)
    return result


@triton.jit
def add_scaled(block, other, weight, GROUPS: tl.constexpr):
    """Block + other * weight, with a weight per pixel."""
    result = ()
    for g in tl.static_range(GROUPS):
        result = result + (block[g] + other[g] * weight[:, None],)
    return result


@triton.jit
def add_rows(sums, rows, ROWS: tl.constexpr):
    """Add vectors to sums, one each."""
    result = ()
    for i in tl.static_range(ROWS):
        result = result + (sums[i] + rows[i],)
    return result


@triton.jit
def dot_channels(block, other, GROUPS: tl.constexpr):
    """Per pixel, the sum over channels of the products of two blocks."""
    total = block[0] * other[0]
    for g in tl.static_range(1, GROUPS):
        total += block[g] * other[g]
    return tl.sum(total, 1)
