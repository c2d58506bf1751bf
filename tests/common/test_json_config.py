"""Typed access to a JSON config."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pigguf.common.json_config import JsonConfig
from pigguf.errors import CheckpointError


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (int, 4096, 4096),
        (int, 4096.0, 4096),
        (int, 1, 1),
        (int, 2**32 - 1, 2**32 - 1),
        (float, 1e-5, 1e-5),
        (float, 4, 4.0),
        (float, -0.5, -0.5),
        (bool, True, True),
        (bool, False, False),
        (str, "silu", "silu"),
    ],
)
def test_values_are_read_as_their_type(kind: type, value: Any, expected: Any) -> None:
    config = JsonConfig({"key": value})
    for read in (config.require("key", kind), config.optional("key", kind, expected)):
        assert read == expected
        assert type(read) is kind


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, True),
        (int, "4096"),
        (int, 4096.5),
        (int, 0),
        (int, -1),
        (int, 2**32),
        (int, math.nan),
        (int, [4096]),
        (float, True),
        (float, "1e-5"),
        (float, math.nan),
        (float, math.inf),
        (float, 10**400),
        (bool, 1),
        (bool, "true"),
        (str, 1),
        (str, ["silu"]),
    ],
)
def test_other_types_are_rejected_with_file_key_and_value(kind: type, value: Any) -> None:
    config = JsonConfig({"key": value}, "generation_config.json", "section.")
    for read in (lambda: config.require("key", kind), lambda: config.optional("key", kind, None)):
        with pytest.raises(CheckpointError, match=r"generation_config\.json: section\.key = "):
            read()


def test_null_means_missing() -> None:
    config = JsonConfig({"there": None})
    assert "there" not in config
    assert config.optional("there", int, 7) == 7
    assert config.optional("absent", float, 0.5) == 0.5
    for key in ("there", "absent"):
        with pytest.raises(CheckpointError, match=f"config.json lacks {key}") as caught:
            config.require(key, int)
        assert caught.value.hint == "set it to an integer above 0"


def test_sections_are_objects() -> None:
    config = JsonConfig({"a": {"b": {"c": "x"}}, "empty": {}, "null": None, "number": 1})
    section = config.section("a")
    assert section is not None
    nested = section.section("b")
    assert nested is not None
    with pytest.raises(CheckpointError, match=r'config\.json: a\.b\.c = "x" is not an integer above 0'):
        nested.require("c", int)
    assert [config.section(key) for key in ("empty", "null", "absent")] == [None, None, None]
    with pytest.raises(CheckpointError, match="number = 1 is not an object"):
        config.section("number")


def test_long_values_are_cut_in_messages() -> None:
    message = JsonConfig({"key": list(range(1000))}).describe("key")
    assert len(message) < 250
    assert message.endswith("...")
