"""``python -m perf report``: one HTML page of a result file; it needs no network.

The template escapes everything that comes from the file, and a policy in the page allows no other script.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
from collections.abc import Iterator
from pathlib import Path

import jinja2
import pandas as pd

import stn_triton
from perf import EXIT_OK, files, plot, setting
from perf.charts import speed_up, style
from perf.files import FACTS, FAILED, OPERATOR, Run, geometric_mean, timed

_PAGE = Path(__file__).parent / "page"


def main(args: argparse.Namespace) -> int:
    """Write the page of ``args.results`` into ``args.out`` and print its path."""
    print(write(files.read_speed(args.results), args.out))
    return EXIT_OK


def write(table: pd.DataFrame, out: Path) -> Path:
    """Write the page of a table of ``bench`` into a directory, and return its path."""
    plot.make_directory(out)
    runs: dict[str, dict] = {}
    for run, _, title, figure in plot.draw_all(table):
        svg = base64.b64encode(style.render(figure, "svg")).decode() if figure else ""
        runs[run.name] = runs.get(run.name) or _contents(run)
        runs[run.name]["charts"].append((title, svg))
    script = (_PAGE / "page.js").read_text()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    version = f"{stn_triton.__version__}, commit {setting.commit()}"
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string((_PAGE / "page.html").read_text())
    html = template.render(runs=list(runs.values()), script=script, digest=digest, version=version)
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path


def _contents(run: Run) -> dict[str, object]:
    """Everything that the template shows of a run."""
    rows, facts, copied = run.rows, run.facts, run.rows["copy_gb_per_s"].dropna()
    device, commit, date = (facts[name] or f"unknown {name}" for name in ("device", "commit", "date"))
    has_values = (rows.notna() & (rows != "")).any()
    columns = [name for name in rows if has_values[name] and name not in (*FACTS, "quick", "reason")]
    cells = rows[columns].map(lambda v: v if isinstance(v, str) else "" if pd.isna(v) else f"{v:.4g}")
    lost = (rows["provider"] == OPERATOR) & ((rows["speedup"] < 1) | (rows["status"] == FAILED))
    reasons = rows[~timed(rows)].groupby(["status", "reason", "provider"], sort=False)["workload"]
    return {
        "title": f"{device}, commit {commit}, {date[:10]}{', quick run' if run.quick else ''}",
        "notes": style.facts(run),
        "numbers": list(numbers(run)),
        "charts": [],
        "columns": [name.replace("_", " ") for name in columns],
        "rows": cells.to_numpy().tolist(),
        "lost": lost.tolist(),
        "without": [(*key, len(own), ", ".join(own.unique()[:8])) for key, own in reasons],
        "facts": {**facts, "copy bandwidth, GB/s": f"{copied.median():.4g}" if len(copied) else ""},
    }


def numbers(run: Run) -> Iterator[tuple[str, str]]:
    """Yield the headline figures, each with its explanation. Sweeps repeat few shapes and are left out."""
    rows = run.rows[~run.rows["workload"].str.fullmatch(files.SWEEP)]
    own = rows[timed(rows) & (rows["provider"] == OPERATOR) & rows["pass"].isin(speed_up.MAIN)]
    for measure in speed_up.MEASURES.values():
        for name, values in measure.values(rows)[own.index].dropna().groupby(own["pass"], sort=False):
            span = f"{measure.text(values.min())} to {measure.text(values.max())}"
            text = f"{measure.title}, {name}: geometric mean of {len(values)} rows, {span}"
            lost = f"; worse than the eager pair on {(measure.loss * (values - 1) > 0).sum()}"
            yield measure.text(geometric_mean(values)), text + lost * bool(measure.loss)
    yield f"{len(run.rows)}", f"rows; without a time: {style.counts(run.rows[~timed(run.rows)])}"
