"""The command line: the commands, their arguments, and the meaning of the exit codes.

A command's function adds its arguments. Its docstring is the help: summary, description, examples.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Sequence
from pathlib import Path

from stn_triton.terminal import Parser, add_command, add_device, add_json, run

DESCRIPTION = "Measure stn_triton's operator on the device at hand: a GPU if there is one, else the CPU."
EPILOG = """\
examples:
  python -m perf bench                a table, charts and a page in perf-results/
  python -m perf bench --quick        a first look, in under a minute
  python -m perf COMMAND --help       what a command takes, with examples

exit codes, of every command:
  0    done
  1    a result was wrong or slower than allowed, or something failed; the output says what
  2    a wrong argument, or no command
  130  interrupted with Ctrl-C
"""
RESULTS = Path("perf-results")
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


def _common(parser: Parser, device: bool = True, out: bool = True, json: bool = True) -> None:
    if device:
        add_device(parser)
    if out:
        help = "where the results go (default: %(default)s)"
        parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help=help)
    if json:
        add_json(parser)


def _results(parser: Parser) -> None:
    help = "a CSV, or a directory of them (default: %(default)s)"
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help=help)
    _common(parser, device=False, json=False)


def _bench(parser: Parser) -> None:
    """Time the operator and its rivals; draw charts and a page of the results.

    The rivals are PyTorch's eager pair (F.affine_grid, then F.grid_sample), torch.compile of that pair, and
    others. Each result is first checked against the eager pair in fp64; one that is wrong gets no time.
    Writes into the output directory, over the files of an earlier run
      speed.csv       a row per workload, map, pass and provider: quantiles, roofline, memory, error, machine
      *.png, *.svg    the charts, see `plot`
      report.html     all of it on one page
      photograph.png  a photograph warped by the operator and by PyTorch, and their difference

    Examples:
      python -m perf bench                                       everything, on the GPU if there is one
      python -m perf bench --workloads images-224 --maps zoom-2  one workload under one map
      python -m perf bench --list                                the names that these arguments take
      python -m perf bench --providers eager --passes forward theta --json > rows.json
    """
    _common(parser)
    parser.add_argument("--workloads", **NAMES, help="which workloads (default: all on a GPU, few on a CPU)")
    parser.add_argument("--maps", **NAMES, help="which maps (default: all on a GPU, few on a CPU)")
    parser.add_argument("--passes", **NAMES, help="which passes (default: all)")
    parser.add_argument("--providers", **NAMES, help="which rivals, beside operator and eager (default: all)")
    parser.add_argument("--list", **FLAG, help="print the names that can be chosen, and stop")
    parser.add_argument("--quick", **FLAG, help="small batches, few maps, no torch.compile")


def _tune(parser: Parser) -> None:
    """Find the fastest block sizes for this GPU and write the table that the library uses.

    Times up to 16 configurations for every bucket of launches (kernel, variant, layout, dtype, channels,
    pixels, planes) that the workloads of `bench` reach, after checking that they give the result of the
    default. Timings are kept in DIR/tuning.csv: run an interrupted command again to go on. Entries for older
    kernels are dropped from the table. --quick writes DIR/<gpu>.json, which nothing reads.

    Examples:
      python -m perf tune                        the buckets of all workloads
      python -m perf tune --workloads crops-7    those of one workload
      python -m perf tune --only 'forward/*'     those of the forward kernel
    """
    _common(parser)
    parser.add_argument("--workloads", **NAMES, help="which workloads (default: all)")
    parser.add_argument("--only", metavar="PATTERN", help="only buckets with such names, as '*/c64/*'")
    parser.add_argument("--fresh", **FLAG, help="begin again; the CSV of the earlier run is set aside")
    parser.add_argument("--quick", **FLAG, help="few configurations of few buckets: a try")
    parser.add_argument("--table", **PATH, help="the table to write (default: the library's, for this GPU)")


def _static(parser: Parser) -> None:
    """Compile every kernel without a GPU: registers, spills, occupancy, instructions.

    Compiles what real calls launch and reads the machine code, with the instructions that a thread executes
    per element, which `perf/results/instructions.json` records for each version of Triton.

    Examples:
      python -m perf static                        what the workloads of `bench` launch, for four GPUs
      python -m perf static --workloads features-64 --arch sm_90
      python -m perf static --check                exit 1 if a recorded kernel spills, compiles for over 3 s
                                                   or executes over 5 % more instructions than recorded
    """
    _common(parser, device=False, out=False)
    parser.add_argument("--arch", **NAMES, help="which GPUs: sm_80, sm_90, sm_100, gfx942")
    parser.add_argument("--workloads", **NAMES, help="which workloads (default: all)")
    parser.add_argument("--quick", **FLAG, help="only the workloads that are recorded, for sm_90")
    parser.add_argument("--record", **FLAG, help="record their instructions per element")
    parser.add_argument("--check", **FLAG, help="compare these with the record")


def _overhead(parser: Parser) -> None:
    """Time the host's part of a call, launches included, or the seconds of a first call.

    Without a GPU Triton's launcher runs on a driver that does nothing: all but the driver's own microseconds
    are there.

    Examples:
      python -m perf overhead
      python -m perf overhead --first-calls                     of the workloads of `bench --quick`
      python -m perf overhead --first-calls digits-28 --json
    """
    _common(parser, out=False)
    first = "seconds of the first training step of a new process, which compiles its kernels"
    parser.add_argument("--first-calls", nargs="*", metavar="WORKLOAD", help=first)
    parser.add_argument("--out", **PATH, help="where to write the table of first calls, as a CSV")


def _step(parser: Parser) -> None:
    """Time what spatial transformers cost in a training step of a network.

    Examples:
      python -m perf step
      python -m perf step --quick --json
    """
    _common(parser, out=False)
    parser.add_argument("--quick", **FLAG, help="fewer samples, in about twenty seconds")


def _numerics(parser: Parser) -> None:
    """Measure errors against fp64, beside the eager pair's, over dtypes and sizes.

    Without a GPU the kernels run in Triton's interpreter, beside the path that CPUs take. Writes
    numerics.csv (a row per map, size, dtype, autocast, quantity and provider) and numerics.png into the
    output directory. Exits with 1 if an error of the operator is larger than the pair's.

    Examples:
      python -m perf numerics            about seven minutes on two cores
      python -m perf numerics --quick    two sizes, in about a minute
      python -m perf numerics --results perf/results/numerics-cpu-epyc-2-threads.csv
    """
    _common(parser)
    parser.add_argument("--quick", **FLAG, help="the sizes 28 and 224 alone")
    parser.add_argument("--results", **PATH, help="show the CSV of an earlier run, measure nothing")


def _plot(parser: Parser) -> None:
    """Draw the charts of a speed.csv, which `bench` writes, as PNG and SVG.

    Examples:
      python -m perf plot perf/results/cpu-epyc-2-threads.csv --out charts
    """
    _results(parser)


def _report(parser: Parser) -> None:
    """Make one self-contained HTML page of a result file.

    Examples:
      python -m perf report perf/results/nvidia-h200.csv --out h200
    """
    _results(parser)


def _compare(parser: Parser) -> None:
    """Compare two result files: what became faster or slower, beyond the noise.

    A row is slower or faster only if its 20 to 80 % intervals do not overlap and the medians differ by more
    than the threshold. Where the eager pair of the same workload, map and pass changed beyond its own noise,
    the machine drifted: that change is taken out of the others first. Where it changed by over 1.5x, or a row
    has fewer than 10 samples, the verdict is unclear, which is no failure. Exits with 1 if a row of the
    operator became slower or wrong.

    Examples:
      python -m perf compare before/speed.csv after/speed.csv
      python -m perf compare before after --threshold 0.1 --json
    """
    _common(parser, device=False, out=False)
    for name in ("before", "after"):
        parser.add_argument(name, type=Path, help="a CSV, or the directory of one")
    share = "relative difference that counts (default: %(default)s)"
    parser.add_argument("--threshold", type=float, default=0.05, metavar="SHARE", help=share)


def _evidence(parser: Parser) -> None:
    """Measure all that a GPU can show in eight minutes: is it right, how fast is it.

    Checks the results; times the operator against PyTorch, gather against scatter, the host's part and first
    calls; searches block sizes. Results are written as they come: a crash, a hang or the end of the time
    costs only the results that were not yet found. Run it in the directory of a checkout; it needs no
    network. Exits with 1 if something is wrong or a step broke. Writes into the output directory
      evidence.json, evidence.log                all results, and the messages of the steps
      summary.txt, evidence.png                  the printed summary, and the ratios as a picture
      speed.csv, tuning.csv, block-sizes.json    rows as `bench` and `tune` write them, and the best sizes

    Examples:
      python -m perf evidence                          eight minutes, all of it
      python -m perf evidence --only check backward    these steps alone
      python -m perf evidence --plan                   what each step does and how long it may take
      python -m perf evidence --rehearse               play it on a CPU, in about a minute
    """
    _common(parser, device=False, out=False)
    out = "an empty or a new directory (default: perf-results/evidence-DATE, or rehearsal-DATE)"
    parser.add_argument("--out", type=Path, metavar="DIR", help=out)
    minutes = "the time for all of it (default: %(default)g)"
    parser.add_argument("--minutes", type=float, default=8.0, metavar="M", help=minutes)
    parser.add_argument("--only", **NAMES, help="these steps alone; --plan names them")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--plan", **FLAG, help="print the steps and their seconds, and stop")
    form.add_argument("--rehearse", **FLAG, help="play it on a CPU: interpreted kernels, tiny workloads")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = build_parser().parse(argv)
    return run(args, lambda args: importlib.import_module(f"perf.{args.command}").main(args), extra="perf")


if __name__ == "__main__":
    sys.exit(main())
