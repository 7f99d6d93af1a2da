"""The command line: the commands, their arguments, and the meaning of the exit codes.

A command's function adds its arguments. Its docstring is the help: summary, description, examples.
"""

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from stn_triton.terminal import Parser, add_command, add_device, add_json, run

DESCRIPTION = "Measure stn_triton's operator on the device at hand: a GPU if there is one, else the CPU."
EPILOG = """\
`python -m perf COMMAND --help` has examples. Begin with `python -m perf bench --quick`.

exit codes, of every command:
  0    done
  1    a result was wrong or slower than allowed, or something failed; the output says what
  2    a wrong argument, or no command
  130  interrupted with Ctrl-C
"""
RESULTS = {"type": Path, "default": Path("perf-results")}
PATH = {"type": Path, "metavar": "FILE"}
FLAG = {"action": "store_true"}
NAMES = {"nargs": "+", "metavar": "NAME"}


def build_parser() -> Parser:
    """The parser; it imports no command, so that ``--help`` does not wait for matplotlib."""
    parser = Parser(prog="python -m perf", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (_bench, _evidence, _tune, _static, _overhead, _step, _numerics, _plot, _report, _compare):
        text, _, examples = inspect.getdoc(add).partition("\n\nExamples:\n")
        summary = text.partition("\n")[0].rstrip(".")
        add(add_command(commands, add.__name__[1:], summary, text, examples))
    return parser


def _add_out(parser: Parser) -> None:
    parser.add_argument("--out", **RESULTS, metavar="DIR", help="where the results go (default: %(default)s)")


def _bench(parser: Parser) -> None:
    """Time the operator and its rivals; draw charts and a page of the results.

    Each result is first checked against PyTorch's eager pair (F.affine_grid, then F.grid_sample) in fp64.
    Writes speed.csv, charts and report.html over those of an earlier run.

    Examples:
      python -m perf bench --workloads images-224 --maps zoom-2
      python -m perf bench --providers eager --passes forward theta --json > rows.json
    """
    add_device(parser)
    for name in ("workloads", "maps", "passes", "providers"):
        parser.add_argument(f"--{name}", **NAMES, help=f"which {name} (--list says the default)")
    parser.add_argument("--list", **FLAG, help="print the names that can be chosen, and stop")
    parser.add_argument("--quick", **FLAG, help="small batches, few maps, no torch.compile")
    _add_out(parser)
    add_json(parser)


def _tune(parser: Parser) -> None:
    """Find the fastest block sizes for this GPU and write the table that the library uses.

    Timings are kept in DIR/tuning.csv: run an interrupted command again to go on. A bucket is a kind of
    launch: kernel, variant, layout, dtype, channels, pixels, planes.

    Examples:
      python -m perf tune --workloads crops-7    the buckets of one workload
      python -m perf tune --only 'forward/*'     those of the forward kernel
    """
    add_device(parser)
    parser.add_argument("--workloads", **NAMES, help="which workloads (default: all)")
    only = "only buckets with such names, as '*/c64/*'"
    parser.add_argument("--only", nargs="+", metavar="PATTERN", help=only)
    parser.add_argument("--fresh", **FLAG, help="begin again, over the CSV of an earlier run")
    parser.add_argument("--quick", **FLAG, help="try few configurations; the library does not read the table")
    parser.add_argument("--table", **PATH, help="the table to write (default: the library's, for this GPU)")
    _add_out(parser)
    add_json(parser)


def _static(parser: Parser) -> None:
    """Compile every kernel without a GPU: registers, spills, occupancy, instructions.

    Exits with 1 if one does not compile. `python tools/instructions.py` counts what a thread executes.

    Examples:
      python -m perf static --workloads features-64 --arch sm_90
    """
    parser.add_argument("--arch", **NAMES, help="which GPUs: sm_80, sm_90, sm_100, gfx942")
    parser.add_argument("--workloads", **NAMES, help="which workloads (default: all)")
    parser.add_argument("--quick", **FLAG, help="few workloads, for sm_90")
    add_json(parser)


def _overhead(parser: Parser) -> None:
    """Time the host's part of a call, launches included, or the seconds of a first call.

    Without a GPU Triton's launcher runs on a driver that does nothing.

    Examples:
      python -m perf overhead
      python -m perf overhead --first-calls digits-28 --json
    """
    add_device(parser)
    first = "instead seconds of a new process's first training step (default: the workloads of a quick bench)"
    parser.add_argument("--first-calls", nargs="*", metavar="WORKLOAD", help=first)
    parser.add_argument("--out", **PATH, help="also write the first calls as a CSV")
    add_json(parser)


def _step(parser: Parser) -> None:
    """Time what spatial transformers cost in a training step of a network.

    Examples:
      python -m perf step --quick --json
    """
    add_device(parser)
    parser.add_argument("--quick", **FLAG, help="fewer samples, in about half a minute")
    add_json(parser)


def _numerics(parser: Parser) -> None:
    """Measure errors against fp64, beside the eager pair's, over dtypes and sizes.

    Without a GPU the kernels run in Triton's interpreter: seven minutes on two cores, one with --quick.
    Writes numerics.csv and numerics.png. Exits with 1 if an error of the operator is larger than the pair's.

    Examples:
      python -m perf numerics --quick
      python -m perf numerics --results perf/results/numerics-cpu-epyc-2-threads.csv
    """
    add_device(parser)
    parser.add_argument("--quick", **FLAG, help="the sizes 28 and 224 alone")
    parser.add_argument("--results", **PATH, help="show the CSV of an earlier run, measure nothing")
    add_json(parser)
    _add_out(parser)


def _plot(parser: Parser) -> None:
    """Draw the charts of a speed.csv, which `bench` writes, as PNG and SVG.

    Examples:
      python -m perf plot perf/results/cpu-epyc-2-threads.csv --out charts
    """
    parser.add_argument("results", nargs="?", **RESULTS, help="a CSV, or a directory (default: %(default)s)")
    _add_out(parser)


def _report(parser: Parser) -> None:
    """Make one self-contained HTML page of a result file.

    Examples:
      python -m perf report perf/results/nvidia-h200.csv --out h200
    """
    _plot(parser)


def _compare(parser: Parser) -> None:
    """Compare two result files: what became faster or slower, beyond the noise.

    A row changed if its 20 to 80 % intervals do not overlap and the medians differ by more than the
    threshold, after a change of the eager pair is taken out. If the pair changed by over 1.5x, or there are
    fewer than 10 samples, it is unclear. Prints the rows of the operator, with --json all of them. Exits with
    1 if a row of the operator became slower or wrong.

    Examples:
      python -m perf compare before/speed.csv after/speed.csv
      python -m perf compare before after --threshold 0.1 --json
    """
    for name in ("before", "after"):
        parser.add_argument(name, type=Path, help="a CSV, or the directory of one")
    help = "relative difference that counts (default: %(default)s)"
    parser.add_argument("--threshold", type=float, default=0.05, metavar="SHARE", help=help)
    add_json(parser)


def _evidence(parser: Parser) -> None:
    """Measure all that a GPU can show in eight minutes: is it right, how fast is it.

    Writes results as they come: evidence.json, its log, summary.txt, a picture, and files of `bench` and
    `tune`. Run it in the directory of a checkout. Exits with 1 if something is wrong or a step broke.

    A rehearsal is a small part of it: one row of the check and one workload, on the path that a CPU takes.
    GPU tests are only collected. Nothing is tuned.

    Examples:
      python -m perf evidence --only check speed
      python -m perf evidence --rehearse               play a part of it on a CPU, in about a minute
    """
    out = "an empty or a new directory (default: perf-results/evidence-DATE, or rehearsal-DATE)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help="for all of it (default: 8)")
    parser.add_argument("--only", **NAMES, help="these steps alone; --plan names them")
    add_json(parser)
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--plan", **FLAG, help="print the steps and their seconds, and stop")
    form.add_argument("--rehearse", **FLAG, help="play a small part on a CPU")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = build_parser().parse(argv)
    return run(args, lambda args: importlib.import_module(f"perf.{args.command}").main(args), extra="perf")


if __name__ == "__main__":
    sys.exit(main())
