"""Mutate the kernels: change one place after another and see whether a test fails.

    python tools/mutate.py                     # a sample of some 400 mutants, of every file and kind
    python tools/mutate.py --list --only taps  # what would be changed in one file; nothing is run
    python tools/mutate.py --only walk.visit   # the mutants of one function in the sample
    python tools/mutate.py --all --jobs 16     # every mutant

First every test runs once, to learn which lines of the kernels it reaches and how long it takes; then, for
each mutant, the tests that reach it, first those that failed for others and those that take least. Results
are kept in the folder of --out: a run that was stopped goes on where it was, and what survived is tried on
tests that are new. Kernels are interpreted: no GPU is needed, and none is used. Where 32 bits stand for 64,
the tests of large tensors come last, which also compile kernels.

A mutant that changes no result is listed in equivalents.json with the reason, by its text: an entry that
matches no mutant is an error. Exit code 1 if a mutant survives that is not listed.
"""

import argparse
import csv
import hashlib
import itertools
import json
import math
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import mutants  # noqa: E402
import trials  # noqa: E402
from mutants import Mutant  # noqa: E402

EQUIVALENTS = Path(__file__).with_name("equivalents.json")
COLUMNS = ("file", "function", "line", "kind", "before", "after", "status", "by", "how", "seconds")


def parser() -> argparse.ArgumentParser:
    head, _, rest = __doc__.partition("\n\n")
    found = argparse.ArgumentParser(
        "mutate.py", description=head, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("--all", action="store_true", help="every mutant, not a sample")
    add("--count", type=int, default=400, help="about how many in the sample (default: 400)")
    add("--seed", type=int, default=0, help="of the sample (default: 0)")
    add("--only", default="", metavar="TEXT", help="of these, those whose file.function.kind contains it")
    add("--list", action="store_true", help="list the mutants and run nothing")
    add("--json", action="store_true", help="print results as JSON on stdout")
    add("--jobs", type=int, default=1, help="processes at once (default: 1)")
    add("--budget", type=float, default=math.inf, metavar="S", help="the first tests, that take S seconds")
    help = "CPU time beyond five times the usual after which a test is called endless (default: 10)"
    add("--patience", type=float, default=10, metavar="S", help=help)
    add("--out", type=Path, default=Path("mutation-results"), help="folder of results")
    add("--kernels", type=Path, default=trials.KERNELS, help=argparse.SUPPRESS)
    add("--equivalents", type=Path, default=EQUIVALENTS, help=argparse.SUPPRESS)
    add("--tests", type=Path, nargs="*", help="test files (default: those that launch kernels)")
    return found


def equivalents(path: Path, every: Iterable[Mutant]) -> dict[str, str]:
    """Reasons by the names of mutants. ValueError for an entry that matches none."""
    by_text = defaultdict(list)
    for mutant in every:
        by_text[mutant.file, mutant.function, mutant.before, mutant.after].append(mutant)
    reasons, stale = {}, []
    for group in json.loads(path.read_text()) if path.exists() else []:
        for entry in group["mutants"]:
            found = by_text.get(tuple(entry))
            if found is None:
                stale.append(" | ".join(entry))
            for mutant in found or ():
                reasons[mutant.name()] = group["reason"]
    if stale:
        raise ValueError(f"{path.name} lists what no mutant is:\n" + "\n".join(stale))
    return reasons


def digest(*paths: Path) -> str:
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:16]


class Log:
    """Facts in lines of JSON, each under a key and valid for a state of the files that it was found on."""

    def __init__(self, path: Path):
        self.path, self.facts = path, {}
        if path.exists():
            for line in path.read_text().splitlines():
                key, state, fact = json.loads(line)
                self.facts[key] = state, fact

    def get(self, key: str, state: str) -> dict | None:
        known, fact = self.facts.get(key, (None, None))
        return fact if known == state else None

    def add(self, key: str, state: str, fact: dict) -> None:
        self.facts[key] = state, fact
        with self.path.open("a") as file:
            file.write(json.dumps([key, state, fact]) + "\n")


def progress(things: Iterable, total: int, words: str) -> Iterator:
    from tqdm import tqdm

    return tqdm(things, words, total, disable=None)


class Suite:
    """The tests that pytest collected, what they reach, and which of them found mutants."""

    def __init__(self, items: dict, args: argparse.Namespace):
        self.items, self.args = items, args
        self.log = Log(args.out / "reached.jsonl")
        kernels = digest(*args.kernels.glob("*.py"))
        files = {item.path: digest(item.path) for item in items.values()}
        self.states = {name: f"{kernels} {files[item.path]}" for name, item in items.items()}
        self.kills: Counter = Counter()
        self.facts: dict[str, dict] = {}

    def learn(self) -> None:
        """Run the tests that are not known yet. RuntimeError if one fails without any mutant."""
        unknown = [pair for pair in self.items.items() if self.log.get(pair[0], self.states[pair[0]]) is None]
        chunks = [unknown[i : i + 32] for i in range(0, len(unknown), 32)]
        with tempfile.TemporaryDirectory() as place:
            files = [Path(place) / path.name for path in sorted(self.args.kernels.glob("*.py"))]
            for file in files:
                file.write_text(trials.marked(self.args.kernels / file.name))
            kernels = [file for file in files if file.name != "__init__.py"]
            forks = (lambda c=chunk: trials.Fork(c, kernels) for chunk in chunks)
            for _, trial in progress(trials.run_all(forks, self.args.jobs), len(chunks), "tests, by 32"):
                if trial.killer:
                    raise RuntimeError(f"{trial.killer} fails on the kernels as they are: {trial.how}")
                for name, fact in trial.passed.items():
                    self.log.add(name, self.states[name], fact)
        self.facts = {name: self.log.get(name, self.states[name]) for name in self.items}

    def reaching(self, mutant: Mutant) -> list[str]:
        """Tests that reach its lines: those that found others, then one of each function in turn."""
        lines = set(range(mutant.line, mutant.end_line + 1))
        turns = defaultdict(list)
        for name, fact in sorted(self.facts.items(), key=lambda pair: pair[1]["seconds"]):
            if not mutant.function or lines & set(fact.get("lines", {}).get(mutant.file, ())):
                turns[name.split("[")[0]].append(name)
        order = [name for turn in itertools.zip_longest(*turns.values()) for name in turn if name]
        return sorted(order, key=lambda name: -self.kills[mutant.file, mutant.function, name])

    def fork(self, mutant: Mutant, mutated: Path, passed: Iterable[str]) -> trials.Fork:
        """Start its tests on a file that has it, but for those that it passed before."""
        items, limits, spent, passed = [], {}, 0, set(passed)
        for name in self.reaching(mutant):
            seconds = self.facts[name]["seconds"]
            spent += seconds
            is_affordable = spent <= self.args.budget or spent == seconds
            if is_affordable and self.key(name) not in passed:
                items.append((name, self.items[name]))
                limits[name] = self.args.patience + 5 * seconds
        return trials.Fork(items, [mutated], limits)

    def key(self, name: str) -> str:
        """The test as it is now."""
        return f"{name} {self.states[name]}"


def attempt(left: list[tuple[Mutant, dict]], suite: Suite) -> Iterator[tuple[Mutant, dict]]:
    """Try mutants, each with what is known of it, on the tests: what is known then."""
    kernels, sources = suite.args.kernels, {}
    with tempfile.TemporaryDirectory() as place:

        def start(number):
            mutant, known = left[number]
            source = sources.setdefault(mutant.file, (kernels / mutant.file).read_text())
            mutated = Path(place) / str(number) / mutant.file
            mutated.parent.mkdir()
            mutated.write_text(mutant.applied(source))
            return suite.fork(mutant, mutated, known.get("passed", ()))

        forks = (lambda n=number: start(n) for number in range(len(left)))
        for number, trial in progress(trials.run_all(forks, suite.args.jobs), len(left), "mutants"):
            mutant, known = left[number]
            if not trial.killer and mutant.kind == "width" and suite.args.tests is None:
                last = trials.in_a_copy(Path(place) / str(number) / mutant.file)
                trial = last._replace(seconds=trial.seconds + last.seconds, passed=trial.passed)
            shutil.rmtree(Path(place) / str(number))
            passed = sorted({*known.get("passed", ()), *map(suite.key, trial.passed)})
            seconds = round(trial.seconds + known.get("seconds", 0), 2)
            if trial.killer:
                suite.kills[mutant.file, mutant.function, trial.killer] += 1
                yield mutant, {"status": "killed", "by": trial.killer, "how": trial.how, "seconds": seconds}
            else:
                by = f"{len(passed)} of {len(suite.reaching(mutant))} tests passed"
                yield mutant, {"status": "survived", "by": by, "seconds": seconds, "passed": passed}


def run(chosen: list[Mutant], args: argparse.Namespace, report: Callable[[Mutant, dict], None]) -> None:
    """Try each on the tests, or look up what came out before; ``report`` is called with it."""
    log, state = Log(args.out / "trials.jsonl"), digest(*args.kernels.glob("*.py"))
    known = {mutant: log.get(mutant.name(), state) or {} for mutant in chosen}
    for mutant, fact in known.items():
        if fact.get("status") == "killed":
            report(mutant, fact)
    left = [(mutant, fact) for mutant, fact in known.items() if fact.get("status") != "killed"]
    failed = []

    def work(items):
        try:
            suite = Suite(items, args)
            suite.learn()
            for mutant, fact in attempt(left, suite):
                log.add(mutant.name(), state, fact)
                report(mutant, fact)
        except BaseException as error:  # pytest would swallow it
            failed.append(error)

    if left:
        code = trials.collected(work, args.tests or [trials.TESTS / name for name in trials.FILES])
        if failed:
            raise failed[0]
        if code:
            raise RuntimeError(f"pytest could not collect the tests: exit code {code}")


def summary(rows: list[dict]) -> str:
    """Counts by file and by kind."""
    lines = []
    for key in ("file", "kind"):
        table = defaultdict(Counter)
        for row in rows:
            table[row[key]][row["status"]] += 1
        lines.append(f"{key:14s} {'killed':>9s} {'equivalent':>11s} {'survived':>9s}")
        for name, counts in sorted(table.items()):
            lines.append(
                f"{name:14s} {counts['killed']:9d} {counts['equivalent']:11d} {counts['survived']:9d}"
            )
        lines.append("")
    total = Counter(row["status"] for row in rows)
    return "\n".join(lines) + (
        f"{len(rows)} mutants: {total['killed']} killed, {total['equivalent']} equivalent, "
        f"{total['survived']} survived"
    )


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    every = mutants.of_files(sorted(args.kernels.glob("*.py")))
    try:
        reasons = equivalents(args.equivalents, every)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    chosen = every if args.all else mutants.sample(every, args.count, args.seed)
    place = lambda m: f"{m.file.removesuffix('.py')}.{m.function}.{m.kind}"  # noqa: E731
    chosen = [m for m in chosen if args.only in place(m)]
    rows = []

    def report(mutant: Mutant, fact: dict) -> None:
        row = {name: fact.get(name, getattr(mutant, name, "")) for name in COLUMNS}
        rows.append(row)
        if row["status"] == "survived" and not args.json:
            print(f"survived: {mutant.file}:{mutant.line} {mutant.function} ({row['by']})", file=sys.stderr)
            print(json.dumps([mutant.file, mutant.function, mutant.before, mutant.after]), flush=True)

    if args.list:
        for m in chosen:
            print(f"{m.name()} {m.file}:{m.line} {m.function} {m.kind}: {m.before} -> {m.after}")
        print(f"{len(chosen)} of {len(every)} mutants, {len(reasons)} listed as equivalent")
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    for mutant in chosen:
        if mutant.name() in reasons:
            report(mutant, {"status": "equivalent", "by": reasons[mutant.name()]})
    run([m for m in chosen if m.name() not in reasons], args, report)
    rows.sort(key=lambda row: (row["file"], row["line"], row["kind"], row["before"], row["after"]))
    with (args.out / "mutants.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(json.dumps(rows) if args.json else summary(rows))
    return int(any(row["status"] == "survived" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
