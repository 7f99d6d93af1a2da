"""``python -m perf evidence``: its steps and their limits, what it writes, and the whole of it rehearsed."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
import uninterpreted

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import crew_tasks

from perf import files
from perf.__main__ import main
from perf.evidence import agenda, crew, outcome, picture, profiling, readme
from perf.evidence.agenda import FAULTS, STEPS
from perf.evidence.conductor import ENDED, NOT_REACHED, Conductor
from perf.evidence.stage import Stage, workers
from perf.measuring import results

ROOT = Path(__file__).resolve().parents[1]
CRASH, HANG = FAULTS
H100 = {
    "device": "NVIDIA H100 (imaginary)",
    "device_type": "cuda",
    "driver": "1.0",
    "toolkit": "13.0",
    "cpu": "a CPU",
    "threads": 16,
    "platform": "Linux",
    "python": "3.12.3",
    "torch": "2.11.0",
    "triton": "3.6.0",
    "stn_triton": "0.1.0",
    "commit": "0123456789",
    "date": "2026-01-01T00:00:00+00:00",
    "copy_gb_per_s": 3000.0,
}


@pytest.fixture(autouse=True)
def _processes_run_at_full_speed(monkeypatch):
    """Coverage would follow interpreted kernels into them, at half the speed."""
    for name in ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START"):
        monkeypatch.delenv(name, raising=False)


def conduct(out, *chosen, seconds=480.0):
    conductor = Conductor(chosen, seconds, out, rehearse=True, say=lambda text: None)
    conductor.run()
    written = json.loads((out / "evidence.json").read_text())
    assert written["steps"] == json.loads(json.dumps(conductor.results["steps"]))
    return [conductor.results["steps"][step.name] for step in chosen]


class TestConductor:
    def test_a_crash_and_a_spoilt_process_cost_their_items_alone(self, tmp_path):
        (found,) = conduct(tmp_path, CRASH)
        assert found["status"] == "crash: crashed (SIGABRT)"
        assert [record["item"] for record in found["records"]] == ["before", "spoilt", "spoilt", "after"]
        before, spoilt, problem, after = found["records"]
        assert len({record["process"] for record in (before, spoilt, after)}) == 3
        assert problem["problem"].startswith("SpoiltError: nothing that follows")
        assert found["left"] == []
        assert "Traceback" in (tmp_path / "evidence.log").read_text()

    def test_the_end_of_the_time_stops_a_step_and_leaves_what_was_found(self, tmp_path):
        began = time.monotonic()
        (found,) = conduct(tmp_path, replace(HANG, patience=1000), seconds=15)
        assert 13 < time.monotonic() - began < 40
        assert found["status"] == ENDED
        assert [record["item"] for record in found["records"]] == ["before"]
        assert found["left"] == ["hang", "after"]

    def test_without_a_machine_nothing_else_is_tried(self, tmp_path):
        first, second = conduct(tmp_path, CRASH, HANG)
        assert first["records"]
        assert (second["status"], second["seconds"]) == (NOT_REACHED, 0)

    def test_what_a_step_does_not_use_later_ones_have(self, tmp_path):
        conductor = Conductor([CRASH, HANG, HANG], 1010, tmp_path, True, lambda text: None)
        conductor.results["machine"] = H100
        shares = []
        conductor._step = lambda step, end, log: shares.append(end - time.monotonic())
        conductor.run()
        # Ten seconds are kept for the summary; nothing was used, so the later shares are larger.
        assert shares[:3] == pytest.approx([1000 / 3, 500, 1000], abs=2)

    def test_a_second_try_that_finds_less_leaves_what_the_first_found(self, tmp_path):
        conductor = Conductor([CRASH], 100, tmp_path, True, lambda text: None)
        step = replace(HANG, patience=0.4, items=lambda rehearse: ["hang"])
        found = conductor.results["steps"][CRASH.name]
        found["left"], found["records"] = ["hang"], [{"ok": True, "item": "hang", "what": "of the first try"}]
        conductor.results["steps"][HANG.name] = found
        with (tmp_path / "log").open("w") as log:
            assert "no word" in conductor._process(step, time.monotonic() + 60, log)
        assert [record["what"] for record in found["records"]] == ["of the first try"]

    def test_a_step_that_found_all_it_planned_is_done_though_its_process_goes_on(self, tmp_path):
        conductor = Conductor([CRASH], 100, tmp_path, True, lambda text: None)
        step = replace(HANG, patience=1000, items=lambda rehearse: ["hang"])
        found = conductor.results["steps"][CRASH.name]
        conductor.results["steps"][HANG.name] = found
        found["left"], found["planned"] = ["hang"], 0
        with (tmp_path / "log").open("w") as log:
            assert conductor._process(step, time.monotonic() + 15, log) == ""
        assert found["left"] == []

    def test_a_step_that_was_cut_goes_on_at_the_end(self, tmp_path):
        conductor = Conductor([CRASH, HANG], 100, tmp_path, True, lambda text: None)
        conductor.results["machine"] = H100
        ran = []

        def step(step, end, log):
            ran.append(step.name)
            found = conductor.results["steps"][step.name]
            found["left"] = ["hang", "after"] if ran == ["crash", "hang"] else []
            found["status"] = ENDED if found["left"] else "done"

        conductor._step = step
        conductor.run()
        assert ran == ["crash", "hang", "hang"]
        assert conductor.results["steps"]["hang"]["status"] == "done"


def _running(words):
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return words in listing.stdout


def test_a_crew_loses_the_task_that_crashes_and_no_other():
    found = dict(crew.each(crew_tasks.square, range(8), 2))
    assert isinstance(found.pop(3), RuntimeError)
    assert str(found.pop(5)) == "five"
    assert found == {n: n**2 for n in (0, 1, 2, 4, 6, 7)}


def test_after_a_crash_a_crew_goes_on_side_by_side():
    found = dict(crew.each(crew_tasks.process, range(40), 2))
    assert len(found) == 40
    processes = {process for process in found.values() if isinstance(process, int)}
    assert len(processes) <= 2 + 2 + 1  # before, after, and what ran beside the crash, alone


def test_a_task_that_a_spoilt_process_refuses_is_done_in_another():
    assert sorted(crew.each(crew_tasks.spoilt, range(7), 1)) == [(n, n) for n in range(7)]


def test_as_many_processes_as_the_memory_of_a_gpu_holds():
    assert workers() == workers(2**50) == len(os.sched_getaffinity(0))
    assert workers(2**31) == workers(0) == 1


def test_what_is_compiled_ahead_is_what_calls_launch(tmp_path):
    """Calls on real tensors find all their kernels in the cache; with other block sizes they do not."""
    code = """
    import torch
    from perf.evidence import compiling, subjects
    from perf.evidence.stage import Stage
    from perf.kernels import ahead
    from perf.measuring.rival_scatter import SCATTER
    from perf.measuring import providers, workloads
    from perf.measuring.passes import PASSES
    from perf.tuning.launches import OntoKernels
    from stn_triton import policy
    from stn_triton.kernels.backward import backward_kernel
    from stn_triton.kernels.forward import forward_kernel
    from stn_triton.kernels.scatter import scatter_kernel

    target = ("cuda", 90, 32)
    chosen = [w for w in subjects.compared() if w.name in ("fp32", "channels-last-64-bf16")]
    tasks = ahead.tasks_of(chosen, compiling.MAIN_PASSES)
    tasks.append(ahead.Task(chosen[0], "backward", None, provider=SCATTER))
    for task in tasks:
        found = ahead.compile_task(task, target)
        assert not found["cached"] and found["registers"] > 0, (task, found)
    for kernel in (forward_kernel, backward_kernel, scatter_kernel):
        kernel.device_caches.clear()  # as in a new process
    samplers = [providers.operator, SCATTER.make()]
    for workload in chosen:
        data = workloads.make(workload, torch.device("cpu"))
        for sampler in samplers if workload is chosen[0] else samplers[:1]:
            with ahead.compiling(target, lambda: True) as result, OntoKernels():
                PASSES["forward+backward"](sampler, data)()
            assert result["kernels"] > 0 and result["cached"], (workload.name, result)
    other = {**policy.default(tasks[0].bucket), "BLOCK_W": 4}
    assert not ahead.compile_task(tasks[0]._replace(config=other), target)["cached"]
    print("as it should be")
    """
    done = uninterpreted.python("-c", textwrap.dedent(code), TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout == "as it should be\n", done.stderr


def test_the_check_launches_the_same_kernels_without_its_truth(tmp_path):
    """What is compiled ahead is what the check would launch with all its comparisons."""
    code = """
    from unittest import mock
    from perf.evidence import compiling
    from stn_triton.check import cases, judge

    launched = []
    names = ["images, nearest", "projective", "images in float16", "splines", "uint8"]
    assert set(names) <= set(compiling.NAMES)

    # Each kernel is another part's, so that none is compiled.
    hook = mock.Mock(crc32=lambda text: launched[-1].add(text) or 1)
    for truth, kinks in ((compiling._untrue, compiling._unkinked), (judge.truth, cases._kinks)):
        launched.append(set())
        with mock.patch.object(compiling, "zlib", hook), mock.patch.multiple(
            compiling, _untrue=truth, _unkinked=kinks
        ):
            result = compiling.compile_share((0, 2), names, ("cuda", 90, 32), "a GPU")
        assert result["kernels"] == 0, result
    assert launched[0] == launched[1] and len(launched[0]) > 20, [len(keys) for keys in launched]
    print("as it should be")
    """
    done = uninterpreted.python("-c", textwrap.dedent(code), TRITON_CACHE_DIR=str(tmp_path))
    assert done.stdout == "as it should be\n", done.stderr


def test_candidates_of_four_workloads_are_compiled_at_once(tmp_path):
    code = """
    import os
    import time
    from pathlib import Path
    from unittest import mock
    from perf.evidence import block_sizes, compiling
    from perf.evidence.stage import Stage
    from perf.tuning import launches

    compiled = mock.Mock(side_effect=lambda tasks, *_, **__: iter(()))
    found = mock.Mock(side_effect=RuntimeError("no search here"))
    facts = {"device": "a GPU", "target": ("cuda", 90, 32), "workers": 2}
    stage = Stage(Path(os.environ["OUT"]), time.monotonic() + 100, False, facts)
    names = block_sizes.following("images-224")
    assert len(names) == 4, names
    with (
        mock.patch.object(compiling, "compiled", compiled),
        mock.patch.object(block_sizes, "search", found),
        mock.patch.object(launches.Case, "make"),
    ):
        for name in names:
            try:
                list(block_sizes.run(name, stage))
            except RuntimeError as error:
                assert "no search here" in str(error), error
    assert found.call_count == 4
    (call,) = compiled.call_args_list
    assert {task.workload.name for task in call.args[0]} == set(names)
    print("as it should be")
    """
    done = uninterpreted.python("-c", textwrap.dedent(code), OUT=str(tmp_path))
    assert done.stdout == "as it should be\n", done.stderr


NCU = """\
==PROF== Connected to process 1 (/usr/bin/python3)
==PROF== Profiling "forward_kernel" - 0: 0%....100% - 9 passes
"ID","Process ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","1","forward_kernel","Command line profiler metrics","dram__bytes.sum","byte","30,000"
"0","1","forward_kernel","Command line profiler metrics","gpu__time_duration.sum","ns","12,000"
"0","1","forward_kernel","Command line profiler metrics","launch__registers_per_thread","register/thread","46"
"1","1","void at::(anonymous namespace)::grid_sampler_2d_kernel<float>(int)","x","dram__bytes.sum","b","n/a"
==WARNING== a line of ncu's own
"""


class TestProfile:
    def test_reads_what_ncu_prints(self):
        ours, theirs = profiling.read(NCU)
        assert ours["kernel"] == "forward_kernel"
        assert (ours["ns"], ours["registers"], ours["GB/s"]) == (12_000, 46, 2.5)
        assert theirs == {"kernel": "grid_sampler_2d_kernel", "DRAM bytes": None}
        assert profiling.read("==ERROR== no permission\n") == []

    def test_runs_ncu_on_a_workload(self, tmp_path, monkeypatch):
        """One that is pretended: it runs the program that it is given, as ncu does."""
        program = tmp_path / "ncu"
        skip = f'while [ "$1" != "{sys.executable}" ]; do shift; done'
        program.write_text(f'#!/bin/sh\n{skip}\n"$@"\ncat <<END\n{NCU}END\n')
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        stage = Stage(tmp_path, time.monotonic() + 120, rehearse=True)
        found = list(profiling.run("kernels", stage))
        assert [record["what"] for record in found] == [
            "images-224: forward_kernel",
            "images-224: grid_sampler_2d_kernel",
        ]

    def test_says_so_where_there_is_none_or_it_counts_nothing(self, tmp_path, monkeypatch):
        stage = Stage(tmp_path, time.monotonic() + 60, rehearse=True)
        monkeypatch.setattr(profiling, "find", lambda: None)
        assert "not installed" in next(profiling.run("kernels", stage))["problem"]
        monkeypatch.setattr(profiling, "find", lambda: str(tmp_path / "ncu"))
        (late,) = profiling.run("kernels", replace(stage, rehearse=False, end=time.monotonic() + 12))
        assert late["problem"].startswith("not tried: it needs 25 s and 1")
        (tmp_path / "ncu").write_text("#!/bin/sh\necho ==ERROR== no permission\nexit 1\n")
        (tmp_path / "ncu").chmod(0o755)
        monkeypatch.setattr(profiling, "find", lambda: str(tmp_path / "ncu"))
        assert next(profiling.run("kernels", stage))["problem"].endswith("==ERROR== no permission")


def speed_rows():
    """Of an imaginary GPU: images win, digits lose in calls and win in graphs, volumes lose."""
    rows = []

    def add(workload, pass_name, map_name="identity", **ms):
        for provider, (median, graph) in ms.items():
            row = {"workload": workload, "map": map_name, "pass": pass_name, "status": "ok", "samples": 20}
            row |= {"provider": provider.replace("_", "-"), "shape": "1x1", "size": "1", "dtype": "float32"}
            row["peak_mib"] = 10.0 if provider == "operator" else 40.0
            rows.append(row | {"layout": "NCHW", "median_ms": median, "graph_ms": graph, "roofline": 0.5})

    none = float("nan")
    add("images-224", "forward", operator=(0.05, none), eager=(0.1, none), eager_corners=(0.1, none))
    add("images-224", "forward+backward", operator=(0.2, none), eager=(0.5, none))
    add("digits-28", "forward", operator=(0.1, 0.004), eager=(0.05, 0.02))
    for name, gather, scatter in (("3", 0.2, 0.3), ("volume", 1.0, 0.25)):
        for map_name in ("identity", "rotate-30"):
            add(
                f"backward-{name}",
                "forward",
                map_name,
                **dict.fromkeys(("operator", "scatter", "eager"), (0.1, 0.05)),
            )
            both = {"operator": gather, "scatter": scatter, "eager": 0.4}
            times = {provider: (5.0, 0.05 + ms) for provider, ms in both.items()}
            add(f"backward-{name}", "forward+backward", map_name, **times)
    return results.frame(rows, {"quick": False, **H100})


def run_of(**records):
    """The results of a run whose steps found these records."""
    found = {"seconds": 480.0, "seconds_used": 300.0, "rehearsal": False, "machine": H100, "steps": {}}
    for step in STEPS:
        own = records.get(step.name, [{"ok": True, "item": "a"}])
        found["steps"][step.name] = {"status": "done", "seconds": 1.0, "left": [], "records": own}
        found["steps"][step.name]["planned"] = None
    return found


class TestOutcome:
    def test_what_is_wrong_stands_first(self, tmp_path):
        wrong = {"ok": False, "item": "fp32", "what": "fp32 forward", "problem": "output is off by 1"}
        found = run_of(compare=[{"ok": True, "item": "a"}, wrong])
        text = outcome.text(found, files.normal(speed_rows()))
        assert "WRONG; passed: compare 1 of 2, behaviour 1 of 1" in text
        assert text.index("fp32 forward: output is off by 1") < text.index("images-224")
        assert not outcome.is_right(found)

    def test_the_ratios_and_the_losses_are_said(self):
        text = outcome.text(run_of(), files.normal(speed_rows()))
        assert "RIGHT; passed: " in text
        assert "slower than the eager pair in 1 of 3 rows\n  digits-28 identity forward 0.50x\n" in text
        assert "\npeak memory of a call: 25% to 25% of the eager pair's\n" in text
        digits = next(line for line in text.splitlines() if "digits-28" in line)
        assert digits.split()[2:5] == ["0.1000", "0.50x", "5.00x"]
        assert text.endswith("all was reached, 300 of 480 s used")

    def test_gather_and_scatter_are_set_against_each_other_without_the_forward(self):
        table = outcome.backwards(files.normal(speed_rows()))
        assert table["workload"].tolist() == [
            "backward-3",
            "backward-3",
            "backward-volume",
            "backward-volume",
        ]
        assert table["operator"].tolist() == pytest.approx([0.2, 0.2, 1.0, 1.0])
        assert (table["scatter"] / table["operator"]).tolist() == pytest.approx([1.5, 1.5, 0.25, 0.25])

    def test_a_rival_too_slow_for_replays_leaves_those_of_the_others(self):
        rows = files.normal(speed_rows())
        slow = (rows["provider"] == "eager") & (rows["pass"] == "forward+backward")
        rows.loc[slow, "graph_ms"] = float("nan")
        table = outcome.backwards(rows)
        assert (table["scatter"] / table["operator"]).tolist() == pytest.approx([1.5, 1.5, 0.25, 0.25])
        assert table["eager"].tolist() == pytest.approx([4.9] * 4)

    def test_what_was_not_reached_or_broke_is_said(self):
        found = run_of()
        found["steps"]["blocks"] |= {"status": ENDED, "left": ["volume-160"]}
        assert outcome.is_right(found)  # time is no fault
        assert "  blocks: its time ended; without volume-160" in outcome.text(found, None)
        found["steps"]["speed"]["status"] = "crops-7: crashed (SIGSEGV)"
        assert not outcome.is_right(found)
        text = outcome.text(found, None)
        assert "BROKEN; passed: compare 1 of 1" in text
        assert "RIGHT" not in text
        assert "  speed: crops-7: crashed (SIGSEGV)\n" in text
        assert "nothing was timed" in text
        found["steps"]["speed"]["status"] = "done"
        found["steps"]["profile"]["records"] = [{"ok": False, "item": "kernels", "problem": "no permission"}]
        assert "BROKEN; " in outcome.text(found, None)  # a tool, not the operator
        found["steps"]["profile"]["records"] = []
        found["steps"]["tests"]["planned"] = 74
        assert "check 1 of 1, tests 1 of 74" in outcome.text(found, None)

    def test_without_the_eager_pair_the_rest_is_shown(self):
        table = files.normal(speed_rows())
        text = outcome.text(run_of(), table[table["provider"] != "eager"])
        assert "RIGHT" in text
        assert "images-224" in text

    def test_no_machine_and_nothing_compared_are_not_right(self):
        assert not outcome.is_right(run_of() | {"machine": {}})
        nothing = {name: [] for name in outcome.COMPARING}
        assert not outcome.is_right(run_of(**nothing))
        assert "NOTHING COMPARED" in outcome.text(run_of(**nothing, compile=[]), None)

    def test_the_chart(self, tmp_path):
        path = tmp_path / "evidence.png"
        assert picture.draw(files.normal(speed_rows()), path)
        assert path.read_bytes().startswith(b"\x89PNG")
        table = files.normal(speed_rows().assign(provider="kornia"))
        assert not picture.draw(table, path)


def test_the_readme_s_table_is_that_of_the_committed_run():
    text = readme.README.read_text()
    table = files.read_speed(readme.MEASURED)
    assert readme.committed(text) == readme.markdown(table)
    assert not table["commit"].str.contains("dirty").any()
    assert readme.MEASURED.with_suffix(".png").exists()


def test_a_new_run_takes_the_place_of_the_readme_s(tmp_path, monkeypatch):
    text = readme.README.read_text()
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "MEASURED", tmp_path / "a-gpu.csv")
    readme.README.write_text(text)
    files.normal(speed_rows()).to_csv(tmp_path / "speed.csv", index=False)
    monkeypatch.setattr(sys, "argv", ["readme", str(tmp_path / "speed.csv")])
    readme.main()
    new = readme.README.read_text()
    assert "| digits-28: " in new
    assert H100["device"] in new
    assert readme.committed(new) == readme.markdown(files.read_speed(readme.MEASURED))
    assert new.replace(readme.committed(new), "") == text.replace(readme.committed(text), "")
    assert (tmp_path / "a-gpu.png").exists()


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--minutes", "0"], "--minutes: expected a number above 0, got 0"),
            (["--only", "speeds"], "--only: unknown name 'speeds'; available: machine, compile, compare"),
            pytest.param(
                [],
                "finds no GPU here, expected one; --rehearse plays all of it",
                marks=pytest.mark.skipif(os.path.exists("/dev/nvidia0"), reason="there is a GPU"),
            ),
        ],
    )
    def test_wrong_arguments_exit_2(self, tmp_path, capsys, arguments, said):
        with pytest.raises(SystemExit) as error:
            main(["evidence", "--out", str(tmp_path / "out"), *arguments])
        assert error.value.code == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "out").exists()

    def test_the_plan_names_each_step_with_its_share_and_price(self, capsys):
        assert main(["evidence", "--plan", "--cores", "16"]) == 0
        printed = capsys.readouterr().out
        lines = {line.split()[0]: line.split() for line in printed.splitlines()}
        for step in STEPS:
            assert float(lines[step.name][1]) > 0
            assert float(lines[step.name][3]) > 0
        assert "cut" not in lines["compare"]
        assert "cut" in lines["further"]
        assert "on 16 cores" in printed

    def test_files_of_another_command_are_left_alone(self, tmp_path, capsys):
        (tmp_path / "speed.csv").write_text("mine")
        with pytest.raises(SystemExit) as error:
            main(["evidence", "--rehearse", "--only", "machine", "--out", str(tmp_path)])
        assert error.value.code == 2
        assert "has speed.csv of another command" in capsys.readouterr().err
        assert (tmp_path / "speed.csv").read_text() == "mine"

    def test_an_interrupted_run_says_so_and_leaves_no_process(self, tmp_path):
        """By the loss of its terminal, which is handled as Ctrl-C and a request to end are."""
        command = [sys.executable, "-m", "perf", "evidence", "--rehearse", "--out", str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, **pipes)
        for line in process.stderr:
            if "compile: " in line:
                break
        time.sleep(1)
        process.send_signal(signal.SIGHUP)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "  compile: interrupted" in printed
        assert "  not begun: compare, behaviour" in printed
        assert json.loads((tmp_path / "evidence.json").read_text())["machine"]
        assert not _running(f"--out {tmp_path}")

    def test_every_step_has_a_function_and_items(self):
        import importlib

        for step in (*STEPS, *FAULTS):
            module, _, function = step.runs.partition(":")
            if module not in ("compiling", "timing", "block_sizes"):  # which compile kernels when imported
                assert callable(getattr(importlib.import_module(f"perf.evidence.{module}"), function))
            assert set(step.items(True)) <= set(step.items(False))
        assert agenda.STEPS[0].name == "machine"


def test_the_whole_of_it_rehearsed(tmp_path, capfd):
    """Every step, on tiny workloads; one that crashes and one that hangs are said and cost nothing else."""
    out = tmp_path / "out"
    assert main(["evidence", "--rehearse", "--minutes", "30", "--out", str(out)]) == 0, capfd.readouterr()
    printed = capfd.readouterr()
    found = json.loads((out / "evidence.json").read_text())
    for step in STEPS:
        own = found["steps"][step.name]
        assert own["status"] == "done", (step.name, own)
        assert own["left"] == []
        assert own["records"]
        assert all(record["ok"] for record in own["records"]), (step.name, own["records"])
    assert "RIGHT; passed: compare 5 of 5, behaviour 10 of 10, check 1 of 1, tests" in printed.out
    assert "A REHEARSAL: kernels interpreted on a CPU" in printed.out
    assert "  crash: crash: crashed (SIGABRT) (as it should" in printed.out
    assert "  hang: hang: stopped, no word for" in printed.out
    assert len(printed.out.splitlines()) < 50
    assert not _running(f"--out {out}")
    assert (out / "summary.txt").read_text().strip() == printed.out.strip()
    assert (out / "evidence.png").exists()
    table = files.read_speed(out / "speed.csv")
    rivals = {"eager", "eager-corners", "eager-broadcast", "scatter", "compile"}
    assert set(table["provider"]) == {"operator", *rivals}
    assert table["device"].str.contains("rehearsal: kernels interpreted").all()
    assert table["quick"].all()
    assert (out / "evidence.log").read_text().count("Traceback") == 1  # of the spoilt process
    # What reads the results of `bench` reads these.
    assert main(["compare", str(out), str(out)]) == 0
    assert main(["plot", str(out), "--out", str(tmp_path / "charts")]) == 0
    assert main(["report", str(out), "--out", str(tmp_path / "page")]) == 0
    # Another run sets them aside.
    assert main(["evidence", "--rehearse", "--only", "machine", "--out", str(out)]) == 0
    assert (out / "previous-1" / "speed.csv").exists()
    assert not (out / "speed.csv").exists()
    assert main(["evidence", "--rehearse", "--only", "machine", "--out", str(out)]) == 0
    assert (out / "previous-1" / "speed.csv").exists()
    assert (out / "previous-2" / "evidence.json").exists()
