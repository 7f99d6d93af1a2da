"""The parts of ``python -m perf bench``: maps, data, passes, the gate, the floor, the clock."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch

pytest.importorskip("pandas")

from perf.measuring import maps, passes, providers, roofline, stopwatch, workloads
from perf.measuring.gate import Gate
from perf.measuring.maps import MAPS
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import PROVIDERS
from perf.measuring.workloads import WORKLOADS, Data
from stn_triton import policy, tuning

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NOT_COMPILED = ["operator", "eager", "eager-corners", "eager-broadcast"]


def small(name):
    """The workload with few pixels: the same maps, options, dtype and memory format."""
    workload = WORKLOADS[name]
    side = 8 * workload.options.get("antialias", 1)
    shape = (2, 3, side + 8, side) if len(workload.shape) == 4 else (2, 2, 6, 7, 8)
    size = workload.size and tuple(n // (workload.shape[2] // workload.size[0]) for n in shape[2:])
    size = (7, 7) if workload.crops else size
    return replace(workload, shape=shape, size=size, crops=min(workload.crops, 5))


def digits(map_name="random"):
    return workloads.make(*workloads.choose(["digits-28"], CPU, quick=True), CPU, map_name)


def computed(name, data, pass_name):
    return dict(zip(COMPUTED[pass_name], PASSES[pass_name](PROVIDERS[name].make(), data)(), strict=True))


@pytest.mark.parametrize("size_in", [(20, 50), (4, 20, 50)])
def test_maps_turn_pixels_and_zoom_each_axis(size_in):
    extents = torch.tensor([float(n) for n in reversed(size_in)])
    for name, degrees, shown in (
        ("rotate-30", 30, 1.0),
        ("rotate-45", 45, 1.0),
        ("zoom-0.5", 0, 2.0),
        ("zoom-2", 0, 0.5),
        ("identity", 0, 1.0),
    ):
        theta = maps.matrices(name, 3, size_in, torch.Generator())
        in_pixels = (theta[:, :, :-1] * extents[:, None] / extents)[2] / shown
        torch.testing.assert_close(in_pixels @ in_pixels.T, torch.eye(len(size_in)))
        assert math.degrees(math.atan2(in_pixels[1, 0], in_pixels[0, 0])) == pytest.approx(degrees)
        assert (theta[0, :, -1] * extents / 2).tolist() == pytest.approx(maps.SHIFT[: len(size_in)])


def test_random_maps_are_mild_and_differ():
    theta = maps.matrices("random", 100, (32, 32), torch.Generator().manual_seed(1))
    scale = torch.linalg.det(theta[:, :, :2]).sqrt()
    assert 0.79 < scale.min() < 0.9
    assert 1.15 < scale.max() < 1.26
    assert 0.15 < theta[:, :, 2].abs().max() <= 0.2
    assert len(theta.unique(dim=0)) == 100


class TestWorkloads:
    def test_defaults_of_devices(self):
        assert workloads.choose(None, CUDA) == list(WORKLOADS.values())
        assert [w.name for w in workloads.choose(None, CPU, quick=True)] == list(workloads.ON_CPU)
        assert [w.name for w in workloads.choose(None, CUDA, quick=True)] == list(workloads.QUICK)
        assert [p.name for p in providers.choose(["compile"])] == ["operator", "eager", "compile"]
        assert [p.name for p in providers.choose(None, quick=True)] == NOT_COMPILED
        assert [p.name for p in providers.choose(None)] == [*NOT_COMPILED, "compile"]

    def test_data_has_its_layout_and_copies_other_memory(self):
        copies = workloads.make(small("features-64-channels-last"), CPU).copies(3)
        assert len({copy.input.data_ptr() for copy in copies}) == 3
        for copy in copies:
            assert torch.equal(copy.grad_output, copies[0].grad_output)
            assert copy.input.stride()[1] == copy.grad_output.stride()[1] == 1

    @pytest.mark.parametrize("name", [w.name for w in WORKLOADS.values() if not w.sweep])
    def test_most_gradients_are_not_masked(self, name):
        """Gradients are 0 where rounding decides; if all were, the gate would accept anything."""
        workload = small(name)
        for map_name in (map_name for map_name in MAPS if not workload.why_not(map_name)):
            data = workloads.make(workload, CPU, map_name)
            fine = data.options.get("antialias", 1)
            assert (data.grad_output != 0).double().mean() > max(0.5, 1 - 0.08 * fine**2)


def test_passes_compute_what_they_say_and_nothing_else():
    data = workloads.make(small("digits-28"), CPU)
    whole = computed("eager", data, "forward+backward")
    calls = []

    def sampler(input, theta, size):
        calls.append((input.requires_grad, theta.requires_grad))
        return providers.eager_pair(input, theta, size)

    for name, needed in (
        ("forward", [(False, False)] * 2),
        ("backward", [(True, True)]),
        ("forward+backward", [(True, True)] * 2),
        ("theta", [(False, True)]),
        ("input", [(True, False)]),
    ):
        calls.clear()
        run = PASSES[name](sampler, data)
        for tensors in (run(), run()):
            for part, tensor in zip(COMPUTED[name], tensors, strict=True):
                torch.testing.assert_close(tensor, whole[part])
        assert calls == needed


class TestGate:
    @pytest.mark.parametrize(
        ("map_name", "name"),
        [
            *((map_name, "digits-28") for map_name in MAPS),
            *itertools.product(["random"], ["features-64-bf16", "images-224-uint8", "crops-7"]),
            *itertools.product(["zoom-0.5"], ["volume-160", "shrink-224"]),
            *itertools.product(["rotate-30"], ["bicubic-224", "border-224", "antialias-2", "antialias-4"]),
        ],
    )
    def test_accepts_every_provider_and_no_wrong_derivative(self, name, map_name):
        data = digits(map_name) if name == "digits-28" else workloads.make(small(name), CPU, map_name)
        for provider in NOT_COMPILED:
            gate = Gate(data, PROVIDERS[provider].align_corners)
            for pass_name in PASSES if data.input.is_floating_point() else ["forward"]:
                tensors = computed(provider, data, pass_name)
                verdict = gate.check(tensors)
                assert verdict.passed, (provider, pass_name, verdict)
                if name == "digits-28" and "grad_theta" in tensors:
                    assert not gate.check({"grad_theta": tensors["grad_theta"] * 1.001}).passed

    @pytest.mark.parametrize("name", ["output", "grad_input", "grad_theta"])
    @pytest.mark.parametrize("spoil", [lambda t: t * 1.001, lambda t: t.clone().fill_(float("nan"))])
    def test_rejects_each_tensor_when_wrong(self, name, spoil):
        data = digits()
        tensors = computed("eager", data, "forward+backward")
        verdict = Gate(data).check(tensors | {name: spoil(tensors[name])})
        assert (verdict.passed, verdict.tensor) == (False, name)

    def test_rejects_a_wrong_pixel_dtype_shape_or_convention_of_corners(self):
        data = digits()
        gate = Gate(data)
        (output,) = passes.forward(providers.eager_pair, data)()
        for spoilt in (output.double(), output[:, :, :-1]):
            assert "expected (16, 1, 28, 28) torch.float32" in gate.check({"output": spoilt}).reason
        tolerance = gate.check({"output": output}).tolerance
        assert not gate.check({"output": output + 3 * tolerance}).passed
        output[3, 0, 14, 14] += 1e-3
        assert not gate.check({"output": output}).passed
        assert not gate.check(computed("eager-corners", data, "forward")).passed

    @pytest.mark.parametrize(("dtype", "spoil"), [("bf16", lambda t: t * 1.02), ("uint8", lambda t: t + 1)])
    def test_rounding_is_allowed_and_no_more(self, dtype, spoil):
        data = workloads.make(replace(WORKLOADS[f"images-224-{dtype}"], shape=(2, 3, 64, 64)), CPU)
        (output,) = passes.forward(providers.eager_pair, data)()
        assert Gate(data).check({"output": output}).passed
        assert not Gate(data).check({"output": spoil(output)}).passed


@pytest.mark.parametrize("name", ["images-224", "features-256-bf16-channels-last", "volume-160"])
@pytest.mark.parametrize("pass_name", ["backward", "input", "theta"])
def test_the_scatter_that_the_gather_is_measured_against_is_right(device, name, pass_name):
    data = workloads.make(small(name), device, "rotate-30")
    launched = []

    def choose(bucket, run):
        launched.append(bucket.kernel)
        return policy.default(bucket)

    with tuning.choosing(choose):
        tensors = PASSES[pass_name](providers.scatter, data)()
    verdict = Gate(data).check(dict(zip(COMPUTED[pass_name], tensors, strict=True)))
    assert verdict.passed, verdict
    assert launched[-1] == {"backward": "scatter", "input": "scatter_input", "theta": "theta"}[pass_name]


@pytest.mark.parametrize("name", ["crops-7", "antialias-2"])
def test_the_scatter_says_which_workloads_it_cannot_have(name):
    data = workloads.make(small(name), CPU, "identity")
    with pytest.raises(ValueError, match="one matrix per image and no antialiasing"):
        providers.scatter(data.input, data.theta, data.size, **data.options)


class TestRoofline:
    @pytest.mark.parametrize(("mode", "side"), [("bilinear", 15), ("bicubic", 17)])
    def test_a_pixel_that_two_crops_show_counts_once(self, mode, side):
        workload = replace(WORKLOADS["digits-28"], shape=(2, 3, 28, 28), options={"mode": mode})
        data = workloads.make(workload, CPU, "zoom-2")
        theta, grad_output = (t[:, None].repeat_interleave(2, 1) for t in (data.theta, data.grad_output))
        touched, reached = roofline.moved_bytes(replace(data, theta=theta, grad_output=grad_output))
        assert (touched, reached) == (2 * 3 * side**2 * 4, grad_output.nbytes)

    def test_gradients_of_samples_outside_are_not_read(self):
        """Shrunk to half its extent along each axis, three quarters of the output show nothing."""
        data = workloads.make(small("features-64"), CPU, map_name="zoom-0.5")
        touched, reached = roofline.moved_bytes(data)
        assert touched == data.input.nbytes
        assert 0.25 <= reached / data.grad_output.nbytes < 0.45

    def test_bytes_of_each_pass(self):
        images = Data(torch.zeros(20, dtype=torch.bfloat16), torch.zeros(2), torch.zeros(42))
        assert roofline.model_bytes(images, touched=100, reached=70) == {
            "forward": 100 + 84,
            "backward": 70 + 100 + 40,
            "forward+backward": 2 * 100 + 84 + 70 + 40,
            "theta": 70 + 100,
            "input": 70 + 40,
        }

    def test_a_copy_reads_and_writes(self, monkeypatch):
        monkeypatch.setattr(stopwatch, "sample", lambda *_: {"copy": [4.0, 4.0, 4.0]})
        monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 10**6)
        assert roofline.copy_gb_per_s(CPU) == pytest.approx(0.5)


class FakeEvent:
    """A GPU on which time passes only in calls."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = FakeEvent.now

    def elapsed_time(self, end):
        return end.time - self.time


class TestStopwatch:
    def test_functions_take_turns_and_their_runs_too(self):
        calls = []
        runs = {name: [functools.partial(calls.append, f"{name}{i}") for i in range(3)] for name in "abc"}
        samples = stopwatch.sample(runs, CPU, replace(stopwatch.QUICK, cpu_seconds=0.0, cpu_rounds=7))
        assert [len(samples[name]) for name in "abc"] == [7, 7, 7]
        rounds = ["".join(call[0] for call in calls[i : i + 3]) for i in range(0, 21, 3)]
        assert {"".join(sorted(one)) for one in rounds} == {"abc"}
        assert len(set(rounds)) > 1
        assert [call for call in calls if call[0] == "b"] == [f"b{i % 3}" for i in range(7)]

    def test_on_a_gpu_they_take_turns_and_the_first_calls_of_a_turn_are_not_timed(self, monkeypatch):
        """After a wait the host is slow, until it has called a few times."""
        calls, since = [], []

        def call(name, ms):
            FakeEvent.now += max(ms, 1.0 - 0.2 * len(since))
            calls.append(name)
            since.append(name)

        monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: since.clear())
        fast = [functools.partial(call, f"fast{i}", 0.25) for i in range(2)]
        functions = {"fast": fast, "slow": [functools.partial(call, "slow", 4.0)]}
        samples = stopwatch.sample(functions, CUDA, replace(stopwatch.FULL, gpu_rounds=2))
        assert samples["fast"] == pytest.approx([0.25] * 2 * 48)
        assert samples["slow"] == pytest.approx([4.0] * 2 * 3)
        assert [key for key, _ in itertools.groupby(name[:4] for name in calls)] == ["fast", "slow"] * 3
        fast = [name for name in calls if name.startswith("fast")]
        assert fast == [f"fast{i % 2}" for i in range(len(fast))]

    def test_inputs_exceed_the_cache_twice(self, monkeypatch):
        assert 2**18 <= stopwatch.cache_bytes(CPU) <= 2**32
        monkeypatch.setattr(stopwatch, "cache_bytes", lambda device: 1000)
        copies = functools.partial(stopwatch.copies_beyond_cache, device=CPU, effort=stopwatch.FULL)
        assert [copies(n) for n in (499, 500, 501, 10**6, 0)] == [5, 4, 4, 1, stopwatch.FULL.most_copies]
