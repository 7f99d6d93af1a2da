"""Result files of ``python -m perf bench``: damaged and foreign ones, and the changes between two."""

import json

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
import made_up  # noqa: E402
from made_up import CPU, pair, row, small, without_time  # noqa: E402

from perf import UsageError, files  # noqa: E402
from perf.__main__ import main  # noqa: E402

HEAD = b"workload,pass,provider,status,median_ms\n"


def test_rows_survive_the_way_through_a_file():
    table = without_time(small(), slice(3, 3), "FAILED", "None")
    table.loc[4:5, ["samples", "peak_mib"]] = None
    later = small(workloads=("planes-7",)).assign(median_ms=7.0, date="2026-12-01")  # it counts
    run = made_up.run(pd.concat([table, later]).assign(commit="12345e1099", cpu="a\x1b[31m"))
    assert (run.rows["median_ms"] == 7).equals(run.rows["workload"] == "planes-7")
    assert run.rows.loc[3, "reason"] == "None"
    assert (run.facts["commit"], run.facts["cpu"]) == ("12345e1099", "a [31m")
    numbers = ["median_ms", "q20_ms", "samples", "peak_mib", "speedup"]
    expected = table.loc[table["workload"] == "digits-28", numbers].astype(float)
    pd.testing.assert_frame_equal(run.rows.loc[: len(expected) - 1, numbers], expected)
    assert run.rows["graph_ms"].isna().all()


@pytest.mark.parametrize("change", [CPU, {"device": "T4"}, {"quick": True}])
def test_rows_of_two_runs_are_refused(change):
    with pytest.raises(UsageError, match=f"{next(iter(change))} is .* in one row and .* in another"):
        made_up.run(pd.concat([small(), small().assign(**change)]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"", "No columns"),
        (b"bucket,BLOCK_C,median_ms\na,1,2\n", "lacks the columns pass, provider, status, workload"),
        (HEAD, "no rows"),
        (HEAD + b"a,forward,operator,ok,fast\n", "could not convert string to float: 'fast'"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe\x00", "cannot be read"),
        (HEAD[:-1] + b",cpu\na,forward,operator,ok,1,b\n\nb,forward,oper", "cut off"),
        (HEAD + b"a,forward,operator,ok,1\na,forward,operator,ok,1,2\n", "Expected 5 fields in line 3"),
    ],
)
def test_a_file_that_is_no_result_is_refused(tmp_path, content, said):
    path = tmp_path / "table.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=said) as error:
        files.read_run(path)
    assert str(path) in str(error.value)


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


@pytest.mark.parametrize(
    ("before", "after", "verdict", "code"),
    [
        (cell(1.0), cell(1.2), "slower", 1),
        (cell(1.2), cell(1.0), "faster", 0),
        (cell(1.0), cell(1.04, noise=0.001), "same", 0),  # below the threshold
        (cell(1.0, noise=0.12), cell(1.2, noise=0.12), "same", 0),  # the intervals overlap
        (cell(1.2, noise=0.12), cell(1.0, noise=0.12), "same", 0),
        (cell(1.0), cell(None), "broke", 1),
        (cell(None), cell(1.0), "fixed", 0),
        (cell(1.0), SKIPPED, "gone", 0),
        (SKIPPED, cell(1.0), "new", 0),
        (cell(1.0, samples=9), cell(2.0), "unclear", 0),  # too few samples
        (cell(1.0, samples=10), cell(2.0, samples=10), "slower", 1),
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
    _, document, _ = compare(cell(1.0, 3.0), cell(1.38, 3.6))
    ours, theirs = document["rows"]  # rows of the operator come first
    assert (ours["before_ms"], ours["after_ms"]) == (1.0, 1.38)
    assert (ours["change"], ours["drift"]) == pytest.approx((1.15, 1.2))
    assert (theirs["verdict"], theirs["change"]) == ("slower", pytest.approx(1.2))


def test_the_threshold_can_be_set_and_a_rivals_loss_is_no_failure(compare):
    assert compare(cell(1.0), cell(1.2), "--threshold", "0.3")[0] == 0
    assert compare(cell(1.0), cell(1.045), "--threshold", "0.01")[0] == 1
    rivals = [pd.DataFrame([row(provider="kornia", **times(ms))]) for ms in (2.0, 4.0)]
    code, document, _ = compare(*(pd.concat([cell(), rival]) for rival in rivals))
    assert (row_of(document, "kornia")["verdict"], code) == ("slower", 0)


def test_rows_that_differ_in_what_was_measured_are_not_matched(compare):
    columns = ["workload", "map", "pass", "shape", "dtype", "layout", "size"]
    others = [cell(5.0, 5.0).assign(**{column: "another"}) for column in columns]
    _, document, _ = compare(cell(), pd.concat([cell(), *others]))
    verdicts = [row["verdict"] for row in document["rows"] if row["after_ms"] == 5.0]
    assert verdicts == ["new"] * 2 * len(columns)


def test_unlike_runs_are_warned_of_but_not_of_another_commit_or_date(compare):
    after = cell(device="Imaginary T4", torch="2.14.0", quick=True, commit="0123456789", date="2027")
    _, document, err = compare(cell(), after)
    assert document["warnings"] == [
        "quick: False before, True after",
        "device: Imaginary H100 80GB HBM3 before, Imaginary T4 after",
        "torch: 2.13.0+cu128 before, 2.14.0 after",
    ]
    assert err.splitlines() == [f"warning: {line}" for line in document["warnings"]]


def test_runs_without_a_common_row_are_refused(compare, capsys):
    with pytest.raises(SystemExit) as stop:
        compare(cell(shape="16x1x28x28"), cell())
    assert stop.value.code == 2
    assert "no row has a time in both" in capsys.readouterr().err


def test_the_printed_table_has_what_changed(tmp_path, capsys):
    before, after = tmp_path / "before.csv", tmp_path / "after.csv"
    pd.concat([cell(1.0), cell(1.0, map="zoom-2")]).to_csv(before)
    pd.concat([cell(1.2), cell(1.5, map="zoom-2")]).to_csv(after)
    assert main(["compare", str(before), str(before)]) == 0
    assert capsys.readouterr().out == "no row of the operator changed beyond the noise\noperator: 2 same\n"
    assert main(["compare", str(before), str(after)]) == 1
    _, worst, second, legend, counts = (line.split() for line in capsys.readouterr().out.splitlines())
    assert worst == ["slower", "digits-28", "zoom-2", "forward", "operator", "1", "1.5", "1.5"]
    assert second[2] == "random"
    assert legend[0] == "change:"
    assert counts == ["operator:", "2", "slower"]
