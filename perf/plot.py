"""``python -m perf plot``: the charts of result files, as PNG and SVG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from perf import EXIT_OK, UsageError, charts, files
from perf.charts import Chart, style


def main(args: argparse.Namespace) -> int:
    """Draw what ``args.results`` has rows for into ``args.out``; say what was drawn and what was not."""
    found = files.read(args.results)
    for kind in charts.KINDS:
        table = getattr(found, kind)
        if table is None:
            names = ", ".join(one.name for one in charts.KINDS[kind])
            print(f"not drawn: {names}: {args.results} has no rows of `{_WRITERS[kind]}`")
            continue
        for chart, paths in _draw(table, args.out):
            for path in paths:
                print(path)
            if chart.figure is None:
                print(f"not drawn: {chart.name}: {chart.missing}")
    return EXIT_OK


def draw(table: pd.DataFrame, out: Path) -> list[Path]:
    """Draw every chart that the table of ``bench`` or ``tune`` has rows for, and return the files.

    Raises:
        UsageError: the table is none of results, or ``out`` cannot be a directory.
    """
    return [path for _, paths in _draw(table, out) for path in paths]


_WRITERS = {"speed": "bench", "tuning": "tune"}


def _draw(table: pd.DataFrame, out: Path) -> Iterator[tuple[Chart, list[Path]]]:
    make_directory(out)
    progress = tqdm(charts.draw_all(table), "charts", charts.count(table), disable=None, leave=False)
    for _, chart in progress:
        paths = [out / f"{chart.name}.{form}" for form in ("png", "svg")] if chart.figure else []
        for path in paths:
            path.write_bytes(style.render(chart.figure, path.suffix[1:]))
        with progress.external_write_mode(file=sys.stdout):
            yield chart, paths


def make_directory(out: Path) -> None:
    """Make the directory of the results.

    Raises:
        UsageError: it cannot be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"--out: {out}: {error.strerror}; expected a directory that can be written"
        ) from None
