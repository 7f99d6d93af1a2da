"""Invariance by max pooling and by a transformer: accuracy over angle and over shift."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from stn_triton.examples.digits import pictures
from stn_triton.examples.digits.data import FRAME, Source
from stn_triton.examples.digits.distortions import DISTORTIONS, R_ANGLE, place
from stn_triton.examples.digits.training import Settings, State, Task, predict

_LEFT_RIGHT_UP_DOWN = torch.tensor([[-1.0, 0], [1, 0], [0, -1], [0, 1]])


@dataclass(frozen=True)
class Line:
    """A line of a panel: what its networks are and were trained on, and its style."""

    distortion: str
    model: str
    label: str
    color: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Panel:
    """A panel of the figure, for angles or shifts."""

    name: str
    axis: str
    values: tuple[float, ...]
    lines: tuple[Line, ...]
    place: Callable[[Tensor, int, float], list[Tensor]]
    """Function of frames, canvas size and value; returns the images at that value."""
    trained: float
    """Largest angle or shift in the training on distorted digits, at scale 1."""


def _turned(frames: Tensor, size: int, angle: float) -> list[Tensor]:
    n = len(frames)
    return [place(frames, size, torch.full((n,), angle), torch.ones(n), torch.zeros(n, 2))]


def _shifted(frames: Tensor, size: int, pixels: float) -> list[Tensor]:
    n = len(frames)
    zero, one = torch.zeros(n), torch.ones(n)
    return [place(frames, size, zero, one, (pixels * to).expand(n, 2)) for to in _LEFT_RIGHT_UP_DOWN]


def _lines(upright: str, distorted: str, words: str) -> tuple[Line, ...]:
    return (
        Line(upright, "cnn", "CNN, max pooling alone: trained on upright digits", "#8a8a8a", "s", "--"),
        Line(distorted, "cnn", f"CNN, max pooling: trained on {words}", "#b3401d", "^", "-."),
        Line(distorted, "st-cnn-affine", f"ST-CNN affine: trained on {words}", "#1f4e8c", "o", "-"),
    )


PANELS = (
    Panel(
        "angle",
        "rotation, degrees",
        tuple(range(-180, 181, 15)),
        _lines("U", "R", f"±{R_ANGLE:g} degrees (R)"),
        _turned,
        R_ANGLE,
    ),
    Panel(
        "shift",
        "shift, pixels (mean over left, right, up, down)",
        tuple(range(9)),
        _lines("UL", "RTS", "RTS"),
        _shifted,
        (DISTORTIONS["RTS"].canvas - 1) * FRAME / 2,
    ),
)


@dataclass(frozen=True)
class Row:
    """Accuracy of a network at one angle or shift."""

    measure: str
    value: float
    trained_on: str
    model: str
    seed: int
    accuracy: float
    """Percent."""


def measure(tasks: Iterable[Task], settings: Settings, source: Source, folder: Path) -> Iterator[Row]:
    """Evaluate the trained networks that a panel compares."""
    for task in tasks:
        for panel in PANELS:
            if not any(
                (line.distortion, line.model) == (task.distortion, task.model) for line in panel.lines
            ):
                continue
            network = State(folder, task, settings, source).network(task, settings)
            _, digits = source.split(task.seed)
            size = DISTORTIONS[task.distortion].size(FRAME)
            for value in panel.values:
                images = panel.place(digits.frames, size, value)
                right = [(predict(network, part) == digits.labels).double().mean().item() for part in images]
                accuracy = 100 * statistics.fmean(right)
                yield Row(panel.name, value, task.distortion, task.model, task.seed, accuracy)


def is_complete(tasks: Iterable[Task]) -> bool:
    """Whether there is a network for every line of every panel."""
    kinds = {(task.distortion, task.model) for task in tasks}
    return all((line.distortion, line.model) in kinds for panel in PANELS for line in panel.lines)


def draw(rows: list[Row]) -> Figure:
    """Draw a panel for angles and one for shifts: means over seeds, bands from the worst to the best."""
    with mpl.rc_context({**pictures.STYLE, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12.5, 5.8), layout="constrained")
        seeds = len({row.seed for row in rows})
        mean = f"Means of {seeds} seeds, bands from the worst seed to the best." if seeds > 1 else "One seed."
        figure.suptitle(
            "Invariance by max pooling and by a transformer: accuracy on test digits turned or shifted\n"
            f"{mean} Grey: outside the range of the distorted training digits.",
            fontsize=10,
        )
        for ax, panel in zip(figure.subplots(1, len(PANELS), sharey=True), PANELS, strict=True):
            _panel(ax, panel, [row for row in rows if row.measure == panel.name])
        figure.axes[0].set_ylabel("accuracy, %")
    return figure


def _panel(ax: Axes, panel: Panel, rows: list[Row]) -> None:
    for line in panel.lines:
        own = [row for row in rows if (row.trained_on, row.model) == (line.distortion, line.model)]
        groups = [[row.accuracy for row in own if row.value == value] for value in panel.values]
        means = [statistics.fmean(group) for group in groups]
        style = {"color": line.color, "marker": line.marker, "linestyle": line.dash, "markersize": 5}
        ax.plot(panel.values, means, label=line.label, **style)
        low, high = [min(group) for group in groups], [max(group) for group in groups]
        ax.fill_between(panel.values, low, high, color=line.color, alpha=0.18, linewidth=0)
    low, high = panel.values[0], panel.values[-1]
    for start, end in ((low, -panel.trained), (panel.trained, high)):
        if start < end:
            ax.axvspan(start, end, color="#eeeeee", zorder=-1)
    ax.set_xlim(low, high)
    ax.set_ylim(0, 101)
    ax.set_xlabel(panel.axis)
    ax.grid(True, color="#d9d9d9", linewidth=0.7)
    ax.set_xticks(panel.values[:: 3 if low < 0 else 1])
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)


def write_csv(rows: list[Row], path: Path) -> Path:
    """Write a row per network and value."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows(
            [f"{x:.3f}" if isinstance(x, float) else x for x in vars(row).values()] for row in rows
        )
    return path
