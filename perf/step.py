"""``python -m perf step``: what spatial transformers cost in a training step.

Jaderberg et al. 2015 (section 4.2) report that their network for house numbers, with four transformers, is
"only 6% slower (forward and backward pass) than the CNN". Such networks are trained here for single steps
(forward, backward, SGD) on random images: without transformers; with them; with the same layers on PyTorch's
eager pair; and with layers that locate but do not warp, which tells the share of the localisation networks.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from perf import EXIT_OK, setting
from perf.measuring import stopwatch
from stn_triton import SpatialTransformer
from stn_triton.environment import choose_device
from stn_triton.nn import ConvolutionalLocalization, FullyConnectedLocalization, parameter_groups

PAPER = 0.06


class EagerTransformer(SpatialTransformer):
    """The layer on PyTorch's two operators."""

    def warp(self, x: Tensor, theta: Tensor) -> Tensor:
        """By a grid that is stored."""
        grid = F.affine_grid(theta, x.shape, align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


class _Heard(torch.autograd.Function):
    """The images as they are, and a gradient for theta that costs nothing."""

    @staticmethod
    def forward(ctx, x, theta):
        ctx.theta = theta.shape
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad, grad.new_ones(()).expand(ctx.theta)


class LocatingTransformer(SpatialTransformer):
    """The layer without its sampler; its localisation network is trained all the same."""

    def warp(self, x: Tensor, theta: Tensor) -> Tensor:
        """The input."""
        return _Heard.apply(x, theta)


Layer = type[SpatialTransformer] | None
PROVIDERS: dict[str, Layer] = {
    "no transformers": None,
    "stn_triton": SpatialTransformer,
    "eager pair": EagerTransformer,
    "localisation only": LocatingTransformer,
}


@dataclasses.dataclass(frozen=True)
class Network:
    """A network and the images that it is trained on."""

    about: str
    make: Callable[[Layer], nn.Module]
    shape: tuple[int, ...]
    """Of an image, (C, H, W)."""
    batch: int
    cpu_batch: int


def house_numbers(layer: Layer) -> nn.Module:
    """Eight convolutions, three large linear layers; transformers before the first four, as the paper's."""
    widths, pooled = (3, 48, 64, 128, 160, 192, 192, 192, 192), (0, 2, 4, 6)
    parts: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        if layer is not None and i < 4:
            parts.append(layer(before, localization=FullyConnectedLocalization(before)))
        parts += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU()]
        parts += [nn.MaxPool2d(2)] * (i in pooled)
    parts.append(nn.Flatten())
    for before in (192 * 16, 3072, 3072):
        parts += [nn.Linear(before, 3072), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(3072, 10))


def digits(layer: Layer) -> nn.Module:
    """Two convolutions, as for the paper's distorted digits; a transformer before them."""
    convolutions = (nn.Conv2d(1, 32, 9), nn.MaxPool2d(2), nn.ReLU())
    convolutions += (nn.Conv2d(32, 32, 7), nn.MaxPool2d(2), nn.ReLU())
    first = () if layer is None else (layer(1, localization=ConvolutionalLocalization(1)),)
    return nn.Sequential(*first, *convolutions, nn.Flatten(), nn.Linear(32 * 4, 10))


NETWORKS = {
    "house-numbers": Network(
        "64 x 64 photographs, four transformers on feature maps of 3 to 128 channels",
        house_numbers,
        (3, 64, 64),
        batch=128,
        cpu_batch=4,
    ),
    "digits": Network("28 x 28 digits, one transformer on the image", digits, (1, 28, 28), 256, 64),
}


def steps(network: Network, device: torch.device) -> dict[str, Callable[[], None]]:
    """A step of training for each provider, on the same images."""
    generator = torch.Generator().manual_seed(0)
    batch = network.cpu_batch if device.type == "cpu" else network.batch
    images = torch.rand(batch, *network.shape, generator=generator).to(device)
    labels = torch.randint(10, (batch,), generator=generator).to(device)
    made = {}
    for name, layer in PROVIDERS.items():
        torch.manual_seed(0)
        model = network.make(layer).to(device)
        groups = model.parameters() if layer is None else parameter_groups(model, lr=1e-3)
        made[name] = _step(model, torch.optim.SGD(groups, lr=1e-3), images, labels)
    return made


def _step(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, labels: Tensor
) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step


def rows_of(samples: dict[str, list[float]]) -> list[dict[str, object]]:
    """Of each provider the quantiles, how much slower than without transformers, and their share."""
    medians = {name: stopwatch.quantiles(values)[1] for name, values in samples.items()}
    without = medians["no transformers"]
    return [
        {
            "provider": name,
            **dict(zip(("low_ms", "median_ms", "high_ms"), stopwatch.quantiles(values), strict=True)),
            "slower": medians[name] / without - 1,
            "share": 1 - without / medians[name],
        }
        for name, values in samples.items()
    ]


def main(args: argparse.Namespace) -> int:
    """Print, for each network, what its transformers cost."""
    device = choose_device(args.device)
    effort = dataclasses.replace(
        stopwatch.QUICK if args.quick else stopwatch.FULL,
        cpu_seconds=5 if args.quick else 30,
        gpu_rounds=5 if args.quick else 20,
        gpu_ms_per_round=50,
    )
    facts = setting.facts(device)
    is_tf32 = device.type == "cuda" and torch.backends.cudnn.allow_tf32
    precision = "fp32 (convolutions in TF32, PyTorch's default)" if is_tf32 else "fp32"
    if not args.json:
        print(setting.summary(facts))
    for name, network in NETWORKS.items():
        batch = network.cpu_batch if device.type == "cpu" else network.batch
        print(f"{name}: about {_seconds(effort, device):.0f} seconds ...", file=sys.stderr)
        functions = steps(network, device)
        for step in functions.values():
            step()  # compiles kernels, allocates
        rows = rows_of(stopwatch.sample({key: [step] for key, step in functions.items()}, device, effort))
        if args.json:
            for row in rows:
                print(json.dumps({"network": name, "batch": batch, **row, **facts}))
            continue
        print(f"\n{name}: {network.about}; batch {batch}, {precision}")
        print(
            f"  {'ms per training step':24}{'median':>9}{'20 %':>9}{'80 %':>9}{'slower by':>11}{'share':>8}"
        )
        for row in rows:
            times = "".join(f"{row[key]:9.2f}" for key in ("median_ms", "low_ms", "high_ms"))
            print(f"  {row['provider']:24}{times}{row['slower']:11.1%}{row['share']:8.1%}")
    if not args.json:
        print(
            f"""
slower by: than without transformers; the paper's four made its house-number network {PAPER:.0%} slower, on a
GPU of its time. share: of the step, what the transformers add. What "localisation only" takes is
the localisation networks'; the rest is the sampler's. Where the 20 to 80 % ranges overlap, that is noise."""
        )
    return EXIT_OK


def _seconds(effort: stopwatch.Effort, device: torch.device) -> float:
    if device.type == "cpu":
        return effort.cpu_seconds * 1.2
    return 5 + len(PROVIDERS) * effort.gpu_rounds * effort.gpu_ms_per_round / 1e3
