"""The script that mutates kernels: mutants of a small kernel, and results where tests are missing."""

import ast
import csv
import json
import subprocess
import sys
from pathlib import Path

import mutants
import mutate
import pytest
import trials

SCRIPT = Path(mutate.__file__)
KERNEL = '''"""Small."""

import triton
import triton.language as tl

LAST = tl.constexpr(3)


@triton.jit
def tail_kernel(out_ptr, x_ptr, BLOCK: tl.constexpr):
    """x - 1, where nothing comes after `LAST`."""
    i = tl.arange(0, BLOCK)
    mask = i <= LAST
    tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) - 1, mask=mask)
'''
CHANGES = [
    ("constant", "LAST = tl.constexpr(3)", "LAST = tl.constexpr(4)"),
    ("constant", "LAST = tl.constexpr(3)", "LAST = tl.constexpr(2)"),
    ("constant", "i = tl.arange(0, BLOCK)", "i = tl.arange(1, BLOCK)"),
    ("comparison", "mask = i <= LAST", "mask = i < LAST"),
    ("statement", None, "pass"),
    ("mask", None, "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) - 1)"),
    ("sign", None, "tl.store(out_ptr - i, tl.load(x_ptr + i, mask=mask, other=0) - 1, mask=mask)"),
    ("sign", None, "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) + 1, mask=mask)"),
    ("mask", None, "tl.store(out_ptr + i, tl.load(x_ptr + i) - 1, mask=mask)"),
    ("sign", None, "tl.store(out_ptr + i, tl.load(x_ptr - i, mask=mask, other=0) - 1, mask=mask)"),
    ("constant", None, "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=1) - 1, mask=mask)"),
    ("constant", None, "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) - 2, mask=mask)"),
    ("constant", None, "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) - 0, mask=mask)"),
]
STORE = "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=0) - 1, mask=mask)"
UNTESTED = '''

@triton.jit
def untested_kernel(out_ptr):
    """Nobody runs it."""
    tl.store(out_ptr, 1.5)
'''
TESTS = """
import pytest, stn_triton.kernels, torch
stn_triton.kernels.__path__.append({folder!r})
from stn_triton.kernels import tail


def test_tail():
    x, out = torch.arange(8.0), torch.zeros(9)
    tail.tail_kernel[(1,)](out[:8], x, BLOCK=8)
    assert out.tolist() == [-1, 0, 1, 2, 0, 0, 0, 0, 0]
"""
MORE_TESTS = """

@pytest.mark.full
def test_untested():
    out = torch.zeros(1)
    tail.untested_kernel[(1,)](out)
    assert out == 1.5
"""


@pytest.fixture(scope="module")
def every():
    return mutants.of_files(sorted(trials.KERNELS.glob("*.py")))


def write(folder, text, name="tail.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def made(path):
    return [(m.kind, m.before, m.after) for m in mutants.of_files([path])]


class TestMutants:
    def test_of_a_small_kernel(self, tmp_path):
        expected = [(kind, before or STORE, after) for kind, before, after in CHANGES]
        assert sorted(made(write(tmp_path, KERNEL))) == sorted(expected)

    @pytest.mark.parametrize(
        ("statement", "after"),
        [
            ("z = x & y | ~x", ["z = x & y | x", "z = x & y", "z = ~x", "z = x | ~x", "z = y | ~x"]),
            ("z = tl.where(x, y, 0)", ["z = y", "z = 0", "z = tl.where(x, 0, y)", "z = tl.where(y, y, 0)"]),
            ("z = x[0] * abs(-y)", ["z = x[1] * abs(-y)", "z = x[0]", "z = abs(-y)", "z = x[0] * -y"]),
            (
                "z = tl.minimum(x // 2, tl.floor(y))",
                ["z = tl.maximum(x // 2, tl.floor(y))", "z = tl.minimum(x, tl.floor(y))"],
            ),
            ("z = tl.fma(x, y, z)", ["z = tl.fma(x, y, -z)", "z = tl.fma(y, y, z)"]),
            (
                "if x and not y:\n        z = 1",
                ["if not (x and (not y)):", "if True and (not y):", "if x and y:"],
            ),
            ("for z in tl.static_range(x):\n        pass", ["for z in tl.static_range(x - 1):"]),
            ("z = x.to(tl.int64)", ["z = x.to(tl.int32)", "z = y.to(tl.int64)"]),
            ("z += x", ["z -= x", "pass", "z += y"]),
        ],
    )
    def test_of_each_kind(self, tmp_path, statement, after):
        found = {text for _, _, text in made(write(tmp_path, f"def kernel(x, y, z):\n    {statement}\n"))}
        assert set(after) <= found

    def test_what_computes_nothing_is_left_alone(self, tmp_path):
        body = ('"""1 + 1"""', "tl.static_assert(x > 0)", "z = ()", "z = z + (x,)")
        text = "\n    ".join(("def kernel(x: tl.constexpr = 1):", *body))
        assert made(write(tmp_path, text)) == []

    def test_mutants_of_equal_lines_are_two(self, tmp_path):
        path = write(tmp_path, "def kernel(x, y):\n    x = x + 1\n    x = x + 1\n")
        found = [m for m in mutants.of_files([path]) if m.after == "x = x - 1"]
        assert [m.line for m in found] == [2, 3]
        assert mutants.mutated(path, found[1]).endswith("    x = x + 1\n    x = x - 1")

    def test_every_mutant_of_the_real_kernels_is_python_and_differs(self, every):
        paths = sorted(trials.KERNELS.glob("*.py"))
        assert len(every) > 3000
        assert {m.file for m in every} | {"__init__.py"} == {path.name for path in paths}
        assert {m.kind for m in every} == set(mutants.KINDS)
        files = {path.name: path for path in paths}
        for mutant in every[::397]:
            text = mutants.mutated(files[mutant.file], mutant)
            assert text != ast.unparse(ast.parse(files[mutant.file].read_text()))

    def test_a_sample_is_the_same_every_time_and_has_every_file_and_kind(self, every):
        one, other = mutants.sample(every, 300), mutants.sample(every[::-1], 300)
        assert set(one) == set(other) != set(mutants.sample(every, 300, seed=1))
        assert 300 <= len(one) <= 300 + 12 * len(mutants.KINDS)
        assert {(m.file, m.kind) for m in one} == {(m.file, m.kind) for m in every}


class TestEquivalents:
    def test_those_that_are_listed_match(self, every):
        mutate.equivalents(mutate.EQUIVALENTS, every)

    def test_one_that_matches_nothing_is_an_error(self, tmp_path, capsys):
        listed = tmp_path / "equivalents.json"
        listed.write_text(json.dumps([{"reason": "none", "mutants": [["taps.py", "gone", "a", "b"]]}]))
        assert mutate.main(["--list", "--equivalents", str(listed)]) == 1
        assert "taps.py | gone | a | b" in capsys.readouterr().err


def run(tmp_path, *options):
    arguments = ("--all", "--kernels", tmp_path / "kernels", "--out", tmp_path / "out", *options)
    tests = ("--tests", tmp_path / "test_tail.py", "--equivalents", tmp_path / "equivalents.json")
    command = [*map(str, (sys.executable, SCRIPT, *arguments, *tests))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    results = tmp_path / "out" / "mutants.csv"
    return done, [*csv.DictReader(results.open())] if results.exists() else None


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two kernels, one with an ordinary test and one with a test marked ``full``."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    write(tmp_path / "kernels", KERNEL + UNTESTED)
    write(tmp_path, TESTS.format(folder=str(tmp_path / "kernels")) + MORE_TESTS, "test_tail.py")
    (tmp_path / "equivalents.json").write_text("[]")
    return tmp_path


class TestRuns:
    def test_mutants_that_no_test_finds_survive_unless_they_are_listed(self, folder):
        unmasked = STORE.replace(", mask=mask, other=0", "")
        other = "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=1) - 1, mask=mask)"
        untested = {"tl.store(out_ptr, 3.0)", "pass"}
        done, rows = run(folder, "--ordinary")
        assert done.returncode == 1, done.stderr
        survived = {(row["function"], row["after"]) for row in rows if row["status"] == "survived"}
        assert survived == {
            ("tail_kernel", unmasked),
            ("tail_kernel", other),
            *(("untested_kernel", after) for after in untested),
        }
        assert {row["by"] for row in rows if row["status"] == "killed"} == {"test_tail.py::test_tail"}

        entries = [["tail.py", "tail_kernel", STORE, after] for after in (unmasked, other)]
        listed = [{"reason": "what is masked is not stored", "mutants": entries}]
        (folder / "equivalents.json").write_text(json.dumps(listed))
        done, rows = run(folder)
        assert done.returncode == 0, done.stderr
        by = {row["after"]: (row["by"], row["tier"]) for row in rows if row["function"] == "untested_kernel"}
        assert by == dict.fromkeys(untested, ("test_tail.py::test_untested", "full"))
        assert [row["how"] for row in rows if row["status"] == "equivalent"] == [listed[0]["reason"]] * 2

    def test_a_test_that_fails_without_a_mutant_is_named(self, folder):
        tests = folder / "test_tail.py"
        tests.write_text(tests.read_text().replace("[-1,", "[1,"))
        done, _ = run(folder)
        assert done.returncode != 0
        assert "test_tail.py::test_tail fails on the kernels as they are" in done.stderr
