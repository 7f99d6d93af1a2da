"""Result files of ``python -m perf bench``: damaged and foreign ones, and the changes between two."""

import json

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
from made_up import CPU, CUDA, OLD, pair, row, small, without_time  # noqa: E402

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
        (None, "no such file"),
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


def times(median, noise=0.02):
    """Columns of a row; without a median it FAILED."""
    if median is None:
        return {"status": "FAILED", "reason": "differs"}
    return {"q20_ms": median * (1 - noise), "median_ms": median, "q80_ms": median * (1 + noise)}


def cell(operator=1.0, eager=3.0, noise=0.02, **changes):
    """The operator and the eager pair on one workload."""
    both = ({**times(median, noise), **changes} for median in (operator, eager))
    return pd.DataFrame(pair(*both))


@pytest.fixture
def compare(tmp_path, capsys):
    """Runs the command on two tables: exit code, JSON, what went to stderr."""

    def run(before, after, *arguments):
        paths = [tmp_path / "before.csv", tmp_path / "after.csv"]
        for path, table in zip(paths, (before, after), strict=True):
            table.to_csv(path, index=False)
        code = main(["compare", *map(str, paths), "--json", *arguments])
        printed = capsys.readouterr()
        return code, json.loads(printed.out), printed.err

    return run


def row_of(document, provider="operator"):
    (found,) = (row for row in document["rows"] if row["provider"] == provider)
    return found


SKIPPED = pd.DataFrame(pair({"status": "skipped", "median_ms": None}, times(3.0)))
OF_LATER_VERSIONS = ["q20_ms", "q80_ms", "map", "size"]


@pytest.mark.parametrize(
    ("before", "after", "verdict", "code"),
    [
        (cell(1.0), cell(1.2), "slower", 1),
        (cell(1.2), cell(1.0), "faster", 0),
        (cell(1.0), cell(1.04, noise=0.001), "same", 0),  # below the threshold
        (cell(1.0, noise=0.12), cell(1.2, noise=0.12), "same", 0),  # the intervals overlap
        (cell(1.0), cell(None), "broke", 1),
        (cell(None), cell(1.0), "fixed", 0),
        (cell(1.0), SKIPPED, "gone", 0),
        (SKIPPED, cell(1.0), "new", 0),
        (cell(1.0, samples=9), cell(2.0), "unclear", 0),  # too few samples
        (cell(1.0, samples=10), cell(2.0, samples=10), "slower", 1),
        (cell(1.0).drop(columns=OF_LATER_VERSIONS), cell(1.04), "same", 0),
        (cell(1.0).drop(columns=OF_LATER_VERSIONS), cell(1.2), "slower", 1),
        # The eager pair shows the drift of the machine.
        (cell(1.0, 3.0), cell(1.3, 3.9), "same", 0),
        (cell(1.0, 3.0), cell(1.0, 2.2), "slower", 1),
        (cell(1.0, 3.0, noise=0.005), cell(1.3, 3.6, noise=0.005), "slower", 1),
        (cell(1.0, 3.0, noise=0.03), cell(1.3, 3.6, noise=0.03), "same", 0),  # the noise of both counts
        (cell(1.3, 0.32), cell(8.3, 15.7), "unclear", 0),  # no machine drifts as much
        (cell(), cell(1.3, 3.9, torch="2.14.0"), "slower", 1),  # another PyTorch has another pair
    ],
)
def test_verdicts(compare, before, after, verdict, code):
    exit_code, document, _ = compare(before, after)
    assert (row_of(document)["verdict"], exit_code) == (verdict, code)
    assert document["operator"] == {verdict: 1}


def test_the_drift_is_taken_out_of_the_change(compare):
    _, document, _ = compare(cell(1.0, 3.0), cell(1.6, 3.6))
    ours = row_of(document)
    assert (ours["before_ms"], ours["after_ms"]) == (1.0, 1.6)
    assert (ours["change"], ours["drift"]) == pytest.approx((1.6 / 1.2, 1.2))
    assert row_of(document, "eager")["verdict"] == "slower"


def test_the_threshold_can_be_set_and_a_rivals_loss_is_no_failure(compare):
    assert compare(cell(1.0), cell(1.2), "--threshold", "0.3")[0] == 0
    assert compare(cell(1.0), cell(1.045), "--threshold", "0.01")[0] == 1
    rivals = [pd.DataFrame([row(provider="kornia", **times(ms))]) for ms in (2.0, 4.0)]
    code, document, _ = compare(*(pd.concat([cell(), rival]) for rival in rivals))
    assert (row_of(document, "kornia")["verdict"], code) == ("slower", 0)


@pytest.mark.parametrize("column", ["map", "pass", "shape", "dtype", "layout", "size"])
def test_rows_that_differ_in_what_was_measured_are_not_matched(compare, column):
    other = cell(5.0, 5.0).assign(**{column: "another"})
    _, document, _ = compare(pd.concat([cell(), cell(workload="planes-7")]), pd.concat([cell(), other]))
    assert {row["verdict"] for row in document["rows"] if row["after_ms"] == 5.0} == {"new"}


FAILS = pd.concat([cell(), cell(None, map="zoom-2")])


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (cell(), cell(device="Imaginary T4"), "device: Imaginary H100 80GB HBM3 before, Imaginary T4 after"),
        (cell(), cell(torch="2.14.0"), "torch: 2.13.0+cu128 before, 2.14.0 after"),
        (cell(), cell(quick=True), "the times are NOT COMPARABLE"),
        (cell(quick=True), cell(quick=True), "both runs are quick"),
        (FAILS, FAILS, "1 rows of the operator FAILED after"),
    ],
)
def test_unlike_runs_are_warned_of(compare, before, after, said):
    _, document, err = compare(before, after)
    assert said in err
    assert any(said in line for line in document["warnings"])
    assert compare(cell(), cell(commit="0123456789", date="2027"))[2] == ""


@pytest.mark.parametrize(
    ("table", "arguments", "said"),
    [
        (pd.concat([cell(), cell(**CPU)]), [], "holds 2 runs"),
        (cell(shape="16x1x28x28"), [], "no row has a time in both"),
        *((cell(), ["--threshold", value], "--threshold") for value in ("-0.1", "nan", "inf")),
    ],
)
def test_wrong_arguments_exit_2(compare, capsys, table, arguments, said):
    with pytest.raises(SystemExit) as stop:
        compare(table, cell(), *arguments)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_the_printed_table_has_what_changed(tmp_path, capsys):
    assert main(["compare", str(OLD), str(OLD)]) == 0
    assert capsys.readouterr().out.splitlines() == ["no row changed beyond the noise", "operator: 8 same"]
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    pd.concat([cell(1.0), cell(1.0, map="zoom-2")]).to_csv(before)
    pd.concat([cell(1.2), cell(1.5, map="zoom-2")]).to_csv(after)
    assert main(["compare", str(before), str(after)]) == 1
    _, worst, second, legend, counts = (line.split() for line in capsys.readouterr().out.splitlines())
    assert worst == ["slower", "digits-28", "zoom-2", "forward", "operator", "1", "1.5", "1.5"]
    assert second[2] == "random"
    assert legend[0] == "change:"
    assert counts == ["operator:", "2", "slower"]
