"""What the compiler makes of the kernels, for GPUs that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ARCHITECTURES = (80, 90, 100)
pytestmark = pytest.mark.xdist_group("static")  # one worker compiles for all


@pytest.fixture(scope="module")
def rows():
    """The plain operator, in every layout and dtype."""
    rows = compiled()
    assert {row["bucket"].split("/")[0] for row in rows} == {"forward", "backward", "backward_input", "theta"}
    return rows


@pytest.fixture(scope="module")
def variants():
    """A sample of every mode, padding, dimension and kind of map; the whole product takes half an hour."""
    return compiled("--variants", "--every", "41")


def compiled(*options):
    """Compiled in another process: interpreted kernels cannot be compiled."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "perf.static", *map(str, ARCHITECTURES), *options]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert {row["arch"] for row in rows} == set(ARCHITECTURES)
    return rows


def offenders(rows, is_bad):
    return [(row["bucket"], row["arch"], row) for row in rows if is_bad(row)]


def needs_more_than_all_registers(row):
    """The gather under reflection in fp64, of a volume or homographies, keeps over 128 numbers a thread."""
    flags = row["bucket"].split("/")[1].split("-")
    is_large = "reflection" in flags and {"3d", "projective"} & set(flags)
    return is_large and "float64" in row["bucket"] and row["bucket"].startswith("backward")


def test_no_kernel_spills(rows, variants):
    spilling = offenders(rows + variants, lambda row: row["spills"])
    assert not [found for found in spilling if not needs_more_than_all_registers(found[2])]
    assert not offenders(rows, lambda row: row["stack"])


def test_no_kernel_has_atomics(rows, variants):
    assert not offenders(rows + variants, lambda row: row["atomics"])


def test_fp64_arithmetic_only_for_fp64_images(rows, variants):
    assert not offenders(rows + variants, lambda row: row["fp64"] and "float64" not in row["bucket"])
    assert all(row["fp64"] for row in rows if "float64" in row["bucket"])  # the count can see it


def test_channels_last_is_accessed_128_bits_at_a_time(rows):
    """Every access to an image: in all but six loads, of theta, and six stores, of partial sums."""
    checked = 0
    for row in rows:
        if "channels_last_16" in row["bucket"]:
            partial = 0 if "forward" in row["bucket"] or "backward_input" in row["bucket"] else 6
            assert row["wide_loads"] == row["loads"] - 6, row
            assert row["wide_stores"] == row["stores"] - partial, row
            assert row["wide_loads"] > 0, row
            checked += 1
    assert checked >= 4 * 4 * len(ARCHITECTURES)
