"""``python -m perf tune``: what is left of a run that ends early, and of a disk that refuses."""

import itertools
import json
import multiprocessing
import os
import signal

import pytest

pd = pytest.importorskip("pandas")

import torch  # noqa: E402
from imaginary_gpu import (  # noqa: E402, F401
    BEST,
    BUCKETS,
    CPU,
    FACTS,
    Clock,
    arguments,
    case,
    configs_of,
    cost,
    count_timed,
    expected_best,
    gpu,
    nowhere_else_fixture,
    out_fixture,
    plan_of,
    rows_of,
    shipped_fixture,
)

from perf import UsageError, tune  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.tuning import fastest  # noqa: E402
from perf.tuning import state as tuning_state  # noqa: E402
from stn_triton import policy, tables  # noqa: E402


class TestInterruption:
    def test_at_any_launch_the_rest_is_tuned_later_with_the_same_result(self, out, shipped, monkeypatch):
        space = policy.space
        monkeypatch.setattr(policy, "space", lambda bucket: space(bucket)[:5])
        best = {bucket.name(): expected_best(bucket) for bucket in BUCKETS}
        tune.tune(arguments(out / "whole"), gpu(), plan_of(*BUCKETS))
        whole = rows_of(out / "whole")
        ends = list(itertools.accumulate(map(count_timed, BUCKETS)))
        for stop in sorted({*range(0, ends[-1], ends[-1] // 20), *ends[:-1], *(end - 1 for end in ends)}):
            shipped.unlink(missing_ok=True)
            here = out / str(stop)
            with pytest.raises(KeyboardInterrupt):
                tune.tune(arguments(here), gpu(Clock(cost, stop)), plan_of(*BUCKETS))
            done = sum(end <= stop for end in ends)
            assert (len(configs_of(shipped)) if done else shipped.exists()) == done
            clock = Clock(cost)
            assert tune.tune(arguments(here), gpu(clock), plan_of(*BUCKETS)) == 0
            assert set(clock.timed) == set(BUCKETS[done:])
            assert configs_of(shipped) == best
            pd.testing.assert_frame_equal(rows_of(here), whole)

    def test_ctrl_c_exits_130_and_says_what_is_kept(self, out, monkeypatch, capsys):
        device = torch.device("cuda", 0)
        monkeypatch.setattr(tune, "choose_device", lambda name: device)
        monkeypatch.setattr(tune.setting, "facts", lambda device: FACTS)
        monkeypatch.setattr(tune, "_plan", lambda *_: (plan_of(*BUCKETS), []))
        clock = Clock(cost, stop_at=count_timed(BUCKETS[0]) + 7)
        monkeypatch.setattr(tune, "Gpu", lambda device, facts: gpu(clock))
        assert main(["tune", "--out", str(out)]) == 130
        assert f"kept in {out / 'tuning.csv'}: 1 of 3 buckets; run again to go on" in capsys.readouterr().err
        clock.stop_at = None
        assert main(["tune", "--out", str(out)]) == 0
        assert f"skipped, for {out / 'tuning.csv'} has them: 1 of 3 buckets" in capsys.readouterr().err

    def test_a_killed_run_is_resumed(self, out, shipped):
        class Killed(Clock):
            def __call__(self, *arguments):
                if len(self.timed) == count_timed(BUCKETS[0]) + 7:
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(*arguments)

        context = multiprocessing.get_context("fork")
        process = context.Process(
            target=lambda: tune.tune(arguments(out), gpu(Killed(cost)), plan_of(*BUCKETS))
        )
        process.start()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        assert set(configs_of(shipped)) == {BUCKETS[0].name()}
        clock = Clock(cost)
        assert tune.tune(arguments(out), gpu(clock), plan_of(*BUCKETS)) == 0
        assert set(clock.timed) == set(BUCKETS[1:])
        assert configs_of(shipped) == BEST

    def test_interrupted_between_csv_and_table_the_table_follows(self, out, shipped, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(tables, "write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                tune.tune(arguments(out), gpu(), plan_of(BUCKETS[0]))
        assert not shipped.exists()
        clock = Clock(cost)
        assert tune.tune(arguments(out), gpu(clock), plan_of(BUCKETS[0])) == 0
        assert not clock.timed
        assert set(configs_of(shipped)) == {BUCKETS[0].name()}

    def test_fresh_begins_anew_and_keeps_the_old_measurements(self, out):
        tune.tune(arguments(out), gpu(), plan_of(BUCKETS[0]))
        before = (out / "tuning.csv").read_text()
        for i in (1, 2):
            clock = Clock(cost)
            tune.tune(arguments(out, "--fresh"), gpu(clock), plan_of(BUCKETS[0]))
            assert clock.timed
            assert (out / f"tuning.csv.old-{i}").read_text() == before

    @pytest.mark.parametrize(
        ("name", "value"),
        [("device", "Other GPU"), ("torch", "2.14.0"), ("triton", "3.8.0"), ("kernels", "newer")],
    )
    def test_a_state_of_another_machine_is_set_aside(self, out, monkeypatch, capsys, name, value):
        tune.tune(arguments(out), gpu(), plan_of(BUCKETS[0]))
        before = (out / "tuning.csv").read_text()
        if name == "kernels":
            monkeypatch.setattr(tables, "kernels", lambda: value)
        clock = Clock(cost)
        changed = {} if name == "kernels" else {name: value}
        assert tune.tune(arguments(out), gpu(clock, **changed), plan_of(BUCKETS[0])) == 0
        assert clock.timed
        said = capsys.readouterr().err
        assert f"was measured with {name} " in said
        assert f"this is {value}: set aside as tuning.csv.old-1" in said
        assert (out / "tuning.csv.old-1").read_text() == before
        assert set(rows_of(out)[name]) == {value}

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda text: b"",
            lambda text: b"\xff\xfe\x00",
            lambda text: b"a,b\n1,2\n",
            lambda text: text.replace(b",is_best", b",is_worst"),
            lambda text: text.replace(b",True,", b",perhaps,"),
            lambda text: text.replace(b"p262144", b"p26214"),
            lambda text: text[: len(text) // 2],
            lambda text: text.replace(b",8,16,", b",8,1048576,"),
            lambda text: text.replace(b",8,16,", b",8,sixteen,"),
        ],
    )
    def test_a_corrupt_state_is_set_aside(self, out, shipped, capsys, spoil):
        tune.tune(arguments(out), gpu(), plan_of(BUCKETS[0]))
        path = out / "tuning.csv"
        spoilt = spoil(path.read_bytes())
        assert spoilt != path.read_bytes()
        path.write_bytes(spoilt)
        shipped.unlink()
        clock = Clock(cost)
        assert tune.tune(arguments(out), gpu(clock), plan_of(BUCKETS[0])) == 0
        assert clock.timed
        assert set(configs_of(shipped)) == {BUCKETS[0].name()}
        if (out / "tuning.csv.old-1").exists():
            assert (out / "tuning.csv.old-1").read_bytes() == spoilt
            assert f"{path} " in capsys.readouterr().err

    def test_a_bucket_with_new_configurations_is_tuned_again(self, out, monkeypatch):
        tune.tune(arguments(out), gpu(), plan_of(*BUCKETS[:2]))
        space = policy.space
        monkeypatch.setattr(
            policy, "space", lambda b: space(b) + [{**space(b)[0], "BLOCK_C": 64}] * (b == BUCKETS[0])
        )
        clock = Clock(lambda bucket, config: 1.0)
        tune.tune(arguments(out), gpu(clock), plan_of(*BUCKETS[:2]))
        assert set(clock.timed) == {BUCKETS[0]}


class TestDisk:
    def test_a_full_disk_costs_a_message_and_not_the_measurements(self, out, shipped, monkeypatch, capsys):
        def full(*args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(pd.DataFrame, "to_csv", full)
        monkeypatch.setattr(tables, "write", full)
        assert tune.tune(arguments(out), gpu(), plan_of(*BUCKETS)) == 1
        printed = capsys.readouterr()
        assert json.loads(printed.out[printed.out.index("{") :])["configs"] == BEST
        assert "the geometric mean over buckets (3)" in printed.out
        for path in (out / "tuning.csv", shipped):
            assert printed.err.count(f"{path} cannot be written, going on without it: [Errno 28]") == 1
            assert f"not written: {path}: [Errno 28] No space left" in printed.err

    def test_a_disk_that_is_full_for_a_while_costs_nothing(self, out, shipped, monkeypatch):
        write, to_csv, failures = tables.write, pd.DataFrame.to_csv, []

        def sometimes(right):
            def call(*args, **options):
                if len(failures) < 4:
                    failures.append(right)
                    raise OSError(28, "No space left on device")
                return right(*args, **options)

            return call

        monkeypatch.setattr(tables, "write", sometimes(write))
        monkeypatch.setattr(pd.DataFrame, "to_csv", sometimes(to_csv))
        assert tune.tune(arguments(out), gpu(), plan_of(*BUCKETS)) == 0
        assert set(failures) == {write, to_csv}
        assert configs_of(shipped) == BEST
        assert len(rows_of(out)["bucket"].unique()) == 3

    def test_places_that_cannot_be(self, out, shipped, capsys):
        out.write_text("a file where the directory should be")
        shipped.parent.write_text("the same")
        assert tune.tune(arguments(out), gpu(), plan_of(*BUCKETS)) == 1
        assert out.read_text() == "a file where the directory should be"
        assert "2.00x" not in capsys.readouterr().err

    def test_a_state_that_is_a_directory(self, out, shipped, capsys):
        (out / "tuning.csv").mkdir(parents=True)
        tune.tune(arguments(out), gpu(), plan_of(*BUCKETS))
        assert configs_of(shipped) == BEST
        assert str(out / "tuning.csv") in capsys.readouterr().err

    def test_rows_that_cannot_be_written_leave_those_of_before_and_no_litter(self, out, monkeypatch):
        state = tuning_state.State(out / "tuning.csv", FACTS)
        results = [fastest.Result(BEST[BUCKETS[0].name()], True)]
        state.add(BUCKETS[0], results)
        state.save()
        before = state.path.read_text()
        state.add(BUCKETS[1], results)
        to_csv = pd.DataFrame.to_csv

        def short(frame, path, **options):
            to_csv(frame, path, **options)
            raise OSError("no")

        monkeypatch.setattr(pd.DataFrame, "to_csv", short)
        with pytest.raises(OSError, match="no"):
            state.save()
        assert state.path.read_text() == before
        assert list(out.iterdir()) == [state.path]

    def test_only_a_table_of_this_gpu_is_overwritten(self, out, tmp_path):
        path = tmp_path / "notes.txt"
        path.write_text("do not lose this")
        with pytest.raises(UsageError, match=f"--table: {path} is not to be overwritten: not JSON"):
            tune.tune(arguments(out, "--table", str(path)), gpu(), plan_of(*BUCKETS))
        assert path.read_text() == "do not lose this"
        path.unlink()
        tune.tune(arguments(out, "--table", str(path)), gpu(), plan_of(*BUCKETS))
        assert configs_of(path) == BEST
        with pytest.raises(UsageError, match="a table of 'Imaginary GPU"):
            tune.tune(arguments(out, "--table", str(path)), gpu(device="Other GPU"), plan_of(*BUCKETS))
