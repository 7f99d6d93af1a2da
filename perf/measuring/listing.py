"""What `bench --list` prints: what can be named, each with what it is, and what runs unasked."""

from __future__ import annotations

from collections.abc import Iterator

from perf.measuring import workloads
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS, SHIFT
from perf.measuring.passes import PASSES
from perf.measuring.providers import COMPILE, PROVIDERS
from perf.measuring.workloads import WORKLOADS, Workload

# Estimated, not measured: seconds on an H100 with 16 CPU cores. A row is timed for 60 ms, and checked, and
# its inputs copied; a reference in fp64 needs its tensors made on the CPU; torch.compile compiles a graph for
# the forward and one for each set of gradients that is wanted.
ROW_S, REFERENCE_S, COMPILE_S = 0.13, 2.0, 3.5


def listing() -> str:
    """Workloads, maps, passes, providers, and how long all of it takes."""
    whole = [w for w in WORKLOADS.values() if not w.sweep]
    shift = ", ".join(map(str, SHIFT))
    return "\n".join(
        (
            "workloads: shape of the input, of the output if another, dtype, layout",
            *(f"  {w.name:33}{_shape(w)}\n      {w.who}" for w in whole),
            *_sweeps(),
            f"  without --workloads on a CPU: {_names(w.name for w in whole if w.cpu)};",
            f"  with --quick on a GPU: {_names(w.name for w in whole if w.quick)}",
            *(f"  {w.name}: not {m}: {w.why_not(m)}" for w in whole for m in MAPS if w.why_not(m)),
            "\nmaps",
            *(f"  {m.name:28}{m.what}" for m in MAPS.values()),
            f"  without --maps on a CPU: {_names(CPU_MAPS)}; with --quick: {_names(QUICK_MAPS)}",
            f"  All but the random ones are shifted by {shift} of a pixel along x, y, z: at whole pixels the",
            "  derivative for theta jumps, and there would be nothing to check it by.",
            "\npasses",
            *(f"  {name:28}{(run.__doc__ or '').splitlines()[0]}" for name, run in PASSES.items()),
            "\nproviders",
            *(f"  {p.name:28}{p.what}" for p in PROVIDERS.values()),
            f"  {COMPILE} takes part in a quick run only if it is named.",
            f"\nEverything on an H100: about {gpu_minutes():.0f} minutes (an estimate).",
            "To do it in parts name some workloads at a time, with an --out for each.",
        )
    )


def gpu_minutes() -> float:
    """How long the whole suite takes on an H100, in minutes."""
    rows = references = graphs = 0
    for workload in WORKLOADS.values():
        maps = workloads.SWEEP_MAPS if workload.sweep else [m for m in MAPS if not workload.why_not(m)]
        passes = workloads.SWEEP_PASSES if workload.sweep else PASSES
        rows += len(maps) * len(passes) * len(PROVIDERS)
        references += len(maps)
        graphs += 2 if workload.sweep else 4
    return (rows * ROW_S + references * REFERENCE_S + graphs * COMPILE_S) / 60


def _shape(workload: Workload) -> str:
    size = f" to {'x'.join(map(str, workload.size))}" if workload.size else ""
    dtype = str(workload.dtype).removeprefix("torch.")
    return f"{'x'.join(map(str, workload.shape))}{size} {dtype} {workload.layout}"


def _sweeps() -> Iterator[str]:
    for sweep in dict.fromkeys(w.sweep for w in WORKLOADS.values() if w.sweep):
        points = [w for w in WORKLOADS.values() if w.sweep == sweep]
        yield f"  {_names(w.name for w in points)}"
        yield f"      {points[0].who}, from {_shape(points[0])}: {_names(workloads.SWEEP_MAPS)} maps,"
        yield f"      {_names(workloads.SWEEP_PASSES)} alone"


def _names(names) -> str:
    return ", ".join(names)
