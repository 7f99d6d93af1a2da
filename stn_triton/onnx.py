"""ONNX export: the operator as the standard operators ``AffineGrid`` and ``GridSample``.

Not imported by ``import stn_triton``: it needs ``onnxscript``, as ``torch.onnx.export`` does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from onnxscript import evaluator, ir
from onnxscript import opset20 as op

from stn_triton import ops
from stn_triton.contract import ROUNDING
from stn_triton.decomposition import FAR, check_exportable
from stn_triton.options import is_projective

_MODES = {"bilinear": "linear", "nearest": "nearest", "bicubic": "cubic"}
# Dtypes with values that a float cannot hold. Runtimes sample floats and doubles only.
_WIDE = (ir.DataType.DOUBLE, ir.DataType.INT32, ir.DataType.INT64)


def translation_table() -> dict[torch._ops.OpOverload, Callable]:
    """Make the table with which ``torch.onnx.export`` translates the operator of this library.

    Pass it as ``custom_translation_table``, with ``dynamo=True`` and ``opset_version`` 20 (the default) or
    newer. Everything but the cases below is translated: images and volumes, all modes, theta of every shape
    and dtype, ``image_index``, homographies, uint8, labels up to 2**53, static and dynamic sizes. Several
    matrices per image do not copy it; ``image_index`` copies images (``Gather``). Coordinates are computed
    in fp32 (fp64 for an fp64 input), as eagerly, but in fp64 for labels of 32 and 64 bits. The runtime
    decides what an infinite or NaN theta and an ``image_index`` out of range give.

    Returns:
        A new dict with one entry, for ``torch.ops.stn_triton.affine_grid_sample.default``. You may add more.

    Raises:
        torch.onnx.OnnxExporterError: raised by ``torch.onnx.export``; the message says which of these the
            model uses: ``antialias=True``, whose number of samples depends on the values of theta;
            ``padding_mode="wrap"``, which ``GridSample`` does not have; a thin plate spline; or an
            ``opset_version`` below 20, which has no ``AffineGrid``.

    Example:
        >>> import torch, stn_triton, stn_triton.onnx
        >>> class Warp(torch.nn.Module):
        ...     def forward(self, images, theta):
        ...         return stn_triton.affine_grid_sample(images, theta, (6, 6))
        >>> program = torch.onnx.export(
        ...     Warp().eval(),
        ...     (torch.rand(3, 2, 8, 8), torch.rand(3, 2, 3)),
        ...     dynamo=True,
        ...     custom_translation_table=stn_triton.onnx.translation_table(),
        ...     verbose=False,
        ... )
        >>> [node.op_type for node in program.model.graph]
        ['AffineGrid', 'Clip', 'GridSample']
    """
    # Without annotations the exporter passes all arguments on as they are.
    signature = ops.SIGNATURES[ops.affine_grid_sample]
    return {ops.affine_grid_sample: lambda *values: _translate(*signature.packed(values))}


def _translate(input, theta, fill, image_index, size, options):
    """The nodes of one call. Sizes are ints where they are known, and values of the graph elsewhere."""
    opset_version = evaluator.default().opset.version
    if opset_version < 20:
        raise ValueError(f"opset_version must be at least 20 for stn_triton, got {opset_version}")
    padding = check_exportable(options)
    if options.points:
        raise NotImplementedError(
            "thin_plate_spline_grid_sample cannot be exported to ONNX by this exporter, but by "
            "torch.onnx.export(..., dynamo=False)"
        )
    dtype = ir.DataType.DOUBLE if input.dtype in _WIDE else ir.DataType.FLOAT
    images = _cast(input, dtype)
    n, channels, *size_in = (_extent(input, axis) for axis in range(len(input.shape)))
    is_one_each = image_index is not None or input.shape[0] == theta.shape[0]
    if image_index is not None:
        n = _extent(theta, 0)
        images = op.Gather(images, image_index, axis=0)
    grid, is_seen = _grid(theta, size, options.align_corners, dtype)
    if not padding.repeats:
        grid = op.Clip(grid, *(op.CastLike(bound, grid) for bound in (-FAR, FAR)))
    if not is_one_each:
        # The grids of an image are stacked along its rows, so that it is not copied.
        grid = op.Reshape(grid, [n, -1, *size[1:], len(size)])

    def sample(images, channels):
        output = op.GridSample(
            images,
            grid,
            mode=_MODES[options.mode],
            padding_mode=padding.sampler,
            align_corners=int(options.align_corners),
        )
        if not is_one_each:
            output = op.Reshape(output, [n, channels, -1, *size])
            output = op.Transpose(output, perm=[0, 2, 1, *range(3, 3 + len(size))])
            output = op.Reshape(output, [-1, channels, *size])
        return output if is_seen is None else op.Where(is_seen, output, op.CastLike(0.0, output))

    output = sample(images, channels)
    if fill is not None:
        ones = op.Expand(op.CastLike(1.0, images), [n, 1, *size_in])
        output = op.Add(output, _filled(sample(ones, 1), _cast(fill, dtype), dtype, len(size)))
    if input.dtype == ir.DataType.UINT8:
        output = op.Clip(op.Round(output), 0.0, 255.0)
    return output if input.dtype == dtype else op.Cast(output, to=input.dtype)


def _grid(theta, size, align_corners, dtype):
    """Normalised positions (M, *size, D), and for a projective map where it samples, (M, 1, *size)."""
    dim = len(size)
    matrices = _cast(theta, dtype)
    if align_corners:
        # Output positions with align_corners are those without times n / (n - 1). AffineGrid's align_corners
        # is not used: for n = 1 its position is -1, PyTorch's is 0. The translation has a factor of 1.
        n = op.Cast([*reversed(size), 1], to=dtype)
        one = op.CastLike(1.0, n)
        matrices = op.Mul(matrices, op.Div(n, op.Max(op.Sub(n, one), one)))

    def affine(matrices):
        return op.AffineGrid(matrices, [_extent(theta, 0), 1, *size], align_corners=0)

    if not is_projective(theta.shape):
        return affine(matrices), None
    # Both coordinates of this grid are Z, the third homogeneous coordinate.
    divisor = affine(op.Gather(matrices, [dim, dim], axis=1))
    is_seen = op.Greater(divisor, op.CastLike(0.0, divisor))
    divisor = op.Where(is_seen, divisor, op.CastLike(1.0, divisor))
    positions = op.Div(affine(op.Gather(matrices, [0, 1], axis=1)), divisor)
    return positions, op.Unsqueeze(op.Gather(is_seen, 0, axis=-1), [1])


def _filled(coverage, fill, dtype, dim):
    """The share of the fill values (C,) in each sample: 1 minus the weight of its taps in the image."""
    rest = op.Sub(op.CastLike(1.0, coverage), coverage)
    eps = torch.finfo(torch.float64 if dtype == ir.DataType.DOUBLE else torch.float32).eps
    is_rounding = op.LessOrEqual(op.Abs(rest), op.CastLike(ROUNDING * eps, rest))
    fills = op.Unsqueeze(fill, list(range(1, dim + 1)))
    return op.Where(is_rounding, op.CastLike(0.0, rest), op.Mul(rest, fills))


def _cast(tensor, dtype):
    return tensor if tensor.dtype == dtype else op.Cast(tensor, to=dtype)


def _extent(tensor, axis):
    extent = tensor.shape[axis]
    return extent if isinstance(extent, int) else op.Shape(tensor, start=axis, end=axis + 1)
