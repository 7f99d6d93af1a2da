"""``python -m perf tune``: find the fastest block sizes for this GPU and write the library's table of them.

The results are kept after each bucket, in tuning.csv and in the table: a run may be interrupted at any time.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, setting
from perf.files import OK
from perf.measuring import stopwatch, workloads
from perf.measuring.suite import one_line
from perf.tuning import fastest, launches, state
from perf.tuning.launches import Plan
from stn_triton import tables, tuning
from stn_triton.buckets import Bucket
from stn_triton.environment import choose_device

QUICK_BUCKETS = 4
CONFIGS, QUICK_CONFIGS = 16, 4
"""Largest number of configurations to try for a bucket."""


def main(args: argparse.Namespace) -> int:
    """Tune the buckets that the arguments name, and return the exit code."""
    device = choose_device(args.device)
    chosen = workloads.choose(args.workloads, torch.device("cuda"))
    if device.type == "cpu":
        why = "" if torch.cuda.is_available() else ", and torch.cuda finds no GPU here"
        raise UsageError(f"nothing to tune: the CPU path is plain PyTorch and has no block sizes{why}")
    return tune(args, device, plan_of(args, chosen))


def plan_of(args: argparse.Namespace, chosen: Sequence[workloads.Workload]) -> Plan:
    """The buckets to tune."""
    plan = launches.of_workloads(chosen)
    patterns = args.only or ["*"]
    matching = [bucket for bucket in plan if any(fnmatch.fnmatchcase(bucket.name(), p) for p in patterns)]
    if not matching:
        example = next(iter(plan)).name()
        raise UsageError(
            f"--only: {', '.join(map(repr, patterns))} matches none of {len(plan)} buckets, such as {example}"
        )
    return {bucket: plan[bucket] for bucket in matching[: QUICK_BUCKETS if args.quick else None]}


def tune(args: argparse.Namespace, device: torch.device, plan: Plan) -> int:
    """Tune the buckets of a plan that an earlier run left, report, and return the exit code."""
    facts = setting.facts(device)
    table = table_path(args, facts["device"])
    keeper = state.Keeper(args.out / "tuning.csv", table, facts, QUICK_CONFIGS if args.quick else CONFIGS)
    if aside := keeper.open(args.fresh):
        _say(aside)
    todo = {bucket: case for bucket, case in plan.items() if not keeper.is_done(bucket)}
    if len(todo) < len(plan):
        _say(f"skipped, because {keeper.path} has them: {len(plan) - len(todo)} of {len(plan)} buckets")
    try:
        problems = _tune_each(todo, device, keeper)
    except KeyboardInterrupt:
        done = sum(keeper.is_done(bucket) for bucket in plan)
        _say(f"kept in {keeper.path}: {done} of {len(plan)} buckets; run again to go on")
        raise
    return _report(args, facts, plan, keeper, problems)


def _tune_each(todo: Plan, device: torch.device, keeper: state.Keeper) -> list[str]:
    """Tune buckets and keep what is found; returns a line for each that failed."""
    failed = []
    count = sum(len(keeper.configs_of(bucket)) for bucket in todo)
    _say(f"to tune: {len(todo)} buckets, {count} configurations, each compiled in about 2 s of a core")
    with tqdm(total=count, unit="config", dynamic_ncols=True) as bar:
        for bucket, case in todo.items():
            bar.set_description_str(bucket.name())
            configs = keeper.configs_of(bucket)
            try:
                rows = fastest.search(bucket, case.make(device), configs, device, bar.update)
            except Exception as error:  # too large for this GPU, for example
                failed.append(f"{bucket.name()} by {case.source}: {one_line(error)}")
                if not stopwatch.is_alive(device):
                    status = f"{state.LOST}: {one_line(error)}"
                    keeper.add(
                        bucket, [{**configs[0], "is_default": True, "is_best": False, "status": status}]
                    )
                    failed.append(
                        "nothing more can run in this process; run again to go on without that bucket"
                    )
                    break
            else:
                keeper.add(bucket, rows)
    return failed


def table_path(args: argparse.Namespace, device: str) -> Path:
    """Choose the table to write: --table, or the one in the package, which the library reads.

    Without --table, --quick writes a table in --out, which the library does not read.

    Raises:
        UsageError: --table names an existing file that is not a table of this GPU.
    """
    path = args.table or (args.out if args.quick else tuning.SHIPPED) / f"{tables.slug(device)}.json"
    try:
        if args.table:
            tables.read(path, device)
    except tables.TableError as error:
        raise UsageError(f"--table: {path} is not to be overwritten: {error}") from None
    return path


def _report(
    args: argparse.Namespace, facts: dict, plan: Sequence[Bucket], keeper: state.Keeper, failed: Sequence[str]
) -> int:
    """Print what was found and what went wrong, and return the exit code."""
    gains = keeper.gains(plan)
    rows = keeper.rows[keeper.rows["bucket"].isin([bucket.name() for bucket in plan])]
    broken = rows[rows["status"] != OK]
    is_grave = broken["status"].str.startswith((fastest.WRONG, state.LOST))
    grave = broken[is_grave].to_dict("records")
    problems = [f"failed: {problem}" for problem in failed]
    problems += [f"{row['bucket']} with {fastest.named(row)}: {row['status']}" for row in grave]
    if args.json:
        machine = {key: facts[key] for key in ("device", "torch", "triton", "commit", "date")}
        buckets = json.loads(gains.to_json(orient="records"))
        print(json.dumps({**machine, "table": str(keeper.table), "buckets": buckets, "problems": problems}))
    else:
        print(state.printed(gains))
        if len(grave) < len(broken):
            others = len(broken) - len(grave)
            print(f"configurations that did not run: {others}; {keeper.path} has their reasons")
        if len(gains):
            print(f"written: {keeper.table}, buckets in it from here: {len(keeper.best())}")
        if args.quick and not args.table:
            print("--quick tried few configurations per bucket: the library does not read this table")
    for problem in problems:
        _say(problem)
    return EXIT_FAILED if problems else EXIT_OK


def _say(message: str) -> None:
    """Print to stderr, above the bar."""
    tqdm.write(message, file=sys.stderr)
