"""Reading result files: old ones, foreign ones, and those of several runs."""

from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
import made_up  # noqa: E402
from made_up import small, without_time  # noqa: E402

from perf import UsageError, files  # noqa: E402
from perf.__main__ import main  # noqa: E402

OLD = Path(__file__).resolve().parents[1] / "perf" / "results" / "cpu-epyc-2-threads.csv"


def test_an_old_file_gets_the_columns_it_lacks():
    table = files.read(OLD).speed
    assert len(table) == 24
    assert set(table["map"]) == {"random"}
    assert set(table["commit"]) == {"4d55deb0d6"}
    assert table[["roofline", "model_mib", "copy_gb_per_s", "graph_ms"]].isna().all(axis=None)
    assert files.timed(table).all()


def test_rows_survive_the_way_through_a_file(tmp_path):
    table = without_time(small(), slice(3, 3), "FAILED", "None")
    table.loc[0, "commit"] = "12345e1099"
    table.to_csv(tmp_path / "speed.csv", index=False)
    read = files.read(tmp_path).speed
    assert read.loc[3, "reason"] == "None"
    assert read.loc[0, "commit"] == "12345e1099"
    pd.testing.assert_frame_equal(read, files.normal(table), check_like=True)


def test_a_table_that_never_was_a_file_may_have_missing_values_of_any_kind():
    table = small().astype({"samples": "Int64", "reason": "string", "peak_mib": "Float64"})
    table.loc[:3, ["samples", "reason", "peak_mib", "graph_ms"]] = [pd.NA, pd.NA, pd.NA, None]
    normal = files.normal(table)
    assert normal.loc[:3, ["samples", "peak_mib", "graph_ms"]].isna().all(axis=None)
    assert (normal.loc[:3, "reason"] == "").all()
    assert normal["samples"].dtype == float


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no such file"),
        (b"", "is empty"),
        (b"name,value\na,1\n", "is no result file"),
        (b"workload,pass,provider,status,median_ms\n", "no rows"),
        (
            b"workload,pass,provider,status,median_ms\na,forward,operator,ok,fast\n",
            "median_ms, row 2 is 'fast'",
        ),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "cannot be read"),
        (b'a,b\n"c,d\n', "cannot be read"),
        (
            b"workload,pass,provider,status,median_ms\na,forward,operator,ok,1\n\nb,forward,oper",
            "line 4 has 3 columns, expected 5: the file is cut off",
        ),
    ],
)
@pytest.mark.parametrize("command", ["plot", "report", "compare"])
def test_what_is_no_result_file_exits_2(tmp_path, capsys, command, content, said):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    more = [str(OLD)] if command == "compare" else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([command, str(path), *more])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert said in message
    assert "expected" in message
    assert str(path) in message


def test_a_directory_gives_its_result_files_and_no_others(tmp_path):
    (tmp_path / "notes.csv").write_text("name,value\na,1\n")
    with pytest.raises(UsageError, match=r"only notes\.csv"):
        files.read(tmp_path)
    small().to_csv(tmp_path / "a.csv", index=False)
    small(facts=made_up.CPU).to_csv(tmp_path / "b.csv", index=False)
    made_up.tuning(2).to_csv(tmp_path / "tuning.csv", index=False)
    found = files.read(tmp_path)
    assert len(found.speed) == 2 * len(small())
    assert set(found.tuning["bucket"]) == set(made_up.tuning(2)["bucket"])


def test_a_directory_without_a_table_says_so(tmp_path):
    with pytest.raises(UsageError, match=r": holds no CSV; expected"):
        files.read(tmp_path)


def test_a_directory_with_a_speed_csv_means_that_one(tmp_path):
    small(facts=made_up.CPU).to_csv(tmp_path / "speed-before.csv", index=False)
    small().to_csv(tmp_path / "speed.csv", index=False)
    found = files.read(tmp_path)
    assert set(found.speed["device"]) == {made_up.CUDA["device"]}
    assert found.tuning is None
    made_up.tuning(2).to_csv(tmp_path / "tuning.csv", index=False)
    found = files.read(tmp_path)
    assert len(found.speed) == len(small())
    assert set(found.tuning["bucket"]) == set(made_up.tuning(2)["bucket"])


def test_runs_are_told_apart():
    other = small(facts=made_up.CUDA | {"commit": "0123456789"})
    again = small(facts=made_up.CUDA | {"date": "2026-12-01T00:00:00+00:00"})
    found = files.runs(files.normal(pd.concat([small(), small(facts=made_up.CPU), other, again])))
    assert [len(run.rows) for run in found] == [len(small())] * 4
    assert len({run.name for run in found}) == 4
    assert {(run.facts["device"], run.facts["commit"], run.facts["date"]) for run in found} == {
        (facts["device"], facts["commit"], facts["date"])
        for facts in (made_up.CUDA, made_up.CPU, other.iloc[0], again.iloc[0])
    }


def test_dates_alone_do_not_part_rows_and_the_last_measurement_of_a_date_counts():
    later = small(workloads=("planes-7",), facts=made_up.CUDA | {"date": "2026-12-01"})
    (run,) = files.runs(files.normal(pd.concat([small(), later])))
    assert len(run.rows) == len(small()) + len(later)
    twice = pd.concat([small(), small().assign(median_ms=7.0)])
    (run,) = files.runs(files.normal(twice))
    assert run.repeated == len(small())
    assert (run.rows["median_ms"] == 7).all()
