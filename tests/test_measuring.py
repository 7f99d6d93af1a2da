"""The parts of ``python -m perf bench``: maps, data, passes, the gate, the floor, the clock."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pandas")

from perf.measuring import maps, passes, providers, roofline, stopwatch, suite, workloads
from perf.measuring.gate import Gate
from perf.measuring.maps import MAPS
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import PROVIDERS
from perf.measuring.workloads import WORKLOADS, Data

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NOT_COMPILED = [name for name in PROVIDERS if name != "compile"]


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

    def test_data_has_its_layout_and_copies_other_memory(self):
        data, same = (workloads.make(small("features-64-channels-last"), CPU) for _ in range(2))
        assert torch.equal(data.input, same.input)
        assert torch.equal(data.theta, same.theta)
        copies = data.copies(3)
        assert len({copy.input.data_ptr() for copy in copies}) == 3
        for copy in copies:
            assert torch.equal(copy.grad_output, data.grad_output)
            assert copy.input.stride()[1] == copy.grad_output.stride()[1] == 1

    @pytest.mark.parametrize("name", [w.name for w in WORKLOADS.values() if not w.sweep])
    def test_gradients_come_from_nearly_everywhere_but_where_rounding_decides(self, name):
        workload = small(name)
        for map_name in MAPS:
            if workload.why_not(map_name):
                continue
            data = workloads.make(workload, CPU, map_name)
            fine = data.options.get("antialias", 1)
            assert (data.grad_output != 0).double().mean() > max(0.5, 1 - 0.08 * fine**2)
            if fine > 1 or workload.crops or data.input.ndim == 5:
                continue
            extents = torch.tensor([float(n) for n in reversed(data.input.shape[2:])])
            for align_corners in (False, True):
                grid = F.affine_grid(data.theta.double(), [2, 1, *data.size], align_corners=align_corners)
                pixels = (grid + 1) / 2 * (extents - 1) if align_corners else ((grid + 1) * extents - 1) / 2
                near = ((pixels - pixels.round()).abs() < 1e-3).any(-1)
                assert (data.grad_output[:, 0][near] == 0).all()


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
            *itertools.product(["identity", "random"], ["features-64-bf16", "images-224-uint8"]),
            *itertools.product(["rotate-45", "zoom-0.5", "random"], ["crops-7", "volume-160"]),
            *itertools.product(["rotate-30", "zoom-2"], ["bicubic-224", "border-224", "shrink-224"]),
            *itertools.product(["rotate-30", "zoom-2"], ["antialias-2", "antialias-4"]),
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
                assert verdict.tolerance > 0
                if name == "digits-28" and "grad_theta" in tensors:
                    assert not gate.check({"grad_theta": tensors["grad_theta"] * 1.001}).passed

    @pytest.mark.parametrize("name", ["output", "grad_input", "grad_theta"])
    @pytest.mark.parametrize("spoil", [lambda t: t * 1.001, lambda t: t.clone().fill_(float("nan"))])
    def test_rejects_each_tensor_when_wrong(self, name, spoil):
        data = digits()
        tensors = computed("eager", data, "forward+backward")
        verdict = Gate(data).check(tensors | {name: spoil(tensors[name])})
        assert not verdict.passed
        assert verdict.tensor == name

    def test_rejects_a_wrong_pixel_dtype_shape_or_convention_of_corners(self):
        data = digits()
        gate = Gate(data)
        (output,) = passes.forward(providers.eager_pair, data)()
        for spoilt in (output.double(), output[:, :, :-1]):
            assert "expected (16, 1, 28, 28) torch.float32" in gate.check({"output": spoilt}).reason
        tolerance = gate.check({"output": output}).tolerance
        assert gate.check({"output": output + 3 * tolerance}, slack=8).passed
        assert not gate.check({"output": output + 3 * tolerance}, slack=2).passed
        output[3, 0, 14, 14] += 1e-3
        assert not gate.check({"output": output}).passed
        assert not gate.check(computed("eager-corners", data, "forward")).passed

    @pytest.mark.parametrize(("dtype", "spoil"), [("bf16", lambda t: t * 1.02), ("uint8", lambda t: t + 1)])
    def test_rounding_is_allowed_and_no_more(self, dtype, spoil):
        data = workloads.make(replace(WORKLOADS[f"images-224-{dtype}"], shape=(2, 3, 64, 64)), CPU)
        (output,) = passes.forward(providers.eager_pair, data)()
        assert Gate(data).check({"output": output}).passed
        assert not Gate(data).check({"output": spoil(output)}).passed


@pytest.mark.full
def test_compiled_backward_passes_run_again():
    data = workloads.make(small("digits-28"), CPU)
    try:
        run = passes.backward(PROVIDERS["compile"].make(), data)
        first = run()
    except Exception as error:  # a machine without a C++ compiler
        pytest.skip(f"torch.compile: {error}"[:200])
    assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
    assert Gate(data).check(dict(zip(COMPUTED["backward"], first, strict=True))).passed


def pixels_in_reach(data, reach):
    """Pixels within ``reach`` of a sample, one after the other: the number that the floor must count."""
    *_, height, width = data.input.shape
    theta = data.theta.double().flatten(0, -3)
    grid = F.affine_grid(theta, [len(theta), 1, *data.size], align_corners=False)
    found = set()
    for matrix, points in enumerate(grid.flatten(1, 2).tolist()):
        image = matrix // (len(theta) // len(data.input))
        for x, y in points:
            left, top = (math.floor(((p + 1) * n - 1) / 2) for p, n in ((x, width), (y, height)))
            near = itertools.product(range(1 - reach, reach + 1), repeat=2)
            found |= {(image, top + row, left + column) for row, column in near}
    return sum(0 <= row < height and 0 <= column < width for _, row, column in found)


class TestRoofline:
    @pytest.mark.parametrize(
        ("name", "reach"), [("digits-28", 1), ("shrink-224", 1), ("crops-7", 1), ("bicubic-224", 2)]
    )
    def test_pixels_are_counted_once_each(self, name, reach):
        for map_name in MAPS:
            data = workloads.make(small(name), CPU, map_name)
            expected = pixels_in_reach(data, reach) * data.input.shape[1] * 4
            assert roofline.moved_bytes(data)[0] == expected, map_name

    def test_the_output_outside_is_not_read(self):
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


@pytest.mark.parametrize("name", NOT_COMPILED)
def test_every_timed_copy_gives_the_checked_result(name):
    case = suite.Case(suite.Plan(CPU, [], [], [], [], True, 1.0), small("digits-28"), "random")
    for pass_name in PASSES:
        verdict, runs = case.prepare(PROVIDERS[name], pass_name, PROVIDERS[name].make())
        assert verdict["status"] == "ok"
        assert len(runs) == stopwatch.QUICK.most_copies
        first, *others = [run() for run in runs]
        for tensors in others:
            torch.testing.assert_close(tensors, first)


class FakeEvent:
    """A GPU on which time passes only in calls."""

    now = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = FakeEvent.now

    def elapsed_time(self, end):
        return end.time - self.time


@pytest.fixture
def fake_gpu(monkeypatch):
    FakeEvent.now = 0.0
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)


class TestStopwatch:
    def test_quantiles(self):
        assert stopwatch.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)

    def test_functions_take_turns_and_their_runs_too(self):
        calls = []
        runs = {name: [functools.partial(calls.append, f"{name}{i}") for i in range(3)] for name in "abc"}
        samples = stopwatch.sample(runs, CPU, replace(stopwatch.QUICK, cpu_seconds=0.0, cpu_rounds=7))
        assert [len(samples[name]) for name in "abc"] == [7, 7, 7]
        rounds = ["".join(call[0] for call in calls[i : i + 3]) for i in range(0, 21, 3)]
        assert {"".join(sorted(one)) for one in rounds} == {"abc"}
        assert len(set(rounds)) > 1
        assert [call for call in calls if call[0] == "b"] == [f"b{i % 3}" for i in range(7)]

    def test_on_a_gpu_they_take_turns_and_their_calls_are_timed(self, fake_gpu):
        calls = []

        def call(name, ms):
            calls.append(name)
            FakeEvent.now += ms

        fast = [functools.partial(call, f"fast{i}", 1.0) for i in range(2)]
        functions = {"fast": fast, "slow": [functools.partial(call, "slow", 5.0)]}
        samples = stopwatch.sample(functions, CUDA, replace(stopwatch.FULL, gpu_rounds=2, gpu_ms_per_round=4))
        assert samples == {"fast": [1.0] * 8, "slow": [5.0] * 6}
        assert [key for key, _ in itertools.groupby(name[:4] for name in calls)] == ["fast", "slow"] * 3
        fast = [name for name in calls if name.startswith("fast")]
        assert fast == [f"fast{i % 2}" for i in range(len(fast))]

    def test_the_first_calls_of_a_turn_are_not_timed(self, fake_gpu, monkeypatch):
        """After a wait the host is slow, until it has called a few times."""
        since = []

        def call():
            FakeEvent.now += max(0.25, 1.0 - 0.2 * len(since))
            since.append(None)

        monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: since.clear())
        samples = stopwatch.sample({"short": [call]}, CUDA, replace(stopwatch.FULL, gpu_rounds=2))
        assert samples["short"] == pytest.approx([0.25] * 2 * 48)

    def test_inputs_exceed_the_cache_twice(self, monkeypatch):
        assert 2**18 <= stopwatch.cache_bytes(CPU) <= 2**32
        monkeypatch.setattr(stopwatch, "cache_bytes", lambda device: 1000)
        copies = functools.partial(stopwatch.copies_beyond_cache, device=CPU, effort=stopwatch.FULL)
        assert [copies(n) for n in (499, 500, 501, 10**6, 0)] == [5, 4, 4, 1, stopwatch.FULL.most_copies]
