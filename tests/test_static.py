"""The machine code of the kernels, for GPUs that need not be here."""

import itertools
import json

import pandas as pd
import pytest
import triton
import uninterpreted

from perf.__main__ import main
from perf.kernels import disassembly, yardstick
from perf.static import summary
from stn_triton import policy
from stn_triton.buckets import Bucket
from stn_triton.options import INPUT_DTYPES, MODES, PADDING_MODES, Options
from stn_triton.policy import CONFIG_KEYS


def static(*options, status=0):
    """``python -m perf static``, in another process: interpreted kernels cannot be compiled."""
    done = uninterpreted.python("-m", "perf", "static", *options)
    assert done.returncode == status, done.stderr
    return done


def check(*options, kernels):
    """Compile; returns rows whose kernels have the properties that all kernels should have."""
    rows = [json.loads(line) for line in static("--json", *options).stdout.splitlines()]
    assert {row["kernel"].split("/")[0] for row in rows} >= set(kernels)
    for row in rows:
        kind, is_wide = row["kernel"].split("/")[0], "/channels_last_16/" in row["kernel"]
        is_nvidia, is_variant = row["arch"].startswith("sm_"), "--variants" in options
        # Sums of second derivatives of antialiased bicubic fp64 images need more than all registers.
        if not (kind == "exact" and "bicubic" in row["kernel"] and "-antialias-tangent/" in row["kernel"]):
            assert not row["spills"], row
        assert (row["atomics"] > 0) == kind.startswith(("scatter", "exact", "largest")), row
        if "/" in row["kernel"]:  # others may add up in fp64
            assert (row["fp64"] > 0) == ("float64" in row["kernel"]), row
        if is_variant or not is_nvidia:
            continue
        assert row["stack"] <= 8, row  # the frame of a subroutine, which divides
        assert row.get("seconds", 0) <= 2 * yardstick.MOST_SECONDS, row
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
        check_counts(check("--workloads", "digits-28", "--arch", "sm_90", kernels=STEP), known)

    @pytest.mark.full
    def test_of_the_recorded_workloads(self, known):
        rows = check("--quick", kernels=(*STEP, "scatter", "scatter_input"))
        assert set(yardstick.measures(rows)) == set(known)
        check_counts(rows, known)

    @pytest.mark.full
    @pytest.mark.parametrize("arch", ["sm_80", "sm_100", "gfx942"])
    def test_for_other_gpus(self, arch):
        workloads = ["digits-28", "features-64-channels-last"][: 2 if arch == "sm_100" else 1]
        rows = check("--workloads", *workloads, "--arch", arch, kernels=STEP)
        assert {row["arch"] for row in rows} == {arch}

    @pytest.mark.full
    def test_of_some_variants(self):
        check("--variants", "--every", "151", "--arch", "sm_90", kernels=["forward", "scatter"])


@pytest.mark.full
def test_every_variant_is_compiled():
    code = """
from perf.kernels import ahead, calls
names = set()
for call in calls.variants():
    ahead.compile_call(call.run, ("cuda", 90, 32), is_wanted=lambda b: names.add(b.name() if b else ""))
print(*names)
"""
    done = uninterpreted.python("-c", code)
    assert done.returncode == 0, done.stderr
    names = [name.split("/") for name in done.stdout.split()]
    assert set(existing()) <= {(name[0], name[1]) for name in names}
    assert {name[3] for name in names} == {str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES}


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


class TestYardstick:
    def test_faults(self):
        fine = {"per_element": 10.0, "spills": 0, "seconds": 2.9}
        known = {name: {"per_element": 10.0, "enlarged": 8.0} for name in ("w a", "w b", "w d", "other e")}
        now = {
            "w a": fine | {"per_element": 10.4, "enlarged": 9.0},
            "w b": fine | {"per_element": 10.6, "spills": 2, "enlarged": 8.0},
            "w c": fine | {"seconds": 3.2},
        }
        assert list(yardstick.faults(now, known)) == [
            "w c: not recorded",
            "w a: 9.00 instructions enlarged, recorded are 8.00",
            "w b: 10.60 instructions per element, recorded are 10.00",
            "w d: 10.00 instructions per element are recorded, none counted now",
            "w d: 8.00 instructions enlarged are recorded, none counted now",
            "w b: spills 2 registers",
            "w c: takes 3.2 s to compile, expected at most 3",
        ]

    def test_measures_are_of_the_recorded_workloads_for_one_gpu(self):
        row = {"arch": "sm_90", "kernel": "theta/2d/nchw", "call": "digits-28", "seconds": 1.0, "loads": 3}
        rows = [row, {**row, "arch": "sm_80", "seconds": 2.0}, {**row, "call": "size-16"}]
        assert yardstick.measures(rows) == {"digits-28 theta": {"seconds": 1.0}}

    def test_counts(self):
        bucket = Bucket("forward", "2d-bilinear-zeros", "nchw", "float32", 1, 64, 8)
        config = dict(zip(CONFIG_KEYS, (1, 1, 1, 4, 8, 1), strict=True))
        code = disassembly.Code(("LDG.E.64", "FADD") * 4, (), ())
        assert yardstick.counts(code, bucket, config, 1) == {"per_element": 2.0}  # of four taps
        gather = bucket._replace(kernel="backward", channels=64)
        nest = disassembly.Code(("FADD",) * 4, ((1, 3), (2, 2)), ())
        assert yardstick.counts(nest, gather, config, 1) == {
            "per_element": 1 + 3 * (2 + 3),
            "identity": 1 + 2 * (2 + 2),
            "enlarged": 1 + 4 * (2 + 4),
        }
        with pytest.raises(ValueError, match="expected 2 loops, each inside the one before"):
            yardstick.counts(code, gather, config, 1)
        assert yardstick.counts(code, bucket._replace(variant="2d-bicubic-zeros"), {}, 1) == {}

    def test_records_of_other_versions_and_workloads_stay(self, monkeypatch, tmp_path):
        monkeypatch.setattr(yardstick, "RECORD", tmp_path / "record.json")
        assert yardstick.recorded() == {}
        monkeypatch.setattr(triton, "__version__", "9.0")
        yardstick.record({"w a": {"per_element": 1.0}, "v a": {"per_element": 3.0}})
        monkeypatch.setattr(triton, "__version__", "8.0")
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
    @pytest.mark.full
    def test_all_block_sizes_as_a_table(self, tmp_path):
        path = tmp_path / "counted.csv"
        done = static("--space", "--workloads", "images-224-uint8", "--out", path)
        table = pd.read_csv(path)
        bucket = Bucket.parse(table["kernel"].iloc[0])
        assert table[list(CONFIG_KEYS)].to_dict("records") == policy.space(bucket)
        assert set(table["kernel"]) == {bucket.name()}
        assert table["per_element"].notna().all()
        assert len(done.stdout.splitlines()) == len(table) + 1

    @pytest.mark.parametrize(
        ("option", "said"),
        [(["--arch", "sm_12"], "--arch: unknown name 'sm_12'; available: sm_80, sm_90, sm_100, gfx942")],
    )
    def test_an_unknown_name_is_refused(self, option, said, monkeypatch, capsys):
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setenv("TRITON_CACHE_DIR", "restored")  # which the command sets
        with pytest.raises(SystemExit) as stop:
            main(["static", *option])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err

    def test_interpreted_kernels_cannot_be_compiled(self, monkeypatch, capsys):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit) as stop:
            main(["static"])
        assert stop.value.code == 2
        assert "TRITON_INTERPRET is set" in capsys.readouterr().err

    def test_a_call_that_does_not_compile_is_reported_and_a_failure(self, monkeypatch, capsys):
        row = {"call": "a call", "arch": "sm_80", "problem": "does not compile: why"}
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        monkeypatch.setenv("TRITON_CACHE_DIR", "restored")
        monkeypatch.setattr("perf.static._rows", lambda _: [row])
        assert main(["static", "--json", "--workloads", "digits-28", "--arch", "sm_80"]) == 1
        written = capsys.readouterr()
        assert json.loads(written.out) == row
        assert written.err.endswith("a call on sm_80: does not compile: why\n")

    def test_the_summary_has_the_worst_and_the_kernels_that_spill(self):
        row = {"arch": "sm_90", "call": "digits-28", "shared": 0, "occupancy": 0.25, "instructions": 9}
        row |= dict.fromkeys(("loads", "stores", "wide_loads", "wide_stores", "atomics", "spills"), 0)
        name = "forward/2d/nchw/float32/c4/p64/n8"
        rows = [
            {**row, "kernel": "forward/2d/nchw/float32/c1/p64/n8", "registers": 40, "seconds": 1},
            {**row, "kernel": name, "registers": 80, "spills": 3, "seconds": 4},
            {**row, "kernel": "reach_kernel", "registers": 30, "seconds": 1},
        ]
        text = summary(pd.DataFrame(rows))
        for part in ("25%", " 80 ", " reach_kernel ", f"spills 3: {name} on sm_90"):
            assert part in text
        assert f"takes 4.0 s to compile: {name} for sm_90" in text
        assert "per element" not in text
        rows[0]["per_element"] = 1.25
        assert "instructions that a thread executes per element" in summary(pd.DataFrame(rows))
