"""Machine code read: which instructions a kernel has, and how often a thread goes through them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

Trips = Sequence["int | tuple[int, Trips]"]
"""How often loops run, in the order of the code; a loop with others inside as (times, their trips)."""

_LABEL = re.compile(r"^\s*(\.L_\w+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")
_SUBROUTINE = re.compile(r"^\$__internal\S*:")


@dataclass(frozen=True)
class Code:
    """An NVIDIA kernel: its instructions in order, and where it loops and skips."""

    names: tuple[str, ...]
    loops: tuple[tuple[int, int], ...]
    """First and last instruction of each loop, outer before inner."""
    skips: tuple[tuple[int, int], ...]
    """First and last of what a conditional jump forward leaves out."""

    def longest_inner_loop(self) -> int:
        """Instructions of the longest loop without another in it; of the whole kernel if it has none."""
        inner = [loop for loop in self.loops if not any(_within(other, loop) for other in self.loops)]
        return max((last - first + 1 for first, last in inner), default=len(self.names))

    def executed(self, trips: Trips, share: float = 1.0) -> float:
        """How many instructions a thread executes if loops run as often as ``trips`` says, see `times`."""
        return sum(self.times(trips, share))

    def fetched(self, trips: Trips, share: float = 1.0) -> float:
        """How many bytes a thread loads from global memory meanwhile."""
        times = self.times(trips, share)
        return sum(t * _bytes(name) for t, name in zip(times, self.names, strict=True) if t)

    def times(self, trips: Trips, share: float = 1.0) -> list[float]:
        """How often a thread executes each instruction if loops run as often as ``trips`` says.

        Code that a jump may skip counts as follows: calls of subroutines for rare numbers not at all; loops
        as their trips say; what loads or stands outside of loops with ``share``; the rest, which widens a
        search in rare cases, not at all.

        Raises:
            ValueError: the code has not the loops that ``trips`` tells of.
        """
        times = [1.0] * len(self.names)
        for loop, count in self._assigned(self._inside(None), trips):
            for i in range(loop[0], loop[1] + 1):
                times[i] *= count
        for skip in self.skips:
            inside = self.names[skip[0] : skip[1] + 1]
            if any(_within(loop, skip) for loop in self.loops):
                factor = 1.0
            elif any(name.startswith("CALL") for name in inside):
                factor = 0.0
            elif any(name.startswith("LDG") for name in inside) or not self._surrounded(skip):
                factor = share
            else:
                factor = 0.0
            for i in range(skip[0], skip[1] + 1):
                times[i] *= factor
        return times

    def _surrounded(self, part: tuple[int, int]) -> bool:
        return any(loop[0] <= part[0] and part[1] <= loop[1] for loop in self.loops)

    def _inside(self, outer: tuple[int, int] | None) -> list[tuple[int, int]]:
        """The loops directly inside another, or in none."""
        candidates = [loop for loop in self.loops if outer is None or _within(loop, outer)]
        return [loop for loop in candidates if not any(_within(loop, other) for other in candidates)]

    def _assigned(self, loops: list[tuple[int, int]], trips: Trips) -> Iterator[tuple[tuple[int, int], int]]:
        unrolled = self._unrolled(loops, trips)
        if unrolled:
            yield from unrolled
            return
        if len(loops) != len(trips):
            raise ValueError(f"expected {len(trips)} loops side by side, got {len(loops)}: {self.loops}")
        for loop, trip in zip(loops, trips, strict=True):
            count, inner = trip if isinstance(trip, tuple) else (trip, ())
            yield loop, count
            yield from self._assigned(self._inside(loop), inner)

    def _unrolled(self, loops: list[tuple[int, int]], trips: Trips) -> list[tuple[tuple[int, int], int]]:
        """How often the parts of a loop run that ptxas unrolled by four; nothing if it is not like that.

        In the order of the code: once, for a count that never is; four at a time; two, if as many are left;
        one. How many a part is shows by its loads.
        """
        if len(loops) != 2 or len(trips) != 1 or not isinstance(trips[0], int):
            return []
        (four, one), count = loops, trips[0]
        parts = [four, one]
        for skip in self.skips:
            is_near = four[0] - (four[1] - four[0]) < skip[0] and skip[1] < one[0]
            is_around = any(part == skip or _within(part, skip) for part in loops)
            if is_near and self._loads(skip) and not is_around:
                parts.append(skip)
        parts.sort()
        loads = [self._loads(part) / max(self._loads(one), 1) for part in parts]
        times = (0, count // 4, count % 4 // 2, count % 2)
        return list(zip(parts, times, strict=True)) if loads == [1, 4, 2, 1] else []

    def _loads(self, part: tuple[int, int]) -> int:
        return sum(name.startswith("LDG") for name in self.names[part[0] : part[1] + 1])


def _bytes(name: str) -> int:
    if not name.startswith("LDG"):
        return 0
    width = re.search(r"\.[US]?(8|16|64|128|256)\b", name)
    return int(width[1]) // 8 if width else 4


def _within(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner != outer and outer[0] <= inner[0] and inner[1] <= outer[1]


def read(sass: str) -> Code:
    """From what ``nvdisasm -c`` prints, up to what stands behind the kernel.

    That is code for warps whose threads have parted (BRA.DIV; those of these kernels are together), and
    subroutines for rare numbers.
    """
    names: list[str] = []
    labels: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    asides: list[str] = []
    for line in sass.splitlines():
        if _SUBROUTINE.match(line.strip()):
            break
        if found := _LABEL.match(line):
            labels[found[1]] = len(names)
        elif found := _INSTRUCTION.search(line):
            if found[2].startswith("BRA.DIV"):
                asides += re.findall(r"\.L_\w+", found[3])
            elif found[2].startswith("BRA") and (target := re.search(r"\.L_\w+", found[3])):
                jumps.append((len(names), target[0]))
            names.append(found[2])
    behind = min((labels[label] for label in asides), default=len(names))
    if names[behind - 1] == "EXIT":
        del names[behind:]
    stuck = {position for position, label in jumps if labels.get(label) == position}
    while names and (names[-1] == "NOP" or len(names) - 1 in stuck):
        names.pop()  # what stands behind the last exit: a jump to itself, and padding
    loops: dict[int, int] = {}
    skips = []
    for position, label in jumps:
        target = labels.get(label, len(names))
        if position >= len(names):
            continue
        if target <= position:
            loops[target] = max(position, loops.get(target, 0))
        elif target > position + 1:
            skips.append((position + 1, min(target, len(names)) - 1))
    ordered = sorted(loops.items(), key=lambda loop: (loop[0], -loop[1]))
    return Code(tuple(names), tuple(ordered), tuple(skips))


def opcodes(sass: str) -> Counter[str]:
    """How many instructions there are of each name with its modifiers, subroutines included."""
    return Counter(found[2] for found in _INSTRUCTION.finditer(sass))
