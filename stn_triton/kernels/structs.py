"""Named groups of values that kernels and their helpers pass on, instead of one argument each.

`Constants`, called K in the kernels, holds the values that a kernel is compiled for. Kernels make the others.

Triton identifies a compiled helper by the types of its arguments and of their members, but not by the names
of the members. If a helper took two classes with members of equal types, it would be compiled for the first
one, and be silently wrong for the second. So each parameter takes one class; `tests/test_structs.py` checks
this. Properties and methods do not compile, so a constant that follows from others is a member too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Constants(NamedTuple):
    """The values that are known when a kernel is compiled."""

    DIM: int
    """2 for images, 3 for volumes."""
    PROJECTIVE: bool
    DISPLACEMENT: int
    """Code of the displacement that is added to the positions of the matrix, see `displacement.py`."""
    TAPS: int
    """Pixels on each axis that a sample reads: 1 (nearest), 2 (bilinear) or 4 (bicubic)."""
    PADDING: int
    """Code of the padding, which gives the values outside the image, see `taps.py`."""
    ALIGN_CORNERS: bool
    ANTIALIAS: bool
    HAS_INDEX: bool
    """Whether an index says which image each matrix warps."""
    TANGENT: bool
    """Whether the kernel computes the tangent of its usual result."""
    INDEX: tl.dtype
    """Dtype of offsets within a plane."""
    DTYPE: tl.dtype
    """Dtype of coordinates, weights and sums over pixels."""
    SUM: tl.dtype
    """Dtype of a block: DTYPE, or an integer type for label maps, which are copied."""
    MANY: bool
    """Whether an image has several matrices; set only for a gather."""
    NEEDS_THETA: bool
    """Whether a backward also sums the gradient of the matrix."""
    ADDS: int
    """Code of the numbers that a scatter adds to grad_input, see `scatter.py`."""
    EVEN_C: bool
    """Whether the number of channels is a multiple of BLOCK_C."""
    SIDE: int
    """Width and height of the square of pixels that a lane of a gather owns."""
    BLOCK_C: int
    """Channels of a block."""
    STEPS_C: int
    """Blocks of channels that a program processes one after the other."""
    RUN_C: int
    """Channels of a group, side by side in memory, see `block.py`."""
    BLOCK_H: int
    """Rows of a tile."""
    BLOCK_W: int
    """Columns of a tile."""
    ROWS: int
    """Rows of the matrix: one for each axis, and one more for a projective map."""
    GROUPS: int
    """Groups of a block: BLOCK_C / RUN_C."""
    PIXELS: int
    """Length of the vectors of a program: the number of pixels of a tile, or of its squares."""


# Triton passes the constants of a kernel to its hooks as JSON, and turns only a class of this name into text.
Constants.__name__ = "dtype"


def constants(**values: Any) -> Constants:
    """Make all constants: the given ones, and those that follow from them."""
    values["ROWS"] = values["DIM"] + values["PROJECTIVE"]
    values["GROUPS"] = values["BLOCK_C"] // values["RUN_C"]
    values["PIXELS"] = values["BLOCK_H"] * values["BLOCK_W"] // values["SIDE"] ** 2
    if not triton.knobs.runtime.interpret:  # Triton 3.6 and 3.7 do not wrap the members of a struct
        values = {name: tl.constexpr(value) for name, value in values.items()}
    return Constants(**values)


class Image(NamedTuple):
    """A tensor of images or volumes."""

    ptr: object
    stride_n: object
    stride_c: object
    strides: tuple
    """Strides of pixels, in the tensor's order: along z, y, x."""


class Matrix(NamedTuple):
    """A tensor of matrices."""

    ptr: object
    strides: tuple
    """Strides of matrices, rows and columns."""


class Vector(NamedTuple):
    """A tensor of numbers, one for each channel."""

    ptr: object
    stride: object


class Points(NamedTuple):
    """The control points of a displacement."""

    ptr: object
    count: object


class Map(NamedTuple):
    """A matrix in pixels: where each sample of the output lies in the input."""

    a: tuple
    """Entries of the matrix, row by row."""
    scales: tuple
    """Factors by which the entries of theta were multiplied."""
    samples: tuple
    """Samples of an output pixel along each axis."""
    count: object
    """Samples of an output pixel in total."""
    sizes: tuple
    """Sizes of the output, in samples."""


class Window(NamedTuple):
    """The output pixels that a program owns, and their map into the input."""

    m: object
    """Number of the matrix."""
    n: object
    """Number of the image that the matrix warps."""
    exists: object
    """Whether that image exists."""
    c_first: object
    """The first channel."""
    pixels: tuple
    """The pixels, as vectors x, y, z."""
    mask: object
    """Which of these pixels lie in the output."""
    map: Map
    bends: tuple
    """Shifts of the positions by a displacement."""


class Motion(NamedTuple):
    """How a map moves along a tangent."""

    b: tuple
    """The tangent in pixels, row by row."""
    bends: tuple
    """Changes of the displacement along the tangent."""


class Sample(NamedTuple):
    """One sample of each output pixel of a tile."""

    base: tuple
    """Centred output coordinates of the sample."""
    positions: tuple
    """Source positions, along x, y, z."""
    divisor: object
    """Divisor of a projective map."""
    indices: tuple
    """Pixels that the sample reads on each axis; 0 is the first pixel of the image."""
    weights: tuple
    """Weights of these pixels on each axis."""
    slopes: tuple
    """Derivatives of the weights by the position."""


class Adding(NamedTuple):
    """Where a scatter adds its shares, and the factors that turn them into whole numbers."""

    grad_input_ptr: object
    whole_ptr: object
    elements: object
    """Number of elements of grad_input; at whole_ptr there are two numbers for each."""
    scale: tuple
    low_scale: tuple
    most: object
    """Largest magnitude that a share may add to the first of the two numbers."""


class Tile(NamedTuple):
    """The input pixels that a program of a gather owns."""

    origin: tuple
    """The first pixel (x, y)."""
    sizes_in: tuple
    pixels: tuple
    """The pixels, or the first pixels of squares, as vectors x, y."""
    mask: object
    """Which of these pixels lie in the image."""
    numbers: tuple
    """The pixels on each axis, counted from pixel (size - 1)//2 as in `taps.py`, in floating point."""
    halves: tuple
    """The fractional parts of (size - 1)/2."""
    lows: tuple
    """The first pixel of each axis of the image, counted like `numbers`."""
    highs: tuple
    """The last pixel of each axis of the image, counted like `numbers`."""
    at_edge: object
    """Whether the tile contains first or last pixels of an axis."""


class Visit(NamedTuple):
    """A candidate of a gather: an output pixel that may sample pixels of a square."""

    u: object
    """Centred column of the output pixel."""
    hits: tuple
    """Which pixels of the square are sampled, row by row."""
    weights: tuple
    """Weights of the pixels on each axis. Like `slopes`, meaningless where a pixel is not hit."""
    slopes: tuple


class Plane(NamedTuple):
    """Channels of one image, beginning with the first channel of a block."""

    start: object
    """Pointer to the first pixel of the first channel."""
    stride_c: object
    strides: tuple
    """Strides of pixels, as in `Image`."""
