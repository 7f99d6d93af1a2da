"""``python -m perf tune``: find the fastest block sizes for this GPU and write the library's table of them.

The results are kept after each bucket, in a CSV and in the table: a run may be interrupted at any time.
"""

import argparse
import fnmatch
import json
import sys
from collections.abc import Sequence

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, setting
from perf.files import FAILED, OK, geometric_mean
from perf.measuring import stopwatch, workloads
from perf.measuring.suite import one_line
from perf.tuning import fastest, launches
from perf.tuning.launches import Plan
from perf.tuning.state import Keeper
from stn_triton import tables, tuning
from stn_triton.environment import choose_device
from stn_triton.policy import CONFIG_KEYS

QUICK_BUCKETS = 4
CONFIGS, QUICK_CONFIGS = 16, 4  # the most configurations to try for a bucket
SHOWN = ["bucket", "median_ms", "gain", "is_default", *CONFIG_KEYS]
"""Columns of the best rows: median of a launch, and how many times faster than the default it is."""


def main(args: argparse.Namespace) -> int:
    """Tune the buckets that the arguments name, and return the exit code."""
    device = choose_device(args.device)
    chosen = workloads.choose(args.workloads, torch.device("cuda"))
    if device.type == "cpu":
        raise UsageError("nothing to tune: the CPU path is plain PyTorch, only GPUs have block sizes")
    return tune(args, device, plan_of(args, chosen))


def plan_of(args: argparse.Namespace, chosen: Sequence[workloads.Workload]) -> Plan:
    """The buckets to tune."""
    plan = launches.of_workloads(chosen)
    patterns = args.only or ["*"]
    matching = [bucket for bucket in plan if any(fnmatch.fnmatchcase(bucket.name(), p) for p in patterns)]
    if not matching:
        example = next(iter(plan)).name()
        raise UsageError(f"--only: {patterns} matches none of {len(plan)} buckets, such as {example}")
    return {bucket: plan[bucket] for bucket in matching[: QUICK_BUCKETS if args.quick else None]}


def tune(args: argparse.Namespace, device: torch.device, plan: Plan) -> int:
    """Tune the buckets of a plan that an earlier run left, report, and return the exit code.

    With --quick both files are in --out and have names of their own: a full run does not use their timings.
    """
    facts = setting.facts(device)
    table = (args.out if args.quick else tuning.SHIPPED) / f"{tables.slug(facts['device'])}.json"
    csv = args.out / ("tuning-quick.csv" if args.quick else "tuning.csv")
    keeper = Keeper(csv, args.table or table, facts, args.fresh)
    todo = {bucket: make for bucket, make in plan.items() if not keeper.is_done(bucket)}
    text = f"to tune: {len(todo)} of {len(plan)} buckets; a run that is interrupted goes on from {csv}"
    print(text, file=sys.stderr)
    problems = []
    for bucket, make in tqdm(todo.items(), "buckets", dynamic_ncols=True):
        configs = tuning.candidates(bucket, QUICK_CONFIGS if args.quick else CONFIGS)
        try:
            rows = fastest.search(bucket, make(device), configs, device)
        except Exception as error:  # too large for this GPU, for example
            reason = one_line(error)
            if not stopwatch.is_alive(device):
                status = f"{FAILED}: lost the GPU: {reason}"
                keeper.add(bucket, [fastest.row_of(configs[0], is_default=True, status=status)])
                problems.append("this process lost the GPU; run again to go on without that bucket")
                break
            problems.append(f"failed: {bucket.name()}: {reason}")
        else:
            keeper.add(bucket, rows)
    return _report(args, facts, plan, keeper, problems)


def _report(args: argparse.Namespace, facts: dict, plan: Plan, keeper: Keeper, problems: list[str]) -> int:
    """Print what was found and what went wrong, and return the exit code."""
    rows = [row for bucket in plan for row in keeper.rows if row["bucket"] == bucket.name()]
    broken = [row for row in rows if row["status"] != OK]
    grave = [row for row in broken if row["status"].startswith(FAILED)]
    problems += [f"{row['bucket']} with {fastest.named(row)}: {row['status']}" for row in grave]
    best = pd.DataFrame([row for row in rows if row["is_best"]], columns=SHOWN)
    if args.json:
        found = {"table": str(keeper.table), "buckets": best.to_dict("records"), "problems": problems}
        print(json.dumps({**facts, **found}))
    else:
        if len(best):
            mean, equal = geometric_mean(best["gain"]), best["is_default"].sum()
            print(best.sort_values("gain", ascending=False).to_string(index=False, float_format="%.4f"))
            print(f"gain over the default: {mean:.3f}x, the geometric mean over buckets ({len(best)})")
            print(f"buckets where the default was the best, or as good within noise: {equal}")
            print(f"written: {keeper.table}, buckets in it from here: {len(keeper.best())}")
        if broken:
            print(f"configurations that did not run: {len(broken)}; {keeper.csv} has their reasons")
    for problem in problems:
        print(problem, file=sys.stderr)
    return EXIT_FAILED if problems else EXIT_OK
