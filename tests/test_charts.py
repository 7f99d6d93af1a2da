"""``python -m perf plot`` and ``report``: right numbers, losses marked, runs apart, and no code of a file."""

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
import made_up  # noqa: E402
import numpy as np  # noqa: E402
from made_up import CPU, OLD, pair, row, small, sweeps, without_time  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from perf import files, plot, report  # noqa: E402
from perf.__main__ import main  # noqa: E402

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick=x>&amp;</table></style>{{ 7*7 }}"
    " $\\frac{ $x^ & {} %s ../../etc"
)
CONTROL = "\x00\x1b[31m\u202e"


def drawn(rows):
    return {name: figure for _, name, _, figure in plot.draw_all(pd.DataFrame(rows)) if figure}


def texts(figure):
    """The texts of a figure, without breaks of the subtitle's lines."""
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]


def test_the_command_names_what_it_drew_and_what_it_did_not(tmp_path, capsys):
    assert main(["plot", str(OLD), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"speed.png", "speed.svg"}
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [str(tmp_path / "speed.png"), str(tmp_path / "speed.svg")]
    assert lines[2].startswith("not drawn: no rows for the roofline")
    assert imread(tmp_path / "speed.png")[..., :3].std() > 0.05
    letters = "".join(ET.parse(tmp_path / "speed.svg").getroot().itertext())
    for said in ("AMD EPYC", "torch 2.13.0", "commit 4d55deb0d6", "digits-28", "plain PyTorch path"):
        assert said in letters


class TestBars:
    def test_a_loss_differs_from_a_win_in_colour_hatch_and_side(self):
        rows = pair({"median_ms": 2.0}, {}) + pair({"median_ms": 0.5}, {}, workload="planes-7")
        loss, win = drawn(rows)["speed"].axes[0].patches
        assert (loss.get_hatch(), win.get_hatch()) == ("//", None)
        assert (loss.get_width(), win.get_width()) == pytest.approx((-0.5, 1))
        assert loss.get_facecolor() != win.get_facecolor()

    def test_the_bar_is_a_geometric_mean_and_the_whisker_its_range_with_the_noise(self):
        rows = pair({"median_ms": 0.5, "q20_ms": 0.25, "q80_ms": 1.0}, {}, map="identity")
        rows += pair({"median_ms": 0.125, "q20_ms": 0.1, "q80_ms": 0.25}, {}, map="zoom-2")
        figure = drawn(rows)["speed"]
        (bar,) = figure.axes[0].patches
        assert bar.get_x() + bar.get_width() == pytest.approx(4)
        assert "4.00x  0.25 ms" in texts(figure)
        assert any(list(line.get_xdata()) == pytest.approx([1, 10]) for line in figure.axes[0].lines)

    def test_a_mark_shows_the_speed_up_in_cuda_graphs(self):
        rows = pair({"graph_ms": 0.1}, {"graph_ms": 0.5}) + pair({"graph_ms": 0.1}, {}, workload="planes-7")
        figure = drawn(rows)["speed"]
        marks = [line for line in figure.axes[0].lines if line.get_marker() == "d"]
        assert [list(line.get_xdata()) for line in marks] == [[pytest.approx(5)]]
        assert "operator and pair in CUDA graphs" in texts(figure)

    def test_shares_of_the_roofline_and_of_memory_begin_at_0(self):
        rows = pair({"roofline": 0.83, "copy_gb_per_s": 100.0, "peak_mib": 30.0}, {"peak_mib": 120.0})
        rows += pair({"peak_mib": 150.0}, {"peak_mib": 100.0}, workload="planes-7")
        figures = drawn(rows)
        (bar,), bars = (figures[name].axes[0].patches for name in ("roofline", "memory"))
        assert (bar.get_x(), bar.get_width(), bar.get_hatch()) == (0, pytest.approx(0.83), None)
        assert [(bar.get_width(), bar.get_hatch()) for bar in bars] == [(0.25, None), (1.5, "//")]
        assert any("Copy bandwidth: 100 GB/s" in text for text in texts(figures["roofline"]))
        assert "25 %" in texts(figures["memory"])

    def test_rows_without_a_time_are_named_and_counted(self):
        table = small(passes=("forward",))
        own, zoomed = table["provider"] == "operator", table["map"] == "zoom-2"
        without_time(table, own & zoomed & (table["workload"] == "digits-28"), "FAILED", "differs")
        without_time(table, own & (table["workload"] != "digits-28"), "skipped", "too large")
        figure = drawn(table)["speed"]
        said = " ".join(texts(figure))
        for text in ("FAILED: 1 of 2", "skipped: 2 of 2", "Rows without a value: 2 skipped, 1 FAILED."):
            assert text in said
        assert len(figure.axes[0].patches) == 1

    def test_runs_and_passes_are_apart_and_sweeps_stay_out(self):
        figures = drawn(pd.concat([small(), small(facts=CPU).assign(quick=True), sweeps()]))
        first = figures["speed-1-imaginary-h100-80gb-hbm3-4d55deb0d6"]
        assert [ax.get_title("left") for ax in first.axes] == ["forward", "forward+backward"]
        first = " ".join(texts(first))
        second = " ".join(texts(figures["speed-2-imaginary-epyc-4d55deb0d6"]))
        assert ("Quick run" in first, "Quick run" in second) == (False, True)
        assert ("H100" in second, "size-32" in first) == (False, False)

    def test_any_number_of_workloads_is_drawn_in_part(self):
        rows = [row for i in range(100) for row in pair({}, {}, workload=f"workload-{i}")]
        assert any("The first 60 of 100 workloads." in text for text in texts(drawn(rows)["speed"]))


def test_scaling_has_lines_with_bands_and_the_byte_model():
    table = sweeps()
    mask = (table["workload"] == "size-2048") & (table["provider"] == "eager")
    figure = drawn(without_time(table, mask, "FAILED", "out of memory"))["scaling"]
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in figure.axes} == {("log", "log")}
    assert [ax.get_title("left").partition(":")[0] for ax in figure.axes] == ["size", "batch", "channels"]
    assert any("Rows without a time: 1 FAILED" in text for text in texts(figure))
    ax, n = figure.axes[0], np.array(made_up.SWEEPS["size"])
    own, eager, model = ax.lines
    assert (len(own.get_xdata()), len(eager.get_xdata())) == (4, 3)
    np.testing.assert_allclose(model.get_ydata(), 16 * 3 * n**2 * 8 / 2900e9 * 1e3, rtol=1e-6)
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(min(own.get_ydata()) * 0.95)
    assert band.max() == pytest.approx(max(own.get_ydata()) * 1.05)


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

    def pictures(self):
        sources = (attrs["src"].partition("data:image/svg+xml;base64,") for attrs in self.tags("img"))
        return [ET.fromstring(base64.b64decode(data)) for before, _, data in sources if not before]


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
    letters = ["".join(picture.itertext()) for picture in page.pictures()]
    assert len(letters) == 5  # speed and roofline of both, memory of one
    assert all("Affine sampling" in text for text in letters)


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
    table = pd.concat([small(passes=("forward",)), sweeps()], ignore_index=True)
    for name in ("workload", "map", "provider", "status", "reason", "shape", "dtype", "layout", "checked"):
        table.loc[:4, name] = HOSTILE + CONTROL
    table.loc[table["workload"] == "batch-16", ["shape", "dtype"]] = HOSTILE
    facts = ("device", "driver", "torch", "commit", "date", "platform")
    page = Page(report.write(table.assign(**dict.fromkeys(facts, HOSTILE)), tmp_path).read_text("utf-8"))
    assert len(page.tags("script")) == 1
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert page.text.count(HOSTILE) > 10  # shown as it stands, and not filled in
    assert len(page.pictures()) == len(page.tags("img")) == 4
    for element in (element for picture in page.pictures() for element in picture.iter()):
        assert not element.tag.endswith(("script", "foreignObject", "image"))


@pytest.mark.full
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), 1e-300, 1e9, 1e-9])
def test_numbers_beyond_reason_do_not_stop_a_chart(tmp_path, value):
    table = pd.concat([small(passes=("forward",)), sweeps()], ignore_index=True)
    numbers = table.select_dtypes(float).columns
    table.loc[(table["provider"] == "operator") & (table.index % 2 == 0), numbers] = value
    assert len(Page(report.write(table, tmp_path).read_text("utf-8")).pictures()) == 4


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
