"""``python -m perf report``: a page that says everything, stands alone and runs nothing of a file's."""

import base64
import hashlib
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
import made_up  # noqa: E402

from perf import report  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.measuring import targets  # noqa: E402
from perf.page import headline  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
OLD = ROOT / "perf" / "results" / "cpu-epyc-2-threads.csv"
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(2)>\"'><b onclick=x>&amp;</table></style>${title}"
)
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Every element with its attributes, the text outside scripts and styles, and whether elements nest."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.elements, self.letters, self.open, self.scripts, self.styles = [], [], [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        into = {"script": self.scripts, "style": self.styles}.get(self.open[-1] if self.open else "")
        (self.letters if into is None else into).append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.letters).split())

    def tags(self, name):
        return [attrs for tag, attrs in self.elements if tag == name]


def table_of(facts=made_up.CUDA, **changes):
    options = {"workloads": ("digits-28", "planes-7"), "maps": ("identity", "zoom-2")}
    options |= {"providers": ("operator", "eager", "compile"), "passes": ("forward", "forward+backward")}
    return made_up.speed(facts=facts, **(options | changes))


def written(table, out, **more):
    return Page(report.write(table, out, **more).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Where a page of two workloads, sweeps and timings of tune lies."""
    out = tmp_path_factory.mktemp("report")
    table = pd.concat([table_of(), made_up.sweeps(providers=("operator", "eager"))], ignore_index=True)
    failed = (table["workload"] == "planes-7") & (table["provider"] == "compile")
    table.loc[failed, ["status", "reason"]] = ["FAILED", "differs by 0.5, allowed 0.001"]
    table.loc[failed, ["median_ms", "q20_ms", "q80_ms", "speedup", "roofline"]] = None
    table.to_csv(out / "speed.csv", index=False)
    made_up.tuning(2).to_csv(out / "tuning.csv", index=False)
    assert main(["report", str(out), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def html(directory):
    return (directory / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html):
    parsed = Page(html)
    assert parsed.open == []
    return parsed


class TestContent:
    def test_parts(self, page):
        for title in (
            "Targets",
            "Charts",
            "All rows",
            "Rows without a time",
            "Environment",
            "Tuning",
            "Method",
        ):
            assert title in page.text
        links = [attrs["href"] for attrs in page.tags("a")]
        assert set(links) == {"#run-1", "#tuning", "#method"}
        assert {link[1:] for link in links} <= {attrs.get("id") for _, attrs in page.elements}

    def test_every_row_is_in_the_table(self, html, directory):
        rows = pd.read_csv(directory / "speed.csv")
        body = re.search(r'<table class="sortable">.*?<tbody>(.*?)</tbody>', html, re.DOTALL)[1]
        assert body.count("<tr") == len(rows)
        assert f"<td>{rows['workload'].iloc[-1]}</td>" in body
        assert f'<td class="number">{rows["median_ms"].iloc[-1]:.4g}</td>' in body

    def test_the_charts_are_in_the_page_with_their_captions(self, page):
        pictures = [attrs for attrs in page.tags("svg") if attrs.get("role") == "img"]
        assert len(pictures) == len(page.tags("figcaption")) == 5
        assert all(len(attrs["aria-label"]) > 30 for attrs in pictures)
        assert "Affine sampling: speed-up over F.affine_grid + F.grid_sample" in page.text  # text, not paths
        assert "Not drawn: speed-backward: no row of backward, theta, input has a speed-up." in page.text

    def test_rows_without_a_time_have_their_reason(self, page):
        assert "FAILED compile 4 differs by 0.5, allowed 0.001 planes-7" in page.text

    def test_the_environment(self, page):
        for fact in ("driver", "toolkit", "threads", "torch", "commit", "date"):
            assert f"{fact} {made_up.CUDA[fact]}" in page.text
        assert "copy bandwidth 2900 GB/s" in page.text

    def test_the_method_names_what_it_rests_on(self, page):
        method = page.text[page.text.index("Method As ") :]
        for word in (
            "fp64",
            "in turns",
            "cache",
            "20 and 80 %",
            "CUDA graph",
            "unique input pixels",
            "copy bandwidth",
        ):
            assert word.lower() in method.lower()

    def test_targets_are_shown_as_they_are_judged(self, monkeypatch, tmp_path):
        judged = [{"name": "forward <fast>", "asked": "85 %", "measured": "79 %", "verdict": "missed"}]
        seen = []
        monkeypatch.setattr(targets, "targets", lambda rows: seen.append(len(rows)) or pd.DataFrame(judged))
        assert (
            "target asked measured verdict forward <fast> 85 % 79 % missed"
            in written(table_of(), tmp_path).text
        )
        assert seen == [len(table_of())]

    def test_runs_are_not_shown_as_one(self, tmp_path):
        page = written(pd.concat([table_of(), table_of(facts=made_up.CPU)]), tmp_path)
        assert "2 runs : other machines" in page.text
        heads = page.text.split("Imaginary EPYC, commit 4d55deb0d6, 2026-11-23")
        assert len(heads) == 3  # in the contents and as a head
        assert "H100" in heads[1]
        assert "H100" not in heads[2]
        assert [attrs["id"] for attrs in page.tags("section")] == ["run-1", "run-2"]

    def test_an_old_file_gives_a_page(self, tmp_path):
        assert main(["report", str(OLD), "--out", str(tmp_path)]) == 0
        page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
        assert "AMD EPYC, commit 4d55deb0d6, 2026-11-23" in page.text
        assert "Not drawn: roofline" in page.text
        assert "plain PyTorch path" in page.text
        assert "copy bandwidth not in the file" in page.text

    def test_a_quick_run_is_called_one(self, tmp_path):
        assert "quick run" in written(table_of().assign(quick=True), tmp_path).text

    def test_timings_of_tune_alone_are_refused(self, tmp_path, capsys):
        made_up.tuning(1).to_csv(tmp_path / "tuning.csv", index=False)
        with pytest.raises(SystemExit) as stop:
            main(["report", str(tmp_path), "--out", str(tmp_path)])
        assert stop.value.code == 2
        assert "timings of `tune` alone" in capsys.readouterr().err


class TestStandsAlone:
    def test_nothing_is_fetched(self, page):
        fetching = {"link", "img", "iframe", "object", "embed", "base", "form", "audio", "video", "source"}
        assert not fetching & {tag for tag, _ in page.elements}
        for tag, attrs in page.elements:
            for name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset"):
                # Within the page, or the picture itself: the scale of colours.
                assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
            for value in attrs.values():
                assert all(address[0] == "#" for address in re.findall(r"url\((.*?)\)", value or "")), value
        assert "@import" not in "".join(page.styles)
        assert "url(" not in "".join(page.styles)
        assert not re.search(r"fetch|XMLHttp|import|http", "".join(page.scripts))

    def test_the_only_script_is_ours_and_the_policy_lets_no_other_run(self, page):
        assert page.scripts == [(ROOT / "perf" / "page" / "page.js").read_text()]
        (policy,) = (
            a["content"] for a in page.tags("meta") if a.get("http-equiv") == "Content-Security-Policy"
        )
        digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}';" in policy
        assert policy.startswith("default-src 'none';")
        assert "http" not in policy

    def test_dark_mode_print_and_small_screens_are_thought_of(self, page):
        css = "".join(page.styles)
        assert "prefers-color-scheme: dark" in css
        assert "@media print" in css
        assert re.search(r"\.wide \{[^}]*overflow: auto", css)
        assert any(attrs.get("name") == "viewport" for attrs in page.tags("meta"))

    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_letters_stand_out_from_the_page(self, html, scheme):
        from matplotlib.colors import to_rgb

        from perf.charts.landscape import luminance

        blocks = re.findall(r":root \{(.*?)\}", html, re.DOTALL)
        colors = dict(re.findall(r"--(\w+): (#\w+)", blocks[scheme == "dark"]))
        for letters in ("ink", "muted", "bad", "link"):
            for paper in ("page", "shade"):
                low, high = sorted(luminance(to_rgb(colors[name])) for name in (letters, paper))
                assert (high + 0.05) / (low + 0.05) > 4.5, (letters, paper)  # WCAG


class TestHostileStrings:
    @pytest.fixture(scope="class")
    @classmethod
    def hostile(cls, tmp_path_factory):
        table = table_of()
        for name in ("workload", "map", "provider", "status", "reason", "shape", "dtype", "checked"):
            table.loc[table.index[:4], name] = HOSTILE
        for name in ("device", "driver", "torch", "commit", "date", "platform"):
            table[name] = HOSTILE
        tuning = made_up.tuning(1).assign(bucket=HOSTILE, device=HOSTILE, status=HOSTILE)
        tuning.loc[:3, "status"] = "ok"
        return written(table, tmp_path_factory.mktemp("hostile"), tuning=tuning)

    def test_nothing_of_a_file_becomes_an_element(self, hostile):
        assert len(hostile.tags("script")) == 1
        assert not hostile.tags("img")
        assert not hostile.tags("b") or all(not attrs for attrs in hostile.tags("b"))
        assert not [attrs for _, attrs in hostile.elements if any(name.startswith("on") for name in attrs)]
        assert hostile.open == []

    def test_it_is_shown_as_it_stands(self, hostile):
        assert HOSTILE in hostile.text  # not filled in either: ${title}
        assert hostile.text.count("<script>alert(1)</script>") > 10

    def test_an_old_spelling_of_the_policy_would_be_seen(self):
        page = Page("<p onclick=x><script>1</script></p>")
        assert page.scripts == ["1"]
        assert page.tags("p") == [{"onclick": "x"}]


class TestHeadline:
    def numbers(self, rows):
        from perf import files

        (run,) = files.runs(files.normal(pd.DataFrame(rows)))
        return {number.text: number.value for number in headline.numbers(run)}

    def pair(self, ours, theirs, rival="eager", **names):
        return [
            made_up.row(provider=p, median_ms=m, **names) for p, m in (("operator", ours), (rival, theirs))
        ]

    def test_speed_is_a_geometric_mean_with_its_range_and_losses(self):
        rows = self.pair(1.0, 8.0) + self.pair(2.0, 1.0, map="zoom-2")
        found = self.numbers(rows)
        text = "as fast as the eager pair, forward: geometric mean of 2 rows, 0.50x to 8.00x; slower on 1"
        assert found[text] == "2.00x"

    def test_rows_of_sweeps_and_without_a_partner_do_not_count(self):
        rows = self.pair(1.0, 3.0) + self.pair(1.0, 100.0, workload="size-64")
        rows += [made_up.row(provider="operator", map="zoom-2")]
        rows += [made_up.row(provider="compile", map="zoom-2", status="FAILED", median_ms=None)]
        found = self.numbers(rows)
        assert [value for text, value in found.items() if "eager pair, forward" in text] == ["3.00x"]
        assert not [text for text in found if "torch.compile" in text]
        assert found["rows; without a time: 1 FAILED"] == "6"

    def test_roofline_and_memory(self):
        rows = [
            made_up.row(roofline=r, peak_mib=10.0, map=m) for m, r in (("a", 0.5), ("b", 0.7), ("c", 0.9))
        ]
        rows += [made_up.row(provider="eager", peak_mib=40.0, map=m) for m in "abc"]
        found = self.numbers(rows)
        assert found["of the copy bandwidth, forward: median of 3 rows, 50 % to 90 %"] == "70 %"
        assert found["of the eager pair's peak memory: geometric mean of 3 rows"] == "25 %"

    def test_failures_of_the_operator_are_a_number_of_their_own(self):
        rows = [*self.pair(1.0, 2.0), made_up.row(map="zoom-2", status="FAILED", median_ms=None)]
        assert self.numbers(rows)["of 2 rows of the operator FAILED"] == "1"


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node to run the page's script")
def test_the_script_sorts_numbers_as_numbers():
    """Of the page's script the comparison alone, which needs no browser."""
    line = next(
        x for x in (ROOT / "perf" / "page" / "page.js").read_text().splitlines() if "const compare" in x
    )
    values = '["9.5", "0.45", "", "0.5", "1e-05", "100"]'
    script = (
        f"{line}\nconsole.log({values}.sort(compare).join());console.log(['b-10','b-9'].sort(compare).join())"
    )
    done = subprocess.run(["node", "-e", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [",1e-05,0.45,0.5,9.5,100", "b-9,b-10"], done.stderr
