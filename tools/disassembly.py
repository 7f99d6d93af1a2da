"""NVIDIA's machine code: the loops of a kernel, and how often a thread executes each instruction."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from perf.kernels.compiled import INSTRUCTION

_LABEL = re.compile(r"^\s*(\.L_\w+):")
_SUBROUTINE = re.compile(r"^\$__internal\S*:")
Span = tuple[int, int]
"""Positions of the first and the last instruction of a piece of code."""


@dataclass(frozen=True)
class Code:
    """The instructions of a kernel in order, and where it loops and skips."""

    names: tuple[str, ...]
    loops: tuple[Span, ...]
    """Outer loops come before inner ones."""
    skips: tuple[Span, ...]
    """Each is the code that a conditional jump forward leaves out."""

    def executed(self, trips: Sequence[float]) -> float:
        """Number of instructions that a thread executes.

        Code inside a loop that a jump may skip, without a load, counts as never executed: it widens a search
        in rare cases. The same holds for calls of subroutines, which handle rare numbers.

        Args:
            trips: how often each loop runs, the outermost first.

        Raises:
            ValueError: the kernel's loops are not as many, or not one inside the other.
        """
        is_nest = all(_is_within(b, a) for a, b in zip(self.loops, self.loops[1:], strict=False))
        if len(self.loops) != len(trips) or not is_nest:
            raise ValueError(f"expected {len(trips)} loops, each inside the one before, got {self.loops}")
        rare = [skip for skip in self.skips if self._is_rare(skip)]
        return sum(
            math.prod(n for loop, n in zip(self.loops, trips, strict=True) if loop[0] <= i <= loop[1])
            for i in range(len(self.names))
            if not any(first <= i <= last for first, last in rare)
        )

    def _is_rare(self, skip: Span) -> bool:
        inside = self.names[skip[0] : skip[1] + 1]
        has_a_loop = any(_is_within(loop, skip) for loop in self.loops)
        in_a_loop = any(loop[0] <= skip[0] and skip[1] <= loop[1] for loop in self.loops)
        is_subroutine = any(name.startswith("CALL") for name in inside)
        has_a_load = any(name.startswith("LDG") for name in inside)
        return not has_a_loop and (is_subroutine or (in_a_loop and not has_a_load))


def _is_within(inner: Span, outer: Span) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def read(sass: str) -> Code:
    """Parse the output of ``nvdisasm -c``.

    Code behind the kernel's last exit is left out: subroutines for rare numbers, and padding.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for line in sass.splitlines():
        if _SUBROUTINE.match(line.strip()):
            break
        if found := _LABEL.match(line):
            labels[found[1]] = len(names)
        elif found := INSTRUCTION.search(line):
            if found[1].startswith("BRA") and (target := re.search(r"\.L_\w+", found[2])):
                jumps.append((len(names), target[0]))
            names.append(found[1])
    stuck = {position for position, label in jumps if labels.get(label) == position}
    while names and (names[-1] == "NOP" or len(names) - 1 in stuck):
        names.pop()
    loops: dict[int, int] = {}
    skips = []
    for position, label in jumps:
        target = labels.get(label, len(names))
        if target <= position < len(names):
            loops[target] = max(position, loops.get(target, 0))
        elif position + 1 < target and position < len(names):
            skips.append((position + 1, min(target, len(names)) - 1))
    return Code(tuple(names), tuple(sorted(loops.items())), tuple(skips))
