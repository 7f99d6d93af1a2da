"""The padding that repeats the image, against images that are written out several times side by side."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from variants import Variant, case

from stn_triton import affine_grid_sample, launch
from stn_triton.options import Options

COPIES = 9  # four copies on each side of the image
CALLS = [
    (Variant(len(size), mode, "wrap", "plain", align_corners), size)
    for size, mode, align_corners in itertools.product(
        ((4, 7), (5, 2), (1, 3), (3, 4, 2)), ("nearest", "bilinear", "bicubic"), (False, True)
    )
    if len(size) == 2 or mode != "bicubic"
]


def sampled_beside_each_other(input, theta, size, variant):
    """Sample the image between its copies by ``grid_sample``, which has no such padding."""
    grid = F.affine_grid(theta, [*input.shape[:2], *size], variant.align_corners)
    extents = theta.new_tensor(list(reversed(input.shape[2:])))
    scale = (extents - int(variant.align_corners)) / 2
    pixels = (grid + 1) * scale - (0 if variant.align_corners else 0.5) + COPIES // 2 * extents
    assert (pixels > 2).all()
    assert (pixels < COPIES * extents - 3).all()
    grid = (2 * pixels + 1) / (COPIES * extents) - 1
    return F.grid_sample(
        input.repeat(1, 1, *[COPIES] * (input.ndim - 2)), grid, variant.mode, align_corners=False
    )


@pytest.mark.parametrize(
    ("variant", "size_in"), CALLS, ids=lambda v: v.name() if hasattr(v, "name") else str(v)
)
@pytest.mark.sample(6)
def test_the_image_stands_beside_itself(device, variant, size_in):
    """Compares outputs and gradients of the public function and of the kernels."""
    args = case(variant, 2, size_in)
    args = args._replace(theta=3 * args.theta)
    leaves = [t.requires_grad_() for t in (args.input, args.theta)]
    expected = sampled_beside_each_other(*leaves, args.size, variant)
    grads = torch.autograd.grad(expected, leaves, args.grad)
    options = {"mode": variant.mode, "padding_mode": "wrap", "align_corners": variant.align_corners}
    actual = affine_grid_sample(*leaves, args.size, **options)
    torch.testing.assert_close(actual, expected)
    for a, e in zip(torch.autograd.grad(actual, leaves, args.grad), grads, strict=True):
        torch.testing.assert_close(a, e)
    here = [t.detach().to(device) for t in (args.grad, *leaves)]
    output = launch.forward(*here[1:], size=args.size, options=variant.options())
    torch.testing.assert_close(output.cpu(), expected)
    found = launch.backward(*here, options=variant.options())
    for a, e in zip(found, grads, strict=False):
        if a is not None:
            torch.testing.assert_close(a.cpu(), e)


@pytest.mark.parametrize(("mode", "order"), [("nearest", 0), ("bilinear", 1)])
def test_it_is_the_grid_wrap_of_scipy(device, mode, order):
    ndimage = pytest.importorskip("scipy.ndimage")
    image = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = torch.tensor([[[2.3, -1.1, 1.7], [0.9, 3.1, -4.3]]], dtype=torch.float64)
    y, x = ((F.affine_grid(theta, [1, 1, 7, 8], False)[0].flip(-1) + 1) * torch.tensor([5, 6]) - 1).unbind(-1)
    expected = ndimage.map_coordinates(
        image.numpy(), torch.stack((y / 2, x / 2)).numpy(), order=order, mode="grid-wrap"
    )
    options = Options(mode, "wrap")
    actual = launch.forward(image[None, None].to(device), theta.to(device), size=(7, 8), options=options)
    torch.testing.assert_close(actual[0, 0].cpu(), torch.from_numpy(expected))


@pytest.mark.parametrize("size", [(4, 6), (5, 2), (3, 1)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("periods", [1, -1, 3, -1000])
@pytest.mark.sample(8)
def test_whole_periods_away_are_the_same_bits(device, mode, size, periods):
    """Positions are quarters of pixels, exact under shifts; some are ties of nearest."""
    args = case(Variant(2, mode, "wrap", "plain", False), 2, size, (8, 8)).to(device, torch.float32)
    h, w = size
    theta = torch.tensor([[[8 / w, 0, 0.5 / w], [0, 4 / h, 0]]], dtype=torch.float64).repeat(2, 1, 1)
    options, results = Options(mode, "wrap"), []
    for shift in (0, 2 * periods):
        theta[:, :, 2] += shift
        here = theta.to(args.theta)
        grad_theta = launch.backward(
            args.grad, args.input, here, options=options, output_mask=(False, True, False)
        )[1]
        results.append((launch.forward(args.input, here, size=args.size, options=options), grad_theta))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_first_pixel_and_moves_nothing(device, mode, number):
    image = torch.rand(1, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([[[1, 0, number], [0, 1, 0]]])
    for place in ("cpu", device):
        here = image.to(place), theta.to(place).requires_grad_()
        output = affine_grid_sample(*here, mode=mode, padding_mode="wrap")
        torch.testing.assert_close(output.detach().cpu(), image[..., :1].expand_as(image))
        (grad,) = torch.autograd.grad(output.square().sum(), here[1])
        assert grad.isfinite().all()
        assert not grad[0, 0].any()


@pytest.mark.parametrize("number", [2.0**24, 1e10, 3e38])
def test_of_a_position_too_far_to_count_it_is_some_pixel(device, number):
    image = torch.arange(1.0, 21).view(1, 1, 4, 5)
    theta = torch.tensor([[[1, 0, number], [0, 1, 0]]])
    output = launch.forward(
        image.to(device), theta.to(device), size=(4, 5), options=Options("nearest", "wrap")
    )
    plain = affine_grid_sample(image, theta, mode="nearest", padding_mode="wrap")
    for result in (output.cpu(), plain):
        assert set(result.flatten().tolist()) <= set(image.flatten().tolist())
