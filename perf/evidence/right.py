"""Is it right on this GPU: small workloads against fp64, and the package's own check."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from perf.evidence import crew, subjects
from perf.evidence.stage import Record, Stage
from perf.measuring import providers, workloads
from perf.measuring.gate import Gate
from perf.measuring.passes import COMPUTED, PASSES


def compare(item: str, stage: Stage) -> Iterator[Record]:
    """One small workload: each pass within twice the error that the eager pair has here against fp64."""
    workload = stage.sized(next(w for w in subjects.compared() if w.name == item))
    data = workloads.make(workload, stage.device)
    gate = Gate(data)
    with stage.kernels():
        for name in subjects.PASSES if workload.dtype.is_floating_point else subjects.PASSES[:1]:
            tensors = PASSES[name](providers.operator, data)()
            verdict = gate.check(dict(zip(COMPUTED[name], tensors, strict=True)), stage.slack)
            yield {
                "ok": verdict.passed,
                "what": f"{item} {name}",
                "tensor": verdict.tensor,
                "error": verdict.error,
                "tolerance": verdict.tolerance,
                "problem": verdict.reason,
            }


def check(item: str, stage: Stage) -> Iterator[Record]:
    """The rows of ``python -m stn_triton check --quick``, side by side, with kernels that are compiled."""
    from stn_triton.check.rows import ROWS

    names = [row.name for row in ROWS]
    chosen = names[:1] if stage.rehearse else names
    yield {"ok": True, "planned": len(chosen)}
    for name, lines in crew.each(check_row, chosen, stage.facts["workers"], stage.rehearse):
        if isinstance(lines, Exception):
            yield {"ok": False, "what": name, "problem": f"{type(lines).__name__}: {lines}"}
            continue
        problems = [line["problem"] for line in lines if line["status"] == "FAIL"]
        yield {"ok": not problems, "what": name, "lines": lines, "problem": "; ".join(problems)}


def check_row(name: str, rehearse: bool) -> list[dict[str, Any]]:
    """One row of the check, in a process of its own."""
    crew.check_gpu()
    from stn_triton.check import command
    from stn_triton.check import engine as engines

    engine = engines.choose("cpu" if rehearse else "cuda", rehearse)
    lines = command.run([row for row in command.chosen([name]) if row.name == name], engine, quick=True)
    found = []
    for line in lines:
        row: dict[str, Any] = {"status": line.status, "part": line.group, "problem": line.skipped or ""}
        if line.worst is not None:
            row |= {"cases": line.cases, "error": line.worst.error, "tolerance": line.worst.allowed}
            row["problem"] = line.worst.text if line.failed else ""
        found.append(row)
    return found
