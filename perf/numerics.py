"""``python -m perf numerics``: errors against fp64 of this operator and of PyTorch's eager pair."""

from __future__ import annotations

import argparse
import itertools
import json
import math
import sys

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, setting
from perf.accuracy import chart, error_tables, errors, implementations, inputs, interpreted
from perf.charts import style
from perf.plot import make_directory
from stn_triton.environment import choose_device


def main(args: argparse.Namespace) -> int:
    """Measure, or read an earlier run; print its tables and draw its chart."""
    if args.results is None:
        table = run(choose_device(args.device), inputs.QUICK_SIZES if args.quick else inputs.SIZES)
    else:
        table = error_tables.read(args.results)
    make_directory(args.out)
    if args.results is None:
        error_tables.write(table, args.out / "numerics.csv")
    (args.out / "numerics.png").write_bytes(style.render(chart.draw(table), "png"))
    if args.json:
        for row in table.to_dict("records"):
            print(json.dumps({key: _plain(value) for key, value in row.items()}))
    elif args.markdown:
        print(error_tables.markdown(table))
    else:
        print(setting.summary(table.iloc[0].to_dict()))
        print(f"\n{error_tables.text(table)}\n\n{_EXPLANATION}\n\n{args.out / 'numerics.png'}")
    return EXIT_FAILED if (table["verdict"] == errors.WORSE).any() else EXIT_OK


def run(device: torch.device, sizes: tuple[int, ...]) -> pd.DataFrame:
    """Every cell, each row with the facts of the machine.

    Raises:
        UsageError: kernels cannot be interpreted in this process.
    """
    if device.type == "cpu":
        interpreted.choose()
    facts = setting.facts(device)
    who = implementations.of(device)
    rows: list[errors.Row] = []
    cells = list(itertools.product(inputs.MAPS, sizes, inputs.AUTOCASTS))
    progress = tqdm(cells, "errors", disable=None, file=sys.stderr)
    for i, (map_name, size, dtype) in enumerate(progress, start=1):
        what = f"{map_name} {size} {inputs.short(dtype)}"
        progress.set_postfix_str(what)
        if progress.disable:
            print(f"{i} of {len(cells)}: {what}", file=sys.stderr, flush=True)
        rows += errors.rows_of(dtype, size, map_name, who, device)
    return pd.DataFrame(rows).assign(**facts)


def _plain(value: object) -> object:
    """JSON knows no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


_EXPLANATION = """\
forward: in units of the largest image value; grad_input: of the largest gradient of the output; grad_theta:
of its norm. !: worse than the pair, by over 2 % in the RMS or twofold in the largest error; exit code 1.
All get the same numbers in the images' dtype, theta too (outside autocast the pair takes no other), and are
set against fp64 of these numbers. Under autocast the pair's grid is in the dtype of autocast, and on a CPU
its sampler in fp32; the operator's coordinates are in fp32 always. From 1024 on, images are strips (see their
shape) with the width of the square: what a long axis does to positions, in the time that there is. Samples
within 1/64 pixel of a whole one, where the derivative by theta jumps, get no gradient.
kernels: those of GPUs; on a CPU in Triton's interpreter, with a GPU's roundings, but for what a compiler
contracts and how sums are split. CPU path: what the operator runs on CPUs."""
