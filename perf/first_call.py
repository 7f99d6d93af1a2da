"""A user's first training step in a new process: how many seconds until each part of it is done.

``python -m perf.first_call WORKLOAD`` prints a JSON object. With ``--stub`` the kernels are compiled and
"launched" on a driver that does nothing, so that only the GPU's own time is missing. With ``--scatter`` the
backward is the fused scatter.
"""

import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time


def in_a_new_process(workload: str, flag: str = "") -> dict[str, float]:
    """Seconds of each part, and how many kernels were compiled in how many processor seconds.

    Raises:
        subprocess.CalledProcessError: it failed; its messages are on stderr.
    """
    with tempfile.TemporaryDirectory(prefix="stn_triton_") as folder:
        env = {**os.environ, "TRITON_CACHE_DIR": folder}
        # The monotonic clock is the same in every process.
        command = [sys.executable, "-m", "perf.first_call", workload, flag, str(time.monotonic())]
        printed = subprocess.check_output(command, env=env, text=True)
    return json.loads(printed.splitlines()[-1])


def main(name: str, flag: str = "", began: str = "") -> None:
    """Time imports since the process ``began``, data, a forward, its backward, and a second step."""
    laps = {"": float(began or time.monotonic())}
    import torch

    import stn_triton  # noqa: F401

    laps["import_s"] = time.monotonic()
    from triton import knobs

    from perf import overhead
    from perf.measuring import providers, workloads
    from perf.tuning import launches

    compiled: list[bool] = []
    knobs.compilation.listener = lambda *, cache_hit, **_: compiled.append(not cache_hit)
    workload, is_stub = workloads.WORKLOADS[name], flag == "--stub"
    sampler = providers.scatter if flag == "--scatter" else providers.operator
    laps["measuring_s"] = time.monotonic()

    def lap(part: str) -> None:
        if not is_stub:
            torch.cuda.synchronize()
        laps[f"{part}_s"] = time.monotonic()

    with overhead.through_the_launcher() if is_stub else contextlib.nullcontext():
        make = launches.dry if is_stub else workloads.make
        data = make(workload, torch.device("cpu" if is_stub else "cuda"))
        is_trained = data.input.is_floating_point()
        leaves = [t.requires_grad_(is_trained) for t in (data.input, data.theta)]
        lap("data")
        before = sum(os.times()[:4])
        for step in ("first", "second"):
            output = sampler(*leaves, data.size, **data.options)
            lap(f"{step}_forward")
            if is_trained:
                torch.autograd.grad(output, leaves, data.grad_output)
                lap(f"{step}_backward")
    seconds = {b: round(laps[b] - laps[a], 4) for a, b in itertools.pairwise(laps)}
    del seconds["measuring_s"]  # imports of this measurement alone
    compiling = {"kernels": sum(compiled), "processor_s": round(sum(os.times()[:4]) - before, 4)}
    print(json.dumps(seconds | compiling))


if __name__ == "__main__":
    main(*sys.argv[1:])
