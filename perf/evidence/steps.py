"""The steps of `python -m perf evidence`, in the order of what one needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

Items = Callable[[bool], list[str]]


@dataclass(frozen=True)
class Step:
    """A part of the evidence, which runs in a process of its own."""

    name: str
    what: str
    seconds: float
    """Its share of eight minutes; of other times in proportion."""
    runs: str
    """The function that does an item, as ``module:function`` of this package."""
    items: Items
    """What it does one after the other, named; of the whole (False) or of a rehearsal (True)."""
    patience: float = 60
    """Seconds without any word of it, at eight minutes: then what it does is given up."""
    is_faulty: bool = False
    """Whether it is there for the rehearsal alone, to be stopped."""


def _one(name: str) -> Items:
    return lambda rehearse: [name]


def _names(which: str, rehearsed: Sequence[str]) -> Items:
    """The names of a list of workloads; some of them in a rehearsal."""

    def items(rehearse: bool) -> list[str]:
        from perf.evidence import subjects

        found = getattr(subjects, which)
        names = [workload.name for workload in (found() if callable(found) else found)]
        return [name for name in names if name in rehearsed] if rehearse else names

    return items


def _calls(rehearse: bool) -> list[str]:
    from perf.evidence import behaviour

    return ["fill values", behaviour.ATOMIC] if rehearse else list(behaviour.CALLS)


def _further(rehearse: bool) -> list[str]:
    from perf.evidence import subjects

    names = [workload.name for workload in subjects.FURTHER]
    return [*(names[-1:] if rehearse else names), "gpu tests"]


def _first_calls(rehearse: bool) -> list[str]:
    return ["overhead", *_names("FIRST_CALLS", ("digits-28",))(rehearse)]


STEPS = (
    Step("machine", "what this machine is, and how fast it copies", 40, "machine:run", _one("facts"), 120),
    Step("compile", "compile what is launched later", 110, "compiling:run", _one("kernels"), 200),
    Step(
        "compare",
        "small workloads against fp64",
        25,
        "right:compare",
        _names("compared", ("uint8", "bfloat16", "crops")),
        20,
    ),
    Step("behaviour", "repetition, graphs, streams, no waiting", 25, "behaviour:run", _calls, 20),
    Step("check", "python -m stn_triton check --quick", 30, "right:check", _one("check --quick"), 60),
    Step("tests", "tests/test_gpu.py", 45, "tests:run", _one("tests/test_gpu.py"), 60),
    Step(
        "backward", "gather against scatter", 40, "timing:backward", _names("backwards", ("backward-3",)), 30
    ),
    Step(
        "speed",
        "against PyTorch, ten workloads",
        75,
        "timing:speed",
        _names("TELLING", ("digits-28", "crops-7")),
        30,
    ),
    Step("host", "host time; the first call", 45, "timing:host", _first_calls, 45),
    Step("blocks", "block sizes", 60, "block_sizes:run", _names("TELLING", ("digits-28",)), 90),
    Step("profile", "Nsight Compute", 25, "profiling:run", _names("TELLING", ("digits-28",)), 60),
    Step(
        "torch-compile",
        "against torch.compile",
        20,
        "timing:against_compile",
        _names("TELLING", ("digits-28",)),
        60,
    ),
    Step("further", "other workloads and tests", 40, "timing:further", _further, 90),
)
FAULTS = (
    Step(
        "crash", "a step that crashes", 15, "faults:crash", lambda _: ["before", "crash", "after"], 60, True
    ),
    Step("hang", "a step that hangs", 15, "faults:hang", lambda _: ["before", "hang", "after"], 12, True),
)
