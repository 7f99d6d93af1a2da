"""The texts that `bench` prints: the table of a run, and with ``--list`` the names that it takes."""

from collections.abc import Iterator

import pandas as pd

from perf.files import CELL, FAILED, FEW_SAMPLES, OK, OPERATOR, Run, geometric_mean, timed
from perf.measuring.maps import CPU_MAPS, MAPS
from perf.measuring.passes import COMPUTED
from perf.measuring.providers import PROVIDERS, SCATTER
from perf.measuring.workloads import ON_CPU, WORKLOADS

_WORST = 5  # lost rows that are named for each rival
_NOTES = f"""\
ms: the operator's. x: how many times faster it is than each rival (~: within noise under every map: the 20 to
80 % intervals overlap, or there are fewer than {FEW_SAMPLES} samples). roofline: the least bytes of the pass,
by this time, as a share of the copy bandwidth."""


def against(table: pd.DataFrame, rival: str) -> pd.DataFrame:
    """The operator's rows where a rival has a time too, with ``ratio`` (more than 1: the operator is faster).

    ``in_noise`` says whether the 20 to 80 % intervals of the two overlap, or one of them has few samples:
    then the ratio decides nothing.
    """
    times = table[timed(table)]
    theirs = times.loc[times["provider"] == rival, [*CELL, "q20_ms", "median_ms", "q80_ms", "samples"]]
    both = times[times["provider"] == OPERATOR].merge(theirs, on=CELL, suffixes=("", "_rival"))
    overlap = (both["q20_ms"] <= both["q80_ms_rival"]) & (both["q20_ms_rival"] <= both["q80_ms"])
    few = both[["samples", "samples_rival"]].min(axis=1) < FEW_SAMPLES
    return both.assign(ratio=both["median_ms_rival"] / both["median_ms"], in_noise=overlap | few)


def text(run: Run) -> str:
    """All that is printed, as paragraphs: times, losses, rows without a time, the machine."""
    table = run.rows
    rivals = [name for name in PROVIDERS if name != OPERATOR and name in set(table["provider"])]
    ratios = {name: against(table, name) for name in rivals}
    copied = table["copy_gb_per_s"].median()
    machine = [f"Copy bandwidth of {run.facts['device']}, measured now: {copied:,.4g} GB/s.", *run.notes]
    maps = f"Geometric means over the maps: {', '.join(table['map'].unique())}."
    speeds = _speeds(table, ratios).to_string(index=False, na_rep="-")
    parts = ([speeds, maps, _NOTES], _losses(ratios), _without_time(table), machine)
    return "\n\n".join(filter(None, map("\n".join, parts)))


def _speeds(table: pd.DataFrame, ratios: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The operator's figures and ratios, as text: a row for each workload and pass."""
    key = ["workload", "shape", "pass"]
    ours = table[table["provider"] == OPERATOR].groupby(key, sort=False)

    def means(values: pd.Series, form: str, mark: pd.Series | str = "") -> pd.Series:
        found = values.agg(geometric_mean)
        return (found.map(form.format).astype(str) + mark).where(found.notna())

    is_wrong = ours["status"].agg(lambda statuses: (statuses == FAILED).any())
    printed = {"ms": means(ours["median_ms"], "{:.3f}").mask(is_wrong, FAILED)}
    for name, both in ratios.items():
        cells = both.groupby(key, sort=False)
        mark = cells["in_noise"].all().map({True: "~", False: ""}).astype(str)
        printed[f"x {name}"] = means(cells["ratio"], "{:.2f}x", mark)
    printed["roofline"] = means(ours["roofline"], "{:.0%}")
    printed["peak MiB"] = means(ours["peak_mib"], "{:.1f}")
    # Without the columns that no row has, such as memory on a CPU.
    return pd.DataFrame(printed, index=is_wrong.index).dropna(axis=1, how="all").reset_index()


def _losses(ratios: dict[str, pd.DataFrame]) -> Iterator[str]:
    """The number of rows in which the operator loses to each rival, and the worst of them."""
    for name, rows in ratios.items():
        slower = rows[rows["ratio"] < 1].sort_values("ratio")
        if len(slower):
            clear = slower[~slower["in_noise"]]
            counts = f"{len(slower)} of {len(rows)} rows, {len(slower) - len(clear)} within noise"
            yield f"slower than {PROVIDERS[name].label} in {counts}"
            for _, row in clear.head(_WORST).iterrows():
                yield f"  {' '.join(row[CELL])}: {row['ratio']:.2f}x"


def _without_time(table: pd.DataFrame) -> Iterator[str]:
    rows = table[table["status"] != OK]
    for (status, provider, reason), group in rows.groupby(["status", "provider", "reason"], sort=False):
        places = "; ".join(f"{key} ({', '.join(group[key].unique())})" for key in CELL)
        yield f"{status}: {provider} in {len(group)} rows, {places}: {reason}"


def listing() -> str:
    """Workloads, maps, passes and providers, with what each of them is."""
    tables = {
        "workloads": {w.name: f"{'x'.join(map(str, w.shape)):16} {w.who}" for w in WORKLOADS.values()},
        "maps": {name: one.what for name, one in MAPS.items()},
        "passes": {name: ", ".join(tensors) for name, tensors in COMPUTED.items()},
        "providers": {name: provider.what for name, provider in PROVIDERS.items()},
    }
    lines = []
    for title, table in tables.items():
        lines += [title, *(f"  {name:31} {what}" for name, what in table.items()), ""]
    on_cpu = f"a CPU runs {', '.join(ON_CPU)} under {', '.join(CPU_MAPS)}"
    return "\n".join([*lines, f"By default all run but {SCATTER}; {on_cpu}."])
