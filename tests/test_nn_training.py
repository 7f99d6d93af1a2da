"""Training: a layer learns a theta that undoes the distortion of its input."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from test_nn import randn, sample, scatter, set_numbers
from torch import Tensor, nn

import stn_triton
from stn_triton import SpatialTransformer, affine_grid_sample, transforms
from stn_triton.nn import (
    FullyConnectedLocalization,
    SpatialTransformerSeries,
    outside_penalty,
    parameter_groups,
    scale_gradient,
)

BOUNDED = stn_triton.nn.parameters.BOUNDED


@pytest.fixture(autouse=True)
def _seed_and_one_thread():
    """Use one thread, because several wait for each other in such small operators, for minutes if busy."""
    torch.manual_seed(0)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def blobs(size: int) -> Tensor:
    """Make an image of three blobs that looks different at every angle."""
    x, y = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="xy")
    centres = ((-0.45, 0.0, 1.0), (0.1, 0.0, 0.7), (0.35, 0.4, 0.9))
    return sum([w * (-((x - a) ** 2 + (y - b) ** 2) / 0.06).exp() for a, b, w in centres])[None, None]


def train(model, draw, loss, steps=200, lr=0.02, batch=32) -> tuple[float, float]:
    """Minimise ``loss`` on samples of ``draw``; return its means over the first and the last tenth."""
    optimizer = torch.optim.Adam(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    losses = []
    for _ in range(steps):
        x, truth = draw(batch)
        value = loss(model(x), truth)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
        losses.append(value.item())
    tenth = steps // 10
    return sum(losses[:tenth]) / tenth, sum(losses[-tenth:]) / tenth


class TestAlignment:
    """A layer learns to undo rotations by random angles, which it is not given."""

    def draw(self, limit: float, size=20):
        template = blobs(size)

        def draw(n):
            theta = transforms.rotation((2 * torch.rand(n) - 1) * limit)
            return affine_grid_sample(template.expand(n, -1, -1, -1), theta), theta

        def loss(output, _):
            return F.mse_loss(output[0], template.expand_as(output[0]))

        return draw, loss

    def angles_left(self, model, draw) -> Tensor:
        """Compute the angles, in degrees, that remain after the layer has turned its inputs back."""
        x, turned = draw(200)
        with torch.no_grad():
            left = transforms.compose(turned, model(x)[1])
        return torch.atan2(left[:, 1, 0] - left[:, 0, 1], left[:, 0, 0] + left[:, 1, 1]).rad2deg().abs()

    @pytest.mark.parametrize("transform", ["rotation", "similarity", "affine"])
    def test_theta_undoes_a_rotation(self, transform):
        draw, loss = self.draw(limit=math.pi / 2)
        network = FullyConnectedLocalization(1)
        model = SpatialTransformer(1, transform=transform, localization=network, return_theta=True)
        assert self.angles_left(model, draw).mean() > 30
        first, last = train(model, draw, loss)
        assert last < first / 50
        left = self.angles_left(model, draw)
        assert left.mean() < 2
        assert left.quantile(0.95) < 5

    def test_the_default_network(self):
        draw, loss = self.draw(limit=math.pi / 2)
        model = SpatialTransformer(1, return_theta=True)
        first, last = train(model, draw, loss, steps=250, lr=0.01)
        assert last < first / 50
        assert self.angles_left(model, draw).mean() < 3

    @pytest.mark.full
    def test_a_series_aligns_step_by_step(self):
        draw, loss = self.draw(limit=0.75 * math.pi)
        network = FullyConnectedLocalization(1, hidden=(32,))
        stage = SpatialTransformer(1, transform="rotation", localization=network)
        model = SpatialTransformerSeries(stage, stage, stage, return_theta=True)
        first, last = train(model, draw, loss, steps=500, lr=0.01)
        assert last < first / 20
        lefts = []
        for count in (1, 2, 3):
            part = SpatialTransformerSeries(*[stage] * count, return_theta=True)
            lefts.append(self.angles_left(part, draw).mean().item())
        assert lefts[2] < 2
        assert lefts[1] < lefts[0] / 2, "the second step improves on the first"
        assert lefts[2] < lefts[1] / 2

    def test_a_spline_undoes_a_bend(self):
        template = blobs(20)
        bends = torch.zeros(1, 9, 2)
        bends[0, 4] = torch.tensor([0.3, -0.2])

        def draw(n):
            amount = 2 * torch.rand(n, 1, 1) - 1
            return stn_triton.thin_plate_spline_grid_sample(
                template.expand(n, -1, -1, -1), amount * bends
            ), template.expand(n, -1, -1, -1)

        network = FullyConnectedLocalization(1)
        model = SpatialTransformer(1, transform="tps", control_points=(3, 3), localization=network)
        first, last = train(model, draw, F.mse_loss)
        assert last < first / 10


class TestBounded:
    def numbers(self, layer, amount, n=500):
        return amount * randn(n, len(layer.head.bias), seed=7)

    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("transform", BOUNDED)
    @pytest.mark.parametrize("amount", [0.1, 1.0, 30.0, 1e6])
    def test_a_crop_cannot_leave_the_image(self, transform, dim, amount):
        layer = SpatialTransformer(1, transform=transform, dim=dim, bounded=True)
        theta = layer.parametrization.theta(self.numbers(layer, amount), [3.0, 2.0, 1.0][:dim])
        corners = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * dim)
        at = corners @ theta[:, :, :-1].mT + theta[:, None, :, -1]
        assert at.abs().max() <= 1 + 1e-6
        assert theta.std(0).max() > amount / 10 or amount > 1, "it can move"
        if amount == 1.0 and transform != "translation":
            assert at.abs().amax((1, 2)).max() > 0.97, "it reaches the edges"

    @pytest.mark.parametrize("dim", [2, 3])
    @pytest.mark.parametrize("transform", BOUNDED)
    def test_the_initial_crop_can_move_in_every_way(self, transform, dim):
        for options in ({}, {"transformers": 2**dim, "initialization": "tiles"}):
            layer = SpatialTransformer(1, transform=transform, dim=dim, bounded=True, **options).double()
            numbers = layer.head.bias.detach()[: layer.parametrization.count]
            theta = functools.partial(layer.parametrization.theta, sides=[1.0] * dim)
            jacobian = torch.func.jacrev(theta)(numbers)
            gains = torch.linalg.svdvals(jacobian.flatten(0, 1))
            assert gains.min() > 0.1
            assert gains.max() < 2

    @pytest.mark.parametrize("transform", BOUNDED)
    def test_it_is_smooth(self, transform):
        layer = SpatialTransformer(1, transform=transform, bounded=True)
        numbers = self.numbers(layer, 0.5, n=3).double()
        numbers[0] = layer.head.bias.detach()  # zeros off the diagonal, where |x| is not smooth

        def theta(numbers):
            return layer.parametrization.theta(numbers, [1.3, 1.0])

        numbers.requires_grad_()
        assert torch.autograd.gradcheck(theta, numbers)
        assert torch.autograd.gradgradcheck(theta, numbers.detach()[1:].requires_grad_())

    def test_scale_and_initial_crop(self):
        for transform in BOUNDED:
            for scale in (0.3, 0.75, 0.99):
                layer = SpatialTransformer(1, transform=transform, bounded=True, scale=scale)
                expected = scale * torch.eye(2, 3).expand(2, 2, 3)
                found = layer.locate(sample(channels=1))
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("transform", ["attention", "affine"])
    @pytest.mark.sample(1)
    def test_it_finds_a_digit_in_a_corner(self, transform):
        """A small pattern somewhere in a large image must fill the crop."""
        template, scale = blobs(16), 0.4

        def draw(n):
            centre = (2 * torch.rand(n, 2) - 1) * (1 - scale)
            placed = transforms.invert(transforms.affine(scale=[scale], translation=centre))
            return affine_grid_sample(template.expand(n, -1, -1, -1), placed, 40), centre

        def loss(output, _):
            return F.mse_loss(output[0], template.expand_as(output[0]))

        network = FullyConnectedLocalization(1, cells=20)
        model = SpatialTransformer(
            1, transform=transform, bounded=True, scale=0.7, size=16, localization=network, return_theta=True
        )
        first, last = train(model, draw, loss, steps=400, lr=0.01)
        assert last < first / 5
        x, centre = draw(200)
        with torch.no_grad():
            _, theta = model(x)
        assert (theta[:, :, 2] - centre).abs().median() < 0.03
        assert (theta[:, 0, 0] - scale).abs().median() < 0.03


class TestPenalty:
    def test_inside_costs_nothing(self):
        theta = SpatialTransformer(1, bounded=True).locate(sample(channels=1)).detach().requires_grad_()
        penalty = outside_penalty(theta)
        assert torch.equal(penalty, torch.zeros(2))
        (grad,) = torch.autograd.grad(penalty.sum(), theta)
        assert torch.equal(grad, torch.zeros_like(grad))
        assert outside_penalty(torch.eye(3, 4)) == 0
        assert outside_penalty(torch.zeros(4, 9, 2)).eq(0).all()

    @pytest.mark.parametrize(
        ("theta", "share"),
        [
            (transforms.translation([0.5, 0.0]), 1 / 4),
            (transforms.translation([-1.0, 1.0]), 3 / 4),
            (transforms.translation([1.0, 1.0, 1.0]), 7 / 8),
            (transforms.scale([2.0, 2.0]), 3 / 4),
            (transforms.rotation(math.pi / 4), 3 - 2 * math.sqrt(2)),  # a square without an octagon
            (transforms.translation([0.0, 5.0]), 1),
            (torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, -1]]), 1),  # behind the horizon
            (torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 0.5]]), 3 / 4),
        ],
    )
    def test_it_is_the_share_outside(self, theta, share):
        lattice = 200 if theta.shape[-1] == 3 else 64
        found = outside_penalty(theta, lattice=lattice, softness=1e-6)
        assert abs(found.item() - share) < 0.02
        assert abs(outside_penalty(theta).item() - share) < 0.25

    def test_of_splines(self):
        """Control points that all move by one matrix have the penalty of that matrix."""
        theta = transforms.affine(angle=0.5, scale=[1.3], translation=[0.4, -0.3])
        y, x = torch.meshgrid(torch.linspace(-1, 1, 3), torch.linspace(-1, 1, 4), indexing="ij")
        points = torch.stack((x, y), -1).view(-1, 2)
        offsets = points @ theta[:, :2].T + theta[:, 2] - points
        found = outside_penalty(offsets.expand(5, 2, -1, -1), points=(3, 4))
        assert found.shape == (5, 2)
        torch.testing.assert_close(found, outside_penalty(theta).expand(5, 2))

    def test_derivatives(self):
        theta = 0.7 * randn(6, 3, 3, dtype=torch.float64) + torch.eye(3)
        offsets = 0.5 * randn(3, 4, 2, dtype=torch.float64)
        for tensor in (theta, theta[:, :2], offsets):
            assert torch.autograd.gradcheck(outside_penalty, tensor.clone().requires_grad_())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_precision(self, dtype):
        theta = transforms.translation([0.5, 0.25]).to(dtype)
        with torch.autocast("cpu", torch.bfloat16):
            found = outside_penalty(theta)
        assert found.dtype == torch.float32
        assert torch.equal(found, outside_penalty(theta.float()))

    @pytest.mark.parametrize("transform", ["translation", "affine", "projective", "tps"])
    @pytest.mark.sample(1)
    def test_it_brings_a_lost_crop_back(self, transform):
        layer = SpatialTransformer(1, transform=transform, return_theta=True)
        x = sample(channels=1)
        set_numbers(layer, layer.parametrization.start([2.5, -3.0]))
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.02)
        penalties = []
        for _ in range(150):
            output, theta = layer(x)
            assert penalties or output.abs().max() == 0, "it sees nothing"
            (grad,) = torch.autograd.grad(output.sum(), theta, retain_graph=True)
            assert penalties or grad.abs().max() == 0, "and has no gradient"
            penalty = outside_penalty(theta).mean()
            optimizer.zero_grad()
            penalty.backward()
            optimizer.step()
            penalties.append(penalty.item())
        assert penalties[0] > 0.9
        assert penalties[-1] < 0.05


class TestRates:
    def model(self):
        stage = SpatialTransformer(1)
        model = nn.ModuleDict(
            {
                "features": nn.Conv2d(1, 4, 3),
                "layer": SpatialTransformer(4, transform="attention"),
                "series": SpatialTransformerSeries(stage, stage),
                "classifier": nn.Linear(10, 2),
            }
        )
        model["classifier"].bias.requires_grad_(False)
        return model

    def test_each_parameter_is_in_one_group(self):
        model = self.model()
        rest, localization = parameter_groups(model, lr=0.5, localization_lr_scale=0.1)
        inside = [*model["layer"].parameters(), *model["series"].parameters()]
        outside = [*model["features"].parameters(), model["classifier"].weight]
        assert {*map(id, localization["params"])} == {*map(id, inside)}
        assert {*map(id, rest["params"])} == {*map(id, outside)}
        assert len(localization["params"]) == len(inside)
        assert (rest["lr"], localization["lr"]) == (0.5, 0.05)

    @pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
    def test_optimizers_and_schedulers_take_them(self, optimizer):
        made = optimizer(parameter_groups(self.model(), lr=0.5))
        schedule = torch.optim.lr_scheduler.StepLR(made, 1, gamma=0.1)
        made.step()
        schedule.step()
        assert [group["lr"] for group in made.param_groups] == pytest.approx([0.05, 0.005])

    def test_a_layer_alone(self):
        (group,) = parameter_groups(SpatialTransformer(1), lr=1.0)
        assert group["name"] == "localization"

    def test_steps_of_the_localisation_are_smaller(self):
        steps = []
        for scale in (1.0, 0.1):
            torch.manual_seed(0)
            layer = SpatialTransformer(1)
            optimizer = torch.optim.SGD(parameter_groups(layer, 0.5, scale))
            layer(sample(channels=1)).square().sum().backward()
            optimizer.step()
            steps.append(layer.head.bias.detach().clone())
        torch.testing.assert_close(steps[0], 10 * steps[1])

    @pytest.mark.parametrize("factor", [0.1, 0.0, -2.0, 1.0])
    def test_scale_gradient(self, factor):
        theta = randn(4, 2, 3).mul(1e3).requires_grad_()
        scaled = scale_gradient(theta, factor)
        assert torch.equal(scaled, theta), "bit for bit"
        (grad,) = torch.autograd.grad(scaled.square().sum(), theta)
        torch.testing.assert_close(grad, factor * 2 * theta)

    def test_gradient_scale_of_a_layer(self):
        grads = []
        for gradient_scale in (1.0, 0.25):
            torch.manual_seed(0)
            layer = scatter(SpatialTransformer(1, gradient_scale=gradient_scale))
            x = sample(channels=1).requires_grad_()
            output = layer(x)
            output.square().sum().backward()
            grads.append([p.grad for p in layer.parameters()])
            grads[-1].append(output.detach())
        for full, part in zip(*(g[:-1] for g in grads), strict=True):
            torch.testing.assert_close(part, 0.25 * full)
        assert torch.equal(grads[0][-1], grads[1][-1])
