"""``python -m perf step``: networks that are the same but for their sampler, and the table of timings."""

import json

import pytest
import torch

from perf import step
from perf.__main__ import main

TRANSFORMERS = {"house-numbers": 4, "digits": 1}


@pytest.mark.parametrize("name", step.NETWORKS)
def test_providers_compute_the_same(name):
    """The network on the operator and the one on the eager pair, with transformers that really warp."""
    network = step.NETWORKS[name]
    images = torch.rand(2, *network.shape)
    outputs = []
    for layer in (step.SpatialTransformer, step.EagerTransformer):
        torch.manual_seed(0)
        model = network.make(layer)
        layers = [module for module in model if isinstance(module, step.SpatialTransformer)]
        assert len(layers) == TRANSFORMERS[name]
        with torch.no_grad():
            for module in layers:
                module.head.bias.add_(torch.tensor([-0.2, 0.1, 0.05, -0.1, -0.1, 0.1]))
        outputs.append(model(images))
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", step.NETWORKS)
def test_without_a_sampler_the_network_is_that_without_transformers(name):
    network = step.NETWORKS[name]
    images = torch.rand(2, *network.shape)
    models = [network.make(layer) for layer in (step.LocatingTransformer, None)]
    kept = [module for module in models[0] if not isinstance(module, step.SpatialTransformer)]
    torch.nn.Sequential(*kept).load_state_dict(models[1].state_dict())
    assert torch.equal(models[0](images), models[1](images))


def test_localisation_networks_are_trained_without_a_sampler_too():
    model = step.digits(step.LocatingTransformer)
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    assert model[0].head.bias.grad.any()


def test_rows_tell_how_much_slower_and_which_share():
    samples = {"no transformers": [2.0] * 5, "stn_triton": [1.0, 2.5, 2.5, 2.5, 9.0]}
    without, ours = step.rows_of(samples)
    assert (without["slower"], without["share"]) == (0, 0)
    assert ours["slower"] == pytest.approx(0.25)
    assert ours["share"] == pytest.approx(0.2)
    assert ours["low_ms"] < ours["median_ms"] < ours["high_ms"]


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(step, "NETWORKS", {"digits": step.NETWORKS["digits"]})


@pytest.mark.usefixtures("small")
def test_command(capsys):
    assert main(["step", "--quick", "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "digits" in text
    assert all(name in text for name in step.PROVIDERS)
    assert "6%" in text


@pytest.mark.usefixtures("small")
def test_json(capsys):
    assert main(["step", "--quick", "--device", "cpu", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["provider"] for row in rows] == list(step.PROVIDERS)
    assert all(row["median_ms"] > 0 and row["batch"] == 64 and row["torch"] for row in rows)
