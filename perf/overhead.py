"""``python -m perf overhead``: the host time of a call, launches included.

Below affine_grid_sample, the parts and what was not chosen: the call without the checks of its arguments, the
operator called directly, and an autograd.Function as torch.func needs it. The image is so small that the
eager pair is all dispatch.

Without a GPU the operator runs on CPU tensors through Triton's own launcher and a CUDA driver that does
nothing (`perf/kernels/stub_driver.py`). So everything is there but what a GPU's driver takes for a launch,
2 to 3 us: the operator has 1 in inference and 2 with the backward here, where PyTorch's pair has 11 and 24.

``--first-calls`` has the seconds of the first training step of a new process whose caches are empty.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from unittest import mock

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from perf import EXIT_OK, UsageError, first_call, setting
from perf.kernels import stub_driver
from perf.measuring import workloads
from stn_triton import affine_grid_sample, derivatives, ops, reference
from stn_triton.environment import choose_device
from stn_triton.options import DEFAULT
from stn_triton.signatures import flat

SIZE = (1, 1, 4, 4)
_ARGUMENTS = (None, None, list(SIZE[2:]), DEFAULT)
_FLAT = flat(_ARGUMENTS)


def pair(input: Tensor, theta: Tensor) -> Tensor:
    """PyTorch's two operators."""
    return F.grid_sample(input, F.affine_grid(theta, SIZE, align_corners=False), align_corners=False)


PROVIDERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "eager pair": pair,
    "affine_grid_sample": affine_grid_sample,
    "  without its checks": lambda *tensors: derivatives.sample(*tensors, *_ARGUMENTS),
    "  the operator itself": lambda *tensors: ops.affine_grid_sample(*tensors, *_FLAT),
    "  Function with setup_context": lambda *tensors: derivatives._Sample.apply(*tensors, *_ARGUMENTS),
}
PASSES = ("inference", "training forward", "forward + backward")


@contextlib.contextmanager
def through_the_launcher() -> Iterator[None]:
    """The operator on CPU tensors goes to the kernels, which a stub driver launches."""
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        raise UsageError("TRITON_INTERPRET is set: interpreted kernels have no launcher; unset it")
    try:
        stub_driver.install()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UsageError(f"--device cpu: Triton's launcher needs a C compiler here: {error}") from None
    from stn_triton import launch

    with mock.patch.multiple(reference, forward=launch.forward, backward=launch.backward):
        yield


def surroundings(device: torch.device) -> contextlib.AbstractContextManager:
    """In what to measure: on a CPU nothing is computed."""
    return through_the_launcher() if device.type == "cpu" else contextlib.nullcontext()


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
    times = {name: {p: [] for p in PASSES} for name in PROVIDERS}
    for _ in range(rounds):
        for name, function in PROVIDERS.items():
            for p in PASSES:
                start = time.perf_counter()
                for _ in range(calls):
                    runs[p](function)
                times[name][p].append((time.perf_counter() - start) / calls * 1e6)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
    return {name: {p: min(values) for p, values in row.items()} for name, row in times.items()}


def first_calls(args: argparse.Namespace, device: torch.device) -> int:
    """Print the seconds of first training steps, each in a new process with empty caches."""
    try:
        chosen = workloads.choose(args.first_calls or None, torch.device("cuda"), not args.first_calls)
    except ValueError as error:
        raise UsageError(str(error).replace("--workloads", "--first-calls")) from None
    names = [workload.name for workload in chosen]
    facts = setting.facts(device)
    rows = []
    for name in tqdm(names, desc="first calls", file=sys.stderr, disable=None):
        times = first_call.in_a_new_process(name, *["--stub"] * (device.type == "cpu"))
        rows.append({"workload": name, **times, **facts})
        if args.json:
            print(json.dumps(rows[-1]), flush=True)
    table = pd.DataFrame(rows)
    if args.out:
        table.to_csv(args.out, index=False)
        print(f"written: {args.out}", file=sys.stderr)
    if not args.json:
        print(setting.summary(facts))
        print(table.drop(columns=list(facts)).to_string(index=False))
    return EXIT_OK


def main(args: argparse.Namespace) -> int:
    """Print the host time of a call, in microseconds, and its ratio to the eager pair's."""
    device = choose_device(args.device)
    if args.first_calls is not None:
        return first_calls(args, device)
    if args.out:
        raise UsageError("--out: only --first-calls writes a table")
    print("about ten seconds; about twenty the first time, to compile two kernels ...", file=sys.stderr)
    with surroundings(device):
        rows = measure(device)
    facts = setting.facts(device)
    if args.json:
        print(json.dumps({"microseconds": rows, **facts}))
        return EXIT_OK
    print(setting.summary(facts))
    if device.type == "cpu":
        print("the operator, launched on a driver that does nothing; the whole eager pair on 4 x 4 pixels")
    print(f"{'us per call (ratio)':32}" + "".join(f"{p:>22}" for p in PASSES))
    for name, row in rows.items():
        ratios = {p: row[p] / rows["eager pair"][p] for p in PASSES}
        print(f"{name:32}" + "".join(f"{row[p]:14.1f} ({ratios[p]:4.2f}x)" for p in PASSES))
    return EXIT_OK
