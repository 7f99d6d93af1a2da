"""``python -m perf step``: what spatial transformers cost in a training step.

Networks like those of Jaderberg et al. 2015 (section 4.2) take single steps of SGD on random images.
"""

import argparse
import itertools
import sys
from collections.abc import Callable
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perf import EXIT_OK, setting
from perf.measuring import stopwatch
from perf.measuring.providers import plain_pair
from stn_triton import SpatialTransformer
from stn_triton.environment import choose_device
from stn_triton.nn import ConvolutionalLocalization, FullyConnectedLocalization

_NOTES = """\
Milliseconds of a training step, and how much slower it is than without transformers. Ranges from 20 to 80 %
that overlap are noise. house-numbers: 64 x 64 photographs, four transformers on feature maps of 3 to 128
channels; the paper's four made its network 6 % slower. digits: 28 x 28 digits, a transformer on the image."""


class EagerTransformer(SpatialTransformer):
    """The layer on PyTorch's two operators."""

    def warp(self, x: Tensor, theta: Tensor) -> Tensor:
        """Sample at a grid that is stored."""
        return plain_pair(x, theta)


Layer = type[nn.Module]
PROVIDERS: dict[str, Layer] = {
    "no transformers": nn.Identity,
    "stn_triton": SpatialTransformer,
    "eager pair": EagerTransformer,
}


def house_numbers(layer: Layer) -> nn.Module:
    """Eight convolutions, three large linear layers; transformers before the first four, as the paper's."""
    widths, pooled = (3, 48, 64, 128, 160, 192, 192, 192, 192), (0, 2, 4, 6)
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        if i < 4:
            parts.append(layer(before, localization=FullyConnectedLocalization(before)))
        parts += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] * (i in pooled)
    parts.append(nn.Flatten())
    for before in (192 * 16, 3072, 3072):
        parts += [nn.Linear(before, 3072), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(3072, 10))


def digits(layer: Layer) -> nn.Module:
    """Two convolutions, as for the paper's distorted digits; a transformer before them."""
    parts = [layer(1, localization=ConvolutionalLocalization(1))]
    parts += [nn.Conv2d(1, 32, 9), nn.MaxPool2d(2), nn.ReLU()]
    parts += [nn.Conv2d(32, 32, 7), nn.MaxPool2d(2), nn.ReLU()]
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(32 * 4, 10))


class Network(NamedTuple):
    """A network and its images."""

    make: Callable[[Layer], nn.Module]
    shape: tuple[int, int, int]  # (C, H, W)
    batch: int
    cpu_batch: int


NETWORKS = {
    "house-numbers": Network(house_numbers, (3, 64, 64), batch=128, cpu_batch=4),
    "digits": Network(digits, (1, 28, 28), batch=256, cpu_batch=64),
}


def step_of(layer: Layer, network: Network, batch: int, device: torch.device) -> Callable[[], None]:
    """A step of training; the images are the same for each layer. The first step is done."""
    torch.manual_seed(0)
    images = torch.rand(batch, *network.shape).to(device)
    labels = torch.randint(10, (batch,)).to(device)
    model = network.make(layer).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()  # compiles kernels, allocates
    return step


def main(args: argparse.Namespace) -> int:
    """Print, for each network, what its transformers cost."""
    device = choose_device(args.device)
    seconds, rounds = (5, 5) if args.quick else (30, 20)
    effort = stopwatch.Effort(seconds, 5, gpu_rounds=rounds, gpu_ms_per_round=50, most_copies=1)
    facts = setting.facts(device)
    tables = {}
    for name, network in NETWORKS.items():
        batch = network.cpu_batch if device.type == "cpu" else network.batch
        print(f"{name}: up to a minute; with --quick, half of that ...", file=sys.stderr)
        functions = {key: [step_of(layer, network, batch, device)] for key, layer in PROVIDERS.items()}
        samples = stopwatch.sample(functions, device, effort)
        values = {key: stopwatch.quantiles(times) for key, times in samples.items()}
        table = pd.DataFrame.from_dict(values, orient="index", columns=["low_ms", "median_ms", "high_ms"])
        table["slower"] = table["median_ms"] / table.loc["no transformers", "median_ms"] - 1
        tables[name] = table.assign(batch=batch)
    table = pd.concat(tables, names=["network", "provider"]).reset_index()
    if args.json:
        print(table.assign(**facts).to_json(orient="records", lines=True), end="")
    else:
        shown = {"slower": "{:.1%}".format}
        print(table.to_string(index=False, float_format="{:.2f}".format, formatters=shown))
        print(f"{_NOTES}\n{setting.summary(facts)}")
    return EXIT_OK
