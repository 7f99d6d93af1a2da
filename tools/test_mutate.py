"""The script that mutates kernels: what it makes of a small one, and what it says where tests are missing."""

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
import stn_triton.kernels, torch
stn_triton.kernels.__path__.append({folder!r})
from stn_triton.kernels import tail


def test_tail():
    x, out = torch.arange(8.0), torch.zeros(9)
    tail.tail_kernel[(1,)](out[:8], x, BLOCK=8)
    assert out.tolist() == [-1, 0, 1, 2, 0, 0, 0, 0, 0]
"""
MORE_TESTS = """
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

    def test_those_that_look_the_same_are_told_apart(self, tmp_path):
        path = write(tmp_path, "def kernel(x, y):\n    x = x + 1\n    x = x + 1\n")
        found = [m for m in mutants.of_files([path]) if m.after == "x = x - 1"]
        assert [m.line for m in found] == [2, 3]
        assert len({m.name() for m in found}) == 2

    def test_every_mutant_of_the_real_kernels_is_python_and_differs(self, every):
        paths = sorted(trials.KERNELS.glob("*.py"))
        assert len(every) > 3000
        assert {m.file for m in every} | {"__init__.py"} == {path.name for path in paths}
        assert {m.kind for m in every} == set(mutants.KINDS)
        sources = {path.name: path.read_text() for path in paths}
        for mutant in every[::97]:
            compile(mutant.applied(sources[mutant.file]), mutant.file, "exec")
            assert mutant.before != mutant.after

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
    arguments = ("--all", "--kernels", tmp_path / "kernels", "--out", tmp_path / "out", "--json")
    tests = ("--tests", tmp_path / "test_tail.py", "--equivalents", tmp_path / "equivalents.json")
    command = [sys.executable, SCRIPT, *arguments, *options, *tests]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=300)
    return done, json.loads(done.stdout) if done.stdout else None


class TestRuns:
    def test_a_mutant_that_no_test_finds_is_told_until_a_test_finds_it(self, tmp_path, monkeypatch):
        """Or until it is listed, with its reason."""
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        write(tmp_path / "kernels", KERNEL + UNTESTED)
        tests = write(tmp_path, TESTS.format(folder=str(tmp_path / "kernels")), "test_tail.py")
        done, rows = run(tmp_path)
        assert done.returncode == 1, done.stderr
        survived = {(row["function"], row["after"]) for row in rows if row["status"] == "survived"}
        unmasked = ("tail_kernel", STORE.replace(", mask=mask, other=0", ""))
        other = (
            "tail_kernel",
            "tl.store(out_ptr + i, tl.load(x_ptr + i, mask=mask, other=1) - 1, mask=mask)",
        )
        untested = {("untested_kernel", "tl.store(out_ptr, 3.0)"), ("untested_kernel", "pass")}
        assert survived == {unmasked, other} | untested
        assert {row["by"] for row in rows if row["status"] == "killed"} == {"test_tail.py::test_tail"}
        with (tmp_path / "out" / "mutants.csv").open() as file:
            assert [row["after"] for row in csv.DictReader(file)] == [row["after"] for row in rows]

        # What was killed is not run again: the test that did is gone.
        write(tmp_path, tests.read_text().split("def ")[0] + MORE_TESTS, "test_tail.py")
        entries = [["tail.py", function, STORE, after] for function, after in (unmasked, other)]
        listed = [{"reason": "what is masked is not stored", "mutants": entries}]
        (tmp_path / "equivalents.json").write_text(json.dumps(listed))
        done, rows = run(tmp_path)
        assert done.returncode == 0, done.stderr
        by = {(row["function"], row["after"]): (row["status"], row["by"]) for row in rows}
        assert by[unmasked] == ("equivalent", "what is masked is not stored")
        assert {by[key] for key in untested} == {("killed", "test_tail.py::test_untested")}

    def test_a_test_that_fails_without_a_mutant_is_named(self, tmp_path, monkeypatch):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        write(tmp_path / "kernels", KERNEL)
        text = TESTS.format(folder=str(tmp_path / "kernels")).replace("[-1,", "[1,")
        write(tmp_path, text, "test_tail.py")
        done, _ = run(tmp_path)
        assert done.returncode != 0
        assert "test_tail.py::test_tail fails on the kernels as they are" in done.stderr
