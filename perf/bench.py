"""``python -m perf bench``: the command line of the measurement, its files and what it prints."""

from __future__ import annotations

import argparse
import importlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace

import pandas as pd
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen, setting
from perf.files import FAILED
from perf.measuring import providers, results, roofline, suite, summary, workloads
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS
from perf.measuring.passes import PASSES
from stn_triton.environment import choose_device


def main(args: argparse.Namespace) -> int:
    """Measure, and write the rows as they come; then draw charts, page, photograph, and print the table."""
    if args.list:
        print(summary.listing())
        return EXIT_OK
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out: cannot make the directory {args.out}: {error.strerror}") from None
    plan = make_plan(args)
    facts = {"quick": args.quick, "copy_gb_per_s": plan.copy_gb_per_s} | setting.facts(plan.device)
    path = args.out / "speed.csv"
    path.unlink(missing_ok=True)
    rows: list[results.Row] = []
    try:
        with tqdm(total=plan.count_rows(), unit="row", disable=None, dynamic_ncols=True) as progress:
            for some in suite.run(plan, progress):
                rows += some
                results.append(results.frame(some, facts), path)
    except KeyboardInterrupt:
        print(f"\n{len(rows)} rows of {plan.count_rows()} are in {path}", file=sys.stderr)
        raise
    table = results.frame(rows, facts)
    lines = [f"\nwrote {path}"]
    # Before anything is printed: if the reader of the output has left, the files must be there all the same.
    is_drawn = draw(table, plan, args, lines.append)
    print(table.to_json(orient="records", indent=1) if args.json else summary.text(table))
    # Names of files must not mix with rows that another program reads.
    print("\n".join(lines), file=sys.stderr if args.json else sys.stdout)
    return EXIT_OK if is_drawn and not (table["status"] == FAILED).any() else EXIT_FAILED


def make_plan(args: argparse.Namespace) -> suite.Plan:
    """Make the plan of the arguments, with the defaults of the device.

    Raises:
        UsageError: a name is unknown, the device is not here, or no row is left to measure.
    """
    device = choose_device(args.device)
    some_maps = QUICK_MAPS if args.quick else CPU_MAPS if device.type == "cpu" else tuple(MAPS)
    skips_compiling = args.quick and args.providers is None
    plan = suite.Plan(
        device,
        workloads.choose(args.workloads, device, args.quick),
        chosen("--maps", args.maps or some_maps, MAPS),
        chosen("--passes", args.passes, PASSES),
        [p for p in providers.choose(args.providers) if p.name != providers.COMPILE or not skips_compiling],
        quick=args.quick,
        copy_gb_per_s=math.nan,
    )
    if not plan.count_rows():
        names = ", ".join(w.name for w in plan.workloads)
        arguments = f"--workloads {names} --maps {', '.join(plan.maps)} --passes {', '.join(plan.passes)}"
        raise UsageError(f"{arguments}: no row to measure; --list says which maps and passes each can have")
    return replace(plan, copy_gb_per_s=roofline.copy_gb_per_s(device))


def draw(table: pd.DataFrame, plan: suite.Plan, args: argparse.Namespace, say: Callable[[str], None]) -> bool:
    """Write charts, page and photograph; if one of them fails say why, go on, and return False."""

    def charts() -> None:
        for path in importlib.import_module("perf.plot").draw(table, args.out):
            say(f"wrote {path}")

    def report() -> None:
        say(f"wrote {importlib.import_module('perf.report').write(table, args.out)}")

    def photograph() -> None:
        path = args.out / "photograph.png"
        module = importlib.import_module("perf.measuring.photograph")
        largest = module.picture(plan.device, table.iloc[0].to_dict(), path)
        say(f"wrote {path}: operator and PyTorch differ by at most {largest:.1e} of full scale")

    is_drawn = True
    for step in (charts, report, photograph):
        try:
            step()
        except Exception as error:  # whatever it is, the rows are written
            say(f"no {step.__name__}: {suite.one_line(error)}")
            is_drawn = False
    return is_drawn
