"""``python -m perf plot``: the charts of a result file, as PNG and SVG."""

import argparse
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from perf import EXIT_OK, UsageError, files
from perf.charts import scaling, speed_up, style
from perf.files import Run

_PASSES = {"": speed_up.MAIN, "-backward": ("backward", "theta", "input")}


def main(args: argparse.Namespace) -> int:
    """Draw the charts of ``args.results`` into ``args.out``; print the files, and which charts lack rows."""
    for title, paths in write(files.read_run(args.results), args.out):
        print(*(paths or [f"not drawn: no rows for the {title}"]), sep="\n")
    return EXIT_OK


def write(run: Run, out: Path) -> Iterator[tuple[str, list[Path]]]:
    """Draw the charts of a run into a directory; yield the title of each, and its files."""
    make_directory(out)
    for name, title, figure in figures(run):
        paths = [out / f"{name}.{form}" for form in ("png", "svg")] if figure else []
        for path in paths:
            path.write_bytes(style.render(figure, path.suffix[1:]))
        yield title, paths


def figures(run: Run) -> list[tuple[str, str, Figure | None]]:
    """Draw the charts of a run: of each a name for files, the title, and the figure, None without rows."""
    with mpl.rc_context(style.RC):
        found = []
        for suffix, passes in _PASSES.items():
            for name, measure in speed_up.MEASURES.items():
                title = f"{measure.title}, of {', '.join(passes)}"
                found.append((f"{name}{suffix}", title, speed_up.draw(run, measure, passes)))
        return [*found, ("scaling", scaling.TITLE, scaling.draw(run))]


def make_directory(out: Path) -> None:
    """Make the directory of the results; raise UsageError if it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: {out}: {error.strerror}; expected a writable directory") from None
