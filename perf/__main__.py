"""The command line: which commands there are, what they take, and what their exit codes mean."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

from stn_triton.terminal import Parser, add_command, add_device, add_json, run

DESCRIPTION = """\
Measure stn_triton's operator on the device at hand: a GPU if there is one, else the CPU.

  bench     time the operator and its rivals, each checked first; draw charts and a page of the results
  evidence  what a GPU can show in eight minutes: is it right, how fast is it, what is to be changed
  tune      find the fastest block sizes for this GPU and write the table that the library uses
  static    compile every kernel without a GPU: registers, spills, occupancy, instructions per element
  overhead  host time of a call, launches included; seconds of a first call
  step      what spatial transformers cost in a training step of a network
  numerics  errors against fp64, beside the eager pair's, over dtypes and sizes
  plot      draw the charts of a result file again
  report    make one self-contained HTML page of a result file
  compare   two result files: what became faster or slower, beyond the noise
"""

EPILOG = """\
examples:
  python -m perf bench                a table, charts and a page in perf-results/
  python -m perf bench --quick        a first look, in under a minute
  python -m perf static --arch sm_90  what the compiler makes of the kernels; no GPU needed
  python -m perf COMMAND --help       what a command takes, with examples

exit codes, of every command:
  0    done
  1    a result was wrong or slower than asked, or something failed; the output says what
  2    a wrong argument, or no command
  130  interrupted with Ctrl-C
"""

RESULTS = Path("perf-results")


def build_parser() -> Parser:
    """The parser; it imports neither torch nor matplotlib, so that ``--help`` answers at once."""
    parser = Parser(prog="python -m perf", description=DESCRIPTION, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for add in (_bench, _evidence, _tune, _static, _overhead, _step, _numerics, _plot, _report, _compare):
        add(commands)
    return parser


def _out(parser: Parser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="where the results go (default: %(default)s)",
    )


def _bench(commands) -> None:
    parser = add_command(
        commands,
        "bench",
        "time the operator and its rivals",
        """\
Time the operator, PyTorch's eager pair (F.affine_grid, then F.grid_sample), torch.compile of that pair and
others, over workloads, maps and passes. Each is first checked against the eager pair in fp64; one that is
wrong gets no time. Writes into the output directory
  speed.csv       a row per workload, map, pass and provider: quantiles, roofline, memory, error, machine
  *.png, *.svg    the charts, see `plot`
  report.html     all of it on one page
  photograph.png  a photograph warped by the operator and by PyTorch, and their difference
  previous/       what an earlier run left there
""",
        """\
  python -m perf bench                                      everything, on the GPU if there is one
  python -m perf bench --quick                              a first look, in under a minute
  python -m perf bench --workloads images-224 --maps zoom-2 one workload under one map
  python -m perf bench --list                               what can be named, and how long it takes
  python -m perf bench --providers operator eager --passes forward theta
  python -m perf bench --device cpu --json > rows.json
""",
    )
    add_device(parser)
    _out(parser)
    for name, which in (
        ("workloads", "which workloads (default: all on a GPU, few on a CPU)"),
        ("maps", "under which maps (default: all on a GPU, few on a CPU)"),
        ("passes", "which passes (default: all)"),
        ("providers", "which providers; the operator and the eager pair always run (default: all)"),
    ):
        parser.add_argument(f"--{name}", nargs="+", metavar="NAME", help=which)
    parser.add_argument("--list", action="store_true", help="say what can be named and what it is, and stop")
    parser.add_argument("--quick", action="store_true", help="small batches, few maps, few repetitions")
    parser.add_argument(
        "--contribute",
        action="store_true",
        help="after a full run on a GPU that perf/results has no rows of: the file to send, and how",
    )
    add_json(parser)


def _tune(commands) -> None:
    parser = add_command(
        commands,
        "tune",
        "find the fastest block sizes for this GPU",
        """\
Time up to 16 configurations of block sizes for every bucket of launches (kernel, variant, layout, dtype,
channels, pixels, planes) that the workloads of `bench` reach, after checking that they give the result of
the default. The table of this GPU is written into the package. Timings are kept in DIR/tuning.csv, a row per
bucket and configuration: run an interrupted command again to go on. Entries for older kernels are dropped
from the table. --quick writes DIR/<gpu>.json, which nothing reads.
""",
        """\
  python -m perf tune                        the buckets of all workloads
  python -m perf tune --workloads crops-7    those of one workload
  python -m perf tune --only 'forward/*'     those of the forward kernel
  python -m perf tune --fresh                begin again; the CSV of the earlier run is set aside
""",
    )
    add_device(parser)
    _out(parser)
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="which workloads (default: all)")
    parser.add_argument(
        "--only", metavar="PATTERN", help="of their buckets, those with such names, as '*/c64/*'"
    )
    parser.add_argument("--fresh", action="store_true", help="begin again, whatever an earlier run found")
    parser.add_argument("--quick", action="store_true", help="few configurations of few buckets: a try")
    parser.add_argument(
        "--table",
        type=Path,
        metavar="FILE",
        help="the table to write (default: tuned/<gpu>.json of the stn_triton that is imported)",
    )
    add_json(parser)


def _static(commands) -> None:
    parser = add_command(
        commands,
        "static",
        "what the compiler makes of the kernels; no GPU needed",
        """\
Compile what real calls launch, for GPUs that need not be here, and read the machine code: registers, spills,
shared memory, theoretical occupancy, access widths, atomics, seconds to compile, and the instructions that a
thread executes per element, which `perf/results/instructions.json` records for each version of Triton.
Triton's own launcher decides what is compiled: calls are made on CPU tensors, but nothing is launched.
""",
        """\
  python -m perf static                          what the workloads of `perf bench` launch, for four GPUs
  python -m perf static --workloads features-64 --arch sm_90
  python -m perf static --quick                  only the workloads that are recorded, for sm_90
  python -m perf static --variants --every 40    a sample of every mode, padding, dimension and kind of map
  python -m perf static --check                  exit 1 if a recorded kernel spills, takes over 3 s to compile
                                                 or executes over 5 % more instructions than recorded
  python -m perf static --record                 record the instructions per element again
  python -m perf static --space --workloads images-224 --out counted.csv    all block sizes of `perf tune`
""",
    )
    parser.add_argument("--arch", nargs="+", metavar="NAME", help="which GPUs: sm_80, sm_90, sm_100, gfx942")
    parser.add_argument("--workloads", nargs="+", metavar="NAME", help="which workloads (default: all)")
    parser.add_argument("--variants", action="store_true", help="instead every variant (over an hour a GPU)")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th call")
    parser.add_argument(
        "--quick", action="store_true", help="only the workloads that are recorded, for sm_90"
    )
    parser.add_argument("--record", action="store_true", help="record their instructions per element")
    parser.add_argument("--check", action="store_true", help="compare these with the record")
    parser.add_argument("--space", action="store_true", help="in all block sizes that `perf tune` would try")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the rows as a CSV")
    add_json(parser)


def _overhead(commands) -> None:
    parser = add_command(
        commands,
        "overhead",
        "host time of a call",
        """\
Time what the host does in a call, beside the eager pair: checks, dispatch, autograd and launches. Without a
GPU Triton's launcher runs on a driver that does nothing: all but the driver's own microseconds are there.
With --first-calls: seconds of the first training step of a new process, which compiles its kernels.
""",
        """\
  python -m perf overhead
  python -m perf overhead --device cuda
  python -m perf overhead --first-calls                     of the workloads of `bench --quick`
  python -m perf overhead --first-calls digits-28 --json
""",
    )
    add_device(parser)
    parser.add_argument(
        "--first-calls", nargs="*", metavar="WORKLOAD", help="seconds of first training steps instead"
    )
    parser.add_argument("--out", type=Path, metavar="CSV", help="where to write the table of first calls")
    add_json(parser)


def _step(commands) -> None:
    parser = add_command(
        commands,
        "step",
        "what spatial transformers cost in a training step",
        """\
Train networks for single steps without spatial transformers, with them, with the same layers on PyTorch's
eager pair, and with layers that locate but do not warp; print how much slower each is. On a CPU with small
batches. The paper reports 6 % for four transformers.
""",
        "  python -m perf step\n  python -m perf step --quick --json\n",
    )
    add_device(parser)
    parser.add_argument("--quick", action="store_true", help="fewer samples, in about twenty seconds")
    add_json(parser)


def _numerics(commands) -> None:
    parser = add_command(
        commands,
        "numerics",
        "errors against fp64, beside the eager pair's",
        """\
Compare the output and both gradients with fp64, for fp32, bf16 and fp16, sizes 28 to 8192, with and without
autocast: of the operator and of PyTorch's eager pair (F.affine_grid, then F.grid_sample) on the same
arguments. Without a GPU the kernels run in Triton's interpreter, beside the path that CPUs take. Writes
into the output directory
  numerics.csv  a row per map, size, dtype, autocast, quantity and provider: RMS and largest error, machine
  numerics.png  the errors over the size
Exits with 1 if an error of the operator is larger than the pair's.
""",
        """\
  python -m perf numerics            about seven minutes on two cores
  python -m perf numerics --quick    two sizes, in about a minute
  python -m perf numerics --results perf/results/numerics-cpu-epyc-2-threads.csv --markdown
""",
    )
    add_device(parser)
    _out(parser)
    parser.add_argument("--quick", action="store_true", help="the sizes 28 and 224 alone")
    parser.add_argument(
        "--results", type=Path, metavar="FILE", help="show the CSV of an earlier run, measure nothing"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print the tables of docs/numerics.md")
    add_json(form)


def _plot(commands) -> None:
    parser = add_command(
        commands,
        "plot",
        "draw the charts of a result file",
        """\
Draw the charts of a result file of `bench`, or of the timings of `tune`, as PNG and SVG: speed-up per
workload with losses in another colour, fraction of the roofline, scaling over size, batch and channels, peak
memory, the landscape of block sizes. A chart whose rows are not there is not drawn; the output says why.
""",
        "  python -m perf plot\n  python -m perf plot perf/results/cpu-epyc-2-threads.csv --out charts\n",
    )
    parser.add_argument(
        "results", type=Path, nargs="?", default=RESULTS, help="a CSV, or a directory of them (%(default)s)"
    )
    _out(parser)


def _report(commands) -> None:
    parser = add_command(
        commands,
        "report",
        "one self-contained HTML page of a result file",
        """\
Make one HTML page with headline numbers, targets, charts, the whole table, the environment and the method. It
needs no other file and no network.
""",
        "  python -m perf report\n  python -m perf report perf/results/h100.csv --out h100\n",
    )
    parser.add_argument(
        "results", type=Path, nargs="?", default=RESULTS, help="a CSV, or a directory of them (%(default)s)"
    )
    _out(parser)


def _compare(commands) -> None:
    parser = add_command(
        commands,
        "compare",
        "two result files: what became faster or slower",
        """\
Compare the rows of two result files of one machine, for regressions between commits. A row is slower or
faster only if its 20 to 80 % intervals do not overlap and the medians differ by more than the threshold.
Where the eager pair of the same workload, map and pass changed beyond its own noise, the machine drifted:
that change is taken out of the others first. With another PyTorch the eager pair is no such yardstick.
Where it changed by over 1.5x, or a row that would be slower or faster has fewer than 10 samples, the
verdict is unclear, which is no failure. Exits with 1 if a row of the operator became slower or wrong.
""",
        "  python -m perf compare before/speed.csv after/speed.csv\n"
        "  python -m perf compare before after --threshold 0.1 --json\n",
    )
    parser.add_argument("before", type=Path, help="a CSV, or the directory of one")
    parser.add_argument("after", type=Path, help="a CSV, or the directory of one")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="relative difference that counts (default: %(default)s)",
    )
    add_json(parser)


def _evidence(commands) -> None:
    parser = add_command(
        commands,
        "evidence",
        "all that a GPU can show in eight minutes",
        """\
Compile, compare, and time on a GPU what says most about the operator, in a given time: is it right; gather
against scatter; the operator against PyTorch on ten workloads; the host's time and the first call; block
sizes; what Nsight Compute counts, where it is installed. Each step is a process with a share of the time, and
results are written as they come: a crash, a hang or the end of the time costs only what was not yet measured.
Run it in the directory of a checkout; it needs no network. With less than about six minutes, most steps are
cut. Exits with 1 if something is wrong or a step broke; that the time ended is no fault.
Writes into the output directory
  evidence.json  all results
  summary.txt    what is printed at the end: right or wrong, the ratios, what was not reached
  evidence.png   the ratios as a chart
  speed.csv      rows as `bench` writes them, for `plot`, `report` and `compare`
  tuning.csv     timings of block sizes; block-sizes.json, the table of the best
  evidence.log   what the steps and libraries said
""",
        """\
  python -m perf evidence                          eight minutes, all of it
  python -m perf evidence --minutes 15             with more block sizes and workloads
  python -m perf evidence --only compare backward  these steps alone
  python -m perf evidence --plan --cores 16        what each step does and takes; measures nothing
  python -m perf evidence --rehearse               play it on a CPU, with a crash and a hang; minutes
""",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=8.0,
        metavar="M",
        help="the time for all of it (default: %(default)g)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="where the results go (default: perf-results/evidence, of a rehearsal perf-results/rehearsal)",
    )
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone; --plan names them")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--plan", action="store_true", help="print what each step does and takes, and stop")
    form.add_argument(
        "--rehearse", action="store_true", help="play all of it on a CPU: kernels interpreted, tiny workloads"
    )
    form.add_argument(
        "--count",
        action="store_true",
        help="for maintainers: compile all kernels without a GPU and record the seconds that --plan prints",
    )
    parser.add_argument("--cores", type=int, metavar="N", help="for --plan (default: those of this machine)")
    add_json(parser)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    args = build_parser().parse(argv)
    return run(args, lambda args: importlib.import_module(f"perf.{args.command}").main(args), extra="perf")


if __name__ == "__main__":
    sys.exit(main())
