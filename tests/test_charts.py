"""The charts of result files: what is drawn, what is said instead, what is told apart."""

import itertools
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")
import made_up  # noqa: E402
import matplotlib as mpl  # noqa: E402
import numpy as np  # noqa: E402
from made_up import small, without_time  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.colors import to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from matplotlib.patches import Rectangle  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from perf import charts, files, plot  # noqa: E402
from perf.__main__ import main  # noqa: E402
from perf.charts import (  # noqa: E402
    landscape,
    speed_up,
    style,
)
from perf.measuring.rival_scatter import SCATTER  # noqa: E402

OLD = Path(__file__).resolve().parents[1] / "perf" / "results" / "cpu-epyc-2-threads.csv"
FEW = ("digits-28", "features-56-channels-last")
HOSTILE = "<script>alert(1)</script> $\\frac{ $x^ & \"'\x00\x1b[31m\u202e {} %s\n../../etc"


def drawn(table):
    """The figures by name."""
    return {chart.name: chart.figure for _, chart in charts.draw_all(table) if chart.figure}


def texts(figure):
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


@pytest.fixture(scope="module")
def all_charts(tmp_path_factory):
    out = tmp_path_factory.mktemp("charts") / "deeper"
    speed = pd.concat([small(), made_up.sweeps(providers=("operator", "eager"))])
    return plot.draw(speed, out) + plot.draw(made_up.tuning(3), out)


class TestDrawing:
    def test_every_chart_is_a_png_and_an_svg(self, all_charts):
        names = {"speed", "speed-backward", "roofline", "roofline-backward", "scaling", "memory", "tuning"}
        assert {path.name for path in all_charts} == {f"{n}.{form}" for n in names for form in ("png", "svg")}
        assert all(path.exists() for path in all_charts)

    def test_pictures_show_something_at_150_dpi(self, all_charts):
        for path in all_charts:
            if path.suffix == ".png":
                image = imread(path)[..., :3]
                assert image.shape[1] == round(style.WIDTH * 150)
                assert image.std() > 0.05, path

    def test_text_in_vectors_stays_text(self, all_charts):
        for path in all_charts:
            if path.suffix == ".svg":
                letters = "".join(ET.parse(path).getroot().itertext())
                assert "Imaginary H100 80GB HBM3" in letters
                wanted = {"scaling": "64x3xNxN", "tuning": "channels per program"}.get(path.stem, "digits-28")
                assert wanted.replace("64x3", "16x3") in letters

    def test_the_same_rows_give_the_same_bytes(self, tmp_path, all_charts):
        for path in plot.draw(made_up.tuning(3), tmp_path):
            (before,) = [old for old in all_charts if old.name == path.name]
            assert before.read_bytes() == path.read_bytes()


def test_the_command_says_what_it_drew_and_what_it_did_not(tmp_path, capsys):
    assert main(["plot", str(OLD), "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"speed.png", "speed.svg"}
    printed = capsys.readouterr()
    assert printed.err == ""  # no bar where there is no terminal
    lines = printed.out.splitlines()
    assert lines[:2] == [str(tmp_path / "speed.png"), str(tmp_path / "speed.svg")]
    missing = dict(line.removeprefix("not drawn: ").split(": ", 1) for line in lines[2:])
    assert set(missing) == {"speed-backward", "roofline", "roofline-backward", "scaling", "memory", "tuning"}
    assert "copy bandwidth" in missing["roofline"]
    assert "size-N" in missing["scaling"]
    assert "GPU" in missing["memory"]
    assert "tune" in missing["tuning"]


def test_an_output_that_is_a_file_exits_2(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    with pytest.raises(SystemExit) as stop:
        main(["plot", str(OLD), "--out", str(tmp_path / "taken")])
    assert stop.value.code == 2
    assert "--out" in capsys.readouterr().err


class TestSpeedUp:
    def one(self, **values):
        return pd.DataFrame([made_up.row(**values)])

    def loss_pixels(self, speedup, tmp_path):
        plot.draw(self.one(speedup=speedup), tmp_path)
        image = imread(tmp_path / "speed.png")
        return int(((image[..., 0] > 0.65) & (image[..., 1] < 0.35) & (image[..., 2] < 0.25)).sum())

    def test_losses_are_drawn_in_their_own_colour(self, tmp_path):
        # The legend has some of it in any case.
        assert self.loss_pixels(0.5, tmp_path) > 3 * self.loss_pixels(2.0, tmp_path) > 0

    def test_a_loss_is_told_from_a_win_without_colour(self):
        figure = drawn(pd.DataFrame([made_up.row(speedup=0.5), made_up.row("images-224", speedup=2.0)]))[
            "speed"
        ]
        loss, win = (patch for patch in figure.axes[0].patches if isinstance(patch, Rectangle))
        assert loss.get_hatch()
        assert not win.get_hatch()
        assert loss.get_width() < 0 < win.get_width()

    def test_maps_are_averaged_geometrically_and_their_range_is_shown(self):
        rows = [made_up.row(map=name, speedup=s) for name, s in (("identity", 2.0), ("zoom-2", 8.0))]
        figure = drawn(pd.DataFrame(rows))["speed"]
        assert {"4.00x", "2.00x to 8.00x"} <= set(texts(figure))
        (bar,) = figure.axes[0].patches
        assert bar.get_x() + bar.get_width() == pytest.approx(4)
        assert any(sorted(line.get_xdata()) == [2.0, 8.0] for line in figure.axes[0].lines)

    def test_whiskers_are_the_quantiles(self):
        figure = drawn(self.one(speedup=4.0, median_ms=1.0, q20_ms=0.5, q80_ms=2.0))["speed"]
        assert any(list(line.get_xdata()) == pytest.approx([2, 8]) for line in figure.axes[0].lines)

    def test_each_pass_has_a_panel(self):
        figures = drawn(small())
        titles = [ax.get_title(loc="left") for ax in figures["speed"].axes]
        assert titles == ["forward", "forward + backward"]
        assert [ax.get_title(loc="left") for ax in figures["speed-backward"].axes] == [
            "backward",
            "gradient of theta alone",
            "gradient of input alone",
        ]

    def test_rows_without_a_time_are_said_at_their_place(self):
        table = made_up.speed(workloads=FEW, maps=("identity", "zoom-2"), passes=("forward",))
        digits = table["workload"] == "digits-28"
        operator = table["provider"] == "operator"
        without_time(table, digits & operator & (table["map"] == "zoom-2"), "FAILED", "differs")
        rival = table["provider"] == "compile"
        without_time(table, digits & rival & (table["map"] == "identity"), "skipped", "no compiler")
        without_time(table, ~digits, "skipped", "too large")
        without_time(table, table["provider"] == "kornia", "unavailable", "kornia is not installed")
        figure = drawn(table)["speed"]
        said = texts(figure)
        assert "FAILED on zoom-2: operator" in said
        assert "skipped on identity:" in " ".join(said)
        assert "skipped: all" in said
        assert any("kornia: unavailable on every row (kornia is not installed)" in text for text in said)

    def test_a_table_without_any_time_has_no_chart(self, tmp_path, capsys):
        rows = [made_up.row(provider=name, status="FAILED") for name in ("operator", "eager")]
        pd.DataFrame(rows).assign(median_ms=None).to_csv(tmp_path / "speed.csv", index=False)
        assert main(["plot", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
        assert list((tmp_path / "out").iterdir()) == []
        assert "not drawn: speed: nothing was timed" in capsys.readouterr().out

    def test_a_failed_operator_beside_a_rival_with_a_time_is_drawn(self):
        rows = [made_up.row(status="FAILED"), made_up.row(provider="compile", speedup=1.4)]
        assert "FAILED: operator" in texts(drawn(pd.DataFrame(rows))["speed"])

    def test_workloads_of_sweeps_stay_out(self):
        both = pd.concat([small(passes=("forward",)), made_up.sweeps(passes=("forward",))])
        labels = "".join(texts(drawn(both)["speed"]))
        assert "digits-28" in labels
        assert "size-32" not in labels

    def test_runs_have_charts_of_their_own(self, tmp_path):
        two = pd.concat([small(passes=("forward",)), small(passes=("forward",), facts=made_up.CPU)])
        names = {path.stem for path in plot.draw(two, tmp_path)}
        assert {"speed-imaginary-h100-80gb-hbm3-4d55deb0d6", "speed-imaginary-epyc-4d55deb0d6"} <= names
        svg = (tmp_path / "speed-imaginary-epyc-4d55deb0d6.svg").read_text()
        assert "H100" not in svg
        assert "plain PyTorch path" in svg

    def test_a_quick_run_says_so(self):
        assert any("Quick run" in text for text in texts(drawn(small().assign(quick=True))["speed"]))
        assert not any("Quick run" in text for text in texts(drawn(small())["speed"]))


class TestTicks:
    @pytest.mark.parametrize("low", [1e-9, 0.003, 0.09, 0.3, 0.7, 1])
    @pytest.mark.parametrize("high", [1.3, 2, 5.5, 40, 1e9])
    @pytest.mark.parametrize("inches", [0.9, 3])
    def test_one_is_among_them_and_labels_have_room(self, low, high, inches):
        for ticks, places in (
            (speed_up.log_ticks(low, high, inches), lambda t: np.log(t) / np.log(high / low)),
            (speed_up.linear_ticks(high, inches), lambda t: np.array(t) / high),
        ):
            assert 1 in ticks
            assert max(ticks) <= high
            assert all(np.diff(places(ticks)) * inches > 0.41)

    def test_they_are_round(self):
        assert speed_up.log_ticks(0.6, 3.5, 3) == pytest.approx([0.7, 1, 1.5, 2, 3])
        assert speed_up.log_ticks(0.09, 5.5, 3) == pytest.approx([0.1, 0.2, 0.5, 1, 2, 5])
        assert speed_up.log_ticks(0.3, 8, 1.4) == pytest.approx([0.3, 1, 3])
        assert speed_up.log_ticks(0.09, 55, 1.4) == pytest.approx([0.1, 1, 10])
        assert speed_up.linear_ticks(1.1, 1.0) == pytest.approx([0, 0.5, 1])

    @pytest.mark.parametrize("name", ["speed-backward", "roofline-backward"])
    def test_three_narrow_panels_have_one_at_1(self, full_figures, name):
        assert all(1 in ax.get_xticks() for ax in full_figures[name].axes)


class TestRoofline:
    def test_the_line_the_bandwidth_and_every_provider(self):
        figure = drawn(small(passes=("forward",)))["roofline"]
        assert any("Copy bandwidth: 2900 GB/s" in text for text in texts(figure))
        ax = figure.axes[0]
        assert "100 %" in texts(ax)
        assert any(list(line.get_xdata()) == [1, 1] for line in ax.lines)
        markers = {line.get_marker() for line in ax.lines}
        assert {style.look("eager").marker, style.look("compile").marker} <= markers

    def test_a_bar_is_the_fraction(self):
        row = made_up.row(speedup=1.0, roofline=0.83, copy_gb_per_s=100.0, gb_per_s=83.0)
        figure = drawn(pd.DataFrame([row]))["roofline"]
        (bar,) = figure.axes[0].patches
        assert (bar.get_x(), bar.get_width()) == pytest.approx((0, 0.83))
        assert {"83 %", "83 GB/s"} <= set(texts(figure))

    def test_small_shares_are_drawn_on_a_logarithmic_axis_that_still_has_100_percent(self):
        rows = [
            made_up.row(name, roofline=r, speedup=1.0)
            for name, r in (("digits-28", 0.002), ("planes-7", 0.05))
        ]
        ax = drawn(pd.DataFrame(rows))["roofline"].axes[0]
        assert ax.get_xscale() == "log"
        assert ax.get_xlim()[0] < 0.002
        assert ax.get_xlim()[1] > 1
        assert "log scale" in ax.get_xlabel()
        first, second = ax.patches
        assert first.get_x() == second.get_x() == pytest.approx(ax.get_xlim()[0])
        assert first.get_x() + first.get_width() == pytest.approx(0.002)


@pytest.fixture(scope="module")
def scaling_figure():
    table = made_up.sweeps(providers=("operator", "eager"))
    mask = (table["workload"] == "size-2048") & (table["provider"] == "eager")
    return drawn(without_time(table, mask, "FAILED", "out of memory"))["scaling"]


class TestScaling:
    def test_axes_are_logarithmic_and_named(self, scaling_figure):
        assert len(scaling_figure.axes) == 6
        assert {(ax.get_xscale(), ax.get_yscale()) for ax in scaling_figure.axes} == {("log", "log")}
        titles = [ax.get_title(loc="left") for ax in scaling_figure.axes[:3]]
        assert titles == [
            "size: 16x3xNxN float32",
            "batch: Nx3x224x224 float32",
            "channels: 16xNx56x56 float32",
        ]

    def test_the_ideal_line_is_the_model_over_the_bandwidth(self, scaling_figure):
        ideal = scaling_figure.axes[0].lines[-1]
        n = np.array(made_up.SWEEPS["size"])
        expected = 16 * 3 * n**2 * 8 / 2900e9 * 1e3
        np.testing.assert_allclose(ideal.get_xdata(), n)
        np.testing.assert_allclose(ideal.get_ydata(), expected, rtol=1e-6)

    def test_lines_have_their_band_and_what_failed_its_word(self, scaling_figure):
        ax = scaling_figure.axes[0]
        lengths = [len(line.get_xdata()) for line in ax.lines]
        assert sorted(lengths) == [6, 7, 7]  # the eager pair has no time at 2048
        assert len(ax.collections) == 2
        band = ax.collections[-1].get_paths()[0].vertices
        line = ax.lines[-2].get_ydata()
        assert band[:, 1].min() == pytest.approx(min(line) * 0.9)
        assert band[:, 1].max() == pytest.approx(max(line) * 1.2)
        assert "FAILED" in " ".join(texts(ax))
        assert "FAILED" not in " ".join(texts(scaling_figure.axes[1]))


class TestMemory:
    def test_is_a_share_of_the_eager_pair(self):
        rows = [made_up.row(provider=p, peak_mib=m) for p, m in (("operator", 30.0), ("eager", 120.0))]
        figure = drawn(pd.DataFrame(rows))["memory"]
        assert {"25 %", "30 MiB"} <= set(texts(figure))
        (bar,) = figure.axes[0].patches
        assert not bar.get_hatch()

    def test_more_than_the_eager_pair_is_a_loss(self):
        rows = [made_up.row(provider=p, peak_mib=m) for p, m in (("operator", 150.0), ("eager", 100.0))]
        (bar,) = drawn(pd.DataFrame(rows))["memory"].axes[0].patches
        assert bar.get_hatch()

    def test_is_not_drawn_on_a_cpu(self):
        assert "memory" not in drawn(small(facts=made_up.CPU, passes=("forward",)))


class TestTuning:
    def config(self, bucket, median, block_c=4, tile=(8, 8), warps=4, **more):
        names = {"bucket": bucket, "BLOCK_C": block_c, "RUN_C": 1, "BLOCK_H": tile[0], "BLOCK_W": tile[1]}
        flags = {"is_default": False, "is_best": False, "status": "ok"}
        return names | flags | {"num_warps": warps, "median_ms": median, "device": "Imaginary"} | more

    def test_the_buckets_that_gained_most_are_chosen_one_of_each_kernel_first(self):
        rows = []
        for name, gain in (("forward/a", 1.5), ("forward/b", 1.4), ("theta/c", 1.1), ("forward/d", 1.2)):
            rows += [self.config(name, gain, is_default=True), self.config(name, 1.0, 8, is_best=True)]
        table = files.normal(pd.DataFrame(rows))
        assert landscape.choose(table, 3) == ["forward/a", "forward/b", "theta/c"]
        assert landscape.choose(table, 2) == ["forward/a", "theta/c"]

    def test_a_cell_is_the_best_over_warps_relative_to_the_best_of_all(self):
        rows = [
            self.config("forward/a", 2.0, is_best=True),
            self.config("forward/a", 6.0, block_c=16, warps=4, is_default=True),
            self.config("forward/a", 3.0, block_c=16, warps=8),
            self.config("forward/a", None, block_c=64, status="OutOfResources"),
        ]
        figure = drawn(pd.DataFrame(rows))["tuning"]
        said = texts(figure.axes[0])
        assert {"1.00", "1.50", "OutOfRes…"} <= set(said)
        assert any("best 2 ms (4 warps), default 3.00x of it" in text for text in said)
        frames = {(p.get_y() > 0.5, p.get_linestyle()) for p in figure.axes[0].patches if not p.get_fill()}
        assert (False, "solid") in frames  # the winner, in the first line
        assert any(is_second and style_ != "solid" for is_second, style_ in frames)  # the default

    def test_nothing_that_ran_is_no_chart(self):
        table = pd.DataFrame([self.config("forward/a", None, status="OutOfResources")])
        ((_, chart),) = charts.draw_all(table)
        assert chart.figure is None
        assert "no configuration has a time" in chart.missing


class TestBlackAndWhite:
    def test_known_providers_differ_in_marker_and_line(self):
        looks = [style.look(name) for name in made_up.PROVIDERS]
        assert len({look.marker for look in looks}) == len(looks)
        assert len({look.line for look in looks}) == len(looks)
        assert style.look("somebody-new").marker not in {look.marker for look in looks}

    def test_so_does_a_kernel_that_is_no_provider_of_users(self):
        looks = [style.look(name) for name in (*made_up.PROVIDERS, "nobody")]
        scatter = style.look(SCATTER.name)
        assert style.label(SCATTER.name) == SCATTER.label
        assert scatter.marker not in {look.marker for look in looks}
        assert scatter.line not in {look.line for look in looks}

    @pytest.mark.parametrize("color", [style.WIN, style.LOSS, style.INK, style.MUTED])
    def test_what_is_drawn_stands_out_from_the_paper(self, color):
        # 4.5 is WCAG's contrast for text.
        assert 1.05 / (landscape.luminance(to_rgb(color)) + 0.05) > 4.5

    def test_the_heat_map_darkens_all_the_way(self):
        brightness = [
            landscape.luminance(color) for color in mpl.colormaps[landscape._MAP](np.linspace(0, 1, 50))
        ]
        assert all(np.diff(brightness) < 0)


class TestHostileStrings:
    def test_names_from_a_file_are_only_drawn(self, tmp_path):
        names = ["workload", "map", "provider", "status", "reason", "shape", "dtype", "layout", "size"]
        table = small(passes=("forward",))
        for name in [*names, "device", "commit", "torch"]:
            table.loc[table.index[:5], name] = HOSTILE
        table.loc[table.index[5:], ["device", "commit", "torch"]] = HOSTILE
        paths = plot.draw(table, tmp_path / "out")
        sweep = made_up.sweeps(passes=("forward",)).assign(shape=HOSTILE, dtype=HOSTILE, device=HOSTILE)
        paths += plot.draw(sweep, tmp_path / "out")
        paths += plot.draw(
            made_up.tuning(2).assign(bucket=HOSTILE, status=HOSTILE, device=HOSTILE), tmp_path / "out"
        )
        assert paths
        for path in paths:
            assert path.parent == tmp_path / "out"
            if path.suffix == ".svg":
                root = ET.parse(path).getroot()  # well-formed, whatever the names
                assert not [e for e in root.iter() if e.tag.endswith(("script", "foreignObject", "image"))]
        assert [path.name for path in tmp_path.iterdir()] == ["out"]

    def test_any_number_of_workloads_is_drawn_in_part(self):
        rows = [made_up.row(f"workload-{i}", speedup=2.0) for i in range(100)]
        figure = drawn(pd.DataFrame(rows))["speed"]
        assert any("The first 60 of 100 workloads." in text for text in texts(figure))

    @pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan"), 1e-300, 1e300])
    def test_values_beyond_reason_do_not_stop_a_chart(self, value):
        table = small(passes=("forward",))
        columns = ["speedup", "roofline", "median_ms", "q20_ms", "q80_ms", "peak_mib", "gb_per_s"]
        table.loc[table["workload"] == "digits-28", columns] = value
        sweep = made_up.sweeps(passes=("forward",), providers=("operator", "eager"))
        sweep.loc[:3, ["median_ms", "q20_ms", "model_mib"]] = value
        figures = drawn(pd.concat([table, sweep]))
        assert set(figures) == {"speed", "roofline", "memory", "scaling"}
        for figure in figures.values():
            FigureCanvasAgg(figure).draw()


def overlapping(figure):
    """Pairs of texts that lie over each other, and texts that leave the picture."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in shown]
    # Two pixels of a line's height may touch: letters without descenders do not.
    inner = [(text, box.padded(-2)) for text, box in boxes if box.width > 4 and box.height > 4]
    found = [(a, b) for (a, one), (b, two) in itertools.combinations(inner, 2) if one.overlaps(two)]
    width, height = figure.get_size_inches() * figure.dpi
    outside = [t for t, b in boxes if b.x0 < -1 or b.y0 < -1 or b.x1 > width + 1 or b.y1 > height + 1]
    return found, outside


@pytest.fixture(scope="module")
def full_figures():
    table = pd.concat([made_up.speed(), made_up.sweeps()], ignore_index=True)
    zoomed = table["map"] == "zoom-2"
    operator = table["provider"] == "operator"
    without_time(table, operator & zoomed & (table["workload"] == "features-28"), "FAILED", "differs")
    without_time(table, zoomed & (table["workload"] == "volume-160"), "skipped", "no such map")
    corners = table["provider"].isin(["eager-corners", "eager-broadcast"]) & (table["workload"] == "planes-7")
    without_time(table, corners, "FAILED", "out of memory")
    without_time(table, table["workload"] == "size-2048", "FAILED", "out of memory")
    return drawn(table) | drawn(made_up.tuning())


class TestNothingOverlaps:
    """Long names, every provider, every map: the full suite."""

    @pytest.mark.parametrize(
        "name", ["speed", "speed-backward", "roofline", "roofline-backward", "scaling", "memory", "tuning"]
    )
    def test_in(self, full_figures, name):
        assert overlapping(full_figures[name]) == ([], [])

    def test_and_would_be_seen(self):
        figure = mpl.figure.Figure()
        figure.text(0.5, 0.5, "one text")
        figure.text(0.5, 0.5, "another")
        figure.text(0.95, 0.9, "leaves the picture")
        assert overlapping(figure) == ([("one text", "another")], ["leaves the picture"])
