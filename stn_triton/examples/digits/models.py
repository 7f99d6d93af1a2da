"""The networks: CNN and FCN, alone or behind a spatial transformer, with equally many parameters."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stn_triton.examples.digits.data import FRAME
from stn_triton.nn import ConvolutionalLocalization, FullyConnectedLocalization, SpatialTransformer

PARAMETERS = 100_000
"""Parameters of each network, transformer included; the hidden layer's width follows from them."""
CLASSES = 10
_WIDEST = 4096


@dataclass(frozen=True)
class Model:
    """A kind of network."""

    label: str
    """Name in tables and messages."""
    is_convolutional: bool
    transform: str | None
    """Transform of the spatial transformer; None for no transformer."""


MODELS = {
    kind.lower() if transform is None else f"st-{kind.lower()}-{transform}": Model(
        kind if transform is None else f"ST-{kind} {transform.replace('tps', 'TPS')}",
        kind == "CNN",
        transform,
    )
    for transform in (None, "affine", "projective", "tps")
    for kind in ("FCN", "CNN")
}
MODELS = dict(
    sorted(MODELS.items(), key=lambda item: (item[1].transform is not None, item[1].is_convolutional))
)
"""Models by name, in the order of the paper's Table 1."""


class Network(nn.Module):
    """A classifier of digits, alone or behind a spatial transformer.

    Args:
        name: one of ``MODELS``.
        canvas: side of the input, in pixels.
        parameters: number of parameters, met as nearly as the width of the hidden layer allows.

    Shape:
        (n, 1, canvas, canvas) to (n, 10).
    """

    def __init__(self, name: str, canvas: int, parameters: int = PARAMETERS) -> None:
        super().__init__()
        model = MODELS[name]
        self.transformer = None if model.transform is None else _transformer(model, canvas)
        side = canvas if model.transform is None else crop_size(canvas)
        classifier = _convolutional if model.is_convolutional else _fully_connected
        rest = parameters - count(self)

        def missing(width: int) -> int:
            with torch.device("meta"):
                return count(classifier(side, width)) - rest

        width = bisect_left(range(_WIDEST), 0, lo=2, key=missing)
        width = min(width, width - 1, key=lambda width: abs(missing(width)))
        self.classifier = classifier(side, width)

    def forward(self, images: Tensor) -> Tensor:
        """Ten logits per image."""
        return self.classifier(images if self.transformer is None else self.transformer(images))


def crop_size(canvas: int) -> int:
    """Side of a crop in pixels: that of an undistorted image, or two thirds of the canvas if that is more.

    A crop starts as the whole canvas, so a smaller one would skip pixels and their gradients.
    """
    return max(FRAME, round(canvas * 2 / 3))


def count(module: nn.Module) -> int:
    """Count the learnable parameters."""
    return sum(p.numel() for p in module.parameters())


def _transformer(model: Model, canvas: int) -> SpatialTransformer:
    """Build the paper's transformer, with a localisation network of the classifier's kind."""
    if model.is_convolutional:
        localization = ConvolutionalLocalization(1, channels=(8, 16), cells=5, out_features=64)
        if canvas > FRAME:
            localization = nn.Sequential(nn.AvgPool2d(2), localization)  # details do not help to find a digit
    else:
        localization = FullyConnectedLocalization(1, cells=canvas)  # a weight per pixel, as in the paper
    return SpatialTransformer(1, transform=model.transform, size=crop_size(canvas), localization=localization)


def _convolutional(side: int, width: int) -> nn.Sequential:
    left = (side - 4) // 4
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(16 * left**2, width), nn.ReLU(), nn.Linear(width, CLASSES)),
    )


def _fully_connected(side: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(side**2, width), nn.ReLU()),
        *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)),
    )
