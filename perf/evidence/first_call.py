"""A user's first training step in a new process: how many seconds until each part of it is done.

Run as ``python -m perf.evidence.first_call WORKLOAD`` with an empty cache of Triton's; prints a JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path


def main() -> None:
    """Time imports, data, a forward, its backward, and a second step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    parser.add_argument("--rehearse", action="store_true")
    args = parser.parse_args()
    times: dict[str, float] = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        times[name], start = round(now - start, 4), now

    import torch

    import stn_triton

    lap("import_s")
    from perf.evidence.stage import Stage
    from perf.measuring import workloads

    stage = Stage(Path(), 0.0, args.rehearse)
    wait: Callable[[], None] = (lambda: None) if args.rehearse else torch.cuda.synchronize
    data = workloads.make(stage.sized(workloads.WORKLOADS[args.workload]), stage.device)
    leaves = data.input.requires_grad_(), data.theta.requires_grad_()
    wait()
    lap("data_s")
    for step in ("first", "second"):
        output = stn_triton.affine_grid_sample(*leaves, data.size, **data.options)
        wait()
        lap(f"{step}_forward_s")
        torch.autograd.grad(output, leaves, data.grad_output)
        wait()
        lap(f"{step}_backward_s")
    print(json.dumps(times))


if __name__ == "__main__":
    main()
