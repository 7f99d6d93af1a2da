"""The processes of ``python -m perf evidence``: failures, the end of the time, and one that does not end."""

import json
import os
import subprocess
import time

import pytest

pytest.importorskip("pandas")

from perf.evidence import runner
from perf.evidence.runner import DONE, ENDED, FAILED, NOT_REACHED, Runner
from perf.evidence.steps import Step, read_check, read_facts

MACHINE = Step("machine", "", 10, {"facts": ["-c", "print('{\"workers\": 2}')"]}, read_facts)


def run(out, *steps, seconds=480.0):
    """Run steps after one that finds two workers; returns the commands of evidence.json, by step."""
    Runner([MACHINE, *steps], seconds, out, say=lambda text: None).run()
    return json.loads((out / "evidence.json").read_text())["steps"]


def test_a_failure_costs_its_command_alone_and_is_in_the_log(tmp_path):
    codes = {"fail": "print('why'); exit(3)", "abort": "import os; os.abort()", "good": "print('fine')"}
    step = Step("a", "", 10, {name: ["-c", code] for name, code in codes.items()})
    unread = Step("b", "", 10, {"check": ["-c", "print('{')"]}, read_check)
    found = run(tmp_path, step, unread)
    assert [command["status"] for command in found["a"].values()] == [FAILED, FAILED, DONE]
    problems = [command["problems"] for command in found["a"].values()]
    assert problems == [["exit code 3, see evidence.log"], ["SIGABRT, see evidence.log"], []]
    assert found["a"]["good"]["printed"] == "fine\n"
    assert found["b"]["check"]["problems"][0].startswith("cannot be read: JSONDecodeError")
    assert "\nwhy\n" in (tmp_path / "evidence.log").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"evidence.json", "evidence.log"}


def test_nothing_is_tried_without_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr("test_evidence_runner.MACHINE", Step("machine", "", 1, {"facts": ["-c", ""]}))
    assert run(tmp_path, Step("a", "", 10, {"b": ["-c", ""]}))["a"]["b"]["status"] == NOT_REACHED


@pytest.mark.parametrize("side_by_side", [True, False])
def test_as_many_commands_run_at_once_as_the_machine_has_workers(tmp_path, side_by_side):
    """Each command counts the files of those that run, its own among them."""
    code = "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); p.touch(); time.sleep(0.5); "
    code += "print(len([*p.parent.glob('running-*')])); p.unlink()"
    commands = {n: ["-c", code, str(tmp_path / f"running-{n}")] for n in "123"}
    found = run(tmp_path, Step("a", "", 10, commands, side_by_side=side_by_side))["a"]
    assert max(int(command["printed"]) for command in found.values()) == 1 + side_by_side


def test_the_end_of_the_time_ends_all_processes_and_what_is_left_runs_later(tmp_path):
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
    assert f"sleep {long}" not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout


def test_a_process_that_does_not_end_is_left_behind(monkeypatch, tmp_path):
    """A process that waits for a driver survives SIGKILL, and its output stays open."""
    monkeypatch.setattr(runner, "_SECONDS_TO_DIE", 0.1)
    monkeypatch.setattr(runner.os, "killpg", lambda *_: None)
    code = "import os; print(os.getpid(), flush=True); os.execlp('sleep', 'sleep', '30')"
    began = time.monotonic()
    found = run(tmp_path, Step("a", "", 10, {"b": ["-c", code], "c": ["-c", ""]}), seconds=4)
    assert time.monotonic() - began < 6
    assert [command["status"] for command in found["a"].values()] == [ENDED, NOT_REACHED]
    subprocess.run(["kill", found["a"]["b"]["printed"].strip()], check=True)
