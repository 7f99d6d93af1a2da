"""``python -m perf report``: one HTML page of a result file; it needs no network.

The template escapes everything that comes from the file, and a policy in the page allows no other script.
"""

import argparse
import base64
import hashlib
from pathlib import Path

import jinja2
import pandas as pd

import stn_triton
from perf import EXIT_OK, files, plot, setting
from perf.charts import style
from perf.files import FACTS, FAILED, OPERATOR, Run, timed

_PAGE = Path(__file__).parent / "page"


def main(args: argparse.Namespace) -> int:
    """Write the page of ``args.results`` into ``args.out`` and print its path."""
    print(write(files.read_run(args.results), args.out))
    return EXIT_OK


def write(run: Run, out: Path) -> Path:
    """Write the page of a run into a directory, and return its path."""
    plot.make_directory(out)
    rows = run.rows.drop(columns=["reason", "quick", *FACTS])
    rows = rows.loc[:, (rows.notna() & (rows != "")).any()]
    cells = rows.map(lambda v: v if isinstance(v, str) else "" if pd.isna(v) else f"{v:.4g}")
    is_lost = (run.rows["speedup"] < 1) | (run.rows["status"] == FAILED)
    without = run.rows[~timed(run.rows)].groupby(["status", "reason", "provider"], sort=False)["workload"]
    script = (_PAGE / "page.js").read_text()
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string((_PAGE / "page.html").read_text()).render(
        notes=[setting.summary(run.facts), *run.notes],
        charts=[
            (title, base64.b64encode(style.render(figure, "svg")).decode() if figure else "")
            for _, title, figure in plot.figures(run)
        ],
        columns=[name.replace("_", " ") for name in rows],
        rows=cells.to_numpy().tolist(),
        lost=(is_lost & (run.rows["provider"] == OPERATOR)).tolist(),
        without=[(*key, len(own), ", ".join(own.unique()[:8])) for key, own in without],
        facts=run.facts,
        script=script,
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        version=f"{stn_triton.__version__}, commit {setting.commit()}",
    )
    path = out / "report.html"
    path.write_text(html, encoding="utf-8")
    return path
