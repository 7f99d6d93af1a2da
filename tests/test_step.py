"""``python -m perf step`` and ``overhead``: what a sampler costs in a training step, and the host's part."""

import json
import re

import pytest
import torch
import uninterpreted

pd = pytest.importorskip("pandas")

from perf import step  # noqa: E402
from perf.__main__ import main  # noqa: E402

TRANSFORMERS = {"house-numbers": 4, "digits": 1}


@pytest.mark.parametrize("name", ["digits", pytest.param("house-numbers", marks=pytest.mark.full)])
def test_providers_compute_the_same(name):
    """On the operator and the eager pair, where transformers really warp, and without them at their start."""
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
    with_layers, without = network.make(step.SpatialTransformer), network.make(torch.nn.Identity)
    unused = without.load_state_dict(with_layers.state_dict(), strict=False)
    assert not unused.missing_keys
    torch.testing.assert_close(with_layers(images), without(images), rtol=1e-3, atol=1e-4)


def test_the_cost_is_compared_with_the_network_without_transformers(capsys, monkeypatch):
    samples = {name: [ms - 1, ms, ms + 1] for name, ms in zip(step.PROVIDERS, (20, 25, 40), strict=True)}
    monkeypatch.setattr(step.stopwatch, "sample", lambda *_: samples)
    monkeypatch.setattr(step, "NETWORKS", {"digits": step.NETWORKS["digits"]})
    assert main(["step", "--quick", "--device", "cpu"]) == 0
    assert "stn_triton 24.40 25.00 25.60 25.0%" in " ".join(capsys.readouterr().out.split())
    assert main(["step", "--quick", "--device", "cpu", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["provider"] for row in rows] == list(step.PROVIDERS)


@pytest.mark.full
def test_the_host_time_of_each_provider_and_pass_is_printed():
    done = uninterpreted.python("-m", "perf", "overhead", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    for name in ("inference", "training forward", "forward [+] backward"):
        (found,) = re.findall(rf"{name} +([0-9.]+) +([0-9.]+) +([0-9.]+)", done.stdout)
        ours, pair, ratio = map(float, found)
        assert 0 < min(ours, pair) <= max(ours, pair) < 1e5
        assert ratio == pytest.approx(ours / pair, abs=0.02)


@pytest.mark.full
def test_a_first_step_compiles_two_kernels_and_is_done_in_seconds(tmp_path):
    """Feature maps of 64 channels NCHW, from empty caches."""
    arguments = ["--first-calls", "features-64", "antialias-2", "--json", "--out", tmp_path / "first.csv"]
    done = uninterpreted.python("-m", "perf", "overhead", "--device", "cpu", *arguments)
    assert done.returncode == 0, done.stderr
    row, antialiased = map(json.loads, done.stdout.splitlines())
    assert row["kernels"] == antialiased["kernels"] == 2
    assert row["import_s"] > 0.2  # of torch, in the new process
    assert 0 < row["processor_s"] < 8
    assert row["second_forward_s"] + row["second_backward_s"] < 0.1 * row["processor_s"]
    assert pd.read_csv(tmp_path / "first.csv")["workload"].tolist() == ["features-64", "antialias-2"]
