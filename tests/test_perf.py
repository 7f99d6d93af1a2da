"""``python -m perf``: bench, what it writes and refuses to time; arguments and exit codes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
import uninterpreted
from tqdm import tqdm

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import made_up  # noqa: E402

from perf import files, setting  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.measuring import passes, providers, stopwatch, suite, summary, workloads  # noqa: E402
from perf.measuring.maps import MAPS  # noqa: E402

CPU = torch.device("cpu")
QUICK_RUN = {"digits-28": list(passes.PASSES), "size-16": ["forward", "forward+backward"]}
RIVALS = ["operator", "eager", "eager-corners", "eager-broadcast"]
DIGITS = ["bench", "--device", "cpu", "--quick", "--workloads", "digits-28", "--maps", "random"]
NO_GPU = pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU")
COLUMNS = [*files.MEASURED, "quick", "copy_gb_per_s", *files.FACTS]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Run the command on few digits, without drawing; its exit code and rows."""
    monkeypatch.setattr("perf.measuring.roofline.copy_gb_per_s", lambda device: 10.0)
    monkeypatch.setattr("perf.plot.write", lambda *_: [])
    monkeypatch.setattr("perf.report.write", lambda *_: "report.html")

    def run(*arguments):
        code = main([*DIGITS, *arguments, "--out", str(tmp_path)])
        return code, pd.read_csv(tmp_path / "speed.csv")

    return run


@pytest.fixture
def make_with(monkeypatch):
    """Replace the function that makes a provider's sampler."""

    def change(name, make):
        monkeypatch.setitem(providers.PROVIDERS, name, replace(providers.PROVIDERS[name], make=make))

    return change


def test_quick_run_writes_a_table_charts_and_a_page(tmp_path):
    """The command as a user runs it, in a directory of its own."""
    options = ["--device", "cpu", "--quick", "--providers", *RIVALS, "--workloads", *QUICK_RUN]
    command = [sys.executable, "-m", "perf", "bench", *options]
    environ = os.environ | {"PYTHONPATH": str(uninterpreted.ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120)
    directory = tmp_path / "perf-results"
    assert done.returncode == 0, done.stdout + done.stderr
    assert "arning" not in done.stdout + done.stderr
    assert {path.suffix for path in directory.iterdir()} == {".csv", ".png", ".svg", ".html"}

    table = pd.read_csv(directory / "speed.csv")
    assert list(table.columns) == COLUMNS
    found = table[["workload", "pass", "provider"]].itertuples(index=False, name=None)
    assert set(found) == {(w, p, who) for w, names in QUICK_RUN.items() for p in names for who in RIVALS}
    assert (table["status"] == "ok").all()
    assert table["quick"].all()
    assert table.loc[0, ["shape", "size", "map"]].tolist() == ["16x1x28x28", "28x28", "random"]
    assert set(table["device"]) == {setting.cpu_model()}
    assert table[files.FACTS].drop(columns=["driver", "toolkit"]).notna().all(axis=None)

    times = table[["q20_ms", "median_ms", "q80_ms"]]
    assert (times > 0).all(axis=None)
    assert (times.diff(axis=1).iloc[:, 1:] >= 0).all(axis=None)
    eager = files.value_of(table, "eager", "median_ms")
    moved = table["model_mib"] * 2**20 / table["median_ms"] / 1e6
    np.testing.assert_allclose(table["speedup"], eager / table["median_ms"], rtol=1e-5)
    np.testing.assert_allclose(table["gb_per_s"], moved, rtol=1e-5)
    np.testing.assert_allclose(table["roofline"], moved / table["copy_gb_per_s"], rtol=1e-5)


def test_a_wrong_provider_fails_without_a_time(make_with, measure, capsys):
    make_with("operator", lambda: lambda *tensors: providers.eager_pair(*tensors, align_corners=True))
    code, table = measure("--providers", "operator")
    wrong = table[table["provider"] == "operator"]
    assert code == 1
    assert (wrong["status"] == "FAILED").all()
    assert (wrong["error"] > wrong["tolerance"]).all()
    assert wrong[["q20_ms", "median_ms", "q80_ms", "speedup", "samples", "roofline"]].isna().all(axis=None)
    assert table.loc[table["provider"] == "eager", "median_ms"].notna().all()
    assert "FAILED: operator in 2 rows, " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "error", "status", "code"),
    [
        ("operator", RuntimeError, "FAILED", 1),
        ("compile", RuntimeError, "unavailable", 0),
        ("eager", torch.OutOfMemoryError, "unavailable", 0),
    ],
)
@pytest.mark.parametrize("make", [lambda sampler: sampler, lambda sampler: sampler()], ids=["call", "make"])
def test_a_provider_that_raises_is_reported(make_with, measure, capsys, name, error, status, code, make):
    raises = mock.Mock(side_effect=error(f"no such\ncompiler in {Path.home()}/bin"))
    make_with(name, lambda: make(raises))
    found, table = measure("--passes", "forward", "--providers", name)
    assert found == code
    assert set(table.loc[table["provider"] == name, "status"]) == {status}
    assert (table.loc[table["provider"] != name, "status"] == "ok").all()
    assert f"{error.__name__}: no such compiler in ~/bin" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("large", "status", "code"), [("eager", "unavailable", 0), ("operator", "FAILED", 1)]
)
def test_a_provider_without_memory_to_be_timed_costs_no_other(monkeypatch, measure, large, status, code):
    def sample(functions, *_):
        if large in functions:
            raise torch.OutOfMemoryError("full")
        return {name: [1.0] * 10 for name in functions}

    monkeypatch.setattr(stopwatch, "sample", sample)
    found, table = measure("--passes", "forward", "--providers", "eager-corners")
    expected = dict.fromkeys(["operator", "eager", "eager-corners"], "ok") | {large: status}
    assert (found, table.set_index("provider")["status"].to_dict()) == (code, expected)


def test_a_lost_gpu_ends_the_run_with_the_rows_so_far(make_with, measure, monkeypatch):
    make_with("eager-corners", lambda: mock.Mock(side_effect=RuntimeError("illegal memory access")))
    monkeypatch.setattr(stopwatch, "is_alive", lambda device: False)
    code, table = measure("--providers", "eager-corners", "eager-broadcast")
    assert (code, table["status"].tolist()) == (1, ["ok", "ok", "FAILED"])
    assert "the GPU was lost, the run ends here: RuntimeError: illegal" in table["reason"].iloc[-1]


def test_an_interrupt_keeps_the_rows_so_far(monkeypatch, measure, capsys):
    samples = {"operator": [1.0], "eager": [2.0]}
    monkeypatch.setattr(stopwatch, "sample", mock.Mock(side_effect=[samples, samples, KeyboardInterrupt]))
    code, table = measure("--providers", "operator")
    assert (code, table["pass"].tolist()) == (130, ["forward"] * 2 + ["backward"] * 2)
    assert (table["status"] == "ok").all()
    assert "/speed.csv: 4 of 10" in capsys.readouterr().err


def test_json_of_bytes_is_all_that_is_printed_and_comes_after_the_files(measure, capsys, monkeypatch):
    """The reader of the output may leave early. Bytes have no gradients; their rows say so."""
    small = replace(workloads.WORKLOADS["images-224-uint8"], shape=(2, 3, 32, 32))
    monkeypatch.setitem(workloads.WORKLOADS, small.name, small)
    printed_before = []

    def write(run, out):
        printed_before.append(capsys.readouterr().out)
        raise OSError("no font")

    monkeypatch.setattr("perf.report.write", write)
    arguments = ["--providers", "operator", "--passes", "forward", "theta", "--json", "--workloads"]
    assert measure(*arguments, small.name)[0] == 1
    printed = capsys.readouterr()
    rows = json.loads(printed.out)
    assert printed_before == [""]
    assert printed.err.splitlines()[-1] == "no page, or not all charts: OSError: no font"
    found = [(row["pass"], row["provider"], row["status"]) for row in rows]
    assert found == [(p, n, s) for p, s in (("forward", "ok"), ("theta", "unavailable")) for n in RIVALS[:2]]
    assert rows[-1]["reason"] == "uint8 images have no gradients"
    assert list(rows[0]) == COLUMNS
    assert rows[0]["graph_ms"] is None


@pytest.mark.parametrize(("samples", "in_noise"), [((10, 10), False), ((9, 10), True), ((10, 3), True)])
def test_few_samples_are_noise(samples, in_noise):
    ours, theirs = ({"median_ms": ms, "samples": n} for ms, n in zip((2.0, 1.0), samples, strict=True))
    run = made_up.run(made_up.pair(ours, theirs))
    assert summary.against(run.rows, "eager")["in_noise"].tolist() == [in_noise]
    printed = summary.text(run)
    assert ("0.50x~" in printed, "digits-28 random forward: 0.50x" in printed) == (in_noise, not in_noise)


def test_on_a_gpu_rows_have_memory_and_replays(monkeypatch):
    """A CPU plays the GPU; the third capture of a graph fails."""
    graph, error = SimpleNamespace(replay=None), RuntimeError("cudaErrorStreamCaptureUnsupported")
    make = workloads.make
    monkeypatch.setattr(workloads, "make", lambda workload, device, map_name: make(workload, CPU, map_name))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    for name, stand_in in {
        "_sample_gpu": lambda functions, effort: dict.fromkeys(functions, [0.1] * 10),
        "cache_bytes": lambda device: 2**13,
        "peak_bytes": lambda run: 3 * 2**20,
        "_captured": mock.Mock(side_effect=[graph, graph, error]),
        "_failed_captures": [],
    }.items():
        monkeypatch.setattr(stopwatch, name, stand_in)
    small = replace(workloads.WORKLOADS["digits-28"], shape=(2, 1, 28, 28))
    names, rivals = ["forward", "backward", "forward+backward"], providers.choose(["eager-corners"])
    plan = suite.Plan(torch.device("cuda"), [small], ["zoom-2"], names, rivals, stopwatch.QUICK)
    with tqdm(disable=True) as progress:
        rows = {(row["pass"], row["provider"]): row for rows in suite.run(plan, progress) for row in rows}
    assert len(rows) == plan.count_rows() == 9
    assert {(row["status"], row["peak_mib"]) for row in rows.values()} == {("ok", 3.0)}
    assert rows["forward", "operator"]["graph_ms"] == pytest.approx(0.1 / stopwatch.QUICK.most_copies)
    failed = rows["forward", "eager-corners"]
    assert failed["graph_ms"] is None
    assert failed["reason"] == "no CUDA graph: RuntimeError: cudaErrorStreamCaptureUnsupported"
    assert "graph_ms" not in rows["backward", "operator"]
    assert "not tried, since a capture of eager-corners" in rows["forward+backward", "operator"]["reason"]


def test_list_names_everything(capsys):
    assert main(["bench", "--list"]) == 0
    printed = capsys.readouterr().out
    for name in (*workloads.WORKLOADS, *MAPS, *passes.PASSES, *providers.PROVIDERS):
        assert f"\n  {name} " in printed


def test_commit(tmp_path, monkeypatch):
    inner = tmp_path / "stn_triton"
    inner.mkdir()
    (inner / "a.py").write_text("a = 1\n")
    monkeypatch.setattr(setting, "_ROOT", tmp_path)
    assert setting.commit() == "unknown"
    commands = "git init -q && git add . && git -c user.name=a -c user.email=a@b.c commit -qm first"
    subprocess.run(commands, shell=True, cwd=tmp_path, check=True)
    clean = setting.commit()
    assert len(clean) >= 10
    (inner / "a.py").write_text("a = 2\n")
    assert setting.commit() == clean + "+dirty"
    # The checkout of another project around an installed copy is not ours.
    monkeypatch.setattr(setting, "_ROOT", inner)
    assert setting.commit() == "unknown"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bench", "--device", "cuda:99"], "available: cpu ("),
        (["bench", "--workloads", "nothing"], "available: digits-28"),
        (["bench", "--maps", "mercator"], "available: identity, rotate-30"),
        (["bench", "--passes", "sideways"], "available: forward, backward"),
        (["bench", "--providers", "nobody"], "available: operator, eager, eager-corners"),
        (["bench", "--out", os.devnull], "expected a writable directory"),
        (["bench", "--workloads", "size-16", "--passes", "theta"], "size-16 --maps "),
        (["bench", "--workloads", "antialias-2", "--maps", "random"], "no row to measure"),
        (["overhead", "--first-calls", "nothing"], "available: digits-28"),
        (["overhead", "--device", "cpu"], "TRITON_INTERPRET is set"),
        (["overhead", "--device", "cpu", "--first-calls", "digits-28"], "TRITON_INTERPRET is set"),
        (["overhead", "--out", "a.csv"], "only --first-calls writes a table"),
        (["static"], "TRITON_INTERPRET is set"),
        (["static", "--arch", "sm_12"], "unknown name 'sm_12'; available: sm_80, sm_90, sm_100, gfx942"),
        (["tune", "--device", "cpu", "--quick"], "nothing to tune: the CPU path is plain PyTorch"),
        *((["compare", "a", "b", "--threshold", n], f"--threshold: {n}; ") for n in ("-0.1", "nan", "inf")),
        (["evidence", "--minutes", "0"], "--minutes: expected a number above 0, got 0"),
        (["evidence", "--only", "speeds"], "--only: unknown name 'speeds'; available: machine, check, tests"),
        (["evidence", "--rehearse", "--out", str(uninterpreted.ROOT)], "has files; expected an empty"),
        pytest.param(["evidence"], "finds no GPU here", marks=NO_GPU),
    ],
)
def test_a_wrong_argument_exits_2_and_says_what_there_is(capsys, monkeypatch, tmp_path, arguments, named):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.glob("*/*"))
