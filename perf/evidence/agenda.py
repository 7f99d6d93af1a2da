"""The steps of `python -m perf evidence`, in the order of what one needs to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Items = Callable[[bool], list[str]]


@dataclass(frozen=True)
class Step:
    """A part of the evidence, which runs in a process of its own."""

    name: str
    what: str
    seconds: float
    """Its weight, about what it took on an H200 beside 16 cores: the time left is shared among the steps left
    in proportion to these. Their sum is about eight minutes."""
    runs: str
    """The function that does an item, as ``module:function`` of this package."""
    items: Items
    """What it does one after the other, named; of the whole (False) or of a rehearsal (True)."""
    patience: float = 60
    """Seconds without any word of it: then what it does is given up."""


def _one(name: str) -> Items:
    return lambda rehearse: [name]


def _around(*names: str) -> Items:
    return lambda rehearse: ["before", *names, "after"]


def _telling(*rehearsed: str) -> Items:
    """The ten workloads; those named in a rehearsal."""

    def items(rehearse: bool) -> list[str]:
        from perf.evidence import subjects

        return list(rehearsed) if rehearse else [workload.name for workload in subjects.TELLING]

    return items


def _compared(rehearse: bool) -> list[str]:
    from perf.evidence import subjects

    names = [workload.name for workload in subjects.compared()]
    return ["uint8", "crops"] if rehearse else names


def _backwards(rehearse: bool) -> list[str]:
    from perf.evidence import subjects

    return [workload.name for workload in subjects.backwards()][: 1 if rehearse else None]


def _quick_first(rehearse: bool) -> list[str]:
    """Last what has candidates that take long to compile."""
    slow = ("features-64", "pooled-7")
    return sorted(_telling("digits-28")(rehearse), key=lambda name: name in slow)


def _calls(rehearse: bool) -> list[str]:
    from perf.evidence import behaviour

    return ["fill values", behaviour.ATOMIC[-1]] if rehearse else list(behaviour.CALLS)


def _further(rehearse: bool) -> list[str]:
    from perf.evidence import subjects

    names = [workload.name for workload in subjects.FURTHER]
    return [*(["image-4096"] if rehearse else names), "gpu tests"]


def _first_calls(rehearse: bool) -> list[str]:
    from perf.evidence import subjects

    first, *others = ["digits-28"] if rehearse else [w.name for w in subjects.FIRST_CALLS]
    return [first, "overhead", *others]


STEPS = (
    Step("machine", "what this machine is, and how fast it copies", 10, "machine:run", _one("facts"), 120),
    Step("compile", "compile what is launched later", 80, "compiling:run", _one("kernels"), 120),
    Step("compare", "small workloads against fp64", 15, "right:compare", _compared, 15),
    Step("behaviour", "repetition, graphs, streams, no waiting", 30, "behaviour:run", _calls, 15),
    Step("check", "python -m stn_triton check --quick", 40, "right:check", _one("check --quick"), 30),
    Step("tests", "tests/test_gpu.py", 45, "tests:run", _one("tests/test_gpu.py"), 45),
    Step("backward", "gather against scatter", 50, "timing:backward", _backwards, 25),
    Step("speed", "against PyTorch, ten workloads", 70, "timing:speed", _telling("crops-7"), 25),
    Step("host", "host time; the first call", 50, "timing:host", _first_calls, 45),
    Step("blocks", "block sizes", 45, "block_sizes:run", _quick_first, 45),
    Step("profile", "Nsight Compute", 32, "profiling:run", _one("kernels"), 60),
    Step("torch-compile", "against torch.compile", 20, "timing:against_compile", _telling("digits-28"), 60),
    Step("further", "other workloads and tests", 15, "timing:further", _further, 60),
)
FAULTS = (
    Step("crash", "a step that crashes", 15, "faults:crash", _around("crash", "spoilt"), 60),
    Step("hang", "a step that hangs", 15, "faults:hang", _around("hang"), 1),
)
"""What a rehearsal has besides, to be stopped."""
