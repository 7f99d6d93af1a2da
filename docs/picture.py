"""Draw docs/warps.jpg, the picture at the head of the README: one photograph, warped by each operator.

python docs/picture.py    # needs the extra `examples`
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.image import imread
from torch import Tensor

from stn_triton import (
    affine_grid_sample,
    perspective_grid_sample,
    thin_plate_spline_grid_sample,
    transforms,
)

SIZE = (300, 300)
CORNERS = torch.tensor([[-1.0, -1, 1], [1, -1, 1], [1, 1, 1], [-1, 1, 1], [-1, -1, 1]])
FONT = 11


def photograph() -> Tensor:
    """The portrait of Grace Hopper that Matplotlib ships, (1, 3, H, W) with values from 0 to 1."""
    with get_sample_data("grace_hopper.jpg") as file:
        pixels = imread(file, format="jpg").copy()
    return torch.from_numpy(pixels)[:512].permute(2, 0, 1)[None] / 255


def outline(theta: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the output's edge lies in the input: x and y in pixels."""
    x, y, *z = theta[0] @ CORNERS.T
    x, y = (x / z[0], y / z[0]) if z else (x, y)
    return (x + 1) * width / 2 - 0.5, (y + 1) * height / 2 - 0.5


def main() -> None:
    """Warp the photograph three times and save the picture."""
    image = photograph()
    height, width = image.shape[2:]
    face = transforms.affine(
        translation=[[0.02, -0.42]], angle=[math.radians(-20)], scale=[[0.42, 0.42]], aspect=width / height
    )
    medals = torch.tensor([[[0.42, -0.12, 0.35], [0.1, 0.25, 0.4], [-0.02, -0.25, 1.0]]])
    rows = torch.linspace(-math.pi, math.pi, 6)  # of 6 x 6 control points: a wave
    bend = torch.stack([0.2 * rows.sin(), torch.zeros(6)], -1).repeat_interleave(6, 0)[None]
    warped = {
        "affine_grid_sample": affine_grid_sample(image, face, SIZE, antialias=True),
        "perspective_grid_sample": perspective_grid_sample(image, medals, SIZE),
        "thin_plate_spline_grid_sample": thin_plate_spline_grid_sample(image, bend, SIZE),
    }

    figure = Figure(figsize=(12, 3.2), layout="constrained")
    first, *others = figure.subplots(1, 4)
    first.imshow(image[0].permute(1, 2, 0))
    for theta, colour in ((face, "tab:orange"), (medals, "tab:cyan")):
        first.plot(*outline(theta, height, width), color=colour, linewidth=2.5)
    first.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    first.set_title("input", fontsize=FONT)
    frames = ("tab:orange", "tab:cyan", None)
    for axes, frame, (name, output) in zip(others, frames, warped.items(), strict=True):
        axes.imshow(output[0].permute(1, 2, 0).clip(0, 1))
        axes.set_title(name, fontsize=FONT, family="monospace")
        for spine in axes.spines.values():
            spine.set(color=frame or "none", linewidth=3)
    for axes in (first, *others):
        axes.set(xticks=[], yticks=[])
    figure.savefig(Path(__file__).with_name("warps.jpg"), dpi=100, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
