"""No call waits for the GPU: none reads numbers from it, and only first calls copy numbers to it.

The GPU path of each call runs on meta tensors, where reading a number raises. `OneDevice` finds tensors of
another device. `test_gpu.py` tests the same on a GPU.
"""

import contextlib

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytest.importorskip("pandas")

from perf.tuning import launches
from stn_triton import (
    affine_grid_sample,
    launch,
    perspective_grid_sample,
    plans,
    thin_plate_spline_grid_sample,
    transforms,
)
from stn_triton.nn import SpatialTransformer, outside_penalty

LAYER = SpatialTransformer(3).to("meta")
POINTS = [(-0.9, -0.7), (0.8, -0.6), (0.1, 0.2), (-0.5, 0.9)]
# Operators whose result or its shape depends on numbers, so that the host has to read them.
READS = {"nonzero", "masked_select", "_unique2", "unique_dim", "repeat_interleave", "equal", "is_nonzero"}


class OneDevice(TorchDispatchMode):
    """Fails if an operator has a tensor of another device, or reads numbers."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves((args, kwargs, result)):
            if isinstance(tensor, Tensor):
                assert tensor.is_meta, f"{name} has a tensor on {tensor.device}"
        assert name not in READS, f"{name} reads numbers"
        return result


def meta(*shape, **options):
    return torch.empty(*shape, device="meta", requires_grad=True, **options)


def step(output, *leaves):
    torch.autograd.grad(output, leaves, torch.empty_like(output), create_graph=False)


def sampled(dim=2, rows=None, maps=(2,), channels=3, function=affine_grid_sample, fill=None, **options):
    size = (6, 7, 8)[:dim]
    image, theta = meta(2, channels, *size), meta(*maps, rows or dim, dim + 1)
    leaves = (image, theta) if fill is None else (image, theta, fill)
    step(function(image, theta, fill_value=fill, **options), *leaves)


def spline():
    image, offsets = meta(2, 3, 6, 7), meta(2, 4, 2)
    step(thin_plate_spline_grid_sample(image, offsets, points=POINTS), image, offsets)


def tangents():
    with forward_ad.dual_level():
        image = forward_ad.make_dual(meta(2, 3, 6, 7), meta(2, 3, 6, 7))
        affine_grid_sample(image, forward_ad.make_dual(meta(2, 2, 3), meta(2, 2, 3)))


def second_derivatives():
    image, theta = meta(2, 3, 6, 7), meta(2, 2, 3)
    (grad,) = torch.autograd.grad(affine_grid_sample(image, theta).sum(), theta, create_graph=True)
    torch.autograd.grad(grad.sum(), (image, theta))


def scattered():
    image, theta = torch.empty(2, 3, 6, 7, device="meta"), torch.empty(2, 2, 3, device="meta")
    launch.backward(image, image, theta, gathers=False)


def layer():
    image = meta(2, 3, 32, 32)
    step(LAYER(image), image)


def of_transforms():
    angle, shift, factor = meta(2), meta(2, 2), meta(2, 1)
    theta = transforms.compose(
        transforms.rotation(angle, aspect=1.5), transforms.translation(shift), transforms.scale(factor)
    )
    transforms.invert(theta)
    transforms.from_cv2(meta(2, 3, 3), (6, 7), (8, 9))  # computes the sign of each
    outside_penalty(theta)


CALLS = {
    "plain": sampled,
    "volumes": lambda: sampled(3),
    "reflection": lambda: sampled(padding_mode="reflection"),
    "bicubic": lambda: sampled(mode="bicubic", padding_mode="border"),
    "nearest": lambda: sampled(mode="nearest"),
    "antialias": lambda: sampled(antialias=True, size=3),
    "fill numbers": lambda: affine_grid_sample(
        meta(2, 3, 6, 7), meta(2, 2, 3), padding_mode="fill", fill_value=[0.5, 0.25, 1.0]
    ),
    "fill number": lambda: affine_grid_sample(
        meta(2, 3, 6, 7), meta(2, 2, 3), padding_mode="fill", fill_value=0.5
    ),
    "fill tensor": lambda: sampled(padding_mode="fill", fill=meta(3)),
    "many": lambda: sampled(maps=(2, 4)),
    "one theta": lambda: sampled(maps=(1,)),
    "image_index": lambda: sampled(maps=(5,), image_index=torch.empty(5, device="meta", dtype=torch.int64)),
    "projective": lambda: sampled(rows=3, function=perspective_grid_sample),
    "spline": spline,
    "tangents": tangents,
    "second derivatives": second_derivatives,
    "scattered volumes by index": lambda: sampled(
        3, maps=(5,), antialias=True, image_index=torch.empty(5, device="meta", dtype=torch.int64)
    ),
    "scattered where it could be gathered": scattered,
    "layer": layer,
    "transforms": of_transforms,
}


def forbidden(*args, **kwargs):
    raise AssertionError("numbers of the host become a tensor of the device")


def run(call, monkeypatch):
    """Run a call twice; only the first may copy numbers to the device."""
    plans.forget()
    with launches.OntoKernels():
        call()
    for function in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, function, forbidden)
    monkeypatch.setattr(Tensor, "new_tensor", forbidden)
    with OneDevice(), launches.OntoKernels():
        call()


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("name", CALLS)
def test_no_call_waits(name, deterministic, monkeypatch):
    with contextlib.ExitStack() as stack:
        if deterministic:
            torch.use_deterministic_algorithms(True)
            stack.callback(torch.use_deterministic_algorithms, False)
        run(CALLS[name], monkeypatch)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.sum().item(), "meta"),
        (lambda x: x + torch.ones(()).cpu(), "on cpu"),
        (lambda x: x[torch.empty(3, device="meta", dtype=torch.bool)], "nonzero|reads numbers"),
        (lambda x: torch.tensor([1.0], device="meta"), "numbers of the host"),
    ],
)
def test_what_would_wait_is_noticed(wrong, message, monkeypatch):
    with pytest.raises((AssertionError, RuntimeError, NotImplementedError), match=message):
        run(lambda: wrong(torch.empty(3, device="meta")), monkeypatch)
