"""Instructions per element: what a change of the kernels is held against where there is no GPU.

An element is a (tap, channel) of an output pixel in the forward, in the scatter and for theta, and in the
gather a channel of an input pixel. That tries as many output pixels as the map asks for: a rotation of 30
degrees, the identity, or one that enlarges twice, too many for a list. Everything that a thread executes
counts, averaged over the channels of its program; the inner loop alone is told beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import triton

from perf.kernels.disassembly import Code, Trips
from perf.measuring.workloads import WORKLOADS, Workload
from stn_triton import policy
from stn_triton.buckets import Bucket
from stn_triton.kernels.walk import SLOTS
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
"""The workloads whose kernels are the yardstick."""
TOLERANCE = 0.05
MOST_SECONDS = 3.0
"""Of a processor, to compile a kernel with its default block sizes: somebody waits for it."""
_KERNELS = ("forward", "theta", "scatter", "scatter_input", "backward", "backward_input")
_VARIANTS = ("2d-bilinear-zeros", "3d-bilinear-zeros")
_TRIED = {
    1: {"per_element": (3, 3, 5), "identity": (2, 2, 4), "enlarged": (4, 4, 16)},
    2: {"per_element": (5, 4, 20), "identity": (3, 3, 9), "enlarged": (6, 6, 36)},
}
"""By the side of a thread's square: rows and columns of output pixels that are tried, and the most hits."""

Measures = dict[str, float]


def workloads() -> list[Workload]:
    """Those of the yardstick."""
    return [WORKLOADS[name] for name in NAMES]


def counts(code: Code, bucket: Bucket, config: Config, channels: int) -> Measures:
    """What a thread executes per element; nothing of kernels whose loops have no such counts.

    Raises:
        ValueError: the kernel's loops are not those that are counted here.
    """
    if bucket.variant not in _VARIANTS or bucket.kernel not in _KERNELS:
        return {}
    blocks = -(-channels // config["BLOCK_C"])
    programs = -(-blocks // config["STEPS_C"])
    pixels = config["BLOCK_H"] * config["BLOCK_W"] / (32 * config["num_warps"])
    found = {}
    for name, (trips, elements, hits, share) in _ways(bucket, config, blocks / programs).items():
        values = channels / programs * pixels
        least = hits * values * getattr(torch, bucket.dtype).itemsize
        fetched = code.fetched(trips, share)
        if fetched < least:
            raise ValueError(
                f"expected a thread to load at least {least:.0f} bytes, counted {fetched:.0f}: the loops "
                f"{code.loops} do not run as {trips} says"
            )
        found[name] = round(code.executed(trips, share) / (elements * values), 2)
    return found | {"inner_loop": code.longest_inner_loop()}


def _ways(bucket: Bucket, config: Config, steps: float) -> Mapping[str, tuple[Trips, int, float, float]]:
    """Of each count: how often loops run, elements and hits of a pixel, the share of loads that are made."""
    if not bucket.is_gather():
        taps = 2 ** int(bucket.variant[0])
        loads = 1 if bucket.kernel == "scatter_input" else taps  # of grad_output alone
        return {"per_element": ([steps] if config["STEPS_C"] > 1 else [], taps, loads, 1.0)}
    side = policy.side(bucket)
    found = {}
    for name, (rows, columns, hits) in _TRIED[side].items():
        walk = (rows, [columns])
        if config["STEPS_C"] == 1:
            found[name] = ([walk], 1, rows * columns / side**2, 1.0)
        elif hits <= SLOTS.value:
            found[name] = ([walk, steps, (0, [(0, [0])])], 1, hits, hits / SLOTS.value)
        else:
            found[name] = ([walk, 0, (steps, [walk])], 1, hits, 0.0)
    return found


def measures(rows: Iterable[Mapping[str, object]]) -> dict[str, Measures]:
    """What is recorded of rows of `perf static`: of the yardstick's, by workload and kernel."""
    keys = ("per_element", "identity", "enlarged", "inner_loop", "registers", "spills", "seconds")
    found = {}
    for row in rows:
        (workload, *how), kernel = row["call"].split(), row["kernel"].split("/")[0]
        if row["arch"] == ARCH and workload in NAMES and len(how) == 1:  # not of mixed memory formats
            found[f"{workload} {kernel}"] = {key: row[key] for key in keys if key in row}
    return found


def recorded() -> dict[str, Measures]:
    """What is recorded for the Triton at hand; empty if nothing is."""
    return _read().get(triton.__version__, {})


def record(measures: dict[str, Measures]) -> None:
    """Write the measures down for the Triton at hand, beside those of other versions."""
    content = {**_read(), triton.__version__: measures}
    RECORD.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def worse(measures: dict[str, Measures], known: dict[str, Measures]) -> Iterable[str]:
    """A line for each kernel that executes more than the tolerance above what is known.

    Also for one that is not known, no longer there, or no longer counted.
    """
    yield from (f"{name}: not recorded" for name in measures if name not in known)
    for name, before in known.items():
        now = measures.get(name, {})
        for count in ("per_element", "identity", "enlarged"):
            if count in before and count not in now:
                yield f"{name}: recorded are {before[count]:.2f} instructions {_said(count)}, not counted now"
            elif now.get(count, 0) > before.get(count, 0) * (1 + TOLERANCE):
                yield (
                    f"{name}: {now[count]:.2f} instructions {_said(count)}, recorded are "
                    f"{before.get(count, 0):.2f}"
                )


def _said(count: str) -> str:
    return count.replace("_", " ")


def too_much(measures: dict[str, Measures]) -> Iterable[str]:
    """A line for each kernel that spills, or for which a user would wait too long."""
    for name, now in measures.items():
        if now["spills"]:
            yield f"{name}: spills {now['spills']:.0f} registers"
        if now["seconds"] > MOST_SECONDS:
            yield f"{name}: takes {now['seconds']:.1f} s to compile, expected at most {MOST_SECONDS:.0f}"


def _read() -> dict[str, dict[str, Measures]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}
