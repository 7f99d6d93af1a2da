"""Reading result files: old ones, foreign ones, damaged ones, and those of several runs."""

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
from made_up import CPU, CUDA, OLD, small, without_time  # noqa: E402

from perf import UsageError, files  # noqa: E402
from perf.__main__ import main  # noqa: E402

HEAD = b"workload,pass,provider,status,median_ms\n"


def test_rows_survive_the_way_through_a_file(tmp_path):
    table = without_time(small(), slice(3, 3), "FAILED", "None")
    table.loc[4:5, ["samples", "peak_mib"]] = None
    table.loc[0, "commit"] = "12345e1099"
    table.to_csv(tmp_path / "speed.csv", index=False)
    read = files.read_speed(tmp_path)
    assert (read.loc[3, "reason"], read.loc[0, "commit"]) == ("None", "12345e1099")
    pd.testing.assert_frame_equal(read, files.normal(table), check_like=True)


def test_numbers_of_wrong_results_and_impossible_ones_are_dropped():
    table = small()
    table.loc[0, "status"] = "FAILED"
    table.loc[1, ["median_ms", "roofline"]] = [0.0, float("inf")]
    normal = files.normal(table)
    assert normal.loc[0, ["median_ms", "speedup", "peak_mib"]].isna().all()
    assert normal.loc[1, ["median_ms", "roofline"]].isna().all()
    assert normal.loc[1:, "speedup"].notna().all()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "is no result file"),
        (b"bucket,BLOCK_C,median_ms\na,1,2\n", "holds timings of `tune`"),
        (HEAD, "no rows"),
        (HEAD + b"a,forward,operator,ok,fast\n", "median_ms, row 2 is 'fast'"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "cannot be read"),
        (HEAD + b"a,forward,operator,ok,1\n\nb,forward,oper", "cut off"),
        (HEAD + b"a,forward,operator,ok,1,2\n", "cut off or damaged"),
        (b"a,a\n1,2\n", "two columns share a name"),
    ],
)
@pytest.mark.parametrize("command", ["plot", "report", "compare"])
def test_a_file_that_is_no_result_exits_2(tmp_path, capsys, command, content, said):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    more = [str(OLD)] if command == "compare" else ["--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stop:
        main([command, str(path), *more])
    message = capsys.readouterr().err
    assert stop.value.code == 2
    assert said in message
    assert str(path) in message


def test_a_directory_means_its_speed_csv_or_else_all_result_files(tmp_path):
    (tmp_path / "notes.csv").write_text("name,value\na,1\n")
    with pytest.raises(UsageError, match="holds no result file"):
        files.read_speed(tmp_path)
    small().to_csv(tmp_path / "a.csv", index=False)
    small(facts=CPU).to_csv(tmp_path / "b.csv", index=False)
    assert len(files.read_speed(tmp_path)) == 2 * len(small())
    small().to_csv(tmp_path / "speed.csv", index=False)
    assert set(files.read_speed(tmp_path)["device"]) == {CUDA["device"]}


def test_runs_differ_in_a_fact_but_not_in_their_date_alone():
    def runs(*tables):
        return files.runs(files.normal(pd.concat([small(), *tables])))

    later = CUDA | {"date": "2026-12-01"}
    found = runs(small(facts=CPU), small(facts=CUDA | {"device": "T4"}), small(facts=later))
    assert [len(run.rows) for run in found] == [len(small())] * 4
    assert len({run.name for run in found}) == 4
    (run,) = runs(small(workloads=("other",), facts=later))
    assert len(run.rows) == 1.5 * len(small())
    (run,) = runs(small().assign(median_ms=7.0))
    assert (run.rows["median_ms"] == 7).all()  # the later measurement counts
