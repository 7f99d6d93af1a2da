"""What ``python -m perf bench`` measures and how: maps, data, passes, the gate, the floor, the clock."""

import functools
import itertools
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("pandas")

from perf import UsageError
from perf.measuring import maps, passes, providers, roofline, stopwatch, suite, workloads
from perf.measuring.gate import Gate
from perf.measuring.maps import MAPS
from perf.measuring.passes import COMPUTED, PASSES
from perf.measuring.providers import PROVIDERS
from perf.measuring.workloads import WORKLOADS, Data

CPU = torch.device("cpu")
NOT_COMPILED = [p for p in PROVIDERS.values() if p.name != "compile"]


def small(name):
    """The workload with few pixels: the same maps, options, dtype and memory format."""
    workload = WORKLOADS[name]
    side = 8 * workload.options.get("antialias", 1)
    shape = (2, 3, side + 8, side) if len(workload.shape) == 4 else (2, 2, 6, 7, 8)
    size = None
    if workload.crops:
        size = (7, 7)
    elif workload.size:
        shrink = workload.shape[2] // workload.size[0]
        size = tuple(n // shrink for n in shape[2:])
    return replace(workload, shape=shape, size=size, crops=min(workload.crops, 5))


def computed(provider, data, pass_name):
    """What a pass of a provider computes, by name, with theta's gradient as the others have it."""
    adapted, restore = suite.adapted(provider, data)
    run = PASSES[pass_name](provider.make(), adapted)
    tensors = dict(zip(COMPUTED[pass_name], run(), strict=True))
    if "grad_theta" in tensors:
        tensors["grad_theta"] = restore(tensors["grad_theta"])
    return tensors


class TestMaps:
    def linear_in_pixels(self, theta, size_in):
        extents = torch.tensor([float(n) for n in reversed(size_in)])
        return theta[:, :, :-1] * extents[:, None] / extents

    @pytest.mark.parametrize(("name", "degrees"), [("rotate-30", 30), ("rotate-45", 45)])
    def test_rotations_turn_pixels_not_the_normalised_square(self, name, degrees):
        theta = maps.matrices(name, 2, (20, 50), torch.Generator())
        turn = self.linear_in_pixels(theta, (20, 50))[1]
        torch.testing.assert_close(turn @ turn.T, torch.eye(2))
        assert math.degrees(math.atan2(turn[1, 0], turn[0, 0])) == pytest.approx(degrees)

    def test_zooms_show_twice_and_half_of_each_axis(self):
        for name, shown in (("zoom-0.5", 2.0), ("zoom-2", 0.5), ("identity", 1.0)):
            for size_in in ((20, 50), (4, 20, 50)):
                theta = maps.matrices(name, 3, size_in, torch.Generator())
                assert torch.equal(theta[2, :, :-1], shown * torch.eye(len(size_in)))

    @pytest.mark.parametrize("name", ["rotate-30", "rotate-45", "random"])
    def test_volumes_turn_about_one_axis(self, name):
        theta = maps.matrices(name, 3, (5, 20, 50), torch.Generator())
        assert torch.equal(theta[:, 2, :3], torch.tensor([0.0, 0.0, 1.0]).expand(3, 3))
        assert not torch.equal(theta[:, :2, :2], torch.eye(2).expand(3, 2, 2))

    def test_shifts_are_in_input_pixels(self):
        theta = maps.matrices("identity", 1, (20, 50), torch.Generator())
        assert (theta[0, :, 2] * torch.tensor([25.0, 10.0])).tolist() == pytest.approx(maps.SHIFT[:2])

    def test_random_maps_are_mild_and_differ(self):
        theta = maps.matrices("random", 100, (32, 32), torch.Generator().manual_seed(1))
        scale = torch.linalg.det(theta[:, :, :2]).sqrt()
        assert 0.79 < scale.min() < 0.9
        assert 1.15 < scale.max() < 1.26
        assert 0.15 < theta[:, :, 2].abs().max() <= 0.2
        assert len(theta.unique(dim=0)) == 100


class TestWorkloads:
    def test_every_one_says_who_has_it(self):
        assert all(len(workload.who.split()) > 4 for workload in WORKLOADS.values())

    def test_those_of_the_issue_are_there(self):
        shapes = {(w.shape, w.layout, str(w.dtype)[6:]) for w in WORKLOADS.values()}
        for dtype in ("uint8", "bfloat16", "float32"):
            assert ((64, 3, 224, 224), "NCHW", dtype) in shapes
        assert {(c, layout) for c in (64, 256, 512) for layout in ("NCHW", "channels_last")} <= {
            (shape[1], layout) for shape, layout, _ in shapes
        }
        ends = {shape[1:] for shape, _, _ in shapes}
        assert {(1, 28, 28), (2048, 7, 7), (3, 4096, 4096), (1, 160, 192, 224)} <= ends
        assert WORKLOADS["shrink-224"].shape[2:] == (448, 448)
        assert WORKLOADS["shrink-224"].size == (224, 224)
        assert WORKLOADS["crops-7"].crops == 1000

    def test_sweeps_grow_by_one_factor_in_one_number(self):
        for sweep, axis in (("size", 2), ("batch", 0), ("channels", 1)):
            points = [w for w in WORKLOADS.values() if w.sweep == sweep]
            assert [w.name for w in points] == [f"{sweep}-{w.shape[axis]}" for w in points]
            factors = {b.shape[axis] / a.shape[axis] for a, b in itertools.pairwise(points)}
            assert factors == {4}
            assert workloads.shape_of(points[-1], quick=True) == points[-1].shape

    def test_what_runs_unasked(self):
        assert workloads.choose(None, torch.device("cuda")) == list(WORKLOADS.values())
        on_cpu, first_look = (
            [w.name for w in workloads.choose(None, torch.device(d), quick=True)] for d in ("cpu", "cuda")
        )
        assert "digits-28" in on_cpu
        assert "image-4096" not in on_cpu
        assert 3 <= len(first_look) <= 6
        with pytest.raises(UsageError, match="--workloads: unknown name 'nothing'; available: digits-28"):
            workloads.choose(["nothing"], CPU)

    def test_channels_last_data_is_channels_last(self):
        data = workloads.make(WORKLOADS["features-64-channels-last"], CPU, quick=True)
        assert data.input.stride()[1] == data.grad_output.stride()[1] == 1
        assert all(copy.input.stride() == data.input.stride() for copy in data.copies(3))

    def test_data_is_the_same_each_time(self):
        one, two = (workloads.make(WORKLOADS["digits-28"], CPU) for _ in range(2))
        assert torch.equal(one.input, two.input)
        assert torch.equal(one.theta, two.theta)

    def test_copies_have_the_values_and_other_memory(self):
        data = workloads.make(small("digits-28"), CPU)
        copies = data.copies(3)
        assert copies[0] is data
        assert len({copy.input.data_ptr() for copy in copies}) == 3
        assert all(torch.equal(copy.grad_output, data.grad_output) for copy in copies)

    @pytest.mark.parametrize("align_corners", [False, True])
    @pytest.mark.parametrize("name", ["digits-28", "shrink-224"])
    @pytest.mark.parametrize("map_name", MAPS)
    def test_no_gradient_comes_from_where_rounding_decides(self, name, map_name, align_corners):
        data = workloads.make(small(name), CPU, map_name=map_name)
        size_in = data.input.shape[2:]
        grid = F.affine_grid(data.theta.double(), [2, 1, *data.size], align_corners=align_corners)
        extents = torch.tensor([float(n) for n in reversed(size_in)])
        pixels = (grid + 1) / 2 * (extents - 1) if align_corners else ((grid + 1) * extents - 1) / 2
        near = ((pixels - pixels.round()).abs() < 1e-3).any(-1)
        assert (data.grad_output[:, 0][near] == 0).all()

    @pytest.mark.parametrize("name", [w.name for w in WORKLOADS.values() if not w.sweep])
    @pytest.mark.parametrize("map_name", MAPS)
    def test_nearly_all_gradients_remain_to_be_checked(self, name, map_name):
        workload = small(name)
        if workload.why_not(map_name):
            with pytest.raises(ValueError, match=map_name):
                workloads.make(workload, CPU, map_name=map_name)
            return
        data = workloads.make(workload, CPU, map_name=map_name)
        samples = data.options.get("antialias", 1) ** 2
        assert (data.grad_output != 0).double().mean() > max(0.5, 1 - 0.08 * samples)


class TestPasses:
    def test_backward_passes_do_not_sample_again(self):
        data = workloads.make(small("digits-28"), CPU)
        calls = []

        def sampler(*arguments, **options):
            calls.append(None)
            return providers.eager_pair(*arguments, **options)

        for name, samplings in (("backward", 1), ("theta", 1), ("input", 1), ("forward+backward", 2)):
            calls.clear()
            run = PASSES[name](sampler, data)
            first, second = run(), run()
            assert len(calls) == samplings
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_each_computes_what_it_says(self):
        data = workloads.make(small("digits-28"), CPU)
        whole = computed(PROVIDERS["eager"], data, "forward+backward")
        for name in PASSES:
            for tensor, value in computed(PROVIDERS["eager"], data, name).items():
                torch.testing.assert_close(value, whole[tensor])

    def test_gradients_that_are_not_wanted_are_not_recorded(self):
        data = workloads.make(small("digits-28"), CPU)
        wanted = []

        def sampler(input, theta, size):
            wanted.append((input.requires_grad, theta.requires_grad))
            return providers.eager_pair(input, theta, size)

        for name in ("forward", "theta", "input"):
            PASSES[name](sampler, data)()
        assert wanted == [(False, False), (False, True), (True, False)]


@pytest.fixture(scope="module")
def data():
    return workloads.make(WORKLOADS["digits-28"], CPU, quick=True)


@pytest.fixture(scope="module")
def gate(data):
    return Gate(data)


class TestGate:
    @pytest.mark.parametrize("map_name", MAPS)
    @pytest.mark.parametrize("provider", NOT_COMPILED, ids=lambda p: p.name)
    def test_accepts_every_provider_under_every_map(self, provider, map_name):
        if provider.name == "kornia":
            pytest.importorskip("kornia")
        data = workloads.make(WORKLOADS["digits-28"], CPU, quick=True, map_name=map_name)
        gate = Gate(data, provider.align_corners)
        for pass_name in PASSES:
            verdict = gate.check(computed(provider, data, pass_name), provider.slack)
            assert verdict.passed, (pass_name, verdict)

    @pytest.mark.parametrize("map_name", ["identity", "rotate-45", "zoom-0.5", "random"])
    @pytest.mark.parametrize("name", ["features-64-bf16", "images-224-uint8", "crops-7", "volume-160"])
    def test_accepts_bytes_halves_crops_and_volumes(self, name, map_name):
        self.check_in_small(name, map_name)

    @pytest.mark.parametrize("map_name", ["rotate-30", "zoom-2"])
    @pytest.mark.parametrize(
        "name", ["bicubic-224", "border-224", "antialias-2", "antialias-4", "shrink-224"]
    )
    def test_accepts_options(self, name, map_name):
        self.check_in_small(name, map_name)

    def check_in_small(self, name, map_name):
        data = workloads.make(small(name), CPU, map_name=map_name)
        names = PASSES if data.input.is_floating_point() else ["forward"]
        for provider in ("operator", "eager", "eager-broadcast", "eager-corners"):
            provider = PROVIDERS[provider]
            gate = Gate(data, provider.align_corners)
            for pass_name in names:
                verdict = gate.check(computed(provider, data, pass_name))
                assert verdict.passed, (provider.name, pass_name, verdict)
                assert verdict.tolerance > 0

    @pytest.mark.parametrize("name", ["output", "grad_input", "grad_theta"])
    @pytest.mark.parametrize("spoil", [lambda t: t * 1.001, lambda t: t.clone().fill_(float("nan"))])
    def test_rejects_each_tensor_when_wrong(self, gate, data, name, spoil):
        tensors = computed(PROVIDERS["eager"], data, "forward+backward")
        verdict = gate.check(tensors | {name: spoil(tensors[name])})
        assert not verdict.passed
        assert verdict.tensor == name

    @pytest.mark.parametrize("map_name", MAPS)
    def test_rejects_the_derivative_of_theta_under_every_map(self, map_name):
        data = workloads.make(WORKLOADS["digits-28"], CPU, quick=True, map_name=map_name)
        tensors = computed(PROVIDERS["eager"], data, "theta")
        assert not Gate(data).check({"grad_theta": tensors["grad_theta"] * 1.001}).passed

    def test_rejects_a_single_wrong_pixel(self, gate, data):
        (output,) = passes.forward(providers.eager_pair, data)()
        output[3, 0, 14, 14] += 1e-3
        assert not gate.check({"output": output}).passed

    @pytest.mark.parametrize("spoil", [torch.Tensor.double, lambda t: t[:, :, :-1]])
    def test_rejects_another_dtype_or_shape(self, gate, data, spoil):
        (output,) = passes.forward(providers.eager_pair, data)()
        verdict = gate.check({"output": spoil(output)})
        assert not verdict.passed
        assert "expected (16, 1, 28, 28) torch.float32" in verdict.reason

    def test_rejects_the_other_convention_of_corners(self, gate, data):
        assert not gate.check(computed(PROVIDERS["eager-corners"], data, "forward")).passed

    def test_slack_is_a_factor_of_the_tolerance(self, gate, data):
        (output,) = passes.forward(providers.eager_pair, data)()
        tolerance = gate.check({"output": output}).tolerance
        wrong = {"output": output + 3 * tolerance}
        assert gate.check(wrong, slack=8).passed
        assert not gate.check(wrong, slack=2).passed

    @pytest.mark.parametrize(("dtype", "spoil"), [("bf16", lambda t: t * 1.02), ("uint8", lambda t: t + 1)])
    def test_rounding_is_allowed_and_no_more(self, dtype, spoil):
        data = workloads.make(WORKLOADS[f"images-224-{dtype}"], CPU, quick=True)
        data = replace(data, input=data.input[:2], theta=data.theta[:2], grad_output=data.grad_output[:2])
        gate = Gate(data)
        (output,) = passes.forward(providers.eager_pair, data)()
        assert gate.check({"output": output}).passed
        assert not gate.check({"output": spoil(output)}).passed


class TestProviders:
    def test_kornia_says_what_it_cannot_do(self):
        pytest.importorskip("kornia")
        provider = PROVIDERS["kornia"]
        for name in ("volume-160", "crops-7", "antialias-2"):
            data = workloads.make(small(name), CPU, map_name="zoom-2")
            with pytest.raises(providers.UnavailableError, match="a matrix for each image"):
                computed(provider, data, "forward")

    def test_kornia_that_is_not_there(self, monkeypatch):
        monkeypatch.setattr(providers.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(providers.UnavailableError, match="pip install kornia"):
            PROVIDERS["kornia"].make()

    def test_operator_and_eager_pair_always_run(self):
        assert [p.name for p in providers.choose(["compile"])] == ["operator", "eager", "compile"]
        assert [p.name for p in providers.choose(None)] == list(PROVIDERS)

    def test_compiled_backward_passes_run_again(self):
        data = workloads.make(small("digits-28"), CPU)
        provider = PROVIDERS["compile"]
        try:
            run = passes.backward(provider.make(), data)
            first = run()
        except Exception as error:  # a machine without a C++ compiler
            pytest.skip(f"torch.compile: {error}"[:200])
        assert all(torch.equal(a, b) for a, b in zip(first, run(), strict=True))
        verdict = Gate(data).check(dict(zip(COMPUTED["backward"], first, strict=True)))
        assert verdict.passed, verdict


def pixels_in_reach(data, reach):
    """Pixels within ``reach`` of a sample, one after the other: what the floor must count."""
    *_, height, width = data.input.shape
    theta = data.theta.double().flatten(0, -3)
    per_image = len(theta) // len(data.input)
    grid = F.affine_grid(theta, [len(theta), 1, *data.size], align_corners=False)
    found = set()
    for matrix, points in enumerate(grid.flatten(1, 2).tolist()):
        for x, y in points:
            ix, iy = ((x + 1) * width - 1) / 2, ((y + 1) * height - 1) / 2
            columns = range(math.floor(ix) - reach + 1, math.floor(ix) + reach + 1)
            rows = range(math.floor(iy) - reach + 1, math.floor(iy) + reach + 1)
            found |= {
                (matrix // per_image, row, column)
                for row in rows
                for column in columns
                if 0 <= row < height and 0 <= column < width
            }
    return len(found)


class TestRoofline:
    @pytest.mark.parametrize("map_name", MAPS)
    @pytest.mark.parametrize(
        ("name", "reach"), [("digits-28", 1), ("shrink-224", 1), ("crops-7", 1), ("bicubic-224", 2)]
    )
    def test_pixels_are_counted_once_each(self, name, reach, map_name):
        data = workloads.make(small(name), CPU, map_name=map_name)
        assert roofline.counted_pixels(data)[0] == pixels_in_reach(data, reach)

    def test_known_counts(self):
        def touched(name, map_name):
            data = workloads.make(small(name), CPU, map_name=map_name)
            return roofline.counted_pixels(data)[0] / data.input[:, :1].numel()

        assert touched("features-64", "identity") == 1
        assert touched("volume-160", "identity") == 1
        assert touched("features-64", "zoom-2") < 0.5
        assert touched("antialias-2", "identity") == 1

    def test_bytes_of_each_pass(self):
        images = Data(
            torch.zeros(2, 3, 4, 5, dtype=torch.bfloat16), torch.zeros(2, 2, 3), torch.zeros(2, 3, 6, 7)
        )
        touched, reached = 100, 70
        input, output = 2 * 3 * 4 * 5 * 2, 2 * 3 * 6 * 7 * 2
        assert roofline.model_bytes(images, touched, reached) == {
            "forward": touched + output,
            "backward": reached + touched + input,
            "forward+backward": 2 * touched + output + reached + input,
            "theta": reached + touched,
            "input": reached + input,
        }

    def test_the_output_outside_is_not_read(self):
        """Shrunk to half its extent along each axis, three quarters of the output show nothing."""
        data = workloads.make(small("features-64"), CPU, map_name="zoom-0.5")
        touched, reached = roofline.counted_pixels(data)
        total = data.grad_output[:, :1].numel()
        assert touched == data.input[:, :1].numel()
        assert 0.25 <= reached / total < 0.45
        assert roofline.moved_bytes(data) == (data.input.nbytes, reached * data.input.shape[1] * 4)

    def test_an_image_with_many_crops_counts_once(self):
        data = workloads.make(small("crops-7"), CPU)
        assert data.grad_output.shape == (2, 5, 3, 7, 7)
        model = roofline.model_bytes(data, *roofline.moved_bytes(data))
        assert model["input"] == (2 * 5 * 3 * 49 + data.input.numel()) * 4
        assert model["forward"] < (2 * 5 * 3 * 49 + data.input.numel()) * 4

    def test_a_copy_reads_and_writes(self, monkeypatch):
        monkeypatch.setattr(stopwatch, "sample", lambda *_: {"copy": [4.0, 4.0, 4.0]})
        monkeypatch.setitem(roofline._COPY_BYTES, "cpu", 10**6)
        assert roofline.copy_gb_per_s(CPU) == pytest.approx(0.5)


@pytest.mark.parametrize("provider", NOT_COMPILED, ids=lambda p: p.name)
def test_what_is_timed_is_what_was_checked(provider):
    """Each copy of the arguments gives the result that passed the gate."""
    if provider.name == "kornia":
        pytest.importorskip("kornia")
    plan = suite.Plan(CPU, [], [], [], [], quick=True, copy_gb_per_s=1.0)
    case = suite._Case(plan, small("digits-28"), "random")
    for pass_name in PASSES:
        verdict, runs = case.prepare(provider, pass_name, suite._Samplers())
        assert verdict["status"] == "ok"
        assert len(runs) == stopwatch.QUICK.most_copies
        first, *others = [run() for run in runs]
        for tensors in others:
            torch.testing.assert_close(tensors, first)


class FakeEvent:
    """A GPU on which time passes only in calls."""

    now = 0.0

    def __init__(self, enable_timing=False):
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
    return torch.device("cuda")


class TestMeasure:
    def test_quantiles(self):
        assert stopwatch.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)

    def test_functions_take_turns_and_their_runs_too(self):
        calls = []
        functions = {
            name: [functools.partial(calls.append, f"{name}{i}") for i in range(3)] for name in "abc"
        }
        effort = replace(stopwatch.QUICK, cpu_seconds=0.0, cpu_rounds=7)
        samples = stopwatch.sample(functions, CPU, effort)
        assert [len(samples[name]) for name in "abc"] == [7, 7, 7]
        rounds = [calls[i : i + 3] for i in range(0, 21, 3)]
        assert all(sorted(call[0] for call in one) == ["a", "b", "c"] for one in rounds)
        assert len({tuple(call[0] for call in one) for one in rounds}) > 1
        assert [call for call in calls if call[0] == "b"] == [f"b{i % 3}" for i in range(7)]

    def test_on_a_gpu_they_take_turns_and_their_calls_are_timed(self, fake_gpu):
        calls = []

        def call(name, ms):
            calls.append(name)
            FakeEvent.now += ms

        functions = {
            "fast": [functools.partial(call, f"fast{i}", 1.0) for i in range(2)],
            "slow": [functools.partial(call, "slow", 5.0)],
        }
        effort = replace(stopwatch.FULL, gpu_rounds=2, gpu_ms_per_round=4)
        samples = stopwatch.sample(functions, fake_gpu, effort)
        assert samples == {"fast": [1.0] * 8, "slow": [5.0] * 6}
        turns = [key for key, _ in itertools.groupby(calls, key=lambda name: name[:4])]
        assert turns == ["fast", "slow"] * 3
        fast = [name for name in calls if name.startswith("fast")]
        assert fast == [f"fast{i % 2}" for i in range(len(fast))]

    def test_the_first_calls_of_a_turn_are_not_timed(self, fake_gpu, monkeypatch):
        """After a wait the host is slow, until it has called a few times."""
        since = 0

        def wait(*_):
            nonlocal since
            since = 0

        def call():
            nonlocal since
            FakeEvent.now += max(0.25, 1.0 - 0.2 * since)
            since += 1

        monkeypatch.setattr(torch.cuda, "synchronize", wait)
        samples = stopwatch.sample({"short": [call]}, fake_gpu, replace(stopwatch.FULL, gpu_rounds=2))
        assert samples["short"] == pytest.approx([0.25] * 2 * 48)

    def test_replays_count_per_call_and_failures_are_told(self, fake_gpu, monkeypatch):
        class Graph:
            def __init__(self, runs):
                self.runs = runs

            def replay(self):
                for run in self.runs:
                    run()

        def captured(runs):
            if len(runs) == 1:
                raise RuntimeError("operation not permitted when stream is capturing")
            return Graph(runs)

        def call():
            FakeEvent.now += 0.25

        monkeypatch.setattr(stopwatch, "_captured", captured)
        medians, errors = stopwatch.replayed({"good": [call] * 4, "bad": [call]}, stopwatch.QUICK)
        assert medians == {"good": 0.25}
        assert "not permitted" in str(errors["bad"])

    def test_inputs_exceed_the_cache_twice(self, monkeypatch):
        monkeypatch.setattr(stopwatch, "cache_bytes", lambda device: 1000)
        copies = functools.partial(stopwatch.copies_beyond_cache, device=CPU, effort=stopwatch.FULL)
        assert copies(500) == 4
        assert copies(501) == 4
        assert copies(499) == 5
        assert copies(10**6) == 1
        assert copies(0) == stopwatch.FULL.most_copies

    def test_the_cache_of_this_machine(self):
        assert 2**18 <= stopwatch.cache_bytes(CPU) <= 2**32

    def test_a_slow_function_takes_longer(self):
        import time

        functions = {"slow": [lambda: time.sleep(0.005)], "fast": [lambda: None]}
        samples = stopwatch.sample(functions, CPU, stopwatch.QUICK)
        assert stopwatch.quantiles(samples["slow"])[1] >= 5.0
        assert stopwatch.quantiles(samples["fast"])[1] < 1.0
