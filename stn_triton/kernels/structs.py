"""What kernels and their helpers hand on by name, instead of one argument each.

`Constants`, K in the kernels, holds what a kernel is compiled for. The others are made in kernels.

Triton names a compiled helper by the types of its arguments, also of the members of structs, but not by their
names. A helper that takes two classes with members of equal types would be compiled for the first, and be
silently wrong for the second. So each parameter of a helper takes one class; `tests/test_structs.py` checks
this. Properties and methods do not compile: what follows from other constants is a member too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Constants(NamedTuple):
    """What is known when a kernel is compiled."""

    DIM: int
    """2 for images, 3 for volumes."""
    PROJECTIVE: bool
    DISPLACEMENT: int
    """What is added to the positions of the matrix, see `displacement.py`."""
    TAPS: int
    """Pixels on each axis that a sample reads: 1 (nearest), 2 (bilinear) or 4 (bicubic)."""
    PADDING: int
    """What lies outside, see `taps.py`."""
    ALIGN_CORNERS: bool
    ANTIALIAS: bool
    HAS_INDEX: bool
    """Whether an index says which image each matrix warps."""
    TANGENT: bool
    """Whether the kernel computes the tangent of what it computes else."""
    INDEX: tl.dtype
    """Of offsets within a plane."""
    DTYPE: tl.dtype
    """Of coordinates, weights and sums over pixels."""
    SUM: tl.dtype
    """Of a block: DTYPE, or whole numbers for label maps, which are copied."""
    MANY: bool
    """Of a gather: whether an image has several matrices."""
    NEEDS_THETA: bool
    """Whether a backward also sums the gradient of the matrix."""
    ADDS: int
    """What a scatter adds to grad_input, see `scatter.py`."""
    EVEN_C: bool
    """Whether the channels are a multiple of BLOCK_C."""
    SIDE: int
    """Width and height of the square of pixels that a lane of a gather owns."""
    BLOCK_C: int
    """Channels of a block."""
    STEPS_C: int
    """Blocks of channels that a program goes through one after the other."""
    RUN_C: int
    """Channels of a group, side by side in memory, see `block.py`."""
    BLOCK_H: int
    """Rows of a tile."""
    BLOCK_W: int
    """Columns of a tile."""
    ROWS: int
    """Rows of the matrix: one for each axis, and a projective map's last."""
    GROUPS: int
    """Groups of a block: BLOCK_C / RUN_C."""
    PIXELS: int
    """Length of the vectors of a program: the pixels of a tile, or its squares."""


# Triton gives its hooks the constants of a kernel as JSON, where only a class of this name becomes text.
Constants.__name__ = "dtype"


def constants(**values: Any) -> Constants:
    """All constants, from those that do not follow from others."""
    values["ROWS"] = values["DIM"] + values["PROJECTIVE"]
    values["GROUPS"] = values["BLOCK_C"] // values["RUN_C"]
    values["PIXELS"] = values["BLOCK_H"] * values["BLOCK_W"] // values["SIDE"] ** 2
    if not triton.knobs.runtime.interpret:  # Triton 3.6 and 3.7 do not wrap what they read from a struct
        values = {name: tl.constexpr(value) for name, value in values.items()}
    return Constants(**values)


class Image(NamedTuple):
    """A tensor of images or volumes."""

    ptr: object
    stride_n: object
    stride_c: object
    strides: tuple
    """Of pixels, in the tensor's order: along z, y, x."""


class Matrix(NamedTuple):
    """A tensor of matrices."""

    ptr: object
    strides: tuple
    """Of matrices, rows and columns."""


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
    """Its entries, row by row."""
    scales: tuple
    """What the entries of theta were multiplied by."""
    samples: tuple
    """Samples of an output pixel along each axis."""
    count: object
    """Samples of an output pixel in all."""
    sizes: tuple
    """Of the output, in samples."""


class Window(NamedTuple):
    """What a program that owns output pixels works on, and the map that says what they sample."""

    m: object
    """The matrix."""
    n: object
    """The image that it warps."""
    exists: object
    """Whether there is such an image."""
    c_first: object
    """The first channel."""
    pixels: tuple
    """The pixels, as vectors x, y, z."""
    mask: object
    """Which of them the output has."""
    map: Map
    bends: tuple
    """What a displacement adds to their positions."""


class Motion(NamedTuple):
    """How a map moves along a tangent."""

    b: tuple
    """The tangent in pixels, row by row."""
    bends: tuple
    """How the displacement moves."""


class Sample(NamedTuple):
    """One sample of each output pixel of a tile."""

    base: tuple
    """Its centred output coordinates."""
    positions: tuple
    """Its source positions, along x, y, z."""
    divisor: object
    """What a projective map divides by."""
    indices: tuple
    """Of each axis, the pixels that it reads; whole numbers from 0 on in the image."""
    weights: tuple
    """Of each axis, their weights."""
    slopes: tuple
    """The derivatives of the weights by the position."""


class Adding(NamedTuple):
    """Where a scatter adds shares, and what it multiplies them with to make whole numbers of them."""

    grad_input_ptr: object
    whole_ptr: object
    elements: object
    """Elements of grad_input: whole_ptr has two numbers for each."""
    scale: tuple
    low_scale: tuple
    most: object
    """The largest number that the first of the two may get from a share."""


class Tile(NamedTuple):
    """The input pixels that a program of a gather owns."""

    origin: tuple
    """The first pixel (x, y)."""
    sizes_in: tuple
    pixels: tuple
    """The pixels, or the first ones of squares, as vectors x, y."""
    mask: object
    """Which of them the image has."""
    numbers: tuple
    """On each axis, counted from pixel (size - 1)//2 as in `taps.py`, as floating-point numbers."""
    halves: tuple
    """The fractional parts of (size - 1)/2."""
    lows: tuple
    """The first pixel of each axis, counted so."""
    highs: tuple
    """The last pixel of each axis."""
    at_edge: object
    """Whether the tile has first or last pixels of an axis."""


class Visit(NamedTuple):
    """A candidate of a gather: an output pixel that may sample pixels of a square."""

    u: object
    """Its centred column."""
    hits: tuple
    """Which pixels it does sample, row by row."""
    weights: tuple
    """Of the pixels on each axis; mean nothing where a pixel is not hit, as do `slopes`."""
    slopes: tuple


class Plane(NamedTuple):
    """Channels of one image, from the first of a block on."""

    start: object
    """The first pixel of the first channel."""
    stride_c: object
    strides: tuple
    """Of pixels, as those of `Image`."""
