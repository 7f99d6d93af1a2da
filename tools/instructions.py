"""Count the instructions of compiled kernels, the measure of a change of the kernels where there is no GPU.

    python tools/instructions.py                                 # a table, in about a minute
    python tools/instructions.py --workloads digits-28 --check   # compare one workload with the record
    python tools/instructions.py --record                        # record all, after a change that is wanted

Counted is what a thread executes per element, averaged over the channels of its program. An element is a
(tap, channel) of an output pixel in the forward, the scatter and theta's kernel, and a channel of an input
pixel in the gather. A gather tries as many output pixels as a rotation by 30 degrees needs.

Kernels are compiled for sm_90. The record, instructions.json, has numbers of each version of Triton. With
--check it is a fault if a kernel executes over 5 % more than recorded, spills registers, or takes over 3 s
of a processor to compile.

Exit codes: 0 done; 1 a fault, or a kernel does not compile; 2 a wrong argument, or TRITON_INTERPRET is set.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import triton

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import disassembly  # noqa: E402

from perf import EXIT_FAILED, EXIT_OK, UsageError, static  # noqa: E402
from perf.kernels import compiled  # noqa: E402
from perf.kernels.ahead import Compiled  # noqa: E402
from perf.measuring.workloads import Workload  # noqa: E402
from stn_triton import policy  # noqa: E402
from stn_triton.buckets import Bucket  # noqa: E402
from stn_triton.tuning import Config  # noqa: E402

RECORD = Path(__file__).with_suffix(".json")
ARCH = "sm_90"
NAMES = (
    "digits-28",
    "images-224",
    "images-224-bf16",
    "features-64",
    "features-64-channels-last",
    "features-64-bf16",
    "features-256-channels-last",
    "features-256-bf16-channels-last",
    "pooled-7",
    "volume-160",
)
"""Workloads whose kernels are counted. All are bilinear: loops of other modes are not known here."""
TOLERANCE = 0.05
MOST_SECONDS = 3.0
"""Processor time to compile a kernel with its default block sizes: a user waits for it."""
_TRIED = {1: (3, 3), 2: (5, 4)}
"""Rows and columns of output pixels that a gather tries, by the side of a thread's square of pixels."""
Record = dict[str, dict[str, dict[str, Any]]]
"""Numbers by workload and kernel."""


def per_element(code: disassembly.Code, bucket: Bucket, config: Config, channels: int) -> float:
    """Instructions per element.

    Raises:
        ValueError: the kernel's loops are not the expected ones.
    """
    blocks = -(-channels // config["BLOCK_C"])
    programs = -(-blocks // config["STEPS_C"])
    values = channels / programs * config["BLOCK_H"] * config["BLOCK_W"] / (32 * config["num_warps"])
    if bucket.is_gather():
        return round(code.executed(_TRIED[policy.side(bucket)]) / values, 2)
    steps = [blocks / programs] if config["STEPS_C"] > 1 else []
    taps = 2 ** int(bucket.variant[0])
    return round(code.executed(steps) / (taps * values), 2)


def measured(workload: Workload, arch: str, made: Compiled) -> dict[str, Any]:
    """Return the numbers of a kernel, or why its instructions cannot be counted."""
    row = {"workload": workload.name, "kernel": made.bucket.kernel}
    try:
        code = disassembly.read(compiled.dump(made.kernel, "nvdisasm", "-c"))
        row["per_element"] = per_element(code, made.bucket, made.config, workload.shape[1])
    except ValueError as error:
        row["not_counted"] = str(error)
    facts = compiled.described(made.kernel, arch)
    row |= {key: facts[key] for key in ("registers", "spills")}
    return {**row, "seconds": round(made.seconds, 2)}


def by_workload(rows: Sequence[dict[str, Any]]) -> Record:
    """Arrange rows like the record."""
    found: Record = {}
    for row in rows:
        numbers = {key: value for key, value in row.items() if key not in ("workload", "kernel")}
        found.setdefault(row["workload"], {})[row["kernel"]] = numbers
    return found


def read() -> dict[str, Record]:
    """Read the records of all versions of Triton."""
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}


def record(found: Record) -> None:
    """Record workloads for this version of Triton, in place of their earlier numbers."""
    every = read()
    every[triton.__version__] = {**every.get(triton.__version__, {}), **found}
    RECORD.write_text(json.dumps(dict(sorted(every.items())), indent=1) + "\n")


def faults(found: Record, known: Record) -> Iterator[str]:
    """Yield a line per fault of the measured workloads, compared with those recorded."""
    for workload, kernels in found.items():
        before = known.get(workload, {})
        yield from (
            f"{workload} {kernel}: recorded, not launched" for kernel in before if kernel not in kernels
        )
        for kernel, now in kernels.items():
            name, most = f"{workload} {kernel}", before.get(kernel, {}).get("per_element")
            if "not_counted" in now:
                yield f"{name}: not counted: {now['not_counted']}"
            elif most is None:
                yield f"{name}: not recorded for this version of Triton; --record does that"
            elif now["per_element"] > most * (1 + TOLERANCE):
                yield f"{name}: {now['per_element']:.2f} instructions per element, recorded are {most:.2f}"
            if now["spills"]:
                yield f"{name}: spills {now['spills']} registers"
            if now["seconds"] > MOST_SECONDS:
                yield f"{name}: takes {now['seconds']:.1f} s to compile, expected at most {MOST_SECONDS:.0f}"


def table(rows: Sequence[dict[str, Any]], known: Record) -> str:
    """Show rows beside the recorded number of each."""
    before = [known.get(row["workload"], {}).get(row["kernel"], {}).get("per_element") for row in rows]
    found = pd.DataFrame(rows)
    found.insert(3, "recorded", before)
    return found.to_string(index=False)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    head, _, rest = __doc__.partition("\n\n")
    found = argparse.ArgumentParser(
        "instructions.py", description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = f"which of {', '.join(NAMES)} (default: all)"
    found.add_argument("--workloads", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=names)
    form = found.add_mutually_exclusive_group()
    form.add_argument("--check", action="store_true", help="compare with the record")
    form.add_argument("--record", action="store_true", help="record the numbers for this version of Triton")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    command = parser()
    args = command.parse_args(argv)
    try:
        rows = list(static.rows([(name, ARCH) for name in args.workloads], measured))
    except UsageError as error:
        command.error(str(error))
    wrong = [row["problem"] for row in rows if "problem" in row]
    rows = [row for row in rows if "problem" not in row]
    known = read().get(triton.__version__, {})
    if rows:
        print(table(rows, known))
    if args.record and not wrong:
        record(by_workload(rows))
        print(f"recorded in {RECORD}", file=sys.stderr)
    if args.check:
        wrong += faults(by_workload(rows), known)
        print(f"{len(wrong)} faults", file=sys.stderr)
    for line in wrong:
        print(line, file=sys.stderr)
    return EXIT_FAILED if wrong else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
