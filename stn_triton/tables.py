"""Tables of configurations on disk: one JSON file per GPU, read with distrust and written whole.

    {"version": 1, "device": "NVIDIA H100 80GB HBM3", "kernels": "0123456789abcdef",
     "configs": {"forward/2d-bilinear-zeros/nchw/float32/c4/p32768/n512": {"BLOCK_C": 4, ...}, ...}}

``device`` is the GPU that was tuned, ``kernels`` a digest of the kernels that were timed. What an entry means
is for who parses it; here it is a name and something.

A table that is corrupt, another GPU's or, in the cache directory, for other kernels is ignored as a whole; in
any other, entries that no kernel could run are ignored, and the good ones used. A shipped table for older
kernels is used too, for its configurations are right if perhaps not the fastest, but what the user tuned for
these kernels comes before it. Each fault is told once, and so is that there is no table.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shlex
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

VERSION = 1
MAX_BYTES = 8 * 2**20
"""What is larger is no table: every bucket of the plain operator takes half a megabyte."""
Parsed = dict[Any, dict[str, int]]
Parse = Callable[[str, object], tuple[Any, dict[str, int]] | None]
"""An entry by its name and what the file has for it; None if it is not good."""
_PATIENCE = 10.0
"""Seconds to wait for whoever changes a folder; writing a table takes milliseconds."""
_log = logging.getLogger("stn_triton")
_told: set[str] = set()
_telling = threading.Lock()


class Found(NamedTuple):
    """What became of a file."""

    device: str
    """Empty if the file does not tell, as ``kernels``."""
    kernels: str
    entries: Parsed
    """The good ones."""
    bad: list[str]
    """Names of the others."""
    reason: str
    """Why no call uses it, in words that follow its path; empty if calls do."""


class TableError(ValueError):
    """A file is no table: the message says what is wrong with it, in a few words without its path."""


class Table(NamedTuple):
    """A table whose head is right and whose entries nobody has looked at."""

    device: str
    kernels: str
    configs: dict[str, object]


def slug(device: str) -> str:
    """A GPU's name as the name of a file.

    Names that differ in case, signs or beyond 100 letters alone share a file, which has the table of the one
    that wrote last: the other finds it is not its own. No two GPUs are known that do.
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")[:100] or "gpu"


def cache_folder() -> Path:
    """Where the user's tables are: STN_TRITON_CACHE_DIR, or in the user's cache directory."""
    folder = os.environ.get("STN_TRITON_CACHE_DIR")
    if not folder:
        # Not Path.home(), which raises for a user without one; what is left then must not be a folder here.
        home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        folder = os.path.join("/nonexistent" if home.startswith("~") else home, "stn_triton")
    return Path(folder)


def cache_path(device: str) -> Path:
    """The user's table for a GPU."""
    return cache_folder() / f"{slug(device)}.json"


def distrusted(path: Path) -> str:
    """Why a table in the cache directory is neither used nor written, and what to do; nothing if it is.

    It, or its directory, is of a user who is neither this one nor root, or everyone may write to it. Nobody
    looks at groups that may write, at access lists, at the directories above, nor at Windows, where modes say
    nothing.
    """
    if os.name != "posix":
        return ""
    for place, what, is_kind in ((path.parent, "its directory", stat.S_ISDIR), (path, "it", stat.S_ISREG)):
        with contextlib.suppress(OSError):
            status = place.stat()
            if not is_kind(status.st_mode):
                continue
            if status.st_uid not in (0, os.geteuid()):
                return (
                    f"{what} belongs to user {status.st_uid}, expected {os.geteuid()} or root; "
                    "set STN_TRITON_CACHE_DIR to a directory of your own"
                )
            if status.st_mode & stat.S_IWOTH:
                mode = stat.S_IMODE(status.st_mode)
                return f"everyone may write to {what}, mode {mode:04o}; chmod o-w {shlex.quote(str(place))}"
    return ""


@functools.cache
def kernels() -> str:
    """A digest of the kernels, and of how they are compiled."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for path in (*sorted((here / "kernels").glob("*.py")), here / "launch.py"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def read(path: Path, device: str | None = None) -> Table | None:
    """The table at a path, of any device or of the one named; None if there is no file.

    Raises:
        TableError: what is there is no table, or another GPU's.
    """
    try:
        content = json.loads(_content(path), object_pairs_hook=_once)
    except FileNotFoundError:
        return None
    except TableError:
        raise
    except IsADirectoryError as error:
        raise TableError("not a file") from error
    except OSError as error:
        raise TableError(f"cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TableError("not JSON") from error
    if not isinstance(content, dict):
        raise TableError(f"a JSON {type(content).__name__}, expected an object")
    if type(content.get("version")) is not int or content["version"] != VERSION:
        raise TableError(f"version {shortened(content.get('version'))}, expected {VERSION}")
    for name, kind in (("device", str), ("kernels", str), ("configs", dict)):
        if not isinstance(content.get(name), kind):
            expected = "an object" if kind is dict else "a string"
            raise TableError(f"{name!r} is {shortened(content.get(name))}, expected {expected}")
    if device is not None and content["device"] != device:
        raise TableError(f"a table of {shortened(content['device'])}, expected {device!r}")
    return Table(content["device"], content["kernels"], content["configs"])


def _content(path: Path) -> bytes:
    """Of a file, looked at once it is open: another may take its place, and it may grow.

    Raises:
        TableError: it is no file, or too large.
        OSError: it cannot be read.
    """
    # A pipe that nobody writes to would be waited for. Windows has neither.
    flags = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
    with open(path, "rb", opener=lambda path, mode: os.open(path, mode | flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise TableError("not a file")
        if status.st_size > MAX_BYTES:
            raise TableError(f"{status.st_size} bytes, expected at most {MAX_BYTES}")
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise TableError(f"it grows, expected at most {MAX_BYTES} bytes")
    return content


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object; of a name that stands there twice, readers would take one or the other."""
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            raise TableError(f"it has {shortened(name, 100)} twice")
        found[name] = value
    return found


def examine(path: Path, parse: Parse, device: str | None = None, is_own: bool = False) -> Found | None:
    """What is in the table at a path, and whether calls on a device use it; None if there is no file.

    Args:
        path: Where the table is.
        parse: Says which entries are good.
        device: The GPU that it should be of; None for any.
        is_own: Whether it is the user's, of whom no more is used than what was tuned here for these kernels.
    """
    if is_own and (reason := distrusted(path)):
        return Found("", "", {}, [], reason)
    try:
        table = read(path, device)
    except TableError as error:
        return Found("", "", {}, [], str(error))
    if table is None:
        return None
    parsed = {name: parse(name, config) for name, config in table.configs.items()}
    bad = [name for name, entry in parsed.items() if entry is None]
    good = dict(entry for entry in parsed.values() if entry is not None)
    is_old = is_own and table.kernels != kernels()
    reason = "tuned for other kernels than this version's" if is_old else ""
    return Found(table.device, table.kernels, good, bad, reason)


def load(path: Path, parse: Parse, device: str | None = None, is_own: bool = False) -> tuple[Parsed, str]:
    """What calls use of the table at a path, and the kernels it is for; tells what is wrong with it."""
    found = examine(path, parse, device, is_own)
    if found is None:
        return {}, ""
    if found.reason:
        tell_once(f"{path} is ignored: {found.reason}")
        return {}, ""
    if bad := found.bad:
        count = len(bad) + len(found.entries)
        tell_once(f"{path}: {len(bad)} of {count} entries are ignored, such as {shortened(bad[0], 100)}")
    return found.entries, found.kernels


def known(device: str, shipped_folder: Path, parse: Parse) -> Parsed:
    """What the shipped and the user's table of a GPU have; tells if it is nothing, or wrong."""
    own_path = cache_path(device)
    shipped, shipped_kernels = load(shipped_folder / own_path.name, parse, device)
    own, _ = load(own_path, parse, device, True)
    if not shipped and not own:
        tell_once(
            f"no table of block sizes for {device}: calls are tuned when they first run, or take defaults; "
            "`python -m perf tune` in a checkout makes a table"
        )
    return {**own, **shipped} if shipped_kernels == kernels() else {**shipped, **own}


def merge(path: Path, table: Table, parse: Parse) -> None:
    """Write a table, with those good entries that the file at the path has for the same GPU and kernels.

    Raises:
        OSError: the file cannot be written; what was there is still there.
    """
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    with locked(path.parent):
        try:
            old = read(path, table.device)
        except TableError:
            old = None
        kept = {}
        if old is not None and old.kernels == table.kernels:
            kept = {name: config for name, config in old.configs.items() if parse(name, config)}
        replace(path, dumps(table._replace(configs={**kept, **table.configs})))


def dumps(table: Table) -> str:
    """The text of a table, an entry a line."""
    head = {"version": VERSION, "device": table.device, "kernels": table.kernels}
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
    entries = [f"  {json.dumps(name)}: {json.dumps(c)}" for name, c in sorted(table.configs.items())]
    body = "\n" + ",\n".join(entries) + "\n " if entries else ""
    return "{\n" + ",\n".join([*lines, f' "configs": {{{body}}}']) + "\n}\n"


def replace(path: Path, text: str) -> None:
    """Write a file whole beside its place and rename it, so that nobody ever reads half of it.

    Raises:
        OSError: it cannot be written; what was there is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        # Not through a link that someone put there.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        temporary.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes that change files of a folder out; where that cannot be, the last one wins.

    Nor where another holds on to the folder, stopped or of ill will: it is waited for a while only.
    """
    descriptor = None
    try:
        with contextlib.suppress(OSError, ImportError):
            import fcntl  # Windows has none

            descriptor = os.open(folder, os.O_RDONLY)
            end = time.monotonic() + _PATIENCE
            while time.monotonic() < end:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                time.sleep(0.01)
        yield
    finally:
        if descriptor is not None:
            # Not only closed: a process that was forked meanwhile has a copy, which would keep the lock.
            with contextlib.suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _after_fork() -> None:
    """The child has no thread that would ever release the lock it inherited."""
    global _telling
    _telling = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def tell_once(message: str) -> None:
    """Warn through the logger ``stn_triton``, once per process; Python prints that to stderr by itself."""
    with _telling:
        if message in _told:
            return
        _told.add(message)
    _log.warning("stn_triton: %s", printable(message))


def printable(text: str) -> str:
    """Text of others for a terminal: what would steer it, or change the order of letters, as an escape."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def shortened(value: object, limit: int = 60) -> str:
    """Something read from a file, in one short line."""
    text = f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)
    return cut(text, limit)


def cut(text: str, limit: int) -> str:
    """Text of at most so many letters."""
    return text if len(text) <= limit else text[: limit - 3] + "..."
