"""A user's first training step in a new process: how many seconds until each part of it is done.

``python -m perf.first_call WORKLOAD`` prints a JSON object. With ``--stub`` the kernels are compiled and
"launched" on a driver that does nothing, so that only the GPU's own time is missing; with ``--rehearse`` they
are interpreted on a CPU, on tiny images.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path


def in_a_new_process(workload: str, *flags: str, timeout: float | None = None) -> dict[str, float]:
    """Seconds of each part, and how many kernels were compiled in how many processor seconds.

    Raises:
        subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
        subprocess.CalledProcessError: it failed; why stands on stderr.
    """
    command = [sys.executable, "-m", "perf.first_call", workload, *flags]
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        env = {**os.environ, "TRITON_CACHE_DIR": folder}
        done = subprocess.run(
            command, env=env, stdout=subprocess.PIPE, text=True, timeout=timeout, check=True
        )
    return json.loads(done.stdout.splitlines()[-1])


def main(name: str, flag: str = "") -> None:
    """Time imports, data, a forward, its backward, and a second step."""
    times: dict[str, float] = {}
    compiled: list[bool] = []
    wait: Callable[[], None] = lambda: None  # noqa: E731
    start = time.perf_counter()

    def lap(part: str) -> None:
        nonlocal start
        wait()
        now = time.perf_counter()
        times[f"{part}_s"], start = round(now - start, 4), now

    import torch

    import stn_triton  # noqa: F401

    lap("import")
    from perf.evidence.stage import Stage
    from perf.measuring import providers, workloads

    if not flag:
        wait = torch.cuda.synchronize

    with contextlib.ExitStack() as stack:
        if flag == "--stub":
            from perf import overhead
            from perf.tuning import launches

            stack.enter_context(overhead.through_the_launcher())
            data = launches.dry(workloads.WORKLOADS[name], torch.device("cpu"))
        else:
            stage = Stage(Path(), 0.0, flag == "--rehearse")
            data = workloads.make(stage.sized(workloads.WORKLOADS[name]), stage.device)
        if flag != "--rehearse":
            from triton import knobs

            knobs.compilation.listener = lambda *, cache_hit, **_: compiled.append(not cache_hit)
        is_trained = data.input.is_floating_point()
        leaves = [t.requires_grad_(is_trained) for t in (data.input, data.theta)]
        lap("data")
        before = sum(os.times()[:4])
        for step in ("first", "second"):
            output = providers.operator(*leaves, data.size, **data.options)
            lap(f"{step}_forward")
            if is_trained:
                torch.autograd.grad(output, leaves, data.grad_output)
                lap(f"{step}_backward")
        times |= {"kernels": sum(compiled), "processor_s": round(sum(os.times()[:4]) - before, 4)}
    print(json.dumps(times))


if __name__ == "__main__":
    main(*sys.argv[1:])
