"""What `python -m perf evidence` measures: the workloads that say most, and small ones to compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from perf.measuring.workloads import WORKLOADS, Workload

TELLING = [
    WORKLOADS[name]
    for name in (
        "images-224",
        "features-64",
        "digits-28",
        "volume-160",
        "crops-7",
        "features-256-bf16-channels-last",
        "images-224-bf16",
        "features-64-channels-last",
        "pooled-7",
        "border-224",
    )
]
"""The ten most telling workloads, the most telling first: what the time does not suffice for is left out."""
FURTHER = [w for w in WORKLOADS.values() if w not in TELLING and not w.sweep]
FIRST_CALLS = [WORKLOADS[name] for name in ("images-224", "digits-28", "volume-160", "features-64")]


PASSES = ("forward", "backward", "theta", "input")
"""Of comparisons."""
_BATCH = 16
"""Of comparisons. Of fewer matrices, the largest error of their gradients is a matter of luck."""


def backwards() -> list[Workload]:
    """Where a gather of grad_input is held against a scatter: few and many channels, and under border.

    One channel has the images of three: with digits of 28 pixels, the host's time would hide the kernels'.
    """
    images, features = WORKLOADS["images-224"], WORKLOADS["features-64"]
    who = "gather against scatter"
    found = [
        replace(images, name="backward-3", who=who),
        replace(features, name="backward-64", who=who),
        replace(WORKLOADS["border-224"], name="backward-border", who=who),
        replace(images, name="backward-1", who=who, shape=(64, 1, 224, 224)),
        replace(features, name="backward-16", who=who, shape=(32, 16, 112, 112)),
        replace(WORKLOADS["features-256-bf16-channels-last"], name="backward-256-bf16-channels-last"),
    ]
    return [replace(workload, who=who) for workload in found]


BACKWARD_MAPS = ("identity", "rotate-30", "zoom-2")
"""The identity is shifted by a part of a pixel, as all maps are."""


def compared() -> list[Workload]:
    """Small workloads that reach every kernel whose result the eager pair can be compared with."""
    return list(_compared())


def _compared() -> Iterator[Workload]:
    last = torch.channels_last
    plain = Workload("fp32", "a comparison", (_BATCH, 3, 33, 29), size=(31, 37))
    volume = replace(plain, name="volume", shape=(_BATCH, 2, 9, 12, 11), size=(8, 10, 13))
    yield plain
    yield replace(plain, name="fp32-1-channel", shape=(_BATCH, 1, 28, 28), size=None)
    yield replace(plain, name="fp32-64-channels", shape=(_BATCH, 64, 17, 19), size=None)
    yield replace(plain, name="fp32-33-channels", shape=(_BATCH, 33, 16, 16), size=None)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        yield replace(plain, name=str(dtype).removeprefix("torch."), dtype=dtype)
    yield replace(plain, name="uint8", dtype=torch.uint8)
    yield replace(plain, name="channels-last-3", memory_format=last)
    wide = replace(plain, name="channels-last-64", shape=(_BATCH, 64, 17, 19), memory_format=last)
    yield wide
    yield replace(wide, name="channels-last-64-bf16", dtype=torch.bfloat16)
    yield replace(
        wide, name="channels-last-100-fp16", shape=(_BATCH, 100, 9, 9), dtype=torch.float16, size=(8, 9)
    )
    yield volume
    yield replace(volume, name="volume-border", options={"padding_mode": "border"})
    for padding in ("border", "reflection"):
        yield replace(plain, name=padding, scale=1.3, options={"padding_mode": padding})
    yield replace(plain, name="bicubic", options={"mode": "bicubic"})
    even = replace(plain, name="antialias", shape=(_BATCH, 3, 32, 28), size=(16, 14))
    yield replace(even, options={"antialias": 2})
    yield replace(plain, name="crops", shape=(2, 16, 40, 44), size=(7, 7), crops=12, scale=0.2)


def tiny(workload: Workload) -> Workload:
    """The same kind of workload, small enough for kernels in the interpreter; under the same name."""
    batch, channels, *size_in = workload.shape

    most = 8 if len(size_in) == 2 else 5
    size = tuple(min(side, most) for side in size_in)
    # A shrinking workload still shrinks by a whole factor, for antialiasing.
    ratios = [
        max(1, before // after) for before, after in zip(size_in, workload.size or size_in, strict=True)
    ]
    return replace(
        workload,
        shape=(min(batch, 2), min(channels, 16), *size),
        size=workload.size and tuple(max(2, side // ratio) for side, ratio in zip(size, ratios, strict=True)),
        crops=min(workload.crops, 3),
        scale=max(workload.scale, 0.3),
    )
