"""Choice of the cases of a test that run in the ordinary command."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import tiers

MODES, SIZES = ("nearest", "bilinear", "bicubic"), range(5)


class Kind(NamedTuple):
    dim: int
    is_aligned: bool


def test_as_many_cases_as_values_have_all_values():
    cases = [{"mode": mode, "size": size} for mode, size in itertools.product(MODES, SIZES)]
    chosen = [cases[i] for i in tiers.spread(cases, 5)]
    assert {case["mode"] for case in chosen} == set(MODES)
    assert {case["size"] for case in chosen} == set(SIZES)


def test_fields_of_a_named_tuple_are_values_of_their_own():
    cases = [{"kind": Kind(*kind)} for kind in itertools.product((2, 3), (False, True))]
    assert tiers.spread(cases, 2) == [0, 3]


@pytest.mark.parametrize("count", [0, 1, 3, 9])
def test_no_case_is_chosen_twice(count):
    chosen = tiers.spread([{"size": size} for size in SIZES], count)
    assert len(set(chosen)) == len(chosen) == min(count, 5)


@pytest.mark.full
def test_the_tiers_have_every_case_once(tmp_path):
    (tmp_path / "conftest.py").write_text(
        "import pytest, tiers\n\n\n"
        "@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_collection_modifyitems(items):\n    tiers.mark_full(items)\n"
    )
    (tmp_path / "test_of_sizes.py").write_text(
        "import pytest\n\n\n"
        "@pytest.mark.parametrize('size', range(5))\n@pytest.mark.sample(2)\ndef test(size):\n    pass\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    sample: s\n    full: f\n")
    found = []
    for expression in ("not full", "full"):
        options = ("-q", "--collect-only", "-p", "no:cacheprovider", "-m", expression)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *options],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={"PYTHONPATH": str(Path(tiers.__file__).parent)},
        )
        found.append([line for line in done.stdout.splitlines() if "::" in line])
    assert found == [
        ["test_of_sizes.py::test[0]", "test_of_sizes.py::test[1]"],
        [f"test_of_sizes.py::test[{size}]" for size in (2, 3, 4)],
    ]
