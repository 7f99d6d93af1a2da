"""What the compiler makes of the kernels, for GPUs that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import triton

from perf.__main__ import main
from perf.kernels import disassembly

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
ROOT = Path(__file__).parent.parent
compiles = pytest.mark.xdist_group("static")  # one worker compiles for all


def static(*options, status=0):
    """``python -m perf static``, in another process: interpreted kernels cannot be compiled."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "perf", "static", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == status, done.stderr
    return done


def compiled(*options, archs=ARCHITECTURES):
    """The rows of what was compiled, and of the yardstick."""
    rows = [json.loads(line) for line in static("--json", "--arch", *archs, *options).stdout.splitlines()]
    kernels = [row for row in rows if "spills" in row]
    assert {row["arch"] for row in kernels} == set(archs)
    return kernels, [row for row in rows if "per_element" in row]


@pytest.fixture(scope="module")
def both():
    return compiled()


@pytest.fixture(scope="module")
def rows(both):
    """The plain operator, in every layout and dtype."""
    assert {row["bucket"].split("/")[0] for row in both[0]} == {
        "forward",
        "backward",
        "backward_input",
        "theta",
    }
    return both[0]


@pytest.fixture(scope="module")
def variants():
    """A sample of every mode, padding, dimension and kind of map; the whole product takes an hour."""
    return compiled("--variants", "--every", "41")[0]


def offenders(rows, is_bad):
    return [(row["bucket"], row["arch"], row) for row in rows if is_bad(row)]


def needs_more_than_all_registers(row):
    """The gather under reflection in fp64, of a volume or homographies, keeps over 128 numbers a thread."""
    flags = row["bucket"].split("/")[1].split("-")
    is_large = "reflection" in flags and {"3d", "projective"} & set(flags)
    return is_large and "float64" in row["bucket"] and row["bucket"].startswith("backward")


def spills_a_few_words_for_occupancy(row):
    """The gather of grad_input alone that lists its pixels, 16 bits, Triton 3.9, sm_100: six words."""
    is_listed = row["config"]["STEPS_C"] > 1 and row["bucket"].startswith("backward_input")
    return is_listed and row["arch"] == "sm_100" and row["spills"] <= 6 and row["stack"] <= 16


@compiles
def test_no_kernel_spills(rows, variants):
    spilling = offenders(rows + variants, lambda row: row["spills"]) + offenders(
        rows, lambda row: row["stack"]
    )
    known = (needs_more_than_all_registers, spills_a_few_words_for_occupancy)
    assert not [found for found in spilling if not any(is_known(found[2]) for is_known in known)]


@compiles
def test_no_kernel_has_atomics(rows, variants):
    assert not offenders(
        rows + variants, lambda row: row["atomics"] and not row["bucket"].startswith("scatter")
    )


@compiles
def test_fp64_arithmetic_only_for_fp64_images(rows, variants):
    assert not offenders(rows + variants, lambda row: row["fp64"] and "float64" not in row["bucket"])
    assert all(row["fp64"] for row in rows if "float64" in row["bucket"])  # the count can see it


@compiles
def test_channels_last_is_accessed_128_bits_at_a_time(rows):
    """Every access to an image: in all but six loads, of theta, and six stores, of partial sums."""
    checked = 0
    for row in rows:
        if "channels_last_16" in row["bucket"]:
            partial = 0 if "forward" in row["bucket"] or "backward_input" in row["bucket"] else 6
            assert row["wide_loads"] == row["loads"] - 6, row
            assert row["wide_stores"] == row["stores"] - partial, row
            assert row["wide_loads"] > 0, row
            checked += 1
    assert checked >= 4 * 4 * len(ARCHITECTURES)


@compiles
def test_a_multiprocessor_holds_enough_warps(rows):
    """Three blocks of 128 threads, but in fp64; two of a forward for sm_100, by Triton 3.9."""

    def holds_few(row):
        is_forward = row["bucket"].startswith("forward") and row["arch"] == "sm_100"
        return "float64" not in row["bucket"] and row["occupancy"] < (8 if is_forward else 12) / 64

    assert not offenders(rows, holds_few)


@compiles
def test_amd_kernels_compile():
    rows, _ = compiled("--every", "6", archs=("gfx942",))
    assert not offenders(rows, lambda row: row["atomics"])
    assert all(0 < row["registers"] <= 512 and 0 < row["occupancy"] <= 1 for row in rows)
    assert all(row["wide_loads"] for row in rows if "channels_last_16" in row["bucket"])


@compiles
def test_instructions_per_element_are_those_recorded(both):
    yardstick = pytest.importorskip("perf.kernels.yardstick")
    measures = {row["bucket"]: row for row in both[1]}
    known = yardstick.recorded()
    if not known:
        pytest.skip("no instructions are recorded for this version of Triton")
    assert set(measures) == set(known)
    assert not list(yardstick.worse(measures, known))


@compiles
@pytest.mark.skipif(triton.__version__ < "3.7", reason="Triton 3.6 takes 6.6 and 10.0")
def test_many_channels_cost_few_instructions(both):
    """Everything that a thread executes, averaged over its channels, in fp32."""
    found = {row["bucket"]: row["per_element"] for row in both[1]}
    name = "2d-bilinear-zeros/nchw/float32/c64/p32768/n4096"
    assert found[f"forward/{name}"] <= 6
    assert found[f"backward/{name}"] <= 8


KNOWN = {"a": {"per_element": 10.0}, "b": {"per_element": 10.0}}


class TestYardstick:
    @pytest.fixture
    def yardstick(self):
        return pytest.importorskip("perf.kernels.yardstick")

    def test_five_percent_more_is_worse(self, yardstick):
        now = {"a": {"per_element": 10.6}, "b": {"per_element": 10.4}}
        (line,) = yardstick.worse(now, KNOWN)
        assert line == "a: 10.60 instructions per element, recorded are 10.00"

    def test_so_is_a_map_that_enlarges(self, yardstick):
        known = {"a": {"per_element": 10.0, "enlarged": 8.0}}
        (line,) = yardstick.worse({"a": {"per_element": 10.0, "enlarged": 9.0}}, known)
        assert line == "a: 9.00 instructions enlarged, recorded are 8.00"

    def test_a_kernel_without_a_record_is_told(self, yardstick):
        assert list(yardstick.worse({"c": {"per_element": 1.0}}, KNOWN)) == ["c: not recorded"]

    def test_records_of_other_versions_stay(self, yardstick, monkeypatch, tmp_path):
        monkeypatch.setattr(yardstick, "RECORD", tmp_path / "record.json")
        assert yardstick.recorded() == {}
        for version in ("9.0", "8.0"):
            monkeypatch.setattr(yardstick.triton, "__version__", version)
            yardstick.record({version: {"per_element": 1.0}})
        assert list(json.loads(yardstick.RECORD.read_text())) == ["8.0", "9.0"]
        assert yardstick.recorded() == {"8.0": {"per_element": 1.0}}


def sass(*lines):
    """Lines of a listing, a label each where one ends in a colon."""
    listing, address = [], 0
    for line in lines:
        if line.endswith(":"):
            listing.append(line)
        else:
            listing.append(f"        /*{address:04x}*/                   {line} ;")
            address += 16
    return "\n".join(listing)


NESTED = sass(
    "MOV R1, R2", ".L_x_0:", "FADD R1, R1, R1", ".L_x_1:", "LDG.E.128 R2, desc[UR4][R2.64]", "FFMA R3, R2",
    "@P0 BRA `(.L_x_1)", "@!P1 BRA `(.L_x_0)", "@P2 BRA `(.L_x_2)", "CALL.REL `(x)", ".L_x_2:",
    "@P3 BRA `(.L_x_3)", "FMUL R1, R1, R2", "FMUL R1, R1, R2", ".L_x_3:", "STG.E desc[UR4][R2.64]", "EXIT",
    ".L_x_9:", "BRA `(.L_x_9)", "NOP", "$__internal_0_$__cuda_div:", "MUFU.RCP R1, R2",
)  # fmt: skip


class TestDisassembly:
    def test_loops_skips_and_the_end_of_the_kernel(self):
        code = disassembly.read(NESTED)
        assert code.names[-1] == "EXIT"
        assert "MUFU.RCP" not in code.names
        assert code.loops == ((1, 5), (2, 4))
        assert code.skips == ((7, 7), (9, 10))
        assert code.longest_inner_loop() == 3

    def test_what_is_executed(self):
        code = disassembly.read(NESTED)
        outside = 5  # MOV, two jumps, STG and EXIT; a call never is
        assert code.executed([(10, [4])], share=0.5) == outside + 10 * (2 + 4 * 3) + 0.5 * 2

    def test_other_loops_than_told_are_an_error(self):
        code = disassembly.read(NESTED)
        with pytest.raises(ValueError, match="expected 2 loops side by side, got 1"):
            code.executed([3, 3])
        with pytest.raises(ValueError, match="expected 0 loops side by side, got 1"):
            code.executed([3])

    def test_opcodes_count_subroutines_too(self):
        assert disassembly.opcodes(NESTED)["MUFU.RCP"] == 1
        assert disassembly.opcodes(NESTED)["FMUL"] == 2


class TestCommandLine:
    def test_an_unknown_architecture_is_named(self):
        done = static("--arch", "sm_12", status=2)
        assert "--arch: unknown architecture 'sm_12'; available: sm_80, sm_90, sm_100, gfx942" in done.stderr

    def test_interpreted_kernels_cannot_be_compiled(self, monkeypatch, capsys):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit) as stop:
            main(["static"])
        assert stop.value.code == 2
        assert "TRITON_INTERPRET is set" in capsys.readouterr().err

    def test_the_summary_tells_the_worst_and_who_spills(self):
        from perf.static import summary

        row = {"arch": "sm_90", "shared": 0, "occupancy": 0.25, "instructions": 9, "loads": 1, "stores": 1}
        row |= {"wide_loads": 0, "wide_stores": 0, "atomics": 0}
        rows = [
            {**row, "bucket": "forward/2d/nchw/float32/c1/p64/n8", "registers": 40, "spills": 0},
            {**row, "bucket": "forward/2d/nchw/float32/c4/p64/n8", "registers": 80, "spills": 3},
        ]
        text = summary(pd.DataFrame(rows))
        assert "25%" in text
        assert " 80 " in text
        assert "spills 3: forward/2d/nchw/float32/c4/p64/n8 on sm_90" in text
