"""The script that counts instructions: loops in machine code, the record, and all recorded kernels."""

import json
import os
import subprocess
import sys

import instructions
import pytest
from instructions import disassembly

from stn_triton.buckets import Bucket
from stn_triton.policy import CONFIG_KEYS

SCRIPT = instructions.__file__


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


def test_instructions_per_element():
    bucket = Bucket("forward", "2d-bilinear-zeros", "nchw", "float32", 1, 64, 8)
    config = dict(zip(CONFIG_KEYS, (1, 1, 1, 4, 8, 1), strict=True))
    code = disassembly.Code(("LDG.E.64", "FADD") * 4, (), ())
    assert instructions.per_element(code, bucket, config, 1) == 2.0  # of four taps
    gather = bucket._replace(kernel="backward", channels=64)
    nest = disassembly.Code(("FADD",) * 4, ((1, 3), (2, 2)), ())
    assert instructions.per_element(nest, gather, config, 1) == 1 + 3 * (2 + 3)
    with pytest.raises(ValueError, match="expected 2 loops, each inside the one before"):
        instructions.per_element(code, gather, config, 1)


def row(kernel, **numbers):
    return {"workload": "w", "kernel": kernel, "per_element": 10.0, "spills": 0, "seconds": 2.9, **numbers}


class TestCommand:
    @pytest.fixture(autouse=True)
    def _record(self, monkeypatch, tmp_path):
        monkeypatch.setattr(instructions, "RECORD", tmp_path / "record.json")
        monkeypatch.setattr(instructions, "NAMES", ("v", "w"))

    @pytest.fixture
    def run(self, monkeypatch):
        """Return a function that runs the command with given rows in place of compiled kernels."""

        def run(rows, *options):
            monkeypatch.setattr(instructions.static, "rows", lambda tasks, describe: rows)
            return instructions.main(options)

        return run

    def test_the_record_is_compared(self, run, capsys):
        known = [row(kernel) for kernel in "abde"]
        assert run([*known, row("a", workload="other")], "--record") == 0
        uncounted = row("e", not_counted="loops")
        del uncounted["per_element"]
        more = row("b", per_element=10.6, spills=2)
        now = [row("a", per_element=10.4), more, row("c", seconds=3.2), uncounted]
        capsys.readouterr()
        assert run(now) == 0
        assert run(known, "--check") == 0
        found = capsys.readouterr()
        assert "b         10.6      10.0" in found.out.replace("  w      ", "")
        assert found.err == "0 faults\n"
        assert run(now, "--check") == 1
        assert capsys.readouterr().err.splitlines() == [
            "6 faults",
            "w d: recorded, not launched",
            "w b: 10.60 instructions per element, recorded are 10.00",
            "w b: spills 2 registers",
            "w c: not recorded for this version of Triton; --record does that",
            "w c: takes 3.2 s to compile, expected at most 3",
            "w e: not counted: loops",
        ]

    def test_records_of_other_versions_and_workloads_stay(self, run, monkeypatch):
        for version in ("9.0", "8.0"):
            monkeypatch.setattr(instructions.triton, "__version__", version)
            assert run([row("a"), row("a", workload="v")], "--record") == 0
        assert run([row("b")], "--record") == 0
        found = json.loads(instructions.RECORD.read_text())
        assert list(found) == ["8.0", "9.0"]
        assert [list(found[version]["w"]) for version in found] == [["b"], ["a"]]
        assert found["8.0"]["v"] == found["9.0"]["v"]

    def test_what_does_not_compile_is_not_recorded(self, run, capsys):
        assert run([row("a"), {"problem": "w on sm_90: does not compile: why"}], "--record") == 1
        assert "w on sm_90: does not compile: why" in capsys.readouterr().err
        assert not instructions.RECORD.exists()

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (["--workloads", "crops-7"], "invalid choice: 'crops-7'"),
            (["--check", "--record"], "not allowed with argument"),
            ([], "TRITON_INTERPRET is set"),
        ],
    )
    def test_refusals(self, options, said, monkeypatch, capsys):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit) as stop:
            instructions.main(options)
        assert stop.value.code == 2
        assert said in capsys.readouterr().err


def test_no_kernel_executes_more_than_recorded():
    if instructions.triton.__version__ not in instructions.read():
        pytest.skip("no instructions are recorded for this version of Triton")
    env = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, SCRIPT, "--check"], env=env, capture_output=True, text=True)
    slow = "s to compile"  # other processes may run beside the tests
    _, found, faults = done.stderr.partition(" faults\n")
    assert found, done.stderr
    assert not [line for line in faults.splitlines() if slow not in line]
    assert len(done.stdout.splitlines()) == 1 + 4 * len(instructions.NAMES)
