"""Instructions per element: the measure of a change of the kernels where there is no GPU.

An element is a (tap, channel) of an output pixel in the forward, the scatter and theta's kernel, and a
channel of an input pixel in the gather. A gather tries as many output pixels as a rotation by 30 degrees
needs. Every instruction that a thread executes counts, averaged over the channels of its program.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import triton

from perf.kernels.disassembly import Code
from stn_triton import policy
from stn_triton.buckets import Bucket
from stn_triton.tuning import Config

RECORD = Path(__file__).parents[1] / "results" / "instructions.json"
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
"""Workloads whose kernels are counted and recorded."""
TOLERANCE = 0.05
MOST_SECONDS = 3.0
"""Processor time to compile a kernel with its default block sizes: a user waits for it."""
_VARIANTS = ("2d-bilinear-zeros", "3d-bilinear-zeros")
_TRIED = {1: (3, 3), 2: (5, 4)}
"""Rows and columns of output pixels that a gather tries, by the side of a thread's square of pixels."""
Measures = dict[str, float]


def per_element(code: Code, bucket: Bucket, config: Config, channels: int) -> float | None:
    """Instructions per element; None for kernels whose loops are not known here.

    Raises:
        ValueError: the kernel's loops are not the expected ones.
    """
    if bucket.variant not in _VARIANTS:
        return None
    blocks = -(-channels // config["BLOCK_C"])
    programs = -(-blocks // config["STEPS_C"])
    values = channels / programs * config["BLOCK_H"] * config["BLOCK_W"] / (32 * config["num_warps"])
    if bucket.is_gather():
        return round(code.executed(_TRIED[policy.side(bucket)]) / values, 2)
    steps = [blocks / programs] if config["STEPS_C"] > 1 else []
    taps = 2 ** int(bucket.variant[0])
    return round(code.executed(steps) / (taps * values), 2)


def measures(rows: Iterable[Mapping[str, object]]) -> dict[str, Measures]:
    """Select the recorded numbers of rows of ``perf static``, by workload and kernel."""
    return {
        f"{row['call']} {row['kernel'].split('/')[0]}": {
            key: row[key] for key in ("per_element", "registers", "spills", "seconds") if key in row
        }
        for row in rows
        if row["arch"] == ARCH and row["call"] in NAMES
    }


def recorded() -> dict[str, Measures]:
    """Measures recorded for this version of Triton; empty if there are none."""
    return _read().get(triton.__version__, {})


def record(measures: dict[str, Measures]) -> None:
    """Record the measures for this version of Triton, in place of what the same workloads had."""
    measured = {name.split()[0] for name in measures}
    others = {name: known for name, known in recorded().items() if name.split()[0] not in measured}
    content = {**_read(), triton.__version__: {**others, **measures}}
    RECORD.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def faults(measures: dict[str, Measures], known: dict[str, Measures]) -> Iterator[str]:
    """Yield a line per fault of the kernels that were measured.

    A fault is an instruction count above what is recorded by more than the tolerance, one that is not known
    or no longer counted, a spill, or a long compilation.
    """
    workloads = {name.split()[0] for name in measures}
    yield from (f"{name}: not recorded" for name in measures if name not in known)
    for name, record in known.items():
        if "per_element" not in record or name.split()[0] not in workloads:
            continue
        now, before = measures.get(name, {}).get("per_element"), record["per_element"]
        if now is None:
            yield f"{name}: {before:.2f} instructions per element are recorded, none counted now"
        elif now > before * (1 + TOLERANCE):
            yield f"{name}: {now:.2f} instructions per element, recorded are {before:.2f}"
    for name, now in measures.items():
        if now["spills"]:
            yield f"{name}: spills {now['spills']:.0f} registers"
        if now.get("seconds", 0) > MOST_SECONDS:
            yield f"{name}: takes {now['seconds']:.1f} s to compile, expected at most {MOST_SECONDS:.0f}"


def _read() -> dict[str, dict[str, Measures]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}
