"""From tensors to kernels: which ones a call launches, in which layouts, on which device.

Nothing here waits for the GPU. CPU tensors run in Triton's interpreter (``TRITON_INTERPRET=1``), which is how
the kernels are tested without a GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stn_triton import buckets, plans, policy, splines
from stn_triton.contract import coordinate_dtype, memory_format
from stn_triton.kernel_launch import Settle, Step, Tensors
from stn_triton.options import DEFAULT, Options, Tangents, is_projective

_SECTOR = 32
"""Bytes that a GPU reads at once."""
_HERE = contextlib.nullcontext()


def forward(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    tangents: Tangents | None = None,
    *,
    size: Sequence[int],
    options: Options = DEFAULT,
) -> Tensor:
    """Sample (N, C, ...) at theta (M, ...); returns (M, C, *size) in the input's memory format.

    With ``tangents``, returns the tangent of this output. The theta of a spline is its matrix, (M, 2, 3 + P).
    """
    tensors = _tensors(input, theta, fill, image_index, tangents, options)
    facts = ("forward", tuple(size), options, *plans.facts_of(tensors.values()))
    with _device_of(input):
        plan = plans.planned(facts, input.device, lambda: _Forward(tensors, size, options))
        return plan(tensors)


def backward(
    grad_output: Tensor,
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None = None,
    image_index: Tensor | None = None,
    tangents: Tangents | None = None,
    *,
    options: Options = DEFAULT,
    output_mask: Sequence[bool] = (True, True, False),
    gathers: bool = True,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``forward`` for input, theta and fill; None for those that ``output_mask`` leaves out.

    Without ``gathers``, grad_input is scattered even where it would be gathered, to compare the two.
    """
    tensors = _tensors(input, theta, fill, image_index, tangents, options)
    tensors["grad_output_ptr"] = grad_output
    is_exact = torch.are_deterministic_algorithms_enabled()
    choices = (options, tuple(output_mask), is_exact, gathers)
    facts = ("backward", *choices, *plans.facts_of(tensors.values()))
    with _device_of(input):
        plan = plans.planned(facts, input.device, lambda: _Backward(tensors, *choices))
        return plan(tensors)


def _tensors(
    input: Tensor,
    theta: Tensor,
    fill: Tensor | None,
    image_index: Tensor | None,
    tangents: Tangents | None,
    options: Options,
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
        "grad_input_ptr": None,
        "whole_ptr": None,
        "limits_ptr": None,
    }


def _device_of(tensor: Tensor) -> contextlib.AbstractContextManager:
    if not tensor.is_cuda or tensor.device.index == torch.cuda.current_device():
        return _HERE
    return torch.cuda.device(tensor.device)


def _check_devices(tensors: Tensors) -> None:
    """Raise ValueError if devices differ. Nothing else checks this for operators that are called directly."""
    device = tensors["input_ptr"].device
    for name, tensor in tensors.items():
        if tensor is not None and tensor.device != device:
            argument = name.removesuffix("_ptr")
            raise ValueError(f"{argument} must be on the device of input, {device}, got {tensor.device}")


class _Forward:
    """The plan of a forward call."""

    def __init__(self, tensors: Tensors, size: Sequence[int], options: Options) -> None:
        _check_devices(tensors)
        input, theta = tensors["input_ptr"], tensors["theta_ptr"]
        self._shape = (theta.shape[0], input.shape[1], *size)
        self._form = memory_format(input, size)
        self._forms = _forms_to_copy_to(tensors, ("input_tangent_ptr",))
        self._sample = Step("forward", options)

    def __call__(self, tensors: Tensors) -> Tensor:
        input = tensors["input_ptr"]
        output = torch.empty(self._shape, dtype=input.dtype, device=input.device, memory_format=self._form)
        if output.numel() == 0:
            return output
        if input.shape[0] == 0:  # an index was given, and no index is valid
            return output.fill_(math.nan if output.is_floating_point() else 0)
        _copy(tensors, self._forms)
        tensors["output_ptr"] = output
        self._sample(tensors)
        return output


class _Backward:
    """The plan of a backward call.

    There are two mechanisms: the programs of a gather own pixels of the input, those of a scatter pixels of
    the output. `policy.is_gathered` chooses one.
    """

    def __init__(
        self, tensors: Tensors, options: Options, mask: Sequence[bool], is_exact: bool, gathers: bool
    ) -> None:
        _check_devices(tensors)
        input, theta = tensors["input_ptr"], tensors["theta_ptr"]
        self._mask = needs_input, needs_theta, needs_fill = tuple(mask)
        needs_theta = needs_theta and options.mode != "nearest"
        self._is_empty = tensors["grad_output_ptr"].numel() == 0 or input.shape[0] == 0
        self._form = memory_format(input, input.shape[2:])
        self._forms = {}
        if needs_input or needs_theta:
            self._forms = _forms_to_copy_to(tensors, ("grad_output_ptr", "input_tangent_ptr"))
        is_indexed, is_moving = (tensors[f"{n}_ptr"] is not None for n in ("image_index", "theta_tangent"))
        kind = input.ndim - 2, is_projective(theta.shape), is_moving
        is_gathered = needs_input and gathers and policy.is_gathered(*kind, options)
        is_scattered = needs_input and not is_gathered
        self._dtype = coordinate_dtype(input.dtype) if is_scattered else input.dtype
        self._sorts = is_gathered and is_indexed
        self._gather = self._largest = self._scatter = self._settle = self._fill = None
        self._gives_theta = False
        if is_gathered:
            is_many = is_indexed or theta.shape[0] != input.shape[0]
            # The gather can sum the gradient of a matrix only if no other matrix warps the image.
            self._gives_theta = needs_theta and not is_many and policy.share_a_kernel(options.mode)
            name = "backward" if self._gives_theta else "backward_input"
            self._gather = Step(name, options, is_many=is_many)
        if is_scattered:
            name, numbers = "scatter", None
            if is_exact and not self._is_empty:
                self._settle = Settle(tensors, options)
                name, numbers = "exact", self._settle.numbers
                self._largest = Step("largest", options, numbers)
            self._scatter = Step(name if needs_theta else f"{name}_input", options, numbers)
        elif needs_theta and not self._gives_theta:
            self._scatter = Step("theta", options)
        if needs_fill:
            self._fill = Step("fill", options)

    def __call__(self, tensors: Tensors) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        needs_input, needs_theta, needs_fill = self._mask
        input, theta, fill = tensors["input_ptr"], tensors["theta_ptr"], tensors["fill_ptr"]
        grad_input = grad_theta = grad_fill = None
        if needs_input:
            grad_input = torch.empty_like(input, dtype=self._dtype, memory_format=self._form)
        if self._is_empty:
            return (
                grad_input.zero_().to(input.dtype) if needs_input else None,
                theta.new_zeros(theta.shape) if needs_theta else None,
                fill.new_zeros(fill.shape) if needs_fill else None,
            )
        _copy(tensors, self._forms)
        if self._gather is not None:
            found = _by_image(tensors["image_index_ptr"], len(input)) if self._sorts else {}
            partial = self._gather({**tensors, **found, "grad_input_ptr": grad_input})
            if self._gives_theta:
                grad_theta = _total(partial, theta)
        elif needs_input:
            tensors["grad_input_ptr"] = grad_input
        if self._settle is not None:
            tensors |= self._settle.memory()
            self._largest(tensors)
        if self._scatter is not None:
            partial = self._scatter(tensors)
            if needs_theta and not self._gives_theta and partial is not None:
                grad_theta = _total(partial, theta)
        if self._settle is not None:
            self._settle(tensors)
        if needs_input and self._dtype != input.dtype:
            grad_input = grad_input.to(input.dtype)
        if needs_theta and grad_theta is None:
            grad_theta = theta.new_zeros(theta.shape)
        if needs_fill:
            sums = self._fill(tensors).sum((0, 2)).flatten()
            grad_fill = sums[: len(fill)].to(fill.dtype)
        return grad_input, grad_theta, grad_fill


def _total(partial: Tensor, theta: Tensor) -> Tensor:
    """Add up the shares of each matrix in a fixed order; a single share is the sum."""
    total = partial if partial.shape == theta.shape else partial.sum(1)
    return total if total.dtype == theta.dtype else total.to(theta.dtype)


def _forms_to_copy_to(tensors: Tensors, names: Sequence[str]) -> dict[str, torch.memory_format]:
    """The memory formats to copy some of the tensors to, without the tensors that need no copy."""
    image = tensors["input_ptr"]
    forms = {name: _form_to_copy_to(tensors[name], image) for name in names}
    return {name: form for name, form in forms.items() if form is not None}


def _copy(tensors: Tensors, forms: dict[str, torch.memory_format]) -> None:
    for name, form in forms.items():
        tensors[name] = tensors[name].contiguous(memory_format=form)


def _form_to_copy_to(tensor: Tensor | None, image: Tensor) -> torch.memory_format | None:
    """The memory format to copy a tensor to before a kernel reads it beside an image; None for no copy.

    Lanes run over channels if the image has many that lie side by side in memory, else over pixels. If
    neighbouring lanes read a tensor a sector apart, each request takes 32 sectors instead of 4 to 10, and a
    gather reads each element four times or more. An example is the NCHW gradient that ``flatten`` or ``sum``
    gives for a channels_last image. A copy reads and writes each element once.
    """
    if tensor is None:
        return None
    form = memory_format(image, image.shape[2:])
    has_runs = form != torch.contiguous_format and image.stride(1) == 1 and image.shape[1] >= buckets.LANES_C
    if has_runs:
        return None if tensor.stride(1) == 1 else form
    strides = [t.stride(-1) * t.itemsize for t in (tensor, image)]
    is_apart = strides[0] >= _SECTOR > strides[1]
    return torch.contiguous_format if is_apart else None


def _by_image(image_index: Tensor, images: int) -> dict[str, Tensor]:
    """The matrices sorted by image, and where each image starts in this order; both on the device."""
    index, order = torch.sort(image_index, stable=True)
    starts = torch.searchsorted(index, torch.arange(images + 1, device=index.device))
    return {"starts_ptr": starts, "order_ptr": order}
