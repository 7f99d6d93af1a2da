"""``python -m perf plot`` and ``report``: right numbers, losses marked, and no code of a file."""

import base64
import hashlib
import html
import re
import xml.etree.ElementTree as ET

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")
import made_up  # noqa: E402
import numpy as np  # noqa: E402
from made_up import CPU, pair, small, sweeps, without_time  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from perf import plot, report  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.charts import style  # noqa: E402

HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick=x>&amp;</table></style>{{ 7*7 }}"
    " $\\frac{ $x^ & {} %s ../../etc"
)
CONTROL = "\x00\x1b[31m\u202e"


def drawn(rows):
    return {name: figure for name, _, figure in plot.figures(made_up.run(rows)) if figure}


def texts(figure):
    """The texts of a figure, without breaks of the subtitle's lines."""
    return [text.get_text().replace("\n", " ") for text in figure.findobj(Text)]


def test_the_commands_name_what_they_wrote_and_what_they_did_not(tmp_path, capsys):
    small(passes=("forward",), facts=CPU).assign(quick=True).to_csv(tmp_path / "speed.csv")
    out = tmp_path / "out"
    assert main(["plot", str(tmp_path), "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {"speed.png", "speed.svg"}
    lines = capsys.readouterr().out.splitlines()
    assert [str(out / "speed.png"), str(out / "speed.svg")] == [
        line for line in lines if "not drawn" not in line
    ]
    assert any(line.startswith("not drawn: no rows for the peak memory") for line in lines)
    assert imread(out / "speed.png")[..., :3].std() > 0.05
    letters = "".join(ET.parse(out / "speed.svg").getroot().itertext())
    for said in ("Imaginary EPYC", "torch 2.13.0", "commit 4d55deb0d6", "digits-28", "plain PyTorch"):
        assert said in letters
    assert main(["report", str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "report.html")
    page = (out / "report.html").read_text("utf-8")
    assert "Not drawn: no rows for the peak memory" in page
    assert "A quick run" in page


class TestBars:
    def test_a_loss_differs_from_a_win_in_colour_hatch_and_side(self):
        rows = pair({"median_ms": 2.0}, {}) + pair({"median_ms": 0.5}, {}, workload="planes-7")
        loss, win = drawn(rows)["speed"].axes[0].patches
        assert (loss.get_hatch(), win.get_hatch()) == ("//", None)
        assert (loss.get_width(), win.get_width()) == pytest.approx((-0.5, 1))
        assert loss.get_facecolor() != win.get_facecolor()

    def test_the_bar_is_a_geometric_mean_with_its_least_and_its_largest_value(self):
        rows = pair({"median_ms": 0.5, "peak_mib": 30.0}, {"peak_mib": 120.0}, map="identity")
        rows += pair({"median_ms": 0.125, "peak_mib": 30.0}, {"peak_mib": 120.0}, map="zoom-2")
        for name, said, ends in (("speed", "4.00x  0.25 ms", [2, 8]), ("memory", "4.00x  30 MiB", [4, 4])):
            figure = drawn(rows)[name]
            (bar,) = figure.axes[0].patches
            assert bar.get_x() + bar.get_width() == pytest.approx(4)
            assert said in texts(figure)
            assert any(list(line.get_xdata()) == pytest.approx(ends) for line in figure.axes[0].lines)

    @pytest.mark.filterwarnings("error")  # Matplotlib warns where a panel without marks breaks the layout
    def test_a_mark_shows_the_speed_up_in_cuda_graphs(self):
        rows = pair({"graph_ms": 0.1}, {"graph_ms": 0.5}) + pair({"graph_ms": 0.1}, {}, workload="planes-7")
        figure = drawn(rows + pair({}, {}, passed="forward+backward"))["speed"]
        marks = [next(line for line in ax.lines if line.get_marker() == "d") for ax in figure.axes]
        values = [[x for x in mark.get_xdata() if x == x] for mark in marks]
        assert values == [[pytest.approx(5)], []]
        assert "operator and pair in CUDA graphs" in texts(figure)
        assert style.render(figure, "png")

    def test_rows_without_a_time_are_counted_and_sweeps_stay_out(self):
        table = small()
        ours = (table["provider"] == "operator") & (table["pass"] == "forward")
        is_digits = table["workload"] == "digits-28"
        without_time(table, ours & (table["map"] == "zoom-2") & is_digits, "FAILED", "differs")
        without_time(table, ours & ~is_digits, "skipped", "too large")
        figures = drawn(pd.concat([table, sweeps()]))
        assert set(figures) == {"speed", "memory", "speed-backward", "memory-backward", "scaling"}
        figure = figures["speed"]
        assert [ax.get_title("left") for ax in figure.axes] == ["forward", "forward+backward"]
        said = " ".join(texts(figure))
        for text in ("FAILED: 1 of 2", "skipped: 2 of 2", "Not shown: 2 skipped, 1 FAILED."):
            assert text in said
        assert "size-32" not in said
        assert len(figure.axes[0].patches) == 1


def test_scaling_has_lines_and_the_byte_model():
    table = sweeps()
    mask = (table["workload"] == "size-2048") & (table["provider"] == "eager")
    figure = drawn(without_time(table, mask, "FAILED", "out of memory"))["scaling"]
    assert {(ax.get_xscale(), ax.get_yscale()) for ax in figure.axes} == {("log", "log")}
    assert [ax.get_title("left").partition(":")[0] for ax in figure.axes] == ["size", "batch", "channels"]
    assert any("Not shown: 1 FAILED" in text for text in texts(figure))
    n = np.array(made_up.SWEEPS["size"])
    own, eager, model = figure.axes[0].lines
    assert (own.get_xdata().tolist(), len(eager.get_xdata())) == (n.tolist(), 3)
    assert own.get_ydata() == pytest.approx(table.loc[table["provider"] == "operator", "median_ms"][:4])
    np.testing.assert_allclose(model.get_ydata(), 16 * 3 * n**2 * 8 / 2900e9 * 1e3, rtol=1e-6)


def page_of(table, out):
    return report.write(made_up.run(table), out).read_text("utf-8")


def text_of(page):
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


def pictures(page):
    found = re.findall(r'src="data:image/svg\+xml;base64,([^"]*)"', page)
    return [ET.fromstring(base64.b64decode(data)) for data in found]


def test_every_row_is_in_the_page_with_losses_marked_and_reasons(tmp_path):
    table = small(passes=("forward",))
    failed = (table["workload"] == "planes-7") & (table["provider"] == "compile")
    without_time(table, failed, "FAILED", "differs by 0.5, allowed 0.001")
    table.loc[0, ["median_ms", "speedup"]] = [0.4, 0.5]
    page = page_of(table, tmp_path)
    (body,) = re.findall(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', page, re.DOTALL)
    assert body.count("<tr") == 12
    assert f"<td>{table['median_ms'].iloc[5]:.4g}</td>" in body
    (lost,) = re.findall(r'<tr class="bad">.*?</tr>', body)
    assert "<td>operator</td>" in lost
    assert "<td>0.5</td>" in lost
    for said in ("FAILED differs by 0.5, allowed 0.001 compile 2 planes-7", "driver 570.86.15", "threads 26"):
        assert said in text_of(page)
    letters = ["".join(picture.itertext()) for picture in pictures(page)]
    assert ["speed-up" in text for text in letters] == [True, False]  # and memory


def test_nothing_of_a_file_becomes_an_element_is_fetched_or_run(tmp_path):
    table = pd.concat([small(passes=("forward",)), sweeps()], ignore_index=True)
    for name in ("workload", "map", "provider", "status", "reason", "shape", "dtype", "layout", "checked"):
        table.loc[:4, name] = HOSTILE + CONTROL
    table.loc[table["workload"] == "batch-16", ["shape", "dtype"]] = HOSTILE
    facts = ("device", "driver", "torch", "commit", "date", "platform")
    page = page_of(table.assign(**dict.fromkeys(facts, HOSTILE)), tmp_path)
    assert text_of(page).count(HOSTILE) > 10  # shown as it stands, and not filled in
    assert (page.count("<script"), page.count("<img"), len(pictures(page))) == (1, 3, 3)
    fetching = r"\s(on\w+|href|action|data|poster|srcset|src(?!=\"data:image/svg))\s*="
    assert not any(re.search(fetching, tag) for tag in re.findall(r"<\w[^>]*>", page))
    for element in (element for picture in pictures(page) for element in picture.iter()):
        assert not element.tag.endswith(("script", "foreignObject", "image"))
    assert not re.search(r"@import|url\(", page)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    (policy,) = re.findall(r'"Content-Security-Policy" content="([^"]*)"', page)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
