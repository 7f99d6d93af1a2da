"""The script that makes the README's table: that it is the committed one, and what replaces it."""

import pandas as pd
import pytest
import readme

from perf import files
from perf.evidence.outcome import markdown


def test_the_table_is_that_of_the_committed_rows():
    run = files.read_run(readme.MEASURED)
    assert readme.table_of(readme.README.read_text()) == markdown(run)
    assert "dirty" not in run.facts["commit"]


def test_a_full_run_on_the_same_gpu_replaces_rows_table_and_picture(tmp_path, monkeypatch, capsys):
    text, rows = readme.README.read_text(), pd.read_csv(readme.MEASURED)
    for name in ("README", "MEASURED"):
        here = tmp_path / getattr(readme, name).name
        here.write_bytes(getattr(readme, name).read_bytes())
        monkeypatch.setattr(readme, name, here)
    new = tmp_path / "new.csv"
    for wrong, named in (
        (rows.assign(device="other"), "a run on other"),
        (rows.assign(quick=True), "a quick run"),
        (rows.assign(commit="abc+dirty"), "a run of abc+dirty"),
        (rows[rows["workload"] != "crops-7"], "without crops-7"),
    ):
        wrong.to_csv(new, index=False)
        with pytest.raises(SystemExit, match="2"):
            readme.main([str(new)])
        assert f"{named}; expected a full run of a commit on NVIDIA" in capsys.readouterr().err
    assert readme.README.read_text() == text
    rows.assign(commit="abcdef1234").to_csv(new, index=False)
    assert readme.main([str(new)]) == 0
    found = readme.README.read_text()
    assert "commit abcdef1234" in readme.table_of(found)
    assert found.replace(readme.table_of(found), "") == text.replace(readme.table_of(text), "")
    assert readme.MEASURED.read_bytes() == new.read_bytes()
    assert readme.MEASURED.with_suffix(".png").exists()
