"""Training one network: its task, its settings, its state on disk, and its errors on fixed test images."""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stn_triton.examples.digits import models
from stn_triton.examples.digits.data import FRAME, Digits, Source
from stn_triton.examples.digits.distortions import DISTORTIONS, generator
from stn_triton.nn import parameter_groups
from stn_triton.terminal import UsageError

ROUND = 16
"""Number of batches that are distorted at once."""
ROUNDS_PER_SAVE = 3
_WARM_UP = 0.2  # share of the steps
_LARGEST_GRADIENT = 5.0  # norm of all gradients together
_TEST_BATCH = 1000


@dataclass(frozen=True)
class Task:
    """One network to be trained."""

    distortion: str
    model: str
    seed: int

    @property
    def name(self) -> str:
        """Name in file names."""
        return f"{self.distortion}-{self.model}-seed{self.seed}"

    @property
    def label(self) -> str:
        """Name in messages."""
        return f"{self.distortion} {models.MODELS[self.model].label}, seed {self.seed}"


@dataclass(frozen=True)
class Settings:
    """Settings of training and test for every network of a run."""

    steps: int = 2000
    batch: int = 64
    lr: float = 1e-2
    """Peak of Adam's learning rate: it rises over a fifth of the steps, then falls to 0 as a cosine."""
    transformer_lr: float = 3e-3
    """Replaces ``lr`` for networks with a transformer."""
    localization_lr_scale: float = 1.0
    """Share of ``transformer_lr``. The paper's SGD needs 0.1 or less; Adam scales gradients itself."""
    parameters: int = models.PARAMETERS
    test_copies: int = 8
    """Number of distorted copies of each test image."""


@dataclass(frozen=True)
class Result:
    """Result of a trained network."""

    error: float
    """Percentage of test images classified wrongly."""
    parameters: int
    cpu_seconds: float
    loss: float
    """Mean over the last fifth of the steps."""


class State:
    """A network's file: during training all that is needed to go on, then its weights and result."""

    def __init__(self, folder: Path, task: Task, settings: Settings, source: Source) -> None:
        self.path = folder / f"{task.name}.pt"
        self._facts = {**asdict(settings), "frame": FRAME, "digits": source.fingerprint}

    def load(self) -> dict[str, Any] | None:
        """Load the file's contents; None if there is no file.

        Raises:
            UsageError: the file is damaged, or was made with other settings.
        """
        if not self.path.exists():
            return None
        try:
            state = torch.load(self.path, weights_only=True)
            facts = dict(state["facts"])
        except (
            OSError,
            RuntimeError,
            EOFError,
            LookupError,
            TypeError,
            ValueError,
            pickle.UnpicklingError,
        ) as error:
            raise UsageError(
                f"{self.path} is damaged ({type(error).__name__}); delete it to train that network again"
            ) from error
        if facts != self._facts:
            changes = "; ".join(
                f"{name} was {facts.get(name)}, is now {self._facts.get(name)}"
                for name in sorted({*facts, *self._facts})
                if facts.get(name) != self._facts.get(name)
            )
            raise UsageError(
                f"{self.path} was made with other settings ({changes}); choose another --out, "
                "or set it aside with --fresh"
            )
        return state

    def save(self, **contents: Any) -> None:
        """Write the file; an interruption leaves the old file as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        torch.save({"facts": self._facts, **contents}, partial)
        os.replace(partial, self.path)

    def result(self) -> Result | None:
        """Result of the network; None while its training is not done."""
        state = self.load()
        return Result(**state["result"]) if state is not None and "result" in state else None

    def network(self, task: Task, settings: Settings) -> models.Network:
        """Load the trained network, for evaluation."""
        network = build(task, settings)
        network.load_state_dict(self.load()["network"])
        return network.eval()


def build(task: Task, settings: Settings) -> models.Network:
    """Build the untrained network of a task, with the same weights each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(task.seed)
        return models.Network(task.model, DISTORTIONS[task.distortion].size(FRAME), settings.parameters)


def train(
    task: Task, settings: Settings, source: Source, folder: Path, progress: Callable[[int], None]
) -> Result:
    """Train a network from the state in its file, or return the result if the file has one.

    Networks of one seed and distortion see the same images in the same order, so they can be compared.

    Args:
        task: the network to train.
        settings: settings of the run.
        source: the digits.
        folder: folder of the networks' files.
        progress: called with the number of steps just done.

    Raises:
        UsageError: the file is damaged, or was made with other settings.
    """
    state = State(folder, task, settings, source)
    saved = state.load() or {"step": 0, "cpu_seconds": 0.0, "loss": 0.0}
    progress(saved["step"])
    if "result" in saved:
        return Result(**saved["result"])
    began = time.process_time() - saved["cpu_seconds"]
    train_set, test_set = source.split(task.seed)
    network = build(task, settings)
    groups = [{"params": network.parameters(), "lr": settings.lr}]
    if network.transformer is not None:
        groups = parameter_groups(network, settings.transformer_lr, settings.localization_lr_scale)
    optimizer = torch.optim.Adam(groups)
    if "network" in saved:
        network.load_state_dict(saved["network"])
        optimizer.load_state_dict(saved["optimizer"])
    step, loss = saved["step"], saved["loss"]
    while step < settings.steps:
        images, labels = _round(task, settings, train_set, step)
        for batch, targets in zip(images.split(settings.batch), labels.split(settings.batch), strict=True):
            now = _step(network, optimizer, batch, targets, step / settings.steps, settings)
            step += 1
            if step > 0.8 * settings.steps:
                loss += now / (settings.steps - int(0.8 * settings.steps))
        progress(len(images) // settings.batch)
        if step % (ROUND * ROUNDS_PER_SAVE) == 0 and step < settings.steps:
            spent = time.process_time() - began
            state.save(
                step=step,
                cpu_seconds=spent,
                loss=loss,
                network=network.state_dict(),
                optimizer=optimizer.state_dict(),
            )
    images, labels = fixed_images(task.distortion, task.seed, test_set, settings.test_copies)
    wrong = (predict(network.eval(), images) != labels).double().mean().item()
    spent = time.process_time() - began
    result = Result(100 * wrong, models.count(network), spent, loss)
    state.save(step=step, network=network.state_dict(), result=asdict(result))
    return result


def predict(network: models.Network, images: Tensor) -> Tensor:
    """Classify images: the digit of each, int64 (n,)."""
    with torch.inference_mode():
        return torch.cat([network(part).argmax(1) for part in images.split(_TEST_BATCH)])


def fixed_images(distortion: str, seed: int, digits: Digits, copies: int) -> tuple[Tensor, Tensor]:
    """Make distorted test images and labels, the same for every network of a distortion and seed."""
    distort = DISTORTIONS[distortion]
    images = [distort(digits.frames, generator(seed, distortion, "test", copy)) for copy in range(copies)]
    return torch.cat(images), digits.labels.repeat(copies)


def _round(task: Task, settings: Settings, digits: Digits, step: int) -> tuple[Tensor, Tensor]:
    """Distort images for the next steps; they depend only on task and step."""
    count = min(ROUND, settings.steps - step) * settings.batch
    random = generator(task.seed, task.distortion, "train", step)
    orders = [torch.randperm(len(digits), generator=random) for _ in range(-(-count // len(digits)))]
    chosen = digits[torch.cat(orders)[:count]]
    return DISTORTIONS[task.distortion](chosen.frames, random), chosen.labels


def _step(
    network: models.Network,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    labels: Tensor,
    done: float,
    settings: Settings,
) -> float:
    for group in optimizer.param_groups:
        peak = group.setdefault("peak", group["lr"])
        fall = (done - _WARM_UP) / (1 - _WARM_UP)
        group["lr"] = peak * min(done / _WARM_UP + 0.04, (1 + math.cos(math.pi * max(fall, 0.0))) / 2)
    loss = F.cross_entropy(network(images), labels)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), _LARGEST_GRADIENT)
    optimizer.step()
    return loss.item()
