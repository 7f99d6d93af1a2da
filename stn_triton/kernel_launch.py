"""One launch of a call: arguments from tensors, block sizes, index width and grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
import triton.language as tl
from torch import Tensor

from stn_triton import buckets, plans, policy, tuning
from stn_triton.contract import coordinate_dtype, sum_dtype
from stn_triton.kernel_specs import SPECS
from stn_triton.kernels import scatter, structs
from stn_triton.kernels.coordinates import MAX_SAMPLES
from stn_triton.options import DISPLACEMENTS, Options, is_projective

_TRITON_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.int64: tl.int64}
_MAX_PROGRAMS = 2**31 - 1
# Compile options of `settle_kernel`, whose block size is fixed.
SETTLE_OPTIONS = {"enable_fp_fusion": True, "num_warps": 4}
_ADD_TO_GRAD_INPUT = (scatter.FLOATS.value, scatter.WHOLE.value)
_SAMPLE_BITS = (MAX_SAMPLES.value - 1).bit_length()
Tensors = dict[str, Tensor | None]
"""The tensors of a call, by the names of the kernels' parameters."""


class Step:
    """A launch over the tiles of a tensor. Its block sizes are chosen when it first runs."""

    def __init__(
        self, name: str, options: Options, numbers: Mapping[str, int] | None = None, is_many: bool = False
    ) -> None:
        """Take a name in ``kernel_specs``, and the numbers that do not follow from the tensors.

        ``is_many`` says that an image has several matrices; a gather is compiled for it.
        """
        self._name, self._spec, self._kernel = name, SPECS[name], SPECS[name].kernel()
        self._options, self._numbers, self._is_many = options, numbers or {}, is_many
        self._launch: plans.Launch | None = None

    def __call__(self, tensors: Tensors) -> Tensor | None:
        """Launch the kernel; returns the partial sums of its programs, if there are any."""
        if self._launch is None:
            self._launch = self._chosen(tensors)
        return self._run(self._launch, tensors)

    def _run(self, launch: plans.Launch, tensors: Tensors) -> Tensor | None:
        grad_input = tensors["grad_input_ptr"]
        if self._spec.adds in _ADD_TO_GRAD_INPUT:
            grad_input.zero_()
        if self._spec.adds == scatter.WHOLE.value:  # two numbers for each element
            tensors["whole_ptr"] = None  # frees those of the last launch: a search launches several times
            tensors["whole_ptr"] = grad_input.new_zeros((2 * grad_input.numel(),), dtype=torch.int64)
        return launch(tensors)

    def _chosen(self, tensors: Tensors) -> plans.Launch:
        """The launch with block sizes from a table or a search, or with the default ones."""
        spec = self._spec
        images = [tensor for name in spec.images if (tensor := tensors[f"{name}_ptr"]) is not None]
        tiled = images[0]
        numbers = {**numbers_of(tensors), **self._numbers}
        known = constants_of(tensors, images, self._options)
        known |= {"MANY": self._is_many, "NEEDS_THETA": spec.needs_theta, "ADDS": spec.adds}
        channels_last = all(t.stride(1) == 1 for t in images)
        shape = (known["DIM"], known["PROJECTIVE"], known["MANY"], known["TANGENT"])
        # The variant depends only on whether there are points. All of them as keys would fill the cache.
        variant = buckets.variant_of(*shape, self._options._replace(points=self._options.points[:2]))
        n, c, *pixels = tiled.shape
        depth, height, width = (1, *pixels)[-3:]
        dtype = coordinate_dtype(tiled.dtype)
        bucket = buckets.bucket_of(
            self._name, variant, channels_last, tiled.dtype, n * depth, c, height * width
        )

        def with_blocks(config: tuning.Config) -> plans.Launch:
            extents = (height, config["BLOCK_H"]), (width, config["BLOCK_W"])
            tiles = depth * math.prod(-(-size // block) for size, block in extents)
            blocks_c = -(-c // (config["BLOCK_C"] * config["STEPS_C"]))
            programs = n * blocks_c * tiles
            _check_programs(programs, "input" if spec.tiles_input() else "size", tiled)
            partial = None
            if spec.needs_fill:
                partial = (n, blocks_c, tiles, config["BLOCK_C"]), dtype
            elif spec.needs_theta:
                maps, *matrix = tensors["theta_ptr"].shape
                shares = programs // maps
                partial = (maps, *([shares] if shares > 1 else []), *matrix), dtype
            blocks = {name: value for name, value in config.items() if name != "num_warps"}
            is_even = c % config["BLOCK_C"] == 0
            constants = structs.constants(**known, **blocks, EVEN_C=is_even, SIDE=policy.side(bucket))
            options = policy.compile_options(bucket, config)
            return plans.Launch(self._kernel, programs, {**numbers, "K": constants}, options, partial)

        def run(config: tuning.Config) -> Tensor | None:
            return self._run(with_blocks(config), tensors)

        return with_blocks(tuning.configuration(bucket, tiled.device, run))


class Settle:
    """The numbers, the memory and the last pass of a sum of whole numbers, see `kernels/scatter.py`."""

    def __init__(self, tensors: Tensors, options: Options) -> None:
        input, theta, grad_output = tensors["input_ptr"], tensors["theta_ptr"], tensors["grad_output_ptr"]
        self._images, self._device, elements = len(input), input.device, input.numel()
        self._dtype = coordinate_dtype(input.dtype)
        # An index may assign all matrices to one image.
        maps = len(theta) if tensors["image_index_ptr"] is not None else len(theta) // len(input)
        dim = input.ndim - 2
        head = 61 - (maps * math.prod(grad_output.shape[2:]) - 1).bit_length()
        low = head - dim * (options.taps().bit_length() - 1 + _SAMPLE_BITS * options.antialias)
        self.numbers = {"elements": elements, "head": head, "low": low}
        """Arguments of the kernels besides sizes and strides."""
        each = elements // self._images
        programs = self._images * -(-each // scatter.SETTLED.value)
        _check_programs(programs, "input", input)
        numbers = {**self.numbers, "per_image": each, "DTYPE": _TRITON_DTYPES[self._dtype]}
        self._launch = plans.Launch(scatter.settle_kernel, programs, numbers, SETTLE_OPTIONS)

    def memory(self) -> Tensors:
        """Memory for the bits of each image's largest total, which are 0 before the first pass."""
        bits = torch.int64 if self._dtype == torch.float64 else torch.int32
        return {"limits_ptr": torch.zeros(self._images, dtype=bits, device=self._device)}

    def __call__(self, tensors: Tensors) -> None:
        """Run the last pass, which writes grad_input."""
        self._launch(tensors)


def numbers_of(tensors: Tensors) -> dict[str, int | tuple[int, ...]]:
    """Sizes and strides that kernels may take, by the names of their parameters."""
    input, theta, points = tensors["input_ptr"], tensors["theta_ptr"], tensors["points_ptr"]
    output = tensors.get("output_ptr", tensors.get("grad_output_ptr"))
    d_in, h_in, w_in = (1, *input.shape[2:])[-3:]
    d_out, h_out, w_out = (1, *output.shape[2:])[-3:]
    numbers = {
        **dict.fromkeys(("elements", "head", "low"), 0),  # `Settle` sets them for sums of whole numbers
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
        n, c, *pixel = (0,) * input.ndim if tensor is None else tensor.stride()
        strides = {"stride_n": n, "stride_c": c, "strides": tuple(pixel)}
        numbers.update({f"{name}_{key}": stride for key, stride in strides.items()})
    for name in ("theta", "theta_tangent"):
        tensor = tensors[f"{name}_ptr"]
        numbers[f"{name}_strides"] = (0, 0, 0) if tensor is None else tensor.stride()
    for name in ("fill", "fill_tangent"):
        tensor = tensors[f"{name}_ptr"]
        numbers[f"{name}_stride"] = 0 if tensor is None else tensor.stride(0)
    return numbers


def constants_of(tensors: Tensors, images: Sequence[Tensor], options: Options) -> dict[str, object]:
    """Constants of a kernel that follow from the arguments of a call and the images that it accesses."""
    input = tensors["input_ptr"]
    return {
        "DIM": input.ndim - 2,
        "PROJECTIVE": is_projective(tensors["theta_ptr"].shape),
        "DISPLACEMENT": DISPLACEMENTS[options.displacement],
        "TAPS": options.taps(),
        "PADDING": options.padding.code,
        "ALIGN_CORNERS": options.align_corners,
        "ANTIALIAS": options.antialias,
        "HAS_INDEX": tensors["image_index_ptr"] is not None,
        "TANGENT": tensors["theta_tangent_ptr"] is not None,
        "INDEX": tl.int64 if any(_plane_extent(tensor) >= 2**31 for tensor in images) else tl.int32,
        "DTYPE": _TRITON_DTYPES[coordinate_dtype(input.dtype)],
        "SUM": _TRITON_DTYPES.get(sum_dtype(input.dtype), tl.int32),
    }


def _plane_extent(tensor: Tensor) -> int:
    """Bound of a pixel's offset in elements, also up to four pixels beyond the plane."""
    return sum((n + 4) * stride for n, stride in zip(tensor.shape[2:], tensor.stride()[2:], strict=True))


def _check_programs(programs: int, argument: str, tiled: Tensor) -> None:
    if programs > _MAX_PROGRAMS:
        what, each = ("input", "images") if argument == "input" else ("output", "thetas")
        raise ValueError(
            f"{argument} must give at most {_MAX_PROGRAMS} tiles in one launch, got {programs} for an {what} "
            f"of shape {tuple(tiled.shape)}; call with fewer {each} or channels at a time"
        )
