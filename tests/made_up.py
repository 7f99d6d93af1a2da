"""Tables as `bench` and `tune` would write them, made up: for tests of what reads them, never as results."""

import itertools
import random

import pandas as pd

MAPS = ("identity", "rotate-30", "rotate-45", "zoom-0.5", "zoom-2", "random")
PASSES = ("forward", "backward", "forward+backward", "theta", "input")
PROVIDERS = ("operator", "eager", "eager-corners", "eager-broadcast", "compile", "kornia")
WORKLOADS = {
    "digits-28": ("256x1x28x28", "28x28", "float32", "NCHW"),
    "images-224-uint8": ("64x3x224x224", "224x224", "uint8", "NCHW"),
    "images-224-bf16": ("64x3x224x224", "224x224", "bfloat16", "NCHW"),
    "images-224": ("64x3x224x224", "224x224", "float32", "NCHW"),
    "features-56": ("32x64x56x56", "56x56", "float32", "NCHW"),
    "features-56-channels-last": ("32x64x56x56", "56x56", "float32", "channels_last"),
    "features-28": ("32x256x28x28", "28x28", "float32", "NCHW"),
    "features-28-channels-last": ("32x256x28x28", "28x28", "float32", "channels_last"),
    "features-14": ("32x512x14x14", "14x14", "float32", "NCHW"),
    "features-14-channels-last": ("32x512x14x14", "14x14", "float32", "channels_last"),
    "planes-7": ("32x2048x7x7", "7x7", "float32", "NCHW"),
    "shrink-448": ("64x3x448x448", "224x224", "float32", "NCHW"),
    "photograph-4096": ("1x3x4096x4096", "4096x4096", "float32", "NCHW"),
    "crops-7": ("1x256x100x152", "7x7", "float32", "NCHW"),
    "volume-160": ("1x1x160x192x224", "160x192x224", "float32", "NCHW"),
    "bicubic-224": ("64x3x224x224", "224x224", "float32", "NCHW"),
    "border-224": ("64x3x224x224", "224x224", "float32", "NCHW"),
    "antialias-4": ("64x3x448x448", "112x112", "float32", "NCHW"),
}
SWEEPS = {
    "size": (32, 64, 128, 256, 512, 1024, 2048),
    "batch": (1, 4, 16, 64, 256),
    "channels": (1, 4, 16, 64, 256, 1024),
}
CUDA = {
    "device": "Imaginary H100 80GB HBM3",
    "device_type": "cuda",
    "driver": "570.86.15",
    "toolkit": "12.8",
    "cpu": "Imaginary Xeon",
    "threads": 26,
    "platform": "Linux-6.1-x86_64-with-glibc2.36",
    "python": "3.11.7",
    "torch": "2.13.0+cu128",
    "triton": "3.7.1",
    "stn_triton": "0.1.0",
    "commit": "4d55deb0d6",
    "date": "2026-11-23T00:59:17+00:00",
}
CPU = CUDA | {
    "device": "Imaginary EPYC",
    "device_type": "cpu",
    "driver": "",
    "toolkit": "",
    "cpu": "Imaginary EPYC",
    "threads": 2,
    "torch": "2.13.0+cpu",
}
_SPEED = {
    "operator": 3.0,
    "eager": 1.0,
    "eager-corners": 1.1,
    "eager-broadcast": 1.25,
    "compile": 1.4,
    "kornia": 0.6,
}


def numel(shape):
    """Of a shape as it is written in a table."""
    count = 1
    for n in shape.split("x"):
        count *= int(n)
    return count


def row(workload="digits-28", map="random", passed="forward", provider="operator", facts=CUDA, **changes):
    """One row; changes are columns. An ok row has quantiles 5 % around its median."""
    shape, size, dtype, layout = WORKLOADS.get(workload, ("64x3x32x32", "32x32", "float32", "NCHW"))
    names = {"workload": workload, "shape": shape, "size": size, "dtype": dtype, "layout": layout}
    names |= {"map": map, "pass": passed, "provider": provider, "status": "ok", "reason": ""}
    values = names | changes
    if values["status"] == "ok":
        median = values.setdefault("median_ms", 1.0)
        values = {"q20_ms": median * 0.95, "q80_ms": median * 1.05, "samples": 300} | values
    return values | {"quick": False, **facts} | changes


def speed(workloads=tuple(WORKLOADS), maps=MAPS, passes=PASSES, providers=PROVIDERS, facts=CUDA, seed=0):
    """A row per workload, map, pass and provider, with everything that a GPU gives if `facts` is CUDA."""
    chance = random.Random(seed)
    on_gpu = facts["device_type"] == "cuda"
    copy = 2900.0 if on_gpu else 12.0
    rows = []
    for workload, passed in itertools.product(workloads, passes):
        traits = {name: chance.gauss(0, 0.35) for name in providers}
        for name in maps:
            own = [_row(chance, workload, name, passed, p, traits[p], copy, facts) for p in providers]
            eager = next((r.get("median_ms") for r in own if r["provider"] == "eager"), None)
            for r in own:
                if eager and "median_ms" in r:
                    r["speedup"] = eager / r["median_ms"]
            rows += own
    return pd.DataFrame(rows)


def _row(chance, workload, name, passed, provider, trait, copy, facts):
    shape, _, dtype, _ = WORKLOADS.get(workload, ("64x3x32x32", "32x32", "float32", "NCHW"))
    if provider == "kornia" and dtype != "float32":
        reason = f"kornia samples no {dtype}"
        return row(workload, name, passed, provider, facts, status="unavailable", reason=reason)
    elements = numel(shape)
    mib = elements * 4 * {"forward": 2, "theta": 2, "forward+backward": 5}.get(passed, 3) / 2**20
    ideal = mib * 2**20 / copy / 1e6
    speed_of = _SPEED[provider] * 2.718 ** (trait + chance.gauss(0, 0.12)) / 3.4
    median = ideal / speed_of
    low, high = median * (1 - abs(chance.gauss(0, 0.03))), median * (1 + abs(chance.gauss(0, 0.05)))
    values = {"median_ms": median, "q20_ms": low, "q80_ms": high, "samples": 400, "model_mib": mib}
    values |= {"gb_per_s": mib * 2**20 / median / 1e6, "copy_gb_per_s": copy}
    values["roofline"] = values["gb_per_s"] / copy
    if facts["device_type"] == "cuda":
        factor = {"operator": 1, "compile": 1.5}.get(provider, 2 + 2 / max(int(shape.split("x")[1]), 1))
        values |= {"peak_mib": mib / 2 * factor, "graph_ms": median * 0.97}
    values |= {"checked": "output", "error": 1e-5, "tolerance": 2e-5}
    return row(workload, name, passed, provider, facts, **values)


def sweeps(passes=("forward", "forward+backward"), providers=PROVIDERS[:5], facts=CUDA, seed=1):
    """Rows of the scaling charts; launches cost 10 us whatever they do."""
    chance = random.Random(seed)
    copy = 2900.0 if facts["device_type"] == "cuda" else 12.0
    rows = []
    for (axis, values), passed, provider in itertools.product(SWEEPS.items(), passes, providers):
        for n in values:
            shape = {"size": f"16x3x{n}x{n}", "batch": f"{n}x3x224x224", "channels": f"16x{n}x56x56"}[axis]
            mib = numel(shape) * 8 / 2**20 * (1 if passed == "forward" else 2.5)
            median = 0.01 + mib * 2**20 / copy / 1e6 * 3.4 / _SPEED[provider] * chance.uniform(0.9, 1.1)
            size = "x".join(shape.split("x")[2:])
            own = {"shape": shape, "size": size, "model_mib": mib, "copy_gb_per_s": copy, "median_ms": median}
            own |= {"q20_ms": median * 0.9, "q80_ms": median * 1.2}
            rows.append(row(f"{axis}-{n}", "random", passed, provider, facts, **own))
    return pd.DataFrame(rows)


def tuning(buckets=8, facts=CUDA, seed=2):
    """Timings of block sizes; the default is never the best."""
    chance = random.Random(seed)
    rows = []
    names = itertools.product(
        ("forward", "backward", "backward_input", "theta"), ("nchw", "channels_last_16")
    )
    for kernel, layout in itertools.islice(names, buckets):
        best_c, best_tile = chance.choice((4, 16, 32)), chance.choice((64, 128, 256))
        name = f"{kernel}/2d-bilinear-zeros/{layout}/float32/c64/p4096/n512"
        own = []
        tiles = ((2, 8), (4, 8), (8, 8), (8, 16), (16, 16), (4, 32))
        for c, (h, w), warps in itertools.product((4, 8, 16, 32, 64), tiles, (2, 4, 8)):
            if c * h * w / 32 / warps > 32:
                continue
            away = abs(c.bit_length() - best_c.bit_length()) + abs(
                (h * w).bit_length() - best_tile.bit_length()
            )
            median = 0.1 * (1 + 0.12 * away + 0.1 * abs(warps - 4) / 4 + chance.uniform(0, 0.05))
            values = {"bucket": name, "kernel": kernel, "variant": "2d-bilinear-zeros", "layout": layout}
            values |= {"dtype": "float32", "channels": 64, "pixels": 4096, "planes": 512, "BLOCK_C": c}
            values |= {"RUN_C": 1, "BLOCK_H": h, "BLOCK_W": w, "num_warps": warps, "median_ms": median}
            values |= {"q20_ms": median * 0.97, "q80_ms": median * 1.03, "status": "ok"}
            own.append(values | {"is_default": (c, h, w, warps) == (16, 8, 16, 4), "is_best": False})
        min(own, key=lambda r: r["median_ms"])["is_best"] = True
        chosen = chance.choice([r for r in own if not r["is_default"] and not r["is_best"]])
        chosen |= {"status": "OutOfResources", "median_ms": None, "q20_ms": None, "q80_ms": None}
        rows += own
    kept = ("device", "torch", "triton", "commit", "date")
    return pd.DataFrame(rows).assign(**{key: facts[key] for key in kept})


def small(**changes):
    """Two workloads, two maps, three providers, every pass."""
    options = {
        "workloads": ("digits-28", "features-56-channels-last"),
        "maps": ("identity", "zoom-2"),
        "providers": ("operator", "eager", "compile"),
    }
    return speed(**(options | changes))


def without_time(table, mask, status, reason):
    table.loc[mask, ["status", "reason"]] = [status, reason]
    numbers = ["median_ms", "q20_ms", "q80_ms", "speedup", "roofline", "gb_per_s", "peak_mib", "graph_ms"]
    table.loc[mask, [name for name in numbers if name in table]] = None
    return table
