"""A real photograph warped by the operator and by PyTorch, and how far the two differ."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.image import imread

from perf import setting
from perf.measuring.providers import eager_pair, operator


def warp(photo: np.ndarray, device: torch.device) -> list[np.ndarray]:
    """Warp a photograph with the operator, and again with the eager pair.

    Args:
        photo: shape (H, W, 3), values from 0 to 255.
        device: where to warp it.

    Returns:
        The operator's result and the pair's: shape (H, W, 3), values from 0 to 1.
    """
    image = torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None].contiguous().to(device)
    height, width = image.shape[2:]
    # A rotation by 25 degrees at 1.3 times the scale. The ratio of the axes keeps it free of shear.
    rows = [[1.178, -0.549 * height / width, 0.1], [0.549 * width / height, 1.178, -0.05]]
    theta = torch.tensor([rows], device=device)
    outputs = [sampler(image, theta, (height, width)) for sampler in (operator, eager_pair)]
    return [output[0].permute(1, 2, 0).cpu().numpy() for output in outputs]


def write(table: pd.DataFrame, out: Path, device: torch.device) -> Path:
    """Save original, both warps and their difference as a PNG, with the machine of a table of rows."""
    with get_sample_data("grace_hopper.jpg") as file:  # a portrait that Matplotlib ships
        photo = imread(file, format="jpg")
    ours, theirs = warp(photo, device)
    difference = np.abs(ours - theirs).max(axis=2)
    largest = float(difference.max())
    # A few pixels at edges differ most; the scale ends below them, so that the others show.
    top = float(np.quantile(difference, 0.995)) or largest or 1.0
    title = f"difference: white is {top:.0e}, largest {largest:.0e}"
    panels = {"original": photo / 255, "operator": ours, "PyTorch": theirs, title: difference / top}
    figure = Figure(figsize=(14, 5), layout="constrained")
    for ax, (title, image) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        ax.imshow(image.clip(0, 1), cmap="gray", vmin=0, vmax=1)
        ax.set_title(title)
        ax.set_axis_off()
    figure.supxlabel(setting.summary(table.iloc[0].to_dict()), fontsize=10)
    path = out / "photograph.png"
    figure.savefig(path, dpi=110)
    return path
