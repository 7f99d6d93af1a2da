"""``python -m perf tune``: find the fastest block sizes for this GPU and write the library's table of them.

The results are kept after each bucket, in tuning.csv and in the table: a run may be interrupted at any time.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, setting
from perf.measuring import workloads
from perf.tuning import gains, launches
from perf.tuning.fastest import FULL, LOST, QUICK, Gpu, Result, one_line, search
from perf.tuning.launches import Plan
from perf.tuning.state import Keeper
from stn_triton import policy, tables, tuning
from stn_triton.environment import choose_device

QUICK_BUCKETS = 4
_SECONDS = 2.0
"""About how long a core compiles a configuration."""


def main(args: argparse.Namespace) -> int:
    """Tune the buckets that the arguments name, and return the exit code."""
    device = choose_device(args.device)
    chosen = workloads.choose(args.workloads, torch.device("cuda"))
    if device.type == "cpu":
        why = "" if torch.cuda.is_available() else ", and torch.cuda finds no GPU here"
        raise UsageError(f"nothing to tune: the CPU path is plain PyTorch and has no block sizes{why}")
    plan, problems = plan_of(args, chosen)
    return tune(args, Gpu(device, setting.facts(device)), plan, problems)


def plan_of(args: argparse.Namespace, chosen: Sequence[workloads.Workload]) -> tuple[Plan, list[str]]:
    """The buckets to tune, and a line for each call that cannot be made."""
    plan, problems = launches.of_workloads(chosen)
    if args.only:
        matching = {b: case for b, case in plan.items() if fnmatch.fnmatchcase(b.name(), args.only)}
        if not matching:
            example = next(iter(plan)).name()
            raise UsageError(f"--only: {args.only!r} matches none of {len(plan)} buckets, such as {example}")
        plan = matching
    return dict(list(plan.items())[: QUICK_BUCKETS if args.quick else None]), problems


def tune(args: argparse.Namespace, gpu: Gpu, plan: Plan, left_out: Sequence[str] = ()) -> int:
    """Tune the buckets of a plan that an earlier run left, report, and return the exit code."""
    effort = QUICK if args.quick else FULL
    keeper = Keeper(args.out / "tuning.csv", table_path(args, gpu), gpu.facts, effort, _say)
    keeper.open(args.fresh)
    for problem in left_out:
        _say(f"left out: {problem}")
    todo = {bucket: effort.configs_of(bucket) for bucket in plan if not keeper.is_done(bucket)}
    if len(todo) < len(plan):
        _say(f"skipped, because {keeper.path} has them: {len(plan) - len(todo)} of {len(plan)} buckets")
    count = sum(map(len, todo.values()))
    minutes = count * _SECONDS / (os.cpu_count() or 1) / 60
    _say(f"to tune: {len(todo)} buckets, {count} configurations, about {minutes:.0f} min to compile them")
    keeper.write_table()
    try:
        problems = _tune_each(list(todo), plan, gpu, keeper, count)
    except KeyboardInterrupt:
        done = sum(keeper.is_done(bucket) for bucket in plan)
        _say(f"kept in {keeper.path}: {done} of {len(plan)} buckets; run again to go on")
        raise
    return _report(args, gpu, plan, keeper, problems)


def _tune_each(todo: Sequence, plan: Plan, gpu: Gpu, keeper: Keeper, count: int) -> list[str]:
    """Tune buckets and keep what is found; returns a line for each that failed."""
    failed = []
    with tqdm(total=count, unit="config", disable=None, dynamic_ncols=True) as bar:
        for i, bucket in enumerate(todo, start=1):
            title = f"{i} of {len(todo)}: {bucket.name()}"
            bar.set_description_str(title)
            if bar.disable:
                _say(title)
            is_lost = False
            try:
                results = search(bucket, plan[bucket].make(gpu.device), gpu, keeper.effort, bar.update)
            except Exception as error:  # too large for this GPU, for example
                is_lost = not gpu.is_alive(gpu.device)
                reason = f"{LOST}: {one_line(error)}" if is_lost else one_line(error)
                results = [Result(policy.default(bucket), True, reason)]
                if not is_lost:
                    failed.append(f"{bucket.name()} by {plan[bucket].source}: {reason}")
            keeper.add(bucket, results)
            if is_lost:
                failed.append("nothing more can run in this process; run again to go on without that bucket")
                break
    return failed


def table_path(args: argparse.Namespace, gpu: Gpu) -> Path:
    """The table to write: --table; of a try, one that nobody reads; else the package's.

    Raises:
        UsageError: it cannot be written, or --table is a file that is no table of this GPU.
    """
    device = gpu.facts["device"]
    path = args.table or (args.out if args.quick else tuning.SHIPPED) / f"{tables.slug(device)}.json"
    try:
        if args.table:
            tables.read(path, device)
    except tables.TableError as error:
        raise UsageError(f"--table: {path} is not to be overwritten: {error}") from None
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not (folder.is_dir() and os.access(path if path.exists() else folder, os.W_OK)):
        raise UsageError(f"--table: {path} cannot be written; name another file")
    return path


def _report(args: argparse.Namespace, gpu: Gpu, plan: Plan, keeper: Keeper, failed: Sequence[str]) -> int:
    """Print what was found and what went wrong, and return the exit code."""
    found = gains.gains(plan, keeper)
    grave, broken = gains.faults(plan, keeper)
    problems = [*(f"failed: {problem}" for problem in failed), *grave]
    if args.json:
        machine = {key: gpu.facts[key] for key in ("device", "torch", "triton", "commit", "date")}
        rows = json.loads(found.to_json(orient="records"))
        facts = {**machine, "table": str(keeper.table)}
        print(json.dumps({**facts, "buckets": rows, "problems": problems}))
    else:
        print(gains.printed(found))
        if broken:
            print(f"configurations that did not run: {broken}; {keeper.path} has their reasons")
        if len(found):
            print(f"written: {keeper.table}, buckets in it from here: {len(keeper.configs())}")
        if args.quick and not args.table:
            print("of a few configurations each; nothing reads this table")
    for problem in problems:
        _say(problem)
    return EXIT_FAILED if problems else EXIT_OK


def _say(message: str) -> None:
    """Print to stderr, above the bar."""
    tqdm.write(message, file=sys.stderr)
