"""``python -m perf plot``: the charts of a result file, as PNG and SVG."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure

from perf import EXIT_OK, UsageError, files
from perf.charts import scaling, speed_up, style
from perf.charts.speed_up import MAIN
from perf.files import Run

_PARTS = ("backward", "theta", "input")
_DRAWN = {
    f"{name}{suffix}": (measure.title, partial(speed_up.draw, measure=measure, passes=passes))
    for suffix, passes in (("", MAIN), ("-backward", _PARTS))
    for name, measure in speed_up.MEASURES.items()
} | {"scaling": (scaling.TITLE, partial(scaling.draw, passes=MAIN))}


def main(args: argparse.Namespace) -> int:
    """Draw the charts of ``args.results`` into ``args.out``; print the files, and which charts lack rows."""
    for title, paths in _write(files.read_speed(args.results), args.out):
        print(*(paths or [f"not drawn: no rows for the {title}"]), sep="\n", flush=True)
    return EXIT_OK


def draw(table: pd.DataFrame, out: Path) -> list[Path]:
    """Draw every chart that a table of ``bench`` has rows for into a directory; return the files."""
    return [path for _, paths in _write(table, out) for path in paths]


def draw_all(table: pd.DataFrame) -> Iterator[tuple[Run, str, str, Figure | None]]:
    """Draw the charts of each run of a table.

    Yields:
        The run, a name for files, unlike any other chart's, the title, and the figure, None without rows.
    """
    runs = files.runs(files.normal(table))
    for run, (name, (title, draw_one)) in itertools.product(runs, _DRAWN.items()):
        with mpl.rc_context(style.RC):
            figure = draw_one(run)
        name = name if len(runs) == 1 else f"{name}-{run.name}"
        yield run, name, f"{title}, of {', '.join(draw_one.keywords['passes'])}", figure


def make_directory(out: Path) -> None:
    """Make the directory of the results; raise UsageError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {out}: {error.strerror}; expected a writable directory") from None


def _write(table: pd.DataFrame, out: Path) -> Iterator[tuple[str, list[Path]]]:
    make_directory(out)
    for _, name, title, figure in draw_all(table):
        paths = [out / f"{name}.{form}" for form in ("png", "svg")] if figure else []
        for path in paths:
            path.write_bytes(style.render(figure, path.suffix[1:]))
        yield title, paths
