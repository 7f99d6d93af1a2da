"""``python -m stn_triton info``: the environment, the tables of block sizes, and supported features."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple

import torch

from stn_triton import environment, tables, tuning
from stn_triton.options import INPUT_DTYPES
from stn_triton.terminal import EXIT_OK

# Least compute capability that Triton supports.
_CAPABILITY = (8, 0)


class TableState(NamedTuple):
    """A table of block sizes in the package, and its use on this machine."""

    path: str
    gpu: str
    """The GPU that was tuned; empty if the file cannot be read."""
    entries: int
    """Number of valid entries."""
    bad_entries: int
    is_for_these_kernels: bool
    is_used: bool
    reason: str
    """Why the table or a part of it is not used; empty if all of it is used."""


def main(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    device = environment.choose_device(args.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts, states, supported = environment.facts(device), table_states(gpu), support(device)
    if args.json:
        content = {
            "device": str(device),
            "environment": facts,
            "kernels": tables.kernels(),
            "tables": [state._asdict() for state in states],
            "calls": calls(),
            "supported": supported,
        }
        print(json.dumps(content, indent=1))
        return EXIT_OK
    _print("Environment", list(facts.items()))
    found = [("table", _sentence(state)) for state in states]
    if gpu is not None and not any(state.is_used for state in states):
        found.append(("table", f"none for {gpu}: defaults are used"))
    _print("Block sizes", [("kernels", tables.kernels()), *found, ("calls", calls())])
    _print("Supported here", list(supported.items()))
    return EXIT_OK


def table_states(gpu: str | None) -> list[TableState]:
    """All tables in the package, the one in use first."""
    states = [_state(path, gpu) for path in sorted(tuning.SHIPPED.glob("*.json"))]
    return sorted(states, key=lambda state: not state.is_used)


def _state(path: Path, gpu: str | None) -> TableState:
    try:
        table = tables.read(path)
    except tables.TableError as error:
        return TableState(str(path), "", 0, 0, False, False, f"ignored: {error}")
    good, bad = table.parsed(tuning.checked)
    is_current = table.kernels == tables.kernels()
    name = f"{tables.slug(table.device)}.json"
    if path.name != name:
        reason = f"ignored: a table of this GPU is looked for as {name}"
    elif gpu is None:
        reason = "not used: block sizes are for GPUs, and this device is none"
    elif table.device != gpu:
        reason = f"not used on {gpu}"
    else:
        reason = "" if good else "ignored: no good entries"
    is_used = not reason
    notes = [
        reason,
        f"{len(bad)} entries are not good and ignored" if bad else "",
        "tuned for older kernels: right, perhaps not the fastest" if is_used and not is_current else "",
    ]
    text = "; ".join(filter(None, notes))
    return TableState(str(path), table.device, len(good), len(bad), is_current, is_used, text)


def _sentence(state: TableState) -> str:
    of = f" of {state.gpu}: {state.entries} entries" if state.gpu else ""
    notes = [state.reason, "used" if state.is_used else ""]
    return f"{state.path}{of}, {', '.join(filter(None, notes))}"


def calls() -> str:
    """Whether calls search for block sizes, as text."""
    if tuning.asked_by_environment():
        return "search for entries that no table has, again in each process (STN_TRITON_AUTOTUNE=1)"
    return "never search unless requested (STN_TRITON_AUTOTUNE=1, stn_triton.autotune())"


def support(device: torch.device) -> dict[str, str]:
    """Support of features on a device, by name: yes or no, and why or how."""
    interpreter = environment.interpreter_problem()
    onnx = [name for name in ("onnx", "onnxscript") if util.find_spec(name) is None]
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX") or "g++", "clang++", "c++"))), None)
    dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in INPUT_DTYPES)
    if device.type == "cuda":
        code = "yes"
    else:
        code = f"yes, with {compiler}" if compiler else "backend='aot_eager' alone: no C++ compiler is found"
    return {
        "GPU kernels": _kernels(device),
        "CPU path": "yes, in plain PyTorch",
        "interpreter": f"no: {interpreter}" if interpreter else "yes",
        "dtypes": dtypes + _without_bfloat16(device),
        "torch.compile": code,
        "ONNX export": _or_missing(onnx),
        "DTensor": "yes"
        if torch.distributed.is_available()
        else "no: this torch is built without distributed",
    }


def _kernels(device: torch.device) -> str:
    if not torch.cuda.is_available():
        return "no: torch.cuda.is_available() is False"
    if util.find_spec("triton") is None:
        return "no: triton is not installed"
    if torch.version.hip is not None:
        return "should work and have not been tried: an AMD GPU"
    own = device if device.type == "cuda" else torch.device("cuda", 0)
    capability = torch.cuda.get_device_capability(own)
    if capability < _CAPABILITY:
        return f"unlikely: Triton supports capability 8.0 and newer, this is {'.'.join(map(str, capability))}"
    return "yes"


def _without_bfloat16(device: torch.device) -> str:
    if device.type != "cuda" or torch.version.hip is not None:
        return ""
    if torch.cuda.get_device_capability(device) >= _CAPABILITY:
        return ""
    return " (bfloat16: not on this GPU)"


def _or_missing(packages: list[str]) -> str:
    return f"no: {' and '.join(packages)} not installed" if packages else "yes"


def _print(title: str, facts: Sequence[tuple[str, str]]) -> None:
    width = environment.columns()
    print(title)
    for key, value in facts:
        if value:
            print(environment.wrapped(f"  {key:14} {value}", 17, width))
    print()
