"""What `bench` prints: a line per workload and pass, the losses by name, rows without a time, the targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from perf.files import EAGER, FAILED, OK, OPERATOR, geometric_mean
from perf.measuring.providers import COMPILE, PROVIDERS
from perf.measuring.results import CELL, FEW_SAMPLES, against, timed
from perf.measuring.targets import Target

NOISE = "~"
_HEADS = {
    "eager": "vs eager",
    "eager-corners": "corners",
    "eager-broadcast": "broadcast",
    "compile": "compile",
    "kornia": "kornia",
}


def text(table: pd.DataFrame, judged: Sequence[Target], busy: str = "") -> str:
    """All that is printed, as paragraphs; ``busy`` says what else ran on the machine."""
    speeds = "nothing was timed" if timed(table).empty else _speeds(table)
    last = "\n".join(line for line in (_environment(table), busy) if line)
    parts = [speeds, *_losses(table), *_without_time(table), _targets(judged), last]
    return "\n\n".join(part for part in parts if part)


def _speeds(table: pd.DataFrame) -> str:
    rivals = [name for name in PROVIDERS if name != OPERATOR and name in set(table["provider"])]
    ratios = {rival: against(table, rival) for rival in rivals}
    lines, last = [], None
    for (workload, pass_name), rows in table.groupby(["workload", "pass"], sort=False):
        ours = rows[rows["provider"] == OPERATOR]
        times = timed(ours)
        line = {
            "workload": workload if workload != last else "",
            "shape": rows["shape"].iloc[0] if workload != last else "",
            "pass": pass_name,
            "ms": _milliseconds(ours),
        }
        for rival in rivals:
            both = ratios[rival]
            both = both[(both["workload"] == workload) & (both["pass"] == pass_name)]
            mark = NOISE if len(both) and both["in_noise"].all() else ""
            line[_HEADS[rival]] = _mean(both["ratio"], ".2f", "x" + mark)
        line["roofline"] = _mean(times["roofline"], ".0%")
        if table["peak_mib"].notna().any():
            line["peak MiB"] = _mean(times["peak_mib"], ".1f")
        lines.append(line)
        last = workload
    maps = ", ".join(table["map"].unique())
    return "\n".join(
        (
            pd.DataFrame(lines).to_string(index=False),
            f"Geometric means over the maps: {maps}.",
            f"ms: the operator. x: how many times faster it is than each rival ({NOISE}: within noise, the",
            f"20 to 80 % intervals overlap, or are of fewer than {FEW_SAMPLES} samples, under every map).",
            "roofline: the least bytes of the pass, by this time, as a share of the copy bandwidth.",
        )
    )


def _losses(table: pd.DataFrame) -> Iterable[str]:
    """Against which rivals the operator loses, and where it does to those that it must never lose to."""
    for rival in PROVIDERS:
        rows = against(table, rival)
        slower = rows[rows["ratio"] < 1]
        if rival == OPERATOR or slower.empty:
            continue
        noisy = int(slower["in_noise"].sum())
        aside = f", {noisy} of these within noise ({NOISE})" if noisy else ""
        lines = [f"slower than {PROVIDERS[rival].label} in {len(slower)} of {len(rows)} rows{aside}"]
        if rival in (EAGER, COMPILE):
            lines[0] += ":"
            lines += [
                f"  {workload} {pass_name}: {', '.join(map(_ratio, group.itertuples()))}"
                for (workload, pass_name), group in slower.groupby(["workload", "pass"], sort=False)
            ]
        yield "\n".join(lines)


def _ratio(row) -> str:
    return f"{row.map} {row.ratio:.2f}x{NOISE if row.in_noise else ''}"


def _without_time(table: pd.DataFrame) -> Iterable[str]:
    rows = table[table["status"] != OK]
    lines = []
    for (status, provider, reason), group in rows.groupby(["status", "provider", "reason"], sort=False):
        lines.append(f"{status}: {provider} on {_places(group, table)}: {reason}")
    if lines:
        yield "\n".join(lines)


def _places(group: pd.DataFrame, table: pd.DataFrame) -> str:
    """The workloads of some rows, each with its maps and passes unless they are all."""
    if len(group) == len(table[CELL].drop_duplicates()):
        return "all rows"
    places = []
    for workload, rows in group.groupby("workload", sort=False):
        whole = table[table["workload"] == workload]
        some = [
            ", ".join(rows[column].unique())
            for column in ("map", "pass")
            if rows[column].nunique() < whole[column].nunique()
        ]
        places.append(f"{workload} ({'; '.join(some)})" if some else str(workload))
    return ", ".join(places)


def _targets(judged: Sequence[Target]) -> str:
    """Each target with its verdict; those that nothing is known of, in one line."""
    known = [target for target in judged if target.measured]
    lines = [f"  {t.name}: {t.verdict}\n      asked: {t.asked}; {t.measured}" for t in known]
    for verdict in dict.fromkeys(t.verdict for t in judged if not t.measured):
        count = sum(not t.measured and t.verdict == verdict for t in judged)
        lines.append(f"  {verdict}: {count} of {len(judged)}")
    return "\n".join(("Targets, for an H100:", *lines))


def _environment(table: pd.DataFrame) -> str:
    facts = table.iloc[0]
    lines = [f"Copy bandwidth of {facts['device']}, measured now: {facts['copy_gb_per_s']:,.4g} GB/s."]
    if facts["device_type"] == "cpu":
        lines.append("On a CPU the operator runs its plain PyTorch path; its GPU kernels are not measured.")
    if facts["quick"]:
        lines.append(
            "A quick run: small batches, few maps and repetitions; good for a look, not to be quoted."
        )
    return "\n".join(lines)


def _milliseconds(ours: pd.DataFrame) -> str:
    """The operator's time, unless it is wrong under any map or has none."""
    status = set(ours["status"])
    if FAILED in status or OK not in status:
        return FAILED if FAILED in status else "/".join(sorted(status))
    return _mean(timed(ours)["median_ms"], ".3f")


def _mean(values: pd.Series, form: str, unit: str = "") -> str:
    return f"{geometric_mean(values):{form}}{unit}" if values.notna().any() else "-"
