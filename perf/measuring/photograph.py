"""A real photograph warped by the operator and by PyTorch, and how far the two differ."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.cbook import get_sample_data
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imread
from torch import Tensor

from perf import setting
from perf.measuring.providers import eager_pair, operator

_ANGLE, _SCALE, _SHIFT = math.radians(25), 1.3, (0.1, -0.05)
_FONT = 11


def load() -> np.ndarray:
    """The portrait of Grace Hopper that Matplotlib ships, (H, W, 3) with values from 0 to 255."""
    with get_sample_data("grace_hopper.jpg") as file:
        return imread(file, format="jpg")


def warp(photo: np.ndarray, device: torch.device) -> tuple[np.ndarray, np.ndarray]:
    """The photograph, (H, W, 3) and fp32 from 0 to 1, warped by the operator and by the eager pair."""
    image = torch.from_numpy(photo / np.float32(255)).permute(2, 0, 1)[None].contiguous().to(device)
    height, width = image.shape[2:]
    cos, sin = _SCALE * math.cos(_ANGLE), _SCALE * math.sin(_ANGLE)
    # Normalised axes have different lengths: their ratio keeps the rotation free of shear.
    rows = [[cos, -sin * height / width, _SHIFT[0]], [sin * width / height, cos, _SHIFT[1]]]
    theta = torch.tensor([rows], device=device)

    def as_array(output: Tensor) -> np.ndarray:
        return output[0].permute(1, 2, 0).cpu().numpy()

    size = (height, width)
    return as_array(operator(image, theta, size)), as_array(eager_pair(image, theta, size))


def picture(device: torch.device, facts: dict[str, str | int], path: Path) -> float:
    """Save original, both warps and their difference as one PNG; return the largest difference."""
    photo = load()
    ours, theirs = warp(photo, device)
    difference = np.abs(ours - theirs).max(axis=2)
    largest = float(difference.max())

    height, width = photo.shape[:2]
    figure = Figure(figsize=(14, 12.8 / 4 * height / width + 0.85), layout="constrained")
    *axes, bar_ax = figure.subplots(1, 5, width_ratios=(1, 1, 1, 1, 0.05))
    _show(axes[0], photo, "original")
    _show(axes[1], ours.clip(0, 1), "operator")
    _show(axes[2], theirs.clip(0, 1), "PyTorch\nF.affine_grid + F.grid_sample")
    # A few pixels at edges differ most; the scale ends below them, so that the others show.
    amplification = float(f"{1 / (np.quantile(difference, 0.995) or largest or 1):.1g}")
    title = f"difference, amplified {amplification:,.0f} times\nlargest {largest:.1e} of full scale"
    amplified = _show(axes[3], difference, title, 1 / amplification)
    bar = figure.colorbar(amplified, cax=bar_ax, extend="max")
    bar.formatter.set_powerlimits((-2, 2))
    bar.set_label("|operator - PyTorch|, image from 0 to 1", fontsize=_FONT)
    figure.supxlabel(setting.summary(facts), fontsize=_FONT - 1, color="#333333")
    figure.savefig(path, dpi=110, bbox_inches="tight", pad_inches=0.1)
    return largest


def _show(ax: Axes, image: np.ndarray, title: str, top: float = 1.0) -> AxesImage:
    shown = ax.imshow(image, cmap="magma", vmin=0, vmax=top)
    ax.set_title(title, fontsize=_FONT + 1)
    ax.set_axis_off()
    return shown
