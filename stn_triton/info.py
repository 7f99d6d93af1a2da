"""``python -m stn_triton info``: the environment, the tables of block sizes, and what is supported here."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import stat
from collections.abc import Sequence
from importlib import util
from pathlib import Path
from typing import NamedTuple

import torch

from stn_triton import environment, tables, tuning
from stn_triton.command_line import EXIT_OK, UsageError
from stn_triton.options import INPUT_DTYPES

# The least that Triton compiles for.
_CAPABILITY = (8, 0)
# Letters of a GPU's name; what a file says it is has any number of them.
_DEVICE = 60


class TableState(NamedTuple):
    """A table of block sizes on disk, and what becomes of it."""

    path: str
    origin: str
    """shipped, or user."""
    gpu: str
    """The GPU that was tuned; empty if the file does not tell."""
    entries: int
    """The good ones."""
    bad_entries: int
    is_for_these_kernels: bool
    is_used: bool
    reason: str
    """Why it is not used, or not all of it; empty if it is used whole."""


def main(args: argparse.Namespace) -> int:
    """Run the command and return its exit code."""
    try:
        device = environment.choose_device(args.device)
    except ValueError as error:
        raise UsageError(str(error)) from error
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts, states, supported = environment.facts(device), table_states(gpu), support(device)
    if args.json:
        content = {
            "device": str(device),
            "environment": facts,
            "kernels": tables.kernels(),
            "tables": [state._asdict() for state in states],
            "cache": cache(),
            "tuning": _tuning(gpu),
            "supported": supported,
        }
        print(json.dumps(content, indent=1))
        return EXIT_OK
    _print("Environment", list(facts.items()))
    found = [(f"{state.origin} table", _sentence(state)) for state in states]
    none = [("tables", f"none in {tuning.SHIPPED} or {tables.cache_folder()}")]
    rest = [("cache", cache()), ("first calls", _tuning(gpu))]
    _print("Block sizes", [("kernels", tables.kernels()), *(found or none), *rest])
    _print("Supported here", list(supported.items()))
    return EXIT_OK


def table_states(gpu: str | None) -> list[TableState]:
    """All tables of this GPU, or, without one, of any; shipped ones first."""
    folders = {"shipped": tuning.SHIPPED, "user": tables.cache_folder()}
    states = []
    for origin, folder in folders.items():
        for path in sorted(folder.glob("*.json")):
            states.append(_state(path, origin, gpu))
    own = [s for s in states if gpu is not None and Path(s.path).name == f"{tables.slug(gpu)}.json"]
    return own + [state for state in states if state not in own]


def _state(path: Path, origin: str, gpu: str | None) -> TableState:
    is_gpus = gpu is not None and path.name == f"{tables.slug(gpu)}.json"
    found = tables.examine(path, tuning.checked, gpu if is_gpus else None, origin == "user")
    if found is None:
        return TableState(str(path), origin, "", 0, 0, False, False, "removed just now")
    good, bad = len(found.entries), len(found.bad)
    is_current = found.kernels == tables.kernels()
    is_used = False
    old = ""
    own_name = f"{tables.slug(found.device)}.json"
    if found.reason and (is_gpus or not found.device):
        reason = f"ignored: {found.reason}"
    elif path.name != own_name:
        reason = f"ignored: a table of this GPU is looked for as {own_name}"
    elif gpu is None:
        reason = "not used: block sizes are a GPU's, and this device is none"
    elif not is_gpus:
        reason = f"not used on {gpu}"
    elif not good:
        reason = "ignored: no good entries"
    else:
        is_used, reason = True, ""
        old = "" if is_current else "tuned for older kernels: right, perhaps not the fastest"
    rest = f"{bad} entries are not good and ignored" if bad else ""
    notes = "; ".join(note for note in (reason, rest, old) if note)
    return TableState(str(path), origin, found.device, good, bad, is_current, is_used, notes)


def _sentence(state: TableState) -> str:
    of = f" of {tables.cut(state.gpu, _DEVICE)}: {state.entries} entries" if state.gpu else ""
    return f"{state.path}{of}, {state.reason or 'used'}" + (
        ", used" if state.is_used and state.reason else ""
    )


def cache() -> str:
    """The directory of the user's tables, and whether it can be used."""
    folder = tables.cache_folder()
    try:
        is_folder = stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        if folder.is_symlink():
            return f"{folder} cannot be used: a link to nothing"
        above = next((parent for parent in folder.parents if parent.is_dir()), None)
        if above is None or not os.access(above, os.W_OK | os.X_OK):
            return f"{folder} is not there and cannot be made"
        return f"{folder}, made when it is first needed"
    except OSError as error:
        return f"{folder} cannot be used: {error.strerror}"
    if not is_folder:
        return f"{folder} cannot be used: not a directory"
    modes = {"read": os.R_OK | os.X_OK, "written": os.W_OK | os.X_OK}
    missing = [what for what, mode in modes.items() if not os.access(folder, mode)]
    return f"{folder} cannot be {' or '.join(missing)}" if missing else f"{folder}, read and written"


def _tuning(gpu: str | None) -> str:
    if gpu is None:
        return "nothing is tuned on a CPU"
    if os.environ.get("STN_TRITON_AUTOTUNE", "1") == "0":
        return "take defaults where no table has an entry (STN_TRITON_AUTOTUNE=0)"
    return "are tuned where no table has an entry, and kept in the user's table"


def support(device: torch.device) -> dict[str, str]:
    """What works on a device, by name: yes or no, and why or how."""
    interpreter = [name for name in ("triton", "numpy") if util.find_spec(name) is None]
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
        "interpreter": _or_missing(interpreter),
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
            line = tables.printable(f"  {key:14} {value}")
            print(environment.wrapped(line, 17, width))
    print()
