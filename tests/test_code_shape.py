"""The shape of the code: a small root, short functions and modules, unique class names, plain words."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

import pigguf

PACKAGE = Path(pigguf.__file__).parent
ROOT_MODULES = 6
FUNCTION_LINES = 60
MODULE_LINES = 500
DATA_TABLES: frozenset[str] = frozenset()  # modules that are mostly data, and may be longer

# Words that no other project of the field uses. Matched in names, comments and strings, whole words only.
UNUSUAL_WORDS = re.compile(
    r"\b(roads?|dear|foretells?|foretold|anew|upside down|passed over|likeliest|of late|nobody|rooms? of|"
    r"mends?|mended|mending|remarks?|held_interrupts|deep_stack|in_words|tellers?|settle_flash_attention|"
    r"recalls?|recalled|but for|in place of|so many|it is said|is none of|are none of|drawn|draws?|"
    r"unproved|turned by|halves of a head|neighbours)\b",
    re.IGNORECASE,
)


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def named(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_few_modules_are_at_the_root() -> None:
    found = [path.name for path in PACKAGE.glob("*.py")]
    assert len(found) <= ROOT_MODULES, found


def test_no_module_is_long() -> None:
    lengths = {named(path): len(path.read_text(encoding="utf-8").splitlines()) for path in modules()}
    assert not {
        name: lines for name, lines in lengths.items() if lines > MODULE_LINES and name not in DATA_TABLES
    }


def test_no_function_is_long() -> None:
    long = {
        f"{named(path)}: {function.name}": lines
        for path in modules()
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
        if function.end_lineno is not None
        and (lines := function.end_lineno - function.lineno + 1) > FUNCTION_LINES
    }
    assert not long


def test_no_class_name_is_used_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                homes[node.name].append(named(path))
    assert not {name: found for name, found in homes.items() if len(found) > 1}


@pytest.mark.parametrize("path", modules(), ids=named)
def test_words_are_the_field_s(path: Path) -> None:
    found = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.NAME, tokenize.COMMENT, tokenize.STRING) or token.type > tokenize.OP:
            words = token.string.replace("_", " ") if token.type == tokenize.NAME else token.string
            found += [f"{token.start[0]}: {match.group()}" for match in UNUSUAL_WORDS.finditer(words)]
    assert not found
