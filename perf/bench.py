"""``python -m perf bench``: the command line of the measurement, its files and what it prints."""

from __future__ import annotations

import argparse
import importlib
import math
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen, setting
from perf.files import FAILED
from perf.measuring import providers, results, roofline, suite, summary, workloads
from perf.measuring.listing import listing
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS
from perf.measuring.passes import PASSES
from perf.measuring.suite import one_line
from perf.measuring.targets import targets
from stn_triton import tables
from stn_triton.environment import choose_device

_NO_COMPILE = "a quick run has no time to compile; name it with --providers"
_DRAWING = {"plot": "perf.plot", "report": "perf.report", "photograph": "perf.measuring.photograph"}
_WRITTEN = re.compile(r"(speed|roofline|scaling|memory)\b.*\.(csv|png|svg)|report\.html|photograph\.png")
"""Names of files that `bench` writes; those of `tune`, which may share the directory, are none of them."""


def main(args: argparse.Namespace) -> int:
    """Measure, and write the rows as they come; then draw charts, page, photograph, and print the table."""
    if args.list:
        print(listing())
        return EXIT_OK
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the directory {args.out}: {error.strerror}") from None
    busy = setting.busy()
    plan = make_plan(args)
    busy = busy if plan.device.type == "cpu" else ""
    if busy:
        _to_stderr(busy)
    if moved := set_aside(args.out):
        _to_stderr(f"moved {len(moved)} files of an older run to {args.out / 'previous'}")
    facts = {"quick": args.quick, "copy_gb_per_s": plan.copy_gb_per_s} | setting.facts(plan.device)
    path = args.out / "speed.csv"
    rows: list[results.Row] = []
    try:
        with tqdm(total=plan.count_rows(), unit="row", disable=None, dynamic_ncols=True) as progress:
            for some in suite.run(plan, progress):
                rows += some
                results.append(results.frame(some, facts), path)
    except KeyboardInterrupt:
        _to_stderr(f"\n{len(rows)} rows of {plan.count_rows()} are in {path}")
        raise
    table = results.frame(rows, facts)
    # Printed last: who reads the output may want no more of it, and the files must be there all the same.
    lines = [f"\nwrote {path}"]
    say = lines.append
    drawn = [
        _attempt(name, step, say)
        for name, step in (
            ("charts", lambda: _draw(table, args.out, say)),
            ("report.html", lambda: say(f"wrote {_module('report').write(table, args.out)}")),
            ("photograph.png", lambda: _photograph(plan, facts, args.out, say)),
        )
    ]
    if args.contribute:
        contribute(table, path, args.out, say)
    if args.json:
        print(table.to_json(orient="records", indent=1))
    else:
        print(summary.text(table, targets(table), busy))
    # What says where the files are must not mix with rows that another program reads.
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout)
    return EXIT_OK if all(drawn) and not (table["status"] == FAILED).any() else EXIT_FAILED


def make_plan(args: argparse.Namespace) -> suite.Plan:
    """What the arguments ask for, with the defaults of the device.

    Raises:
        UsageError: a name is unknown, the device is not here, no row is left to measure, or the rows are to
            be contributed and would be worth nothing.
    """
    device = choose_device(args.device)
    if args.contribute and (args.quick or device.type == "cpu"):
        what = "a quick run" if args.quick else f"a run on {device}"
        raise UsageError(f"--contribute: got {what}; expected a full run on a GPU")
    some_maps = QUICK_MAPS if args.quick else CPU_MAPS if device.type == "cpu" else tuple(MAPS)
    skips_compiling = args.quick and args.providers is None
    names = {
        "workloads": workloads.choose(args.workloads, device, args.quick),
        "maps": chosen("--maps", args.maps or some_maps, MAPS),
        "passes": chosen("--passes", args.passes, PASSES),
        "providers": providers.choose(args.providers),
    }
    plan = suite.Plan(
        device,
        **names,
        quick=args.quick,
        copy_gb_per_s=math.nan,
        skipped={providers.COMPILE: _NO_COMPILE} if skips_compiling else {},
    )
    if not plan.count_rows():
        raise UsageError(_no_rows(plan))
    return replace(plan, copy_gb_per_s=roofline.copy_gb_per_s(device))


def set_aside(out: Path) -> list[Path]:
    """Move what an older run left in a directory to ``previous`` in it, in place of a still older run's.

    Raises:
        UsageError: ``previous`` cannot be a directory.
    """
    old = list(_written(out))
    if not old:
        return []
    previous = out / "previous"
    try:
        previous.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the directory {previous}: {error.strerror}") from None
    for path in _written(previous):
        path.unlink()
    return [path.replace(previous / path.name) for path in old]


def contribute(table: pd.DataFrame, path: Path, out: Path, say: Callable[[str], None]) -> None:
    """Copy the rows to a file named by their device, and say what is in it and where to send it."""
    copy = out / "contribute" / f"{tables.slug(table['device'].iloc[0])}.csv"
    copy.parent.mkdir(exist_ok=True)
    shutil.copyfile(path, copy)
    say(f"wrote {copy}")
    facts = ", ".join(name for name in table.columns if name not in results.MEASURED)
    say(
        f"""
To contribute these rows, send {copy}
as perf/results/{copy.name}, in a pull request to the repository that this checkout comes from
(`git remote -v` names it), or attached to an issue there. Nothing is sent by this command.
Beside what was measured it has these facts of the machine, and nothing of you:
{textwrap.fill(facts, 100)}.
A message of an error may stand in the column `reason`; your home directory is written as ~ in it."""
    )


def _written(directory: Path) -> Iterator[Path]:
    return (p for p in sorted(directory.iterdir()) if p.is_file() and _WRITTEN.fullmatch(p.name))


def _no_rows(plan: suite.Plan) -> str:
    """What was chosen, and which maps and passes there are for it."""
    every = replace(plan, maps=list(MAPS), passes=list(PASSES))
    has = {(tuple(every.maps_of(w)), tuple(every.passes_of(w))) for w in plan.workloads}
    names = ", ".join(w.name for w in plan.workloads)
    chosen_names = f"--workloads {names} --maps {', '.join(plan.maps)} --passes {', '.join(plan.passes)}"
    these = "; ".join(f"maps {', '.join(maps)} and passes {', '.join(passes)}" for maps, passes in has)
    return f"{chosen_names}: no row to measure; {names} has only the {these}"


def _draw(table: pd.DataFrame, out: Path, say: Callable[[str], None]) -> None:
    for path in _module("plot").draw(table, out):
        say(f"wrote {path}")


def _photograph(plan: suite.Plan, facts: dict, out: Path, say: Callable[[str], None]) -> None:
    path = out / "photograph.png"
    largest = _module("photograph").picture(plan.device, facts, path)
    say(f"wrote {path}: operator and PyTorch differ by at most {largest:.1e} of full scale")


def _module(name: str):
    """A module that draws, imported when it is needed: the rows must not be lost if it cannot be."""
    return importlib.import_module(_DRAWING[name])


def _attempt(name: str, step: Callable[[], None], say: Callable[[str], None]) -> bool:
    """Run a step that comes after the measurement; if it fails say why, and go on."""
    try:
        step()
    except Exception as error:  # whatever it is, the rows are written
        say(f"no {name}: {one_line(error)}")
        return False
    return True


def _to_stderr(text: str) -> None:
    print(text, file=sys.stderr)
