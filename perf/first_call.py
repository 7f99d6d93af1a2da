"""A user's first training step in a new process: how many seconds until each part of it is done.

Each workload runs in a process of its own whose caches are empty: ``python -m perf.first_call WORKLOAD``
prints a JSON object. Without a GPU the kernels are compiled and "launched" on a driver that does nothing
(`perf/kernels/stub_driver.py`), so that only the GPU's own time is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Times = dict[str, float]


def in_a_new_process(workload: str, *flags: str, timeout: float | None = None) -> Times:
    """Seconds of each part, and how many kernels were compiled in how many processor seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
        subprocess.CalledProcessError: it failed; why stands on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        environment = {**os.environ, "TRITON_CACHE_DIR": folder}
        command = [sys.executable, "-m", "perf.first_call", workload, *flags]
        done = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Time imports, data, a forward, its backward, and a second step."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workload")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--rehearse", action="store_true", help="interpreted on a CPU, on tiny images")
    kinds.add_argument("--stub", action="store_true", help="on a driver that does nothing")
    args = parser.parse_args()
    times: Times = {}
    start = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        now = time.perf_counter()
        times[name], start = round(now - start, 4), now

    import torch

    import stn_triton

    lap("import_s")
    compiled: list[bool] = []
    with contextlib.ExitStack() as stack:
        data, wait = _prepared(args, stack)
        if not args.rehearse:
            from triton import knobs

            knobs.compilation.listener = lambda *, cache_hit, **_: compiled.append(not cache_hit)
        leaves = data.input, data.theta
        is_trained = data.input.is_floating_point()
        if is_trained:
            leaves = data.input.requires_grad_(), data.theta.requires_grad_()
        wait()
        lap("data_s")
        before = sum(os.times()[:4])
        for step in ("first", "second"):
            output = stn_triton.affine_grid_sample(*leaves, data.size, **data.options)
            wait()
            lap(f"{step}_forward_s")
            if is_trained:
                torch.autograd.grad(output, leaves, data.grad_output)
                wait()
                lap(f"{step}_backward_s")
        times |= {"kernels": sum(compiled), "processor_s": round(sum(os.times()[:4]) - before, 4)}
    print(json.dumps(times))


def _prepared(args: argparse.Namespace, stack: contextlib.ExitStack) -> tuple[Any, Callable[[], None]]:
    """The workload's tensors, and what waits for their device."""
    import torch

    from perf.measuring import workloads

    workload = workloads.WORKLOADS[args.workload]
    if args.stub:
        from perf import overhead
        from perf.tuning import launches

        stack.enter_context(overhead.through_the_launcher())
        return launches.dry(workload, torch.device("cpu")), lambda: None
    from perf.evidence.stage import Stage

    stage = Stage(Path(), 0.0, args.rehearse)
    data = workloads.make(stage.sized(workload), stage.device)
    return data, (lambda: None) if args.rehearse else torch.cuda.synchronize


if __name__ == "__main__":
    main()
