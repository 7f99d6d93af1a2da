"""``python -m perf``: what it writes, what it refuses to time, and its exit codes."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from perf import (  # noqa: E402
    bench,
    charts,
    environment,
    measure,
    overhead,
    passes,
    photograph,
    providers,
    results,
    workloads,
)
from perf.__main__ import main  # noqa: E402
from perf.gate import Gate  # noqa: E402
from stn_triton import reference  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
QUICK_RUN = ["digits-28", "features-56-channels-last"]
DIGITS = ["--device", "cpu", "--quick", "--workloads", "digits-28"]


def with_sampler(monkeypatch, sampler, name="operator"):
    changed = replace(providers.PROVIDERS[name], make=lambda: sampler)
    monkeypatch.setitem(providers.PROVIDERS, name, changed)


def other_corners(input, theta, size):
    grid = F.affine_grid(theta, [*input.shape[:2], *size], align_corners=True)
    return F.grid_sample(input, grid, align_corners=True)


def right_output_wrong_gradient(input, theta, size):
    """The value of the eager pair, and one percent more of the gradient."""
    output = providers.eager_pair(input, theta, size)
    return output + 0.01 * (output - output.detach())


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The command as a user runs it, in a directory of its own."""
    directory = tmp_path_factory.mktemp("perf")
    options = ["--device", "cpu", "--quick", "--providers", "operator", "eager", "--workloads", *QUICK_RUN]
    command = [sys.executable, "-m", "perf", *options]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=120)
    return done, directory / "perf-results"


class TestQuickRun:
    def test_succeeds_with_a_table_and_progress(self, quick_run):
        done, _ = quick_run
        assert done.returncode == 0, done.stderr
        assert "vs eager" in done.stdout
        assert "operator" in done.stdout
        assert "digits-28 forward+backward: timing" in done.stderr
        assert "arning" not in done.stdout + done.stderr

    def test_csv_has_a_row_for_each_workload_pass_and_provider(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        expected = {(w, p, who) for w in QUICK_RUN for p in passes.PASSES for who in ("operator", "eager")}
        assert len(table) == len(expected)
        assert set(table[["workload", "pass", "provider"]].itertuples(index=False, name=None)) == expected
        assert (table["status"] == "ok").all()
        assert table["quick"].all()

    def test_csv_rows_carry_their_machine(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        assert set(table["device"]) == {environment.cpu_model()}
        assert set(table["torch"]) == {torch.__version__}
        for column in ("triton", "python", "commit", "date", "threads", "platform"):
            assert table[column].notna().all(), column

    def test_quantiles_are_ordered_and_speedups_follow_from_them(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        assert (table["q20_ms"] > 0).all()
        assert (table["q20_ms"] <= table["median_ms"]).all()
        assert (table["median_ms"] <= table["q80_ms"]).all()
        for _, rows in table.groupby(["workload", "pass"]):
            eager = rows.loc[rows["provider"] == "eager", "median_ms"].item()
            assert rows["speedup"].tolist() == pytest.approx((eager / rows["median_ms"]).tolist(), rel=1e-5)

    @pytest.mark.parametrize("name", ["speed.png", "photograph.png"])
    def test_pictures_show_something(self, quick_run, name):
        image = imread(quick_run[1] / name)[..., :3]
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.05


@pytest.fixture(scope="module")
def data():
    return workloads.make(workloads.WORKLOADS["digits-28"], CPU, quick=True)


@pytest.fixture(scope="module")
def gate(data):
    return Gate(data)


class TestGate:
    @pytest.mark.parametrize("sampler", [providers.operator, providers.eager_pair])
    def test_accepts_right_results(self, gate, data, sampler):
        for make_pass in passes.PASSES.values():
            verdict = gate.check(make_pass(sampler, data)())
            assert verdict.passed, verdict

    @pytest.mark.parametrize("index", range(3))
    @pytest.mark.parametrize("spoil", [lambda t: t * 1.001, lambda t: t.clone().fill_(float("nan"))])
    def test_rejects_each_tensor_when_wrong(self, gate, data, index, spoil):
        tensors = list(passes.forward_backward(providers.eager_pair, data)())
        tensors[index] = spoil(tensors[index])
        verdict = gate.check(tensors)
        assert not verdict.passed
        assert verdict.tensor == ("output", "grad_input", "grad_theta")[index]

    def test_rejects_a_single_wrong_pixel(self, gate, data):
        (output,) = passes.forward(providers.eager_pair, data)()
        output[3, 0, 14, 14] += 1e-3
        assert not gate.check([output]).passed

    @pytest.mark.parametrize("spoil", [torch.Tensor.double, lambda t: t[:, :, :-1]])
    def test_rejects_another_dtype_or_shape(self, gate, data, spoil):
        (output,) = passes.forward(providers.eager_pair, data)()
        verdict = gate.check([spoil(output)])
        assert not verdict.passed
        assert "expected (16, 1, 28, 28) torch.float32" in verdict.reason

    def test_bf16_may_round_its_output_and_no_more(self):
        workload = replace(workloads.WORKLOADS["digits-28"], dtype=torch.bfloat16)
        data = workloads.make(workload, CPU, quick=True)
        gate = Gate(data)
        tensors = passes.forward_backward(providers.eager_pair, data)()
        assert gate.check(tensors).passed
        assert not gate.check([tensors[0] * 1.02]).passed


@pytest.mark.parametrize(
    "name", [n for n, w in workloads.WORKLOADS.items() if w.options or w.size or w.crops]
)
def test_every_special_workload_passes_the_gate(name):
    """In small: the same maps and options on few pixels."""
    special = workloads.WORKLOADS[name]
    factor = special.options.get("antialias", 1)
    data = workloads.make(
        replace(
            special,
            shape=(2, 3, 24, 28),
            size=special.size and (24 // factor, 28 // factor),
            crops=special.crops // 200,
        ),
        CPU,
    )
    gate = Gate(data)
    verdict = gate.check(passes.forward_backward(providers.operator, data)())
    assert verdict.passed, verdict
    assert data.grad_output.any()


def test_a_wrong_provider_fails_without_a_time(monkeypatch, tmp_path, capsys):
    with_sampler(monkeypatch, other_corners)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    table = pd.read_csv(tmp_path / "speed.csv").set_index(["provider", "pass"])
    wrong = table.loc["operator"]
    assert (wrong["status"] == "FAILED").all()
    assert (wrong["error"] > wrong["tolerance"]).all()
    assert wrong[["q20_ms", "median_ms", "q80_ms", "speedup", "samples"]].isna().all(axis=None)
    assert table.loc["eager", "median_ms"].notna().all()
    assert "FAILED: operator on digits-28 forward, " in capsys.readouterr().out
    assert (tmp_path / "speed.png").exists()


def test_a_wrong_gradient_fails_the_backward_alone(monkeypatch, tmp_path):
    with_sampler(monkeypatch, right_output_wrong_gradient)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    table = pd.read_csv(tmp_path / "speed.csv").set_index(["provider", "pass"])
    assert table.loc[("operator", "forward"), "status"] == "ok"
    assert table.loc[("operator", "forward+backward"), "status"] == "FAILED"


@pytest.mark.parametrize(
    ("name", "status", "code"), [("operator", "FAILED", 1), ("compile", "unavailable", 0)]
)
def test_a_provider_that_raises_is_reported_with_its_reason(
    monkeypatch, tmp_path, capsys, name, status, code
):
    def broken(input, theta, size):
        raise RuntimeError("no such\ncompiler")

    with_sampler(monkeypatch, broken, name)
    assert main([*DIGITS, "--providers", name, "--out", str(tmp_path)]) == code
    table = pd.read_csv(tmp_path / "speed.csv")
    assert set(table.loc[table["provider"] == name, "status"]) == {status}
    assert (
        f"{status}: {name} on digits-28 forward, digits-28 forward+backward: RuntimeError: no such compiler"
        in (capsys.readouterr().out)
    )


def test_an_operator_that_cannot_run_still_leaves_a_report(monkeypatch, tmp_path, capsys):
    def broken(*_, **__):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr("stn_triton.affine_grid_sample", broken)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    assert "no photograph.png: NotImplementedError: no kernel" in capsys.readouterr().out
    assert not (tmp_path / "photograph.png").exists()
    table = pd.read_csv(tmp_path / "speed.csv")
    assert table["status"].tolist() == ["FAILED", "ok"] * 2


def test_a_report_without_any_time_can_be_written(tmp_path):
    row = {"workload": "digits-28", "shape": "1x1x2x2", "pass": "forward", "provider": "operator"}
    facts = environment.facts(CPU)
    table = results.frame([row | {"status": "FAILED", "reason": "broken"}], facts, quick=False)
    results.write_csv(table, tmp_path / "speed.csv")
    charts.speed_chart(table, facts, tmp_path / "speed.png")
    assert "FAILED: operator on digits-28 forward: broken" in results.report(table, facts)


def test_losses_are_drawn_in_their_own_colour(tmp_path):
    def loss_pixels(speedup):
        row = {"workload": "digits-28", "shape": "1x1x2x2", "pass": "forward", "provider": "operator"}
        times = {"q20_ms": 1.0, "median_ms": 1.0, "q80_ms": 1.0, "samples": 5, "speedup": speedup}
        facts = environment.facts(CPU)
        table = results.frame([row | times | {"status": "ok"}], facts, quick=False)
        charts.speed_chart(table, facts, tmp_path / "speed.png")
        image = imread(tmp_path / "speed.png")
        return int(((image[..., 0] > 0.65) & (image[..., 1] < 0.35) & (image[..., 2] < 0.25)).sum())

    assert loss_pixels(0.5) > 2 * loss_pixels(2.0) > 0


class TestMeasure:
    def test_quantiles(self):
        assert measure.quantiles([5.0, 1.0, 3.0, 2.0, 4.0, 6.0]) == (2.0, 3.5, 5.0)

    def test_functions_take_turns(self):
        calls = []
        functions = {name: lambda name=name: calls.append(name) for name in "abc"}
        effort = replace(measure.QUICK, seconds=0.0, min_rounds=7)
        samples = measure.sample(functions, CPU, effort)
        assert [len(samples[name]) for name in "abc"] == [7, 7, 7]
        rounds = [calls[i : i + 3] for i in range(0, 21, 3)]
        assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
        assert len({tuple(one) for one in rounds}) > 1

    def test_on_a_gpu_functions_take_turns_too(self, monkeypatch):
        testing = pytest.importorskip("triton.testing")
        calls = []

        def do_bench(fn, warmup=25, rep=100, grad_to_none=None, quantiles=None, return_mode="mean"):
            assert return_mode == "all"
            calls.append(fn())
            return [float(rep)] * 3

        monkeypatch.setattr(testing, "do_bench", do_bench)
        effort = replace(measure.QUICK, gpu_rounds=2, gpu_ms_per_round=10)
        functions = {"a": lambda: "a", "b": lambda: "b"}
        samples = measure.sample(functions, torch.device("cuda"), effort)
        assert calls == ["a", "b", "a", "b"]
        assert samples == {"a": [10.0] * 6, "b": [10.0] * 6}

    def test_a_slow_function_takes_longer(self):
        import time

        functions = {"slow": lambda: time.sleep(0.005), "fast": lambda: None}
        samples = measure.sample(functions, CPU, measure.QUICK)
        assert measure.quantiles(samples["slow"])[1] >= 5.0
        assert measure.quantiles(samples["fast"])[1] < 1.0


class TestWorkloads:
    def test_every_one_says_who_has_it(self):
        assert all(len(workload.who.split()) > 4 for workload in workloads.WORKLOADS.values())
        assert (64, 3, 224, 224) in {workload.shape for workload in workloads.WORKLOADS.values()}

    def test_channels_last_data_is_channels_last(self):
        data = workloads.make(workloads.WORKLOADS["features-56-channels-last"], CPU, quick=True)
        assert data.input.stride()[1] == data.grad_output.stride()[1] == 1

    def test_data_is_the_same_each_time(self):
        one, two = (workloads.make(workloads.WORKLOADS["digits-28"], CPU) for _ in range(2))
        assert torch.equal(one.input, two.input)
        assert torch.equal(one.theta, two.theta)

    def test_no_gradient_comes_from_where_rounding_decides(self):
        data = workloads.make(workloads.WORKLOADS["digits-28"], CPU)
        grid = F.affine_grid(data.theta.double(), list(data.input.shape), align_corners=False)
        pixels = ((grid + 1) * 28 - 1) / 2
        near = ((pixels - pixels.round()).abs() < 5e-4).any(-1)
        assert near.any()
        assert (data.grad_output[:, 0][near] == 0).all()
        assert (data.grad_output != 0).double().mean() > 0.98


class TestEnvironment:
    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        (tmp_path / "stn_triton").mkdir()
        (tmp_path / "stn_triton" / "a.py").write_text("a = 1\n")
        monkeypatch.setattr(environment, "_ROOT", tmp_path.resolve())
        return tmp_path

    def git(self, directory, *arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)

    def test_commit(self, checkout):
        assert environment.commit() == "unknown"
        self.git(checkout, "init")
        self.git(checkout, "add", ".")
        self.git(checkout, "commit", "-m", "first")
        clean = environment.commit()
        assert len(clean) >= 10
        assert "+" not in clean
        (checkout / "notes.txt").write_text("not what is measured")
        assert environment.commit() == clean
        (checkout / "stn_triton" / "b.py").write_text("b = 1\n")
        assert environment.commit() == clean + "+dirty"

    def test_commit_of_another_project_around_is_not_ours(self, checkout, monkeypatch):
        self.git(checkout, "init")
        self.git(checkout, "add", ".")
        self.git(checkout, "commit", "-m", "first")
        monkeypatch.setattr(environment, "_ROOT", checkout.resolve() / "stn_triton")
        assert environment.commit() == "unknown"


class TestCommandLine:
    def test_help_has_examples_and_exit_codes(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["--help"])
        assert stop.value.code == 0
        text = capsys.readouterr().out
        assert "examples:\n  python -m perf" in text
        assert "exit codes:" in text

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--device", "abacus"], "cpu ("),
            (["--device", "cuda:99"], "cpu ("),
            (["--workloads", "nothing"], "digits-28"),
            (["--providers", "nobody"], "operator, eager, compile"),
        ],
    )
    def test_an_unknown_name_exits_2_and_says_what_there_is(self, capsys, arguments, named):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert arguments[1] in message
        assert named in message.split("available:")[1]

    def test_interrupt_exits_130(self, monkeypatch, tmp_path, capsys):
        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(bench, "run", interrupted)
        assert main([*DIGITS, "--out", str(tmp_path)]) == 130
        assert "interrupted" in capsys.readouterr().err


def test_photograph_warps_agree(tmp_path):
    photo = photograph.load()
    ours, theirs = photograph.warp(photo, CPU)
    assert ours.shape == theirs.shape == photo.shape
    assert abs(ours - theirs).max() < 1e-3
    assert abs(ours - photo / 255).mean() > 0.05


def test_photograph_reports_the_largest_difference(monkeypatch, tmp_path):
    monkeypatch.setattr(photograph, "operator", lambda *args: providers.eager_pair(*args) + 0.25)
    largest = photograph.picture(CPU, environment.facts(CPU), tmp_path / "photograph.png")
    assert largest == pytest.approx(0.25, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_quick_run_on_a_gpu(tmp_path):
    code = main(["--device", "cuda", "--quick", "--providers", "operator", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "speed.csv")
    assert code == 0, table[table["status"] != "ok"].to_string()
    assert set(table["device"]) == {torch.cuda.get_device_name()}
    assert set(table["workload"]) == set(workloads.WORKLOADS)
    assert (table["samples"] >= 2).all()


def test_overhead_times_every_boundary(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["overhead", "--device", "cpu"])
    monkeypatch.setattr(overhead, "measure", partial(overhead.measure, rounds=2, calls=3))
    overhead.main()
    printed = capsys.readouterr().out
    for name in overhead.PROVIDERS:
        (line,) = [line for line in printed.splitlines() if line.startswith(name + "  ")]
        times = [float(word) for word in re.findall(r"(\d+\.\d) \(", line)]
        assert len(times) == len(overhead.PASSES)
        assert all(0 < t < 1e5 for t in times)


def test_overhead_computes_nothing():
    tensors = torch.randn(overhead.SIZE).requires_grad_(), torch.eye(2, 3)[None].requires_grad_()
    with overhead.nothing_computed():
        output = overhead.PROVIDERS["affine_grid_sample"](*tensors)
        grads = torch.autograd.grad(output, tensors, torch.ones_like(output))
    assert [t.shape for t in (output, *grads)] == [overhead.SIZE, overhead.SIZE, (1, 2, 3)]
    assert "nothing_computed" not in reference.forward.__qualname__
