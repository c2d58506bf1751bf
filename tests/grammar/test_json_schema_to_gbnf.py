"""JSON schemas as grammars: random weights write JSON that the schema accepts; the rest is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from pigguf.errors import UsageError
from pigguf.grammar import json_schema_to_grammar, read_json_schema

Write = Callable[[str, int], str]
Accepts = Callable[[str, str], bool]

NODE = {
    "type": "object",
    "properties": {
        "value": {"type": "integer"},
        "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
    },
    "required": ["value", "next"],
}
CAT = {
    "type": "object",
    "properties": {"kind": {"const": "cat"}, "lives": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["kind", "lives"],
}
PIG = {"properties": {"kind": {"enum": ["pig", "boar"]}}, "required": ["kind"], "type": "object"}

# each leads to the next in two ways
NEXT = [{"$ref": f"#/$defs/{n + 1}"} for n in range(40)]
TWICE: dict[str, Any] = {
    str(n): {"anyOf": [after, {"anyOf": [after, {"const": n}]}]} for n, after in enumerate(NEXT)
}
TWICE["40"] = {"type": "null"}

ACCEPTED: dict[str, Any] = {
    "members": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
        },
        "required": ["name", "age"],
    },
    "members that may be missing": {
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"const": 1}, "d": {"const": 2}},
        "required": ["b"],
        "additionalProperties": False,
    },
    "all may be missing": {
        "properties": {name: {"type": "boolean"} for name in "abc"},
        "minLength": 3,
        "type": "object",
    },
    "required without a schema": {
        "type": "object",
        "required": ["a", "b"],
        "additionalProperties": {"type": "boolean"},
    },
    "a map": {"type": "object", "additionalProperties": {"enum": [1, 2]}},
    "no members": {"type": "object", "additionalProperties": False},
    "strange names": {"properties": {'"\\\n\ud800é🐷': {"type": "null"}}, "required": ['"\\\n\ud800é🐷']},
    "integers": {"type": "integer", "exclusiveMinimum": -17, "maximum": 1234},
    "negative integers": {"type": "integer", "minimum": -3040, "exclusiveMaximum": -99},
    "integers above": {"type": "integer", "minimum": 4_999_999_999_999_999},
    "numbers": {"type": "number", "minimum": -1.5, "maximum": 2},
    "numbers below": {"type": "number", "exclusiveMaximum": -3.2},
    "probabilities": {"type": "number", "minimum": 0, "maximum": 1},
    "tight": {"type": "number", "exclusiveMinimum": 0, "minimum": 0.5, "exclusiveMaximum": 2, "maximum": 2},
    "a list": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 5},
    "a list of one at most": {"items": {"type": "boolean"}, "maxItems": 1},
    "a tuple": {
        "prefixItems": [{"type": "boolean"}, {"const": "q"}],
        "items": {"type": "null"},
        "minItems": 3,
        "maxItems": 4,
    },
    "draft 7's tuple": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "items": [{"type": "null"}, {"const": 7}],
        "additionalItems": False,
    },
    "a pattern": {"type": "string", "pattern": '^[A-Z]{2}-\\d{3,4}(x|"y"|\\\\)?$'},
    "lengths": {"type": "string", "minLength": 3, "maxLength": 6},
    "a day": {"type": "string", "format": "date"},
    "a moment": {"type": "string", "format": "date-time"},
    "an id": {"type": "string", "format": "uuid"},
    "types": {"type": ["integer", "null"], "maximum": 3},
    "values": {"enum": ['x"y\\z', 1, None, "é🐷\ud800", {"a": [1.5]}]},
    "values of a type": {"type": ["integer", "string"], "enum": ["a", 1, None, 2.5]},
    "a constant": {"const": ""},
    "a list that holds itself": {"$defs": {"node": NODE}, "$ref": "#/$defs/node"},
    "either": {"anyOf": [{"type": "null"}, {"const": True}]},
    "one, distinguished by a member": {"oneOf": [CAT, {"$ref": "#/$defs/pig"}], "$defs": {"pig": PIG}},
    "one, distinguished by type": {"oneOf": [{"type": "integer"}, {"const": "none"}]},
    "as pydantic refers": {"properties": {"a": {"allOf": [{"$ref": "#/$defs/pig"}]}}, "$defs": {"pig": PIG}},
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_what_is_written_is_what_the_schema_accepts(write: Write, name: str) -> None:
    schema = ACCEPTED[name]
    grammar = json_schema_to_grammar(schema)
    texts = [write(grammar, seed) for seed in range(12)]
    for text in texts:
        jsonschema.validate(
            json.loads(text), schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
        )
    if name not in ("a constant", "no members", "strange names", "draft 7's tuple"):
        assert len({json.dumps(json.loads(text)) for text in texts}) > 1


def test_a_string_is_json_whatever_is_in_it(write: Write) -> None:
    """Line breaks, quotes and halves of characters are what random bytes try first."""
    schema = {"type": "string", "minLength": 60, "maxLength": 80}
    grammar = json_schema_to_grammar(schema)
    for seed in range(10):
        assert 60 <= len(json.loads(write(grammar, seed))) <= 80


@pytest.mark.parametrize(
    ("bounds", "within", "without"),
    [
        ({}, [0, -1, 999_999_999_999_999], []),
        ({"minimum": 7}, [7, 8, 10, 99, 100, 12345], [6, 0, -7]),
        ({"minimum": -105, "maximum": -8}, [-105, -100, -99, -10, -9, -8], [-106, -110, -7, -1, 0, 8, 100]),
        ({"exclusiveMinimum": -1, "exclusiveMaximum": 1000}, [0, 1, 9, 10, 999], [-1, 1000, 1001]),
        (
            {"minimum": 95, "maximum": 1204},
            [95, 99, 100, 999, 1000, 1199, 1200, 1204],
            [94, 9, 1205, 1210, 2000],
        ),
        ({"minimum": 0.5, "maximum": 2.5}, [1, 2], [0, 3]),
        ({"minimum": 3, "exclusiveMinimum": 3, "maximum": 5, "exclusiveMaximum": 5.5}, [4, 5], [3, 6]),
    ],
    ids=str,
)
def test_integers_are_within_their_bounds(
    accepts: Accepts, bounds: dict[str, float], within: list[int], without: list[int]
) -> None:
    for kind in ("integer", "number"):
        grammar = json_schema_to_grammar({"type": kind, **bounds})
        assert [number for number in within if not accepts(grammar, str(number))] == []
        assert [number for number in without if accepts(grammar, str(number))] == []
        assert not accepts(grammar, "01")


@pytest.mark.parametrize(
    ("bounds", "within", "without"),
    [
        ({}, ["0", "-0.5", "12e3", "1.25E-10"], ["1.", ".5", "+1", "1e", "1e400"]),
        ({"minimum": 0, "maximum": 1}, ["0", "0.01", "0.99", "1"], ["-0.1", "1.1", "1.0001", "2"]),
        ({"minimum": -1.5, "maximum": 0}, ["-1", "-0.75", "0"], ["-1.75", "-2", "0.5", "1"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0.5", "0.01"], ["0", "0.0", "1", "1.0", "-0.5"]),
        (
            {"exclusiveMinimum": 1, "exclusiveMaximum": 3},
            ["1.5", "2", "2.75"],
            ["1", "1.0", "3", "3.0", "0.5"],
        ),
        ({"minimum": 10}, ["10", "10.5", "1234.5"], ["9.99", "-10.5"]),
    ],
    ids=str,
)
def test_numbers_are_within_their_bounds(
    accepts: Accepts, bounds: dict[str, float], within: list[str], without: list[str]
) -> None:
    grammar = json_schema_to_grammar({"type": "number", **bounds})
    assert [number for number in within if not accepts(grammar, number)] == []
    assert [number for number in without if accepts(grammar, number)] == []


def test_spaces_and_line_breaks_are_as_models_write_them(accepts: Accepts) -> None:
    grammar = json_schema_to_grammar({})
    for value in ({"a": [1, {"b": None}], "c": '\n"\\'}, [], {}, [True, -0.5], "x"):
        for text in (
            json.dumps(value),
            json.dumps(value, indent=4),
            json.dumps(value, separators=(",", ":")),
        ):
            assert accepts(grammar, text)
    for text in ('{"a": 1,}', "[1 2]", "{'a': 1}", '"\n"', "", "nul", '{"a": 1} ', '"\x7f"', '"\\ud83d"'):
        assert not accepts(grammar, text), text


@pytest.mark.parametrize(
    ("schema", "location"),
    [
        ({"type": "integer", "multipleOf": 3}, "#/multipleOf"),
        ({"properties": {"a/b": {"type": "string", "minlength": 3}}}, "#/properties/a~1b/minlength"),
        ({"type": "string", "format": "email"}, "#/format"),
        ({"type": "string", "pattern": "^a", "minLength": 3}, "#/minLength"),
        ({"type": "string", "maxLength": 5000}, "#/maxLength"),
        ({"type": "array", "uniqueItems": True}, "#/uniqueItems"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "#/maxItems"),
        ({"type": "array", "prefixItems": [True], "items": False, "minItems": 2}, "#/minItems"),
        ({"type": "text"}, "#/type"),
        ({"type": []}, "#/type"),
        ({"type": [["string"]]}, "#/type"),
        ({"minimum": 3, "minLength": 3}, "#:"),
        ({"anyOf": [{"type": "null"}], "minLength": 3}, "#/minLength"),
        ({"allOf": [{"type": "string"}, {"minLength": 3}]}, "#/allOf"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "#/oneOf"),
        ({"oneOf": [{"const": 1}, {"const": 1.0}]}, "#/oneOf"),
        ({"oneOf": [CAT, {"properties": {"kind": {"type": "string"}}}]}, "#/oneOf"),
        ({"not": {"type": "null"}}, "#/not"),
        ({"if": True}, "#/if"),
        ({"enum": []}, "#/enum"),
        ({"type": "string", "enum": [1, 2]}, "#/enum"),
        ({"$ref": "#/$defs/a"}, "#/$ref"),
        ({"$ref": "other.json"}, "#/$ref"),
        ({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "it refers to itself"),
        ({"type": "number", "minimum": 0.2, "maximum": 0.7}, "#:"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "#:"),
        ({"type": "integer", "minimum": "5"}, "#/minimum"),
        ({"type": "number", "maximum": -(10**3000)}, "#/maximum"),
        ({"oneOf": [{"const": n} for n in range(101)]}, "#/oneOf"),
        ({"$defs": TWICE, "$ref": "#/$defs/0"}, "begin in 32,767 ways"),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, "#/exclusiveMinimum"),
        ({"required": ["a"], "additionalProperties": False}, "#/required"),
        ({"required": "a"}, "#/required"),
        ({"properties": ["a"]}, "#/properties"),
        ({"items": 3}, "#/items"),
        (False, "#:"),
        (7, "#:"),
        ({"minimum": float("nan")}, "not a JSON value"),
        ({"const": {1, 2}}, "not a JSON value"),
        ({"type": "string", "pattern": "(?=a)"}, "character 3"),
    ],
    ids=str,
)
def test_what_a_grammar_cannot_enforce_is_refused(schema: Any, location: str) -> None:
    with pytest.raises(UsageError) as refusal:
        json_schema_to_grammar(schema)
    assert location in refusal.value.message


def test_nothing_of_a_schema_is_printed(accepts: Accepts, capfd: pytest.CaptureFixture[str]) -> None:
    """Which llama.cpp does with a grammar that it refuses: it counts brackets within repetitions."""
    either = [{"anyOf": [{"const": n}, {"type": "null"}]} for n in range(2001)]
    grammar = json_schema_to_grammar({"additionalProperties": {"anyOf": either}})
    assert accepts(grammar, '{"a": 2000, "b": null}')
    assert capfd.readouterr().err == ""


def test_a_left_recursive_schema_is_refused(write: Write) -> None:
    grammar = json_schema_to_grammar({"anyOf": [{"$ref": "#"}, {"type": "null"}]})
    with pytest.raises(UsageError, match="left recursion"):
        write(grammar, 0)


def test_a_schema_is_read_from_the_line_or_a_file(tmp_path: Path) -> None:
    schema = {"type": "null"}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    assert read_json_schema(json.dumps(schema)) == read_json_schema(str(path)) == schema
    for text, message in (
        ("{", "is not JSON"),
        (str(tmp_path / "missing.json"), "No such file"),
        ('{"a": ' * 100_000, "is not JSON"),
    ):
        with pytest.raises(UsageError, match=message):
            read_json_schema(text)
    path.write_bytes(b"\xff")
    with pytest.raises(UsageError, match=r"schema\.json is not UTF-8"):
        read_json_schema(str(path))


def test_what_is_large_or_deep_is_a_grammar_or_an_error(accepts: Accepts) -> None:
    for schema in (
        {"type": "string", "minLength": 2000, "maxLength": 2000},
        {"type": "array", "items": {"type": "array", "items": {"type": "null"}, "maxItems": 2000}},
        {"properties": {f"member {n}": {"type": "boolean"} for n in range(500)}},
        {"enum": [f"value {n}" for n in range(2000)]},
    ):
        assert not accepts(json_schema_to_grammar(schema), "[null, nothing")
    deep: Any = {"type": "null"}
    for _ in range(5000):
        deep = {"type": "array", "items": deep}
    with pytest.raises(UsageError, match="nested too deeply"):
        json_schema_to_grammar(deep)
    with pytest.raises(UsageError, match="nested too deeply"):
        json_schema_to_grammar({"pattern": "(" * 5000})
