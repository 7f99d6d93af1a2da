"""Which cases of a parametrised test run in the ordinary command; the rest run with `-m full`."""

import itertools
from collections import defaultdict
from collections.abc import Iterable

import pytest


def values_of(parameters: dict) -> list[tuple[str, str]]:
    """List the values of a case with their names; each field of a named tuple is a value."""
    found = []
    for name, value in parameters.items():
        fields = value._asdict() if hasattr(value, "_asdict") else {name: value}
        found += [(field, repr(part)) for field, part in fields.items()]
    return sorted(found)


def spread(cases: list[dict], count: int) -> list[int]:
    """Choose ``count`` cases that have as many different pairs of values as possible.

    Each step takes the case with the most pairs that no earlier choice has; at a tie, the first such case.

    Returns:
        The indices of the chosen cases.
    """
    # Each value also forms a pair with itself, because a test of one parameter has no other pairs.
    pairs = [set(itertools.combinations_with_replacement(values_of(case), 2)) for case in cases]
    chosen, seen = [], set()
    while len(chosen) < min(count, len(cases)):
        left = [i for i in range(len(cases)) if i not in chosen]
        chosen.append(max(left, key=lambda i: len(pairs[i] - seen)))
        seen |= pairs[chosen[-1]]
    return chosen


def mark_full(items: Iterable[pytest.Item]) -> None:
    """Mark cases as ``full``, except those chosen by the marker ``sample`` of their test."""
    cases = defaultdict(list)
    for item in items:
        if item.get_closest_marker("sample"):
            cases[item.nodeid.split("[")[0]].append(item)
    for of_one_test in cases.values():
        (count,) = of_one_test[0].get_closest_marker("sample").args
        kept = spread([item.callspec.params for item in of_one_test], count)
        for i, item in enumerate(of_one_test):
            if i not in kept:
                item.add_marker(pytest.mark.full)
