"""The machine code of the kernels, for GPUs that need not be here."""

import json
from pathlib import Path

import pandas as pd
import pytest
import uninterpreted

from perf import static
from perf.__main__ import main
from perf.kernels.compiled import ARCHITECTURES

STEP = {"forward", "backward", "backward_input", "theta"}


def check(*command, kernels):
    """Compile, in a process that does not interpret; returns rows, after what should hold for all kernels."""
    done = uninterpreted.python(*command, PYTHONPATH=str(uninterpreted.ROOT))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"].split("/")[0] for row in rows} >= kernels
    for row in rows:
        kind = row["kernel"].split("/")[0]
        # Some fp64 kernels of bicubic images need more than all registers.
        if not ("bicubic" in row["kernel"] and "/float64/" in row["kernel"] and row["registers"] == 255):
            assert not row["spills"], row
        assert (row["atomics"] > 0) == kind.startswith("scatter"), row
        if "/" in row["kernel"]:  # others may add up in fp64
            assert (row["fp64"] > 0) == ("float64" in row["kernel"]), row
    return rows


LOOKS = ["digits-28", "features-64-channels-last", "features-256-bf16-channels-last"]


@pytest.mark.parametrize(
    ("archs", "names"),
    [(["sm_90"], ["digits-28"]), pytest.param(ARCHITECTURES, LOOKS, marks=pytest.mark.full)],
)
@pytest.mark.xdist_group("static")
def test_kernels_of_a_training_step(archs, names):
    options = ["--json", "--arch", *archs, "--workloads", *names]
    rows = check("-m", "perf", "static", *options, kernels=STEP)
    assert {row["arch"] for row in rows} == set(archs)
    for row in rows:
        kind, is_wide = row["kernel"].split("/")[0], "/channels_last_16/" in row["kernel"]
        if not row["arch"].startswith("sm_"):
            continue
        assert row["stack"] <= 8, row  # the frame of a subroutine, which divides
        assert row["seconds"] <= 6, row  # three are expected, but other processes run beside the tests
        # A gather with 128-bit loads needs up to 176 registers.
        assert row["occupancy"] >= (11 if is_wide and kind.startswith("backward") else 12) / 64, row
        if is_wide:  # every access to an image: in all but six loads, of theta, and six stores, of sums
            assert row["wide_loads"] == row["loads"] - 6 > 0, row
            partial = 0 if kind in ("forward", "backward_input") else 6
            assert row["wide_stores"] == row["stores"] - partial, row


@pytest.mark.full
@pytest.mark.xdist_group("static")
def test_kernels_of_some_variants():
    check(Path(__file__).with_name("variant_calls.py"), kernels={"forward", "scatter"})


def test_what_does_not_compile_is_a_failure(monkeypatch, capsys):
    monkeypatch.setattr(static.launches, "dry", lambda *_: 1 / 0)
    row = static._rows(static.described, ("digits-28", "sm_80"))[0]
    tasks = []
    monkeypatch.setattr(static, "rows", lambda wanted: tasks.extend(wanted) or [row])
    assert main(["static", "--quick", "--json"]) == 1
    written = capsys.readouterr()
    assert json.loads(written.out) == row
    assert ("images-224", "sm_90") in tasks  # of a quick run
    assert len(tasks) == 5
    assert "digits-28 on sm_80: does not compile: ZeroDivisionError" in written.err


def test_the_summary_has_the_worst_of_the_kernels():
    row = dict.fromkeys((*static._SHOWN, "occupancy"), 0) | {"arch": "sm_90"}
    rows = [
        {**row, "kernel": "forward/2d/nchw/float32/c1/p64/n8", "registers": 40, "occupancy": 0.25},
        {**row, "kernel": "forward/2d/nchw/float32/c4/p64/n8", "registers": 80, "occupancy": 0.5},
        {**row, "kernel": "reach_kernel", "registers": 30},
    ]
    _, forward, reach, *_ = static.summary(pd.DataFrame(rows)).splitlines()
    assert forward.split()[:6] == ["sm_90", "forward", "nchw", "float32", "2", "80"]
    assert forward.endswith(" 25%")
    assert reach.split()[:4] == ["sm_90", "reach_kernel", "1", "30"]
