"""The machine code of the kernels, for GPUs that need not be here."""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import triton
import uninterpreted

from perf import static
from perf.__main__ import main
from perf.kernels import disassembly, yardstick
from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS


def check(*command, kernels):
    """Compile, in a process that does not interpret; returns rows, after what should hold for all kernels."""
    done = uninterpreted.python(*command, PYTHONPATH=str(uninterpreted.ROOT))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["kernel"].split("/")[0] for row in rows} >= set(kernels)
    for row in rows:
        kind = row["kernel"].split("/")[0]
        # Some fp64 kernels of bicubic images need more than all registers.
        if not ("bicubic" in row["kernel"] and "/float64/" in row["kernel"] and row["registers"] == 255):
            assert not row["spills"], row
        assert (row["atomics"] > 0) == kind.startswith("scatter"), row
        if "/" in row["kernel"]:  # others may add up in fp64
            assert (row["fp64"] > 0) == ("float64" in row["kernel"]), row
    return rows


def check_workloads(*options, kernels):
    rows = check("-m", "perf", "static", "--json", *options, kernels=kernels)
    for row in rows:
        kind, is_wide = row["kernel"].split("/")[0], "/channels_last_16/" in row["kernel"]
        if not row["arch"].startswith("sm_"):
            continue
        assert row["stack"] <= 8, row  # the frame of a subroutine, which divides
        assert row["seconds"] <= 2 * yardstick.MOST_SECONDS, row
        # A gather with 128-bit loads needs up to 176 registers.
        assert row["occupancy"] >= (11 if is_wide and kind.startswith("backward") else 12) / 64, row
        if is_wide:  # every access to an image: in all but six loads, of theta, and six stores, of sums
            assert row["wide_loads"] == row["loads"] - 6 > 0, row
            partial = 0 if kind in ("forward", "backward_input") else 6
            assert row["wide_stores"] == row["stores"] - partial, row
    return rows


def check_counts(rows, known):
    slow = "s to compile"  # other processes run beside the tests
    assert not [line for line in yardstick.faults(yardstick.measures(rows), known) if slow not in line]


@pytest.fixture
def known():
    return yardstick.recorded() or pytest.skip("no instructions are recorded for this version of Triton")


STEP = ("forward", "backward", "backward_input", "theta")


@pytest.mark.xdist_group("static")
class TestKernels:
    def test_of_a_training_step_on_digits(self, known):
        rows = check_workloads("--workloads", "digits-28", "--arch", "sm_90", kernels=STEP)
        check_counts(rows, known)

    @pytest.mark.full
    def test_of_the_recorded_workloads(self, known):
        rows = check_workloads("--quick", kernels=(*STEP, "scatter", "scatter_input"))
        assert set(yardstick.measures(rows)) == set(known)
        check_counts(rows, known)

    @pytest.mark.full
    def test_for_other_gpus(self):
        options = ["--workloads", "digits-28", "features-64-channels-last", "--arch"]
        rows = check_workloads(*options, "sm_80", "sm_100", "gfx942", kernels=STEP)
        assert {row["arch"] for row in rows} == {"sm_80", "sm_100", "gfx942"}

    @pytest.mark.full
    def test_of_some_variants(self):
        check(Path(__file__).with_name("variant_calls.py"), kernels=["forward", "scatter"])


class TestYardstick:
    def test_faults(self):
        fine = {"per_element": 10.0, "spills": 0, "seconds": 2.9}
        known = {name: {"per_element": 10.0} for name in ("w a", "w b", "w d", "other e")}
        now = {
            "w a": fine | {"per_element": 10.4},
            "w b": fine | {"per_element": 10.6, "spills": 2},
            "w c": fine | {"seconds": 3.2},
        }
        assert list(yardstick.faults(now, known)) == [
            "w c: not recorded",
            "w b: 10.60 instructions per element, recorded are 10.00",
            "w d: 10.00 instructions per element are recorded, none counted now",
            "w b: spills 2 registers",
            "w c: takes 3.2 s to compile, expected at most 3",
        ]

    def test_instructions_per_element(self):
        bucket = Bucket("forward", "2d-bilinear-zeros", "nchw", "float32", 1, 64, 8)
        config = dict(zip(CONFIG_KEYS, (1, 1, 1, 4, 8, 1), strict=True))
        code = disassembly.Code(("LDG.E.64", "FADD") * 4, (), ())
        assert yardstick.per_element(code, bucket, config, 1) == 2.0  # of four taps
        gather = bucket._replace(kernel="backward", channels=64)
        nest = disassembly.Code(("FADD",) * 4, ((1, 3), (2, 2)), ())
        assert yardstick.per_element(nest, gather, config, 1) == 1 + 3 * (2 + 3)
        with pytest.raises(ValueError, match="expected 2 loops, each inside the one before"):
            yardstick.per_element(code, gather, config, 1)
        assert yardstick.per_element(code, bucket._replace(variant="2d-bicubic-zeros"), {}, 1) is None

    def test_records_of_other_versions_and_workloads_stay(self, monkeypatch, tmp_path):
        monkeypatch.setattr(yardstick, "RECORD", tmp_path / "record.json")
        assert yardstick.recorded() == {}
        for version in ("9.0", "8.0"):
            monkeypatch.setattr(triton, "__version__", version)
            yardstick.record({"w a": {"per_element": 1.0}, "v a": {"per_element": 3.0}})
        yardstick.record({"w b": {"per_element": 2.0}})
        assert list(json.loads(yardstick.RECORD.read_text())) == ["8.0", "9.0"]
        assert yardstick.recorded() == {"v a": {"per_element": 3.0}, "w b": {"per_element": 2.0}}


NESTED = """
MOV R1, R2|.L_x_0:|FADD R1, R1, R1|.L_x_1:|LDG.E.128 R2, desc[UR4][R2.64]|FFMA R3, R2|@P0 BRA `(.L_x_1)
@!P1 BRA `(.L_x_0)|@P2 BRA `(.L_x_2)|CALL.REL `(x)|.L_x_2:|@P3 BRA `(.L_x_3)|FMUL R1, R1, R2|FMUL R1, R1, R2
.L_x_3:|STG.E desc[UR4][R2.64]|EXIT|.L_x_9:|BRA `(.L_x_9)|NOP|$__internal_0_$__cuda_div:|MUFU.RCP R1, R2
"""


def sass(text):
    """A listing as `nvdisasm` prints it, of labels and instructions."""
    lines = text.strip().replace("\n", "|").split("|")
    return "\n".join(
        line if line.endswith(":") else f"  /*{i:04x}*/  {line} ;" for i, line in enumerate(lines)
    )


class TestDisassembly:
    def test_loops_skips_and_the_end_of_the_kernel(self):
        code = disassembly.read(sass(NESTED))
        assert code.names[-1] == "EXIT"
        assert code.loops == ((1, 5), (2, 4))
        assert code.skips == ((7, 7), (9, 10))
        assert disassembly.opcodes(sass(NESTED))["MUFU.RCP"] == 1

    def test_instructions_that_are_executed(self):
        code = disassembly.read(sass(NESTED))
        outside = 7  # MOV, two jumps, two FMULs that may be skipped, STG and EXIT; a call never is
        assert code.executed([10, 4]) == outside + 10 * (2 + 4 * 3)
        with pytest.raises(ValueError, match="expected 1 loops, each inside the one before, got"):
            code.executed([3])
        beside = disassembly.Code(("FADD",) * 4, ((0, 1), (2, 3)), ())
        with pytest.raises(ValueError, match="expected 2 loops, each inside the one before, got"):
            beside.executed([3, 3])

    def test_a_rare_case_inside_a_loop_is_not_counted(self):
        assert disassembly.Code(("FADD",) * 6, ((0, 4),), ((1, 2),)).executed([10]) == 31
        loads = disassembly.Code(("FADD", "LDG.E", *["FADD"] * 4), ((0, 4),), ((1, 2),))
        assert loads.executed([10]) == 51


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def compiles(self, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setenv("TRITON_CACHE_DIR", "restored")  # which the command sets

    @pytest.mark.parametrize(
        ("interpret", "options", "said"),
        [
            ("0", ["--arch", "sm_12"], "unknown name 'sm_12'; available: sm_80, sm_90, sm_100, gfx942"),
            ("0", ["--check", "--arch", "sm_80"], "the record is of sm_90 alone; leave --arch out"),
            ("0", ["--record", "--arch", "sm_80", "sm_90"], "the record is of sm_90 alone"),
            ("0", ["--check", "--workloads", "crops-7"], "crops-7 is not recorded; available: digits-28"),
            ("0", ["--record", "--workloads", "digits-28", "crops-7"], "crops-7 is not recorded"),
            ("1", [], "TRITON_INTERPRET is set"),
        ],
    )
    def test_refusals(self, interpret, options, said, monkeypatch, capsys):
        monkeypatch.setenv("TRITON_INTERPRET", interpret)
        monkeypatch.setattr(static.multiprocessing, "get_context", None)  # nothing is compiled
        with pytest.raises(SystemExit) as stop:
            main(["static", *options])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err

    def test_what_does_not_compile_or_executes_more_is_a_failure(self, monkeypatch, capsys):
        fine = {"arch": "sm_90", "call": "digits-28", "kernel": "theta/2d", "spills": 0, "per_element": 1.0}
        monkeypatch.setattr(yardstick, "recorded", lambda: {"digits-28 theta": {"per_element": 1.0}})
        here = contextlib.nullcontext(SimpleNamespace(imap=map))  # in this process
        monkeypatch.setattr(
            static.multiprocessing, "get_context", lambda _: SimpleNamespace(Pool=lambda _: here)
        )
        for row, status, said in (
            (fine, 0, "no kernel executes more than recorded"),
            (fine | {"per_element": 2.0}, 1, "digits-28 theta: 2.00 instructions per element"),
            ({"call": "a call", "arch": "sm_80", "problem": "does not compile: why"}, 1, "does not compile"),
        ):
            monkeypatch.setattr(static, "_rows", lambda task, row=row: [row])
            assert main(["static", "--json", "--workloads", "digits-28", "--check"]) == status
            written = capsys.readouterr()
            assert json.loads(written.out) == row
            assert said in written.err

    def test_the_summary_has_the_worst_and_the_kernels_that_spill(self):
        row = {"arch": "sm_90", "call": "digits-28", "shared": 0, "occupancy": 0.25, "instructions": 9}
        row |= dict.fromkeys(("loads", "stores", "wide_loads", "wide_stores", "atomics", "spills"), 0)
        name = "forward/2d/nchw/float32/c4/p64/n8"
        rows = [
            {**row, "kernel": "forward/2d/nchw/float32/c1/p64/n8", "registers": 40, "seconds": 1},
            {**row, "kernel": name, "registers": 80, "spills": 3, "seconds": 4, "not_counted": "loops"},
            {**row, "kernel": "reach_kernel", "registers": 30, "seconds": 1},
        ]
        text = static.summary(pd.DataFrame(rows))
        for part in ("25%", " 80 ", " reach_kernel ", f"spills 3: {name} on sm_90"):
            assert part in text
        assert f"takes 4.0 s to compile: {name} for sm_90" in text
        assert f"not counted: {name} on sm_90: loops" in text
        assert "per element" not in text
        rows[0]["per_element"] = 1.25
        assert "instructions that a thread executes per element" in static.summary(pd.DataFrame(rows))
