"""Mutants of the kernels: every change of one place, of a list of kinds, found in the syntax tree.

A mutant replaces the text of one node, so that line numbers stay and the rest of the file is as written.
Docstrings, decorators, annotations, signatures and static assertions are left alone: they compute nothing.
"""

import ast
import copy
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
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
CONTEXT = 100  # characters of `before`, at most, if the change itself is not longer


class Mutant(NamedTuple):
    file: str
    function: str  # "" on the level of the module
    line: int
    end_line: int  # of the statement, or of its head
    kind: str
    before: str  # the change with what is around it, as Python writes it
    after: str
    start: int  # in the file's bytes
    end: int
    text: str
    number: int = 0  # of those that look the same

    def name(self) -> str:
        """The same as long as the source text is: positions do not count."""
        key = "\0".join((self.file, self.function, self.kind, self.before, self.after))
        key += f"\0{self.number}" if self.number else ""
        return hashlib.sha256(key.encode()).hexdigest()[:10]

    def applied(self, source: str) -> str:
        data = source.encode()
        return (data[: self.start] + self.text.encode() + data[self.end :]).decode()


def of_pairs(name: str, known: set[str]) -> Iterator[tuple[str, str]]:
    """Other names that a name may be taken for, each with the kind of the mistake."""
    for kind, pairs in PAIRS.items():
        for one, other in (order for pair in pairs for order in (pair, pair[::-1])):
            found = None
            if one.startswith("_") and name.endswith(one):
                found = name[: -len(one)] + other
            elif name == one:
                found = other
            if found in known:
                yield kind, found


def changed(node: ast.AST, **fields) -> str:
    """The text of a node with other fields."""
    node = copy.copy(node)
    for name, value in fields.items():
        setattr(node, name, value)
    return ast.unparse(node)


def of_operator(node: ast.AST) -> Iterator[tuple[str, ast.AST, str]]:
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
            yield "choice", value, str(isinstance(node.op, ast.And))  # as if it were not there
    elif isinstance(node, ast.IfExp):
        yield "choice", node, changed(node, body=node.orelse, orelse=node.body)
    elif isinstance(node, ast.If):
        yield "choice", node.test, f"not ({ast.unparse(node.test)})"


def of_call(node: ast.Call) -> Iterator[tuple[str, ast.AST, str]]:
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


def of_number(node: ast.Constant) -> Iterator[tuple[str, ast.AST, str]]:
    value = node.value
    if isinstance(value, bool):
        yield "choice", node, str(not value)
    elif isinstance(value, int):
        yield from (("constant", node, str(other)) for other in (value + 1, value - 1) if other >= 0)
    elif isinstance(value, float):
        yield "constant", node, str(2 * value if value else 1.0)


def changes(node: ast.AST, known: dict[str, int]) -> Iterator[tuple[str, ast.AST, str]]:
    """Of a node: the kind of a change, what is replaced, and by which text."""
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


def children(node: ast.AST) -> Iterator[ast.AST]:
    """What may change within a node."""
    if isinstance(node, ast.Call):
        if isinstance(node.func, ast.Attribute):
            yield node.func.value
        yield from (*node.args, *(keyword.value for keyword in node.keywords))
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
        yield node.value  # another index is another axis
    elif isinstance(node, ast.Assign | ast.AnnAssign):
        yield node.value
    elif isinstance(node, ast.FunctionDef):
        yield from node.body
    else:
        yield from ast.iter_child_nodes(node)


def computes(node: ast.AST) -> bool:
    """Docstrings and assertions do not."""
    if not isinstance(node, ast.Expr):
        return True
    return isinstance(node.value, ast.Call) and not ast.unparse(node.value.func).endswith("static_assert")


class Source:
    """A file, and where the nodes of its tree are in it."""

    def __init__(self, path: Path):
        self.file = path.name
        self.text = path.read_text()
        self.data = self.text.encode()
        self.tree = ast.parse(self.text)
        lengths = [len(line) for line in self.data.splitlines(keepends=True)]
        self.starts = [sum(lengths[:i]) for i in range(len(lengths))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Of a statement that has a body, its head."""
        start = self.starts[node.lineno - 1] + node.col_offset
        body = getattr(node, "body", None)
        if isinstance(node, ast.stmt) and body:
            return start, self.starts[body[0].lineno - 1] + body[0].col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def mutant(self, path: list[ast.AST], function: str, kind: str, node: ast.AST, text: str) -> Mutant:
        """``path`` leads from a statement to the node that is replaced."""
        text = f"({text})" if isinstance(node, ast.expr) and not text.isidentifier() else text
        start, end = self.span(node)
        for outer in path:  # as much around the change as fits
            first, last = self.span(outer)
            before = self.data[first:last].decode()
            after = (self.data[first:start] + text.encode() + self.data[end:last]).decode()
            before, after = normal(before, outer), normal(after, outer)
            if len(before) <= CONTEXT:
                break
        statement = path[0]
        if outer is not statement:
            within = normal(self.data[slice(*self.span(statement))].decode(), statement)[: CONTEXT // 2]
            before, after = f"{within} … {before}", f"{within} … {after}"
        lines = (statement.lineno, self.data[: self.span(statement)[1]].decode().rstrip().count("\n") + 1)
        return Mutant(self.file, function, *lines, kind, before, after, start, end, text)

    def mutants(self) -> Iterator[Mutant]:
        known = names_in(top for top in self.tree.body if isinstance(top, ast.Assign))
        for top in self.tree.body:
            if isinstance(top, ast.FunctionDef):
                for statement in top.body:
                    yield from self.within([statement], top.name, known | names_in([top]))
            elif isinstance(top, ast.Assign):
                yield from self.within([top], "", known)

    def within(self, path: list[ast.AST], function: str, known: dict[str, int]) -> Iterator[Mutant]:
        node = path[-1]
        if not computes(node):
            return
        for kind, target, text in changes(node, known):
            inner = path if target is node else [*path, target]
            yield self.mutant(inner, function, kind, target, text)
        for child in children(node):
            yield from self.within(
                [child] if isinstance(child, ast.stmt) else [*path, child], function, known
            )


def normal(text: str, node: ast.AST) -> str:
    """As Python writes it: on one line, with the parentheses that it needs, and without comments."""
    if isinstance(node, ast.expr):
        return ast.unparse(ast.parse(f"({text}\n)", mode="eval"))
    if hasattr(node, "body"):
        text = f"{text.removeprefix('el')}\n pass"
    return ast.unparse(ast.parse(text)).split("\n")[0]


def names_in(nodes: Iterable[ast.AST]) -> dict[str, int]:
    """Parameters and variables, and the lines that first give them a value."""
    found = {}
    for node in (inner for outer in nodes for inner in ast.walk(outer)):
        name = getattr(node, "arg", None) if isinstance(node, ast.arg) else getattr(node, "id", None)
        if isinstance(node, ast.arg) or (isinstance(getattr(node, "ctx", None), ast.Store) and name):
            found[name] = min(node.lineno, found.get(name, node.lineno))
    return found


def of_files(paths: Iterable[Path]) -> list[Mutant]:
    """All mutants of files, those that come out as the same file once."""
    found, alike = {}, Counter()
    for path in paths:
        source = Source(path)
        for mutant in source.mutants():
            key = mutant.file, mutant.applied(source.text)
            if mutant.before != mutant.after and key not in found:
                found[key] = mutant._replace(number=alike[mutant.name()])
                alike[mutant.name()] += 1
    return list(found.values())


def sample(mutants: Iterable[Mutant], count: int, seed: int = 0) -> list[Mutant]:
    """About so many, of each file and kind in proportion; the same whatever else changes in the files."""
    mutants = list(mutants)
    strata = defaultdict(list)
    for mutant in mutants:
        strata[mutant.file, mutant.kind].append(mutant)
    chosen = set()
    for stratum in strata.values():
        stratum.sort(key=lambda mutant: hashlib.sha256(f"{seed} {mutant.name()}".encode()).digest())
        chosen.update(stratum[: math.ceil(count * len(stratum) / len(mutants))])
    return [mutant for mutant in mutants if mutant in chosen]
