"""``python -m perf tune``: find the fastest block sizes for this GPU and write the library's table of them.

The work goes bucket by bucket, and what was found is kept after each, in tuning.csv and in the table, so it
may be interrupted at any time. The table is made of the CSV: of the buckets that are done.
"""

from __future__ import annotations

import argparse
import fnmatch
import itertools
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, UsageError, setting
from perf.measuring import workloads
from perf.tuning import gains, launches
from perf.tuning.fastest import FULL, LOST, QUICK, Effort, Gpu, Result, expected_seconds, one_line, search
from perf.tuning.launches import Case, Plan
from perf.tuning.state import Keeper
from stn_triton import policy, tables, tuning
from stn_triton.buckets import Bucket
from stn_triton.environment import choose_device

QUICK_BUCKETS = 4
_SECONDS_BETWEEN_LINES = 30


def main(args: argparse.Namespace) -> int:
    """Tune what the arguments ask for, and return the exit code."""
    device = choose_device(args.device)
    chosen = workloads.choose(args.workloads, torch.device("cuda"))
    if device.type == "cpu":
        return _nothing_to_tune(args, device)
    plan, problems = _plan(args, chosen)
    return tune(args, Gpu(device, setting.facts(device)), plan, problems)


def _nothing_to_tune(args: argparse.Namespace, device: torch.device) -> int:
    reason = "the CPU path is plain PyTorch and has no block sizes"
    if not torch.cuda.is_available():
        reason += ", and torch.cuda finds no GPU here"
    facts = setting.facts(device)
    if args.json:
        print(json.dumps({"device": facts["device"], "buckets": [], "reason": reason}))
    else:
        print(f"nothing to tune on {facts['device']}: {reason}")
    return EXIT_OK


def _plan(args: argparse.Namespace, chosen: Sequence[workloads.Workload]) -> tuple[Plan, list[str]]:
    """What to tune, and what of it cannot be."""
    plan, problems = launches.of_workloads(chosen)
    if args.only:
        matching = {b: case for b, case in plan.items() if fnmatch.fnmatchcase(b.name(), args.only)}
        if not matching:
            example = next(iter(plan)).name()
            raise UsageError(f"--only: {args.only!r} matches none of {len(plan)} buckets, such as {example}")
        plan = matching
    if args.quick:
        plan = dict(list(plan.items())[:QUICK_BUCKETS])
    return plan, problems


def tune(args: argparse.Namespace, gpu: Gpu, plan: Plan, left_out: Sequence[str] = ()) -> int:
    """Tune the buckets of a plan that an earlier run left, report, and return the exit code."""
    effort = QUICK if args.quick else FULL
    keeper = Keeper(args.out / "tuning.csv", table_path(args, gpu), gpu.facts, effort, _say)
    keeper.open(args.fresh)
    for problem in left_out:
        _say(f"left out: {problem}")
    todo = {
        bucket: expected_seconds(bucket, effort.configs_of(bucket))
        for bucket in plan
        if not keeper.is_done(bucket)
    }
    if len(todo) < len(plan):
        _say(f"skipped, for {keeper.state.path} has them: {len(plan) - len(todo)} of {len(plan)} buckets")
    configs, seconds = sum(map(len, todo.values())), sum(map(sum, todo.values()))
    _say(
        f"to tune: {len(todo)} buckets, {configs} configurations, about {_duration(seconds)}, "
        "nearly all of it to compile"
    )
    failed = _tune_each(todo, plan, gpu, effort, keeper)
    return _report(args, gpu, plan, keeper, failed)


def _tune_each(
    todo: Mapping[Bucket, Sequence[float]], plan: Plan, gpu: Gpu, effort: Effort, keeper: Keeper
) -> list[str]:
    """Tune buckets and keep what is found; returns what failed, in words."""
    failed = []
    with Progress(todo) as progress:
        for bucket in todo:
            progress.start(bucket)
            try:
                keeper.add(bucket, _search(bucket, plan[bucket], gpu, effort, progress))
            except Exception as error:  # too large for this GPU, for example
                is_lost = not gpu.is_alive(gpu.device)
                reason = f"{LOST}: {one_line(error)}" if is_lost else one_line(error)
                keeper.add(bucket, [Result(policy.default(bucket), True, reason)])
                if is_lost:
                    failed.append(
                        "nothing more can run in this process; run again to go on without that bucket"
                    )
                    break
                failed.append(f"{bucket.name()} by {plan[bucket].source}: {reason}")
            except KeyboardInterrupt:
                done = sum(keeper.is_done(bucket) for bucket in plan)
                _say(f"kept in {keeper.state.path}: {done} of {len(plan)} buckets; run again to go on")
                raise
    return failed


def _search(bucket: Bucket, case: Case, gpu: Gpu, effort: Effort, progress: Progress) -> list[Result]:
    """Apart, so that one bucket's tensors are gone before the next one's are made."""
    return search(bucket, case.make(gpu.device), gpu, effort, progress.step)


def table_path(args: argparse.Namespace, gpu: Gpu) -> Path:
    """The table to write: --table; of a try, one that nobody reads; else the package's.

    Raises:
        UsageError: --table is a file that is no table of this GPU.
    """
    device = gpu.facts["device"]
    if args.table:
        try:
            tables.read(args.table, device)
        except tables.TableError as error:
            raise UsageError(f"--table: {args.table} is not to be overwritten: {error}") from None
        return args.table
    return (args.out if args.quick else tuning.SHIPPED) / f"{tables.slug(device)}.json"


def _report(args: argparse.Namespace, gpu: Gpu, plan: Plan, keeper: Keeper, failed: Sequence[str]) -> int:
    """Print what was found and what went wrong, and return the exit code."""
    found = gains.gains(plan, keeper.state)
    grave, broken = gains.faults(plan, keeper.state)
    problems = [
        *(f"failed: {problem}" for problem in failed),
        *grave,
        *(f"not written: {path}: {problem}" for path, problem in keeper.unwritten.items()),
    ]
    if args.json:
        machine = {key: gpu.facts[key] for key in ("device", "torch", "triton", "commit", "date")}
        print(json.dumps({**machine, "table": str(keeper.table), **found, "problems": problems}))
    else:
        print(gains.printed(found))
        if broken:
            print(f"configurations that did not run: {broken}; {keeper.state.path} has their reasons")
        if keeper.table in keeper.unwritten:
            print(f"the table that belongs into {keeper.table}:\n{keeper.text()}")
        elif keeper.configs:
            print(f"written: {keeper.table}, buckets in it from here: {len(keeper.configs)}")
            if args.quick and not args.table:
                print("of a few configurations each; nothing reads this table")
    for problem in problems:
        _say(problem)
    return EXIT_FAILED if problems else EXIT_OK


class Progress:
    """Configurations done and the time left: a bar, or now and then a line where nobody watches."""

    def __init__(self, seconds: Mapping[Bucket, Sequence[float]]) -> None:
        """Of each bucket about how long each of its configurations takes."""
        self._seconds = [each for bucket in seconds.values() for each in bucket]
        self._counts = {bucket: len(each) for bucket, each in seconds.items()}
        self._ends = dict(zip(seconds, itertools.accumulate(self._counts.values()), strict=True))
        self._bar = tqdm(total=len(self._seconds), unit="config", disable=None, dynamic_ncols=True)
        self._done = self._index = 0
        self._started = time.monotonic()
        self._said = -math.inf

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def start(self, bucket: Bucket) -> None:
        """The next bucket; what the one before left undone, since it failed, is skipped."""
        self._advance(self._ends[bucket] - self._counts[bucket] - self._done)
        self._index += 1
        title = f"{self._index} of {len(self._ends)}: {bucket.name()}"
        self._bar.set_description_str(title)
        now = time.monotonic()
        if self._bar.disable and now - self._said > _SECONDS_BETWEEN_LINES:
            self._said = now
            past, left = sum(self._seconds[: self._done]), sum(self._seconds[self._done :])
            pace = (now - self._started) / past if past else 1.0
            _say(f"{title}, about {_duration(left * pace)} left")

    def step(self) -> None:
        """A configuration is done."""
        self._advance(1)

    def _advance(self, n: int) -> None:
        self._done += n
        self._bar.update(n)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} min"
    hours = minutes / 60
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:,.0f} days"


def _say(message: str) -> None:
    """To stderr, above the bar."""
    tqdm.write(message, file=sys.stderr)
