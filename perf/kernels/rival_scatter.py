"""The fused scatter that the gather is measured against: both gradients in one pass over the output.

An output pixel at the position c has the value y = sum of w_i(c) x_i over its taps i: 4, or 8 in a volume.
From its gradient g follow

    grad_input:  w_i g is added at every tap i,
    grad_theta:  dc_k = sum over taps and channels of g x_i dw_i/dc_k; row k gets dc_k (u, v, 1).

A program owns a tile of output pixels for some channels. It computes positions once; for every tap and
channel it loads x_i, and adds w_i g atomically to an fp32 tensor of zeros, in no fixed order: the last bits
vary. Its sums for theta are stored, and added up as the library does it. Only what a rival needs: bilinear,
zeros padding, one affine matrix per image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

import stn_triton
from perf.measuring.providers import Provider, Sampler, UnavailableError
from stn_triton import launch
from stn_triton.kernels.block import (
    UNSPECIALIZED,
    block_start,
    dot_channels,
    group_mask,
    group_pointers,
    is_inside,
    load_block,
    pixel_offset,
    steps_of,
    tile_origin,
    tile_pixels,
)
from stn_triton.kernels.forward import map_of, product, sample_at, tap_addresses, tap_of
from stn_triton.kernels.parameters import add_along, add_column, store_sums, zero_vectors
from stn_triton.kernels.tangent import slopes_of
from stn_triton.options import Options
from stn_triton.reference import memory_format


@triton.jit(do_not_specialize=UNSPECIALIZED)
def fused_scatter_kernel(
    partial_ptr, grad_input_ptr, grad_output_ptr, input_ptr, theta_ptr,
    C, D_in, H_in, W_in, D_out, H_out, W_out,
    grad_input_stride_n, grad_input_stride_c, grad_input_stride_d, grad_input_stride_h, grad_input_stride_w,
    grad_output_stride_n, grad_output_stride_c,
    grad_output_stride_d, grad_output_stride_h, grad_output_stride_w,
    input_stride_n, input_stride_c, input_stride_d, input_stride_h, input_stride_w,
    theta_stride_n, theta_stride_row, theta_stride_column,
    NEEDS_INPUT: tl.constexpr, NEEDS_THETA: tl.constexpr, DIM: tl.constexpr, TAPS: tl.constexpr,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr, INDEX: tl.constexpr, DTYPE: tl.constexpr,
    EVEN_C: tl.constexpr, BLOCK_C: tl.constexpr, STEPS_C: tl.constexpr, RUN_C: tl.constexpr,
    BLOCK_H: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Add a tile's share to grad_input, and store its share of the gradient of its matrix."""
    sizes_in, sizes_out = (W_in, H_in, D_in), (W_out, H_out, D_out)
    grad_input_strides = (grad_input_stride_w, grad_input_stride_h, grad_input_stride_d)
    grad_output_strides = (grad_output_stride_w, grad_output_stride_h, grad_output_stride_d)
    input_strides = (input_stride_w, input_stride_h, input_stride_d)
    theta_strides = (theta_stride_n, theta_stride_row, theta_stride_column)
    GROUPS: tl.constexpr = BLOCK_C // RUN_C
    PIXELS: tl.constexpr = BLOCK_H * BLOCK_W
    n, c_first, origin = tile_origin(C, D_out, H_out, W_out, DIM, BLOCK_C * STEPS_C, BLOCK_H, BLOCK_W)
    pixels = tile_pixels(origin, DIM, BLOCK_H, BLOCK_W)
    pixel_mask = is_inside(pixels, sizes_out, DIM)
    a, scales, samples, _count, sizes = map_of(
        theta_ptr, n, theta_strides, sizes_in, sizes_out, False, ALIGN_CORNERS, DIM, False, DTYPE
    )
    base, _positions, _divisor, indices, weights, slopes = sample_at(
        a, pixels, 0, samples, sizes_in, sizes, (), False, DIM, False, TAPS, PADDING, ALIGN_CORNERS, DTYPE
    )
    along = zero_vectors(DIM, PIXELS, DTYPE)
    for step in range(steps_of(C - c_first, BLOCK_C, STEPS_C)):
        c_start = c_first + step * BLOCK_C
        channels = C - c_start
        start = block_start(grad_output_ptr, n, c_start, grad_output_stride_n, grad_output_stride_c)
        offset = pixel_offset(pixels, grad_output_strides, DIM, INDEX)
        gradient = load_block(
            start, grad_output_stride_c, offset, pixel_mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
        )
        if NEEDS_THETA:
            start = block_start(input_ptr, n, c_start, input_stride_n, input_stride_c)
            starts, offsets = tap_addresses(start, input_strides, indices, DIM, TAPS, PADDING, INDEX)
        if NEEDS_INPUT:
            start = block_start(grad_input_ptr, n, c_start, grad_input_stride_n, grad_input_stride_c)
            targets, shifts = tap_addresses(start, grad_input_strides, indices, DIM, TAPS, PADDING, INDEX)
        for i in tl.static_range(TAPS**DIM):
            weight = tap_of(weights, i, DIM, TAPS)
            mask = pixel_mask & is_inside(tap_of(indices, i, DIM, TAPS), sizes_in, DIM)
            if NEEDS_THETA:
                image = load_block(
                    starts[i], input_stride_c, offsets[i], mask, channels, GROUPS, RUN_C, EVEN_C, DTYPE
                )
                dot = tl.where(mask, dot_channels(image, gradient, GROUPS), 0)
                along = add_along(along, dot, slopes_of(weight, tap_of(slopes, i, DIM, TAPS), DIM), DIM)
            if NEEDS_INPUT:
                share = product(weight, DIM)
                mask = mask & (share != 0)
                for g in tl.static_range(GROUPS):
                    pointers = group_pointers(targets[i], grad_input_stride_c, shifts[i], g, RUN_C)
                    there = group_mask(mask, channels, g, RUN_C, EVEN_C)
                    tl.atomic_add(pointers, gradient[g] * share[:, None], mask=there, sem="relaxed")
    if NEEDS_THETA:
        sums = zero_vectors(DIM * (DIM + 1), PIXELS, DTYPE)
        for k in tl.static_range(DIM):
            sums = add_column(sums, along, base[k], k, DIM, DIM)
        sums = add_column(sums, along, 1.0, DIM, DIM, DIM)
        row = partial_ptr + tl.program_id(0).to(tl.int64) * (DIM * (DIM + 1))
        store_sums(row, sums, scales, DIM + 1, DIM, DIM)


def blocks(channels: int, dim: int, is_last: bool, itemsize: int) -> dict[str, int]:
    """By counts of instructions, without spills: a thread has 4, 2 or 1 pixels.

    In channels_last (``is_last``) lanes lie over channels, loaded and added 128 bits at a time. There ptxas
    without a limit aims at 64 registers and spills; for volumes of one channel it would take 135.
    """
    tile, run_c, most, steps = (8, 16), 1, 16, 4 if dim == 2 else 1
    if is_last and channels % 16 == 0:
        tile, run_c, most, steps = ((4, 8), 16, 64, 4) if itemsize == 4 else ((8, 8), 16, 32, 8)
    elif channels <= 4:
        tile = (16, 32) if channels == 1 else (16, 16)
    count = -(-channels // most)
    config = {"BLOCK_C": -(-channels // (count * run_c)) * run_c, "STEPS_C": min(count, steps)}
    config |= {"RUN_C": run_c, "BLOCK_H": tile[0], "BLOCK_W": tile[1], "num_warps": 4}
    return config | ({"maxnreg": 128} if run_c > 1 or channels == 1 else {})


def gradients(
    grad_output: Tensor, input: Tensor, theta: Tensor, options: Options, needs: Sequence[bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of input and theta in one launch; None for one that ``needs`` leaves out."""
    n, c, *size = grad_output.shape
    grad_input = partial = None
    if needs[0]:
        form = memory_format(input, input.shape[2:])
        grad_input = torch.zeros_like(input, dtype=torch.float32, memory_format=form)
    images = {"grad_output": grad_output, "grad_input": grad_input}
    is_last = all(t.stride(1) == 1 for t in (input, *images.values()) if t is not None)
    config = blocks(c, len(size), is_last, input.itemsize)
    tiles = math.prod(size[:-2]) * -(-size[-2] // config["BLOCK_H"]) * -(-size[-1] // config["BLOCK_W"])
    programs = n * -(-c // (config["BLOCK_C"] * config["STEPS_C"])) * tiles
    if needs[1]:
        partial = input.new_empty((programs, theta[0].numel()), dtype=torch.float32)
    arguments = launch._arguments(input, theta, size, options, None, None, None, **images)
    arguments |= launch._flags(arguments, ("input", *images), options) | config
    arguments |= {"partial_ptr": partial, "NEEDS_INPUT": needs[0], "NEEDS_THETA": needs[1]}
    arguments |= {"EVEN_C": c % config["BLOCK_C"] == 0, "enable_fp_fusion": True}
    known = (*fused_scatter_kernel.arg_names, "enable_fp_fusion", "num_warps", "maxnreg")
    with launch._device_of(input):
        fused_scatter_kernel[(programs,)](**{name: arguments[name] for name in known if name in arguments})
    grad_theta = launch._total(partial, theta) if needs[1] else None
    return grad_input.to(input.dtype) if needs[0] else None, grad_theta


class _Scatter(Function):
    @staticmethod
    def forward(ctx, input, theta, size, options):
        ctx.save_for_backward(input, theta)
        ctx.options = options
        return stn_triton.affine_grid_sample(input, theta, size, align_corners=options.align_corners)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        needs = ctx.needs_input_grad[:2]
        return *gradients(grad_output, *ctx.saved_tensors, ctx.options, needs), None, None


def sampler(
    input: Tensor, theta: Tensor, size: Sequence[int], align_corners: bool = False, **options: str | int
) -> Tensor:
    """The operator, whose backward is the scatter."""
    lacking = [f"{name}={value!r}" for name, value in options.items() if value not in ("bilinear", "zeros")]
    if input.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        lacking.append(f"{str(input.dtype).removeprefix('torch.')} images")
    if theta.shape != (len(input), input.ndim - 2, input.ndim - 1):
        lacking.append(f"theta of shape {tuple(theta.shape)}, only one affine matrix per image")
    if lacking:
        raise UnavailableError(f"the fused scatter has no {', no '.join(lacking)}")
    return _Scatter.apply(input, theta, size, Options(align_corners=align_corners))


def _make() -> Sampler:
    """Named, so that other processes can be sent the provider."""
    return sampler


SCATTER = Provider(
    "scatter",
    "fused scatter",
    "the operator, with both gradients by atomic additions in one pass over the output",
    _make,
    may_be_unavailable=True,
)
