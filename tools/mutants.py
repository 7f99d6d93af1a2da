"""Mutants of the kernels: every change of one place in the syntax tree, by a list of kinds.

Docstrings, decorators, annotations, signatures and static assertions stay, because they compute nothing.
"""

import ast
import copy
import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

KINDS = {
    "sign": "a + b for a - b and back, a for -a, a for abs(a), the last term of an FMA negated",
    "factor": "a for a * b, a / b, a // b, a % b; b for a * b",
    "comparison": "< for <=, > for >=, == for !=, and back",
    "mask": "a for a & b or a | b, b too; & for | and back; a for ~a; an access without its mask",
    "choice": "tl.where, `if`, `and`, `or`: always, never, or the other way round",
    "axis": "x for y, width for height, rows for columns, image for channel: names, strides and indices",
    "end": "low for high, first for last, input for output: names that come in such pairs",
    "extreme": "minimum for maximum, floor for ceil, and back",
    "constant": "one more, one less; twice a fraction",
    "loop": "one turn less",
    "width": "32 for 64 bits in index arithmetic",
    "statement": "an addition to a variable, or a store, left out",
}
PAIRS = {
    "axis": (
        *(("_stride_h", "_stride_w"), ("_stride_n", "_stride_c"), ("_stride_row", "_stride_column")),
        *(("H_in", "W_in"), ("H_out", "W_out"), ("BLOCK_H", "BLOCK_W"), ("TILE_H", "TILE_W")),
        *(("x", "y"), ("u", "v"), ("ow", "oh"), ("top_u", "top_v"), ("error_u", "error_v")),
        *(("row", "column"), ("rows", "columns"), ("first_x", "first_y"), ("last_x", "last_y")),
    ),
    "end": (
        *(("low", "high"), ("lows", "highs"), ("lo", "hi"), ("los", "his"), ("least", "most")),
        *(("first", "last"), ("is_first", "is_last"), ("below", "above"), ("starts_ptr", "order_ptr")),
        *(("sizes_in", "sizes_out"), ("sizes", "sizes_in"), ("sizes", "sizes_out"), ("samples", "count")),
        *(("weights", "slopes"), ("weight", "slope"), ("image", "gradient"), ("masks", "changing")),
        *(("factors", "changes"), ("coverage", "turnover"), ("is_covered", "is_within"), ("n", "m")),
        *(("inside", "mask"), ("hit", "row_mask"), ("row_mask", "slice_mask"), ("bends", "moved_bends")),
        *(("a", "b"), ("spans", "reaches"), ("base", "positions"), ("los", "targets"), ("chunk", "tile")),
        *(("steps", "step"), ("c_start", "c_first"), ("row_constants", "row_base"), ("closed", "is_known")),
    ),
}
EXTREMES = {"minimum": "maximum", "min": "max", "floor": "ceil"}
EXTREMES |= {b: a for a, b in EXTREMES.items()}
SIGNS = {ast.Add: ast.Sub, ast.Sub: ast.Add}
BITS = {ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd}
COMPARISONS = {ast.Lt: ast.LtE, ast.Gt: ast.GtE, ast.Eq: ast.NotEq}
COMPARISONS |= {b: a for a, b in COMPARISONS.items()}


class Mutant(NamedTuple):
    """A change of one statement; of a compound statement, in its head only."""

    file: str
    function: str
    """Name of the function; empty at module level."""
    line: int
    end_line: int
    kind: str
    before: str
    """The statement or head on one line, as `ast.unparse` writes it."""
    after: str


Change = tuple[str, ast.AST, str]
"""Kind of a change, node to replace, and text to put in its place."""
Put = Callable[[ast.AST], object]
"""Function that puts another node in the place of a node."""


def of_pairs(name: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """Yield kinds, and known names that form a pair of `PAIRS` with the name."""
    for kind, pairs in PAIRS.items():
        for one, other in (order for pair in pairs for order in (pair, pair[::-1])):
            found = None
            if one.startswith("_") and name.endswith(one):
                found = name[: -len(one)] + other
            elif name == one:
                found = other
            if found in known:
                yield kind, found


def changed(node: ast.AST, **fields: object) -> str:
    """Return the source of a node with some fields replaced."""
    node = copy.copy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return ast.unparse(node)


def of_operator(node: ast.AST) -> Iterator[Change]:
    """Yield changes of arithmetic, comparisons and conditions."""
    if isinstance(node, ast.BinOp):
        op, left, right = type(node.op), ast.unparse(node.left), ast.unparse(node.right)
        is_joined = isinstance(node.left, ast.Tuple) or isinstance(node.right, ast.Tuple)
        if op in SIGNS and not is_joined:
            yield "sign", node, changed(node, op=SIGNS[op]())
        elif op in (ast.Mult, ast.Div, ast.FloorDiv, ast.Mod):
            yield "factor", node, left
            if op is ast.Mult:
                yield "factor", node, right
        elif op in BITS:
            for text in (left, right, changed(node, op=BITS[op]())):
                yield "mask", node, text
    elif isinstance(node, ast.UnaryOp) and not isinstance(node.operand, ast.Constant):
        kind = {ast.USub: "sign", ast.Invert: "mask", ast.Not: "choice"}[type(node.op)]
        yield kind, node, ast.unparse(node.operand)
    elif isinstance(node, ast.Compare) and type(node.ops[0]) in COMPARISONS:
        yield "comparison", node, changed(node, ops=[COMPARISONS[type(node.ops[0])]()])
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield "choice", value, str(isinstance(node.op, ast.And))  # as if the other value stood alone
    elif isinstance(node, ast.IfExp):
        yield "choice", node, changed(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.If):
        yield "choice", node.test, f"not ({ast.unparse(node.test)})"


def of_call(node: ast.Call) -> Iterator[Change]:
    """Yield changes of a call: of its function, its arguments or its mask."""
    function, args = node.func, node.args
    name = getattr(function, "attr", getattr(function, "id", ""))
    if name in EXTREMES:
        yield "extreme", function, f"{ast.unparse(function.value)}.{EXTREMES[name]}"
    elif name == "where":
        condition, yes, no = map(ast.unparse, args)
        for text in (yes, no, f"tl.where({condition}, {no}, {yes})"):
            yield "choice", node, text
    elif name == "abs":
        yield "sign", node, ast.unparse(args[0])
    elif name == "fma":
        yield "sign", args[2], f"-({ast.unparse(args[2])})"
    elif name in ("range", "static_range") and len(args) < 3:
        yield "loop", args[-1], f"{ast.unparse(args[-1])} - 1"
    if any(keyword.arg == "mask" for keyword in node.keywords):
        rest = [keyword for keyword in node.keywords if keyword.arg not in ("mask", "other")]
        yield "mask", node, changed(node, keywords=rest)


def of_number(node: ast.Constant) -> Iterator[Change]:
    """Yield changes of a constant."""
    value = node.value
    if isinstance(value, bool):
        yield "choice", node, str(not value)
    elif isinstance(value, int):
        yield from (("constant", node, str(other)) for other in (value + 1, value - 1) if other >= 0)
    elif isinstance(value, float):
        yield "constant", node, str(2 * value if value else 1.0)


def changes(node: ast.AST, known: dict[str, int]) -> Iterator[Change]:
    """Yield changes of a node without its children; ``known`` has the first line of each variable."""
    yield from of_operator(node)
    if isinstance(node, ast.Call):
        yield from of_call(node)
    elif isinstance(node, ast.Constant):
        yield from of_number(node)
    elif isinstance(node, ast.Subscript):
        index = getattr(node.slice, "value", None)
        if isinstance(index, int):
            yield "axis", node.slice, str(index - 1 if index else 1)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        already = {name for name, line in known.items() if line < node.lineno}
        yield from ((kind, node, other) for kind, other in of_pairs(node.id, already))
    elif isinstance(node, ast.Attribute) and node.attr == "int64":
        yield "width", node, changed(node, attr="int32")
    elif isinstance(node, ast.AugAssign):
        if type(node.op) in SIGNS:
            yield "sign", node, changed(node, op=SIGNS[type(node.op)]())
        yield "statement", node, "pass"
    elif isinstance(node, ast.Expr):
        yield "statement", node, "pass"


def slots(node: ast.AST) -> Iterator[tuple[ast.AST, Put]]:
    """Yield the children of a node, each with a function that replaces it."""
    for name, value in ast.iter_fields(node):
        if isinstance(value, list):
            yield from ((child, partial(value.__setitem__, i)) for i, child in enumerate(value))
        elif isinstance(value, ast.AST):
            yield value, partial(setattr, node, name)


def computing(node: ast.AST) -> Iterator[tuple[ast.AST, Put]]:
    """Yield the slots of a node that hold computations."""
    for child, put in slots(node):
        if isinstance(node, ast.Call) and child is node.func:
            if isinstance(child, ast.Attribute):
                yield child.value, partial(setattr, child, "value")
        elif isinstance(node, ast.Subscript) and child is node.slice:
            if not isinstance(child, ast.Constant):  # `changes` handles a constant index as an axis
                yield child, put
        elif not isinstance(node, ast.Assign | ast.AnnAssign) or child is node.value:
            yield child, put


def computes(node: ast.AST) -> bool:
    """Return False for docstrings and static assertions."""
    if not isinstance(node, ast.Expr):
        return True
    return isinstance(node.value, ast.Call) and not ast.unparse(node.value.func).endswith("static_assert")


def head(statement: ast.stmt) -> str:
    """Return the source of a statement without its body, on one line."""
    fields = {"body": [ast.Pass()], "orelse": []} if hasattr(statement, "body") else {}
    return changed(statement, **fields).split("\n")[0]


def within(
    node: ast.AST, put: Put, statement: ast.stmt, known: dict[str, int]
) -> Iterator[tuple[ast.stmt, str, str, str]]:
    """Apply each change in a node in turn, and yield its statement, kind, text before and text after."""
    if isinstance(node, ast.stmt):
        statement = node
    if not computes(node):
        return
    for kind, target, text in changes(node, known):
        place = put if target is node else next(put for child, put in slots(node) if child is target)
        new = ast.parse(text).body[0]
        before = head(statement)
        place(new if isinstance(target, ast.stmt) else new.value)
        yield statement, kind, before, head(new if target is statement else statement)
        place(target)
    for child, put_child in computing(node):
        yield from within(child, put_child, statement, known)


def names_in(nodes: Iterable[ast.AST]) -> dict[str, int]:
    """Return the parameters and variables with the lines that first assign them."""
    found: dict[str, int] = {}
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        is_variable = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.arg if isinstance(node, ast.arg) else node.id if is_variable else None
        if name:
            found[name] = min(node.lineno, found.get(name, node.lineno))
    return found


def of_tree(tree: ast.Module, file: str) -> Iterator[Mutant]:
    """Apply each mutant of a file in turn and yield it; equal ones on a line are yielded once."""
    seen = set()
    outer = names_in(top for top in tree.body if isinstance(top, ast.Assign))
    for place, top in enumerate(tree.body):
        if isinstance(top, ast.FunctionDef):
            name, known = top.name, outer | names_in([top])
            starts = [(node, partial(top.body.__setitem__, i)) for i, node in enumerate(top.body)]
        elif isinstance(top, ast.Assign):
            name, known, starts = "", outer, [(top, partial(tree.body.__setitem__, place))]
        else:
            continue
        for node, put in starts:
            for statement, kind, before, after in within(node, put, node, known):
                if before != after and (statement.lineno, after) not in seen:
                    seen.add((statement.lineno, after))
                    body = getattr(statement, "body", None)
                    end = body[0].lineno - 1 if body else statement.end_lineno
                    yield Mutant(file, name, statement.lineno, end, kind, before, after)


def of_files(paths: Iterable[Path]) -> list[Mutant]:
    """Return all mutants of files."""
    return [mutant for path in paths for mutant in of_tree(ast.parse(path.read_text()), path.name)]


def mutated(path: Path, mutant: Mutant) -> str:
    """Return the source of a file with a mutant applied."""
    tree = ast.parse(path.read_text())
    for found in of_tree(tree, path.name):
        if found == mutant:
            return ast.unparse(tree)
    raise ValueError(f"{path} has no such mutant: {mutant}")


def sample(mutants: Iterable[Mutant], count: int, seed: int = 0) -> list[Mutant]:
    """Choose about ``count`` mutants, in proportion to the number of each file and kind.

    Changes elsewhere in a file do not affect whether a mutant is chosen.
    """

    def order(mutant: Mutant) -> tuple[bytes, int]:
        text = f"{seed} {mutant._replace(line=0, end_line=0)}"
        return hashlib.sha256(text.encode()).digest(), mutant.line

    mutants = list(mutants)
    strata = defaultdict(list)
    for mutant in mutants:
        strata[mutant.file, mutant.kind].append(mutant)
    shares = {key: math.ceil(count * len(stratum) / len(mutants)) for key, stratum in strata.items()}
    chosen = {m for key, stratum in strata.items() for m in sorted(stratum, key=order)[: shares[key]]}
    return [mutant for mutant in mutants if mutant in chosen]
