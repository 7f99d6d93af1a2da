"""``python -m perf report``: one HTML page with everything that a result file says; it needs no network.

The page is `page.html` with the script `page.js`. Whatever comes from a result file is escaped, and a policy
in the page lets no other script run.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import pandas as pd
from tqdm import tqdm

import stn_triton
from perf import EXIT_OK, UsageError, charts, files, setting
from perf.charts import Chart, style
from perf.files import FACTS, FAILED, OK, OPERATOR, Run
from perf.measuring import targets
from perf.page import headline
from perf.plot import make_directory

_HERE = Path(__file__).parent / "page"
NAME = "report.html"
TITLE = "Affine sampling: measurements"


def main(args: argparse.Namespace) -> int:
    """Write the page of ``args.results`` into ``args.out`` and say where it is."""
    found = files.read(args.results)
    if found.speed is None:
        raise UsageError(f"{args.results}: holds timings of `tune` alone; expected rows of `bench` too")
    print(write(found.speed, args.out, found.tuning))
    return EXIT_OK


def write(table: pd.DataFrame, out: Path, tuning: pd.DataFrame | None = None) -> Path:
    """Write the page of a table of ``bench``, with the timings of ``tune`` if given; return its path.

    Raises:
        UsageError: the table is none of results, or ``out`` cannot be a directory.
    """
    table = files.normal(table)
    make_directory(out)
    runs = files.runs(table)
    drawn = _charts(table)
    sections = [_run(run, drawn[run.name], f"run-{i}") for i, run in enumerate(runs, 1)]
    links = [(f"run-{i}", _run_title(run)) for i, run in enumerate(runs, 1)]
    if tuning is not None:
        pictures = [chart for of_run in _charts(tuning).values() for chart in of_run]
        sections.append('<h2 id="tuning">Tuning</h2>\n' + _figures(pictures))
        links.append(("tuning", "Tuning"))
    links.append(("method", "Method"))
    script = (_HERE / "page.js").read_text()
    page = Template((_HERE / "page.html").read_text()).substitute(
        title=escape(TITLE),
        contents=_contents(links, len(runs)),
        sections="\n".join(sections),
        version=escape(f"{stn_triton.__version__}, commit {setting.commit()},"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
    path = out / NAME
    path.write_text(page, encoding="utf-8")
    return path


def _charts(table: pd.DataFrame) -> dict[str, list[tuple[Chart, str]]]:
    """Of each run by its name: the charts, each with its SVG."""
    drawn: dict[str, list[tuple[Chart, str]]] = {}
    for run, chart in tqdm(charts.draw_all(table), "page", charts.count(table), disable=None, leave=False):
        svg = style.render(chart.figure, "svg").decode() if chart.figure else ""
        drawn.setdefault(run.name, []).append((chart, svg))
    return drawn


def _contents(links: Sequence[tuple[str, str]], runs: int) -> str:
    items = "".join(f'<li><a href="#{name}">{escape(text)}</a></li>' for name, text in links)
    several = (
        f"<p><b>{runs} runs</b>: other machines, versions, commits or dates. Each has a part of its own, "
        "since their times are not comparable.</p>"
        if runs > 1
        else ""
    )
    return f"{several}<nav><ul>{items}</ul></nav>"


def _run_title(run: Run) -> str:
    device, commit = (run.facts[name] or f"unknown {name}" for name in ("device", "commit"))
    return f"{device}, commit {commit}, {run.facts['date'][:10]}{', quick run' if run.quick else ''}"


def _run(run: Run, drawn: Sequence[tuple[Chart, str]], anchor: str) -> str:
    notes = [setting.summary(run.facts)]
    if run.facts["device_type"] == "cpu":
        notes.append("On a CPU the operator runs its plain PyTorch path, not its GPU kernels.")
    if run.quick:
        notes.append("Quick run: small batches and few repetitions; a first look, no measurement to cite.")
    if run.repeated:
        notes.append(f"{run.repeated} rows were measured again later in the file; the last ones are shown.")
    return "\n".join(
        [
            f'<section id="{anchor}">',
            f"<h2>{escape(_run_title(run))}</h2>",
            *(f'<p class="muted">{escape(note)}</p>' for note in notes),
            _headlines(run),
            "<h3>Targets</h3>",
            _targets(run),
            "<h3>Charts</h3>",
            _figures(drawn),
            "<h3>All rows</h3>",
            _rows(run.rows),
            "<h3>Rows without a time</h3>",
            _without_time(run.rows),
            "<h3>Environment</h3>",
            _environment(run),
            "</section>",
        ]
    )


def _headlines(run: Run) -> str:
    items = (f"<div><dt>{escape(n.value)}</dt><dd>{escape(n.text)}</dd></div>" for n in headline.numbers(run))
    return f'<dl class="numbers">{"".join(items)}</dl>'


def _targets(run: Run) -> str:
    found = pd.DataFrame(targets.targets(run.rows))
    if found.empty:
        return "<p>None is judged by these rows.</p>"
    return _table(["target", "asked", "measured", "verdict"], found.astype(str).to_numpy().tolist())


def _figures(drawn: Iterable[tuple[Chart, str]]) -> str:
    parts = [
        f'<figure><div class="chart">{_inline(svg, chart.caption)}</div>'
        f"<figcaption>{escape(chart.caption)}</figcaption></figure>"
        if svg
        else f'<p class="muted">Not drawn: {escape(chart.name)}: {escape(chart.missing)}.</p>'
        for chart, svg in drawn
    ]
    return "\n".join(parts)


def _inline(svg: str, label: str) -> str:
    """The picture as an element of a page: without its head, and with a name for who cannot see it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], count=1, flags=re.DOTALL)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1)


def _number(digits: str) -> Callable[[float], str]:
    return lambda value: "" if pd.isna(value) else format(value, digits)


_COLUMNS: dict[str, tuple[str, Callable[[float], str] | None]] = {
    **{name: (name, None) for name in ("workload", "shape", "size", "dtype", "layout", "map", "pass")},
    "provider": ("provider", None),
    "status": ("status", None),
    "speedup": ("speed-up", _number(".2f")),
    "median_ms": ("median ms", _number(".4g")),
    "q20_ms": ("20 % ms", _number(".4g")),
    "q80_ms": ("80 % ms", _number(".4g")),
    "graph_ms": ("graph ms", _number(".4g")),
    "gb_per_s": ("GB/s", _number(".4g")),
    "roofline": ("roofline", _number(".1%")),
    "peak_mib": ("peak MiB", _number(".4g")),
    "samples": ("samples", _number(".0f")),
    "checked": ("worst tensor", None),
    "error": ("its error", _number(".2g")),
    "tolerance": ("allowed", _number(".2g")),
}


def _rows(rows: pd.DataFrame) -> str:
    """The whole table; a column without any value is left out."""
    columns = [name for name in _COLUMNS if (rows[name].notna() & (rows[name] != "")).any()]
    cells = []
    for name in columns:
        write = _COLUMNS[name][1]
        cells.append([str(v) if write is None else write(v) for v in rows[name]])
    slower = (rows["provider"] == OPERATOR) & ((rows["speedup"] < 1) | (rows["status"] == FAILED))
    return (
        "<p>Bold and coloured: the operator lost to the eager pair, or failed.</p>\n"
        + '<div class="wide">'
        + _table(
            [_COLUMNS[name][0] for name in columns],
            list(zip(*cells, strict=True)),
            numbers={i for i, name in enumerate(columns) if _COLUMNS[name][1]},
            bad=slower.tolist(),
            kind="sortable",
        )
        + "</div>"
    )


def _without_time(rows: pd.DataFrame) -> str:
    without = rows[~files.timed(rows)]
    if without.empty:
        return "<p>None: every row has a time.</p>"
    found: dict[tuple[str, str, str], list[tuple[str, int]]] = {}
    for (status, reason, provider), part in without.groupby(["status", "reason", "provider"], sort=False):
        status = "ok, but no time" if status == OK else status
        key = status, reason or "no reason in the file", _where(part, rows)
        found.setdefault(key, []).append((provider, len(part)))
    lines = [
        (status, ", ".join(name for name, _ in own), str(sum(n for _, n in own)), reason, where)
        for (status, reason, where), own in found.items()
    ]
    head = ["status", "provider", "rows", "reason", "where"]
    return f'<div class="wide">{_table(head, lines, texts={1, 3, 4})}</div>'


def _where(part: pd.DataFrame, rows: pd.DataFrame) -> str:
    """The workloads of a provider's rows, each with its maps and passes where these are not all."""
    if len(part) == (rows["provider"] == part["provider"].iloc[0]).sum():
        return "everywhere"
    places = []
    for workload, own in part.groupby("workload", sort=False):
        every = rows[rows["workload"] == workload]
        some = [own[c].unique() for c in ("map", "pass") if set(own[c]) != set(every[c])]
        places.append(workload + (f" ({'; '.join(', '.join(names) for names in some)})" if some else ""))
    return ", ".join(places[:8]) + (f" and {len(places) - 8} more workloads" if len(places) > 8 else "")


def _environment(run: Run) -> str:
    facts = [(name, run.facts[name] or "not in the file") for name in FACTS]
    copy = run.rows["copy_gb_per_s"].dropna()
    facts.append(("copy bandwidth", f"{copy.median():.4g} GB/s" if len(copy) else "not in the file"))
    facts.append(("effort", "quick" if run.quick else "full"))
    facts.append(("rows", str(len(run.rows))))
    return _table(["fact", "value"], facts)


def _table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Iterable[int] = (),
    texts: Iterable[int] = (),
    bad: Sequence[bool] = (),
    kind: str = "",
) -> str:
    """An HTML table, every cell escaped; ``numbers`` and ``texts`` are columns, ``bad`` marks rows."""
    kinds = {**dict.fromkeys(numbers, ' class="number"'), **dict.fromkeys(texts, ' class="text"')}
    heads = "".join(f'<th scope="col"{kinds.get(i, "")}>{escape(text)}</th>' for i, text in enumerate(head))
    lines = []
    for i, row in enumerate(rows):
        cells = "".join(f"<td{kinds.get(j, '')}>{escape(str(text))}</td>" for j, text in enumerate(row))
        lines.append(f"<tr{' class=bad' if len(bad) and bad[i] else ''}>{cells}</tr>")
    body = "\n".join(lines)
    return f'<table class="{kind}"><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table>'
