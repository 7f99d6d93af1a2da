"""Launch plans: used again for equal calls, and never for calls that differ."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import uninterpreted

from stn_triton import launch, plans, policy, tuning
from stn_triton.options import Options

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """Run `planned.py`, and return the observations that it prints."""
    pytest.importorskip("pandas")
    folders = {
        "PYTHONPATH": str(uninterpreted.ROOT),
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
    }
    done = uninterpreted.python("tests/planned.py", **folders)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.xdist_group("launcher")  # one worker, so that the fixture starts its process once
@pytest.mark.full
class TestThroughTritonsLauncher:
    def test_a_repeated_call_launches_as_often_and_binds_nothing(self, seen):
        assert seen["repeated"] == {"launches": [1, 1, 1], "bound": 1}

    def test_each_launch_has_the_addresses_of_its_tensors(self, seen):
        assert seen["addresses"]["right"] == [True] * 6
        assert seen["addresses"]["different"] >= 3

    def test_numbers_reach_the_kernel_in_the_order_of_its_parameters(self, seen):
        """The strides of columns are missing: they are 1, and compiled in."""
        sizes, strides_out, strides_in, strides_theta = (
            [3, 19, 22, 7, 9],
            [189, 63, 9],
            [1440, 480, 24],
            [8, 4],
        )
        images, points = 2, 0
        assert seen["numbers"] == [[images, points, *sizes, *strides_out, *strides_in, *strides_theta]] * 2

    def test_another_alignment_has_its_own_kernel(self, seen):
        even, odd, *again = seen["alignments"]
        assert odd == even + 1
        assert again == [odd, odd]

    def test_each_launch_is_on_the_current_stream(self, seen):
        assert seen["streams"] == [0, 77, 5, 0]

    def test_many_threads_may_make_the_first_call_at_once(self, seen):
        assert seen["threads"] == 32

    def test_new_block_sizes_are_used_from_the_next_call_on(self, seen):
        assert seen["configurations"] == [8, 16]

    @pytest.mark.parametrize(
        ("images", "copied"),
        [("nchw", {"convolution"}), ("channels_last", {"flatten", "sum"})],
    )
    def test_a_gradient_is_copied_where_lanes_would_read_it_apart(self, seen, images, copied):
        """Gradients that are one number for all pixels of a channel are not copied for NCHW images."""
        found = {k.split()[1]: v for k, v in seen["layouts"].items() if k.split()[0] == images}
        assert {source for source, call in found.items() if call["copied"]} == copied
        for source, call in found.items():
            if images == "channels_last":
                assert call["run"] >= 8  # lanes over channels, a sector of them at least
            else:
                assert call["run"] == 1
                assert call["stride_w"] == (None if source in ("sum", "mean") else 1)


def make(n=1, c=2, size=(4, 5), dtype=torch.float32):
    generator = torch.Generator().manual_seed(n * 100 + c)
    image = torch.randn(n, c, *size, generator=generator).to(dtype)
    theta = torch.eye(2, 3).repeat(n, 1, 1) + 0.1 * torch.randn(n, 2, 3, generator=generator)
    return image, theta


def results(image, theta, size, options):
    output = launch.forward(image, theta, size=size, options=options)
    grads = launch.backward(torch.ones_like(output), image, theta, options=options)
    return [output, *grads[:2]]


def test_calls_that_differ_in_one_thing_do_not_share_a_plan(device):
    """Make each call twice, in turns, and compare its results with those without other plans."""
    image, theta = (t.to(device) for t in make())
    calls = {
        "plain": (image, theta, (4, 5), Options()),
        "size": (image, theta, (5, 4), Options()),
        "shape": (*(t.to(device) for t in make(2)), (4, 5), Options()),
        "dtype": (image.bfloat16(), theta, (4, 5), Options()),
        "theta's dtype": (image, theta.double(), (4, 5), Options()),
        "strides": (image.mT.contiguous().mT, theta, (4, 5), Options()),
        "mode": (image, theta, (4, 5), Options("nearest")),
        "padding": (image, theta, (4, 5), Options(padding_mode="border")),
        "corners": (image, theta, (4, 5), Options(align_corners=True)),
        "antialias": (image, 2 * theta, (4, 5), Options(antialias=True)),
    }
    alone = {}
    for name, call in calls.items():
        plans.forget()
        alone[name] = results(*call)
    plans.forget()
    for _ in range(2):
        for name, call in calls.items():
            for mine, expected in zip(results(*call), alone[name], strict=True):
                assert mine.dtype == expected.dtype, name
                assert torch.equal(mine, expected), name


def test_masks_and_indices_do_not_share_a_plan(device):
    image, theta = (t.to(device) for t in make(2))
    grad = torch.ones_like(image)
    index = torch.tensor([1, 1], device=device)
    for _ in range(2):
        for mask in ((True, False, False), (False, True, False), (True, True, False)):
            found = launch.backward(grad, image, theta, output_mask=mask)
            assert [g is not None for g in found] == list(mask)
            found = launch.backward(grad, image, theta, None, index, output_mask=(True, False, False))
            assert not found[0][0].any()
            assert found[0][1].any()


def test_gradients_of_other_strides_do_not_share_a_plan(device):
    image, theta = (t.to(device) for t in make())
    dense = torch.arange(image.numel(), dtype=torch.float32, device=device).view(image.shape)
    grads = {
        "dense": dense,
        "turned": dense.mT.contiguous().mT,
        "one number": torch.ones((), device=device).expand(image.shape),
        "apart": torch.stack((dense, -dense), -1)[..., 0],
    }
    alone = {}
    for name, grad in grads.items():
        plans.forget()
        alone[name] = launch.backward(grad, image, theta)
    plans.forget()
    for _ in range(2):
        for name, grad in grads.items():
            found = launch.backward(grad, image, theta)
            assert all(torch.equal(a, b) for a, b in zip(found[:2], alone[name][:2], strict=True)), name


def test_the_deterministic_mode_has_plans_of_its_own(device):
    image, points = torch.ones(1, 1, 6, 6, device=device), (-1.0, -1.0, 1.0, -1.0, -1.0, 1.0, 1.0, 0.9)
    theta = torch.eye(2, 7, device=device)[None]
    for is_on in (False, True):
        torch.use_deterministic_algorithms(is_on)
        try:
            launch.backward(
                image, image, theta, options=Options(points=points), output_mask=(True, False, False)
            )
        finally:
            torch.use_deterministic_algorithms(False)
    assert len(plans._plans) == 2


def test_a_call_on_another_device_is_made_on_it(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda device: entered.append(device) or nullcontext())
    for index in (0, 1):
        with launch._device_of(SimpleNamespace(is_cuda=True, device=torch.device("cuda", index))):
            pass
    assert entered == [torch.device("cuda", 1)]


@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_a_plan_made_while_a_graph_is_captured_is_not_kept(monkeypatch, device_type):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    made = [plans.planned(("a call",), torch.device(device_type), object) for _ in range(2)]
    assert (made[0] is made[1]) == (device_type == "cpu")


def test_a_plan_made_with_block_sizes_on_trial_is_not_kept():
    def plan():
        return plans.planned(("a call",), torch.device("cpu"), object)

    with tuning.choosing(lambda bucket, run: policy.default(bucket)):
        assert plan() is not plan()
    assert plan() is plan()


def test_there_is_no_end_of_shapes(monkeypatch):
    monkeypatch.setattr(plans, "MOST", 5)
    for i in range(12):
        plans.planned((i,), torch.device("cpu"), object)
        assert 0 < len(plans._plans) <= 5


def test_a_tensor_on_another_device_is_named():
    image, theta = make()
    with pytest.raises(ValueError, match="theta must be on the device of input, cpu, got meta"):
        launch.forward(image, theta.to("meta"), size=(5, 6))
    with pytest.raises(ValueError, match="grad_output must be on the device of input, cpu, got meta"):
        launch.backward(image.to("meta"), image, theta)


def test_devices_have_their_own():
    here, there = (torch.empty(2, 3, device=device) for device in ("cpu", "meta"))
    assert plans.facts_of([here, None]) != plans.facts_of([there, None])
    assert plans.facts_of([here, None]) == plans.facts_of([torch.empty(2, 3), None])
