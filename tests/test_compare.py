"""``python -m perf compare``: what is a change, what is noise, and what is the machine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
import made_up  # noqa: E402

from perf.__main__ import main  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "perf" / "results" / "cpu-epyc-2-threads.csv"
TIMES = ["q20_ms", "median_ms", "q80_ms"]


def times(median, noise=0.02):
    return {"q20_ms": median * (1 - noise), "median_ms": median, "q80_ms": median * (1 + noise)}


def cell(operator=1.0, eager=3.0, facts=made_up.CUDA, noise=0.02, **changes):
    """The operator and the eager pair on one workload; None: FAILED."""
    rows = []
    for name, median in (("operator", operator), ("eager", eager)):
        values = times(median, noise) if median else {"status": "FAILED", "reason": "differs"}
        rows.append(made_up.row(provider=name, facts=facts, **(values | changes)))
    return pd.DataFrame(rows)


@pytest.fixture
def compare(tmp_path, capsys):
    """Runs the command on two tables: exit code, JSON, what went to stderr."""

    def run(before, after, *arguments):
        paths = []
        for name, table in (("before", before), ("after", after)):
            (tmp_path / name).mkdir(exist_ok=True)
            table.to_csv(tmp_path / name / "speed.csv", index=False)
            paths.append(str(tmp_path / name))
        code = main(["compare", *paths, "--json", *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return run


def verdicts(document, provider="operator"):
    return [row["verdict"] for row in document["rows"] if row["provider"] == provider]


class TestVerdicts:
    @pytest.mark.parametrize(
        ("before", "after", "verdict", "code"),
        [
            (1.0, 1.2, "slower", 1),
            (1.2, 1.0, "faster", 0),
            (1.0, 1.0, "same", 0),
            (1.0, 1.045, "same", 0),  # the intervals do not overlap, but the threshold is 5 %
            (1.045, 1.0, "same", 0),
            (1.0, None, "broke", 1),
            (None, 1.0, "fixed", 0),
        ],
    )
    def test_of_the_operator(self, compare, before, after, verdict, code):
        exit_code, document, _ = compare(cell(before), cell(after))
        assert verdicts(document) == [verdict]
        assert verdicts(document, "eager") == ["same"]
        assert exit_code == code
        assert document["summary"]["operator"][verdict] == 1

    def test_overlapping_intervals_are_noise_whatever_the_medians(self, compare):
        code, document, _ = compare(cell(1.0, noise=0.12), cell(1.2, noise=0.12))
        assert verdicts(document) == ["same"]
        assert code == 0

    def test_the_threshold_can_be_set(self, compare):
        assert compare(cell(1.0), cell(1.2), "--threshold", "0.3")[0] == 0
        assert compare(cell(1.0), cell(1.045), "--threshold", "0.01")[0] == 1

    def test_a_rivals_loss_is_no_failure_of_ours(self, compare):
        def three(kornia):
            return pd.concat([cell(), pd.DataFrame([made_up.row(provider="kornia", **times(kornia))])])

        code, document, _ = compare(three(2.0), three(4.0))
        assert verdicts(document, "kornia") == ["slower"]
        assert code == 0

    def test_new_gone_and_without_a_time_in_both(self, compare):
        def table(images, digits, status):
            other = made_up.row("images-224", provider="operator", **images)
            return pd.concat([cell(**digits), pd.DataFrame([other, made_up.row("planes-7", status=status)])])

        skipped = {"status": "skipped", "reason": "too large", "median_ms": None}
        code, document, _ = compare(table(times(1.0), {}, "FAILED"), table(skipped, {}, "skipped"))
        (gone,) = (row for row in document["rows"] if row["workload"] == "images-224")
        assert (gone["verdict"], gone["reason"]) == ("gone", "skipped: too large")
        assert document["summary"]["untimed"] == 1
        assert code == 0
        _, document, _ = compare(table(skipped, {}, "skipped"), table(times(1.0), {}, "FAILED"))
        assert [r["verdict"] for r in document["rows"] if r["workload"] == "images-224"] == ["new"]

    def test_a_row_that_only_one_file_has_is_new_or_gone(self, compare):
        both = pd.concat([cell(), cell(map="zoom-2")])
        assert sorted(verdicts(compare(cell(), both)[1])) == ["new", "same"]
        assert sorted(verdicts(compare(both, cell())[1])) == ["gone", "same"]

    @pytest.mark.parametrize("column", ["map", "pass", "shape", "dtype", "layout", "size"])
    def test_rows_that_differ_in_what_was_measured_are_not_matched(self, compare, column):
        other = cell(5.0, 5.0)
        other[column] = "another"
        _, document, _ = compare(pd.concat([cell(), cell(workload="planes-7")]), pd.concat([cell(), other]))
        found = {row["verdict"] for row in document["rows"] if row["after_ms"] == 5.0}
        assert found == {"new"}

    def test_without_quantiles_the_threshold_decides(self, compare):
        def bare(median):
            return cell(median).drop(columns=["q20_ms", "q80_ms"])

        assert verdicts(compare(bare(1.0), bare(1.04))[1]) == ["same"]
        assert verdicts(compare(bare(1.0), bare(1.2))[1]) == ["slower"]

    @pytest.mark.parametrize("after", [2.0, 0.5])
    @pytest.mark.parametrize("is_before", [True, False])
    def test_few_samples_prove_nothing(self, compare, after, is_before):
        few, enough = ({"samples": n} for n in (9, 10))
        was, now = (few, enough) if is_before else (enough, few)
        code, document, _ = compare(cell(1.0, **was), cell(after, **now))
        (ours,) = (row for row in document["rows"] if row["provider"] == "operator")
        assert (ours["verdict"], ours["reason"]) == ("unclear", "only 9 samples")
        assert verdicts(document, "eager") == ["same"]
        assert code == 0
        judged = verdicts(compare(cell(1.0, **enough), cell(after, **enough))[1])
        assert judged == ["slower" if after > 1 else "faster"]
        assert verdicts(compare(cell(1.0, **few), cell(None))[1]) == ["broke"]

    def test_the_worst_comes_first(self, compare):
        def table(*medians):
            names = ("digits-28", "images-224", "planes-7", "features-56", "shrink-448")
            return pd.concat([cell(m, workload=n) for n, m in zip(names, medians, strict=True)])

        _, document, _ = compare(table(1.0, 1.0, 1.0, 1.0, None), table(1.2, 0.5, None, 1.5, 1.0))
        ours = [(r["workload"], r["verdict"]) for r in document["rows"] if r["provider"] == "operator"]
        assert ours == [
            ("planes-7", "broke"),
            ("features-56", "slower"),
            ("digits-28", "slower"),
            ("shrink-448", "fixed"),
            ("images-224", "faster"),
        ]


class TestDrift:
    def test_a_slower_machine_makes_no_row_slower(self, compare):
        code, document, _ = compare(cell(1.0, 3.0), cell(1.3, 3.9))
        assert verdicts(document) == ["same"]
        assert code == 0
        (ours,) = (row for row in document["rows"] if row["provider"] == "operator")
        assert ours["change"] == pytest.approx(1.0)
        assert ours["drift"] == pytest.approx(1.3)
        assert (ours["before_ms"], ours["after_ms"]) == (1.0, 1.3)
        assert ours["corrected_ms"] == pytest.approx(1.0)
        assert document["summary"]["drifted"] == 1
        assert document["summary"]["median_drift"] == pytest.approx(1.3)

    def test_a_faster_machine_hides_no_regression(self, compare):
        code, document, _ = compare(cell(1.0, 3.0), cell(1.0, 2.2))
        assert verdicts(document) == ["slower"]
        assert code == 1

    def test_a_regression_beyond_the_drift_counts(self, compare):
        code, document, _ = compare(cell(1.0, 3.0), cell(1.6, 3.6))
        (ours,) = (row for row in document["rows"] if row["provider"] == "operator")
        assert ours["verdict"] == "slower"
        assert ours["change"] == pytest.approx(1.6 / 1.2)
        assert code == 1

    def test_the_yardsticks_noise_is_added(self, compare):
        # 8 % beyond the drift: more than the operator's noise of 0.5 %, less than with the eager pair's 4 %.
        def table(operator, eager, noise):
            rows = [("operator", times(operator, 0.005)), ("eager", times(eager, noise))]
            return pd.DataFrame([made_up.row(provider=name, **values) for name, values in rows])

        assert verdicts(compare(table(1.0, 3.0, 0.005), table(1.30, 3.6, 0.005))[1]) == ["slower"]
        assert verdicts(compare(table(1.0, 3.0, 0.04), table(1.30, 3.6, 0.04))[1]) == ["same"]

    def test_a_yardstick_within_its_noise_corrects_nothing(self, compare):
        code, document, _ = compare(cell(1.0, 3.0, noise=0.08), cell(1.2, 3.3, noise=0.08))
        (ours,) = (row for row in document["rows"] if row["provider"] == "operator")
        assert ours["drift"] is ours["corrected_ms"] is None
        assert ours["change"] == pytest.approx(1.2)
        assert code == 1

    @pytest.mark.parametrize(
        ("before", "after"),
        [
            (cell(1.3, 0.32), cell(8.3, 15.7)),  # an outlier of the eager pair; the operator is slower
            (cell(1.0, 3.0), cell(1.0, 1.5)),
        ],
    )
    def test_beyond_a_factor_the_eager_pair_is_no_yardstick(self, compare, before, after):
        code, document, _ = compare(before, after)
        (ours,) = (row for row in document["rows"] if row["provider"] == "operator")
        assert ours["verdict"] == "unclear"
        assert ours["change"] == pytest.approx(ours["after_ms"] / ours["before_ms"])
        assert ours["corrected_ms"] is None
        assert "no yardstick" in ours["reason"]
        assert document["summary"]["operator"]["unclear"] == 1
        assert code == 0

    def test_without_a_yardstick_what_broke_still_counts(self, compare):
        code, document, _ = compare(cell(1.0, 1.0), cell(None, 5.0))
        assert verdicts(document) == ["broke"]
        assert code == 1

    def test_only_the_cell_that_drifted_is_corrected(self, compare):
        before = pd.concat([cell(), cell(map="zoom-2")])
        after = pd.concat([cell(1.3, 3.9), cell(1.3, 3.0, map="zoom-2")])
        _, document, _ = compare(before, after)
        found = {r["map"]: r["verdict"] for r in document["rows"] if r["provider"] == "operator"}
        assert found == {"random": "same", "zoom-2": "slower"}

    def test_another_pytorch_has_no_yardstick(self, compare):
        code, document, err = compare(cell(), cell(1.3, 3.9, facts=made_up.CUDA | {"torch": "2.14.0"}))
        assert verdicts(document) == ["slower"]
        assert code == 1
        assert "torch: 2.13.0+cu128 before, 2.14.0 after" in err
        assert "no yardstick" in err


class TestWarnings:
    def test_other_devices_are_a_loud_one(self, compare):
        _, document, err = compare(cell(), cell(facts=made_up.CUDA | {"device": "Imaginary T4"}))
        assert "OTHER DEVICE" in err
        assert "NOT COMPARABLE" in err
        assert any("Imaginary T4" in line for line in document["warnings"])

    def test_quick_against_full_is_another(self, compare):
        _, _, err = compare(cell(), cell(quick=True))
        assert "QUICK AGAINST FULL: after is a quick run" in err

    def test_two_quick_runs_are_one_too(self, compare):
        _, document, err = compare(cell(quick=True), cell(quick=True))
        assert "warning: both runs are quick" in err
        assert len(document["warnings"]) == 1

    def test_alike_runs_have_none(self, compare):
        _, document, err = compare(
            cell(), cell(facts=made_up.CUDA | {"commit": "0123456789", "date": "2027"})
        )
        assert document["warnings"] == []
        assert err == ""

    def test_failures_that_are_no_news_are_said(self, compare):
        before = pd.concat([cell(), cell(None, map="zoom-2")])
        code, _, err = compare(before, before)
        assert code == 0
        assert "1 rows of the operator FAILED after" in err


class TestFiles:
    def refused(self, before, after, capsys, *arguments):
        with pytest.raises(SystemExit) as stop:
            main(["compare", str(before), str(after), *arguments])
        assert stop.value.code == 2
        return capsys.readouterr().err

    def test_several_runs_in_a_file_are_refused(self, tmp_path, capsys):
        pd.concat([cell(), cell(facts=made_up.CPU)]).to_csv(tmp_path / "speed.csv")
        message = self.refused(tmp_path, tmp_path, capsys)
        assert "holds 2 runs" in message
        assert "Imaginary EPYC" in message

    def test_nothing_in_common_is_refused(self, tmp_path, capsys):
        cell().to_csv(tmp_path / "a.csv")
        cell(shape="16x1x28x28", quick=True).to_csv(tmp_path / "b.csv")
        message = self.refused(tmp_path / "a.csv", tmp_path / "b.csv", capsys)
        assert "no row has a time in both" in message
        assert "QUICK AGAINST FULL" in message

    def test_timings_of_tune_are_refused(self, tmp_path, capsys):
        made_up.tuning(1).to_csv(tmp_path / "tuning.csv")
        assert "`tune`" in self.refused(OLD, tmp_path / "tuning.csv", capsys)

    @pytest.mark.parametrize("threshold", ["-0.1", "nan", "inf"])
    def test_a_threshold_that_is_none_is_refused(self, capsys, threshold):
        assert "--threshold" in self.refused(OLD, OLD, capsys, "--threshold", threshold)

    def test_an_old_file_compares_with_a_new_one(self, compare):
        old = pd.read_csv(OLD, dtype=str, keep_default_na=False)
        new = old.assign(map="random", size="28x28", roofline="0.5", commit="0123456789")
        ours = new["provider"] == "operator"
        for name in TIMES:
            new.loc[ours, name] = (new.loc[ours, name].astype(float) * 3).astype(str)
        code, document, _ = compare(old, new)
        assert code == 1
        assert set(verdicts(document)) == {"slower"}
        assert set(verdicts(document, "eager")) == {"same"}


class TestOutput:
    @pytest.fixture
    def pair(self, tmp_path):
        cell().to_csv(tmp_path / "a.csv", index=False)
        worse = pd.concat([cell(1.5, 3.9), cell(None, map="zoom-2")])
        worse.to_csv(tmp_path / "b.csv", index=False)
        return str(tmp_path / "a.csv"), str(tmp_path / "b.csv")

    def test_the_table_has_what_changed_and_a_summary(self, pair, capsys):
        assert main(["compare", *pair]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert lines[0].startswith("before: ")
        assert "Imaginary H100" in lines[0]
        (row,) = (
            line.split() for line in lines if line.startswith("slower   digits-28") and "operator" in line
        )
        assert row[3:] == ["forward", "operator", "1", "1.5", "1.154", "+15.4%", "+30.0%"]
        assert any("after, corrected" in line for line in lines)
        assert "operator: 1 slower" in lines
        assert any("drifted in 1 cells" in line and "+30.0%" in line for line in lines)

    def test_an_unclear_cell_is_said_and_has_no_corrected_time(self, tmp_path, capsys):
        for name, table in (("a", cell(1.3, 0.32)), ("b", cell(8.3, 15.7))):
            table.to_csv(tmp_path / f"{name}.csv", index=False)
        assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 0
        out = capsys.readouterr().out
        assert "operator: 1 unclear" in out
        assert "but for 1 of them, beyond 1.5x" in out
        assert "corrected" not in out

    def test_nothing_changed_is_said(self, capsys):
        assert main(["compare", str(OLD), str(OLD)]) == 0
        out = capsys.readouterr().out
        assert "no row changed beyond the noise" in out
        assert "operator: 8 same" in out

    def test_a_long_table_is_cut_and_says_so(self, tmp_path, capsys):
        many = [pd.concat([cell(m, map=f"map-{i}") for i in range(60)]) for m in (1.0, 2.0)]
        for name, table in zip("ab", many, strict=True):
            table.to_csv(tmp_path / f"{name}.csv", index=False)
        assert main(["compare", str(tmp_path / "a.csv"), str(tmp_path / "b.csv")]) == 1
        out = capsys.readouterr().out
        assert "and 20 more" in out
        assert out.count("slower  ") == 40

    def test_json_stands_alone_on_stdout_and_needs_no_charts(self, pair):
        script = (
            "import sys; from perf.__main__ import main; code = main(sys.argv[1:]);"
            "assert not {'matplotlib', 'triton'} & set(sys.modules); sys.exit(code)"
        )
        command = [sys.executable, "-c", script, "compare", *pair, "--json"]
        environ = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60)
        assert done.returncode == 1, done.stderr
        document = json.loads(done.stdout)
        assert document["before"]["commit"] == made_up.CUDA["commit"]
        assert document["threshold"] == 0.05
        assert {"workload", "map", "pass", "provider", "verdict", "change"} <= set(document["rows"][0])
        assert "rows of the operator FAILED" in done.stderr

    def test_the_help_explains_the_drift(self, capsys):
        with pytest.raises(SystemExit):
            main(["compare", "--help"])
        out = capsys.readouterr().out
        assert "drifted" in out
        assert "Exits with 1" in out
