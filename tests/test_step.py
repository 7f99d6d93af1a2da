"""``python -m perf step``: networks that are the same but for their sampler, and the table of timings."""

import json

import pytest
import torch

pytest.importorskip("pandas")

from perf import step
from perf.__main__ import main

TRANSFORMERS = {"house-numbers": 4, "digits": 1}


@pytest.mark.parametrize("name", ["digits", pytest.param("house-numbers", marks=pytest.mark.full)])
def test_providers_compute_the_same(name):
    """On the operator, on the eager pair with transformers that really warp, and without a sampler."""
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
    models = [network.make(layer) for layer in (step.LocatingTransformer, None)]
    kept = [module for module in models[0] if not isinstance(module, step.SpatialTransformer)]
    torch.nn.Sequential(*kept).load_state_dict(models[1].state_dict())
    assert torch.equal(models[0](images), models[1](images))


def test_localisation_networks_are_trained_without_a_sampler_too():
    model = step.digits(step.LocatingTransformer)
    model(torch.rand(2, 1, 28, 28)).sum().backward()
    assert model[0].head.bias.grad.any()


def test_command(capsys, monkeypatch):
    samples = {name: [ms - 1, ms, ms + 1] for name, ms in zip(step.PROVIDERS, (20, 25, 40, 22), strict=True)}
    monkeypatch.setattr(step.stopwatch, "sample", lambda *_: samples)
    monkeypatch.setattr(step, "NETWORKS", {"digits": step.NETWORKS["digits"]})
    assert main(["step", "--quick", "--device", "cpu"]) == 0
    assert "stn_triton 24.40 25.00 25.60 25.0% 20.0%" in " ".join(capsys.readouterr().out.split())
    assert main(["step", "--quick", "--device", "cpu", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["provider"] for row in rows] == list(step.PROVIDERS)
    assert all(row["network"] == "digits" and row["batch"] == 64 and row["torch"] for row in rows)
