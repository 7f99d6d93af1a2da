"""``python -m perf tune``: what it chooses, writes, reports and refuses; on a GPU that may not be there."""

import json
from dataclasses import replace

import pytest
import torch

pd = pytest.importorskip("pandas")

from imaginary_gpu import (  # noqa: E402, F401
    BEST,
    BUCKETS,
    CPU,
    FACTS,
    Clock,
    Launching,
    arguments,
    call_of,
    configs,
    configs_of,
    cost,
    out_fixture,
    plan_of,
    rows_of,
    run,
    shipped_fixture,
)

from perf import UsageError, tune  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.measuring import workloads  # noqa: E402
from perf.tuning import fastest, launches  # noqa: E402
from stn_triton import autotuner, policy, tables, tuning  # noqa: E402

NAMES = [bucket.name() for bucket in BUCKETS]


class TestPlans:
    def test_workloads_lead_to_buckets(self):
        first, last, crops, whole_numbers = (
            launches.of_workloads([workloads.WORKLOADS[name]])
            for name in ("digits-28", "features-64-channels-last", "crops-7", "images-224-uint8")
        )
        names = {bucket.name() for bucket in (*first, *last)}
        assert "backward/2d-bilinear-zeros/nchw/float32/c1/p4096/n512" in names
        assert "forward/2d-bilinear-zeros/channels_last_16/float32/c64/p4096/n4096" in names
        assert {bucket.kernel for bucket in crops} == {"forward", "backward_input", "theta"}
        (gather,) = [bucket for bucket in crops if bucket.kernel == "backward_input"]
        assert "many" in gather.variant.split("-")
        assert [(bucket.kernel, bucket.dtype) for bucket in whole_numbers] == [("forward", "uint8")]

    def test_the_call_of_each_bucket_launches_it_while_it_is_tuned(self, monkeypatch):
        """Then fresh memory is filled, for which PyTorch's deterministic mode is on."""
        chosen = list(workloads.WORKLOADS.values())
        plan = launches.of_workloads(chosen)
        made = {workload.name: launches.dry(workload) for workload in chosen}
        monkeypatch.setattr(workloads, "make", lambda workload, device: made[workload.name])
        assert {bucket.kernel for bucket in plan} >= {"forward", "backward", "scatter", "scatter_input"}
        for bucket, make in plan.items():
            with launches.OntoKernels():
                fastest._with(bucket, policy.default(bucket), make(launches.META))


class TestWholeRun:
    def test_writes_the_fastest_into_the_table_that_the_library_then_uses(self, out, shipped, monkeypatch):
        assert run(out, *BUCKETS) == set(BUCKETS)
        table = tables.read(shipped, FACTS["device"])
        assert (table.kernels, table.configs) == (tables.kernels(), BEST)
        monkeypatch.setattr(tuning, "_device_name", lambda index: FACTS["device"])
        for bucket in BUCKETS:
            assert tuning.configuration(bucket, torch.device("cuda", 0), None) == BEST[bucket.name()]
        for name, rows in rows_of(out).groupby("bucket"):
            bucket = BUCKETS[NAMES.index(name)]
            found = rows[list(policy.CONFIG_KEYS)].to_dict("records")
            assert found == configs(bucket)
            assert rows["is_best"].tolist() == [config == BEST[name] for config in found]
            assert rows["is_default"].tolist() == [True] + [False] * (len(rows) - 1)
            assert rows["median_ms"].tolist() == pytest.approx([cost(bucket, config) for config in found])
            assert set(rows["status"]) == {"ok"}

    def test_reports_gains_also_of_an_earlier_run(self, out, capsys, shipped):
        expected = [cost(b, policy.default(b)) / cost(b, BEST[b.name()]) for b in BUCKETS]
        run(out, *BUCKETS, options=["--json"])
        found = json.loads(capsys.readouterr().out)
        assert [row["gain"] for row in found["buckets"]] == pytest.approx(expected)
        assert {row["bucket"]: fastest.config_of(row) for row in found["buckets"]} == BEST
        assert (found["device"], found["problems"]) == (FACTS["device"], [])
        assert not run(out, *BUCKETS)
        printed = capsys.readouterr()
        mean = (expected[0] * expected[1]) ** (1 / 3)
        assert f"gain over the default: {mean:.3f}x, the geometric mean over buckets (3)" in printed.out
        assert "the default was the best, or as good within noise: 1" in printed.out
        assert f"written: {shipped}, buckets in it from here: 3" in printed.out
        assert f"to tune: 0 of 3 buckets; a run that is interrupted goes on from {out}" in printed.err

    def test_quick_has_files_of_its_own_that_neither_the_library_nor_a_full_run_reads(self, out, shipped):
        run(out, BUCKETS[1], options=["--quick"])
        assert 2 <= len(rows_of(out, "tuning-quick.csv")) <= tune.QUICK_CONFIGS < len(configs(BUCKETS[1]))
        assert not shipped.exists()
        assert set(configs_of(out / shipped.name)) == {NAMES[1]}
        run(out, BUCKETS[1])
        assert configs_of(shipped) == {NAMES[1]: BEST[NAMES[1]]}

    def test_entries_of_other_buckets_stay_unless_they_are_for_older_kernels(self, out, shipped, monkeypatch):
        run(out, BUCKETS[0])
        run(out / "other", BUCKETS[1])
        assert set(configs_of(shipped)) == set(NAMES[:2])
        monkeypatch.setattr(tables, "kernels", lambda: "newer")
        run(out / "newer", BUCKETS[2])
        assert set(configs_of(shipped)) == {NAMES[2]}


def test_the_best_few_are_timed_again_in_turns(monkeypatch):
    bucket, clock = BUCKETS[1], Clock()
    monkeypatch.setattr(fastest, "milliseconds", clock)
    space = configs(bucket)
    rows = fastest.search(bucket, call_of(bucket)(CPU), space, CPU)
    assert clock.calls[: len(space)] == [(config, fastest.FIRST_MS) for config in space]
    ranked = sorted(space[1:], key=lambda config: cost(bucket, config))
    finalists = [space[0], *ranked[: fastest.FINALISTS]]
    assert clock.calls[len(space) :] == [(c, fastest.ROUND_MS) for c in finalists] * fastest.ROUNDS
    assert [row["is_best"] for row in rows] == [config == ranked[0] for config in space]


class TestFaults:
    def test_a_wrong_configuration_is_reported_and_never_chosen(self, out, shipped, capsys):
        """It leaves a pixel out, though the memory may still have what the default wrote there."""
        bucket, best = BUCKETS[1], BEST[NAMES[1]]

        def result(bucket, config):
            tensor = torch.empty(4)
            tensor[: 3 if config == best else 4] = 1
            return tensor

        status = "FAILED: result 0 is off by nan, allowed 0.0001"
        for _ in range(2):  # the second time from what was kept
            run(out, plan=plan_of(bucket, result=result), status=1)
            assert f"{bucket.name()} with {fastest.named(best)}: {status}" in capsys.readouterr().err
        assert configs_of(shipped)[bucket.name()] != best
        rows = rows_of(out)
        assert rows["status"].tolist() == ["ok"] * (len(rows) - 1) + [status]
        assert pd.isna(rows["median_ms"].iloc[-1])
        assert not torch.are_deterministic_algorithms_enabled()

    def test_one_that_does_not_compile_is_a_row_with_its_reason(self, out, shipped, capsys, monkeypatch):
        late = TimeoutError("not compiled in time")
        monkeypatch.setattr(autotuner, "compile_ahead", lambda c, *_: [None, late, *[None] * (len(c) - 2)])
        run(out, BUCKETS[1])
        failed = ["ok", "TimeoutError: not compiled in time", *["ok"] * (len(configs(BUCKETS[1])) - 2)]
        assert rows_of(out)["status"].tolist() == failed
        assert "configurations that did not run: 1; " in capsys.readouterr().out
        assert configs_of(shipped) == {NAMES[1]: BEST[NAMES[1]]}
        assert not run(out, BUCKETS[1])

    def test_a_bucket_that_does_not_run_leaves_the_others_and_is_tried_again(self, out, shipped, capsys):
        def broken(bucket, config):
            raise torch.OutOfMemoryError("no memory")

        plan = plan_of(BUCKETS[0], result=broken) | plan_of(*BUCKETS[1:])
        plan[BUCKETS[2]] = call_of(BUCKETS[1])
        run(out, plan=plan, status=1)
        said = capsys.readouterr().err
        assert f"failed: {NAMES[0]}: OutOfMemoryError: no memory" in said
        assert f"the call launches no {NAMES[2]}" in said
        assert set(configs_of(shipped)) == {NAMES[1]}
        assert run(out, *BUCKETS) == {BUCKETS[0], BUCKETS[2]}
        assert configs_of(shipped) == BEST

    def test_a_launch_that_breaks_the_gpu_ends_the_run_once(self, out, shipped, capsys, monkeypatch):
        alive = [True]

        def result(bucket, config):
            if config == configs(bucket)[1]:
                alive[0] = False
                raise RuntimeError("illegal memory access")
            return torch.arange(6.0)

        plan = plan_of(BUCKETS[0], result=result) | plan_of(*BUCKETS[1:])
        monkeypatch.setattr(tune.stopwatch, "is_alive", lambda device: alive[0])
        run(out, plan=plan, status=1)
        said = capsys.readouterr().err
        assert "lost the GPU: RuntimeError: with BLOCK_C=" in said
        assert "run again to go on without that bucket" in said
        assert run(out, plan=plan, status=1) == set(BUCKETS[1:])
        assert f"{NAMES[0]} with " in capsys.readouterr().err
        assert set(configs_of(shipped)) == set(NAMES[1:])

    @pytest.mark.parametrize(
        ("dtype", "off", "is_right"),
        [
            (torch.float32, 5e-3, True),
            (torch.float32, 5e-2, False),
            (torch.float32, float("nan"), False),
            (torch.bfloat16, 0.5, True),  # a step of its values
            (torch.bfloat16, 2.0, False),
            (torch.float64, 1e-9, True),
            (torch.float64, 1e-7, False),
            (torch.uint8, 1, True),  # a tie may be rounded either way
            (torch.uint8, 2, False),
        ],
    )
    def test_difference(self, dtype, off, is_right):
        expected = torch.full((2,), 100, dtype=dtype)
        empty = expected[:0]
        assert (fastest.difference([empty, expected + off], [empty, expected]) == "") == is_right


class TestInterruption:
    def test_at_any_launch_the_rest_is_tuned_later_with_the_same_result(self, out, shipped):
        whole = Clock()
        run(out / "whole", *BUCKETS, clock=whole)
        ends = [max(i for i, b in enumerate(whole.timed, 1) if b == bucket) for bucket in BUCKETS]
        for stop in (0, ends[0] - 1, ends[0], ends[1] + 7, ends[2] - 1):
            shipped.unlink()
            with pytest.raises(KeyboardInterrupt):
                run(out / str(stop), *BUCKETS, clock=Clock(stop))
            done = sum(end <= stop for end in ends)
            assert (len(configs_of(shipped)) if done else shipped.exists()) == done
            shipped.unlink(missing_ok=True)  # it is written again from what is kept
            assert run(out / str(stop), *BUCKETS) == set(BUCKETS[done:])
            assert configs_of(shipped) == BEST
            pd.testing.assert_frame_equal(rows_of(out / str(stop)), rows_of(out / "whole"))

    @pytest.mark.parametrize(
        ("written", "changed", "said"),
        [
            (FACTS["device"], "Other GPU", "measured with device Other GPU, this is Imaginary GPU"),
            (FACTS["torch"], "2.12.0", "measured with torch 2.12.0, this is 2.13.0.cu128"),
            (FACTS["triton"], "3.6.0", "measured with triton 3.6.0"),
            (tables.kernels(), "older", "measured with kernels older"),
            (",is_best", ",is_worst", "other columns"),
            (",True,", ",perhaps,", "ValueError"),
            (",ok,", "", "ValueError"),  # cut off
        ],
    )
    def test_a_file_of_another_machine_or_a_damaged_one_is_refused(self, out, written, changed, said):
        run(out, BUCKETS[0])
        path = out / "tuning.csv"
        spoilt = path.read_text().replace(written, changed)
        path.write_text(spoilt)
        with pytest.raises(UsageError, match=f"--out: .*tuning.csv: .*{said}.*; --fresh begins again"):
            run(out, BUCKETS[0])
        assert path.read_text() == spoilt
        assert run(out, BUCKETS[0], options=["--fresh"])
        assert not run(out, BUCKETS[0])


class TestCommandLine:
    def test_a_pattern_chooses_buckets(self):
        chosen = workloads.choose(["images-224", "images-224-bf16"], torch.device("cuda"))
        plan = tune.plan_of(arguments("out", "--only", "*/bfloat16/*"), chosen)
        assert {bucket.dtype for bucket in plan} == {"bfloat16"}
        assert len(tune.plan_of(arguments("out", "--quick"), chosen)) == tune.QUICK_BUCKETS
        with pytest.raises(UsageError, match=r"--only: \['\*/int8/\*'\] matches none of \d+ buckets"):
            tune.plan_of(arguments("out", "--only", "*/int8/*"), chosen)

    def test_files_that_must_not_or_cannot_be_written_are_refused_first(self, out, tmp_path):
        path, clock = tmp_path / "notes.txt", Clock()
        path.write_text("do not lose this")
        options = ["--table", str(path)]
        with pytest.raises(UsageError, match=f"--table: {path} is not overwritten: not JSON"):
            run(out, *BUCKETS, options=options, clock=clock)
        assert path.read_text() == "do not lose this"
        path.unlink()
        out.touch()
        with pytest.raises(UsageError, match=r"out cannot be written: .*; expected --out and --table in"):
            run(out, *BUCKETS, options=options, clock=clock)
        assert not clock.timed
        out.unlink()
        run(out, *BUCKETS, options=options)
        assert configs_of(path) == BEST
        with pytest.raises(UsageError, match="a table of 'Imaginary GPU"):
            run(out, *BUCKETS, options=options, device="Other GPU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="kernels are not interpreted where there is a GPU")
@pytest.mark.full
@pytest.mark.parametrize("channels", [1, 4])
def test_each_configuration_of_interpreted_kernels_through_autograd(out, shipped, channels):
    plan = launches.of_workloads([replace(workloads.WORKLOADS["digits-28"], shape=(2, channels, 7, 6))])
    assert {bucket.kernel for bucket in plan} == {"forward", "backward", "backward_input", "theta"}
    with launches.OntoKernels():
        run(out, clock=Launching(), plan=plan)
    assert (rows_of(out)["status"] == "ok").all()
    assert set(configs_of(shipped)) == {bucket.name() for bucket in plan}


@pytest.mark.gpu
def test_a_quick_run_on_a_gpu(out, capsys):
    assert main(["tune", "--quick", "--out", str(out), "--json"]) == 0, capsys.readouterr().err
    found = json.loads(capsys.readouterr().out)
    kernels = {row["bucket"].split("/")[0] for row in found["buckets"]}
    assert kernels == {"forward", "backward", "backward_input", "theta"}
    name = torch.cuda.get_device_name()
    table = tables.read(out / f"{tables.slug(name)}.json", name)
    assert len(found["buckets"]) == len(table.parsed(tuning.checked)[0]) == tune.QUICK_BUCKETS
    rows = rows_of(out, "tuning-quick.csv")
    assert set(rows["status"]) == {"ok"}
    assert (rows["median_ms"] > 0).all()
