"""Mutate the kernels: change one place after another and see whether a test fails.

    python tools/mutate.py                     # a sample of some 400 mutants, of every file and kind
    python tools/mutate.py --ordinary          # the same, by the tests of the ordinary command alone
    python tools/mutate.py --list --only taps  # list the mutants of one file; nothing is run
    python tools/mutate.py --only walk.visit   # the mutants of one function in the sample
    python tools/mutate.py --all --jobs 16     # every mutant

First every test runs once, to learn which lines of the kernels it reaches and how long it takes. Then, for
each mutant, the tests that reach it run until one fails: ordinary tests first, among them those that failed
for other mutants, then the fastest. The folder of --out keeps all facts, so that a stopped run continues
where it was; mutants that survived are tried again. Kernels are interpreted: no GPU is needed.

The file equivalents.json lists mutants that change no result, by their text and with the reason. An entry
that matches no mutant is an error. Results are in mutants.csv. Exit code 1: an unlisted mutant survived.
"""

import argparse
import csv
import hashlib
import itertools
import json
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import mutants  # noqa: E402
import trials  # noqa: E402
from mutants import Mutant  # noqa: E402

EQUIVALENTS = Path(__file__).with_name("equivalents.json")
COLUMNS = (*Mutant._fields, "status", "by", "tier", "how", "seconds")
PATIENCE = 10  # seconds of CPU time, beyond five times the usual, after which a test counts as endless


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    head, _, rest = __doc__.partition("\n\n")
    found = argparse.ArgumentParser(
        "mutate.py", description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--all", action="store_true", help="every mutant, not a sample")
    add("--count", type=int, default=400, help="about how many in the sample (default: 400)")
    add("--seed", type=int, default=0, help="seed of the sample (default: 0)")
    add("--only", default="", metavar="TEXT", help="only mutants whose file.function.kind contains TEXT")
    add("--list", action="store_true", help="list the mutants and run nothing")
    add("--ordinary", action="store_true", help="run no test with the marker `full`")
    add("--jobs", type=int, default=1, help="processes at once (default: 1)")
    add("--out", type=Path, default=Path("mutation-results"), help="folder of results")
    add("--kernels", type=Path, default=trials.KERNELS, help="folder of the kernels (default: the package's)")
    add("--equivalents", type=Path, default=EQUIVALENTS, help="list of mutants that change no result")
    add("--tests", type=Path, nargs="*", help="test files (default: those that launch kernels)")
    return found


def equivalents(path: Path, every: Iterable[Mutant]) -> dict[Mutant, str]:
    """Read the mutants that change no result, with the reasons. ValueError for an entry that matches none."""
    by_text = defaultdict(list)
    for mutant in every:
        by_text[mutant.file, mutant.function, mutant.before, mutant.after].append(mutant)
    listed = [(tuple(e), group["reason"]) for group in json.loads(path.read_text()) for e in group["mutants"]]
    stale = [" | ".join(entry) for entry, _ in listed if entry not in by_text]
    if stale:
        raise ValueError(f"{path.name} has entries that match no mutant:\n" + "\n".join(stale))
    return {mutant: reason for entry, reason in listed for mutant in by_text[entry]}


def digest(*paths: Path) -> str:
    """Return a digest of the contents of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:16]


class Log(dict):
    """Dictionary of facts that is kept in a file of JSON lines."""

    def __init__(self, path: Path):
        self.path = path
        if path.exists():
            self.update(map(json.loads, path.read_text().splitlines()))

    def add(self, key: str, fact: dict) -> dict:
        """Keep a fact, and return it."""
        self[key] = fact
        with self.path.open("a") as file:
            print(json.dumps([key, fact]), file=file)
        return fact


def progress(things: Iterable, total: int, words: str) -> Iterator:
    """Show a progress bar on stderr."""
    from tqdm import tqdm

    return tqdm(things, words, total, disable=None)


class Suite:
    """Collected tests, the lines that they reach, and the mutants that each of them has found."""

    def __init__(self, items: dict, args: argparse.Namespace):
        self.items, self.args = items, args
        self.is_full = {name: item.get_closest_marker("full") is not None for name, item in items.items()}
        self.kills: Counter = Counter()
        self.facts: dict[str, dict] = {}

    def learn(self) -> None:
        """Run the tests without known facts. RuntimeError if a test fails without any mutant."""
        log = Log(self.args.out / "reached.jsonl")
        kernels = digest(*self.args.kernels.glob("*.py"))
        files = {item.path: digest(item.path) for item in self.items.values()}
        keys = {name: f"{name} {kernels} {files[item.path]}" for name, item in self.items.items()}
        unknown = [pair for pair in self.items.items() if keys[pair[0]] not in log]
        chunks = [unknown[i : i + 32] for i in range(0, len(unknown), 32)]
        with tempfile.TemporaryDirectory() as place:
            for file in self.args.kernels.glob("*.py"):
                (Path(place) / file.name).write_text(trials.marked(file))
            kernels = [file for file in sorted(Path(place).iterdir()) if file.name != "__init__.py"]
            tasks = ((chunk, kernels, {}) for chunk in chunks)
            for _, trial in progress(trials.run_all(tasks, self.args.jobs), len(chunks), "tests, by 32"):
                if trial.killer:
                    raise RuntimeError(f"{trial.killer} fails on the kernels as they are: {trial.how}")
                for name, fact in trial.passed.items():
                    log.add(keys[name], fact)
        self.facts = {name: log[keys[name]] for name in self.items}

    def reaching(self, mutant: Mutant) -> list[str]:
        """Return the tests that reach a mutant, best ones first, and one of each test function in turn."""
        lines = set(range(mutant.line, mutant.end_line + 1))
        turns = defaultdict(list)
        for name, fact in sorted(self.facts.items(), key=lambda pair: pair[1]["seconds"]):
            reached = set(fact["lines"].get(mutant.file, ()))
            if reached and (not mutant.function or lines & reached):
                turns[name.split("[")[0]].append(name)
        order = [name for turn in itertools.zip_longest(*turns.values()) for name in turn if name]
        kills = lambda name: self.kills[mutant.file, mutant.function, name]  # noqa: E731
        return sorted(order, key=lambda name: (self.is_full[name], -kills(name)))

    def attempt(self, chosen: list[Mutant]) -> Iterator[tuple[Mutant, dict]]:
        """Run the tests on mutants, and yield each mutant with its result."""
        with tempfile.TemporaryDirectory() as place:

            def task(number: int, mutant: Mutant) -> tuple:
                file = Path(place) / str(number) / mutant.file
                file.parent.mkdir()
                file.write_text(mutants.mutated(self.args.kernels / mutant.file, mutant))
                names = self.reaching(mutant)
                limits = {name: PATIENCE + 5 * self.facts[name]["seconds"] for name in names}
                return [(name, self.items[name]) for name in names], [file], limits

            tasks = itertools.starmap(task, enumerate(chosen))
            for number, trial in progress(trials.run_all(tasks, self.args.jobs), len(chosen), "mutants"):
                mutant, fact = chosen[number], {"seconds": trial.seconds}
                if trial.killer:
                    self.kills[mutant.file, mutant.function, trial.killer] += 1
                    tier = "full" if self.is_full.get(trial.killer) else "ordinary"
                    fact |= {"status": "killed", "by": trial.killer, "tier": tier, "how": trial.how}
                else:
                    fact |= {"status": "survived", "by": f"{len(trial.passed)} tests passed"}
                yield mutant, fact


def run(chosen: list[Mutant], args: argparse.Namespace) -> dict[Mutant, dict]:
    """Run the tests on each mutant unless its killer is known, and return the results."""
    log, state = Log(args.out / "trials.jsonl"), digest(*args.kernels.glob("*.py"))
    keys = {mutant: json.dumps([state, args.ordinary, *mutant]) for mutant in chosen}
    left = [mutant for mutant in chosen if log.get(keys[mutant], {}).get("status") != "killed"]
    failed = []

    def work(items: dict) -> None:
        try:
            suite = Suite(items, args)
            suite.learn()
            for mutant, fact in suite.attempt(left):
                log.add(keys[mutant], fact)
                if fact["status"] == "survived":
                    print(f"survived: {', '.join(map(str, mutant))} ({fact['by']})", flush=True)
        except BaseException as error:  # pytest would swallow the error
            failed.append(error)

    if left:
        options = ["-m", "not full"] if args.ordinary else []
        code = trials.collected(work, args.tests or trials.FILES, options)
        if failed:
            raise failed[0]
        if code:
            raise RuntimeError(f"pytest could not collect the tests: exit code {code}")
    return {mutant: log[keys[mutant]] for mutant in chosen}


def summary(rows: list[dict]) -> str:
    """Count the results by file, by kind, and in all."""
    lines = []
    for key in ("file", "kind"):
        table = defaultdict(Counter)
        for row in rows:
            table[row[key]][row["status"]] += 1
        lines.append(f"{key:14s} {'killed':>9s} {'equivalent':>11s} {'survived':>9s}")
        for name, n in sorted(table.items()):
            lines.append(f"{name:14s} {n['killed']:9d} {n['equivalent']:11d} {n['survived']:9d}")
        lines.append("")
    total = Counter(row["status"] for row in rows)
    by_ordinary = sum(row.get("tier") == "ordinary" for row in rows)
    return "\n".join(lines) + (
        f"{len(rows)} mutants: {total['killed']} killed, {by_ordinary} of them by ordinary tests, "
        f"{total['equivalent']} equivalent, {total['survived']} survived"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    args = parser().parse_args(argv)
    every = mutants.of_files(sorted(args.kernels.glob("*.py")))
    try:
        reasons = equivalents(args.equivalents, every)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    chosen = every if args.all else mutants.sample(every, args.count, args.seed)
    chosen = [m for m in chosen if args.only in f"{m.file.removesuffix('.py')}.{m.function}.{m.kind}"]
    if not chosen:
        parser().error(f"--only: {args.only!r} matches no mutant; expected a part of file.function.kind")
    if args.list:
        for m in chosen:
            print(f"{m.file}:{m.line} {m.function} {m.kind}: {m.before} -> {m.after}")
        print(f"{len(chosen)} of {len(every)} mutants, {len(reasons)} listed as equivalent")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    found = run([mutant for mutant in chosen if mutant not in reasons], args)
    found |= {m: {"status": "equivalent", "how": reasons[m]} for m in chosen if m in reasons}
    rows = [{**mutant._asdict(), **fact} for mutant, fact in sorted(found.items())]
    with (args.out / "mutants.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(summary(rows))
    return int(any(row["status"] == "survived" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
