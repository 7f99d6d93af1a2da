"""Modes, paddings, volumes, many matrices, projective maps, antialiasing and bytes by the public functions.

Tensors are on the CPU. Results are compared with affine_grid and grid_sample where these have the feature.
"""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.testing._internal.common_methods_invocations import op_db
from variants import CELLS, EXISTING, PRODUCT, Variant, case, maps

from stn_triton import (
    affine_grid_sample,
    perspective_grid_sample,
    reference_parts,
    thin_plate_spline_grid_sample,
)
from stn_triton.options import LABEL_DTYPES, PADDING_MODES, PAIR_PADDINGS

FORWARD = torch.ops.stn_triton.affine_grid_sample.default
BACKWARD = torch.ops.stn_triton.affine_grid_sample_backward.default
PAIR = [v for v in EXISTING if v.kind == "plain" and v.padding_mode in PAIR_PADDINGS]


def pair(args, variant, theta=None):
    theta = args.theta if theta is None else theta
    grid = F.affine_grid(theta, [*args.input.shape[:2], *args.size], variant.align_corners)
    return F.grid_sample(args.input, grid, variant.mode, variant.padding_mode, variant.align_corners)


def call(args, variant, **changed):
    function = perspective_grid_sample if variant.kind == "projective" else affine_grid_sample
    options = {
        "mode": variant.mode,
        "padding_mode": variant.padding_mode,
        "align_corners": variant.align_corners,
        "fill_value": args.fill,
        "image_index": args.image_index,
        **({"antialias": True} if "antialias" in variant.kind else {}),
        **changed,
    }
    theta = args.theta
    if variant.kind == "many":
        theta = theta.unflatten(0, (len(args.input), -1))
    output = function(args.input, theta, args.size, **options)
    return output.flatten(0, 1) if variant.kind == "many" else output


@pytest.mark.parametrize("variant", PAIR, ids=Variant.name)
def test_equals_the_pair_with_its_gradients(variant):
    args = case(
        variant, 3, (9, 14) if variant.dim == 2 else (4, 7, 6), (8, 11) if variant.dim == 2 else (5, 4, 7)
    )
    leaves = [t.requires_grad_() for t in (args.input, args.theta)]
    actual, expected = call(args, variant), pair(args, variant)
    torch.testing.assert_close(actual, expected)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for a, e in zip(
        torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("variant", CELLS, ids=Variant.name)
@pytest.mark.sample(20)
def test_gradcheck(variant):
    size_in, size = ((3, 4), (4, 3)) if variant.dim == 2 else ((2, 3, 2), (2, 2, 3))
    args = case(variant, 1, size_in, size)
    names = [n for n in ("input", "theta", "fill") if getattr(args, n) is not None]
    leaves = [getattr(args, n).requires_grad_() for n in names]
    function = lambda *t: call(args._replace(**dict(zip(names, t, strict=True))), variant)  # noqa: E731
    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("variant", EXISTING[::5], ids=Variant.name)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.sample(10)
def test_opcheck(variant):
    args = case(variant)
    tensors = (args.input.requires_grad_(), args.theta.requires_grad_())
    fill = None if args.fill is None else args.fill.requires_grad_()
    options = tuple(variant.options())
    torch.library.opcheck(FORWARD, (*tensors, fill, args.image_index, args.size, *options))
    mask = [True, True, fill is not None]
    tensors = [t.detach() for t in (args.grad, *tensors)]
    fill = None if fill is None else fill.detach()
    torch.library.opcheck(BACKWARD, (*tensors, fill, args.image_index, *options, mask))


@pytest.mark.parametrize("variant", [v for v in PRODUCT if not v.exists()], ids=Variant.name)
def test_what_does_not_exist_raises(variant):
    args = case(variant._replace(mode="bilinear", kind="plain"))
    with pytest.raises(ValueError, match="must"):
        call(args, variant)


def samples():
    """List PyTorch's own sample inputs of ``grid_sample``: images, grids and options."""
    (info,) = [op for op in op_db if op.name == "nn.functional.grid_sample"]
    return list(info.sample_inputs("cpu", torch.float64, requires_grad=False))


def test_pytorch_s_sample_inputs_of_grid_sample():
    """Replace their random grids by grids of affine maps of the same size."""
    count = 0
    for sample in samples():
        grid, *positional = sample.args
        options = dict(zip(("mode", "padding_mode", "align_corners"), positional, strict=False))
        options = {**options, **{k: v for k, v in sample.kwargs.items() if v is not None}}
        n, dim = len(grid), grid.shape[-1]
        if dim == 3 and options.get("mode") == "bicubic":
            continue  # a mode newer than the oldest supported PyTorch
        size = list(grid.shape[1:-1])
        theta = maps(max(n, 1), dim, 1.0)[:n]
        align = bool(options.pop("align_corners", False))
        affine = F.affine_grid(theta, [n, sample.input.shape[1], *size], align)
        expected = F.grid_sample(sample.input, affine, align_corners=align, **options)
        actual = affine_grid_sample(sample.input, theta, size, align_corners=align, **options)
        torch.testing.assert_close(actual, expected)
        count += 1
    assert count >= 20


class TestManyMatrices:
    IMAGES = torch.randn(3, 2, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def test_an_image_may_have_several(self):
        theta = maps(6, 2, 1.0).view(3, 2, 2, 3)
        actual = affine_grid_sample(self.IMAGES, theta, 4)
        assert actual.shape == (3, 2, 2, 4, 4)
        for k in range(2):
            torch.testing.assert_close(actual[:, k], affine_grid_sample(self.IMAGES, theta[:, k], 4))

    def test_one_matrix_serves_all_images_and_its_gradient_is_the_sum(self):
        theta = maps(1, 2, 1.0).requires_grad_()
        each = theta.detach().repeat(3, 1, 1).requires_grad_()
        actual, expected = (affine_grid_sample(self.IMAGES, t, 4) for t in (theta, each))
        assert torch.equal(actual, expected)
        actual.square().sum().backward(), expected.square().sum().backward()
        torch.testing.assert_close(theta.grad, each.grad.sum(0, keepdim=True))
        assert torch.equal(affine_grid_sample(self.IMAGES, theta[None], 4)[:, 0], actual)

    def test_one_image_may_have_any_number(self):
        theta = maps(5, 2, 1.0)
        actual = affine_grid_sample(self.IMAGES[:1], theta, 4)
        assert torch.equal(actual, affine_grid_sample(self.IMAGES[:1], theta[None], 4)[0])

    def test_one_matrix_may_serve_an_index(self):
        index = torch.tensor([2, 0, 2, 1])
        actual = affine_grid_sample(self.IMAGES, maps(1, 2, 1.0), 4, image_index=index)
        expected = affine_grid_sample(self.IMAGES, maps(1, 2, 1.0).expand(4, 2, 3), 4, image_index=index)
        assert torch.equal(actual, expected)

    def test_an_index_names_images_in_any_order(self):
        index = torch.tensor([2, 0, 2, 2, 0])
        theta = maps(5, 2, 1.0).requires_grad_()
        images, copies = (self.IMAGES.clone().requires_grad_() for _ in range(2))
        actual = affine_grid_sample(images, theta, (4, 3), image_index=index)
        expected = affine_grid_sample(copies[index], theta, (4, 3))
        torch.testing.assert_close(actual, expected)
        for a, e in zip(
            torch.autograd.grad(actual.square().sum(), (images, theta)),
            torch.autograd.grad(expected.square().sum(), (copies, theta)),
            strict=True,
        ):
            torch.testing.assert_close(a, e)
        assert not torch.autograd.grad(affine_grid_sample(images, theta, image_index=index).sum(), images)[0][
            1
        ].any(), "an image that no matrix uses"

    @pytest.mark.parametrize(("bad", "count"), [(-1, 3), (3, 3), (0, 0)])
    def test_an_index_out_of_range_is_named(self, bad, count):
        with pytest.raises(ValueError, match=rf"image_index must name images 0 to {count - 1} .* got {bad}"):
            affine_grid_sample(self.IMAGES[:count], maps(2, 2, 1.0), image_index=torch.tensor([0, bad]))

    @pytest.mark.parametrize("n", [0, 3])
    def test_no_matrices_give_no_images(self, n):
        images = self.IMAGES[:n]
        assert affine_grid_sample(images, torch.zeros(n, 0, 2, 3), 4).shape == (n, 0, 2, 4, 4)
        index = torch.zeros(0, dtype=torch.int64)
        images = images.clone().requires_grad_()
        output = affine_grid_sample(images, torch.zeros(0, 2, 3), 4, image_index=index)
        assert output.shape == (0, 2, 4, 4)
        (grad,) = torch.autograd.grad(output.sum(), images)
        assert torch.equal(grad, torch.zeros_like(images))

    @pytest.mark.parametrize("in_dims", [(0, 0), (None, 0), (0, None)])
    def test_vmap_over_indexed_calls(self, in_dims):
        index = torch.tensor([1, 0, 1])
        images = self.IMAGES.expand(4, -1, -1, -1, -1) * torch.arange(1, 5).view(4, 1, 1, 1, 1)
        theta = maps(12, 2, 1.0).view(4, 3, 2, 3)
        arguments = [t if d == 0 else t[0] for t, d in zip((images, theta), in_dims, strict=True)]
        function = lambda i, t: affine_grid_sample(i, t, 4, image_index=index)  # noqa: E731
        actual = torch.vmap(function, in_dims)(*arguments)
        pick = lambda t, d, i: t if d is None else t[i]  # noqa: E731
        expected = [
            function(*(pick(t, d, i) for t, d in zip(arguments, in_dims, strict=True))) for i in range(4)
        ]
        torch.testing.assert_close(actual, torch.stack(expected))


class TestFill:
    IMAGE = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def test_a_number_is_the_same_as_that_number_for_every_channel(self):
        theta = maps(2, 2, 1.5)
        by_number, *others = (
            affine_grid_sample(self.IMAGE, theta, padding_mode="fill", fill_value=value)
            for value in (0.5, torch.full((3,), 0.5), torch.tensor(0.5), [0.5] * 3)
        )
        assert all(torch.equal(by_number, other) for other in others)

    def test_zero_is_zeros(self):
        theta = maps(2, 2, 1.5)
        actual = affine_grid_sample(self.IMAGE, theta, padding_mode="fill", fill_value=0)
        assert torch.equal(actual, affine_grid_sample(self.IMAGE, theta))

    def test_outside_is_the_value_of_the_channel(self):
        theta = torch.tensor([[[1, 0, 9.0], [0, 1, 0]]]).expand(2, 2, 3)
        fill = torch.tensor([1.0, -2.0, math.inf], dtype=torch.float64)
        output = affine_grid_sample(self.IMAGE, theta, padding_mode="fill", fill_value=fill)
        assert torch.equal(output, fill.view(3, 1, 1).expand_as(output))

    def test_the_gradient_of_a_scalar_tensor_is_the_sum(self):
        fill = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        output = affine_grid_sample(self.IMAGE, maps(2, 2, 1.5), padding_mode="fill", fill_value=fill)
        ones = affine_grid_sample(torch.ones_like(self.IMAGE), maps(2, 2, 1.5))
        (grad,) = torch.autograd.grad(output.sum(), fill)
        torch.testing.assert_close(grad, (1 - ones).sum())

    def test_vmap_over_fill_values(self):
        fills, theta = torch.randn(4, 3, dtype=torch.float64), maps(2, 2, 1.5)
        function = lambda f: affine_grid_sample(  # noqa: E731
            self.IMAGE, theta, padding_mode="fill", fill_value=f
        )
        torch.testing.assert_close(torch.vmap(function)(fills), torch.stack([function(f) for f in fills]))


class TestProjective:
    @pytest.mark.parametrize("padding_mode", PAIR_PADDINGS)
    @pytest.mark.parametrize("align_corners", [False, True])
    def test_equals_a_projected_grid(self, padding_mode, align_corners):
        variant = Variant(2, "bilinear", padding_mode, "projective", align_corners)
        args = case(variant)
        args.theta[1] = args.theta[0].flip(0, 1)[[1, 2, 0]] * 0.2 + torch.eye(3)
        size = list(args.size)
        square = torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3)
        base = F.affine_grid(square, [2, 2, *size], align_corners)
        homogeneous = F.pad(base, (0, 1), value=1) @ args.theta.mT[:, None]
        assert (homogeneous[..., 2] > 0).all()
        grid = homogeneous[..., :2] / homogeneous[..., 2:]
        expected = F.grid_sample(args.input, grid, "bilinear", padding_mode, align_corners)
        torch.testing.assert_close(call(args, variant), expected)

    @pytest.mark.parametrize("padding_mode", PADDING_MODES)
    def test_behind_the_horizon_nothing_is_seen(self, padding_mode):
        variant = Variant(2, "bilinear", padding_mode, "projective", False)
        args = case(variant)
        args.theta[1, 2] = torch.tensor([0, 0, -1.0])
        args.theta.requires_grad_()
        output = call(args, variant)
        nothing = 0 if args.fill is None else args.fill.view(-1, 1, 1)
        assert torch.equal(output[1], torch.zeros_like(output[1]) + nothing)
        (grad,) = torch.autograd.grad(output.sum(), args.theta)
        assert not grad[1].any()
        assert grad[0].any()

    def test_with_the_last_row_of_an_affine_map_it_is_the_affine_operator(self):
        args = case(Variant(2, "bilinear", "zeros", "plain", False))
        last = torch.tensor([0, 0, 1.0]).expand(2, 1, 3)
        actual = perspective_grid_sample(args.input, torch.cat((args.theta, last), 1), args.size)
        assert torch.equal(actual, affine_grid_sample(args.input, args.theta, args.size))

    def test_a_volume_is_refused(self):
        with pytest.raises(ValueError, match="input must have 4 dimensions"):
            perspective_grid_sample(torch.zeros(1, 1, 2, 3, 4), torch.eye(3)[None])


class TestAntialias:
    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("factors", [(1, 2), (4, 1), (3, 3)])
    def test_equals_sampling_at_a_multiple_and_averaging(self, factors, align_corners):
        size = (4, 5)
        extents = [
            ((n * f if not align_corners else (n - 1) * f + 1), n) for n, f in zip(size, factors, strict=True)
        ]
        images = torch.randn(2, 2, *(n for n, _ in extents), dtype=torch.float64)
        theta = torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3)
        fine = affine_grid_sample(
            images, theta, [n * f for n, f in zip(size, factors, strict=True)], align_corners=align_corners
        )
        actual = affine_grid_sample(images, theta, size, align_corners=align_corners, antialias=True)
        torch.testing.assert_close(actual, F.avg_pool2d(fine, factors))

    def test_a_whole_number_of_pixels_is_averaged_exactly(self):
        """The identity to half the size is the mean of four pixels."""
        images = torch.randn(2, 3, 8, 12, dtype=torch.float64)
        actual = affine_grid_sample(images, torch.eye(2, 3).expand(2, 2, 3), (4, 6), antialias=True)
        torch.testing.assert_close(actual, F.avg_pool2d(images, 2))

    def test_the_footprint_of_a_rotation_is_one_pixel(self):
        for degrees in range(0, 360, 7):
            a = math.radians(degrees)
            turn = torch.tensor([[[math.cos(a), -math.sin(a), 0], [math.sin(a), math.cos(a), 0]]])
            assert reference_parts.samples_per_pixel(turn, (99, 99), (99, 99), False).tolist() == [[1, 1]]

    def test_each_image_has_its_own_number(self):
        scales = ((2.5, 1), (1, 40), (1e15, 1), (1e30, 1), (math.inf, 1), (math.nan, 1))
        theta = torch.tensor([[[x, 0, 0], [0, y, 0]] for x, y in scales])
        counts = reference_parts.samples_per_pixel(theta, (8, 8), (8, 8), False)
        # The square of 1e30 overflows fp32. A theta that is not finite takes one sample.
        assert counts.tolist() == [[3, 1], [1, 40], [64, 1], [64, 1], [1, 1], [1, 1]]


class TestBytes:
    BYTES = torch.randint(0, 256, (2, 3, 6, 7), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)

    @pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
    def test_round_half_to_even_and_saturate(self, mode):
        theta = maps(2, 2, 1.0).float()
        actual = affine_grid_sample(self.BYTES, theta, mode=mode)
        expected = affine_grid_sample(self.BYTES.float(), theta, mode=mode).round().clamp(0, 255)
        assert actual.dtype == torch.uint8
        assert torch.equal(actual, expected.byte())

    def test_channels_last_stays(self):
        images = self.BYTES.contiguous(memory_format=torch.channels_last)
        output = affine_grid_sample(images, maps(2, 2, 1.0))
        assert output.is_contiguous(memory_format=torch.channels_last)

    def test_theta_may_require_gradients_where_none_are_recorded(self):
        theta = maps(2, 2, 1.0).requires_grad_()
        with torch.no_grad():
            affine_grid_sample(self.BYTES, theta)


class TestLabels:
    """Integer masks warped beside images: copied exactly, by a theta that may require gradients."""

    @staticmethod
    def some(dtype, seed=0):
        least, most = (0, 1) if dtype == torch.bool else (torch.iinfo(dtype).min, torch.iinfo(dtype).max)
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(least, most, (2, 3, 6, 7), generator=generator).to(dtype)

    @pytest.mark.parametrize("padding_mode", PADDING_MODES)
    @pytest.mark.parametrize("dtype", LABEL_DTYPES, ids=str)
    def test_they_are_those_of_the_pixels_that_images_have(self, dtype, padding_mode):
        labels, theta = self.some(dtype), maps(2, 2, 1.0).float()
        numbers = torch.arange(42.0).view(1, 1, 6, 7).expand(2, 1, 6, 7)
        if padding_mode in ("zeros", "fill"):
            at = affine_grid_sample(numbers + 1, theta, mode="nearest").long() - 1
        else:
            at = affine_grid_sample(numbers, theta, mode="nearest", padding_mode=padding_mode).long()
        fill = (1 if dtype == torch.bool else torch.iinfo(dtype).max) if padding_mode == "fill" else None
        options = {"mode": "nearest", "padding_mode": padding_mode, "fill_value": fill}
        actual = affine_grid_sample(labels, theta, **options)
        picked = labels.flatten(2).gather(2, at.clamp(min=0).flatten(2).expand(2, 3, 42)).view(labels.shape)
        expected = torch.where(at < 0, torch.tensor(fill or 0, dtype=dtype), picked)
        assert actual.dtype == dtype
        assert torch.equal(actual, expected)
        assert (at < 0).any() == (padding_mode in ("zeros", "fill"))

    def test_of_a_float_mantissa_nothing_is_lost(self):
        labels = torch.tensor([[[[2**62 + 1, -(2**62) - 1]]]])
        assert torch.equal(affine_grid_sample(labels, torch.eye(2, 3)[None], mode="nearest"), labels)
        far = torch.tensor([[[1.0, 0.0, 9.0], [0.0, 1.0, 0.0]]])
        fill = 2**62 + 1
        for value in (fill, [fill], torch.tensor(fill)):
            filled = affine_grid_sample(labels, far, mode="nearest", padding_mode="fill", fill_value=value)
            assert filled.flatten().tolist() == [fill, fill]

    def test_theta_may_require_gradients(self):
        labels, theta = self.some(torch.int64), maps(2, 2, 1.0).float()
        expected = affine_grid_sample(labels, theta, mode="nearest")
        result = affine_grid_sample(labels, theta.clone().requires_grad_(), mode="nearest")
        assert not result.requires_grad
        assert torch.equal(result, expected)
        with torch.autograd.forward_ad.dual_level():
            moving = torch.autograd.forward_ad.make_dual(theta, torch.ones_like(theta))
            assert torch.equal(affine_grid_sample(labels, moving, mode="nearest"), expected)
        each = torch.func.vmap(lambda x, t: affine_grid_sample(x[None], t[None], mode="nearest")[0])
        assert torch.equal(each(labels, theta), expected)

    def test_so_it_may_for_masks_of_bytes(self):
        masks, theta = self.some(torch.uint8), maps(2, 2, 1.0).float().requires_grad_()
        options = {"mode": "nearest", "padding_mode": "fill", "fill_value": 255}
        result = affine_grid_sample(masks, theta, **options)
        assert not result.requires_grad
        assert torch.equal(result, affine_grid_sample(masks.long(), theta, **options).byte())

    def test_layouts_volumes_and_the_other_maps(self):
        labels = self.some(torch.bool).contiguous(memory_format=torch.channels_last)
        theta = torch.eye(2, 3).expand(2, 2, 3)
        output = affine_grid_sample(labels, theta, mode="nearest")
        assert output.is_contiguous(memory_format=torch.channels_last)
        projective = torch.eye(3).expand(2, 3, 3)
        assert torch.equal(perspective_grid_sample(labels, projective, mode="nearest"), labels)
        offsets = torch.zeros(2, 9, 2)
        assert torch.equal(thin_plate_spline_grid_sample(labels, offsets, mode="nearest"), labels)
        volumes = self.some(torch.int16).unsqueeze(2)
        theta = torch.eye(3, 4).expand(2, 3, 4)
        assert torch.equal(affine_grid_sample(volumes, theta, mode="nearest"), volumes)

    @pytest.mark.parametrize(
        ("options", "error", "named"),
        [
            ({}, ValueError, "mode must be 'nearest' for an input of dtype torch.int32"),
            ({"mode": "bicubic"}, ValueError, "got 'bicubic'"),
            ({"mode": "nearest", "antialias": True}, ValueError, "antialias must be False"),
            ({"fill_value": 1.5}, TypeError, "fill_value must be an int .*got 1.5"),
            ({"fill_value": True}, TypeError, "got True"),
            ({"fill_value": 2**31}, ValueError, "from -2147483648 to 2147483647 .*got 2147483648"),
            ({"fill_value": [1, 2, 3.0]}, TypeError, "got 3.0"),
            ({"fill_value": [1, 2]}, ValueError, "3 values"),
            ({"fill_value": torch.ones(3)}, TypeError, "dtype of input, torch.int32, got torch.float32"),
        ],
    )
    def test_what_they_cannot_have_raises(self, options, error, named):
        if "fill_value" in options:
            options = {"mode": "nearest", "padding_mode": "fill", **options}
        with pytest.raises(error, match=named):
            affine_grid_sample(self.some(torch.int32), torch.eye(2, 3).expand(2, 2, 3), **options)


def test_volumes_keep_channels_last():
    volumes = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    output = affine_grid_sample(volumes, maps(2, 3, 1.0), (3, 4, 5))
    assert output.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("variant", EXISTING[::9], ids=Variant.name)
@pytest.mark.sample(10)
def test_compiled_it_is_the_same(variant):
    args = case(variant)
    torch._dynamo.reset()
    leaves = [t.requires_grad_() for t in (args.input, args.theta)]
    compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
    results = [f(args, variant) for f in (call, compiled)]
    torch.testing.assert_close(*results)
    grads = [torch.autograd.grad(r.square().sum(), leaves) for r in results]
    for first, second in itertools.zip_longest(*grads):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize("variant", CELLS[::3], ids=Variant.name)
def test_the_output_may_be_changed_in_place(variant):
    """The output is no view of another tensor, as with PyTorch's pair."""
    args = case(variant)
    args.input.requires_grad_()
    output = call(args, variant)
    F.relu_(output.add_(1)).sum().backward()
    assert args.input.grad is not None


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("channels", [2, 3, 5])
@pytest.mark.sample(4)
def test_compiled_for_any_size_with_static_parameters(n, channels):
    """Counts of images and channels may equal the sizes of a matrix, 2 and 3."""
    torch._dynamo.reset()
    theta = torch.nn.Parameter(maps(n, 2, 1.2).float())
    fill = torch.nn.Parameter(torch.rand(channels))
    function = lambda x: affine_grid_sample(x, theta, padding_mode="fill", fill_value=fill)  # noqa: E731
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    images = torch.rand(n, channels, 8, 8)
    torch.testing.assert_close(compiled(images), function(images))
    compiled(images).sum().backward()
    assert fill.grad is not None
    assert theta.grad is not None


@pytest.mark.parametrize("n", [2, 3, 4])
def test_compiled_projective_and_volumes_for_any_size(n):
    for variant in (
        Variant(2, "bilinear", "zeros", "projective", False),
        Variant(3, "bilinear", "zeros", "plain", False),
    ):
        torch._dynamo.reset()
        args = case(variant)
        args = args._replace(
            input=args.input[:1].repeat(n, *[1] * (variant.dim + 1)), theta=args.theta[:1].repeat(n, 1, 1)
        )
        compiled = torch.compile(call, backend="aot_eager", fullgraph=True, dynamic=True)
        torch.testing.assert_close(compiled(args, variant), call(args, variant))
