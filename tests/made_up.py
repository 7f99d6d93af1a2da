"""Tables as `bench` would write them, made up: for tests of the code that reads them, never as results."""

import itertools
import random
import tempfile
from pathlib import Path

import pandas as pd

from perf import files
from perf.files import FACTS

PASSES = ("forward", "backward", "forward+backward", "theta", "input")
SWEEPS = {"size": (32, 128, 512, 2048), "batch": (1, 16, 256), "channels": (1, 16, 256, 1024)}
_FACTS = (
    *("Imaginary H100 80GB HBM3", "cuda", "570.86.15", "12.8", "Imaginary Xeon", 26, "Linux-6.1"),
    *("3.11.7", "2.13.0+cu128", "3.7.1", "0.1.0", "4d55deb0d6", "2026-11-23T00:59:17+00:00"),
)
CUDA = dict(zip(FACTS, _FACTS, strict=True))
CPU = CUDA | {"device": "Imaginary EPYC", "device_type": "cpu", "driver": "", "toolkit": "", "threads": 2}
_FACTOR = {"operator": 0.35, "eager": 1.0, "compile": 0.7}


def row(workload="digits-28", map="random", passed="forward", provider="operator", facts=CUDA, **changes):
    """One row; changes are columns. A row with the status ok has quantiles 5 % around its median."""
    shape, size = ("32x2048x7x7", "7x7") if workload == "planes-7" else ("256x1x28x28", "28x28")
    values = {"workload": workload, "shape": shape, "size": size, "dtype": "float32", "layout": "NCHW"}
    values |= {"map": map, "pass": passed, "provider": provider, "status": "ok", "reason": ""} | changes
    if values["status"] == "ok":
        median = values.setdefault("median_ms", 1.0)
        values = {"q20_ms": median * 0.95, "q80_ms": median * 1.05, "samples": 300} | values
    return {"quick": False, **facts} | values


def run(rows):
    """The run of rows, written to a file and read from it."""
    with tempfile.TemporaryDirectory() as folder:
        pd.DataFrame(rows).to_csv(Path(folder, "speed.csv"), index=False)
        return files.read_run(Path(folder))


def pair(ours, theirs, **changes):
    """The operator and the eager pair; each value is a dictionary of columns."""
    return [row(provider=name, **own, **changes) for name, own in (("operator", ours), ("eager", theirs))]


def small(workloads=("digits-28", "planes-7"), passes=PASSES, facts=CUDA):
    """Two workloads, two maps, three providers, every pass; with memory if `facts` is CUDA."""
    chance, rows = random.Random(0), []
    for one in itertools.product(workloads, ("identity", "zoom-2"), passes, _FACTOR):
        factor = _FACTOR[one[-1]]
        median = 0.2 * factor * chance.uniform(0.8, 1.25)
        more = {"median_ms": median, "speedup": 0.2 / median, "copy_gb_per_s": 2900.0}
        more |= {"peak_mib": 100 * factor} if facts["device_type"] == "cuda" else {}
        rows.append(row(*one, facts, **more))
    return pd.DataFrame(rows)


def sweeps():
    """Rows of the scaling charts, of the operator and the eager pair; launches cost 10 us."""
    rows = []
    for axis, provider in itertools.product(SWEEPS, ("operator", "eager")):
        for n in SWEEPS[axis]:
            shape = {"size": f"16x3x{n}x{n}", "batch": f"{n}x3x224x224", "channels": f"16x{n}x56x56"}[axis]
            mib = float(pd.Series(shape.split("x")).astype(float).prod()) * 8 / 2**20
            more = {"shape": shape, "model_mib": mib, "copy_gb_per_s": 2900.0}
            more["median_ms"] = 0.01 + mib * _FACTOR[provider] / 1000
            rows.append(row(f"{axis}-{n}", provider=provider, **more))
    return pd.DataFrame(rows)


def without_time(table, mask, status, reason):
    """Let the chosen rows fail."""
    table.loc[mask, ["status", "reason"]] = [status, reason]
    numbers = ["median_ms", "q20_ms", "q80_ms", "speedup", "peak_mib"]
    table.loc[mask, [name for name in numbers if name in table]] = None
    return table
