"""Published configs are read as the models were trained, and the documentation agrees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.rope_configs import OTHER_ROPE_TYPES, PUBLISHED

from pigguf.rope import read_rope

TABLES = Path(__file__).parent.parent.parent / "docs" / "rope.md"


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read_as_the_models_were_trained(name: str) -> None:
    config, limit, factor, original, context, base = PUBLISHED[name]
    rope = read_rope(config, {} if limit is None else {"model_max_length": limit})
    assert (rope.factor, rope.original_context, rope.context_length, rope.rope_theta) == (
        factor,
        original,
        context,
        base,
    )
    assert rope.rope_type == ("none" if factor == 1 else "linear")
    assert rope.context_matches_factor
    assert len(rope.decisions) == 3


def test_the_table_in_the_documentation_is_correct() -> None:
    text = TABLES.read_text(encoding="utf-8")
    table = re.findall(r"^\| ([^|]+) \| [^|]+ \| (\d+) \| (\d+) \| (\d+) \|$", text, re.MULTILINE)
    assert len(table) >= 20
    for name, *numbers in table:
        config, limit, *_ = PUBLISHED[name.removesuffix(" (its language model)")]
        rope = read_rope(config, {"model_max_length": limit})
        assert [rope.factor, rope.original_context, rope.context_length] == [int(n) for n in numbers], name


@pytest.mark.parametrize("name", OTHER_ROPE_TYPES)
def test_published_configs_of_other_rope_types_are_read_as_the_models_were_trained(name: str) -> None:
    config, kind, *numbers = OTHER_ROPE_TYPES[name]
    rope = read_rope(config, {"model_max_length": 131072})
    assert (rope.rope_type, rope.factor, rope.original_context, rope.context_length, rope.rope_theta) == (
        kind,
        *numbers,
    )
    assert rope.local_rope_theta == (1e4 if "gemma" in name else None)
    assert len(rope.decisions) == 3
    assert all(item.meaning for item in rope.evidence)


def test_the_table_of_other_rope_types_in_the_documentation_is_correct() -> None:
    text = TABLES.read_text(encoding="utf-8")
    kinds = "none|linear|yarn|llama3|longrope"
    row = rf"^\| ([^|]+) \| [^|]+ \| ({kinds}) \| (\d+|-) \| (\d+) \| (\d+) \|$"
    table = re.findall(row, text, re.MULTILINE)
    assert {name for name, *_ in table} == set(OTHER_ROPE_TYPES)
    for name, kind, factor, *windows in table:
        rope = read_rope(OTHER_ROPE_TYPES[name][0], {})
        shown_factor = "-" if kind == "longrope" else f"{rope.factor:g}"
        assert [rope.rope_type, shown_factor] == [kind, factor], name
        assert [rope.original_context, rope.context_length] == [int(window) for window in windows], name
