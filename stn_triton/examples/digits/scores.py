"""Results of a run: a row per network, means over seeds, and their table."""

from __future__ import annotations

import csv
import json
import os
import platform
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import stn_triton
from stn_triton.examples.digits.data import FRAME, Source
from stn_triton.examples.digits.distortions import DISTORTIONS
from stn_triton.examples.digits.models import MODELS
from stn_triton.examples.digits.training import Result, Settings, Task


@dataclass(frozen=True)
class Cell:
    """The networks of one kind on one distortion."""

    errors: tuple[float, ...]
    """Percent, for each seed."""
    parameters: int
    cpu_seconds: float
    """Mean per network."""

    @property
    def mean(self) -> float:
        """Mean error in percent."""
        return statistics.fmean(self.errors)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation over the seeds; None for one seed."""
        return statistics.stdev(self.errors) if len(self.errors) > 1 else None

    def __str__(self) -> str:
        spread = "" if self.deviation is None else f" ± {self.deviation:.2f}"
        return f"{self.mean:.2f}{spread}"


Cells = dict[tuple[str, str], Cell]
"""Cells by distortion and model."""


def cells(results: dict[Task, Result]) -> Cells:
    """Gather the seeds of each distortion and model, in the order of the networks."""
    groups: dict[tuple[str, str], list[Result]] = {}
    for task, result in results.items():
        groups.setdefault((task.distortion, task.model), []).append(result)
    return {
        key: Cell(
            tuple(result.error for result in group),
            group[0].parameters,
            statistics.fmean(result.cpu_seconds for result in group),
        )
        for key, group in groups.items()
    }


def table(found: Cells) -> str:
    """Format the test errors, with a line per model and a column per distortion."""
    distortions = [name for name in DISTORTIONS if any(key[0] == name for key in found)]
    rows = [["model", *distortions, "parameters"]]
    for model, kind in MODELS.items():
        own = [found.get((distortion, model)) for distortion in distortions]
        counts = sorted({cell.parameters for cell in own if cell is not None})
        if counts:
            span = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
            rows.append([kind.label, *("" if cell is None else str(cell) for cell in own), span])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            text.ljust(width) if not i else text.rjust(width)
            for i, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    legend = [f"{name}: {DISTORTIONS[name].title}" for name in distortions]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], "", *legend])


def write(
    folder: Path, results: dict[Task, Result], settings: Settings, source: Source, seeds: int
) -> list[Path]:
    """Write ``networks.csv`` (a row per network), ``results.json`` (everything) and ``table.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**asdict(task), **asdict(result)} for task, result in results.items()]
    paths = [folder / name for name in ("networks.csv", "results.json", "table.txt")]
    with paths[0].open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    found = cells(results)
    summary = {
        "digits": source.name,
        "digits_fingerprint": source.fingerprint,
        "frame": FRAME,
        "seeds": seeds,
        "settings": asdict(settings),
        "cpu_seconds": sum(result.cpu_seconds for result in results.values()),
        "machine": machine(),
        "table": [
            {
                "distortion": distortion,
                "model": model,
                "error_percent": cell.mean,
                "standard_deviation": cell.deviation,
                "errors": cell.errors,
                "parameters": cell.parameters,
                "cpu_seconds": cell.cpu_seconds,
            }
            for (distortion, model), cell in found.items()
        ],
    }
    paths[1].write_text(json.dumps(summary, indent=1) + "\n")
    paths[2].write_text(f"{head(source, settings, seeds)}\n\n{table(found)}\n")
    return paths


def head(source: Source, settings: Settings, seeds: int) -> str:
    """Head of the table: its unit, steps and digits."""
    mean = f"mean of {seeds} seeds ± standard deviation" if seeds > 1 else "one seed"
    return (
        f"Test error in %, {mean}; {settings.steps} steps of {settings.batch} images each.\n"
        f"Digits: {source.name}."
    )


def machine() -> dict[str, str | int]:
    """Describe the machine of a run."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "stn_triton": stn_triton.__version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def verdicts(found: Cells) -> tuple[list[str], bool | None]:
    """Compare each network with the same network behind an affine transformer, on each distortion.

    Returns:
        A line per comparison; and whether an ST-CNN beats its CNN anywhere, None without such a pair.
    """
    lines, is_ahead = [], None
    for distortion in DISTORTIONS:
        for plain in ("fcn", "cnn"):
            better = f"st-{plain}-affine"
            if (distortion, plain) not in found or (distortion, better) not in found:
                continue
            without, with_ = found[distortion, plain], found[distortion, better]
            wins = with_.mean < without.mean
            if plain == "cnn":
                is_ahead = bool(is_ahead) or wins
            lines.append(
                f"{distortion}: {MODELS[better].label}, {with_} %, is {'' if wins else 'NOT '}ahead of "
                f"{MODELS[plain].label}, {without} %"
            )
    return lines, is_ahead
