"""``python -m perf bench``: what it writes, what it refuses to time, and its exit codes."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import uninterpreted
from tqdm import tqdm

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
from matplotlib.image import imread  # noqa: E402

from perf import (  # noqa: E402
    bench,
    overhead,
    setting,
)
from perf.__main__ import main  # noqa: E402
from perf.measuring import (  # noqa: E402
    passes,
    photograph,
    providers,
    results,
    stopwatch,
    suite,
    workloads,
)
from perf.measuring.maps import MAPS  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device("cpu")
QUICK_RUN = {"digits-28": list(passes.PASSES), "size-16": ["forward", "forward+backward"]}
RIVALS = ["operator", "eager", "eager-corners", "eager-broadcast"]
DIGITS = ["bench", "--device", "cpu", "--quick", "--workloads", "digits-28", "--maps", "random"]
COLUMNS = [
    *("workload", "shape", "size", "dtype", "layout", "map", "pass", "provider", "status", "reason"),
    *("q20_ms", "median_ms", "q80_ms", "samples", "graph_ms", "speedup", "peak_mib", "model_mib"),
    *("gb_per_s", "roofline", "checked", "error", "tolerance", "quick", "copy_gb_per_s"),
    *("device", "device_type", "driver", "toolkit", "cpu", "threads", "platform", "python", "torch"),
    *("triton", "stn_triton", "commit", "date"),
]


def with_sampler(monkeypatch, sampler, name="operator"):
    changed = replace(providers.PROVIDERS[name], make=lambda: sampler)
    monkeypatch.setitem(providers.PROVIDERS, name, changed)


def other_corners(input, theta, size):
    return providers.eager_pair(input, theta, size, align_corners=True)


def right_output_wrong_gradient(input, theta, size):
    """The value of the eager pair, and one percent more of the gradient."""
    output = providers.eager_pair(input, theta, size)
    return output + 0.01 * (output - output.detach())


@pytest.fixture
def drawn(monkeypatch):
    """Stand-ins for what draws, and for the copy's speed; the names of what was called."""
    calls = []
    monkeypatch.setattr("perf.measuring.roofline.copy_gb_per_s", lambda device: 10.0)

    def draw(table, out):
        calls.append(("plot", len(table)))
        return [out / "speed.png"]

    def write(table, out):
        calls.append(("report", len(table)))
        return out / "report.html"

    def picture(device, facts, path):
        calls.append(("photograph", 0))
        return 1e-5

    modules = {
        "plot": SimpleNamespace(draw=draw),
        "report": SimpleNamespace(write=write),
        "photograph": SimpleNamespace(picture=picture),
    }
    monkeypatch.setattr(bench, "_module", modules.__getitem__)
    return calls


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """The command as a user runs it, in a directory of its own."""
    directory = tmp_path_factory.mktemp("perf")
    options = ["--device", "cpu", "--quick", "--providers", *RIVALS]
    command = [sys.executable, "-m", "perf", "bench", *options, "--workloads", *QUICK_RUN]
    environ = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=directory, env=environ, capture_output=True, text=True, timeout=120)
    return done, directory / "perf-results"


class TestQuickRun:
    def test_succeeds_with_a_table_and_progress(self, quick_run):
        done, _ = quick_run
        assert "vs eager" in done.stdout
        assert "digits-28: workload 1 of 2" in done.stderr
        assert "\r" not in done.stderr
        assert "arning" not in done.stdout + done.stderr

    def test_ends_well_with_charts_and_page(self, quick_run):
        pytest.importorskip("perf.plot")
        pytest.importorskip("perf.report")
        done, directory = quick_run
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(list(directory.glob("*.png"))) > 1
        assert (directory / "report.html").stat().st_size > 1000

    def test_csv_has_the_columns_of_the_contract(self, quick_run):
        assert list(pd.read_csv(quick_run[1] / "speed.csv").columns) == COLUMNS

    def test_csv_has_a_row_for_each_workload_pass_and_provider(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        expected = {(w, p, who) for w, names in QUICK_RUN.items() for p in names for who in RIVALS}
        assert len(table) == len(expected)
        assert set(table[["workload", "pass", "provider"]].itertuples(index=False, name=None)) == expected
        assert (table["status"] == "ok").all()
        assert table["quick"].all()
        assert set(table["map"]) == {"random"}
        assert table.loc[0, ["shape", "size"]].tolist() == ["16x1x28x28", "28x28"]

    def test_csv_rows_carry_their_machine(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        assert set(table["device"]) == {setting.cpu_model()}
        assert set(table["torch"]) == {torch.__version__}
        for column in ("triton", "python", "commit", "date", "threads", "platform"):
            assert table[column].notna().all(), column

    def test_figures_follow_from_each_other(self, quick_run):
        table = pd.read_csv(quick_run[1] / "speed.csv")
        assert (table["q20_ms"] > 0).all()
        assert (table["q20_ms"] <= table["median_ms"]).all()
        assert (table["median_ms"] <= table["q80_ms"]).all()
        for _, rows in table.groupby(["workload", "pass"]):
            eager = rows.loc[rows["provider"] == "eager", "median_ms"].item()
            assert rows["speedup"].tolist() == pytest.approx((eager / rows["median_ms"]).tolist(), rel=1e-5)
        moved = table["model_mib"] * 2**20 / table["median_ms"] / 1e6
        assert table["gb_per_s"].tolist() == pytest.approx(moved.tolist(), rel=1e-5)
        share = table["gb_per_s"] / table["copy_gb_per_s"]
        assert table["roofline"].tolist() == pytest.approx(share.tolist(), rel=1e-5)
        assert table["copy_gb_per_s"].nunique() == 1
        digits = table[(table["workload"] == "digits-28") & (table["pass"] == "input")]
        assert len(digits) == len(RIVALS)
        # grad_input whole, and of grad_output what lies on the image, which is most of it.
        assert (digits["model_mib"] / (16 * 28 * 28 * 4 / 2**20)).between(1.8, 2).all()

    def test_the_photograph_shows_something(self, quick_run):
        image = imread(quick_run[1] / "photograph.png")[..., :3]
        assert min(image.shape[:2]) > 300
        assert image.std() > 0.05


def test_a_wrong_provider_fails_without_a_time(monkeypatch, tmp_path, capsys, drawn):
    with_sampler(monkeypatch, other_corners)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    table = pd.read_csv(tmp_path / "speed.csv").set_index(["provider", "pass"])
    wrong = table.loc["operator"]
    assert (wrong["status"] == "FAILED").all()
    assert (wrong["error"] > wrong["tolerance"]).all()
    assert wrong[["q20_ms", "median_ms", "q80_ms", "speedup", "samples", "roofline"]].isna().all(axis=None)
    assert table.loc["eager", "median_ms"].notna().all()
    printed = capsys.readouterr().out
    assert "FAILED: operator on digits-28 (forward, forward+backward): output is off by" in printed
    assert drawn == [("plot", 10), ("report", 10), ("photograph", 0)]


def test_a_wrong_gradient_fails_the_backward_passes_alone(monkeypatch, tmp_path, drawn):
    with_sampler(monkeypatch, right_output_wrong_gradient)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    table = pd.read_csv(tmp_path / "speed.csv").set_index(["provider", "pass"])
    status = table.loc["operator", "status"]
    assert status.pop("forward") == "ok"
    assert set(status) == {"FAILED"}


@pytest.mark.parametrize(
    ("name", "status", "code"), [("operator", "FAILED", 1), ("compile", "unavailable", 0)]
)
def test_a_provider_that_raises_is_reported_with_its_reason(
    monkeypatch, tmp_path, capsys, drawn, name, status, code
):
    def broken(input, theta, size):
        raise RuntimeError(f"no such\ncompiler in {Path.home()}/bin")

    with_sampler(monkeypatch, broken, name)
    assert main([*DIGITS, "--providers", name, "--out", str(tmp_path)]) == code
    table = pd.read_csv(tmp_path / "speed.csv")
    assert set(table.loc[table["provider"] == name, "status"]) == {status}
    printed = capsys.readouterr().out
    assert f"{status}: {name} on all rows: RuntimeError: no such compiler in ~/bin" in printed


def test_memory_that_does_not_suffice_is_no_failure_of_a_rival(monkeypatch, tmp_path, drawn):
    def hungry(input, theta, size):
        raise torch.OutOfMemoryError("tried to allocate 15.6 GiB")

    with_sampler(monkeypatch, hungry, "eager")
    assert main([*DIGITS, "--providers", "operator", "--passes", "forward", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "speed.csv").set_index("provider")
    assert table["status"].to_dict() == {"operator": "ok", "eager": "unavailable"}
    assert pd.isna(table.loc["operator", "speedup"])


def test_an_operator_that_cannot_run_still_leaves_a_report(monkeypatch, tmp_path, capsys, drawn):
    modules = bench._module
    monkeypatch.setattr(bench, "_module", lambda name: photograph if name == "photograph" else modules(name))

    def broken(*_, **__):
        raise NotImplementedError("no kernel for this device")

    monkeypatch.setattr("stn_triton.affine_grid_sample", broken)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 1
    assert "no photograph.png: NotImplementedError: no kernel" in capsys.readouterr().out
    assert not (tmp_path / "photograph.png").exists()
    table = pd.read_csv(tmp_path / "speed.csv")
    assert table["status"].tolist() == ["FAILED", "ok"] * 5


@pytest.mark.parametrize("broken", ["plot", "report", "photograph"])
def test_what_cannot_be_drawn_is_said_and_the_rows_stay(monkeypatch, tmp_path, capsys, drawn, broken):
    module = bench._module

    def without(name):
        if name == broken:
            raise ImportError(f"no module to draw the {name}")
        return module(name)

    monkeypatch.setattr(bench, "_module", without)
    arguments = [*DIGITS, "--passes", "forward", "--providers", "operator", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert f"ImportError: no module to draw the {broken}" in capsys.readouterr().out
    assert (pd.read_csv(tmp_path / "speed.csv")["status"] == "ok").all()
    assert {name for name, _ in drawn} == {"plot", "report", "photograph"} - {broken}


def test_a_quick_run_skips_compiling_and_says_so(monkeypatch, tmp_path, drawn):
    assert main([*DIGITS, "--passes", "forward", "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "speed.csv").set_index("provider")
    assert list(table.index) == list(providers.PROVIDERS)
    assert table.loc["compile", "status"] == "skipped"
    assert "--providers" in table.loc["compile", "reason"]


def test_compiling_is_done_once_for_all_maps(monkeypatch, tmp_path, drawn):
    made = []

    def make():
        made.append(None)
        return providers.eager_pair

    changed = replace(providers.PROVIDERS["compile"], make=make)
    monkeypatch.setitem(providers.PROVIDERS, "compile", changed)
    arguments = [*DIGITS, "--maps", "identity", "zoom-2", "--providers", "compile", "--out", str(tmp_path)]
    assert main(arguments) == 0
    assert len(made) == 1


def test_what_failed_to_compile_is_not_tried_under_the_next_map(monkeypatch, tmp_path, drawn):
    tried = []

    def broken(input, theta, size):
        tried.append(None)
        raise RuntimeError("no compiler")

    with_sampler(monkeypatch, broken, "compile")
    arguments = [*DIGITS, "--maps", *MAPS, "--providers", "compile", "--passes", "forward"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert len(tried) == 1
    table = pd.read_csv(tmp_path / "speed.csv")
    rows = table[table["provider"] == "compile"]
    assert rows["reason"].tolist() == ["RuntimeError: no compiler"] * len(MAPS)


def test_bytes_have_no_gradients_and_rows_that_say_so(monkeypatch, tmp_path, drawn):
    small = replace(workloads.WORKLOADS["images-224-uint8"], shape=(2, 3, 32, 32))
    monkeypatch.setitem(workloads.WORKLOADS, small.name, small)
    arguments = ["bench", "--device", "cpu", "--quick", "--workloads", small.name, "--maps", "rotate-30"]
    assert main([*arguments, "--providers", *RIVALS, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "speed.csv").set_index("pass")
    assert (table.loc["forward", "status"] == "ok").all()
    others = table.drop("forward")
    assert len(others) == 4 * len(RIVALS)
    assert set(others["status"]) == {"unavailable"}
    assert set(others["reason"]) == {"uint8 images have no gradients"}


def test_a_map_that_a_workload_cannot_have_is_skipped_with_the_reason(monkeypatch, tmp_path, drawn):
    small = replace(workloads.WORKLOADS["antialias-2"], shape=(2, 3, 32, 32), size=(16, 16))
    monkeypatch.setitem(workloads.WORKLOADS, small.name, small)
    arguments = ["bench", "--device", "cpu", "--quick", "--workloads", small.name]
    arguments += ["--maps", "zoom-2", "random", "--passes", "forward", "--providers", "operator"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    table = pd.read_csv(tmp_path / "speed.csv")
    assert table["status"].tolist() == ["ok", "ok", "skipped", "skipped"]
    assert "different factors" in table["reason"].iloc[-1]


def test_an_interrupt_keeps_the_rows_so_far(monkeypatch, tmp_path, capsys, drawn):
    calls = []

    def sample(*arguments):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure_sample(*arguments)

    measure_sample = stopwatch.sample
    monkeypatch.setattr(stopwatch, "sample", sample)
    assert main([*DIGITS, "--providers", "operator", "--out", str(tmp_path)]) == 130
    table = pd.read_csv(tmp_path / "speed.csv")
    assert table["pass"].tolist() == ["forward"] * 2 + ["backward"] * 2
    assert (table["status"] == "ok").all()
    message = capsys.readouterr().err
    assert f"4 rows of 10 are in {tmp_path / 'speed.csv'}" in message
    assert "interrupted" in message
    assert not drawn


def test_json_is_all_that_standard_output_has(tmp_path, capsys, drawn):
    arguments = [*DIGITS, "--passes", "forward", "theta", "--providers", "operator", "--json"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert [(row["pass"], row["provider"]) for row in rows] == [
        (p, who) for p in ("forward", "theta") for who in ("operator", "eager")
    ]
    assert list(rows[0]) == COLUMNS
    assert rows[0]["graph_ms"] is None
    assert "wrote" in printed.err


def test_contribute_names_a_file_and_what_is_in_it(monkeypatch, tmp_path, capsys, drawn):
    monkeypatch.setattr(setting, "cpu_model", lambda: "Ada (R) 9/3 Ti")
    make_plan = bench.make_plan

    def on_a_cpu_all_the_same(args):
        args.contribute = False
        plan = make_plan(args)
        args.contribute = True
        return plan

    monkeypatch.setattr(bench, "make_plan", on_a_cpu_all_the_same)
    arguments = [*DIGITS, "--passes", "forward", "--providers", "operator", "--contribute"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    copy = tmp_path / "contribute" / "ada-r-9-3-ti.csv"
    assert copy.read_text() == (tmp_path / "speed.csv").read_text()
    assert f"wrote {copy}\n" in printed
    assert "perf/results/ada-r-9-3-ti.csv" in printed
    named = re.split(r"[,.\s]+", printed.partition("nothing of you:")[2])
    assert set(setting.facts(CPU)) <= set(named)


@pytest.mark.parametrize(("arguments", "got"), [([], "a run on cpu"), (["--quick"], "a quick run")])
def test_contribute_refuses_rows_that_are_worth_nothing(capsys, tmp_path, arguments, got):
    with pytest.raises(SystemExit) as stop:
        main(["bench", "--device", "cpu", "--contribute", *arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    assert f"--contribute: got {got}; expected a full run on a GPU" in capsys.readouterr().err


def test_a_choice_without_rows_exits_2_and_says_what_there_is(capsys, tmp_path):
    arguments = ["--device", "cpu", "--quick", "--workloads", "size-16", "--passes", "theta"]
    with pytest.raises(SystemExit) as stop:
        main(["bench", *arguments, "--out", str(tmp_path)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "--workloads size-16 --maps random --passes theta: no row to measure" in message
    assert "size-16 has only the maps random and passes forward, forward+backward" in message


def test_files_are_written_though_nobody_reads_the_output(monkeypatch, tmp_path, drawn):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def flush(self):
            pass

        def fileno(self):
            return os.open(os.devnull, os.O_WRONLY)

    monkeypatch.setattr(sys, "stdout", Closed())
    assert main([*DIGITS, "--passes", "forward", "--providers", "operator", "--out", str(tmp_path)]) == 1
    assert [name for name, _ in drawn] == ["plot", "report", "photograph"]


def test_an_older_run_is_moved_out_of_the_way(tmp_path, capsys, drawn):
    ours = ["speed.csv", "speed.png", "roofline.svg", "scaling-size.png", "report.html", "photograph.png"]
    others = ["tuning.csv", "landscape.png", "memory.txt", "speedy.csv"]
    previous = tmp_path / "previous"
    previous.mkdir()
    (previous / "memory.png").write_text("still older")
    for name in ours + others:
        (tmp_path / name).write_text("old")
    assert main([*DIGITS, "--passes", "forward", "--providers", "operator", "--out", str(tmp_path)]) == 0
    assert sorted(p.name for p in previous.iterdir()) == sorted(ours)
    assert (previous / "speed.csv").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "previous", "speed.csv"])
    assert len(pd.read_csv(tmp_path / "speed.csv")) == 2
    assert f"moved 6 files of an older run to {previous}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("load", "is_busy"), [(0.9, False), (4.4, True)])
def test_a_busy_machine_is_named(monkeypatch, tmp_path, capsys, drawn, load, is_busy):
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert main([*DIGITS, "--passes", "forward", "--providers", "operator", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    for text in printed:
        assert ("load 4.4 on 2 cores: other processes run" in text) == is_busy


@pytest.mark.parametrize(("samples", "in_noise"), [((10, 10), False), ((9, 10), True), ((10, 3), True)])
def test_few_samples_are_noise(samples, in_noise):
    times = {"status": "ok", "q20_ms": 1.0, "median_ms": 1.0, "q80_ms": 1.0, "samples": samples[0]}
    cell = {"workload": "a", "map": "b", "pass": "c"}
    slower = times | dict.fromkeys(("q20_ms", "median_ms", "q80_ms"), 2.0) | {"samples": samples[1]}
    rows = [cell | times | {"provider": "operator"}, cell | slower | {"provider": "eager"}]
    assert results.against(results.frame(rows, {}), "eager")["in_noise"].tolist() == [in_noise]


def test_nothing_timed_is_said_and_has_no_means(tmp_path, capsys, drawn):
    arguments = ["bench", "--device", "cpu", "--quick", "--workloads", "antialias-2", "--maps", "random"]
    assert main([*arguments, "--providers", "operator", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("nothing was timed\n")
    assert "eometric means" not in printed
    assert "skipped: operator on all rows: images that shrink" in printed


def test_on_a_gpu_rows_have_memory_and_replays(monkeypatch):
    """The GPU's branch of a case, on a CPU that plays one."""
    graphs = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = time.perf_counter()

        def elapsed_time(self, end):
            return (end.time - self.time) * 1e3

    def captured(runs):
        graphs.append(len(runs))
        if len(graphs) == 3:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")
        return SimpleNamespace(replay=lambda: [run() for run in runs])

    def make(*arguments):
        return make_on_cpu(arguments[0], CPU, *arguments[2:])

    make_on_cpu = workloads.make
    monkeypatch.setattr(workloads, "make", make)
    monkeypatch.setattr(stopwatch, "cache_bytes", lambda device: 2**13)
    monkeypatch.setattr(stopwatch, "peak_bytes", lambda run: 3 * 2**20)
    monkeypatch.setattr(stopwatch, "_captured", captured)
    monkeypatch.setattr(stopwatch, "_failed_captures", [])
    monkeypatch.setattr(stopwatch, "is_alive", lambda device: True)
    monkeypatch.setattr(suite, "_SMALL_MS", 1e4)
    monkeypatch.setattr(suite, "_GRAPH_MS", 1e4)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    small = replace(workloads.WORKLOADS["digits-28"], shape=(2, 1, 28, 28))
    plan = suite.Plan(
        torch.device("cuda"),
        [small],
        ["zoom-2"],
        ["forward", "backward", "forward+backward"],
        providers.choose(["eager-corners"]),
        quick=True,
        copy_gb_per_s=1.0,
    )
    with tqdm(total=plan.count_rows(), disable=True) as progress:
        rows = {(row["pass"], row["provider"]): row for rows in suite.run(plan, progress) for row in rows}
    assert len(rows) == 9
    assert {row["status"] for row in rows.values()} == {"ok"}
    assert {row["peak_mib"] for row in rows.values()} == {3.0}
    # Zoomed in, 15 x 15 pixels of each of 2 images are touched.
    assert rows["forward", "operator"]["model_mib"] == 2 * (15 * 15 + 28 * 28) * 4 / 2**20
    assert graphs == [stopwatch.QUICK.most_copies] * 3
    assert 0 < rows["forward", "operator"]["graph_ms"] < 1e3
    failed = rows["forward", "eager-corners"]
    assert failed["graph_ms"] is None
    assert failed["reason"] == "no CUDA graph: RuntimeError: cudaErrorStreamCaptureUnsupported"
    assert "graph_ms" not in rows["backward", "operator"]
    later = rows["forward+backward", "operator"]
    assert later["graph_ms"] is None
    assert "not tried, since a capture of eager-corners failed" in later["reason"]


def test_list_names_everything(capsys):
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for workload in workloads.WORKLOADS.values():
        assert workload.name in printed
        assert workload.who in printed
    for name in (*MAPS, *passes.PASSES, *providers.PROVIDERS):
        assert f"\n  {name} " in printed
    assert max(map(len, printed.splitlines())) <= 120


class TestEnvironment:
    @pytest.fixture
    def checkout(self, tmp_path, monkeypatch):
        (tmp_path / "stn_triton").mkdir()
        (tmp_path / "stn_triton" / "a.py").write_text("a = 1\n")
        monkeypatch.setattr(setting, "_ROOT", tmp_path.resolve())
        return tmp_path

    def git(self, directory, *arguments):
        identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        subprocess.run(["git", *identity, *arguments], cwd=directory, check=True, capture_output=True)

    def test_commit(self, checkout):
        assert setting.commit() == "unknown"
        self.git(checkout, "init")
        self.git(checkout, "add", ".")
        self.git(checkout, "commit", "-m", "first")
        clean = setting.commit()
        assert len(clean) >= 10
        assert "+" not in clean
        (checkout / "notes.txt").write_text("not what is measured")
        assert setting.commit() == clean
        (checkout / "stn_triton" / "b.py").write_text("b = 1\n")
        assert setting.commit() == clean + "+dirty"

    def test_commit_of_another_project_around_is_not_ours(self, checkout, monkeypatch):
        self.git(checkout, "init")
        self.git(checkout, "add", ".")
        self.git(checkout, "commit", "-m", "first")
        monkeypatch.setattr(setting, "_ROOT", checkout.resolve() / "stn_triton")
        assert setting.commit() == "unknown"


class TestCommandLine:
    def test_help_has_examples_and_exit_codes(self, capsys):
        for arguments in (["--help"], ["bench", "--help"]):
            with pytest.raises(SystemExit) as stop:
                main(arguments)
            assert stop.value.code == 0
            assert "examples:\n  python -m perf" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "named"),
        [
            (["--device", "abacus"], "cpu ("),
            (["--device", "cuda:99"], "cpu ("),
            (["--workloads", "nothing"], "digits-28"),
            (["--maps", "mercator"], "identity, rotate-30"),
            (["--passes", "sideways"], "forward, backward"),
            (["--providers", "nobody"], "operator, eager, eager-corners"),
        ],
    )
    def test_an_unknown_name_exits_2_and_says_what_there_is(self, capsys, arguments, named):
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments])
        assert stop.value.code == 2
        message = capsys.readouterr().err
        assert arguments[1] in message
        assert named in message.split("available:")[1]

    def test_an_error_of_the_package_is_known_where_perf_is_imported_first(self):
        command = [sys.executable, "-m", "perf", "step", "--device", "abacus"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 2
        assert "perf step: error: --device: no device 'abacus' here; available: " in done.stderr

    def test_an_output_that_is_no_directory_exits_2(self, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["bench", "--out", os.devnull])
        assert stop.value.code == 2
        assert f"--out: cannot make the directory {os.devnull}" in capsys.readouterr().err


def test_photograph_warps_agree(tmp_path):
    photo = photograph.load()
    ours, theirs = photograph.warp(photo, CPU)
    assert ours.shape == theirs.shape == photo.shape
    assert abs(ours - theirs).max() < 1e-3
    assert abs(ours - photo / 255).mean() > 0.05


def test_photograph_reports_the_largest_difference(monkeypatch, tmp_path):
    monkeypatch.setattr(photograph, "operator", lambda *args: providers.eager_pair(*args) + 0.25)
    largest = photograph.picture(CPU, setting.facts(CPU), tmp_path / "photograph.png")
    assert largest == pytest.approx(0.25, rel=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_quick_run_on_a_gpu(tmp_path, drawn):
    names = [w.name for w in workloads.WORKLOADS.values() if w.quick]
    code = main(["bench", "--device", "cuda", "--quick", "--out", str(tmp_path)])
    table = pd.read_csv(tmp_path / "speed.csv")
    timed = table[table["status"] == "ok"]
    ours = table[table["provider"] == "operator"]
    assert code == 0, table[table["status"] != "ok"].to_string()
    assert (ours["status"] == "ok").all()
    assert set(table["device"]) == {torch.cuda.get_device_name()}
    assert set(table["workload"]) == set(names)
    assert (timed["samples"] >= 9).all()
    assert timed["peak_mib"].notna().all()
    graphs = ours[(ours["workload"] == "digits-28") & ours["pass"].isin(["forward", "forward+backward"])]
    assert (graphs["graph_ms"] > 0).all(), graphs["reason"].tolist()


class TestOverhead:
    """In processes of their own: interpreted kernels have no launcher."""

    @staticmethod
    def run(*arguments, **variables):
        return uninterpreted.python("-m", "perf", "overhead", "--device", "cpu", *arguments, **variables)

    def test_json_is_all_that_is_printed(self):
        done = self.run("--json")
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        assert set(printed["microseconds"]) == set(overhead.PROVIDERS)
        for row in printed["microseconds"].values():
            assert set(row) == set(overhead.PASSES)
            assert all(0 < time < 1e5 for time in row.values())
        assert printed["torch"] == torch.__version__

    def test_the_launcher_is_in_it(self, capsys, monkeypatch):
        """As a table, of a measurement that is made up."""
        rows = {
            name: dict.fromkeys(overhead.PASSES, 10.0 * (i + 1)) for i, name in enumerate(overhead.PROVIDERS)
        }
        monkeypatch.setattr(overhead, "measure", lambda device: rows)
        monkeypatch.setattr(overhead, "surroundings", lambda device: contextlib.nullcontext())
        assert main(["overhead", "--device", "cpu"]) == 0
        (line,) = [x for x in capsys.readouterr().out.splitlines() if x.startswith("affine_grid_sample ")]
        assert re.findall(r"(\d+\.\d) \( *(\d+\.\d+)x\)", line) == [("20.0", "2.00")] * 3

    def test_interpreted_kernels_have_no_launcher(self):
        done = self.run(TRITON_INTERPRET="1")
        assert done.returncode == 2
        assert "TRITON_INTERPRET is set" in done.stderr

    def test_no_compiler(self):
        done = self.run(CC="/nowhere/cc")
        assert done.returncode == 2
        assert "needs a C compiler" in done.stderr

    def test_a_first_step_compiles_two_kernels_and_is_done_in_seconds(self, tmp_path):
        """Feature maps of 64 channels NCHW, from empty caches."""
        path = tmp_path / "first.csv"
        done = self.run("--first-calls", "features-64", "--json", "--out", str(path))
        assert done.returncode == 0, done.stderr
        row = json.loads(done.stdout)
        assert row["kernels"] == 2
        assert 0 < row["processor_s"] < 8
        assert row["second_forward_s"] + row["second_backward_s"] < 0.1 * row["processor_s"]
        assert pd.read_csv(path)["workload"].tolist() == ["features-64"]

    def test_an_unknown_workload_is_named(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            main(["overhead", "--device", "cpu", "--first-calls", "nothing"])
        assert stopped.value.code == 2
        assert "--first-calls: unknown name 'nothing'; available: digits-28" in capsys.readouterr().err
