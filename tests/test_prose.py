"""Docstrings, comments, messages and pages are free of phrases that newcomers stumbled over."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("stn_triton", "perf", "tests", "tools", "docs")
PAGES = sorted(path for pattern in ("*.md", "docs/**/*.md") for path in ROOT.glob(pattern))
WORDS = re.compile(
    r"\b(?:nor|anew|thereof|of ill will|"
    r"(?:is|are|was|were|be|been|being) told|tells|told (?:of|to)|"
    r"asks|(?:is|are|was|were|be|been) asked|"
    r"lets? pass|let(?:s|ting)? (?:it|them|those|these) pass|(?:is|are) let)\b",
    re.IGNORECASE,
)
"""Archaic words, and "tell, ask, let pass" where "log, check, allow" are meant."""
HEADLESS = re.compile(
    r"(?:^|(?<=[.!:;] )|(?<=\n))(?:What|Who|Whose|Whoever|Whatever|Whichever)\b(?![^.!?:;\n]*\?)"
)
"""Sentences whose subject is a clause: "What a shard has whole has a gradient", "Who asks"."""
CONTINUES = re.compile(r"^(?:Of|The same|As|Nor|And|But|Or|Also|Too|Likewise|With|For|In|To|By)\b")
"""Docstrings that continue the function's name: "Of a launch, ..."."""


def faults(text: str, *, is_docstring: bool = False) -> list[str]:
    found = [match[0] for pattern in (WORDS, HEADLESS) for match in pattern.finditer(text)]
    if is_docstring:
        found += [match[0] for match in CONTINUES.finditer(text.lstrip())]
    return found


def prose(path: Path):
    """Yield each comment and string of several words: its line, its text, whether it is a docstring."""
    source = path.read_text()
    tree = ast.parse(source)
    heads = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            bodies = node.body
            if bodies and isinstance(bodies[0], ast.Expr) and isinstance(bodies[0].value, ast.Constant):
                heads.add(id(bodies[0].value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.lineno, node.value, id(node) in heads
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ")
            if comments and token.line.lstrip().startswith("#") and token.start[0] == comments[-1][0] + 1:
                comments[-1] = (token.start[0], f"{comments[-1][1]} {text}")
            else:
                comments.append((token.start[0], text))
    for line, text in comments:
        yield line, text, False


@pytest.mark.parametrize("folder", FOLDERS)
def test_of_sources(folder):
    hits = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        if path != Path(__file__):  # which has the patterns themselves
            for line, text, is_docstring in prose(path):
                for hit in faults(text, is_docstring=is_docstring):
                    hits.append(f"{path.relative_to(ROOT)}:{line}: {hit!r} in {text[:90]!r}")
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_of_a_page(path):
    assert not faults(re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL))


@pytest.mark.parametrize(
    "text",
    [
        "Nor where another holds it.",
        "It is told of and ignored.",
        "Up to 1/64 is let pass.",
        "Who asks gets it.",
    ],
)
def test_the_known_turns_are_found(text):
    assert faults(text)
    assert not faults("Returned instead of infinity. A damaged table is ignored with a warning.")
