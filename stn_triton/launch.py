"""From tensors to kernel launches: layouts, strides, index width, grid and device.

Nothing here waits for the GPU. CPU tensors run in Triton's interpreter (``TRITON_INTERPRET=1``), which is how
the kernels are tested without a GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from stn_triton import plans, splines, tuning
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
_SECTOR = 32
"""Bytes that a GPU reads at once."""
# Of `reach_kernel`, whose tiles are fixed.
REACH_OPTIONS = {"enable_fp_fusion": True, "num_warps": 4}
_HERE = contextlib.nullcontext()
Tensors = dict[str, Tensor | None]
"""The tensors of a call, by the names of the kernels' parameters."""


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
    tensors = _tensors(input, theta, options, fill, image_index, tangents)
    facts = ("forward", tuple(size), options, *plans.facts_of(tensors.values()))
    plan = plans.planned(facts, input.device, lambda: _Forward(tensors, size, options))
    with _device_of(input):
        return plan(tensors)


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
    tensors = _tensors(input, theta, options, fill, image_index, tangents)
    tensors["grad_output_ptr"] = grad_output
    is_scattered = bool(options.points) and not torch.are_deterministic_algorithms_enabled()
    kind = ("backward", tuple(output_mask), is_scattered, options)
    facts = (*kind, *plans.facts_of(tensors.values()))
    plan = plans.planned(facts, input.device, lambda: _Backward(tensors, options, output_mask, is_scattered))
    with _device_of(input):
        return plan(tensors)


def _tensors(
    input: Tensor,
    theta: Tensor,
    options: Options,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Tangents | None,
) -> Tensors:
    moved = (None, None, None) if tangents is None else tangents
    points = None
    if options.points:
        points = splines.centres(options.points, input.device, coordinate_dtype(input.dtype))
    return {
        "input_ptr": input,
        "theta_ptr": theta,
        "fill_ptr": fill,
        "image_index_ptr": None if image_index is None else image_index.contiguous(),
        "points_ptr": points,
        "input_tangent_ptr": moved[0],
        "theta_tangent_ptr": moved[1],
        "fill_tangent_ptr": moved[2],
        "partial_ptr": None,
        "starts_ptr": None,
        "order_ptr": None,
    }


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)


class _Forward:
    """The plan of a forward call."""

    def __init__(self, tensors: Tensors, size: Sequence[int], options: Options) -> None:
        input, theta = tensors["input_ptr"], tensors["theta_ptr"]
        self._shape = (theta.shape[0], input.shape[1], *size)
        self._form = memory_format(input, size)
        self._copies = _form_to_copy_to(tensors["input_tangent_ptr"], input)
        self._sample = _Step("forward", forward_kernel, ("output", "input", "input_tangent"), options)

    def __call__(self, tensors: Tensors) -> Tensor:
        input = tensors["input_ptr"]
        output = torch.empty(self._shape, dtype=input.dtype, device=input.device, memory_format=self._form)
        if output.numel() == 0:
            return output
        if input.shape[0] == 0:  # an index has no image to name
            return output.fill_(0 if output.dtype == torch.uint8 else math.nan)
        if self._copies is not None:
            moved = tensors["input_tangent_ptr"].contiguous(memory_format=self._copies)
            tensors = {**tensors, "input_tangent_ptr": moved}
        tensors["output_ptr"] = output
        self._sample(tensors)
        return output


class _Backward:
    """The plan of a backward call."""

    def __init__(self, tensors: Tensors, options: Options, mask: Sequence[bool], is_scattered: bool) -> None:
        input, theta = tensors["input_ptr"], tensors["theta_ptr"]
        grad_output, image_index = tensors["grad_output_ptr"], tensors["image_index_ptr"]
        self._mask = needs_input, needs_theta, needs_fill = tuple(mask)
        self._is_empty = grad_output.numel() == 0 or input.shape[0] == 0
        self._copies = None
        if needs_input or needs_theta:
            self._copies = _form_to_copy_to(grad_output, input)
        self._form = memory_format(input, input.shape[2:])
        self._dtype = coordinate_dtype(input.dtype) if is_scattered else input.dtype
        self._gather = self._reach = self._theta = self._fill = None
        self._is_indexed = needs_input and not is_scattered and image_index is not None
        has_slope = options.mode != "nearest"
        is_many = image_index is not None or theta.shape[0] != input.shape[0]
        is_spline = bool(options.points)
        # Sums over one matrix fit into the gather only if it has the image for itself.
        self._is_fused = is_fused = (
            needs_input
            and needs_theta
            and has_slope
            and not (is_many or is_spline or tensors["theta_tangent_ptr"] is not None)
        )
        if needs_input and is_scattered:
            self._gather = _Step("scatter", scatter_kernel, ("grad_output", "grad_input"), options)
        elif needs_input:
            images = ("grad_input", "grad_output", "input")
            flags = {"MANY": is_many and not is_spline, "NEEDS_THETA": is_fused}
            kernel = boxes.boxes_kernel if is_spline else backward_kernel
            name = "backward" if is_fused else "backward_input"
            self._gather = _Step(name, kernel, images, options, **flags)
            self._reach = _Reach(options) if is_spline else None
        if needs_theta and has_slope and not is_fused:
            images = ("grad_output", "input", "input_tangent")
            self._theta = _Step("theta", theta_kernel, images, options)
        if needs_fill:
            self._fill = _Step("fill", fill_kernel, ("grad_output",), options)

    def __call__(self, tensors: Tensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_input, needs_theta, needs_fill = self._mask
        input, theta, fill = tensors["input_ptr"], tensors["theta_ptr"], tensors["fill_ptr"]
        grad_input = grad_theta = grad_fill = None
        if needs_input:
            grad_input = torch.empty_like(input, dtype=self._dtype, memory_format=self._form)
            tensors["grad_input_ptr"] = grad_input
        if self._is_empty:
            return (
                grad_input.zero_().to(input.dtype) if needs_input else None,
                theta.new_zeros(theta.shape) if needs_theta else None,
                fill.new_zeros(fill.shape) if needs_fill else None,
            )
        if self._copies is not None:
            tensors["grad_output_ptr"] = tensors["grad_output_ptr"].contiguous(memory_format=self._copies)
        if needs_input:
            if self._is_indexed:
                tensors |= _by_image(tensors["image_index_ptr"], len(input))
            if self._reach is not None:
                tensors |= self._reach(tensors)
            partial = self._gather(tensors)
            if self._dtype != input.dtype:
                grad_input = grad_input.to(input.dtype)
            if self._is_fused:
                grad_theta = _total(partial, theta)
        if self._theta is not None:
            grad_theta = _total(self._theta(tensors), theta)
        elif needs_theta and grad_theta is None:
            grad_theta = theta.new_zeros(theta.shape)
        if needs_fill:
            sums = self._fill(tensors).sum((0, 2)).flatten()
            grad_fill = sums[: len(fill)].to(fill.dtype)
        return grad_input, grad_theta, grad_fill


def _total(partial: Tensor, theta: Tensor) -> Tensor:
    """The shares of each matrix, added up in a fixed order; where there is one share it is the sum."""
    total = partial if partial.shape == theta.shape else partial.sum(1)
    return total if total.dtype == theta.dtype else total.to(theta.dtype)


def _form_to_copy_to(tensor: Tensor | None, image: Tensor) -> torch.memory_format | None:
    """The memory format to copy a tensor to before a kernel reads it beside an image; None for no copy.

    Lanes run over the channels of both if these lie side by side in the image and are many, else over pixels.
    A tensor whose neighbouring lanes then lie a sector apart, such as the NCHW gradient that ``flatten`` or
    ``sum`` gives for a channels_last image, is read in 32 sectors per request instead of 4 to 10, and in a
    gather each element is read four times or more. A copy reads and writes each element once.
    """
    if tensor is None:
        return None
    form = memory_format(image, image.shape[2:])
    if form != torch.contiguous_format and image.shape[1] >= tuning.LANES_C:
        return None if tensor.stride(1) == 1 else form
    strides = [t.stride(-1) * t.itemsize for t in (tensor, image)]
    return torch.contiguous_format if strides[0] >= _SECTOR > strides[1] else None


class _Step:
    """A launch over the tiles of a tensor, whose block sizes are chosen when it first runs."""

    def __init__(
        self, name: str, kernel: triton.JITFunction, images: Sequence[str], options: Options, **flags: bool
    ) -> None:
        """Take the images that the kernel accesses; their first is the one in tiles."""
        self._name, self._kernel, self._images = name, kernel, [f"{image}_ptr" for image in images]
        self._options, self._flags = options, flags
        self._launch: plans.Launch | None = None

    def __call__(self, tensors: Tensors) -> Tensor | None:
        """Run it; returns what its programs leave to be summed, if anything."""
        if self._launch is None:
            self._launch = self._chosen(tensors)
        return self._run(self._launch, tensors)

    def _run(self, launch: plans.Launch, tensors: Tensors) -> Tensor | None:
        if self._name == "scatter":  # it adds
            tensors["grad_input_ptr"].zero_()
        return launch(tensors)

    def _chosen(self, tensors: Tensors) -> plans.Launch:
        """The launch with the block sizes that a table or a search has, or the default."""
        tiled = tensors[self._images[0]]
        images = [tensors[name] for name in self._images if tensors[name] is not None]
        numbers = {**_numbers(tensors), **_flags(tensors, images, self._options), **self._flags}
        # A gather by boxes has pixels in all lanes, whatever the layout.
        channels_last = self._kernel is not boxes.boxes_kernel and all(t.stride(1) == 1 for t in images)
        shape = (numbers["DIM"], numbers["PROJECTIVE"], numbers.get("MANY", False), numbers["TANGENT"])
        # Of the points only whether there are any: the rest would fill the cache.
        variant = tuning.variant_of(*shape, self._options._replace(points=self._options.points[:2]))
        n, c, *pixels = tiled.shape
        depth, height, width = (1, *pixels)[-3:]
        dtype = coordinate_dtype(tiled.dtype)
        bucket = tuning.bucket_of(
            self._name, variant, channels_last, tiled.dtype, n * depth, c, height * width
        )

        def with_blocks(config: tuning.Config) -> plans.Launch:
            extents = (height, config["BLOCK_H"]), (width, config["BLOCK_W"])
            tiles = depth * math.prod(-(-size // block) for size, block in extents)
            blocks_c = -(-c // (config["BLOCK_C"] * config["STEPS_C"]))
            programs = n * blocks_c * tiles
            _check_programs(programs, "input" if self._name.startswith("backward") else "size", tiled)
            partial = None
            if self._name == "fill":
                partial = (n, blocks_c, tiles, config["BLOCK_C"]), dtype
            elif self._name in ("backward", "theta"):
                maps, *matrix = tensors["theta_ptr"].shape
                shares = programs // maps
                partial = (maps, *([shares] if shares > 1 else []), *matrix), dtype
            all_numbers = {**numbers, **config, "EVEN_C": c % config["BLOCK_C"] == 0}
            return plans.Launch(self._kernel, programs, all_numbers, compile_options(bucket, config), partial)

        def run(config: tuning.Config) -> Tensor | None:
            return self._run(with_blocks(config), tensors)

        return with_blocks(tuning.configuration(bucket, tiled.device, run))


class _Reach:
    """Of each tile and chunk of the output, the box of the input pixels that it samples."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._launch: plans.Launch | None = None

    def __call__(self, tensors: Tensors) -> dict[str, Tensor]:
        theta, grad_output = tensors["theta_ptr"], tensors["grad_output_ptr"]
        sides = [tile.value * boxes.TILES.value for tile in (boxes.TILE_H, boxes.TILE_W)]
        height, width = grad_output.shape[2:]
        chunks = -(-height // sides[0]) * -(-width // sides[1])
        shapes = {
            "boxes_ptr": (len(theta), chunks, 4, boxes.LANES.value),
            "chunk_boxes_ptr": (len(theta), 4, chunks),
        }
        _check_programs(len(theta) * chunks, "size", grad_output)
        found = {name: theta.new_empty(shape, dtype=torch.int32) for name, shape in shapes.items()}
        if self._launch is None:
            images = [tensors[f"{name}_ptr"] for name in ("grad_output", "input", "grad_input")]
            numbers = {**_numbers(tensors), **_flags(tensors, images, self._options)}
            self._launch = plans.Launch(boxes.reach_kernel, len(theta) * chunks, numbers, REACH_OPTIONS)
        self._launch({**tensors, **found})
        return found


def _by_image(image_index: Tensor, images: int) -> dict[str, Tensor]:
    """Where the matrices of each image start in the order of images, and that order; on the device."""
    index, order = torch.sort(image_index, stable=True)
    starts = torch.searchsorted(index, torch.arange(images + 1, device=index.device))
    return {"starts_ptr": starts, "order_ptr": order}


def _numbers(tensors: Tensors) -> dict[str, int]:
    """Sizes and strides that the kernels may ask for, by the names of their parameters."""
    input, theta, points = tensors["input_ptr"], tensors["theta_ptr"], tensors["points_ptr"]
    output = tensors.get("output_ptr", tensors.get("grad_output_ptr"))
    d_in, h_in, w_in = (1, *input.shape[2:])[-3:]
    d_out, h_out, w_out = (1, *output.shape[2:])[-3:]
    numbers = {
        "images": input.shape[0],
        "per_image": theta.shape[0] // input.shape[0],
        "point_count": 0 if points is None else len(points),
        "C": input.shape[1],
        "D_in": d_in,
        "H_in": h_in,
        "W_in": w_in,
        "D_out": d_out,
        "H_out": h_out,
        "W_out": w_out,
    }
    for name in ("output", "grad_output", "grad_input", "input", "input_tangent"):
        tensor = tensors.get(f"{name}_ptr")
        n, c, *pixel = (0,) * 5 if tensor is None else tensor.stride()
        strides = zip("ncdhw", (n, c, *(0, *pixel)[-3:]), strict=True)  # an image has no stride of slices
        numbers.update({f"{name}_stride_{axis}": stride for axis, stride in strides})
    for name in ("theta", "theta_tangent"):
        tensor = tensors[f"{name}_ptr"]
        strides = zip(("n", "row", "column"), (0, 0, 0) if tensor is None else tensor.stride(), strict=True)
        numbers.update({f"{name}_stride_{axis}": stride for axis, stride in strides})
    for name in ("fill", "fill_tangent"):
        tensor = tensors[f"{name}_ptr"]
        numbers[f"{name}_stride"] = 0 if tensor is None else tensor.stride(0)
    return numbers


def _flags(tensors: Tensors, images: Sequence[Tensor], options: Options) -> dict[str, object]:
    """The constexprs that do not depend on block sizes, of a kernel that accesses these images."""
    input = tensors["input_ptr"]
    return {
        "DIM": input.ndim - 2,
        "PROJECTIVE": is_projective(tensors["theta_ptr"].shape),
        "SPLINE": bool(options.points),
        "TAPS": options.taps(),
        "PADDING": PADDINGS[options.padding_mode],
        "ALIGN_CORNERS": options.align_corners,
        "ANTIALIAS": options.antialias,
        "HAS_INDEX": tensors["image_index_ptr"] is not None,
        "TANGENT": tensors["theta_tangent_ptr"] is not None,
        "INDEX": tl.int64 if any(_plane_extent(tensor) >= 2**31 for tensor in images) else tl.int32,
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
    whatever samples more than once per pixel, and fp64. The plain gather fits into 128, which is four blocks
    of 128 threads on a multiprocessor, the one that lists output pixels into 144; for the others a limit that
    does not bind keeps ptxas from its own. AMD's warps have 64 lanes.
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
        options["maxnreg"] = 144 if config["STEPS_C"] > 1 else 128
    return options


def _check_programs(programs: int, argument: str, tiled: Tensor) -> None:
    if programs > _MAX_PROGRAMS:
        what, each = ("input", "images") if argument == "input" else ("output", "thetas")
        raise ValueError(
            f"{argument} must give at most {_MAX_PROGRAMS} tiles in one launch, got {programs} for an {what} "
            f"of shape {tuple(tiled.shape)}; call with fewer {each} or channels at a time"
        )
