"""Layers with replaced or wrapped parts, stages as modules, options in types of NumPy and PyTorch."""

import numpy as np
import pytest
import torch
from test_nn import randn, sample, scatter
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.nn.utils import prune

from stn_triton import SpatialTransformer, transforms
from stn_triton.nn import (
    ConvolutionalLocalization,
    FullyConnectedLocalization,
    SpatialTransformerSeries,
    outside_penalty,
    parameter_groups,
    scale_gradient,
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def watch(module) -> list:
    """Collect a module's outputs in a list."""
    seen = []
    module.register_forward_hook(lambda _, __, output: seen.append(output))
    return seen


class Adapter(nn.Module):
    """A wrapper around a linear layer, as LoRA makes it."""

    def __init__(self, base):
        super().__init__()
        self.base, self.added = base, nn.Linear(base.in_features, base.out_features)

    def forward(self, x):
        return self.base(x) + self.added(x)


class Copied(nn.Module):
    def forward(self, weight):
        return weight.clone()


def adapt(layer):
    return Adapter(layer) if isinstance(layer, nn.Linear) else layer


def parametrize(layer):
    nn.utils.parametrize.register_parametrization(layer, "weight", Copied())
    return layer


# Modules that replace a layer, and other ways for a layer to hold its weight.
REPLACEMENTS = {
    "adapter": adapt,
    "wrapped": nn.DataParallel,
    "in a sequence": nn.Sequential,
    "checkpointed": checkpoint_wrapper,
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.3),
    "parametrized": parametrize,
    "weight norm": nn.utils.parametrizations.weight_norm,
    "weight norm by hooks": nn.utils.weight_norm,
}
NETWORKS = {
    "convolutional": lambda: ConvolutionalLocalization(3),
    "fully connected": lambda: FullyConnectedLocalization(3, cells=4),
}


@pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)
class TestReplacedParts:
    @pytest.mark.parametrize("name", REPLACEMENTS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
    @pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
    def test_layers(self, network, name, dtype):
        layer = SpatialTransformer(3, localization=network())
        for module in [*layer.localization.modules()]:
            for child_name, child in [*module.named_children()]:
                if isinstance(child, (nn.Linear, nn.Conv2d)):
                    setattr(module, child_name, REPLACEMENTS[name](child))
        x = sample().to(dtype).requires_grad_()
        output = layer.to(dtype)(x)
        assert output.dtype == dtype
        output.sum().backward()

    @pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor", "ignore::DeprecationWarning")
    def test_dynamic_quantisation(self, network, dtype):
        layer = scatter(SpatialTransformer(3, localization=network(), return_theta=True))
        quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=dtype)
        assert any("quantized" in type(module).__module__ for module in quantised.modules())
        torch.testing.assert_close(quantised(sample())[1], layer(sample())[1], rtol=0, atol=0.02)


def test_the_last_layer_replaced():
    layer = SpatialTransformer(3, return_theta=True)
    layer.head = Adapter(layer.head)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            assert layer(sample())[1].dtype == torch.float32
    layer.head = nn.Linear(7, 6)
    with pytest.raises(ValueError, match="make the layer with localization_features=32"):
        layer(sample())


# Wrappers and replacements of a stage.
STAGES = {
    "as it is": lambda stage: stage,
    "checkpointed": checkpoint_wrapper,
    "compiled": lambda stage: torch.compile(stage, backend="eager", fullgraph=True),
    "compiled in place": lambda stage: (stage.compile(backend="eager", fullgraph=True), stage)[1],
    "for many devices": nn.DataParallel,
}


class TestStages:
    @pytest.fixture(autouse=True)
    def _forget(self):
        torch.compiler.reset()

    @pytest.mark.parametrize("wrap", STAGES.values(), ids=STAGES)
    def test_wrapped(self, wrap):
        first, last = (
            scatter(SpatialTransformer(3, transform="similarity")),
            scatter(SpatialTransformer(3, size=5), seed=1),
        )
        x, theta = sample(), first.locate(sample())
        theta = transforms.compose(theta, last.locate(first.warp(x, theta)))
        expected = last.warp(x, theta)
        expected_grads = torch.autograd.grad(expected.square().sum(), [*first.parameters()])
        output = SpatialTransformerSeries(wrap(first), wrap(last))(x)
        grads = torch.autograd.grad(output.square().sum(), [*first.parameters()])
        torch.testing.assert_close([output, *grads], [expected, *expected_grads])

    def test_wrapped_in_the_series(self):
        series = SpatialTransformerSeries(*[scatter(SpatialTransformer(3, size=5)) for _ in range(2)])
        expected, names = series(sample()), list(series.state_dict())
        apply_activation_checkpointing(series, check_fn=lambda part: isinstance(part, SpatialTransformer))
        torch.testing.assert_close(series(sample()), expected)
        assert list(series.state_dict()) == names

    def test_each_is_called_once_and_the_original_sampled_in_one_go(self):
        series = SpatialTransformerSeries(*[scatter(SpatialTransformer(3, size=5)) for _ in range(2)])
        calls = [watch(stage) for stage in series.stages]
        compiled = torch.compile(series, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(sample()), series(sample()))
        assert [len(seen) for seen in calls] == [2, 2]


FILL = {"padding_mode": "fill", "fill_value": [0.25, 0.5, 1.0]}
# Class, options in types of NumPy and PyTorch, and equal options in Python types.
SAME = [
    (
        SpatialTransformer,
        {"in_channels": np.int64(3), "transformers": torch.tensor(2), "size": np.array([4, 5])},
        {"in_channels": 3, "transformers": 2, "size": (4, 5)},
    ),
    (
        SpatialTransformer,
        {
            "in_channels": torch.tensor(3),
            "size": torch.tensor(4),
            "scale": np.float32(0.5),
            "dim": np.int8(3),
        },
        {"in_channels": 3, "size": 4, "scale": 0.5, "dim": 3},
    ),
    (
        SpatialTransformer,
        {"in_channels": 3, "bounded": np.True_, "head": np.True_, "align_corners": None, **FILL}
        | {"fill_value": np.array(FILL["fill_value"]), "gradient_scale": np.float64(0.5)},
        {"in_channels": 3, "bounded": True, "gradient_scale": 0.5, **FILL},
    ),
    (
        SpatialTransformer,
        {"in_channels": 3, "transform": "tps", "control_points": np.array([3, 3])},
        {"in_channels": 3, "transform": "tps", "control_points": (3, 3)},
    ),
    (
        SpatialTransformer,
        {"in_channels": 3, "transform": "tps", "control_points": torch.tensor([[-1, -1], [1, -1], [0, 1]])},
        {"in_channels": 3, "transform": "tps", "control_points": [(-1, -1), (1, -1), (0, 1)]},
    ),
    (
        ConvolutionalLocalization,
        {"in_channels": np.int64(3), "dim": torch.tensor(2), "channels": np.array([4, 5])}
        | {"kernel_size": np.int32(3), "cells": torch.tensor(4), "out_features": np.uint8(7)},
        {"in_channels": 3, "channels": (4, 5), "kernel_size": 3, "cells": 4, "out_features": 7},
    ),
    (
        FullyConnectedLocalization,
        {"in_channels": torch.tensor(3), "hidden": [np.int64(4), torch.tensor(5)], "cells": np.array(4)},
        {"in_channels": 3, "hidden": (4, 5), "cells": 4},
    ),
]


def test_a_wrapper_of_a_stage_must_pass_keywords_on():
    class Wrapper(torch.nn.Module):
        def __init__(self, stage):
            super().__init__()
            self.stage = stage

        def forward(self, x):
            return self.stage(x)

    with pytest.raises(
        TypeError, match=r"stages\[1\] must have a forward that passes keywords.*Wrapper.forward\(x\)"
    ):
        SpatialTransformerSeries(SpatialTransformer(1), Wrapper(SpatialTransformer(1)))


@pytest.mark.parametrize(("make", "given", "plain"), SAME)
def test_options_of_numpy_and_tensors(make, given, plain):
    torch.manual_seed(0)
    module = make(**given)
    torch.manual_seed(0)
    expected = make(**plain)
    assert repr(module) == repr(expected)
    x = sample(expected.dim)
    assert torch.equal(module(x), expected(x))


def test_numbers_of_helpers_of_numpy_and_tensors():
    theta = randn(2, 2, 3)
    expected = outside_penalty(theta, lattice=5, softness=0.25)
    assert torch.equal(outside_penalty(theta, lattice=np.int64(5), softness=torch.tensor(0.25)), expected)
    offsets = randn(2, 4, 2)
    expected = outside_penalty(offsets, points=(2, 2))
    assert torch.equal(outside_penalty(offsets, points=np.array([2, 2])), expected)
    leaf = theta.clone().requires_grad_()
    scale_gradient(leaf, np.float32(0.5)).sum().backward()
    assert leaf.grad.eq(0.5).all()
    groups = parameter_groups(
        nn.Sequential(SpatialTransformer(3), nn.Conv2d(3, 1, 1)), np.float32(0.5), torch.tensor(0.5)
    )
    assert [group["lr"] for group in groups] == [0.5, 0.25]
    assert all(type(group["lr"]) is float for group in groups)
    stage = SpatialTransformer(3, return_theta=np.True_)
    assert len(SpatialTransformerSeries(stage, return_theta=np.True_)(sample())) == 2
