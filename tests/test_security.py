"""Untrusted files: nothing in them is executed, and they cause no writes outside the folder of results.

Entries of a table that no kernel could run are in test_tuning.py (`BAD_ENTRIES`), HTML out of a result file's
strings in test_charts.py, a state of `tune` in test_tune.py.
"""

import ast
import contextlib
import gzip
import os
import pickle
import resource
import struct
from pathlib import Path

import pytest
import torch

from stn_triton import tables

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("stn_triton", "perf") for path in (ROOT / folder).rglob("*.py"))
# Modules, functions and attributes that make code or objects out of data.
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
    """Yield (line, description) of each use of a function that may execute data."""
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
        assert loads == 1  # for networks of the digits example

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
    """An object that makes a folder when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


class TestPickles:
    def test_one_in_place_of_a_network_does_not_run(self, tmp_path):
        pytest.importorskip("sklearn")
        pytest.importorskip("matplotlib")
        from stn_triton.examples.digits import data, training
        from stn_triton.terminal import UsageError

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
        pickle.loads(pickle.dumps(Planted(trace)))  # unpickling makes the folder
        assert trace.exists()

    def test_one_in_place_of_a_table_does_not_run(self, tmp_path):
        trace, path = tmp_path / "trace", tmp_path / "table.json"
        path.write_bytes(pickle.dumps(Planted(trace)))
        with pytest.raises(tables.TableError, match=r"^not JSON$"):
            tables.read(path)
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


class TestResults:
    """Untrusted CSV files, read by the commands that take them."""

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
    @pytest.mark.sample(1)
    def test_names_in_a_file_lead_nowhere(self, tmp_path, command, capsys):
        pytest.importorskip("pandas")
        pytest.importorskip("matplotlib")
        import made_up as made

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
            assert path.suffix in (".png", ".svg", ".html")  # no CSV, whose formulas a spreadsheet would run
            assert "<script>x" not in path.read_text(errors="replace") or path.suffix == ".png"


class TestDigits:
    """Files of MNIST, which users download."""

    @pytest.fixture
    def read(self):
        pytest.importorskip("sklearn")
        pytest.importorskip("matplotlib")
        from stn_triton.examples.digits import data
        from stn_triton.terminal import UsageError

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
        """Compress a gigabyte of zeros into a megabyte; memory must not grow by much."""
        path = tmp_path / "images.gz"
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(struct.pack(">I3I", 0x803, 10, 28, 28))
            for _ in range(64):
                file.write(b"\0" * 2**22)
        assert path.stat().st_size < 2**21
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read(path, r"is damaged: \(10, 28, 28\) takes 7856 bytes, got more")
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < 2**16  # KiB
