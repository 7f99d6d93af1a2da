"""Files from elsewhere: nothing in them runs, and none leads to a file outside of where results belong.

Corrupt tables and entries are in test_tuning.py (`CORRUPT`, `BAD_ENTRIES`, links, pipes, devices, enormous
files), HTML out of a result file's strings in test_report.py (`TestHostileStrings`), a state of `tune` in
test_tune_state.py.
"""

import ast
import contextlib
import gzip
import json
import os
import pickle
import resource
import struct
import time
import types
from pathlib import Path

import pytest
import torch
from test_tuning import BUCKET, CONFIG, FOUR, GPU, NAME, OTHER, gpu, head, messages, write  # noqa: F401, a fixture

from stn_triton import tables, tuning

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("stn_triton", "perf") for path in (ROOT / folder).rglob("*.py"))
# What makes code or objects out of data.
UNSAFE_MODULES = {"marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml", "code", "runpy"}
UNSAFE_NAMES = {"eval", "exec", "compile", "__import__"}
UNSAFE_ATTRIBUTES = {
    "read_pickle",
    "to_pickle",
    "read_hdf",
    "system",
    "popen",
    "unpack_archive",
    "extractall",
}


def offences(source):
    """What a file does that would let data run, as (line, what)."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = (
                [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            )
            for module in modules:
                name = module.split(".")[0]
                if name in UNSAFE_MODULES or (name == "pickle" and isinstance(node, ast.ImportFrom)):
                    yield node.lineno, f"import of {module}"
        elif isinstance(node, ast.Attribute):
            base = node.value.id if isinstance(node.value, ast.Name) else ""
            if (base == "pickle" and node.attr != "UnpicklingError") or node.attr in UNSAFE_ATTRIBUTES:
                yield node.lineno, f"{base}.{node.attr}"
            if (base, node.attr) in (("torch", "load"), ("np", "load"), ("numpy", "load")):
                yield node.lineno, f"{base}.load"
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in UNSAFE_NAMES:
                yield node.lineno, node.func.id
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if keyword.arg in ("shell", "allow_pickle") and value is not False:
                    yield node.lineno, f"{keyword.arg}={value}"


def is_safe_load(source, line):
    """Whether the call in a line is ``torch.load(..., weights_only=True)``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.lineno == line and ast.unparse(node.func) == "torch.load":
            return any(
                k.arg == "weights_only" and getattr(k.value, "value", 0) is True for k in node.keywords
            )
    return False


class TestSources:
    def test_nothing_is_unpickled_or_executed(self):
        """`triton.compile` of kernels is not the builtin; its wrapper is called `compile` in perf/kernels."""
        found, loads = [], 0
        for path in SOURCES:
            source = path.read_text()
            for line, what in offences(source):
                if what == "torch.load" and is_safe_load(source, line):
                    loads += 1
                elif (path.name, what) != ("compiled.py", "compile"):
                    found.append(f"{path.relative_to(ROOT)}:{line}: {what}")
        assert not found
        assert len(SOURCES) > 80
        assert loads == 1  # of the digits' networks

    @pytest.mark.parametrize(
        "line",
        [
            "import pickle; pickle.loads(x)",
            "from pickle import loads",
            "import torch; torch.load(x)",
            "import numpy as np; np.load(x, allow_pickle=True)",
            "import yaml",
            "eval(x)",
            "exec(open(x).read())",
            "import os; os.system(x)",
            "import subprocess; subprocess.run(x, shell=True)",
            "import pandas as pd; pd.read_pickle(x)",
        ],
    )
    def test_it_would_be_seen(self, line):
        assert list(offences(line))

    def test_a_load_of_everything_would_be_seen(self):
        assert is_safe_load("torch.load(x, weights_only=True)", 1)
        assert not is_safe_load("torch.load(x, weights_only=False)", 1)
        assert not is_safe_load("torch.load(x)", 1)


class Planted:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestPickles:
    def test_one_in_place_of_a_network_does_not_run(self, tmp_path):
        pytest.importorskip("sklearn")
        pytest.importorskip("matplotlib")
        from stn_triton.examples.digits import UsageError, data, training

        trace = tmp_path / "trace"
        task = training.Task("R", "cnn", 1)
        state = training.State(tmp_path, task, training.Settings(), data.load())
        for write_to in (
            lambda path: path.write_bytes(pickle.dumps(Planted(trace))),
            lambda path: torch.save({"facts": Planted(trace)}, path),
        ):
            write_to(state.path)
            with pytest.raises(UsageError, match=r"R-cnn-seed1\.pt is damaged \(UnpicklingError\)"):
                state.load()
        assert not trace.exists()
        pickle.loads(pickle.dumps(Planted(trace)))  # it would have
        assert trace.exists()

    def test_one_in_place_of_a_table_does_not_run(self, gpu, tmp_path, monkeypatch, caplog):  # noqa: F811
        trace = tmp_path / "trace"
        gpu.parent.mkdir()
        gpu.write_bytes(pickle.dumps(Planted(trace)))
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        assert tuning.configuration(BUCKET, GPU, None) == CONFIG
        assert messages(caplog)[0] == f"stn_triton: {gpu} is ignored: not JSON"
        assert not trace.exists()

    def test_one_in_place_of_results_does_not_run(self, tmp_path, capsys):
        pytest.importorskip("pandas")
        from perf.__main__ import main

        trace = tmp_path / "trace"
        (tmp_path / "speed.csv").write_bytes(pickle.dumps(Planted(trace)))
        for command in ("plot", "report"):
            with pytest.raises(SystemExit) as stop:
                main([command, str(tmp_path), "--out", str(tmp_path / "out")])
            assert stop.value.code == 2
        assert "speed.csv" in capsys.readouterr().err
        assert not trace.exists()


NAMES = (
    "../../x",
    "/etc/x",
    "a\0b",
    "..",
    "",
    "x" * 5000,
    "C:\\x",
    "con",
    "\n",
    "\uff38/../\uff59",
    "~root",
    "$(id)",
)


class TestTables:
    @pytest.mark.parametrize("name", NAMES, ids=repr)
    def test_a_gpu_s_name_leads_nowhere(self, gpu, monkeypatch, name):  # noqa: F811
        """Its table is a file in the cache directory, whatever it is called."""
        path = tables.cache_path(name)
        assert path.parent == gpu.parent
        assert len(path.name) < 200
        assert set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")
        assert not path.name.startswith(".")
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        before = set(gpu.parents[1].rglob("*"))
        tuning.configuration(BUCKET, GPU, None)
        assert set(gpu.parents[1].rglob("*")) - before == {gpu.parent, path}
        assert tables.read(path).device == name

    @pytest.mark.parametrize("place", ["configs", "config", "head"])
    def test_a_name_that_stands_there_twice(self, gpu, monkeypatch, caplog, place):  # noqa: F811
        """Which of the two is meant, whoever looked at the file may have thought otherwise."""
        text = json.dumps(head())
        was, name = {
            "configs": (f'"{BUCKET.name()}": ', BUCKET.name()),
            "config": ('"BLOCK_C": 4', "BLOCK_C"),
            "head": ('"version": 1', "version"),
        }[place]
        twice = f"{was}{json.dumps(CONFIG)}, {was}" if place == "configs" else f"{was}, {was}"
        assert was in text
        gpu.parent.mkdir()
        gpu.write_text(text.replace(was, twice, 1))
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
        assert tuning.configuration(BUCKET, GPU, None) == FOUR
        assert messages(caplog)[0] == f"stn_triton: {gpu} is ignored: it has {name!r} twice"

    def test_of_a_great_many_names_one_stands_there_twice(self, tmp_path):
        """The last of 400,000; to compare each with each would take hours, while every thread waits."""
        names = [f"{i:x}" for i in range(400_000)]
        path = tmp_path / "table.json"
        path.write_text("{" + ",".join(f'"{name}":1' for name in (*names, names[-1])) + "}")
        assert path.stat().st_size < tables.MAX_BYTES
        began = time.monotonic()
        with pytest.raises(tables.TableError, match=r"^it has '61a7f' twice$"):
            tables.read(path)
        assert time.monotonic() - began < 30

    @pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400", "true", "4.0", "null", "{}"])
    def test_numbers_that_are_none_are_told_with_their_bucket(self, gpu, monkeypatch, caplog, number):  # noqa: F811
        text = json.dumps(head()).replace('"BLOCK_C": 4', f'"BLOCK_C": {number}')
        gpu.parent.mkdir()
        gpu.write_text(text)
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
        assert tuning.configuration(BUCKET, GPU, None) == FOUR
        told = messages(caplog)[0]
        assert told == f"stn_triton: {gpu}: 1 of 1 entries are ignored, such as {BUCKET.name()!r}"

    @pytest.mark.parametrize("what", ["directory", "file"])
    def test_what_everyone_may_write_is_neither_used_nor_written(self, gpu, monkeypatch, caplog, what):  # noqa: F811
        write(gpu, {BUCKET.name(): CONFIG})
        place, mode = {"directory": (gpu.parent, 0o1777), "file": (gpu, 0o666)}[what]
        place.chmod(mode)
        before = gpu.read_bytes()
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
        for bucket in (BUCKET, OTHER):
            assert tuning.configuration(bucket, GPU, None) == FOUR
        told = [text for text in messages(caplog) if "ignored" in text]
        subject = "its directory" if what == "directory" else "it"
        assert told == [
            f"stn_triton: {gpu} is ignored: everyone may write to {subject}, mode {mode:04o}; "
            f"chmod o-w {place}"
        ]
        assert gpu.read_bytes() == before
        assert list(gpu.parent.iterdir()) == [gpu]

    @pytest.mark.parametrize("what", ["directory", "file"])
    def test_what_another_user_owns_is_neither_used_nor_written(self, gpu, monkeypatch, caplog, what):  # noqa: F811
        """Whatever its mode is: the owner may change that."""
        write(gpu, {BUCKET.name(): CONFIG})
        place = {"directory": gpu.parent, "file": gpu}[what]
        mine = place.stat().st_uid
        real = Path.stat

        def stat(path, **options):
            status = real(path, **options)
            return os.stat_result((*status[:4], 54321, *status[5:])) if path == place else status

        monkeypatch.setattr(Path, "stat", stat)
        before = gpu.read_bytes()
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (FOUR, True))
        assert tuning.configuration(BUCKET, GPU, None) == FOUR
        subject = "its directory" if what == "directory" else "it"
        assert messages(caplog)[0] == (
            f"stn_triton: {gpu} is ignored: {subject} belongs to user 54321, expected {mine} or root; "
            "set STN_TRITON_CACHE_DIR to a directory of your own"
        )
        assert gpu.read_bytes() == before
        monkeypatch.setattr(os, "geteuid", lambda: 54321)
        other = {"directory": gpu, "file": gpu.parent}[what]
        is_root_s = real(other).st_uid == 0
        assert bool(tables.distrusted(gpu)) != is_root_s

    def test_where_modes_and_owners_say_nothing_tables_are_used(self, gpu, monkeypatch):  # noqa: F811
        """Windows reports every file as one that everyone may write, and no owner."""
        write(gpu, {BUCKET.name(): CONFIG})
        gpu.chmod(0o666), gpu.parent.chmod(0o777)
        assert tables.distrusted(gpu)
        monkeypatch.setattr(tables, "os", types.SimpleNamespace(name="nt"))
        assert not tables.distrusted(gpu)

    def test_what_is_made_is_not_open_to_everyone(self, gpu, monkeypatch):  # noqa: F811
        """Whatever the umask lets."""
        monkeypatch.setattr(tuning, "tune", lambda bucket, run: (CONFIG, True))
        before = os.umask(0)
        try:
            tuning.configuration(BUCKET, GPU, None)
        finally:
            os.umask(before)
        assert not tables.distrusted(gpu)
        assert gpu.stat().st_mode & 0o777 == 0o644
        assert gpu.parent.stat().st_mode & 0o777 == 0o755

    def test_a_write_follows_no_link(self, gpu, tmp_path, monkeypatch):  # noqa: F811
        """Neither one in place of the table nor one in place of what is renamed to it."""
        victim = tmp_path / "victim"
        victim.write_text("precious")
        gpu.parent.mkdir()
        gpu.symlink_to(victim)
        monkeypatch.setattr(tables.secrets, "token_hex", lambda n: "guessed")
        planted = gpu.with_name(f".{gpu.name}.guessed.tmp")
        planted.symlink_to(victim)
        with pytest.raises(FileExistsError):
            tables.replace(gpu, "{}")
        assert victim.read_text() == "precious"
        planted.unlink(missing_ok=True)
        tuning.write_table(gpu, NAME, {BUCKET: CONFIG})
        assert victim.read_text() == "precious"
        assert not gpu.is_symlink()


class TestResults:
    """CSV files from elsewhere, through the commands that read them."""

    HOSTILE = (
        "../../evil",
        "/etc/evil",
        "=cmd|'/c calc'!A1",
        "..",
        "a/b",
        "con\0",
        "x" * 3000,
        "<script>x</script>",
    )

    @pytest.mark.parametrize("command", ["plot", "report", "compare"])
    def test_names_in_a_file_lead_nowhere(self, tmp_path, command, capsys):
        pytest.importorskip("pandas")
        pytest.importorskip("matplotlib")
        import tables as made

        from perf.__main__ import main

        work = tmp_path / "a" / "b" / "c"
        work.mkdir(parents=True)
        table = made.small()
        for i, text in enumerate(self.HOSTILE):
            for column in ("workload", "map", "provider", "dtype", "layout", "shape"):
                if i < len(table) - 2:
                    table.loc[i, column] = text.replace("\0", "")
        for column, text in (
            ("device", "../../../evil"),
            ("commit", "/../x"),
            ("date", "../.."),
            ("torch", ".."),
        ):
            table[column] = text
        table.to_csv(work / "in.csv", index=False)
        before = {path for path in tmp_path.rglob("*") if path.is_file()}
        arguments = [str(work / "in.csv")] if command == "compare" else ["--out", str(work / "out")]
        with contextlib.suppress(SystemExit):
            main([command, str(work / "in.csv"), *arguments])
        capsys.readouterr()
        written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
        assert all(path.parent == work / "out" for path in written)
        assert bool(written) == (command != "compare")
        for path in written:
            assert path.suffix in (".png", ".svg", ".html")  # no table for a spreadsheet to compute
            assert "<script>x" not in path.read_text(errors="replace") or path.suffix == ".png"


class TestDigits:
    """MNIST's files, which come from the network."""

    @pytest.fixture
    def read(self):
        pytest.importorskip("sklearn")
        pytest.importorskip("matplotlib")
        from stn_triton.examples.digits import UsageError, data

        def read(path, match):
            with pytest.raises(UsageError, match=match):
                data.read_idx(path, 3)

        return read

    @pytest.mark.parametrize("suffix", ["", ".gz"])
    @pytest.mark.parametrize(
        "shape", [(2**32 - 1,) * 3, (2**30 + 1, 1, 1), (2**16, 2**16, 2**31), (60_000, 2**15, 2**15)], ids=str
    )
    def test_a_head_that_promises_too_much_is_refused_unread(self, tmp_path, read, shape, suffix):
        path = tmp_path / f"images{suffix}"
        content = struct.pack(">I3I", 0x803, *shape) + b"\0" * 100
        path.write_bytes(gzip.compress(content) if suffix else content)
        read(path, rf"images.* is damaged or too large: \({shape[0]}, .*expected at most 1073741824 bytes")

    def test_of_a_bomb_no_more_is_unpacked_than_its_head_promises(self, tmp_path, read):
        """A gigabyte of zeros in a megabyte; a process of so little memory could not take it."""
        path = tmp_path / "images.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(struct.pack(">I3I", 0x803, 10, 28, 28))
            for _ in range(64):
                file.write(b"\0" * 2**22)
        assert path.stat().st_size < 2**21
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read(path, r"is damaged: \(10, 28, 28\) takes 7856 bytes, got more")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2**16  # KiB
