"""The layer in PyTorch: precision, compilers, copies, files, and errors."""

import copy
import doctest
import inspect
import io
import pickle
import sys

import numpy as np
import pytest
import torch
from test_nn import KINDS, PARAMETERS, randn, sample, scatter, set_numbers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import stn_triton
from stn_triton import SpatialTransformer
from stn_triton.nn import (
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    SpatialTransformerSeries,
    localization,
    outside_penalty,
    parameter_groups,
    scale_gradient,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


HALVES = [torch.float16, torch.bfloat16]


def watch(module) -> list:
    """Collect a module's outputs in a list."""
    seen = []
    module.register_forward_hook(lambda _, __, output: seen.append(output))
    return seen


class TestPrecision:
    @pytest.mark.parametrize("dtype", HALVES)
    def test_theta_is_fp32_under_autocast(self, dtype):
        layer = scatter(SpatialTransformer(3, return_theta=True), amount=1.0)
        seen = watch(layer.localization)
        with torch.autocast("cpu", dtype):
            output, theta = layer(sample())
        assert seen[0].dtype == dtype, "the network itself is autocast"
        assert theta.dtype == torch.float32
        assert output.dtype == torch.float32
        numbers = seen[0].double() @ layer.head.weight.double().T
        exact = numbers.view(-1, 2, 3) + torch.eye(2, 3, dtype=torch.float64)
        assert (theta - exact).abs().max() < 1e-6
        assert (exact.to(dtype) - exact).abs().max() > 2e-5, "16 bits would have shown"

    @pytest.mark.parametrize("dtype", HALVES)
    def test_layers_of_16_bits(self, dtype):
        layer = scatter(SpatialTransformer(3, return_theta=True)).to(dtype)
        output, theta = layer(sample().to(dtype))
        assert output.dtype == dtype
        assert theta.dtype == torch.float32
        output.float().sum().backward()
        assert layer.head.weight.grad.dtype == dtype

    def test_fp64(self):
        layer = scatter(SpatialTransformer(3, transform="similarity", return_theta=True)).double()
        x = sample().double().requires_grad_()
        output, theta = layer(x)
        assert output.dtype == theta.dtype == torch.float64

        def numbers(bias):
            return torch.func.functional_call(layer, {"head.bias": bias}, x)[0]

        bias = 0.1 * randn(4, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(numbers, bias)

    def test_a_uint8_image_with_features(self):
        layer = scatter(SpatialTransformer(8))
        x = sample().mul(255).to(torch.uint8)
        with torch.no_grad():
            assert layer(x, randn(2, 8, 5, 5)).dtype == torch.uint8


class TestCompile:
    @pytest.fixture(autouse=True)
    def _forget(self):
        torch.compiler.reset()

    @pytest.mark.parametrize(
        ("transform", "dim"), [("affine", 2), ("similarity", 3), ("projective", 2), ("tps", 2)]
    )
    @pytest.mark.sample(1)
    def test_fullgraph(self, transform, dim):
        options = {"gradient_scale": 0.5, "return_theta": True}
        layer = scatter(SpatialTransformer(3, transform=transform, dim=dim, size=4, **options))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        x = sample(dim)
        for function in (layer, compiled):
            layer.zero_grad()
            output, theta = function(x)
            output.square().sum().backward()
            grads = [p.grad.clone() for p in layer.parameters()]
            if function is layer:
                expected = [output, theta, *grads]
        torch.testing.assert_close([output, theta, *grads], expected)
        assert layer.head.bias.grad.abs().max() > 0

    @pytest.mark.full
    def test_fullgraph_of_everything_else(self):
        stage = scatter(SpatialTransformer(3, transform="similarity"), amount=0.3)
        crops = SpatialTransformer(3, transformers=2, initialization="tiles", bounded=True, size=4)
        series = SpatialTransformerSeries(stage, stage, return_theta=True)

        def call(x):
            output, theta = series(x)
            return crops(output), outside_penalty(theta)

        compiled = torch.compile(call, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(sample()), call(sample()))

    def test_sizes_that_vary(self):
        layer = scatter(SpatialTransformer(3, transform="similarity", size=5))
        compiles = []

        def backend(graph, inputs):
            compiles.append(graph)
            return graph

        compiled = torch.compile(layer, backend=backend, fullgraph=True, dynamic=True)
        for n, height, width in ((4, 20, 31), (5, 37, 22), (7, 64, 48)):
            x = randn(n, 3, height, width).sigmoid()
            torch.testing.assert_close(compiled(x), layer(x))
        assert len(compiles) == 1

    def test_no_product_goes_over_an_axis_of_one(self):
        """Inductor of torch 2.13 reads beyond a symbolic axis of 1, such as after pooling small volumes."""
        inner = []

        class Products(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                if function in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default):
                    inner.append(args[0].shape[-1])
                return function(*args, **kwargs or {})

        with Products():
            localization._average(randn(2, 3, 1, 1, 2), 3, 6)
        assert len(inner) == 3
        assert min(inner) > 1

    def test_export(self):
        layer = scatter(SpatialTransformer(3, transform="similarity", size=5))
        batch, height, width = torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC, torch.export.Dim.DYNAMIC
        program = torch.export.export(layer, (sample(),), dynamic_shapes=({0: batch, 2: height, 3: width},))
        x = randn(5, 3, 21, 30).sigmoid()
        torch.testing.assert_close(program.module()(x), layer(x))

    def test_vmap_over_an_ensemble(self):
        layers = [scatter(SpatialTransformer(3), seed) for seed in range(3)]
        parameters, _ = torch.func.stack_module_state(layers)

        x = sample()

        def call(one):
            return torch.func.functional_call(layers[0], one, x)

        expected = torch.stack([layer(x) for layer in layers])
        torch.testing.assert_close(torch.vmap(call)(parameters), expected)


class TestCopies:
    @pytest.mark.parametrize(("transform", "dim"), KINDS)
    def test_the_state_is_parameters_only(self, transform, dim):
        layer = SpatialTransformer(3, transform=transform, dim=dim)
        assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}
        assert not list(layer.buffers())

    def test_the_state_is_all_there_is(self):
        options = {"transformers": 4, "initialization": "tiles"}
        layer = SpatialTransformer(3, **options)
        with torch.device("meta"):
            other = SpatialTransformer(3, **options)
        other.to_empty(device="cpu").load_state_dict(layer.state_dict())
        assert torch.equal(layer(sample()), other(sample()))

    def test_a_layer_made_on_no_device_can_be_initialised(self):
        layer = restarted(lambda: SpatialTransformer(3, transformers=4, initialization="tiles"))
        expected = SpatialTransformer(3, transformers=4, initialization="tiles").locate(sample())
        assert torch.equal(layer.locate(sample()), expected)

    @pytest.mark.parametrize("order", [list, lambda modules: reversed([*modules])], ids=["down", "up"])
    def test_convolutions_start_as_documented(self, order):
        made = ConvolutionalLocalization(3, channels=(64, 16))
        for network in (made, copy.deepcopy(made), restarted(type(made), 3, channels=(64, 16), order=order)):
            for layer in (*network.convolutions, network.linear):
                expected = (2 / layer.weight[0].numel()) ** 0.5  # He et al. 2015
                assert abs(layer.weight.std() / expected - 1) < 0.1
                assert not layer.bias.any()

    def test_fully_connected_layers_start_as_documented(self):
        network = restarted(FullyConnectedLocalization, 3, cells=4)
        for layer in network.layers:
            assert 0.9 < layer.weight.abs().max() * layer.in_features**0.5 <= 1

    def test_each_starts_anew_by_itself(self):
        for module in (SpatialTransformer(3), ConvolutionalLocalization(3), FullyConnectedLocalization(3)):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.fill_(7)
            module.reset_parameters()
            assert not any((parameter == 7).any() for parameter in module.parameters())

    def test_a_copy_starts_itself_anew(self):
        network = ConvolutionalLocalization(3)
        weight = network.linear.weight.clone()
        copy.deepcopy(network).linear.reset_parameters()
        assert torch.equal(network.linear.weight, weight)

    @pytest.mark.parametrize(
        "through",
        [
            copy.deepcopy,
            lambda layer: pickle.loads(pickle.dumps(layer)),
            lambda layer: torch.load(saved(layer), weights_only=False),
        ],
        ids=["deepcopy", "pickle", "torch.save"],
    )
    def test_copies(self, through):
        layer = scatter(SpatialTransformer(3, transform="tps", bounded=False, gradient_scale=0.3))
        other = through(layer)
        assert torch.equal(layer(sample()), other(sample()))
        set_numbers(other, 1.0)
        assert not torch.equal(layer(sample()), other(sample()))

    @pytest.mark.parametrize(("transform", "dim"), KINDS)
    def test_shapes_without_data(self, transform, dim):
        layer = SpatialTransformer(3, transform=transform, dim=dim, size=4, return_theta=True)
        expected = layer(sample(dim))
        found = layer.to("meta")(sample(dim).to("meta"))
        assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
        assert found[1].is_meta
        assert outside_penalty(torch.eye(2, 3, device="meta")).is_meta

    def test_it_says_what_it_is(self):
        text = repr(SpatialTransformer(3, transform="attention", size=(4, 5), bounded=True))
        for word in ("3, transform='attention', size=(4, 5), bounded=True\n", "out_features=3"):
            assert word in text


def restarted(make, *args, order=list, **options):
    """Make a module on the meta device and initialise it as FullyShardedDataParallel does."""
    with torch.device("meta"):
        module = make(*args, **options)
    module.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    for part in order(module.modules()):
        if hasattr(part, "reset_parameters"):
            part.reset_parameters()
    return module


def saved(layer) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return file


class TestArguments:
    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"transform": "afine"}, ValueError, "transform must be one of 'affine', .*, got 'afine'"),
            ({"transform": "tps", "dim": 3}, ValueError, r"for volumes \(dim=3\), got 'tps'"),
            ({"transform": "projective", "dim": 3}, ValueError, "'similarity' for volumes"),
            ({"dim": 4}, ValueError, "dim must be 2"),
            ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
            ({"in_channels": "3"}, TypeError, "in_channels must be an int, got '3' of type str"),
            ({"size": (4, 5, 6)}, ValueError, r"got \(4, 5, 6\) for dim=2: with dim=3"),
            ({"size": (4, 5), "dim": 3}, ValueError, r"got \(4, 5\) for dim=3: with dim=2"),
            ({"size": (2, 3, 4, 5)}, ValueError, r"\(H_out, W_out\)"),
            ({"size": 0}, ValueError, "size must be positive"),
            ({"size": 2.5}, TypeError, "size must be None, an int"),
            ({"size": 10**30}, ValueError, r"size must be at most 2\*\*30 on each axis, got"),
            ({"size": (4, 2**25), "antialias": True}, ValueError, r"2\*\*24 on each axis with antialias"),
            ({"size": np.True_}, TypeError, "size must be None, an int"),
            ({"scale": torch.tensor(0.5, requires_grad=True)}, TypeError, "scale must need no gradient"),
            ({"transformers": torch.tensor(2.0)}, TypeError, "transformers must be an int, got tensor"),
            ({"transformers": 0}, ValueError, "transformers must be at least 1"),
            ({"initialization": "random"}, ValueError, "'identity', 'tiles', got 'random'"),
            ({"initialization": "tiles", "transform": "rotation"}, ValueError, "cannot move"),
            ({"scale": 0.0}, ValueError, "scale must be positive"),
            ({"scale": float("nan")}, ValueError, "scale must be finite"),
            ({"bounded": 1}, TypeError, "bounded must be a bool"),
            ({"bounded": True, "scale": 1.0}, ValueError, "scale must be below 1 if bounded"),
            (
                {"bounded": True, "scale": 0.5, "transformers": 4, "initialization": "tiles"},
                ValueError,
                "scale must be below 0.5 if bounded",
            ),
            ({"bounded": True, "transform": "projective"}, ValueError, "outside_penalty"),
            ({"bounded": True, "transform": "rotation"}, ValueError, "bounded must be False for"),
            (
                {"transform": "tps", "control_points": (1, 4)},
                ValueError,
                "control_points must .*at least 2 rows",
            ),
            ({"transform": "tps", "control_points": 4}, TypeError, "control_points must be two ints"),
            ({"gradient_scale": "0.1"}, TypeError, "gradient_scale must be a number"),
            ({"return_theta": None}, TypeError, "return_theta must be a bool"),
            ({"mode": "nearest"}, ValueError, "'bilinear', 'bicubic', which have a gradient of theta"),
            ({"mode": "bicubic", "dim": 3}, ValueError, "mode must be 'bilinear' for volumes"),
            ({"padding_mode": "circular"}, ValueError, "padding_mode must be one of"),
            ({"fill_value": torch.zeros(3)}, TypeError, "a tensor does not move"),
            ({"antialias": True, "transform": "tps"}, ValueError, "antialias must be False for"),
            ({"localization": torch.relu}, TypeError, "localization must be a torch.nn.Module"),
            ({"localization": nn.Flatten()}, ValueError, "localization_features must say how many"),
            ({"localization_features": 0}, ValueError, "localization_features must be at least 1"),
            ({"head": None}, TypeError, "head must be a bool"),
            ({"head": False, "scale": 0.5}, ValueError, "head must be True unless"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_when_it_is_made(self, options, error, message):
        with pytest.raises(error, match=message):
            SpatialTransformer(**{"in_channels": 3, **options})

    @pytest.mark.parametrize(
        "transform", [name for name in PARAMETERS if name not in ("translation", "rotation", "tps")]
    )
    def test_a_last_bias_that_is_the_identity_already(self, transform):
        last = nn.Linear(5, PARAMETERS[transform][0])
        identity = [1, 0, 0, 0, 1, 0, 0, 0] if transform in ("affine", "projective") else [1, 0, 0, 0]
        with torch.no_grad():
            last.bias.copy_(torch.tensor(identity[: len(last.bias)]))
        network = nn.Sequential(nn.Flatten(), nn.Linear(378, 5), nn.ReLU(), last)
        with pytest.raises(ValueError, match="must end in a bias of zeros with head=False"):
            SpatialTransformer(3, transform=transform, localization=network, head=False)

    @pytest.mark.parametrize(
        ("options", "x", "features", "message"),
        [
            ({}, sample(3), None, r"shape \(N, C, H, W\) for dim=2, .*make the layer with dim=3"),
            ({"dim": 3}, sample(2), None, "make the layer with dim=2"),
            ({}, randn(3, 9, 14), None, r"x must have shape \(N, C, H, W\)"),
            ({}, sample(channels=4), None, r"x must have shape \(2, 3, ...\) .* in_channels=3, got \(2, 4"),
            ({}, sample(), randn(2, 5, 9, 9), r"features must have shape \(2, 3, ...\)"),
            ({}, sample(), randn(3, 3, 9, 9), r"features must have shape \(2, 3, ...\) .*got \(3, 3"),
            ({}, sample(), randn(2, 3), r"made with dim=2 must have shape \(N, C, H, W\)"),
        ],
    )
    def test_what_it_is_given(self, options, x, features, message):
        with pytest.raises(ValueError, match=message):
            SpatialTransformer(3, **options)(x, features)

    @pytest.mark.parametrize(
        ("network", "options", "message"),
        [
            (
                nn.Flatten(),
                {"localization_features": 100},
                r"\(2, 100\), got \(2, 378\): make the layer with localization_features=378",
            ),
            (nn.Identity(), {"localization_features": 8}, r"got \(2, 3, 9, 14\): end it in a Flatten"),
            (
                nn.Flatten(),
                {"head": False, "transform": "attention", "transformers": 2},
                r"\(2, 6\), got \(2, 378\): with head=False its last layer must have 6 outputs",
            ),
        ],
    )
    def test_a_network_with_the_wrong_output(self, network, options, message):
        layer = SpatialTransformer(3, localization=network, **options)
        with pytest.raises(ValueError, match=message):
            layer(sample())

    @pytest.mark.parametrize("layout", [torch.strided, torch.jagged], ids=str)
    @pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
    def test_nested_tensors(self, layout):
        nested = torch.nested.nested_tensor([*sample()], layout=layout)
        layer = SpatialTransformer(3)
        for name, call in {
            "x": lambda: layer(nested),
            "features": lambda: layer(sample(), nested),
            "theta": lambda: outside_penalty(nested),
        }.items():
            with pytest.raises(TypeError, match=f"{name} must be one tensor.*got a nested tensor: pad it"):
                call()
        for network in (layer.localization, FullyConnectedLocalization(3)):
            with pytest.raises(TypeError, match="x must be one tensor"):
                network(nested)

    def test_a_network_that_returns_no_tensor(self):
        layer = SpatialTransformer(3, localization=nn.LSTM(14, 5), localization_features=5)
        layer.localization.forward = lambda x: (x, x)
        with pytest.raises(TypeError, match=r"localization must return a torch\.Tensor, got"):
            layer(sample())

    @pytest.mark.parametrize("make", [ConvolutionalLocalization, FullyConnectedLocalization])
    def test_localization_networks(self, make):
        with pytest.raises(ValueError, match="dim must be 2"):
            make(3, dim=1)
        with pytest.raises(ValueError, match=r"made with dim=3 must have shape \(N, C, D, H, W\)"):
            make(3, dim=3)(sample())
        with pytest.raises(TypeError, match=r"must have a floating dtype, got torch\.uint8: bring"):
            SpatialTransformer(3, localization=make(3))(sample().byte())
        with pytest.raises(ValueError, match="cells must be at least 1, got 0"):
            make(3, cells=0)
        with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
            ConvolutionalLocalization(3, kernel_size=4)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (
                lambda: parameter_groups(nn.Linear(2, 2), 0.1),
                ValueError,
                "model must have a SpatialTransformer",
            ),
            (
                lambda: parameter_groups(SpatialTransformer(3), -1),
                ValueError,
                "lr must be at least 0, got -1",
            ),
            (
                lambda: parameter_groups(SpatialTransformer(3), 0.1, float("inf")),
                ValueError,
                "localization_lr_scale must be",
            ),
            (lambda: scale_gradient(torch.ones(1), float("nan")), ValueError, "factor must be finite"),
            (lambda: outside_penalty([1.0]), TypeError, "theta must be a torch.Tensor"),
            (lambda: outside_penalty(torch.ones(2, 3).int()), TypeError, "theta must have a floating dtype"),
            (lambda: outside_penalty(torch.eye(4)), ValueError, r"got \(4, 4\)"),
            (lambda: outside_penalty(torch.eye(2, 3), points=(2, 2)), ValueError, "points must be None"),
            (lambda: outside_penalty(torch.zeros(5, 2)), ValueError, "^points must say"),
            (lambda: outside_penalty(torch.eye(2, 3), lattice=1), ValueError, "lattice must be at least 2"),
            (lambda: outside_penalty(torch.eye(2, 3), softness=0), ValueError, "softness must be positive"),
        ],
    )
    def test_helpers(self, call, error, message):
        with pytest.raises(error, match=message):
            call()


def test_docstring_examples_run():
    modules = [module for name, module in sys.modules.items() if name.startswith("stn_triton.nn.")]
    examples = {module.__name__: doctest.testmod(module) for module in modules}
    assert sum(result.failed for result in examples.values()) == 0
    for function in (stn_triton.nn.__dict__[name] for name in stn_triton.nn.__all__):
        assert ">>> " in inspect.getdoc(function), function
        assert examples[function.__module__].attempted > 0


@pytest.mark.parametrize("make", [ConvolutionalLocalization, FullyConnectedLocalization])
def test_another_floating_dtype_is_told(make):
    layer = SpatialTransformer(3, localization=make(3))
    with pytest.raises(TypeError, match=r"torch.float32, got torch.float64: .*layer.to\(torch.float64\)"):
        layer(torch.rand(2, 3, 8, 8, dtype=torch.float64))
    assert layer.double()(torch.rand(2, 3, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_parameter_groups_are_of_a_module():
    with pytest.raises(TypeError, match=r"torch.nn.Module, got one of type generator"):
        parameter_groups(SpatialTransformer(3).parameters(), 0.1)
