"""Patterns as grammars: they let through what the expression matches, and nothing else."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.tiny_chat import TEMPLATE, write_next_token_model

from pigguf.errors import UsageError
from pigguf.grammar import json_schema_to_grammar
from pigguf.inference.engine import Model
from pigguf.inference.engine.grammar_sampler import GrammarSampler

PATTERNS = {
    "^a$": ["a", "aa", ""],
    "^(ab|c)+$": ["ab", "cab", "cc", "b", "", "abb"],
    "^(?:x|yz){2,3}$": ["xx", "yzx", "xyzx", "x", "xxxx"],
    "^(?<year>[0-9]{4})-(0[1-9]|1[0-2])$": ["2026-11", "0000-09", "2026-13", "26-11"],
    r"^\w+\s\W\D\S$": ["a_9 !!!", "a\t\u00e9\u00e9\u00e9", "a  99", "a b!!"],
    r"^[^a-z\s]{4}$": ["AB9\u00e9", "A\nBC", "ABCd", '"\\{}'],
    r"^[\]\-\\^.]+$": ["]-\\^.", "a", "]]"],
    r"^\u0041\x42\.\/\t\"$": ['AB./\t"', 'ABx/\t"'],
    "^.{3}$": ["abc", "a\nb", "\u4f60\u597d\U0001f437", "ab"],
    "^a*?b+?c??$": ["b", "aabbc", "ac", "bcc"],
    "^x$|^yy$|z$": ["x", "yy", "az", "xx", "y"],
    "^(a|)b$": ["ab", "b", "aab"],
    "^$": ["", "a"],
    "[-a]{5,}": ["-a-a-", "xx-a-a-yy", "-a-a"],
    "q": ["q", "aqb", "ab"],
    "^(a{0,60}b){0,60}$": ["", "ab", "aab" * 60, "a", "ab" * 61, "a" * 61 + "b"],
    "^(a*)*(b|b?)+c$": ["aabbc", "c", "ab"],
    "a.{3}b": ["aaaab", "a123b", "xxa123bxx", "a12b"],
    r"^[\w.]+@[\w.]+\.\w{2,}$": ["a.b@c.d.eu", "a@b", "a@b.c"],
    "": ["", "a"],
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_grammar_lets_through_what_the_pattern_matches(
    accepts: Callable[[str, str], bool], pattern: str
) -> None:
    grammar = json_schema_to_grammar({"type": "string", "pattern": pattern})
    expression = re.compile(pattern.replace("(?<", "(?P<"), re.ASCII)  # as ECMA-262 means \\w
    for text in PATTERNS[pattern]:
        matches = expression.search(text) is not None
        assert accepts(grammar, json.dumps(text, ensure_ascii=False)) is matches, text


def test_ambiguous_patterns_have_a_single_path(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Check that llama.cpp does not try every path, which would take hours, and prints nothing."""
    path = write_next_token_model(tmp_path / "tiny.gguf", TEMPLATE, {"abcdefghijklmn!": "x"})
    with Model.open(path, vocab_only=True) as model:
        quote, letters = model.tokenize('"', add_special=False)[-1:], model.tokenize("abcdefghijklmn!")[-1:]
        grammar = json_schema_to_grammar({"pattern": f"^{'[a-z]*' * 40}$"})
        begun = time.monotonic()
        state = GrammarSampler(model, grammar)
        state.accept(*quote)
        assert not state.allows(*letters)
        state.free()
    assert time.monotonic() - begun < 5
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("pattern", "position"),
    [
        ("(a", 3),
        ("a)", 2),
        ("[a", 3),
        ("[b-a]", 5),
        ("[]", 3),
        ("*", 1),
        ("a**", 3),
        ("a{3,2}", 7),
        ("a{9999}", 8),
        ("a{x}", 3),
        ("(?=a)", 3),
        ("(?!a)", 3),
        ("(?<!a)", 4),
        (r"(a)\1", 6),
        (r"\bword", 3),
        (r"\p{L}", 3),
        (r"\u12", 5),
        ("a^b", 2),
        ("a$b", 3),
        ("\\", 2),
        ("\x01", 2),
    ],
)
def test_invalid_patterns_and_unsupported_syntax_are_refused(pattern: str, position: int) -> None:
    with pytest.raises(UsageError, match=f"character {position}:"):
        json_schema_to_grammar({"pattern": pattern})


@pytest.mark.parametrize(
    "pattern", ["a" * 20_000, "((a{90}){90}){90}", "^.*a.{20}$", "(a{0,1000}b{0,1000}){4}" * 3]
)
def test_patterns_with_too_many_states_are_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="needs more than 8,192 states"):
        json_schema_to_grammar({"pattern": pattern})
