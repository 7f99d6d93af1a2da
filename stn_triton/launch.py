"""From tensors to kernel launches: layouts, strides, index width, grid and device.

Nothing here waits for the GPU. Inputs are read through their strides, never copied. CPU tensors run in
Triton's interpreter (``TRITON_INTERPRET=1``), which is how the kernels are tested without a GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stn_triton import splines, tuning
from stn_triton.kernels import boxes, taps
from stn_triton.kernels.backward import backward_kernel
from stn_triton.kernels.forward import forward_kernel
from stn_triton.kernels.parameters import fill_kernel, theta_kernel
from stn_triton.kernels.scatter import scatter_kernel
from stn_triton.options import DEFAULT, PADDING_MODES, Options, Tangents, is_projective
from stn_triton.reference import coordinate_dtype, memory_format

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
PADDINGS = {
    name: code.value
    for name, code in zip(PADDING_MODES, (taps.ZEROS, taps.BORDER, taps.REFLECTION, taps.FILL), strict=True)
}
_MAX_PROGRAMS = 2**31 - 1
# Of `reach_kernel`, whose tiles are fixed.
REACH_OPTIONS = {"enable_fp_fusion": True, "num_warps": 4}


def forward(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    options: Options = DEFAULT,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    tangents: Tangents | None = None,
) -> Tensor:
    """Sample (N, C, ...) at theta (M, ...): (M, C, *size), in the input's memory format.

    With ``tangents``, the tangent of that. The theta of a spline is its matrix, (M, 2, 3 + P).
    """
    shape = (theta.shape[0], input.shape[1], *size)
    output = torch.empty(
        shape, dtype=input.dtype, device=input.device, memory_format=memory_format(input, size)
    )
    if output.numel() == 0:
        return output
    if input.shape[0] == 0:  # an index has no image to name
        return output.fill_(0 if output.dtype == torch.uint8 else math.nan)
    arguments = _arguments(input, theta, size, options, fill, image_index, tangents, output=output)
    flags = _flags(arguments, ("output", "input", "input_tangent"), options)
    _launch("forward", forward_kernel, output, arguments, flags, options)
    return output


def backward(
    grad_output: Tensor,
    input: Tensor,
    theta: Tensor,
    options: Options = DEFAULT,
    output_mask: Sequence[bool] = (True, True, False),
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    tangents: Tangents | None = None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input, theta and fill; None for one that ``output_mask`` leaves out."""
    needs_input, needs_theta, needs_fill = output_mask
    grad_input = grad_theta = grad_fill = None
    is_scattered = bool(options.points) and not torch.are_deterministic_algorithms_enabled()
    if needs_input:
        form = memory_format(input, input.shape[2:])
        dtype = coordinate_dtype(input.dtype) if is_scattered else input.dtype
        grad_input = torch.empty_like(input, dtype=dtype, memory_format=form)
    if grad_output.numel() == 0 or input.shape[0] == 0:
        return (
            grad_input.zero_().to(input.dtype) if needs_input else None,
            theta.new_zeros(theta.shape) if needs_theta else None,
            fill.new_zeros(fill.shape) if needs_fill else None,
        )
    if needs_theta and options.mode == "nearest":
        grad_theta = theta.new_zeros(theta.shape)
        needs_theta = False
    size = grad_output.shape[2:]
    arguments = _arguments(input, theta, size, options, fill, image_index, tangents, grad_output=grad_output)
    if needs_input and is_scattered:
        arguments_here = {**arguments, **_tensor("grad_input", grad_input)}
        flags = _flags(arguments_here, ("grad_output", "grad_input"), options)
        _launch("scatter", scatter_kernel, grad_output, arguments_here, flags, options)
        grad_input = grad_input.to(input.dtype)
    elif needs_input:
        # Sums over one matrix fit into the gather only if it has the image for itself.
        is_many = image_index is not None or theta.shape[0] != input.shape[0]
        is_spline = bool(options.points)
        is_fused = needs_theta and not is_many and not is_spline and tangents is None
        starts, order = (None, None) if image_index is None else _by_image(image_index, input.shape[0])
        gathered = {"starts_ptr": starts, "order_ptr": order, **_tensor("grad_input", grad_input)}
        arguments_here = {**arguments, **gathered}
        flags = _flags(arguments_here, ("grad_output", "input", "grad_input"), options)
        flags.update(MANY=is_many and not is_spline, NEEDS_THETA=is_fused)
        if is_spline:
            arguments_here.update(_boxes(arguments_here, flags))
        name = "backward" if is_fused else "backward_input"
        kernel = boxes.boxes_kernel if is_spline else backward_kernel
        partial = _launch(name, kernel, grad_input, arguments_here, flags, options)
        if is_fused:
            grad_theta = _total(partial, theta)
            needs_theta = False
    if needs_theta:
        flags = _flags(arguments, ("grad_output", "input", "input_tangent"), options)
        grad_theta = _total(_launch("theta", theta_kernel, grad_output, arguments, flags, options), theta)
    if needs_fill:
        flags = _flags(arguments, ("grad_output",), options)
        partial = _launch("fill", fill_kernel, grad_output, arguments, flags, options)
        grad_fill = partial.sum((0, 2), dtype=torch.float64).flatten()[: len(fill)].to(fill.dtype)
    return grad_input, grad_theta, grad_fill


def _total(partial: Tensor, theta: Tensor) -> Tensor:
    """The order of torch.sum is fixed, and in fp64 it adds no error; there is little to add."""
    return partial.view(len(theta), -1, *theta.shape[1:]).sum(1, dtype=torch.float64).to(theta.dtype)


def _boxes(arguments: dict[str, object], flags: dict[str, object]) -> dict[str, Tensor]:
    """Of each tile and chunk of the output, the box of the input pixels that it samples."""
    theta, kernel = arguments["theta_ptr"], boxes.reach_kernel
    sides = [tile.value * boxes.TILES.value for tile in (boxes.TILE_H, boxes.TILE_W)]
    chunks = -(-arguments["H_out"] // sides[0]) * -(-arguments["W_out"] // sides[1])
    shapes = {
        "boxes_ptr": (len(theta), chunks, 4, boxes.LANES.value),
        "chunk_boxes_ptr": (len(theta), 4, chunks),
    }
    _check_programs(len(theta) * chunks, "size", arguments["grad_output_ptr"])
    found = {name: theta.new_empty(shape, dtype=torch.int32) for name, shape in shapes.items()}
    known = {key: value for key, value in {**arguments, **flags}.items() if key in kernel.arg_names}
    if not theta.is_meta:
        with _device_of(theta):
            kernel[(len(theta) * chunks,)](**found, **known, **REACH_OPTIONS)
    return found


def _by_image(image_index: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Where the matrices of each image start in the order of images, and that order; on the device."""
    index, order = torch.sort(image_index, stable=True)
    return torch.searchsorted(index, torch.arange(images + 1, device=index.device)), order


def _arguments(
    input: Tensor,
    theta: Tensor,
    size: Sequence[int],
    options: Options,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Tangents | None,
    **tensors: Tensor,
) -> dict[str, object]:
    """What the kernels of a call may ask for, by the names of their parameters."""
    d_in, h_in, w_in = (1, *input.shape[2:])[-3:]
    d_out, h_out, w_out = (1, *size)[-3:]
    moved = (None, None, None) if tangents is None else tangents
    points = None
    if options.points:
        points = splines.centres(options.points, input.device, coordinate_dtype(input.dtype))
    arguments = {
        "image_index_ptr": None if image_index is None else image_index.contiguous(),
        "images": input.shape[0],
        "per_image": theta.shape[0] // input.shape[0],
        "points_ptr": points,
        "point_count": 0 if points is None else len(points),
        "C": input.shape[1],
        "D_in": d_in,
        "H_in": h_in,
        "W_in": w_in,
        "D_out": d_out,
        "H_out": h_out,
        "W_out": w_out,
    }
    for name, tensor in {"input": input, "input_tangent": moved[0], **tensors}.items():
        arguments.update(_tensor(name, tensor))
    for name, tensor in {"theta": theta, "theta_tangent": moved[1]}.items():
        strides = zip(("n", "row", "column"), (0, 0, 0) if tensor is None else tensor.stride(), strict=True)
        arguments[f"{name}_ptr"] = tensor
        arguments.update({f"{name}_stride_{axis}": stride for axis, stride in strides})
    for name, tensor in {"fill": fill, "fill_tangent": moved[2]}.items():
        arguments[f"{name}_ptr"] = tensor
        arguments[f"{name}_stride"] = 0 if tensor is None else tensor.stride(0)
    return arguments


def _tensor(name: str, tensor: Tensor | None) -> dict[str, object]:
    """A tensor of images and its strides by axis; an image has no stride of slices."""
    n, c, *pixel = (0,) * 5 if tensor is None else tensor.stride()
    strides = zip("ncdhw", (n, c, *(0, *pixel)[-3:]), strict=True)
    return {f"{name}_ptr": tensor, **{f"{name}_stride_{axis}": stride for axis, stride in strides}}


def _flags(arguments: dict[str, object], names: Sequence[str], options: Options) -> dict[str, object]:
    """The constexprs that do not depend on block sizes; ``names`` are the images that a kernel accesses."""
    input = arguments["input_ptr"]
    images = [arguments[f"{name}_ptr"] for name in names]
    return {
        "DIM": input.ndim - 2,
        "PROJECTIVE": is_projective(arguments["theta_ptr"].shape),
        "SPLINE": bool(options.points),
        "TAPS": options.taps(),
        "PADDING": PADDINGS[options.padding_mode],
        "ALIGN_CORNERS": options.align_corners,
        "ANTIALIAS": options.antialias,
        "HAS_INDEX": arguments["image_index_ptr"] is not None,
        "TANGENT": arguments["theta_tangent_ptr"] is not None,
        "INDEX": tl.int64 if any(_plane_extent(t) >= 2**31 for t in images if t is not None) else tl.int32,
        "DTYPE": _TRITON_DTYPES[coordinate_dtype(input.dtype)],
    }


def _plane_extent(tensor: Tensor) -> int:
    """Elements that an offset of a pixel spans, four pixels beyond the plane included."""
    return sum((n + 4) * stride for n, stride in zip(tensor.shape[2:], tensor.stride()[2:], strict=True))


def compile_options(
    bucket: tuning.Bucket, config: tuning.Config, is_hip: bool = torch.version.hip is not None
) -> dict[str, object]:
    """How to compile a bucket's kernel in a configuration.

    Weighted sums may contract (coordinates are fixed by explicit FMAs); Triton's own default is to change.
    ptxas left to itself sometimes aims at fewer registers than a kernel needs and spills a few: the gather,
    theta's sums of whole vectors, whatever samples more than once per pixel, and fp64. The plain gather fits
    into 168, which is twelve warps on a multiprocessor; for the others a limit that does not bind keeps ptxas
    from its own. AMD's warps have 64 lanes.
    """
    if bucket.kernel == "reach":
        return dict(REACH_OPTIONS)
    options: dict[str, object] = {"enable_fp_fusion": True, "num_warps": config["num_warps"]}
    if is_hip:
        return {**options, "num_warps": max(config["num_warps"] // 2, 1)}
    is_gather, flags = bucket.kernel.startswith("backward"), bucket.variant.split("-")
    needs_many = bucket.is_heavy() and (is_gather or "antialias" in flags)
    if needs_many or bucket.dtype == "float64":
        options["maxnreg"] = 255
    elif is_gather:
        options["maxnreg"] = 168
    elif bucket.kernel == "theta" and bucket.lane() > 1:
        options["maxnreg"] = 128
    return options


def _check_programs(programs: int, argument: str, tiled: Tensor) -> None:
    if programs > _MAX_PROGRAMS:
        what, each = ("input", "images") if argument == "input" else ("output", "thetas")
        raise ValueError(
            f"{argument} must give at most {_MAX_PROGRAMS} tiles in one launch, got {programs} for an {what} "
            f"of shape {tuple(tiled.shape)}; call with fewer {each} or channels at a time"
        )


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _launch(
    name: str,
    kernel: triton.JITFunction,
    tiled: Tensor,
    arguments: dict[str, object],
    flags: dict[str, object],
    options: Options,
) -> Tensor | None:
    """Run a kernel over tiles of ``tiled``, with those arguments that it takes.

    Returns what its programs leave to be summed, if anything.
    """
    arguments = {key: arguments[key] for key in kernel.arg_names if key in arguments}
    n, c, *pixels = tiled.shape
    depth, height, width = (1, *pixels)[-3:]
    images = (t for t in arguments.values() if isinstance(t, Tensor) and t.ndim == tiled.ndim)
    # A gather by boxes has pixels in all lanes, whatever the layout.
    channels_last = kernel is not boxes.boxes_kernel and all(t.stride(1) == 1 for t in images)
    shape = (flags["DIM"], flags["PROJECTIVE"], flags.get("MANY", False), flags["TANGENT"])
    # Of the points only whether there are any: the rest would fill the cache.
    variant = tuning.variant_of(*shape, options._replace(points=options.points[:2]))
    bucket = tuning.bucket_of(name, variant, channels_last, tiled.dtype, n * depth, c, height * width)
    dtype = coordinate_dtype(tiled.dtype)
    entries = arguments["theta_ptr"].shape[1] * arguments["theta_ptr"].shape[2]

    def run(config: tuning.Config) -> Tensor | None:
        extents = (height, config["BLOCK_H"]), (width, config["BLOCK_W"])
        tiles = depth * math.prod(-(-size // block) for size, block in extents)
        blocks_c = -(-c // (config["BLOCK_C"] * config["STEPS_C"]))
        programs = n * blocks_c * tiles
        _check_programs(programs, "input" if name.startswith("backward") else "size", tiled)
        partial = None
        if name == "fill":
            partial = tiled.new_empty((n, blocks_c, tiles, config["BLOCK_C"]), dtype=dtype)
        elif name not in ("forward", "scatter"):
            rows = 0 if name == "backward_input" else programs
            partial = tiled.new_empty((rows, entries), dtype=dtype)
        if tiled.is_meta:  # a dry run, to learn which kernels a call launches
            return partial
        leading = {"partial_ptr": partial} if "partial_ptr" in kernel.arg_names else {}
        if name == "scatter":  # it adds; tuning launches it many times
            arguments["grad_input_ptr"].zero_()
        kernel[(programs,)](
            **leading,
            **arguments,
            **{key: value for key, value in {**flags, **config}.items() if key in kernel.arg_names},
            EVEN_C=c % config["BLOCK_C"] == 0,
            **compile_options(bucket, config),
        )
        return partial

    with _device_of(tiled):
        return run(tuning.configuration(bucket, tiled.device, run))
