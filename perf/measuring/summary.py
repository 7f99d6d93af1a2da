"""The texts that `bench` prints: the table of a run, and with ``--list`` the names that it takes."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from perf.files import FAILED, OK, OPERATOR, geometric_mean
from perf.measuring import workloads
from perf.measuring.maps import CPU_MAPS, MAPS, QUICK_MAPS, SHIFT
from perf.measuring.passes import COMPUTED
from perf.measuring.providers import PROVIDERS
from perf.measuring.results import CELL

FEW_SAMPLES = 10
"""Quantiles of fewer say little."""
_WORST = 5
"""How many lost rows are named for each rival."""
_NOTES = f"""\
ms: the operator's. x: how many times faster it is than each rival (~: within noise under every map: the 20 to
80 % intervals overlap, or there are fewer than {FEW_SAMPLES} samples). roofline: the least bytes of the pass,
by this time, as a share of the copy bandwidth."""


def against(table: pd.DataFrame, rival: str) -> pd.DataFrame:
    """The operator's rows where a rival has a time too, with ``ratio`` (more than 1: the operator is faster).

    ``in_noise`` says whether the 20 to 80 % intervals of the two overlap, or one of them has few samples:
    then the ratio decides nothing.
    """
    times = table[(table["status"] == OK) & table["median_ms"].notna()]
    theirs = times.loc[times["provider"] == rival, [*CELL, "q20_ms", "median_ms", "q80_ms", "samples"]]
    both = times[times["provider"] == OPERATOR].merge(theirs, on=CELL, suffixes=("", "_rival"))
    overlap = (both["q20_ms"] <= both["q80_ms_rival"]) & (both["q20_ms_rival"] <= both["q80_ms"])
    few = both[["samples", "samples_rival"]].min(axis=1) < FEW_SAMPLES
    in_noise = overlap | few.fillna(False).astype(bool)
    return both.assign(ratio=both["median_ms_rival"] / both["median_ms"], in_noise=in_noise)


def text(table: pd.DataFrame) -> str:
    """All that is printed, as paragraphs: times, losses, rows without a time, the machine."""
    rivals = [name for name in PROVIDERS if name != OPERATOR and name in set(table["provider"])]
    ratios = {name: against(table, name) for name in rivals}
    parts = [
        _speeds(table, ratios),
        "\n".join(_losses(ratios)),
        "\n".join(_without_time(table)),
        _machine(table),
    ]
    return "\n\n".join(part for part in parts if part)


def _speeds(table: pd.DataFrame, ratios: dict[str, pd.DataFrame]) -> str:
    lines = []
    ours = table[table["provider"] == OPERATOR]
    for (workload, pass_name), rows in ours.groupby(["workload", "pass"], sort=False):
        is_wrong = (rows["status"] == FAILED).any()
        line = {"workload": workload, "shape": rows["shape"].iloc[0], "pass": pass_name}
        line["ms"] = FAILED if is_wrong else _mean(rows["median_ms"], "{:.3f}")
        for name, both in ratios.items():
            some = both[(both["workload"] == workload) & (both["pass"] == pass_name)]
            mark = "~" if len(some) and some["in_noise"].all() else ""
            line[f"x {name}"] = _mean(some["ratio"], "{:.2f}x") + mark
        line |= {"roofline": _mean(rows["roofline"], "{:.0%}"), "peak MiB": _mean(rows["peak_mib"], "{:.1f}")}
        lines.append(line)
    maps = f"Geometric means over the maps: {', '.join(table['map'].unique())}."
    printed = pd.DataFrame(lines)
    printed = printed.loc[:, (printed != "-").any()]  # without peak memory on a CPU
    return "\n".join((printed.to_string(index=False), maps, _NOTES))


def _mean(values: pd.Series, form: str) -> str:
    return form.format(geometric_mean(values)) if values.notna().any() else "-"


def _losses(ratios: dict[str, pd.DataFrame]) -> Iterator[str]:
    """The number of rows in which the operator loses to each rival, and the worst of them."""
    for name, rows in ratios.items():
        slower = rows[rows["ratio"] < 1].sort_values("ratio")
        if len(slower):
            noisy = int(slower["in_noise"].sum())
            counts = f"{len(slower)} of {len(rows)} rows, {noisy} within noise"
            yield f"slower than {PROVIDERS[name].label} in {counts}"
            for _, row in slower[~slower["in_noise"]].head(_WORST).iterrows():
                yield f"  {' '.join(row[CELL])}: {row['ratio']:.2f}x"


def _without_time(table: pd.DataFrame) -> Iterator[str]:
    rows = table[table["status"] != OK]
    for (status, provider, reason), group in rows.groupby(["status", "provider", "reason"], sort=False):
        places = "; ".join(f"{key} ({', '.join(group[key].unique())})" for key in CELL)
        yield f"{status}: {provider} in {len(group)} rows, {places}: {reason}"


def _machine(table: pd.DataFrame) -> str:
    facts = table.iloc[0]
    lines = [f"Copy bandwidth of {facts['device']}, measured now: {facts['copy_gb_per_s']:,.4g} GB/s."]
    if facts["device_type"] == "cpu":
        lines.append("On a CPU the operator runs its plain PyTorch path; its GPU kernels are not measured.")
    if facts["quick"]:
        lines.append("A quick run: small batches, few maps and repetitions; a look, not to be quoted.")
    return "\n".join(lines)


def listing() -> str:
    """Workloads, maps, passes and providers, with what each of them is."""
    lines = ["workloads: shape of the input, of the output if another, dtype, layout; who has it"]
    for w in workloads.WORKLOADS.values():
        shape, size = ("x".join(map(str, sides or ())) for sides in (w.shape, w.size))
        size = f" to {size}" if size else ""
        lines.append(f"  {w.name:33}{shape}{size} {str(w.dtype).removeprefix('torch.')} {w.layout}")
        lines += [f"      {w.who}"] * (not w.sweep)
        lines += {f"      without the map {m}: {w.why_not(m)}" for m in MAPS if w.why_not(m)}
    return "\n".join(
        (
            *lines,
            f"  size-, batch- and channels-: {', '.join(workloads.SWEEP_MAPS)} maps alone, and the passes",
            f"  {', '.join(workloads.SWEEP_PASSES)}",
            f"  without --workloads on a CPU: {', '.join(workloads.ON_CPU)};",
            f"  with --quick on a GPU: {', '.join(workloads.QUICK)}",
            "\nmaps",
            *(f"  {name:19}{one.what}" for name, one in MAPS.items()),
            f"  without --maps on a CPU: {', '.join(CPU_MAPS)}; with --quick: {', '.join(QUICK_MAPS)}",
            f"  All but the random ones are shifted by {', '.join(map(str, SHIFT))} of a pixel: at whole",
            "  pixels the derivative for theta jumps, and there would be nothing to check it by.",
            "\npasses, and what they compute",
            *(f"  {name:19}{', '.join(tensors)}" for name, tensors in COMPUTED.items()),
            "\nproviders",
            *(f"  {p.name:19}{p.what}" for p in PROVIDERS.values()),
            "\nEverything on an H100: about 20 minutes (an estimate); some workloads at a time take less.",
        )
    )
