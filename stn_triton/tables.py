"""Tables of configurations on disk: one JSON file per GPU.

    {"version": 1, "device": "NVIDIA H100 80GB HBM3", "kernels": "0123456789abcdef",
     "configs": {"forward/2d-bilinear-zeros/nchw/float32/c4/p32768/n512": {"BLOCK_C": 4, ...}, ...}}

``device`` is the GPU that was tuned, ``kernels`` a digest of the kernels that were timed. A table for older
kernels is still used: its configurations give right results, but are perhaps not the fastest. This module
does not interpret the entries.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
Parse = Callable[[str, object], tuple[Any, dict[str, int]] | None]
"""Converts the name and the JSON value of an entry; returns None if no kernel could run it."""
_log = logging.getLogger("stn_triton")


class TableError(ValueError):
    """A file is no table. The message says what is wrong in a few words, without the path."""


class Table(NamedTuple):
    """The content of a file, with entries that are not parsed yet."""

    device: str
    kernels: str
    configs: dict[str, object]

    def parsed(self, parse: Parse) -> tuple[dict[Any, dict[str, int]], list[str]]:
        """The valid entries, and the names of the others."""
        entries = {name: parse(name, config) for name, config in self.configs.items()}
        good = dict(entry for entry in entries.values() if entry is not None)
        return good, [name for name, entry in entries.items() if entry is None]


def slug(device: str) -> str:
    """The file name for a GPU. No two known GPUs share one."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:100] or "gpu"


@functools.cache
def kernels() -> str:
    """A digest of the source of the kernels, and of the modules that choose how they are compiled."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted((here / "kernels").glob("*.py")), here / "kernel_launch.py", here / "policy.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path, device: str | None = None) -> Table | None:
    """Read the table of a device, or of any device, from a file; None if there is no file.

    Raises:
        TableError: the file is no table, or the table of another GPU.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TableError("not JSON") from error
    if not isinstance(content, dict):
        raise TableError(f"a JSON {type(content).__name__}, expected an object")
    if content.get("version") != VERSION:
        raise TableError(f"version {_shortened(content.get('version'))}, expected {VERSION}")
    for name, kind in (("device", str), ("kernels", str), ("configs", dict)):
        if not isinstance(content.get(name), kind):
            expected = "an object" if kind is dict else "a string"
            raise TableError(f"{name!r} is {_shortened(content.get(name))}, expected {expected}")
    if device is not None and content["device"] != device:
        raise TableError(f"a table of {_shortened(content['device'])}, expected {device!r}")
    return Table(content["device"], content["kernels"], content["configs"])


def load(path: Path, parse: Parse, device: str | None = None) -> dict[Any, dict[str, int]]:
    """Read the valid entries of a table, none if there is no file. Logs a warning if anything is invalid."""
    try:
        table = read(path, device)
    except TableError as error:
        _log.warning("stn_triton: %s is ignored: %s", path, error)
        return {}
    if table is None:
        return {}
    good, bad = table.parsed(parse)
    if bad:
        text = "stn_triton: %s: %d of %d entries are ignored, such as %s"
        _log.warning(text, path, len(bad), len(table.configs), _shortened(bad[0]))
    return good


def write(path: Path, table: Table) -> None:
    """Write a table, and replace an existing file as a whole, because a process may be ended as it writes.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(dumps(table), encoding="utf-8")
    partial.replace(path)


def dumps(table: Table) -> str:
    """The text of a table, with one entry per line."""
    head = {"version": VERSION, "device": table.device, "kernels": table.kernels}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    entries = [f"  {json.dumps(name)}: {json.dumps(c)}" for name, c in sorted(table.configs.items())]
    body = "\n" + ",\n".join(entries) + "\n " if entries else ""
    return "{\n" + ",\n".join([*lines, f' "configs": {{{body}}}']) + "\n}\n"


def _shortened(value: object) -> str:
    """A value read from a file, as one short line."""
    text = f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)
    return text if len(text) <= 100 else text[:97] + "..."
