"""The command line: parse, run, report, and turn what happened into an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

EXIT_OK, EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = """\
Measure stn_triton's operator on the device at hand: a GPU if there is one, else the CPU.

Times the operator, PyTorch's eager pair (F.affine_grid, then F.grid_sample) and torch.compile of that pair
on a few named workloads, forward and forward + backward. A provider is checked first against the eager pair
in fp64; one that is wrong gets no time. Prints a table and writes into the output directory
  speed.csv        a row per workload, pass and provider: quantiles, error, device, versions, commit
  speed.png        the speed-up over the eager pair
  photograph.png   a photograph warped by the operator and by PyTorch, and their difference
"""

EPILOG = """\
examples:
  python -m perf                                     everything, on the GPU if there is one
  python -m perf --quick --providers operator        a first look, without torch.compile
  python -m perf --device cpu --out results/cpu      on the CPU, results elsewhere
  python -m perf --workloads images-224 features-56  two of the workloads

exit codes:
  0    every provider that could run gave the right result
  1    a result was wrong (FAILED in the table), or the operator or the eager pair raised an error
  2    a wrong argument: an unknown device, provider or workload
  130  interrupted with Ctrl-C
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser; it imports neither torch nor matplotlib, so that ``--help`` answers at once."""
    parser = argparse.ArgumentParser(
        prog="python -m perf",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("perf-results"),
        metavar="DIR",
        help="where the results go (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu, cuda or cuda:N (default: cuda if there is one, else cpu)")
    parser.add_argument(
        "--providers",
        nargs="+",
        metavar="NAME",
        help="which to time: operator, eager, compile; eager is the yardstick and always runs (default: all)",
    )
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="which workloads (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="small batches and few repetitions: for a first look"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        return _run(parser, args)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from perf import bench, charts, environment, photograph, providers, results, workloads

    try:
        device = environment.choose_device(args.device)
        chosen_providers = providers.choose(args.providers)
        chosen_workloads = workloads.choose(args.workloads, device)
    except ValueError as error:
        parser.error(str(error))
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out: cannot make the directory {args.out}: {error.strerror}")

    facts = environment.facts(device)
    print(environment.summary(facts), file=sys.stderr)
    steps = bench.count_steps(chosen_workloads, chosen_providers) + 1
    with tqdm(total=steps, file=sys.stderr, dynamic_ncols=True, leave=False) as progress:
        rows = bench.run(chosen_workloads, chosen_providers, device, args.quick, progress)
        progress.set_description_str("charts")
        table = results.frame(rows, facts, quick=args.quick)
        results.write_csv(table, args.out / "speed.csv")
        progress.write(results.report(table, facts))
        charts.speed_chart(table, facts, args.out / "speed.png")
        failed = (table["status"] == results.FAILED).any()
        try:
            photograph.picture(device, facts, args.out / "photograph.png")
        except Exception as error:  # the measurements are written and stay worth reading
            progress.write(f"no photograph.png: {bench.one_line(error)}")
            failed = True
        progress.update()

    print(f"results are in {args.out}", file=sys.stderr)
    return EXIT_FAILED if failed else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
