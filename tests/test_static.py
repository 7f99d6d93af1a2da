"""What the compiler makes of the kernels, for GPUs that need not be here."""

import itertools
import json
from pathlib import Path

import pandas as pd
import pytest
import triton
import uninterpreted

from perf.__main__ import main
from perf.kernels import disassembly
from stn_triton import policy
from stn_triton.buckets import Bucket
from stn_triton.options import INPUT_DTYPES, MODES, PADDING_MODES, Options
from stn_triton.policy import CONFIG_KEYS

ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
ROOT = Path(__file__).parent.parent
ATOMIC = ("scatter", "exact")
"""How the names of those kernels begin that add to memory."""
compiles = pytest.mark.xdist_group("static")  # one worker compiles for all


def static(*options, status=0):
    """``python -m perf static``, in another process: interpreted kernels cannot be compiled."""
    done = uninterpreted.python("-m", "perf", "static", *options)
    assert done.returncode == status, done.stderr
    return done


def compiled(*options, archs=ARCHITECTURES):
    """The rows of what was compiled."""
    rows = [json.loads(line) for line in static("--json", "--arch", *archs, *options).stdout.splitlines()]
    assert {row["arch"] for row in rows} == set(archs)
    return rows


@pytest.fixture(scope="module")
def rows():
    """What the workloads launch, with grad_outputs of other memory formats too; of other GPUs a sample."""
    found = compiled(archs=("sm_90",)) + compiled("--every", "6", archs=("sm_80", "sm_100"))
    assert {row["kernel"].split("/")[0] for row in found} >= {
        "forward",
        "backward",
        "backward_input",
        "scatter",
        "theta",
    }
    return found


@pytest.fixture(scope="module")
def variants():
    """A sample of every mode, padding, dimension and kind of map; the whole product takes an hour."""
    return compiled("--variants", "--every", "211")


def offenders(rows, is_bad):
    return [(row["call"], row["kernel"], row["arch"], row) for row in rows if is_bad(row)]


def spills_a_few_words(row):
    """On sm_100 theta's gradient, with the image's or alone, of many channels; on others many crops'."""
    crops = ("backward_input/2d-bilinear-zeros-many/",)
    kinds = {"sm_100": ("backward/", "theta/"), "sm_80": crops, "sm_90": crops}
    is_known = row["kernel"].startswith(kinds.get(row["arch"], ())) and "/nchw/" in row["kernel"]
    return is_known and row["spills"] <= 4 and row["stack"] <= 8


def needs_more_than_all_registers(row):
    """Whole sums of second derivatives of antialiased bicubic fp64 images, a channel a thread: 86 words."""
    is_bicubic = row["kernel"].startswith("exact/2d-bicubic-")
    return is_bicubic and "-antialias-tangent/nchw/float64/" in row["kernel"]


@compiles
def test_no_kernel_spills(rows, variants):
    """A frame of 8 bytes alone is that of a subroutine, which divides."""
    spilling = offenders(rows + variants, lambda row: row["spills"])
    spilling += offenders(rows, lambda row: row["stack"] > 8)
    known = (needs_more_than_all_registers, spills_a_few_words)
    assert not [found for found in spilling if not any(is_known(found[-1]) for is_known in known)]


@compiles
def test_nobody_waits_for_a_compiler(rows):
    """Twice what is allowed on a machine that does nothing else."""
    yardstick = pytest.importorskip("perf.kernels.yardstick")
    assert not offenders(rows, lambda row: row["seconds"] > 2 * yardstick.MOST_SECONDS)
    assert all(row["seconds"] > 0 for row in rows)


@compiles
def test_no_other_kernel_has_atomics(rows, variants):
    assert not offenders(
        rows + variants, lambda row: (row["atomics"] > 0) != row["kernel"].startswith(ATOMIC)
    )


@compiles
def test_fp64_arithmetic_only_for_fp64_images(rows, variants):
    bucketed = [row for row in rows + variants if "/" in row["kernel"]]  # others may add up in fp64
    assert not offenders(bucketed, lambda row: row["fp64"] and "float64" not in row["kernel"])
    assert all(row["fp64"] for row in bucketed if "float64" in row["kernel"])  # the count can see it


@compiles
def test_channels_last_is_accessed_128_bits_at_a_time(rows):
    """Every access to an image: in all but six loads, of theta, and six stores, of partial sums."""
    checked = 0
    for row in rows:
        if "channels_last_16" in row["kernel"]:
            partial = 0 if "forward" in row["kernel"] or "backward_input" in row["kernel"] else 6
            assert row["wide_loads"] == row["loads"] - 6, row
            assert row["wide_stores"] == row["stores"] - partial, row
            assert row["wide_loads"] > 0, row
            checked += 1
    assert checked >= 2 * 4


@compiles
def test_a_multiprocessor_holds_enough_warps(rows):
    """Twelve of 64; eleven of a gather with 128-bit loads, which needs up to 176 registers."""

    def holds_few(row):
        is_wide = row["kernel"].startswith("backward") and "/channels_last_16/" in row["kernel"]
        return row["occupancy"] < (11 if is_wide else 12) / 64

    assert not offenders(rows, holds_few)


@compiles
def test_amd_kernels_compile():
    rows = compiled("--every", "6", archs=("gfx942",))
    assert not offenders(rows, lambda row: row["atomics"] and not row["kernel"].startswith(ATOMIC))
    assert all(0 < row["registers"] <= 512 and 0 < row["occupancy"] <= 1 for row in rows)
    # A warp of 64 lanes shares a gather's tile of 32 accesses, 64 bits for each.
    wide = [row for row in rows if "channels_last_16" in row["kernel"] and "backward" not in row["kernel"]]
    assert wide
    assert all(row["wide_loads"] for row in wide)


@compiles
def test_instructions_per_element_are_those_recorded(rows):
    yardstick = pytest.importorskip("perf.kernels.yardstick")
    measures = yardstick.measures(rows)
    known = yardstick.recorded()
    if not known:
        pytest.skip("no instructions are recorded for this version of Triton")
    assert not list(yardstick.worse(measures, known))
    assert not [name for name, measure in measures.items() if measure["spills"]]


LAUNCHED = """
import json
from dataclasses import replace
from perf.kernels import calls
from perf.measuring.workloads import WORKLOADS
from perf.static import launched

plain = calls.VariantCall("bilinear", "zeros", channels=4)
features = calls.WorkloadCall(WORKLOADS["features-64"], "backward")
chosen = {
    "3 channels": replace(plain, channels=3),
    "4 channels": plain,
    "many": replace(plain, matrices="many"),
    "index": replace(plain, matrices="index"),
    "far": replace(plain, is_far=True),
    "NCHW": features,
    "expanded": replace(features, grad_output="expanded"),
}
print(json.dumps({
    "names": sorted({launch.name.rpartition("/c")[0] for _, launch in launched(calls.variants())}),
    **{name: {launch.name.split("/")[0]: launch.key for _, launch in launched([call])}
       for name, call in chosen.items()},
}))
"""


@pytest.fixture(scope="module")
def plan():
    """Which kernels calls launch, found in another process: interpreted kernels cannot be compiled."""
    done = uninterpreted.python("-c", LAUNCHED)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def existing():
    """Variants of the forward, and of what gives the gradient of the image."""
    for dim, mode, padding, kind in itertools.product(
        (2, 3), MODES, PADDING_MODES, ("", "-antialias", "-projective", "-spline")
    ):
        if dim == 3 and (mode == "bicubic" or kind in ("-projective", "-spline")):
            continue
        options = Options(mode, padding, points=(0.0, 0.0) if kind == "-spline" else ())
        for tangent in ("", "-tangent"):
            variant = f"{dim}d-{mode}-{padding}"
            yield "forward", f"{variant}{kind}{tangent}"
            if policy.is_gathered(dim, kind == "-projective", tangent != "", options):
                yield "backward_input", f"{variant}{kind}"
                yield "backward_input", f"{variant}-many{kind}"
            else:
                if mode != "nearest":
                    yield "scatter", f"{variant}{kind}{tangent}"
                if mode == "nearest" or not tangent:  # a second derivative wants all gradients
                    yield "scatter_input", f"{variant}{kind}{tangent}"


class TestCalls:
    def test_every_variant_is_compiled(self, plan):
        found = {tuple(name.split("/")[:2]) for name in plan["names"]}
        assert set(existing()) <= found
        dtypes = {name.split("/")[3] for name in plan["names"] if "/" in name}
        assert dtypes == {str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES}

    def test_what_triton_specialises_on_makes_other_kernels(self, plan):
        for one, other in (("3 channels", "4 channels"), ("4 channels", "far")):
            assert all(plan[one][kernel] != plan[other][kernel] for kernel in plan[one])
        for kernel in ("forward", "backward_input", "theta"):
            assert plan["many"][kernel] != plan["index"][kernel]
        assert plan["NCHW"]["forward"] == plan["expanded"]["forward"]
        assert plan["NCHW"]["backward"] != plan["expanded"]["backward"]


class TestSpace:
    @compiles
    def test_a_table_of_all_block_sizes(self, tmp_path):
        path = tmp_path / "counted.csv"
        path.write_text("triton,kernel,default\n0.1,of another Triton,True\n0.1,another,False\n")
        out = ("--out", str(path))
        done = static("--space", "digits-28", "--every", "4", *out)
        table = pd.read_csv(path)
        others, rows = table[table["triton"] == "0.1"], table[table["triton"] != "0.1"]
        assert list(others["kernel"]) == ["of another Triton", "another"]
        assert set(rows["triton"]) == {triton.__version__}
        assert rows["default"].iloc[0]
        assert (rows["seconds"] > 0).all()
        assert (rows["registers"] > 0).all()
        is_counted = rows["per_element"].notna()
        assert (is_counted != rows["problem"].notna()).all()
        assert is_counted.any()
        assert len(done.stdout.splitlines()) == len(rows)

    def test_other_tables_are_not_written(self, capsys, monkeypatch):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(SystemExit) as stop:
            main(["static", "--out", "x.csv"])
        assert stop.value.code == 2
        assert "--out: only --space writes a table" in capsys.readouterr().err


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

    def test_a_kernel_without_a_record_is_named(self, yardstick):
        (line,) = yardstick.worse({**KNOWN, "c": {"per_element": 1.0}}, KNOWN)
        assert line == "c: not recorded"

    def test_so_is_one_that_can_no_longer_be_counted(self, yardstick):
        lines = list(yardstick.worse({"a": {"registers": 1}}, KNOWN))
        assert lines == [
            "a: recorded are 10.00 instructions per element, not counted now",
            "b: recorded are 10.00 instructions per element, not counted now",
        ]

    def test_nothing_spills_and_nobody_waits(self, yardstick):
        fine = {"spills": 0, "seconds": 2.9}
        now = {"a": fine, "b": {**fine, "spills": 2}, "c": {**fine, "seconds": 3.2}}
        assert list(yardstick.too_much(now)) == [
            "b: spills 2 registers",
            "c: takes 3.2 s to compile, expected at most 3",
        ]

    def test_measures_are_of_the_workloads_themselves(self, yardstick):
        row = {
            "arch": "sm_90",
            "kernel": "theta/2d/nchw",
            "call": "digits-28 theta",
            "seconds": 1.0,
            "loads": 3,
        }
        rows = [row, {**row, "arch": "sm_80", "seconds": 2.0}, {**row, "call": "size-16 theta"}]
        rows.append({**row, "call": "digits-28 theta (grad_output expanded)", "seconds": 3.0})
        assert yardstick.measures(rows) == {"digits-28 theta": {"seconds": 1.0}}

    def test_loops_that_load_less_than_an_element_each_are_an_error(self, yardstick):
        """Four taps of one pixel in fp32 are 16 bytes."""
        bucket = Bucket("forward", "2d-bilinear-zeros", "nchw", "float32", 1, 64, 8)
        config = dict(zip(CONFIG_KEYS, (1, 1, 1, 4, 8, 1), strict=True))
        loads = ("LDG.E.64", "FADD") * 2
        counted = yardstick.counts(disassembly.Code(loads, (), ()), bucket, config, 1)
        assert counted == {"per_element": 1.0, "inner_loop": 4}
        with pytest.raises(ValueError, match="at least 16 bytes, counted 8: "):
            yardstick.counts(disassembly.Code(loads[:2], (), ()), bucket, config, 1)
        with pytest.raises(ValueError, match="expected 0 loops side by side, got 1"):
            yardstick.counts(disassembly.Code(loads, ((0, 3),), ()), bucket, config, 1)

    def test_other_variants_are_not_counted(self, yardstick):
        bucket = Bucket("forward", "2d-bicubic-zeros", "nchw", "float32", 1, 64, 8)
        assert yardstick.counts(disassembly.Code((), (), ()), bucket, {}, 1) == {}

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
        assert code.fetched([(10, [4])]) == 10 * 4 * 16

    @pytest.mark.parametrize(
        ("name", "size"),
        [("LDG.E", 4), ("LDG.E.U8", 1), ("LDG.E.U16.CONSTANT", 2), ("LDG.E.64", 8), ("STG.E.128", 0)],
    )
    def test_what_a_load_fetches(self, name, size):
        assert disassembly.Code((name,), (), ()).fetched([]) == size

    def test_other_loops_than_told_are_an_error(self):
        code = disassembly.read(NESTED)
        with pytest.raises(ValueError, match="expected 2 loops side by side, got 1"):
            code.executed([3, 3])
        with pytest.raises(ValueError, match="expected 0 loops side by side, got 1"):
            code.executed([3])

    def test_what_stands_behind_the_exit_for_parted_warps(self):
        body = ("BRA.DIV UR4, `(.L_x_1)", "FADD R1, R1, R1", ".L_x_2:", "FMUL R1, R1, R1")
        aside = (
            ".L_x_1:",
            "WARPSYNC.COLLECTIVE R1, `(.L_x_3)",
            ".L_x_3:",
            "FADD R1, R1, R1",
            "BRA `(.L_x_2)",
        )
        code = disassembly.read(sass(*body, "EXIT", *aside))
        assert code == disassembly.Code(("BRA.DIV", "FADD", "FMUL", "EXIT"), (), ())
        elsewhere = disassembly.read(
            sass(*body, *aside, "EXIT")
        )  # not behind: then it is a loop, as it seems
        assert elsewhere.loops == ((2, 5),)

    def test_a_loop_that_is_unrolled_by_four(self):
        """Five rounds are one of four and one of one; seven are one of four, two and one."""
        load = "LDG.E R2, desc[UR4][R2.64]"
        code = disassembly.read(
            sass(
                "@P2 BRA `(.L_x_0)", load, ".L_x_0:", "@P1 BRA `(.L_x_2)",
                ".L_x_1:", *[load] * 4, "@P0 BRA `(.L_x_1)", ".L_x_2:", "@P1 BRA `(.L_x_3)", load, load,
                ".L_x_3:", "@P1 BRA `(.L_x_5)", ".L_x_4:", load, "@P0 BRA `(.L_x_4)", ".L_x_5:", "EXIT",
            )
        )  # fmt: skip
        jumps_and_exit = 5
        assert code.executed([5]) == jumps_and_exit + 5 + 2
        assert code.executed([7]) == jumps_and_exit + 5 + 2 + 2
        assert code.fetched([7]) == 7 * 4
        with pytest.raises(ValueError, match="expected 3 loops side by side, got 2"):
            code.executed([7, 7, 7])

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

    def test_what_does_not_compile_is_said_and_a_failure(self, monkeypatch, capsys):
        from perf import static

        row = {"kernel": "reach_kernel", "call": "a call", "arch": "sm_80"}
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setenv("TRITON_CACHE_DIR", "restored")  # which the command sets
        monkeypatch.setattr(static, "_kernels", lambda *_: [])
        monkeypatch.setattr(static, "_compiled", lambda _: [row | {"problem": "does not compile: why"}])
        assert main(["static", "--json"]) == 1
        written = capsys.readouterr()
        assert json.loads(written.out) == row | {"problem": "does not compile: why"}
        assert written.err == "reach_kernel of a call on sm_80: does not compile: why\n"

    def test_the_summary_has_the_worst_and_who_spills(self):
        from perf.static import summary

        row = {"arch": "sm_90", "call": "digits-28 forward", "shared": 0, "occupancy": 0.25}
        row |= {"instructions": 9, "loads": 1, "stores": 1, "wide_loads": 0, "wide_stores": 0, "atomics": 0}
        rows = [
            {
                **row,
                "kernel": "forward/2d/nchw/float32/c1/p64/n8",
                "registers": 40,
                "spills": 0,
                "seconds": 1,
            },
            {
                **row,
                "kernel": "forward/2d/nchw/float32/c4/p64/n8",
                "registers": 80,
                "spills": 3,
                "seconds": 4,
            },
            {**row, "kernel": "reach_kernel", "registers": 30, "spills": 0, "seconds": 1},
        ]
        text = summary(pd.DataFrame(rows))
        assert "25%" in text
        assert " 80 " in text
        assert " reach_kernel " in text
        assert "spills 3: forward/2d/nchw/float32/c4/p64/n8 on sm_90" in text
        assert "takes 4.0 s to compile: forward/2d/nchw/float32/c4/p64/n8 for sm_90" in text
        assert "per element" not in text
        rows[0]["per_element"] = 1.25
        text = summary(pd.DataFrame(rows))
        assert "instructions that a thread executes per element" in text
        assert " 1.25 " in text
