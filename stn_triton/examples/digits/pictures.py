"""Pictures of the transformers' crops: input, sampled region, crop and theta."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from stn_triton.examples.digits.data import Source
from stn_triton.examples.digits.distortions import DISTORTIONS
from stn_triton.examples.digits.models import MODELS
from stn_triton.examples.digits.training import Settings, State, Task, fixed_images

EXAMPLES = 5
_CELL, _NUMBERS, _HEAD, _LEFT = 1.15, 0.62, 0.75, 1.25  # inches
_DPI = 130
STYLE = {"font.size": 9, "text.parse_math": False}
"""Settings of matplotlib for every picture."""


def outline(theta: Tensor, steps: int = 2) -> Tensor:
    """Map lines of the output into the input: (lines, points, 2), normalised.

    Args:
        theta: for one image: (2, 3), (3, 3), or offsets (P, 2) of a square grid of control points. The lines
            are the rows and columns of that grid.
        steps: lines per direction if theta is a matrix; 2 for the crop's outline.
    """
    if theta.shape[-1] == 2:
        steps = round(len(theta) ** 0.5)
    side = torch.linspace(-1, 1, steps)
    points = torch.cartesian_prod(side, side).flip(1)
    if theta.shape[-1] == 2:
        moved = points + theta
    else:
        mapped = torch.cat((points, torch.ones(len(points), 1)), 1) @ theta.T
        moved = mapped[:, :2] / mapped[:, 2:] if len(theta) == 3 else mapped
    grid = moved.view(steps, steps, 2)
    return torch.cat((grid, grid.transpose(0, 1)))


def numbers(theta: Tensor) -> str:
    """Format theta as text: its rows, or the mean and the largest of a spline's offsets."""
    if theta.shape[-1] == 2:
        mean, far = theta.mean(0), theta[theta.norm(dim=1).argmax()]
        return "\n".join((f"{len(theta)} offsets", f"mean {_row(mean)}", f"largest {_row(far)}"))
    return "\n".join(_row(row) for row in theta)


def draw(
    distortion: str, networks: Sequence[tuple[Task, State]], settings: Settings, source: Source
) -> Figure:
    """Draw a row per network with a transformer: test images with the sampled region, crops and theta."""
    tasks = [task for task, _ in networks]
    _, test_set = source.split(tasks[0].seed)
    # One image each of the digits 1, 3, 5, 7, 9.
    wanted = torch.arange(EXAMPLES) * 2 + 1
    first = [int((test_set.labels == digit).nonzero()[0]) for digit in wanted]
    images, labels = fixed_images(distortion, tasks[0].seed, test_set, 1)
    images, labels = images[first], labels[first]
    height = _HEAD + len(networks) * (_CELL + _NUMBERS)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(_LEFT + 2 * EXAMPLES * _CELL, height))
        grid = figure.subplots(
            len(networks),
            2 * EXAMPLES,
            squeeze=False,
            gridspec_kw={
                "left": _LEFT / (_LEFT + 2 * EXAMPLES * _CELL),
                "right": 0.995,
                "top": 1 - _HEAD / height,
                "bottom": _NUMBERS / height,
                "hspace": _NUMBERS / _CELL,
                "wspace": 0.06,
            },
        )
        figure.suptitle(
            f"{distortion}: {DISTORTIONS[distortion].title}\n"
            "Pairs of input, with the region that is sampled (top edge thick), and crop; below: theta, digit",
            fontsize=10,
        )
        for axes, (task, state) in zip(grid, networks, strict=True):
            network = state.network(task, settings)
            with torch.inference_mode():
                thetas = network.transformer.locate(images)
                crops = network.transformer.warp(images, thetas)
                seen = network(images).argmax(1)
            axes[0].set_ylabel(
                f"{MODELS[task.model].label.replace(' ', chr(10))}\nseed {task.seed}",
                rotation=0,
                ha="right",
                va="center",
            )
            for i, theta in enumerate(thetas):
                left, right = axes[2 * i : 2 * i + 2]
                _show(left, images[i, 0])
                _region(left, theta, images.shape[-1])
                _show(right, crops[i, 0])
                left.text(
                    0, -0.06, numbers(theta), transform=left.transAxes, va="top", family="monospace", size=7
                )
                said = (
                    f"{int(labels[i])}"
                    if seen[i] == labels[i]
                    else f"{int(labels[i])}, seen as {int(seen[i])}"
                )
                right.text(0.98, -0.06, said, transform=right.transAxes, ha="right", va="top", size=8)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; equal figures give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        figure.savefig(path, dpi=_DPI, metadata={"Software": None})
    return path


def _row(values: Tensor) -> str:
    return " ".join(f"{value:+.2f}" for value in values.tolist())


def _show(ax: Axes, image: Tensor) -> None:
    ax.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1)
    ax.set_xticks([])
    ax.set_yticks([])


def _region(ax: Axes, theta: Tensor, side: int) -> None:
    """Draw the sampled region over the input, with a margin for parts outside the image."""
    lines = (outline(theta) + 1) * (side / 2) - 0.5
    for i, line in enumerate(lines.tolist()):
        xs, ys = zip(*line, strict=True)
        ax.plot(xs, ys, color="black", linewidth=3.2 if i == 0 else 1.6, clip_on=True)
        ax.plot(xs, ys, color="#ffb000", linewidth=2.4 if i == 0 else 0.9, clip_on=True)
    margin = 0.25 * side
    ax.set_xlim(-margin, side - 1 + margin)
    ax.set_ylim(side - 1 + margin, -margin)
    ax.set_facecolor("#303030")
