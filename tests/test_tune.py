"""``python -m perf tune``: what it chooses, writes, reports and refuses, on a GPU that is not there."""

import json
import statistics
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

pd = pytest.importorskip("pandas")

from imaginary_gpu import (  # noqa: E402, F401
    BEST,
    BUCKETS,
    CPU,
    FACTS,
    PLAIN,
    Clock,
    arguments,
    case,
    configs_of,
    cost,
    expected_best,
    gpu,
    nowhere_else_fixture,
    out_fixture,
    plan_of,
    rows_of,
    same,
    shipped_fixture,
)

from perf import UsageError, tune  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.measuring import workloads  # noqa: E402
from perf.tuning import fastest  # noqa: E402
from perf.tuning import state as tuning_state  # noqa: E402
from stn_triton import (  # noqa: E402
    autotuner,
    policy,
    tables,
    tuning,
)


class TestWholeRun:
    def test_writes_the_fastest_into_the_table_that_the_library_then_uses(self, out, shipped, monkeypatch):
        assert tune.tune(arguments(out), gpu(), plan_of(*BUCKETS)) == 0
        table = json.loads(shipped.read_text())
        assert (table["version"], table["device"]) == (tables.VERSION, FACTS["device"])
        assert table["kernels"] == tables.kernels()
        assert table["configs"] == BEST
        monkeypatch.setattr(tuning, "_device_name", lambda index: FACTS["device"])
        for bucket in BUCKETS:
            used = tuning.configuration(bucket, torch.device("cuda", 0), None)
            assert used == expected_best(bucket)

    def test_without_an_option_the_package_s_table_is_written(self, out):
        path = tune.table_path(arguments(out), gpu())
        assert path == tuning.SHIPPED / "imaginary-gpu-80-gb.json"
        assert tune.table_path(arguments(out, "--table", "mine.json"), gpu()) == Path("mine.json")

    def test_csv_has_a_row_for_each_configuration(self, out):
        tune.tune(arguments(out), gpu(), plan_of(*BUCKETS))
        table = rows_of(out)
        assert list(table.columns) == tuning_state.COLUMNS
        for bucket in BUCKETS:
            rows = table[table["bucket"] == bucket.name()]
            found = rows[list(policy.CONFIG_KEYS)].to_dict("records")
            assert found == fastest.FULL.configs_of(bucket)
            assert [tuning_state.config_of(row) for _, row in rows[rows["is_best"]].iterrows()] == [
                expected_best(bucket)
            ]
            assert rows["is_default"].tolist() == [True] + [False] * (len(rows) - 1)
            assert rows["median_ms"].tolist() == pytest.approx([cost(bucket, config) for config in found])
            assert (rows["q20_ms"] <= rows["median_ms"]).all()
            assert set(rows["kernel"]) == {bucket.kernel}
            assert set(rows["planes"]) == {bucket.planes}
        assert (table["status"] == "ok").all()
        assert set(table["device"]) == {FACTS["device"]}
        assert set(table["commit"]) == {FACTS["commit"]}

    def test_gains_are_those_of_the_medians(self, out, capsys):
        tune.tune(arguments(out, "--json"), gpu(), plan_of(*BUCKETS))
        found = json.loads(capsys.readouterr().out)
        expected = {
            bucket.name(): cost(bucket, policy.default(bucket)) / cost(bucket, expected_best(bucket))
            for bucket in BUCKETS
        }
        assert {row["bucket"]: row["gain"] for row in found["buckets"]} == pytest.approx(expected)
        assert found["geometric_mean"] == pytest.approx(statistics.geometric_mean(expected.values()))
        assert found["default_best"] == 1
        assert {row["bucket"]: row["config"] for row in found["buckets"]} == BEST
        assert found["device"] == FACTS["device"]
        assert found["problems"] == []

    def test_the_text_says_what_was_gained(self, out, capsys, shipped):
        def halves(bucket, config):
            return 1.0 if config != policy.default(bucket) else 4.0 if bucket.kernel == "forward" else 1.0

        tune.tune(arguments(out), gpu(Clock(halves)), plan_of(*BUCKETS[:2]))
        printed = capsys.readouterr()
        (line,) = [line for line in printed.out.splitlines() if line.startswith(BUCKETS[0].name())]
        assert line.split()[1:4] == ["4.0000", "1.0000", "4.00x"]
        assert "gain over the default: 2.000x, the geometric mean over buckets (2)" in printed.out
        assert "buckets where the default was the best, or as good within noise: 1" in printed.out
        assert f"written: {shipped}, buckets in it from here: 2" in printed.out
        tried = {bucket: fastest.FULL.configs_of(bucket) for bucket in BUCKETS[:2]}
        configs = sum(map(len, tried.values()))
        duration = tune._duration(sum(sum(fastest.expected_seconds(*item)) for item in tried.items()))
        assert f"to tune: 2 buckets, {configs} configurations, about {duration}, nearly all" in printed.err
        assert f"1 of 2: {BUCKETS[0].name()}" in printed.err
        assert "\r" not in printed.err

    def test_quick_writes_what_nobody_reads_and_a_full_run_does_not_count_it_as_done(self, out, shipped):
        assert tune.tune(arguments(out, "--quick"), gpu(), plan_of(BUCKETS[1])) == 0
        assert 2 <= len(rows_of(out)) <= fastest.QUICK.configs < len(fastest.FULL.configs_of(BUCKETS[1]))
        assert not shipped.exists()
        assert set(configs_of(out / shipped.name)) == {BUCKETS[1].name()}
        assert tune.tune(arguments(out), gpu(), plan_of(BUCKETS[1])) == 0
        assert configs_of(shipped) == {BUCKETS[1].name(): BEST[BUCKETS[1].name()]}
        clock = Clock(cost)
        assert tune.tune(arguments(out, "--quick"), gpu(clock), plan_of(BUCKETS[1])) == 0
        assert not clock.timed

    def test_entries_of_other_buckets_stay_unless_they_are_for_older_kernels(self, out, shipped, monkeypatch):
        tune.tune(arguments(out), gpu(), plan_of(BUCKETS[0]))
        tune.tune(arguments(out / "other"), gpu(), plan_of(BUCKETS[1]))
        assert set(configs_of(shipped)) == {BUCKETS[0].name(), BUCKETS[1].name()}
        monkeypatch.setattr(tables, "kernels", lambda: "newer")
        tune.tune(arguments(out / "newer"), gpu(), plan_of(BUCKETS[2]))
        assert set(configs_of(shipped)) == {BUCKETS[2].name()}


class TestChoice:
    def timed(self, bucket, change):
        """Quantiles of the default, 1 ms, and of the others, as changed."""
        default, *others = policy.space(bucket)
        return default, [
            (default, (0.99, 1.0, 1.01)),
            *((config, change(i)) for i, config in enumerate(others)),
        ]

    @pytest.mark.parametrize(
        ("times", "wins"),
        [
            ((0.5, 0.5, 0.5), True),
            ((0.96, 0.97, 0.98), True),
            ((0.985, 0.985, 0.985), False),  # 1.5 %
            ((0.8, 0.9, 1.0), False),  # its samples spread into the default's
            ((1.0, 1.0, 1.0), False),
            ((2.0, 2.0, 2.0), False),
        ],
    )
    def test_the_default_wins_ties_within_noise(self, times, wins):
        default, timed = self.timed(BUCKETS[1], lambda i: times if i == 4 else (3.0, 3.0, 3.0))
        assert autotuner.fastest(default, timed) == (timed[5][0] if wins else default)

    def test_the_fastest_of_those_that_are_clearly_faster_wins(self):
        """Not the one with the least median of all, if it is so noisy that it may be no better."""
        default, timed = self.timed(BUCKETS[1], lambda i: [(0.4, 0.6, 1.2), (0.69, 0.7, 0.71)][i % 2])
        assert autotuner.fastest(default, timed) == timed[2][0]

    def test_without_a_time_of_the_default_the_fastest_wins(self):
        default, timed = self.timed(BUCKETS[1], lambda i: (i + 2.0,) * 3)
        assert autotuner.fastest(default, timed[1:]) == timed[1][0]
        assert autotuner.fastest(default, []) == default

    def test_the_best_few_are_timed_again_in_turns_and_the_hopeless_are_not(self):
        bucket = BUCKETS[1]
        calls = []

        class Recorder(Clock):
            def __call__(self, launch, config, ms):
                calls.append((config, ms))
                return super().__call__(launch, config, ms)

        effort = fastest.FULL
        results = fastest.search(bucket, case(bucket).make(CPU), gpu(Recorder(cost)), effort)
        space = effort.configs_of(bucket)
        first, second = calls[: len(space)], calls[len(space) :]
        assert first == [(config, effort.first_ms) for config in space]
        finalists = [config for config, _ in second[: 1 + effort.finalists]]
        ranked = sorted(space[1:], key=lambda config: cost(bucket, config))
        assert finalists == [space[0], *ranked[: effort.finalists]]
        assert second == [(config, effort.round_ms) for config in finalists] * effort.rounds
        assert [result.config for result in results if result.is_best] == [ranked[0]]

    def test_a_tie_leaves_the_default_in_the_table(self, out, shipped, capsys):
        tune.tune(arguments(out), gpu(Clock(lambda bucket, config: 1.0)), plan_of(*BUCKETS))
        assert configs_of(shipped) == {bucket.name(): policy.default(bucket) for bucket in BUCKETS}
        assert "as good within noise: 3" in capsys.readouterr().out


class TestFaults:
    def test_a_wrong_configuration_is_reported_and_never_chosen(self, out, shipped, capsys):
        bucket = BUCKETS[1]
        best = expected_best(bucket)

        def result(bucket, config):
            return same(bucket, config) * (2 if config == best else 1)

        assert tune.tune(arguments(out), gpu(), plan_of(bucket, result=result)) == 1
        assert configs_of(shipped)[bucket.name()] != best
        rows = rows_of(out)
        (wrong,) = rows[rows["status"] != "ok"].to_dict("records")
        assert tuning_state.config_of(wrong) == best
        assert wrong["status"] == "wrong: result 0 is off by 5, allowed 0.0005"
        assert pd.isna(wrong["median_ms"])
        assert f"{bucket.name()} with BLOCK_C={best['BLOCK_C']} " in capsys.readouterr().err
        assert (
            tune.tune(arguments(out), gpu(), plan_of(bucket, result=result)) == 1
        )  # also from what was kept

    def test_a_pixel_that_is_not_written_is_wrong(self):
        """Though the memory may still have what the default wrote there."""
        fresh = []

        def result(bucket, config):
            tensor = torch.empty(4)
            fresh.append(tensor.isnan().all().item())
            tensor[: 4 if config == policy.default(bucket) else 3] = 1
            return tensor

        results = fastest.search(BUCKETS[0], case(BUCKETS[0], result).make(CPU), gpu(), fastest.FULL)
        assert all(fresh)
        assert all(result.status.startswith("wrong: result 0 is off by nan") for result in results[1:])
        assert not torch.are_deterministic_algorithms_enabled()

    def test_one_that_does_not_compile_is_a_row_with_its_reason(self, out, shipped, capsys):
        bucket = BUCKETS[1]

        def result(bucket, config):
            if config == fastest.FULL.configs_of(bucket)[2]:
                raise RuntimeError("ptxas\ndied")
            return same(bucket, config)

        assert tune.tune(arguments(out), gpu(), plan_of(bucket, result=result)) == 0
        assert rows_of(out)["status"].tolist().count("RuntimeError: ptxas died") == 1
        assert "configurations that did not run: 1; " in capsys.readouterr().out
        assert configs_of(shipped) == {bucket.name(): BEST[bucket.name()]}

    def test_one_that_is_not_compiled_in_time_is_a_row_and_counts_as_tried(self, out, shipped, monkeypatch):
        """As one that does not compile; neither is launched."""
        bucket, asked = BUCKETS[1], []
        late = TimeoutError("not compiled in time")

        def ahead(configs, launch, seconds):
            asked.append((configs, seconds))
            return [None, late, *[None] * (len(configs) - 3), ValueError("no such warps")]

        monkeypatch.setattr(autotuner, "compile_ahead", ahead)
        clock = Clock(cost)
        assert tune.tune(arguments(out), gpu(clock), plan_of(bucket)) == 0
        configs = fastest.FULL.configs_of(bucket)
        assert asked == [(configs[1:], 30)]
        status = rows_of(out)["status"].tolist()
        failed = [f"TimeoutError: {late}", "ValueError: no such warps"]
        assert status == ["ok", "ok", failed[0], *["ok"] * (len(configs) - 4), failed[1]]
        again = Clock(cost)
        assert tune.tune(arguments(out), gpu(again), plan_of(bucket)) == 0
        assert not again.timed

    def test_a_bucket_that_does_not_run_leaves_the_others_and_is_tried_again(self, out, shipped, capsys):
        def broken(bucket, config):
            raise torch.OutOfMemoryError("no memory")

        plan = {**plan_of(BUCKETS[0], result=broken), **plan_of(BUCKETS[1])}
        assert tune.tune(arguments(out), gpu(), plan) == 1
        assert (
            f"failed: {BUCKETS[0].name()} by imagined: OutOfMemoryError: no memory" in capsys.readouterr().err
        )
        assert set(configs_of(shipped)) == {BUCKETS[1].name()}
        assert "OutOfMemoryError: no memory" in set(rows_of(out)["status"])
        assert tune.tune(arguments(out), gpu(), plan_of(*BUCKETS[:2])) == 0
        assert set(configs_of(shipped)) == {BUCKETS[0].name(), BUCKETS[1].name()}

    def test_a_call_that_does_not_launch_its_bucket_fails(self, out, capsys):
        plan = {BUCKETS[0]: case(BUCKETS[1])}
        assert tune.tune(arguments(out), gpu(), plan) == 1
        assert f"the call launches no {BUCKETS[0].name()}" in capsys.readouterr().err

    def test_a_launch_that_breaks_the_gpu_ends_the_run_and_is_not_tried_again(self, out, shipped, capsys):
        broken, *others = BUCKETS
        alive = [True]

        def result(bucket, config):
            if config == fastest.FULL.configs_of(bucket)[1]:
                alive[0] = False
                raise RuntimeError("illegal memory access")
            return same(bucket, config)

        plan = {**plan_of(broken, result=result), **plan_of(*others)}
        assert tune.tune(arguments(out), gpu(alive=lambda device: alive[0]), plan) == 1
        said = capsys.readouterr().err
        assert (
            f"lost the GPU: RuntimeError: with {fastest.named(fastest.FULL.configs_of(broken)[1])}: " in said
        )
        assert "RuntimeError: illegal memory access\n" in said
        assert "run again to go on without that bucket" in said
        assert not shipped.exists()
        clock = Clock(cost)
        assert tune.tune(arguments(out), gpu(clock), plan) == 1
        assert f"{broken.name()} with " in capsys.readouterr().err
        assert set(clock.timed) == set(others)
        assert set(configs_of(shipped)) == {bucket.name() for bucket in others}

    @pytest.mark.parametrize(
        ("actual", "is_right"),
        [
            (torch.tensor([1.0, 100.0]), True),
            (torch.tensor([1.0 + 5e-3, 100.0]), True),
            (torch.tensor([1.0 + 5e-2, 100.0]), False),
            (torch.tensor([1.0, float("nan")]), False),
            (torch.tensor([1.0, 100.0, 0.0]), False),
            (torch.tensor([1.0, 100.0]).double(), False),
        ],
    )
    def test_difference(self, actual, is_right):
        assert (fastest.difference([actual], [torch.tensor([1.0, 100.0])]) == "") == is_right

    @pytest.mark.parametrize(
        ("dtype", "off", "is_right"),
        [
            (torch.bfloat16, 0.5, True),  # a step of its values
            (torch.bfloat16, 2.0, False),
            (torch.float64, 1e-9, True),
            (torch.float64, 1e-7, False),
            (torch.uint8, 1, True),  # a tie may be rounded either way
            (torch.uint8, 2, False),
        ],
    )
    def test_difference_by_dtype(self, dtype, off, is_right):
        expected = torch.full((2,), 100, dtype=dtype)
        assert (fastest.difference([expected + off], [expected]) == "") == is_right


class TestTimeLeft:
    """BUCKETS[1] is one whose gather may list output pixels, which takes long to compile."""

    def test_a_gather_that_lists_pixels_takes_longer_to_compile(self):
        configs = policy.space(BUCKETS[1])
        seconds = {config["STEPS_C"] > 1: fastest.seconds_of(BUCKETS[1], config) for config in configs}
        assert seconds[True] == 3 * seconds[False]

    def test_the_default_takes_its_time_and_the_others_share_the_cores_until_a_limit(self, monkeypatch):
        bucket = BUCKETS[1]
        configs = fastest.FULL.configs_of(bucket)
        first, *others = (fastest.seconds_of(bucket, config) for config in configs)
        monkeypatch.setattr(autotuner, "SECONDS", 5)
        for cores, expected in ((1, 5), (10**6, 0), (20, sum(others) / 20)):
            monkeypatch.setattr(fastest.os, "cpu_count", lambda cores=cores: cores)
            default, *rest = fastest.expected_seconds(bucket, configs)
            assert default == first
            assert sum(rest) == pytest.approx(expected, abs=0.01)
        assert sum(others) / 20 < 5 < sum(others)
        assert fastest.expected_seconds(bucket, configs[:1]) == [first]

    def test_what_is_left_is_told_by_the_pace_so_far(self, monkeypatch, capsys):
        """Twice as slow as thought: what was to take 30 s will take 60."""
        now = [1000.0]
        monkeypatch.setattr(tune, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(tune, "_SECONDS_BETWEEN_LINES", 10)
        with tune.Progress({BUCKETS[0]: [1.0, 9.0], BUCKETS[1]: [30.0]}) as progress:
            progress.start(BUCKETS[0])
            for _ in range(2):
                progress.step()
            now[0] += 20
            progress.start(BUCKETS[1])
        assert capsys.readouterr().err.splitlines() == [
            f"1 of 2: {BUCKETS[0].name()}, about 40 s left",
            f"2 of 2: {BUCKETS[1].name()}, about 60 s left",
        ]


class TestCommandLine:
    def test_without_a_gpu_there_is_nothing_to_tune(self, out, capsys, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert main(["tune", "--out", str(out)]) == 0
        printed = capsys.readouterr()
        assert "nothing to tune" in printed.out
        assert "torch.cuda finds no GPU here" in printed.out
        assert main(["tune", "--out", str(out), "--json", "--quick"]) == 0
        assert json.loads(capsys.readouterr().out)["buckets"] == []
        assert not out.exists()

    @pytest.mark.parametrize(
        ("options", "named"),
        [
            (["--device", "cuda:99"], "cpu ("),
            (["--workloads", "nothing"], "digits-28"),
            (["--workloads", "digits-28", "--only"], "--only: expected one argument"),
        ],
    )
    def test_a_wrong_argument_exits_2_and_says_what_there_is(self, out, capsys, options, named):
        with pytest.raises(SystemExit) as stop:
            main(["tune", "--out", str(out), *options])
        assert stop.value.code == 2
        assert named in capsys.readouterr().err

    def test_a_pattern_chooses_buckets(self):
        chosen = workloads.choose(None, torch.device("cuda"))
        args = arguments("out", "--only", "*/bfloat16/*")
        plan, _ = tune._plan(args, chosen)
        assert {bucket.dtype for bucket in plan} == {"bfloat16"}
        with pytest.raises(
            UsageError, match=r"--only: '\*/int8/\*' matches none of \d+ buckets, such as forward/"
        ):
            tune._plan(arguments("out", "--only", "*/int8/*"), chosen)

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [(5, "5 s"), (600, "10 min"), (3 * 3600, "3.0 hours"), (9_000_000, "104 days")],
    )
    def test_durations(self, seconds, text):
        assert tune._duration(seconds) == text
