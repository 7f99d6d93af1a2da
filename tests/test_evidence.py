"""``python -m perf evidence``: steps and their limits, the summary, and the README's table and chart."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

import made_up
import torch
from triton import knobs

from perf import UsageError, files, first_call, tune
from perf.__main__ import build_parser, main
from perf.evidence import measure, outcome, readme
from perf.evidence.runner import DONE, ENDED, NOT_REACHED
from perf.evidence.stage import BACKWARDS, STEPS, TELLING, Stage
from perf.measuring import suite
from perf.measuring.workloads import WORKLOADS
from stn_triton import policy, tuning

TESTS = Path(__file__).parent
TABLE_ROW = "| digits-28: 256x1x28x28, float32 | 0.10 | 0.50x | 5.00x | - | - | - | - | - |"


def test_every_step_has_a_function_and_its_rehearsal_is_a_part():
    for one in STEPS:
        module, _, function = one.function.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
        assert set(one.rehearsed) <= set(one.items)


class TestSteps:
    """The reading of exit codes and outputs of the commands that steps start."""

    @pytest.fixture
    def records(self, monkeypatch, tmp_path):
        """Runs a step; each command gets the answer of the first text that it contains."""

        def run(step, item, answers):
            def answer(command, **options):
                commands.append(command)
                code, text = next(answers[key] for key in answers if key in " ".join(command))
                return subprocess.CompletedProcess(command, code, text)

            commands = []
            monkeypatch.setattr(measure.subprocess, "run", answer)
            return list(step(item, Stage(tmp_path, 0.0, False, {"workers": 2}))), commands

        return run

    def test_the_check_is_read(self, records):
        rows = [{"of": "output", "status": "FAIL", "text": "is off"}, {"of": "gradients", "status": "PASS"}]
        answers = {"--only uint8": (1, json.dumps({"rows": rows})), "--only labels": (-11, "{")}
        found, _ = records(measure.check, "check", answers | {"": (0, json.dumps({"rows": rows[1:]}))})
        assert len(found) > 20
        assert {one["what"]: one["problem"] for one in found if not one["ok"]} == {
            "uint8": "output: is off",
            "labels": "exit code -11, see evidence.log",
        }

    def test_the_check_goes_on_after_the_rows_of_an_earlier_process(self, records, tmp_path):
        before = {"check": {"records": [{"what": "labels", "ok": True}]}}
        (tmp_path / "evidence.json").write_text(json.dumps({"steps": before}))
        found, _ = records(measure.check, "check", {"": (0, json.dumps({"rows": []}))})
        assert "labels" not in [one["what"] for one in found]
        assert {one["total"] for one in found} == {len(found) + 1}

    @pytest.mark.parametrize("name", ["images-224", "volume-160", "crops-7"])
    def test_all_kernels_of_a_training_step_are_tuned(self, records, name):
        _, ((_, _, _, *arguments),) = records(measure.block_sizes, name, {"": (0, "")})
        args = build_parser().parse(arguments)
        plan = tune.plan_of(args, [WORKLOADS[name]])
        assert [bucket.kernel for bucket in plan] == {
            "images-224": ["forward", "backward"],
            "volume-160": ["forward", "scatter"],
            "crops-7": ["forward", "backward_input", "theta"],
        }.get(name)

    def test_what_is_timed_is_compiled_ahead_with_the_scatter(self, records, monkeypatch, capsys):
        _, commands = records(measure.compile_ahead, "workloads", {"": (0, "")})
        assert {command[-1] for command in commands} == {*TELLING, *BACKWARDS}
        monkeypatch.setattr(knobs.compilation, "listener", None)
        launched = []
        with tuning.choosing(lambda bucket, run: launched.append(bucket.kernel) or policy.default(bucket)):
            first_call.main("backward-1", "--rehearse")
        assert "scatter" in launched

    @pytest.mark.parametrize(
        ("item", "names"), [("digits-28", ["identity", "random"]), ("image-4096", ["random"])]
    )
    def test_a_lost_gpu_ends_the_process(self, monkeypatch, tmp_path, item, names):
        """Later workloads would fail on it, and be blamed."""

        def run(plan, progress):
            assert plan.maps == names
            yield [
                made_up.row(item, "random", "forward", "eager", status="FAILED", reason=f"{suite.LOST}: why")
            ]

        monkeypatch.setattr(suite, "run", run)
        monkeypatch.setattr(Stage, "device", torch.device("cpu"))
        records = measure.speed(item, Stage(tmp_path, 0.0, False, made_up.CUDA))
        assert next(records)["ok"]  # a rival's failure by itself is none
        with pytest.raises(RuntimeError, match="the GPU was lost"):
            next(records)

    def test_the_gpu_tests_are_parted_and_read(self, records):
        names = [f"tests/test_gpu.py::test_{i}{'[2_31]' if i > 4 else ''}" for i in range(8)]
        problem = "FAILED tests/test_gpu.py::test_0 - assert 1 == 2"
        answers = {"--collect-only": (0, "\n".join([*names, "", "8 tests collected in 1 s"]))}
        answers |= {"test_0": (1, f"F.\n{problem}\n1 failed, 1 passed in 1 s"), "": (0, "3 passed in 1 s")}
        (small, ran), (large, ran_large) = (
            records(measure.gpu_tests, item, answers) for item in ("small", "large")
        )
        assert [one["passed"] for one in large] == [3]
        assert sum(one["passed"] for one in small) == 1 + 3 * 3
        assert [one["problem"] for one in small if not one["ok"]] == [problem]
        assert sorted(part for command in ran + ran_large for part in command if "::" in part) == names


def speed_rows():
    """Rows of an imaginary GPU: images win, digits lose as calls and win in graphs."""
    rows, none = [], float("nan")

    def add(workload, passed, **ms):
        for provider, (median, graph) in ms.items():
            more = {"median_ms": median, "graph_ms": graph, "roofline": 0.5, "copy_gb_per_s": 3000.0}
            more["peak_mib"] = 10.0 if provider == "operator" else 40.0
            rows.append(made_up.row(workload, "identity", passed, provider.replace("_", "-"), **more))

    add("images-224", "forward", operator=(0.05, none), eager=(0.1, none), eager_corners=(0.1, none))
    add("images-224", "forward+backward", operator=(0.2, none), eager=(0.5, none))
    add("digits-28", "forward", operator=(0.1, 0.004), eager=(0.05, 0.02))
    for name, gather, scatter in (("3", 0.2, 0.3), ("1", 1.0, 0.25)):
        forward = dict.fromkeys(("operator", "scatter", "eager"), (0.1, 0.05))
        add(f"backward-{name}", "forward", **forward)
        both = {"operator": (5.0, 0.05 + gather), "scatter": (5.0, 0.05 + scatter), "eager": (0.5, none)}
        add(f"backward-{name}", "forward+backward", **both)
    return made_up.run(rows).rows


def run_of(**records):
    """The results of a run whose steps found these records."""
    found = {"seconds": 480.0, "seconds_used": 300.0, "rehearsal": False}
    found |= {"machine": made_up.CUDA, "steps": {}}
    for one in STEPS:
        own = records.get(one.name, [{"ok": True, "what": "a"}] if one.name in ("check", "tests") else [])
        found["steps"][one.name] = {"status": DONE, "left": [], "crashes": [], "records": own}
    return found


class TestOutcome:
    def test_failures_crashes_and_steps_that_were_cut(self):
        wrong = {"ok": False, "what": "images, nearest", "problem": "output is off by 1"}
        text = outcome.verdict(run_of(check=[{"ok": True, "what": "a"}, wrong]))
        assert text.endswith("FAILED\n  check: images, nearest: output is off by 1")
        found = run_of()
        found["steps"]["blocks"] |= {"status": ENDED, "left": ["volume-160"]}
        found["steps"]["further"]["status"] = NOT_REACHED
        assert outcome.failures(found) == []  # the end of the time is no failure
        assert outcome.verdict(found).endswith("RIGHT; passed: check 1, tests 1")
        assert "check 1 of 32," in outcome.verdict(run_of(check=[{"ok": True, "what": "a", "total": 32}]))
        many = outcome.verdict(run_of(check=[wrong] * 10))
        assert (many.count("output is off"), many.splitlines()[-1]) == (8, "  and 2 more, in evidence.json")
        assert "  blocks: its time ended; not done: volume-160" in outcome.cut(found)
        found["steps"]["speed"]["crashes"].append("crops-7: crashed (SIGSEGV)")
        assert outcome.failures(found) == ["speed: crops-7: crashed (SIGSEGV)"]
        assert outcome.failures(run_of() | {"machine": {}})
        assert outcome.failures(run_of(check=[], tests=[])) == ["check, tests: nothing was compared"]

    def test_the_ratios_the_losses_and_the_texts_of_steps(self, tmp_path):
        host = {"ok": True, "what": "us", "text": "host time of a call: 50 (90)"}
        (tmp_path / "block-sizes.json").touch()
        speed_rows().to_csv(tmp_path / "speed.csv")
        text = "\n".join(outcome.figures(run_of(host=[host]), tmp_path))
        assert "slower than the pair in 1 of 3 rows\n  digits-28 identity forward 0.50x" in text
        assert TABLE_ROW in text
        assert "host time of a call: 50 (90)\n" in text
        assert "cp block-sizes.json stn_triton/tuned/imaginary-h100-80gb-hbm3.json" in text

    def test_gather_and_scatter_without_the_forward(self):
        """Times are of CUDA graphs; the pair has none with its backward, so its calls count."""
        table = outcome.backwards(speed_rows())
        assert table.index.tolist() == [("backward-3", "identity"), ("backward-1", "identity")]
        assert table["ms"].tolist() == pytest.approx([0.2, 1.0])
        assert table["scatter"].tolist() == pytest.approx([1.5, 0.25])
        assert table["eager"].tolist() == pytest.approx([2.0, 0.4])

    @pytest.mark.parametrize("part", ["backward", "images", "digits", "no pair"])
    def test_a_part_of_the_rows_is_shown_and_drawn(self, tmp_path, part):
        rows = speed_rows()
        chosen = rows["provider"] != "eager" if part == "no pair" else rows["workload"].str.startswith(part)
        rows[chosen].to_csv(tmp_path / "speed.csv")
        assert "Empty" not in "\n".join(outcome.figures(run_of(), tmp_path))
        assert (tmp_path / "evidence.png").exists() == (part in ("images", "digits"))


def test_the_table_of_the_readme_is_that_of_the_committed_run():
    run = files.read_run(readme.MEASURED)
    assert readme.committed(readme.README.read_text()) == outcome.markdown(run)
    assert "dirty" not in run.facts["commit"]


def test_a_new_run_replaces_the_table_of_the_readme(tmp_path, monkeypatch):
    text = readme.README.read_text()
    monkeypatch.setattr(readme, "README", tmp_path / "README.md")
    monkeypatch.setattr(readme, "MEASURED", tmp_path / "a-gpu.csv")
    readme.README.write_text(text)
    speed_rows().to_csv(tmp_path / "speed.csv", index=False)
    speed_rows().to_csv(readme.MEASURED, index=False)
    monkeypatch.setattr(sys, "argv", ["readme", str(tmp_path / "other.csv")])
    for change, named in (
        ({"device": "another GPU"}, "a run on another GPU"),
        ({"quick": True}, "a quick run"),
    ):
        speed_rows().assign(**change).to_csv(tmp_path / "other.csv", index=False)
        with pytest.raises(UsageError, match=named):
            readme.main()
    monkeypatch.setattr(sys, "argv", ["readme", str(tmp_path / "speed.csv")])
    readme.main()
    new = readme.README.read_text()
    assert TABLE_ROW in new
    assert made_up.CUDA["device"] in new
    assert new.replace(readme.committed(new), "") == text.replace(readme.committed(text), "")
    assert (tmp_path / "a-gpu.png").exists()


class TestCommand:
    def test_the_plan_names_each_step_with_its_share(self, capsys):
        assert main(["evidence", "--plan", "--minutes", "4", "--only", "check", "speed"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line[0] for line in lines[:-1]] == ["machine", "check", "speed"]
        assert sum(float(line[1]) for line in lines[:-1]) == pytest.approx(240, abs=2)

    @staticmethod
    def processes(field, value):
        """The processes with this value of a field of `ps`, but for those that only wait to be collected."""
        listing = subprocess.run(["ps", "-eo", f"pid=,{field}=,stat="], capture_output=True, text=True)
        rows = [line.split() for line in listing.stdout.splitlines()]
        return [int(pid) for pid, one, state in rows if one == str(value) and not state.startswith("Z")]

    @pytest.mark.full
    def test_an_interrupted_run_says_so_and_leaves_no_process(self, tmp_path):
        """The loss of the terminal is handled as Ctrl-C and a request to end are."""
        command = [sys.executable, "-m", "perf", "evidence", "--rehearse", "--out", str(tmp_path)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=TESTS.parent, **pipes)
        next(line for line in process.stderr if line.startswith("check: "))
        for _ in range(300):  # until the step's process, which leads a session, has started another
            steps = self.processes("ppid", process.pid)
            if len(session := [pid for step in steps for pid in self.processes("sid", step)]) > 1:
                break
            time.sleep(0.1)
        assert len(session) > len(steps) == 1
        process.send_signal(signal.SIGHUP)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "  check: interrupted" in printed
        assert json.loads((tmp_path / "evidence.json").read_text())["machine"]
        assert self.processes("sid", *steps) == []

    @pytest.mark.full
    def test_the_whole_of_it_rehearsed(self, tmp_path, capfd):
        out = tmp_path / "out"
        assert main(["evidence", "--rehearse", "--minutes", "30", "--out", str(out)]) == 0, capfd.readouterr()
        printed = capfd.readouterr().out
        found = json.loads((out / "evidence.json").read_text())["steps"]
        assert list(found) == [one.name for one in STEPS if one.rehearsed]
        assert all(step["status"] == DONE and step["records"] for step in found.values()), found
        for said in ("A REHEARSAL", "operator (eager pair): inference ", "first call of digits-28: "):
            assert said in printed
        assert (out / "summary.txt").read_text().strip() == printed.strip()
        assert (out / "evidence.png").exists()
        table = files.read_run(out / "speed.csv").rows
        assert set(table["provider"]) == {"operator", "eager", "eager-corners", "eager-broadcast", "scatter"}
        assert table["device"].str.contains("rehearsal: kernels interpreted").all()
        assert main(["report", str(out), "--out", str(tmp_path / "page")]) == 0
