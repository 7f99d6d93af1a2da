"""The command line of the digits: its arguments, its outputs, its exit codes."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from stn_triton.terminal import EXIT_FAILED, EXIT_OK, Parser, chosen, run

DESCRIPTION = """\
Train networks with and without a spatial transformer on distorted handwritten digits, after Table 1 of
Jaderberg et al. 2015, and print their test errors: CNN and FCN (fully connected), alone and behind an affine,
a projective and a thin plate spline transformer, all with equally many parameters and training steps, on
  R     rotated within ±90 degrees
  RTS   rotated ±45 degrees, scaled 0.7 to 1.2, placed anywhere in a larger canvas
  P     projective, E elastic
  TC    placed anywhere in a larger canvas, among fragments of other digits
and, to compare invariances, CNNs on upright digits (U, UL). Real handwriting: scikit-learn's digits, which
need no download, or MNIST with --data. It runs on the CPU, a thread per network.

Writes into the output directory
  table.txt, results.json   means over the seeds, settings, machine
  networks.csv              a row per network
  crops-*.png               input, sampled region, crop and theta of each transformer
  invariance.png, .csv      accuracy over angle and shift, if the networks for it are among those trained
  networks/                 the networks; those found there are not trained again
Interrupt it at any time: the same command goes on from there.
"""

EPILOG = """\
examples:
  python -m stn_triton.examples.digits --quick              a first look: one to three minutes
  python -m stn_triton.examples.digits                      everything: half an hour on two cores
  python -m stn_triton.examples.digits --data ~/mnist       MNIST's four IDX files, plain or .gz
  python -m stn_triton.examples.digits --distortions RTS --models cnn st-cnn-affine --seeds 5
  python -m stn_triton.examples.digits --steps 10000 --out longer

exit codes:
  0    done
  1    --quick, and no ST-CNN came out ahead of its CNN; or something failed
  2    a wrong argument or file
  130  interrupted with Ctrl-C
"""


def build_parser() -> Parser:
    """The parser of the command line."""
    parser = Parser(prog="python -m stn_triton.examples.digits", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="CNN and FCN, alone and behind an affine transformer, on RTS; two seeds, a third of the steps",
    )
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="MNIST's IDX files (default: scikit-learn's digits)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the results go (default: digits-results, with --quick digits-results/quick)",
    )
    parser.add_argument("--distortions", nargs="+", metavar="NAME", help="distortions (default: all)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="such as st-cnn-tps (default: all)")
    parser.add_argument(
        "--seeds", type=_positive, metavar="N", help="seeds per network (default: 3; --quick: 2)"
    )
    parser.add_argument(
        "--steps", type=_positive, metavar="N", help="training steps (default: 2000; --quick: 700)"
    )
    parser.add_argument(
        "--jobs", type=_positive, metavar="N", help="networks at once (default: one per core)"
    )
    parser.add_argument("--fresh", action="store_true", help="start over; the earlier run goes to previous/")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = build_parser().parse(argv)
    return run(args, _main, extra="examples", interrupted="interrupted; the same command goes on from here")


def _main(args: argparse.Namespace) -> int:
    from stn_triton.examples.digits.runs import one_thread

    try:
        with one_thread():
            return _run(args)
    except OSError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED


def _run(args: argparse.Namespace) -> int:
    from stn_triton.examples.digits import data, runs, scores

    plan = _plan(args)
    out = args.out or Path("digits-results", *["quick"] * args.quick)
    source = data.load(args.data)
    networks = out / "networks"
    if args.fresh:
        _set_aside(out)
    tasks = plan.tasks()
    jobs = args.jobs or (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    print(f"{len(tasks)} networks, {plan.settings.steps} steps each; digits: {source.name}", file=sys.stderr)
    began = time.monotonic()
    try:
        found = runs.run(tasks, plan.settings, source, args.data, networks, jobs)
    except runs.WorkerError as error:
        print(error, file=sys.stderr)
        return EXIT_FAILED
    minutes = (time.monotonic() - began) / 60
    cells = scores.cells(found)
    lines, is_ahead = scores.verdicts(cells)
    paths = scores.write(out, found, plan.settings, source, plan.seeds)
    print("\n".join((paths[-1].read_text(), *lines)))
    paths += _pictures(tasks, plan.settings, source, networks, out)
    cpu = sum(result.cpu_seconds for result in found.values()) / 60
    print(f"\n{minutes:.1f} minutes now; {cpu:.1f} minutes of CPU in all")
    print(f"Written: {', '.join(map(str, paths))}")
    if args.quick and is_ahead is False:
        print("No ST-CNN came out ahead of its CNN; more --steps may help.", file=sys.stderr)
        return EXIT_FAILED
    return EXIT_OK


def _plan(args: argparse.Namespace):
    from stn_triton.examples.digits import runs

    plan = runs.QUICK if args.quick else runs.FULL
    distortions = chosen("--distortions", args.distortions, runs.FULL.models)
    models = chosen("--models", args.models, runs.MODELS)
    wanted = {
        # Models given by name are trained on every distortion, also where the plan has fewer.
        name: models if args.models else plan.models.get(name, runs.FULL.models[name])
        for name in (distortions if args.distortions else plan.models)
    }
    settings = replace(plan.settings, steps=args.steps or plan.settings.steps)
    return replace(plan, models=wanted, seeds=args.seeds or plan.seeds, settings=settings)


def _pictures(tasks, settings, source, networks: Path, out: Path) -> list[Path]:
    from tqdm import tqdm

    from stn_triton.examples.digits import invariance, pictures
    from stn_triton.examples.digits.models import MODELS
    from stn_triton.examples.digits.training import State

    paths = []
    looking = [
        task for task in tasks if task.seed == tasks[0].seed and MODELS[task.model].transform is not None
    ]
    for distortion in dict.fromkeys(task.distortion for task in looking):
        own = [
            (task, State(networks, task, settings, source))
            for task in looking
            if task.distortion == distortion
        ]
        figure = pictures.draw(distortion, own, settings, source)
        paths.append(pictures.save(figure, out / f"crops-{distortion}.png"))
    if invariance.is_complete(tasks):
        rows = list(tqdm(invariance.measure(tasks, settings, source, networks), unit="value", disable=None))
        paths.append(invariance.write_csv(rows, out / "invariance.csv"))
        paths.append(pictures.save(invariance.draw(rows), out / "invariance.png"))
    return paths


def _set_aside(out: Path) -> None:
    """Move the files of an earlier run into ``previous/``, replacing its contents."""
    previous = out / "previous"
    left = [path for path in out.glob("*") if path.name not in ("previous", "quick")]
    if left:
        shutil.rmtree(previous, ignore_errors=True)
        previous.mkdir(parents=True)
        for path in left:
            path.rename(previous / path.name)


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return value


if __name__ == "__main__":
    sys.exit(main())
