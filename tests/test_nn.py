"""The layer: theta from the outputs of its localisation network, and errors."""

import pytest
import torch
from torch import Tensor, nn

import stn_triton
from stn_triton import SpatialTransformer, affine_grid_sample, transforms
from stn_triton.nn import (
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    SpatialTransformerSeries,
)

# Number of parameters of each transform, for images and, where supported, for volumes.
PARAMETERS = {
    "affine": (6, 12),
    "attention": (3, 4),
    "translation": (2, 3),
    "rotation": (1, 3),
    "similarity": (4, 7),
    "projective": (8, None),
    "tps": (32, None),
}
KINDS = [(name, dim) for name, counts in PARAMETERS.items() for dim in (2, 3) if counts[dim - 2]]
IMAGE, VOLUME = (9, 14), (5, 6, 8)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randn(*shape: int, seed=0, dtype=torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def sample(dim=2, n=2, channels=3) -> Tensor:
    return randn(n, channels, *(IMAGE if dim == 2 else VOLUME)).sigmoid()


def set_numbers(layer: SpatialTransformer, numbers) -> SpatialTransformer:
    """Make the localisation network return ``numbers`` for every input."""
    with torch.no_grad():
        layer.head.bias.copy_(torch.as_tensor(numbers))
    return layer


def scatter(layer: SpatialTransformer, seed=0, amount=0.1) -> SpatialTransformer:
    """Make theta depend on the input, as in a trained layer."""
    with torch.no_grad():
        layer.head.weight.copy_(amount * randn(*layer.head.weight.shape, seed=seed))
    return layer


class TestIdentity:
    @pytest.mark.parametrize(("transform", "dim"), KINDS)
    @pytest.mark.parametrize("align_corners", [False, True])
    def test_an_untrained_layer_returns_its_input(self, transform, dim, align_corners):
        layer = SpatialTransformer(3, transform=transform, dim=dim, align_corners=align_corners)
        x = sample(dim)
        torch.testing.assert_close(layer(x), x, rtol=0, atol=2e-6)

    @pytest.mark.parametrize(("transform", "dim"), KINDS)
    def test_it_has_as_many_parameters_as_the_transform(self, transform, dim):
        layer = SpatialTransformer(3, transform=transform, dim=dim)
        assert len(layer.head.bias) == PARAMETERS[transform][dim - 2]

    def test_theta_is_the_identity_exactly(self):
        for transform in ("affine", "attention", "translation", "rotation", "similarity"):
            theta = SpatialTransformer(3, transform=transform).locate(sample())
            assert torch.equal(theta, transforms.identity().expand(2, 2, 3)), transform

    @pytest.mark.parametrize("size", [(3, 2), 5, None])
    def test_the_output_has_the_requested_size(self, size):
        x = sample()
        expected = affine_grid_sample(x, torch.eye(2, 3).expand(2, 2, 3), size)
        assert torch.equal(SpatialTransformer(3, size=size)(x), expected)

    def test_a_function_that_initialises_linear_layers_leaves_it(self):
        def initialise(module):
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight)

        layer = SpatialTransformer(3).apply(initialise)
        assert torch.equal(layer.locate(sample()), torch.eye(2, 3).expand(2, 2, 3))

    def test_weight_decay_pulls_towards_the_identity(self):
        layer = scatter(SpatialTransformer(3), amount=0.3)
        x = sample()

        def distance():
            return (layer.locate(x) - torch.eye(2, 3)).abs().max().item()

        before = distance()
        assert before > 0.01
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=1.0)
        for _ in range(30):
            optimizer.zero_grad()
            layer.locate(x).sum().mul(0).backward()
            optimizer.step()
        assert distance() < before / 20


class TestTheta:
    def test_affine(self):
        layer = set_numbers(SpatialTransformer(3), [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
        expected = torch.tensor([[1.1, 0.2, 0.3], [0.4, 1.5, 0.6]])
        torch.testing.assert_close(layer.locate(sample())[1], expected)

    def test_attention(self):
        layer = set_numbers(SpatialTransformer(3, transform="attention"), [-0.75, 0.2, -0.1])
        expected = torch.tensor([[0.5, 0, 0.2], [0, 0.5, -0.1]])
        torch.testing.assert_close(layer.locate(sample())[1], expected)

    @pytest.mark.parametrize("transform", ["attention", "similarity"])
    def test_one_scale_cannot_pass_through_zero(self, transform):
        """A negative scale would mirror the crop, and training would not recover from it."""
        layer = SpatialTransformer(3, transform=transform)
        numbers = torch.zeros(201, layer.parametrization.count)
        numbers[:, 0] = torch.linspace(-100, 100, 201)
        scales = layer.parametrization.theta(numbers, [1.0, 1.0])[:, 0, 0]
        assert scales.min() > 0
        assert (scales.diff() > 0).all()
        torch.testing.assert_close(scales[-1], torch.tensor(200.0), rtol=1e-3, atol=0)
        torch.testing.assert_close(scales * scales.flip(0), torch.ones(201))

    def test_projective(self):
        layer = set_numbers(SpatialTransformer(3, transform="projective"), torch.arange(1.0, 9))
        expected = torch.tensor([[2.0, 2, 3], [4, 6, 6], [7, 8, 1]])
        torch.testing.assert_close(layer.locate(sample())[1], expected)

    def test_a_scale_that_nothing_learns(self):
        layer = set_numbers(SpatialTransformer(3, transform="translation", scale=0.5), [0.2, -0.1])
        expected = torch.tensor([[0.5, 0, 0.2], [0, 0.5, -0.1]])
        torch.testing.assert_close(layer.locate(sample())[1], expected)

    @pytest.mark.parametrize("transform", ["rotation", "similarity"])
    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("align_corners", [False, True])
    def test_rotations_are_those_of_pixels(self, transform, dim, align_corners):
        layer = SpatialTransformer(3, transform=transform, dim=dim, align_corners=align_corners)
        set_numbers(layer, randn(len(layer.head.bias), seed=3))
        x = sample(dim)
        sides = torch.tensor([float(extent - align_corners) for extent in reversed(x.shape[2:])])
        pixels = layer.locate(x)[0, :, :-1] * sides[:, None] / sides
        square = pixels @ pixels.T
        scale = square[0, 0]
        torch.testing.assert_close(square, scale * torch.eye(dim), rtol=0, atol=1e-5)
        assert (scale - 1).abs() < 1e-5 or transform == "similarity"
        assert pixels.det() > 0
        assert (pixels - scale.sqrt() * torch.eye(dim)).abs().max() > 0.1, "it turned"

    def test_thin_plate_spline(self):
        numbers = 0.1 * randn(2 * 6)
        layer = set_numbers(SpatialTransformer(3, transform="tps", control_points=(2, 3)), numbers)
        x = sample()
        offsets = numbers.view(1, 6, 2).expand(2, -1, -1)
        assert torch.equal(layer.locate(x), offsets)
        expected = stn_triton.thin_plate_spline_grid_sample(x, offsets, points=(2, 3))
        assert torch.equal(layer(x), expected)

    def test_options_of_the_operator(self):
        options = {"padding_mode": "fill", "fill_value": 7.0, "mode": "bicubic", "align_corners": True}
        layer = set_numbers(SpatialTransformer(3, size=(4, 3), antialias=True, **options), [0.3] * 6)
        x = sample()
        theta = layer.locate(x)
        expected = affine_grid_sample(x, theta, (4, 3), antialias=True, **options)
        assert torch.equal(layer(x), expected)
        assert not torch.equal(layer(x), affine_grid_sample(x, theta, (4, 3)))

    def test_return_theta(self):
        layer = scatter(SpatialTransformer(3, return_theta=True, size=4))
        x = sample()
        output, theta = layer(x)
        assert torch.equal(output, affine_grid_sample(x, theta, 4))
        assert not torch.equal(theta[0], theta[1]), "it depends on the image"


class TestParallel:
    @pytest.mark.parametrize(
        ("transform", "dim", "bounded"),
        [
            (*kind, bounded)
            for kind in KINDS
            for bounded in (False, True)
            if kind[0] in stn_triton.nn.parameters.BOUNDED or (kind[0] != "rotation" and not bounded)
        ],
    )
    def test_tiles_cover_the_input(self, transform, dim, bounded):
        k = 2**dim
        layer = SpatialTransformer(
            3,
            transform=transform,
            dim=dim,
            transformers=k,
            initialization="tiles",
            bounded=bounded,
            size=4,
            return_theta=True,
        )
        x = sample(dim)
        output, theta = layer(x)
        assert output.shape == (2, k, 3, *[4] * dim)
        halves = torch.tensor([-0.5, 0.5])
        centres = torch.cartesian_prod(*[halves] * dim).flip(1)
        scale = 0.375 if bounded else 0.5
        matrices = torch.cat((scale * torch.eye(dim).expand(k, -1, -1), centres[:, :, None]), 2)
        for index in range(k):
            expected = affine_grid_sample(x, matrices[index].expand(2, -1, -1), 4)
            torch.testing.assert_close(output[:, index], expected, rtol=0, atol=1e-5)
        if transform not in ("projective", "tps"):
            torch.testing.assert_close(theta, matrices.expand(2, -1, -1, -1), rtol=0, atol=1e-6)

    @pytest.mark.parametrize(
        ("count", "dim", "along"),
        [(1, 2, [1, 1]), (2, 2, [2, 1]), (6, 2, [3, 2]), (4, 3, [2, 2, 1]), (5, 2, [5, 1]), (12, 2, [3, 4])],
    )
    def test_any_number_of_tiles(self, count, dim, along):
        found, centres = stn_triton.nn.parameters.tiles(count, dim)
        assert found == along
        assert len({tuple(centre) for centre in centres}) == count
        for axis, n in enumerate(along):
            expected = {round((2 * i + 1) / n - 1, 6) for i in range(n)}
            assert {round(centre[axis], 6) for centre in centres} == expected

    def test_identities_of_several(self):
        layer = SpatialTransformer(3, transformers=3)
        assert torch.equal(layer.locate(sample()), torch.eye(2, 3).expand(2, 3, 2, 3))


class TestLocalization:
    @pytest.mark.parametrize("make", [ConvolutionalLocalization, FullyConnectedLocalization])
    @pytest.mark.parametrize("shape", [(1, 1), (1, 9), (7, 5), (64, 48), (1, 1, 1), (3, 8, 5)])
    def test_any_input_size(self, make, shape):
        network = make(3, dim=len(shape))
        x = randn(2, 3, *shape).requires_grad_()
        found = network(x)
        assert found.shape == (2, network.out_features)
        (grad,) = torch.autograd.grad(found.sum(), x)
        assert grad.abs().max() > 0

    @pytest.mark.parametrize("make", [ConvolutionalLocalization, FullyConnectedLocalization])
    def test_it_sees_where_things_are(self, make):
        x = torch.zeros(2, 1, 32, 32)
        x[0, :, 4:8, 4:8] = x[1, :, 20:24, 20:24] = 1
        first, second = make(1)(x)
        assert (first - second).abs().max() > 1e-3

    @pytest.mark.parametrize(("shape", "cells"), [((8, 12), 4), ((7, 10), 3), ((2, 5), 4), ((4, 6, 8), 2)])
    def test_averages_of_cells(self, shape, cells):
        x = randn(2, 3, *shape)
        averages = stn_triton.nn.localization._average(x, len(shape), cells)
        fine = x  # pixels split so finely that each cell consists of whole pixels
        for axis in range(2, x.ndim):
            fine = fine.repeat_interleave(cells, dim=axis)
        for axis, extent in enumerate(shape, start=2):
            fine = fine.unflatten(axis, (cells, extent)).mean(axis + 1)
        torch.testing.assert_close(averages, fine, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("shape", [(8, 9), (1, 5), (4, 5, 6), (1, 2, 3)])
    def test_max_pooling(self, shape):
        x = randn(2, 3, *shape)
        pool = nn.functional.max_pool2d if len(shape) == 2 else nn.functional.max_pool3d
        expected = pool(x, [min(2, extent) for extent in shape])
        assert torch.equal(stn_triton.nn.localization._halve(x), expected)

    def test_features_from_elsewhere(self):
        layer = scatter(SpatialTransformer(8, size=4, return_theta=True))
        x, features = sample(), randn(2, 8, 20, 11)
        output, theta = layer(x, features)
        assert torch.equal(output, affine_grid_sample(x, theta, 4))
        _, other = layer(x + 1, features)
        assert torch.equal(theta, other), "x is not looked at"
        assert not torch.equal(theta, layer(x, features.flip(3))[1])

    def test_features_may_be_a_vector(self):
        layer = scatter(SpatialTransformer(8, localization=nn.Linear(8, 16)))
        assert layer(sample(), randn(2, 8)).shape == sample().shape

    @pytest.mark.parametrize(
        ("network", "width"),
        [
            (nn.Sequential(nn.Flatten(), nn.Linear(3 * 9 * 14, 20), nn.ReLU()), 20),
            (nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(3 * 9 * 14, 20), nn.Tanh())), 20),
            (FullyConnectedLocalization(3, hidden=(5,)), 5),
        ],
    )
    def test_the_width_of_a_module_is_found(self, network, width):
        layer = SpatialTransformer(3, localization=network)
        assert layer.head.weight.shape == (6, width)
        assert layer(sample()).shape == sample().shape

    def test_a_width_that_is_given(self):
        network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        layer = SpatialTransformer(3, localization=network, localization_features=32)
        assert layer(sample()).shape == sample().shape

    def test_a_network_that_ends_in_the_numbers(self):
        last = nn.Linear(3 * 9 * 14, 2 * 3)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        layer = SpatialTransformer(
            3,
            transform="attention",
            transformers=2,
            localization=nn.Sequential(nn.Flatten(), last),
            head=False,
        )
        assert torch.equal(layer.locate(sample()), torch.eye(2, 3).expand(2, 2, 2, 3))
        with torch.no_grad():
            last.bias.copy_(torch.tensor([-0.75, 0.1, 0.2, 0.75, -0.1, -0.2]))
        expected = torch.tensor([[[0.5, 0, 0.1], [0, 0.5, 0.2]], [[2, 0, -0.1], [0, 2, -0.2]]])
        torch.testing.assert_close(layer.locate(sample())[1], expected)
        assert {name.partition(".")[0] for name in layer.state_dict()} == {"localization"}


class TestSeries:
    def stages(self, *transforms_, **options):
        layers = [SpatialTransformer(3, transform=name, **options) for name in transforms_]
        return [scatter(layer, seed, 0.3) for seed, layer in enumerate(layers)]

    def test_it_warps_the_original_once_by_the_product(self):
        stages = self.stages("rotation", "affine", "attention", size=6)
        x = sample()
        output, theta = SpatialTransformerSeries(*stages, return_theta=True)(x)
        product, warped = torch.eye(3).expand(2, 3, 3), x
        row = torch.tensor([0.0, 0, 1]).expand(2, 1, 3)
        for stage in stages:
            product = product @ torch.cat((stage.locate(warped), row), 1)
            warped = affine_grid_sample(x, product[:, :2], 6)
        torch.testing.assert_close(theta, product[:, :2])
        torch.testing.assert_close(output, warped)
        assert (theta - torch.eye(2, 3)).abs().max() > 0.05

    def test_what_one_stage_cuts_off_the_next_brings_back(self):
        away = set_numbers(SpatialTransformer(3, transform="translation"), [1.0, 0.0])
        back = set_numbers(SpatialTransformer(3, transform="translation"), [-1.0, 0.0])
        x = sample()
        torch.testing.assert_close(SpatialTransformerSeries(away, back)(x), x, rtol=0, atol=1e-5)
        assert (back(away(x)) - x).abs().max() > 0.1

    def test_projective_stages(self):
        stages = self.stages("affine", "projective", "affine")
        output, theta = SpatialTransformerSeries(*stages, return_theta=True)(sample())
        assert theta.shape == (2, 3, 3)
        assert torch.equal(output, stn_triton.perspective_grid_sample(sample(), theta))

    def test_volumes(self):
        stages = self.stages("rotation", "affine", dim=3)
        _, theta = SpatialTransformerSeries(*stages, return_theta=True)(sample(3))
        assert theta.shape == (2, 3, 4)

    def test_a_recurrent_one_has_the_parameters_of_one(self):
        layer = SpatialTransformer(3)
        series = SpatialTransformerSeries(*[layer] * 3)
        assert len(list(series.parameters())) == len(list(layer.parameters()))
        scatter(layer)
        series(sample()).square().sum().backward()
        assert all(p.grad.abs().max() > 0 for p in layer.head.parameters())

    @pytest.mark.parametrize(
        ("stages", "error", "message"),
        [
            ([], ValueError, "at least one"),
            ([nn.Identity()], TypeError, r"stages\[0\] must be a SpatialTransformer, got Identity"),
            (
                [nn.Sequential(SpatialTransformer(3))],
                TypeError,
                "must be a SpatialTransformer, got Sequential",
            ),
            ([SpatialTransformer(3, transform="tps")], ValueError, r"stages\[0\] .* transform='tps'"),
            ([SpatialTransformer(3, transformers=2)], ValueError, "transformers=1, got 2"),
            ([SpatialTransformer(3), SpatialTransformer(4)], ValueError, r"stages\[1\] .* in_channels=3"),
            ([SpatialTransformer(3), SpatialTransformer(3, dim=3)], ValueError, "dim=2, as the first"),
            (
                [SpatialTransformer(3, transform="projective"), SpatialTransformer(3, antialias=True)],
                ValueError,
                "antialias=False",
            ),
        ],
    )
    def test_stages_that_do_not_fit(self, stages, error, message):
        with pytest.raises(error, match=message):
            SpatialTransformerSeries(*stages)

    def test_hooks_of_a_stage_see_its_theta(self):
        stage = scatter(SpatialTransformer(3, size=4))
        seen = []
        stage.register_forward_hook(lambda _, arguments, output: seen.append((arguments, output)))
        x = sample()
        SpatialTransformerSeries(stage)(x)
        (((given,), theta),) = seen
        assert given is x
        assert torch.equal(theta, stage.locate(x))
