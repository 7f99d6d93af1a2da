"""``python -m perf numerics``: errors against fp64 of this operator and of PyTorch's eager pair."""

import argparse
import itertools
import os
import sys

import pandas as pd
import torch
from tqdm import tqdm

from perf import EXIT_FAILED, EXIT_OK, setting
from perf.accuracy import error_tables, errors
from perf.charts import style
from perf.plot import make_directory
from stn_triton.environment import choose_device


def main(args: argparse.Namespace) -> int:
    """Measure, or read an earlier run; print its tables and draw its chart."""
    make_directory(args.out)
    if args.results:
        table = error_tables.read(args.results)
        table = table[table["size"].isin(errors.QUICK_SIZES)] if args.quick else table
    else:
        table = run(choose_device(args.device), errors.QUICK_SIZES if args.quick else errors.SIZES)
        table.to_csv(args.out / "numerics.csv", index=False, float_format="%.4g")
    (args.out / "numerics.png").write_bytes(style.render(error_tables.chart(table), "png"))
    if args.json:
        print(table.to_json(orient="records", lines=True, double_precision=15), end="")
    else:
        print(setting.summary(table.iloc[0].to_dict()))
        print(f"\n{error_tables.text(table)}\n\n{_EXPLANATION}\n\n{args.out / 'numerics.png'}")
    return EXIT_FAILED if (table["verdict"] == errors.WORSE).any() else EXIT_OK


def run(device: torch.device, sizes: tuple[int, ...]) -> pd.DataFrame:
    """Measure every cell; each row has the facts of the machine."""
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # which counts when the first call imports Triton
    cells = list(itertools.product(errors.MAPS, sizes, errors.AUTOCASTS))
    rows = []
    for map_name, size, dtype in tqdm(cells, "errors", file=sys.stderr):
        rows += errors.rows_of(dtype, size, map_name, device)
    return pd.DataFrame(rows).assign(**setting.facts(device))


_EXPLANATION = """\
Units: the largest image value (forward), the largest gradient of the output (grad_input), the norm of the
gradient (grad_theta). WORSE: than the pair, by over 2 % in the RMS or twofold in the largest error; exit
code 1. docs/numerics.md says how the errors are measured."""
