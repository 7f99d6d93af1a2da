"""``python -m perf overhead``: the host time of a call, launches included.

The image is so small that the eager pair is all dispatch. Without a GPU the operator runs on CPU tensors
through Triton's own launcher and a CUDA driver that does nothing. Only the driver's 2 to 3 us for a launch
are missing: the operator has 1 in inference and 2 with the backward, PyTorch's pair has 11 and 24.
"""

import argparse
import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from unittest import mock

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_OK, UsageError, chosen, first_call, setting
from perf.kernels import stub_driver
from perf.measuring import workloads
from perf.measuring.providers import plain_pair
from stn_triton import affine_grid_sample, reference
from stn_triton.environment import choose_device

SIZE = (1, 1, 4, 4)
PROVIDERS = {"affine_grid_sample": affine_grid_sample, "eager pair": plain_pair}


@contextlib.contextmanager
def through_the_launcher() -> Iterator[None]:
    """The operator on CPU tensors goes to the kernels, which a stub driver launches."""
    try:
        stub_driver.install()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"--device cpu: Triton's launcher needs a C compiler here: {error}") from None
    from stn_triton import launch

    with mock.patch.multiple(reference, forward=launch.forward, backward=launch.backward):
        yield


def measure(device: torch.device, rounds: int = 150, calls: int = 20) -> dict[str, dict[str, float]]:
    """Microseconds per call, by provider and pass: the least of interleaved rounds, each a mean of calls."""
    plain = torch.randn(SIZE, device=device), torch.eye(2, 3, device=device)[None]
    leaves = tuple(t.clone().requires_grad_() for t in plain)
    grad = torch.ones(SIZE, device=device)
    runs = {
        "inference": lambda function: function(*plain),
        "training forward": lambda function: function(*leaves),
        "forward + backward": lambda function: torch.autograd.grad(function(*leaves), leaves, grad),
    }
    times = {name: dict.fromkeys(runs, float("inf")) for name in PROVIDERS}
    for _, name, key in itertools.product(range(rounds), PROVIDERS, runs):
        start = time.perf_counter()
        for _ in range(calls):
            runs[key](PROVIDERS[name])
        times[name][key] = min(times[name][key], (time.perf_counter() - start) / calls * 1e6)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    return times


def main(args: argparse.Namespace) -> int:
    """Print seconds of first calls, or microseconds of a call and their ratio to the eager pair's."""
    device = choose_device(args.device)
    if args.out and args.first_calls is None:
        raise UsageError("--out: only --first-calls writes a table")
    names = chosen("--first-calls", args.first_calls or workloads.QUICK, workloads.WORKLOADS)
    if device.type == "cpu":
        setting.check_not_interpreted("interpreted kernels have no launcher")
    facts = setting.facts(device)
    if args.first_calls is not None:
        flags, bar = ["--stub"] * (device.type == "cpu"), tqdm(names, "first calls", disable=None)
        table = pd.DataFrame({"workload": n, **first_call.in_a_new_process(n, *flags)} for n in bar)
        text = table.to_string(index=False)
        table = table.assign(**facts)
        found = table.to_json(orient="records", lines=True).rstrip()
        if args.out:
            table.to_csv(args.out, index=False)
    else:
        print("about ten seconds; about twenty the first time, to compile two kernels ...", file=sys.stderr)
        with through_the_launcher() if device.type == "cpu" else contextlib.nullcontext():
            times = measure(device)
        found = json.dumps({"microseconds": times, **facts})
        table = pd.DataFrame(times).assign(ratio=lambda t: t["affine_grid_sample"] / t["eager pair"])
        text = f"Microseconds of a call:\n{table.to_string(float_format='{:.2f}'.format)}"
        if device.type == "cpu":
            text += "\nThe operator is launched on a driver that does nothing."
    print(found if args.json else f"{setting.summary(facts)}\n{text}")
    return EXIT_OK
