"""Instructions per element: what a change of the kernels is held against where there is no GPU.

An element is a (tap, channel) of an output pixel in the forward and for theta, and in the gather a (pair,
channel): an output pixel that is tried for an input pixel. For a rotation at scale 1 these are 9, of which
at most 5 are hits; enlarged twice (``enlarged``), too many for a list, 25. Everything that a thread executes
counts, averaged over the channels of its program; the inner loop alone is told beside it.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import triton

from perf.kernels import cases, compiled
from stn_triton import tuning
from stn_triton.kernels.walk import SLOTS

RECORD = Path(__file__).parents[1] / "results" / "instructions.json"
ARCH = "sm_90"
TOLERANCE = 0.05
_TAPS = 4
_HITS = 5

Measures = dict[str, float]


def buckets() -> list[tuning.Bucket]:
    """Of the plain operator: few and many channels in both layouts, fp32 and bf16."""
    kinds = ((False, 64), (True, 64), (False, 3))
    return [
        tuning.bucket_of(kernel, cases.PLAIN, channels_last, dtype, 64, channels, 224 * 224)
        for kernel, dtype, (channels_last, channels) in itertools.product(
            cases.kernels_of(cases.PLAIN), (torch.float32, torch.bfloat16), kinds
        )
    ]


def measure(bucket: tuning.Bucket) -> tuple[str, Measures]:
    """The bucket's name, and what a thread of its default configuration executes per element.

    Raises:
        ValueError: the kernel's loops are not those that are counted here.
    """
    config = tuning.default(bucket)
    facts = compiled.facts(bucket, config, ARCH)
    code, steps = facts["code"], config["STEPS_C"]
    channels = min(config["BLOCK_C"], bucket.channels)
    elements = channels * steps * config["BLOCK_H"] * config["BLOCK_W"] / (32 * config["num_warps"])
    walk, enlarged = (3, [3]), (5, [5])
    if bucket.kernel in ("forward", "theta"):
        counts = {"per_element": code.executed([steps] if steps > 1 else []) / (_TAPS * elements)}
    elif steps > 1:
        share = _HITS / SLOTS.value
        counts = {
            "per_element": code.executed([walk, steps, (0, [(0, [0])])], share) / (9 * elements),
            "enlarged": code.executed([enlarged, 0, (steps, [enlarged])], 0) / (25 * elements),
        }
    else:
        counts = {
            "per_element": code.executed([walk]) / (9 * elements),
            "enlarged": code.executed([enlarged]) / (25 * elements),
        }
    return bucket.name(), {
        **{name: round(count, 2) for name, count in counts.items()},
        "inner_loop": code.longest_inner_loop(),
        "registers": facts["registers"],
    }


def recorded() -> dict[str, Measures]:
    """What is recorded for the Triton at hand; empty if nothing is."""
    return _read().get(triton.__version__, {})


def record(measures: dict[str, Measures]) -> None:
    """Write the measures down for the Triton at hand, beside those of other versions."""
    content = {**_read(), triton.__version__: measures}
    RECORD.write_text(json.dumps(dict(sorted(content.items())), indent=1) + "\n")


def worse(measures: dict[str, Measures], known: dict[str, Measures]) -> Iterable[str]:
    """A line for each kernel that executes more than the tolerance above what is known, or is not known."""
    for name, now in measures.items():
        if name not in known:
            yield f"{name}: not recorded"
            continue
        for count in {"per_element", "enlarged"} & now.keys():
            if now[count] > known[name].get(count, 0) * (1 + TOLERANCE):
                yield (
                    f"{name}: {now[count]:.2f} instructions {count.replace('_', ' ')}, recorded are "
                    f"{known[name].get(count, 0):.2f}"
                )


def _read() -> dict[str, dict[str, Measures]]:
    return json.loads(RECORD.read_text()) if RECORD.exists() else {}
