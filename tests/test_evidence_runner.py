"""The processes of ``python -m perf evidence``: crashes, the end of the time, and one that does not end."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from perf.evidence import runner
from perf.evidence.runner import DONE, ENDED, Runner
from perf.evidence.stage import Step

TESTS = Path(__file__).parent


class TestRunner:
    @staticmethod
    def run(out, monkeypatch, *names_and_items, seconds=480.0):
        """Run steps of tests/evidence_steps.py; returns what evidence.json has of each."""
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), *sys.path]))
        steps = [Step(items[0], "what", 10.0, "evidence_steps:act", items) for items in names_and_items]
        Runner(steps, seconds, out, rehearse=False, say=lambda text: None).run()
        return list(json.loads((out / "evidence.json").read_text())["steps"].values())

    def test_a_crash_or_an_error_costs_its_item_alone_and_keeps_results(self, tmp_path, monkeypatch):
        (found,) = self.run(tmp_path, monkeypatch, ["fail", "crash", "b"])
        names = ["first of fail", "fail", "first of crash", "first of b", "second of b"]
        assert [record["what"] for record in found["records"]] == names
        assert [record["ok"] for record in found["records"]] == [True, False, True, True, True]
        assert found["records"][1]["problem"] == "ValueError: not this one"
        assert (found["status"], found["left"]) == (DONE, [])
        assert found["crashes"] == ["crash: crashed (SIGABRT)"]
        assert "Traceback" in (tmp_path / "evidence.log").read_text()

    @pytest.mark.full
    def test_the_end_of_the_time_keeps_results_and_the_rest_goes_on_later(self, tmp_path, monkeypatch):
        began = time.monotonic()
        hang, last = self.run(tmp_path, monkeypatch, ["hang", "b"], ["c"], seconds=40)
        assert time.monotonic() - began < 60
        assert (hang["status"], hang["left"], last["status"]) == (ENDED, ["hang"], DONE)
        assert [r["what"] for r in hang["records"]] == ["first of b", "second of b", "first of hang"]


def test_a_process_that_does_not_end_is_left_behind(monkeypatch):
    """A process that waits for a driver survives SIGKILL, and its output stays open."""
    monkeypatch.setattr(runner, "_SECONDS_TO_DIE", 0.1)
    monkeypatch.setattr(runner.os, "killpg", lambda *_: None)
    command = ["sh", "-c", "echo first; exec sleep 30"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert list(runner._lines(process, time.monotonic() + 1)) == ["first\n"]
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
