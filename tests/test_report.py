"""``python -m perf report``: a page that shows all of a file, stands alone, and runs no code of a file."""

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
from made_up import CPU, OLD, pair, row, small, without_time  # noqa: E402

from perf import files, report  # noqa: E402
from perf.__main__ import main  # noqa: E402

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick=x>&amp;</table></style>{{ 7*7 }}"
)


class Page(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.html, self.elements, self.text = html, [], ""
        self.feed(html)
        self.close()
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += f"{data} "

    def tags(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


@pytest.fixture(scope="module")
def table():
    """Rows of two machines; on the first one torch.compile failed on a workload."""
    first, second = small(passes=("forward",)), small(passes=("forward",), facts=CPU).assign(quick=True)
    failed = (first["workload"] == "planes-7") & (first["provider"] == "compile")
    without_time(first, failed, "FAILED", "differs by 0.5, allowed 0.001")
    first.loc[0, ["median_ms", "speedup"]] = [0.4, 0.5]
    return pd.concat([first, second], ignore_index=True)


@pytest.fixture(scope="module")
def page(table, tmp_path_factory):
    return Page(report.write(table, tmp_path_factory.mktemp("report")).read_text("utf-8"))


def test_every_row_is_in_the_table_and_losses_are_marked(page, table):
    bodies = re.findall(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', page.html, re.DOTALL)
    assert [body.count("<tr") for body in bodies] == [12, 12]
    assert f"<td>{table['median_ms'].iloc[5]:.4g}</td>" in bodies[0]
    (lost,) = re.findall(r'<tr class="bad">.*?</tr>', bodies[0])
    assert "<td>operator</td>" in lost
    assert "<td>0.5</td>" in lost


def test_runs_are_apart_with_their_charts_facts_and_reasons(page):
    _, first, second = page.text.split("Imaginary H100 80GB HBM3, commit 4d55deb0d6, 2026-11-23")
    first, second = second.split("Imaginary EPYC, commit 4d55deb0d6, 2026-11-23, quick run")
    for said in ("FAILED differs by 0.5, allowed 0.001 compile 2 planes-7", "copy bandwidth, GB/s 2900"):
        assert said in first
    assert "Not drawn: no rows for the peak memory of a call" in second
    assert "H100" not in second
    pictures = [attrs["src"].split("data:image/svg+xml;base64,")[1] for attrs in page.tags("img")]
    assert len(pictures) == 5  # speed and roofline of both, memory of one
    assert all(b"Affine sampling" in base64.b64decode(picture) for picture in pictures)


def test_nothing_is_fetched_and_no_other_script_runs(page):
    fetching = {"link", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}
    assert not fetching & {tag for tag, _ in page.elements}
    for tag, attrs in page.elements:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            assert attrs.get(name, "#").startswith(("#", "data:image/svg+xml;base64,")), (tag, attrs)
    assert not re.search(r"@import|url\(", page.html)
    (script,) = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    (policy,) = (a["content"] for a in page.tags("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")


def test_nothing_of_a_file_becomes_an_element(tmp_path):
    table = small(workloads=("digits-28",), passes=("forward",))
    for name in ("workload", "map", "provider", "status", "reason", "shape", "dtype", "checked"):
        table.loc[table.index[:2], name] = HOSTILE
    facts = ("device", "driver", "torch", "commit", "date", "platform")
    page = Page(report.write(table.assign(**dict.fromkeys(facts, HOSTILE)), tmp_path).read_text("utf-8"))
    assert len(page.tags("script")) == 1
    assert all(attrs["src"].startswith("data:") for attrs in page.tags("img"))
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert page.text.count(HOSTILE) > 10  # shown as it stands, and not filled in


def test_headline_figures_leave_out_sweeps_and_rows_without_a_partner():
    rows = pair({"median_ms": 1.0, "peak_mib": 10.0}, {"median_ms": 8.0, "peak_mib": 40.0})
    rows += pair({"median_ms": 2.0, "peak_mib": 10.0}, {"median_ms": 1.0, "peak_mib": 40.0}, map="zoom-2")
    rows += pair({"median_ms": 1.0}, {"median_ms": 100.0}, workload="size-64")
    rows += [row(map="rotate-30"), row(map="shift", status="FAILED", median_ms=None)]
    (run,) = files.runs(files.normal(pd.DataFrame(rows)))
    (speed, said), (memory, _), (count, without) = report.numbers(run)
    assert (speed, memory, count) == ("2.00x", "25 %", "8")
    assert "forward: geometric mean of 2 rows, 0.50x to 8.00x; worse than the eager pair on 1" in said
    assert without == "rows; without a time: 1 FAILED"


def test_the_command_prints_the_path(tmp_path, capsys):
    assert main(["report", str(OLD), "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "report.html")
    assert "copy bandwidth, GB/s not in the file" in Page((tmp_path / "report.html").read_text("utf-8")).text
