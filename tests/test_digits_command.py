"""The digits example as a command: training, interruption and resuming, tables, pictures, errors."""

import json

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
from digits_files import write_mnist

from stn_triton import terminal
from stn_triton.examples.digits import __main__ as command
from stn_triton.examples.digits import data, invariance, pictures, scores
from stn_triton.examples.digits.training import Result, Settings, Task


@pytest.fixture(scope="module")
def source():
    return data.load()


def run(*arguments):
    return command.main([*map(str, arguments)])


TINY = (
    "--distortions",
    "R",
    "--models",
    "cnn",
    "st-fcn-tps",
    "--seeds",
    "2",
    "--steps",
    "64",
    "--jobs",
    "1",
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Folder and printed text of a small run without interruption."""
    import contextlib
    import io

    out, printed = tmp_path_factory.mktemp("digits"), io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run(*TINY, "--out", out) == 0
    return out, printed.getvalue()


def errors(out):
    return json.loads((out / "results.json").read_text())["table"]


class TestCommand:
    def test_writes_table_rows_and_pictures(self, finished):
        out, printed = finished
        assert {path.name for path in out.iterdir()} == {
            *("networks", "networks.csv", "results.json", "table.txt", "crops-R.png")
        }
        assert (out / "table.txt").read_text().strip() in printed
        found = errors(out)
        assert [(row["model"], len(row["errors"])) for row in found] == [("cnn", 2), ("st-fcn-tps", 2)]
        for row in found:
            # Far better than guessing, and different seeds have different errors.
            assert row["error_percent"] < 75
            assert row["errors"][0] != row["errors"][1]
            assert f"{row['error_percent']:.2f} ± {row['standard_deviation']:.2f}" in printed

    @pytest.mark.full
    def test_goes_on_after_an_interruption_and_ends_as_if_there_was_none(
        self, finished, tmp_path, monkeypatch, capsys
    ):
        from stn_triton.examples.digits import training

        step, calls = training._step, []

        def interrupted(*arguments):
            calls.append(1)
            if len(calls) in (60, 120):  # after the first network's file is written; before the second's
                raise KeyboardInterrupt
            return step(*arguments)

        monkeypatch.setattr(training, "_step", interrupted)
        assert run(*TINY, "--out", tmp_path) == terminal.EXIT_INTERRUPTED
        assert "the same command goes on" in capsys.readouterr().err
        assert run(*TINY, "--out", tmp_path) == terminal.EXIT_INTERRUPTED
        assert run(*TINY, "--out", tmp_path) == 0
        # Steps run twice: 12 after the first network's file was written, 44 before the second's.
        assert len(calls) == 4 * 64 + 12 + 44
        for one, other in zip(errors(tmp_path), errors(finished[0]), strict=True):
            assert one["errors"] == other["errors"]
        name = "R-st-fcn-tps-seed2.pt"
        one, other = (
            torch.load(out / "networks" / name, weights_only=True) for out in (tmp_path, finished[0])
        )
        assert one["network"].keys() == other["network"].keys()
        assert all(torch.equal(value, other["network"][key]) for key, value in one["network"].items())

    def test_a_finished_network_is_not_trained_again(self, finished, monkeypatch, capsys):
        from stn_triton.examples.digits import training

        monkeypatch.setattr(training, "_step", None)
        assert run(*TINY, "--out", finished[0]) == 0
        assert (
            capsys.readouterr().out.split("minutes now")[0][:-4] == finished[1].split("minutes now")[0][:-4]
        )

    def test_other_settings_are_noticed_and_fresh_sets_aside(self, finished, tmp_path, capsys):
        out = finished[0]
        arguments = ("--distortions", "R", "--models", "cnn", "--seeds", "1", "--jobs", "1")
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, "--steps", "7", "--out", out)
        assert stopped.value.code == terminal.EXIT_USAGE
        assert "steps was 64, is now 7" in capsys.readouterr().err
        small = tmp_path / "small"
        assert run(*arguments, "--steps", "2", "--out", small) == 0
        assert run(*arguments, "--steps", "3", "--out", small, "--fresh") == 0
        for folder, steps in ((small, 3), (small / "previous", 2)):
            assert json.loads((folder / "results.json").read_text())["settings"]["steps"] == steps

    def test_a_damaged_file_is_named(self, finished, tmp_path, capsys):
        path = tmp_path / "networks" / "R-cnn-seed1.pt"
        path.parent.mkdir()
        path.write_bytes((finished[0] / "networks" / path.name).read_bytes()[:1000])
        with pytest.raises(SystemExit):
            run(*TINY, "--out", tmp_path)
        assert f"{path} is damaged" in capsys.readouterr().err

    @pytest.mark.full
    def test_worker_processes_find_the_same(self, finished, tmp_path):
        arguments = ("--distortions", "R", "--models", "cnn", "--seeds", "2", "--steps", "64")
        assert run(*arguments, "--jobs", "2", "--out", tmp_path) == 0
        assert errors(tmp_path)[0]["errors"] == errors(finished[0])[0]["errors"]

    def test_trains_on_mnist_files(self, tmp_path, capsys):
        mnist = write_mnist(tmp_path / "mnist")
        arguments = ("--distortions", "TC", "--models", "st-cnn-affine", "--seeds", "1", "--steps", "2")
        assert run(*arguments, "--data", mnist, "--jobs", "1", "--out", tmp_path) == 0
        assert "mnist (40 for training, 20 for testing)" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--models", "vgg"), "--models: unknown name 'vgg'; available: fcn, cnn, st-fcn-affine"),
            (("--distortions", "Q"), "--distortions: unknown name 'Q'; available: R, RTS, P, E, TC"),
            (("--steps", "0"), "--steps: expected a whole number above 0, got '0'"),
            (("--seeds", "x"), "--seeds: expected a whole number above 0, got 'x'"),
            (("--data", "nowhere"), "not found in nowhere, which is no folder"),
        ],
    )
    def test_wrong_arguments(self, arguments, message, capsys, tmp_path):
        with pytest.raises(SystemExit) as stopped:
            run(*arguments, "--out", tmp_path)
        assert stopped.value.code == terminal.EXIT_USAGE
        assert message in capsys.readouterr().err

    def test_help_has_examples(self, capsys):
        with pytest.raises(SystemExit) as stopped:
            run("--help")
        assert stopped.value.code == 0
        assert "--quick  " in capsys.readouterr().out

    def test_quick_fails_where_no_transformer_is_ahead(self, tmp_path, capsys, monkeypatch):
        from stn_triton.examples.digits import runs

        def found(cnn):
            def results_of(tasks, *_):
                return {task: Result(cnn if task.model == "cnn" else 3.0, 1, 1.0, 0.1) for task in tasks}

            return results_of

        monkeypatch.setattr(command, "_pictures", lambda *_: [])
        for error, code in ((4.0, terminal.EXIT_OK), (2.0, terminal.EXIT_FAILED)):
            monkeypatch.setattr(runs, "run", found(error))
            assert run("--quick", "--out", tmp_path) == code
            assert ("No ST-CNN came out ahead" in capsys.readouterr().err) == (code != 0)


class TestResults:
    def test_means_and_deviations(self):
        found = scores.cells(
            {Task("R", "cnn", seed): Result(e, 7, 1.0, 0.0) for seed, e in enumerate((1, 2, 3))}
        )
        assert str(found["R", "cnn"]) == "2.00 ± 1.00"
        assert str(scores.cells({Task("R", "cnn", 0): Result(1.5, 7, 1.0, 0.0)})["R", "cnn"]) == "1.50"

    def test_the_outline_of_theta(self):
        zoomed = torch.tensor([[0.5, 0, 0.1], [0, 0.5, 0]])
        top = torch.tensor([[-0.4, -0.5], [0.6, -0.5]])
        torch.testing.assert_close(pictures.outline(zoomed)[0], top)
        projective = torch.cat((zoomed, torch.tensor([[0.0, 0, 2]])))
        torch.testing.assert_close(pictures.outline(projective)[0], top / 2)
        offsets = torch.zeros(16, 2)
        offsets[3] = torch.tensor([0.25, 0.5])  # the right end of the top row
        torch.testing.assert_close(pictures.outline(offsets)[0, -1], torch.tensor([1.25, -0.5]))

    @pytest.mark.full
    def test_the_chart_of_invariances(self, source, tmp_path):
        from stn_triton.examples.digits.runs import one_thread
        from stn_triton.examples.digits.training import State, build

        settings = Settings(steps=1)
        tasks = [Task(line.distortion, line.model, 0) for panel in invariance.PANELS for line in panel.lines]
        assert invariance.is_complete(tasks)
        assert not invariance.is_complete(tasks[1:])
        for task in tasks:
            State(tmp_path, task, settings, source).save(network=build(task, settings).state_dict())
        with one_thread():
            rows = list(invariance.measure([*tasks, Task("P", "cnn", 0)], settings, source, tmp_path))
        assert len(rows) == 3 * 25 + 3 * 9
        assert {row.trained_on for row in rows} == {"U", "UL", "R", "RTS"}
        figure = invariance.draw(rows)
        curve = figure.axes[0].lines[0]
        assert list(curve.get_xdata()) == [*range(-180, 181, 15)]
        own = [row.accuracy for row in rows if (row.measure, row.trained_on) == ("angle", "U")]
        assert list(curve.get_ydata()) == own
        # Turns by 180 and by -180 degrees are equal.
        assert own[0] == pytest.approx(own[-1], abs=0.5)
