"""``python -m perf bench``: the command line of the measurement, its files and what it prints."""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, chosen, files, plot, report, setting
from perf.files import FAILED, Run
from perf.measuring import providers, roofline, stopwatch, suite, summary, workloads
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS
from perf.measuring.passes import PASSES
from stn_triton.environment import choose_device


def main(args: argparse.Namespace) -> int:
    """Measure, and write the rows as they come; then draw charts and page, and print the table."""
    if args.list:
        print(summary.listing())
        return EXIT_OK
    plot.make_directory(args.out)
    plan = make_plan(args)
    if plan.device.type == "cpu" and (warning := setting.load()):
        print(warning, file=sys.stderr)
    facts = {"quick": args.quick, "copy_gb_per_s": roofline.copy_gb_per_s(plan.device)}
    facts |= setting.facts(plan.device)
    path = args.out / "speed.csv"
    path.unlink(missing_ok=True)
    rows: list[files.Row] = []
    try:
        with tqdm(total=plan.count_rows(), unit="row", disable=None, dynamic_ncols=True) as progress:
            for some in suite.run(plan, progress):
                rows += some
                files.append(files.frame(some, facts), path)
    except KeyboardInterrupt:
        print(f"\nrows in {path}: {len(rows)} of {plan.count_rows()}", file=sys.stderr)
        raise
    run = files.read_run(path)
    # Before anything is printed: if the reader of the output has left, the files must be there all the same.
    lines, is_drawn = draw(run, args.out)
    print(files.frame(rows, facts).to_json(orient="records", indent=1) if args.json else summary.text(run))
    # Names of files must not mix with rows that another program reads.
    print(f"\nwrote {path}", *lines, sep="\n", file=sys.stderr if args.json else sys.stdout)
    return EXIT_OK if is_drawn and not (run.rows["status"] == FAILED).any() else EXIT_FAILED


def make_plan(args: argparse.Namespace) -> suite.Plan:
    """Make the plan of the arguments, with the defaults of the device.

    Raises:
        UsageError: a name is unknown, the device is not here, or no row is left to measure.
    """
    device = choose_device(args.device)
    some_maps = QUICK_MAPS if args.quick else CPU_MAPS if device.type == "cpu" else tuple(MAPS)
    plan = suite.Plan(
        device,
        workloads.choose(args.workloads, device, args.quick),
        chosen("--maps", args.maps or some_maps, MAPS),
        chosen("--passes", args.passes, PASSES),
        providers.choose(args.providers, args.quick),
        stopwatch.QUICK if args.quick else stopwatch.FULL,
    )
    if not plan.count_rows():
        names = ", ".join(w.name for w in plan.workloads)
        arguments = f"--workloads {names} --maps {', '.join(plan.maps)} --passes {', '.join(plan.passes)}"
        raise UsageError(f"{arguments}: no row to measure; --list says which maps and passes each can have")
    return plan


def draw(run: Run, out: Path) -> tuple[list[str], bool]:
    """Write charts and page; return lines about them, and whether all could be written."""
    try:
        paths = [path for _, some in plot.write(run, out) for path in some]
        return [f"wrote {path}" for path in (*paths, report.write(run, out))], True
    except Exception as error:  # any error belongs in the report; the rows are already written
        return [f"no page, or not all charts: {suite.one_line(error)}"], False
