"""``python -m perf bench``: the command line of the measurement, its files and what it prints."""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen, environment
from perf.files import FAILED
from perf.measuring import providers, results, roofline, suite, summary, workloads
from perf.measuring.listing import listing
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS
from perf.measuring.passes import PASSES
from perf.measuring.suite import one_line
from perf.measuring.targets import targets

_NO_COMPILE = "a quick run has no time to compile; name it with --providers"


_DRAWING = {"plot": "perf.plot", "report": "perf.report", "photograph": "perf.measuring.photograph"}


def main(args: argparse.Namespace) -> int:
    """Measure, and write the rows as they come; then print the table and draw charts, page and photograph."""
    if args.list:
        print(listing())
        return EXIT_OK
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the directory {args.out}: {error.strerror}") from None
    plan = make_plan(args)
    facts = {"quick": args.quick, "copy_gb_per_s": plan.copy_gb_per_s} | environment.facts(plan.device)
    # What says where the files are must not mix with rows that another program reads.
    say = _to_stderr if args.json else print
    path = args.out / "speed.csv"
    path.unlink(missing_ok=True)
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
    print(table.to_json(orient="records", indent=1) if args.json else summary.text(table, targets(table)))
    say(f"\nwrote {path}")
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
    return EXIT_OK if all(drawn) and not (table["status"] == FAILED).any() else EXIT_FAILED


def make_plan(args: argparse.Namespace) -> suite.Plan:
    """What the arguments ask for, with the defaults of the device.

    Raises:
        UsageError: a name is unknown, or the device is not here.
    """
    device = environment.choose_device(args.device)
    some_maps = QUICK_MAPS if args.quick else CPU_MAPS if device.type == "cpu" else tuple(MAPS)
    skips_compiling = args.quick and args.providers is None
    names = {
        "workloads": workloads.choose(args.workloads, device, args.quick),
        "maps": chosen("--maps", args.maps or some_maps, MAPS),
        "passes": chosen("--passes", args.passes, PASSES),
        "providers": providers.choose(args.providers),
    }
    if args.quick:
        # On a GPU that the library has no table of, it would time block sizes for minutes.
        os.environ.setdefault("STN_TRITON_AUTOTUNE", "0")
    return suite.Plan(
        device,
        **names,
        quick=args.quick,
        copy_gb_per_s=roofline.copy_gb_per_s(device),
        skipped={providers.COMPILE: _NO_COMPILE} if skips_compiling else {},
    )


def contribute(table: pd.DataFrame, path: Path, out: Path, say: Callable[[str], None]) -> None:
    """Copy the rows to a file named by their device, and say what is in it and where to send it."""
    copy = out / f"{environment.slug(table['device'].iloc[0])}.csv"
    shutil.copyfile(path, copy)
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
    if table["quick"].any():
        say("These are rows of a quick run: please send those of a full one, without --quick.")


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
