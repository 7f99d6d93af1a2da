"""The first step: the facts of the machine, and the copy bandwidth that all floors are divided by."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from perf import setting
from perf.evidence.stage import Record, Stage, workers
from perf.measuring import roofline

REHEARSED_TARGET = ("cuda", 90, 32)
"""What a rehearsal compiles for."""


def run(item: str, stage: Stage) -> Iterator[Record]:
    """The facts, first without the bandwidth: if that fails, they are known all the same."""
    facts = setting.facts(stage.device)
    if stage.rehearse:
        facts["device"] = f"{facts['device']} (rehearsal: kernels interpreted)"
        facts |= {"device_type": "interpreter", "target": REHEARSED_TARGET, "workers": workers()}
    else:
        facts |= _of_gpu(stage.device)
    yield {"ok": True, "facts": facts}
    yield {"ok": True, "facts": {"copy_gb_per_s": roofline.copy_gb_per_s(stage.device)}}


def _of_gpu(device: torch.device) -> Record:
    from triton.runtime.driver import driver

    target = driver.active.get_current_target()
    properties = torch.cuda.get_device_properties(device)
    free, _ = torch.cuda.mem_get_info(device)
    return {
        "target": (target.backend, target.arch, target.warp_size),
        "workers": workers(free),
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }
