"""``python -m perf evidence``: its commands, their processes and results, the summary, the README's table."""

import json
import os
import re
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

from perf import files
from perf.__main__ import build_parser, main
from perf.evidence import outcome, runner, steps
from perf.evidence.runner import DONE, ENDED, FAILED, NOT_REACHED, Runner
from perf.evidence.steps import Step
from perf.measuring import maps, providers, suite, workloads

ROOT = Path(__file__).parents[1]


def results(**commands):
    """The results of a run on a GPU: the commands of each step, by name."""
    return {"seconds": 480.0, "seconds_used": 300.0, "machine": made_up.CUDA, "steps": commands}


class TestSteps:
    def test_every_command_of_bench_has_names_that_exist_and_a_directory_of_its_own(self):
        plan = steps.steps(Path("out"), rehearse=False)
        commands = [command[1:] for one in plan for command in one.commands.values()]
        args = [build_parser().parse(command[1:]) for command in commands if command[:2] == ["perf", "bench"]]
        assert len({str(one.out) for one in args}) == len(args)
        assert not any(one.quick for one in args)
        assert {one.name for one in plan if one.side_by_side} == {"check", "tests", "compile"}
        (large,) = (one for one in plan if one.name == "large-tests")
        assert [command[-2:] for command in large.commands.values()] == [["-k", "2_31"]]
        assert {name for one in args for name in one.workloads} > set(steps.TELLING)
        for one in args:
            chosen = workloads.choose(one.workloads, torch.device("cuda"))
            assert all(any(not workload.why_not(name) for name in one.maps) for workload in chosen)
            assert {*one.maps} | {*one.providers} < {*maps.MAPS} | {*providers.PROVIDERS}

    def test_each_test_of_a_gpu_is_in_one_part(self):
        command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/test_gpu.py"]
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
        names = [line for line in listing.splitlines() if "::" in line]
        parts = [*steps.TESTS, steps.LARGE_TESTS]
        assert len(names) > 70
        for name in names:
            code = (re.sub(r"\b(?!and\b|or\b|not\b)(\w+)", rf"('\1' in {name!r})", part) for part in parts)
            assert sum(map(eval, code)) == 1, name


MACHINE = Step("machine", "", 10, {"facts": ["-c", "print('{\"workers\": 2}')"]}, steps.read_facts)


def run(out, *wanted, seconds=480.0, machine=MACHINE):
    """Run steps after one that finds two workers; returns the commands of evidence.json, by step."""
    Runner([machine, *wanted], seconds, out, say=lambda text: None).run()
    return json.loads((out / "evidence.json").read_text())["steps"]


class TestRunner:
    """Failures, the end of the time, and a process that does not end."""

    def test_a_failure_costs_its_command_alone_and_is_in_the_log(self, tmp_path):
        codes = {"fail": "print('why'); exit(3)", "abort": "import os; os.abort()", "good": "print('fine')"}
        step = Step("a", "", 10, {name: ["-c", code] for name, code in codes.items()})
        unread = Step("b", "", 10, {"check": ["-c", "print('{')"]}, steps.read_check)
        found = run(tmp_path, step, unread)
        assert [command["status"] for command in found["a"].values()] == [FAILED, FAILED, DONE]
        problems = [command["problems"] for command in found["a"].values()]
        assert problems == [["exit code 3, see evidence.log"], ["SIGABRT, see evidence.log"], []]
        assert found["a"]["good"]["printed"] == "fine\n"
        assert found["b"]["check"]["problems"][0].startswith("cannot be read: JSONDecodeError")
        assert "\nwhy\n" in (tmp_path / "evidence.log").read_text()
        assert {path.name for path in tmp_path.iterdir()} == {"evidence.json", "evidence.log"}

    def test_a_command_has_its_environment_and_nothing_outlives_it(self, tmp_path):
        long = f"2718.{os.getpid()}"
        code = "import os, subprocess, sys; subprocess.Popen(['sleep', sys.argv[1]]); "
        code += "print(os.environ['STN_TRITON_AUTOTUNE'], os.environ['TRITON_INTERPRET'])"
        found = run(tmp_path, Step("a", "", 10, {"b": ["-c", code, long]}))
        assert found["a"]["b"]["printed"] == "0 0\n"
        assert subprocess.run(["pgrep", "-f", f"sleep {long}"]).returncode == 1  # there is none

    def test_nothing_is_tried_without_a_machine(self, tmp_path):
        nothing = Step("machine", "", 1, {"facts": ["-c", ""]})
        found = run(tmp_path, Step("a", "", 10, {"b": ["-c", ""]}), machine=nothing)
        assert found["a"]["b"]["status"] == NOT_REACHED

    @pytest.mark.parametrize("side_by_side", [True, False])
    def test_as_many_commands_run_at_once_as_the_machine_has_workers(self, tmp_path, side_by_side):
        """Each command counts the files of those that run, its own among them."""
        code = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.touch(); time.sleep(0.5); "
        code += "print(len([*p.parent.glob('running-*')])); p.unlink()"
        commands = {n: ["-c", code, str(tmp_path / f"running-{n}")] for n in "123"}
        found = run(tmp_path, Step("a", "", 10, commands, side_by_side=side_by_side))["a"]
        assert max(int(command["printed"]) for command in found.values()) == 1 + side_by_side

    def test_the_end_of_the_time_ends_all_processes_and_what_is_left_runs_later(self, tmp_path):
        """The command ``once`` does not end at its first try."""
        code = "import pathlib, subprocess, sys; p = pathlib.Path(sys.argv[1])\n"
        code += "if not p.exists(): p.touch(); subprocess.run(['sleep', sys.argv[2]])"
        long = f"3141.{os.getpid()}"
        once = Step("a", "", 1, {"once": ["-c", code, str(tmp_path / "tried"), long], "next": ["-c", ""]})
        said = []
        one = Runner([MACHINE, once, Step("b", "", 2, {"c": ["-c", ""]})], 9.0, tmp_path, said.append)
        one.run()
        assert "    1 ended, 1 not reached; " in "".join(said)
        assert [record["status"] for record in one.results["steps"]["a"].values()] == [DONE, DONE]
        assert subprocess.run(["pgrep", "-f", f"sleep {long}"]).returncode == 1  # there is none

    def test_a_process_that_does_not_end_is_left_behind(self, monkeypatch, tmp_path):
        """A process that waits for a driver survives SIGKILL, and its output stays open."""
        monkeypatch.setattr(runner, "_SECONDS_TO_DIE", 0.1)
        monkeypatch.setattr(runner.os, "killpg", lambda *_: None)
        code = "import os; print(os.getpid(), flush=True); os.execlp('sleep', 'sleep', '30')"
        began = time.monotonic()
        found = run(tmp_path, Step("a", "", 10, {"b": ["-c", code], "c": ["-c", ""]}), seconds=4)
        assert time.monotonic() - began < 6
        assert [command["status"] for command in found["a"].values()] == [ENDED, NOT_REACHED]
        subprocess.run(["kill", found["a"]["b"]["printed"].strip()], check=True)


class TestReadings:
    """The reading of exit codes and outputs; the exit code is None if the time ended."""

    def test_the_check_and_the_tests_are_read(self, tmp_path):
        row, failed = {"status": "FAIL", "of": "output", "text": "is off"}, "FAILED test_0 - assert 1 == 2"
        right, wrong = (json.dumps({"rows": rows}) for rows in ([row | {"status": "PASS"}], [row]))
        for read, code, printed, problems in (
            (steps.read_check, 0, right, []),
            (steps.read_check, 1, wrong, ["output: is off"]),
            (steps.read_check, -11, "{", ["SIGSEGV, see evidence.log"]),
            (steps.read_check, None, "", []),
            (steps.read_tests, 1, f"F.\n{failed}\n1 failed, 3 passed", [failed]),
            (steps.read_tests, 1, "", ["exit code 1, see evidence.log"]),
        ):
            assert read({"exit": code, "printed": printed}, tmp_path) == problems

    def test_rows_of_bench_are_joined_and_the_operator_alone_may_not_fail(self, tmp_path):
        def read(name, code, passed, provider="operator", cut="", **changes):
            row = files.frame([made_up.row("digits-28", "random", passed, provider, **changes)], facts)
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "speed.csv").write_text(row.to_csv(index=False) + cut)
            return steps.read_bench({"command": [str(tmp_path / name)], "exit": code}, tmp_path)

        facts = {"quick": False, "copy_gb_per_s": 3000.0} | made_up.CUDA
        wrong, lost = ({"status": "FAILED", "reason": reason} for reason in ("is off", suite.LOST))
        assert read("a", None, "forward", median_ms=1.0) == []
        assert read("b", 1, "theta", "eager", **wrong) == []
        assert read("b", 1, "theta", **wrong) == ["digits-28 random theta operator is off"]
        assert read("c", 1, "input", "eager", **lost) == [f"digits-28 random input eager {suite.LOST}"]
        # Again, and ended as it wrote a row.
        assert read("a", None, "forward", cut="digits-28,256x1", median_ms=2.0) == []
        assert read("d", 1, "backward") == ["exit code 1, see evidence.log"]
        # A crash is a problem beside a rival's failure too. The facts of the first command count.
        facts["driver"] = "unknown"
        assert read("b", -11, "theta", "eager", **wrong) == ["SIGSEGV, see evidence.log"]
        assert steps.read_bench({"command": [str(tmp_path / "e")], "exit": 2}, tmp_path)
        table = files.read_run(tmp_path / "speed.csv").rows
        assert table["pass"].tolist() == ["theta", "input", "forward", "backward", "theta"]
        assert table["median_ms"].dropna().tolist() == [2.0, 1.0]


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
    for name, gather, scatter in (("4", 0.2, 0.3), ("1", 1.0, 0.25)):
        forward = dict.fromkeys(("operator", "scatter", "eager"), (0.1, 0.05))
        add(f"channels-{name}", "forward", **forward)
        both = {"operator": (5.0, 0.05 + gather), "scatter": (5.0, 0.05 + scatter), "eager": (0.5, none)}
        add(f"channels-{name}", "forward+backward", **both)
    return made_up.run(rows).rows


class TestOutcome:
    def test_failures_counts_and_commands_that_were_cut(self):
        good, wrong = {"status": DONE, "problems": []}, {"status": FAILED, "problems": ["output: is off"]}
        cut = {"status": ENDED, "problems": []}
        two = wrong | {"problems": ["output: is off", "gradients: are off"]}
        text = outcome.verdict(results(check={"images": wrong, "labels": two, "volumes": good}))
        assert text.endswith(
            "FAILED\n  check: images: output: is off\n  check: labels: output: is off (and 1 more)"
        )
        many = outcome.verdict(results(check={str(i): wrong for i in range(10)}))
        assert (many.count("is off"), many.splitlines()[-1]) == (8, "  and 2 more, in evidence.json")
        checks = {"images": good, "volumes": cut, "labels": {"status": NOT_REACHED}}
        found = results(check=checks, tests={"a": good})
        assert outcome.failures(found) == []  # the end of the time is no failure
        assert outcome.verdict(found).endswith("RIGHT; passed: check 1 of 3, tests 1 of 1")
        assert outcome.cut(found).splitlines()[1:] == ["  check: not done: labels; volumes"]
        assert outcome.failures(results() | {"machine": {}})
        assert outcome.failures(results(check={"a": cut}, tests={})) == ["nothing was compared"]
        assert outcome.verdict(results(speed={"a": good})).endswith("\nNOTHING COMPARED")

    def test_the_ratios_the_losses_and_the_texts_of_commands(self, tmp_path):
        (tmp_path / "block-sizes.json").touch()
        speed_rows().to_csv(tmp_path / "speed.csv")
        text = outcome.summarize(results(host={"overhead": {"status": DONE, "text": "50 (90)"}}), tmp_path)
        assert "slower than the pair in 1 of 3 rows\n  digits-28 identity forward 0.50x" in text
        assert "| digits-28: 256x1x28x28, float32 | 0.10 | 0.50x | 5.00x | - | - | - | - | - |" in text
        assert "| channels-" not in text
        assert "host, overhead:\n50 (90)\n" in text
        assert "/block-sizes.json stn_triton/tuned/imaginary-h100-80gb-hbm3.json" in text
        assert "not shown" not in text

    def test_gather_and_scatter_without_the_forward(self):
        """Times are of CUDA graphs; the pair has none with its backward, so its calls count."""
        table = outcome.backwards(speed_rows())
        assert table.index.tolist() == [("channels-1", "identity"), ("channels-4", "identity")]
        assert table["ms"].tolist() == pytest.approx([1.0, 0.2])
        assert table["scatter"].tolist() == pytest.approx([0.25, 1.5])
        assert table["eager"].tolist() == pytest.approx([0.4, 2.0])

    @pytest.mark.parametrize("part", ["channels", "images", "digits", "no pair"])
    def test_a_part_of_the_rows_is_shown_and_drawn(self, tmp_path, part):
        rows = speed_rows()
        chosen = rows["provider"] != "eager" if part == "no pair" else rows["workload"].str.startswith(part)
        rows[chosen].to_csv(tmp_path / "speed.csv")
        text = outcome.summarize(results(), tmp_path)
        assert "Empty" not in text
        assert "not shown" not in text
        assert (tmp_path / "evidence.png").exists() == (part in ("images", "digits"))


class TestCommand:
    def test_the_plan_names_each_step_with_its_share(self, capsys):
        assert main(["evidence", "--plan", "--minutes", "4", "--only", "check", "speed"]) == 0
        lines = [line.split() for line in capsys.readouterr().out.splitlines()]
        assert [line[0] for line in lines[:-1]] == ["machine", "check", "speed"]
        assert sum(float(line[1]) for line in lines[:-1]) == pytest.approx(240, abs=2)

    @pytest.mark.full
    def test_an_interrupted_run_says_so_and_leaves_no_process(self, tmp_path):
        """The loss of the terminal is handled as Ctrl-C and a request to end are."""
        command = [sys.executable, "-m", "perf", "evidence", "--rehearse", "--out", str(tmp_path)]
        pipe = {"stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, **pipe)
        next(line for line in process.stderr if line.startswith("check: "))
        while not (child := subprocess.run(["pgrep", "-P", str(process.pid)], **pipe).stdout.split()):
            assert process.poll() is None
        process.send_signal(signal.SIGHUP)
        printed, _ = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "  check: not done: identity" in printed
        assert json.loads((tmp_path / "evidence.json").read_text())["machine"]
        for _ in range(10):  # those that were killed may take a moment, or wait to be collected (Z)
            states = subprocess.run(["ps", "-o", "stat=", "--sid", *child], **pipe).stdout.split()
            if all(state.startswith("Z") for state in states):
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"processes are left, in the states {states}")

    @pytest.mark.full
    def test_the_whole_of_it_rehearsed(self, tmp_path, capfd):
        out = tmp_path / "out"
        assert main(["evidence", "--rehearse", "--minutes", "30", "--out", str(out)]) == 0, capfd.readouterr()
        printed = capfd.readouterr().out
        found = json.loads((out / "evidence.json").read_text())["steps"]
        assert list(found) == [one.name for one in steps.steps(out, rehearse=True)]
        statuses = [command["status"] for step in found.values() for command in step.values()]
        assert set(statuses) == {DONE}
        for said in ("A REHEARSAL", "host, overhead:", "first-calls, digits-28:", "RIGHT; "):
            assert said in printed
        assert (out / "summary.txt").read_text().strip() == printed.strip()
        assert (out / "evidence.png").exists()
        table = files.read_run(out / "speed.csv").rows
        assert set(table["provider"]) == {"operator", "eager", "eager-corners", "eager-broadcast", "scatter"}
        scatter = table[table["provider"] == "scatter"]
        assert set(scatter["status"]) == {"ok", "unavailable"}
