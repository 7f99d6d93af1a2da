"""Calls that launch any variant of the kernels, to compile; as a program, what some of them compile to.

The arguments are CPU tensors of which only shapes and strides matter. Run by test_static.py, where Triton
does not interpret: prints a line of JSON per kernel.
"""

import itertools
import json
import math
import mmap

import torch

import stn_triton
from perf.kernels import ahead, compiled
from stn_triton.check.engine import deterministic
from stn_triton.options import MODES, PADDING_MODES

_MAP_NORESERVE = 0x4000  # a flag of Linux; Python's mmap has no name for it before 3.13
_POINTS = (2, 3)


def run(
    mode="bilinear",
    padding_mode="zeros",
    dim=2,
    kind="affine",
    matrices="one each",
    has_tangents=False,
    dtype=torch.float32,
    channels=4,
    layout="NCHW",
    is_far=False,
    is_exact=False,
):
    """Sample, then differentiate by each set of arguments for which a user may want gradients.

    Args:
        mode, padding_mode, dtype: as the operator's.
        dim: 2 for images, 3 for volumes.
        kind: affine, antialias, projective or spline.
        matrices: many is a theta of (N, K, ...), index gives two per image by an ``image_index``.
        has_tangents: whether to take second derivatives, which launch the kernels of tangents.
        channels: of the images.
        layout: NCHW or channels_last.
        is_far: whether rows lie so far apart that an offset within an image takes 64 bits.
        is_exact: whether scattered values are added as whole numbers.
    """

    def image(*shape):
        if is_far:
            return far(shape, dtype, layout)
        last = torch.channels_last if dim == 2 else torch.channels_last_3d
        form = last if layout == "channels_last" else torch.contiguous_format
        return torch.empty(shape, dtype=dtype, memory_format=form)

    images, count = 4, 4 if matrices == "one each" else 8
    input = image(images, channels, *((64, 96) if dim == 2 else (8, 32, 48)))
    keywords = {"mode": mode, "padding_mode": padding_mode, "align_corners": False}
    function, matrix = stn_triton.affine_grid_sample, (dim, dim + 1)
    if kind == "projective":
        function, matrix = stn_triton.perspective_grid_sample, (3, 3)
    elif kind == "spline":
        function, matrix = stn_triton.thin_plate_spline_grid_sample, (math.prod(_POINTS), 2)
        keywords["points"] = _POINTS
    elif kind == "antialias":
        keywords["antialias"] = True
    theta = torch.zeros(count, *matrix, dtype=torch.promote_types(dtype, torch.float32))
    fill = None
    if padding_mode == "fill":
        step = 2 if is_far else 1
        keywords["fill_value"] = fill = torch.zeros(step * channels, dtype=theta.dtype)[::step]
    if matrices == "many":
        theta = theta.unflatten(0, (images, -1))
    elif matrices == "index":
        keywords["image_index"] = torch.arange(count) % images
    for wanted in ([input, theta, fill], [input], [theta]):
        leaves = [tensor for tensor in wanted if tensor is not None]
        for tensor in (input, theta, fill):
            if tensor is not None:
                tensor.requires_grad_(any(tensor is leaf for leaf in leaves))
        output = function(input, theta, **keywords)
        grad = image(count, *output.shape[-dim - 1 :]).view_as(output).requires_grad_(has_tangents)
        with deterministic(is_exact):
            grads = torch.autograd.grad(output, leaves, grad, create_graph=has_tangents)
            if has_tangents:
                # A gradient of fill values has one axis; its direction is expanded, as `sum` leaves it.
                blank = [torch.empty_like(g) if g.ndim > 1 else g.new_empty(()).expand_as(g) for g in grads]
                torch.autograd.grad(grads, (grad, *leaves), blank, allow_unused=True)


def far(shape, dtype, layout):
    """Return an image whose planes span over 2^31 elements: addresses without memory behind them."""
    row, n, c, *pixel, w = len(shape) - 2, *range(len(shape) - 2), len(shape) - 1
    strides, extent = [0] * len(shape), 1
    for axis in (w, *pixel, c, n) if layout == "NCHW" else (c, w, *pixel, n):
        strides[axis], extent = extent, extent * shape[axis]
    strides[row] = 2**31 // shape[row]
    size = extent + 2**31
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, size * dtype.itemsize, flags), dtype=dtype)
    return memory.as_strided(shape, strides)


def main():
    """Compile a sample of all modes, paddings, dimensions, kinds of maps and ways to share images."""
    kinds, matrices = ("affine", "antialias", "projective", "spline"), ("one each", "many", "index")
    # In turns, so that the sample has each of them.
    looks = itertools.cycle(
        [(64, "channels_last", torch.bfloat16), (3, "NCHW", torch.float16), (16, "NCHW", torch.float64)]
    )
    product = itertools.product(MODES, PADDING_MODES, (2, 3), kinds, matrices, (False, True))
    exist = [c for c in product if c[2] == 2 or (c[0] != "bicubic" and c[3] in kinds[:2])]
    for call, (channels, layout, dtype) in zip(exist[::83], looks, strict=False):
        look = {"channels": channels, "layout": layout, "dtype": dtype}
        for made in ahead.compile_call(lambda call=call, look=look: run(*call, **look), ("cuda", 90, 32)):
            facts = compiled.described(made.kernel, "sm_90")
            print(json.dumps({"arch": "sm_90", "kernel": made.name, **facts}))


if __name__ == "__main__":
    main()
