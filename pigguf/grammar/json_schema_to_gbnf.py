"""A JSON schema as a grammar: whatever it lets through is JSON that the schema accepts.

Contract: no keyword is ignored but those that only describe. What a grammar cannot hold to is an error
that names the place. A grammar may be narrower than its schema: members come in the schema's order; an
object that names its members has no others; numbers have 15 digits; a tuple is whole.
Why not the library's own converter (llama_cpp.llama_grammar): it lets line breaks into strings, which is
no JSON, drops bounds of numbers and most of what it does not know, and ends a literal at its first quote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from pigguf.common.text_decoding import decode_text, shown
from pigguf.errors import UsageError
from pigguf.grammar import gbnf
from pigguf.grammar.number_ranges import Bounds, integers, numbers
from pigguf.grammar.regex_to_gbnf import pattern_rule

_HINT = "leave it out, or say it in words in the prompt and check the answer"
_DESCRIBING = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
}
_MOST_APART = 100  # schemas of a oneOf, each of which is compared with each
_LARGEST = 10**308
_MOST_WAYS = 1 << 14
_COMBINING = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")

_DAY = '("0" [1-9] | "1" [0-9] | "2" [0-8])'  # of every month
_DATE = (
    f'[1-2] [0-9]{{3}} "-" (("0" [1-9] | "1" [0-2]) "-" {_DAY} | ("0" [13-9] | "1" [0-2]) "-" ("29" | "30")'
    ' | ("0" [13578] | "10" | "12") "-31")'
)
_MINUTES = '([0-1] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_MINUTES} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [-+] {_MINUTES})'
_UUID = ' "-" '.join(f"[0-9a-fA-F]{{{count}}}" for count in (8, 4, 4, 4, 12))
_FORMATS = {"date": _DATE, "time": _TIME, "date-time": f'{_DATE} "T" {_TIME}', "uuid": _UUID}

# Rules that others name. A space or a line break and an indent, as models write JSON.
_SHARED = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    "char": f'{gbnf.character_class(gbnf.UNESCAPED)} | "\\\\" (["\\\\/bfnrt] | "u" hex)',
    # no halves of pairs, which would be one character of two
    "hex": "[0-9A-CE-Fa-ce-f] [0-9a-fA-F]{3} | [Dd] [0-7] [0-9a-fA-F]{2}",
    "string": r'"\"" char* "\""',
    "number": numbers(Bounds(None, None, None, None)),
    "value": 'string | number | object | array | "true" | "false" | "null"',
    "object": '"{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}


def read_json_schema(text: str) -> Any:
    """A schema from the command line: JSON, or the path of a file that holds it.

    Raises:
        UsageError: there is no such file, or it is no JSON.
    """
    if text.lstrip().startswith("{") or text.strip() in ("true", "false"):
        return _parsed(text, "the JSON schema")
    try:
        data = Path(text).read_bytes()
    except OSError as error:
        raise UsageError(
            f"the JSON schema {text}: {error.strerror}", "give a file, or the schema itself: {...}"
        ) from error
    return _parsed(decode_text(data, text), text)


def _parsed(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error


def json_schema_to_grammar(schema: Any) -> str:
    """The grammar of the JSON that a schema accepts, for Sampling.grammar.

    Args:
        schema: a JSON schema (draft 7 to 2020-12) as json.loads gives it.

    Raises:
        UsageError: it is no schema, or says what a grammar cannot.
    """
    grammar = GrammarBuilder()
    return grammar.to_gbnf(grammar.add_schema(schema))


class GrammarBuilder:
    """A grammar under way, of which values of several schemas are parts."""

    def __init__(self) -> None:
        self._rules = dict(_SHARED)

    def add_schema(self, schema: Any) -> str:
        """The expression of a value that a schema accepts.

        Raises:
            UsageError: as for json_grammar.
        """
        try:
            plain = json.loads(json.dumps(schema, allow_nan=False))
            return _Schema(plain, self._rules).value()
        except (TypeError, ValueError) as error:
            raise UsageError(f"the JSON schema is no JSON value: {error}") from error
        except RecursionError as error:
            raise UsageError("the JSON schema is nested too deeply") from error

    def to_gbnf(self, root: str, **rules: str) -> str:
        """The whole grammar: its root, and further rules, are expressions in which those of values stand."""
        return "\n".join(
            f"{name} ::= {rule}" for name, rule in {**self._rules, **rules, "root": root}.items()
        )


class _Kind(NamedTuple):
    """One of JSON's types: what may be said of it, and who makes an expression of that."""

    keywords: frozenset[str]
    write: Callable[[_Schema, dict[str, Any], str], str]


class _Schema:
    """Writes one schema's rules. A place is a JSON pointer, "#/properties/name"."""

    def __init__(self, root: Any, rules: dict[str, str]) -> None:
        self._root = root
        self._rules = rules
        self._referred: dict[str, str] = {}
        # Of alternatives and what refers to them, how many beginnings: llama.cpp looks at each once for each
        # way that leads there (llama_grammar_detect_left_recursion).
        self._ways: dict[str, int] = {}

    def value(self) -> str:
        return self._value(self._root, "#")

    def _rule(self, expression: str) -> str:
        return gbnf.add_rule(self._rules, expression)

    # ---- what a value may be ---------------------------------------------------------------------

    def _value(self, schema: Any, place: str) -> str:
        """The rule of a value."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            self._refuse(
                place,
                f"{shown(schema)} accepts nothing" if schema is False else f"{shown(schema)} is no schema",
            )
        combining = [keyword for keyword in _COMBINING if keyword in schema]
        said = {keyword for keyword in schema if keyword not in _DESCRIBING}
        if not said:
            return "value"
        if combining:
            return self._combined(schema, combining[0], said - {combining[0]}, place)
        for keyword in sorted(said - {"type"} - _ALL_KEYWORDS):
            self._refuse(f"{place}/{keyword}", "a grammar cannot hold to it")
        kinds = [_KINDS[name] for name in self._types(schema, place)]
        return self._rule(" | ".join(kind.write(self, schema, place) for kind in kinds))

    def _types(self, schema: dict[str, Any], place: str) -> list[str]:
        """The types that are said, or else the one that the keywords speak of."""
        if "type" not in schema:
            spoken_of = [
                name for name, kind in _KINDS.items() if name != "integer" and kind.keywords & schema.keys()
            ]
            if len(spoken_of) > 1:
                self._refuse(place, f"it speaks of {' and '.join(spoken_of)}, and has no type")
            return spoken_of
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for name in types or [None]:
            if not isinstance(name, str) or name not in _KINDS:
                self._refuse(f"{place}/type", f"{shown(name)} is no type")
        return types

    def _combined(self, schema: dict[str, Any], keyword: str, beside: set[str], place: str) -> str:
        permitted = {"type"} if keyword in ("const", "enum") else set()
        for other in sorted(beside - permitted):
            self._refuse(f"{place}/{other}", f"it stands beside {keyword}, and both cannot be held to")
        where, value = f"{place}/{keyword}", schema[keyword]
        if keyword == "$ref":
            return self._reference(value, where)
        if keyword == "const":
            return self._constants([value], schema, where)
        if not isinstance(value, list) or not value:
            self._refuse(
                where, f"{shown(value)} is no list of {'values' if keyword == 'enum' else 'schemas'}"
            )
        if keyword == "enum":
            return self._constants(value, schema, where)
        if keyword == "allOf" and len(value) > 1:
            self._refuse(where, "several schemas at once cannot be held to")
        if keyword == "oneOf":
            self._refuse_overlap(value, where)
        parts = list(dict.fromkeys(self._value(part, f"{where}/{i}") for i, part in enumerate(value)))
        if len(parts) == 1:
            return parts[0]
        ways = sum(self._ways.get(part, 1) for part in parts)
        if ways > _MOST_WAYS:
            self._refuse(where, f"a value may begin in {ways:,} ways, and {_MOST_WAYS:,} are followed")
        rule = self._rule(" | ".join(parts))
        self._ways[rule] = ways
        return rule

    def _constants(self, values: list[Any], schema: dict[str, Any], place: str) -> str:
        types = self._types(schema, place) if "type" in schema else list(_KINDS)
        fitting = [value for value in values if any(_is_of(value, name) for name in types)]
        if not fitting:
            self._refuse(place, f"no value is of type {' or '.join(types)}")
        return self._rule(" | ".join(gbnf.literal(_as_json(value)) for value in fitting))

    def _reference(self, pointer: Any, place: str) -> str:
        """The rule of what is referred to, which may be under way: schemas may hold themselves."""
        target = self._target(pointer, place)
        if pointer not in self._referred:
            name = self._referred[pointer] = self._rule("")
            self._rules[name] = value = self._value(target, pointer)
            self._ways[name] = self._ways.get(value, 1)
            self._refuse_circle(name, place)
        return self._referred[pointer]

    def _target(self, pointer: Any, place: str) -> Any:
        if not isinstance(pointer, str) or not re.fullmatch("#(/.*)?", pointer):
            self._refuse(place, f"{shown(pointer)} is not within the schema (#/$defs/name)")
        target = self._root
        for part in pointer.split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                self._refuse(place, f"{shown(pointer)} leads nowhere")
        return target

    def _refuse_circle(self, name: str, place: str) -> None:
        """A reference to itself and nothing else says nothing, for ever."""
        seen = {name}
        while (name := self._rules[name]) in self._rules:
            if name in seen:
                self._refuse(place, "it refers to itself")
            seen.add(name)

    def _refuse_overlap(self, parts: list[Any], place: str) -> None:
        """oneOf is anyOf only where no value fits two of the schemas."""
        if len(parts) > _MOST_APART:
            self._refuse(place, f"{len(parts):,} schemas, of which {_MOST_APART} can be told apart")
        resolved = [self._resolved(part, place) for part in parts]
        for (i, one), (j, other) in combinations(enumerate(resolved), 2):
            if not self._are_apart(one, other, place):
                self._refuse(
                    place,
                    f"the schemas {i} and {j} may accept the same value",
                    "take anyOf, or give each a member of its own value (const)",
                )

    def _resolved(self, schema: Any, place: str) -> dict[str, Any]:
        """What a schema refers to in the end."""
        seen: set[str] = set()
        while isinstance(schema, dict) and "$ref" in schema:
            target = self._target(schema["$ref"], place)
            if schema["$ref"] in seen:
                self._refuse(place, "it refers to itself")
            seen.add(schema["$ref"])
            schema = target
        return schema if isinstance(schema, dict) else {}

    def _are_apart(self, one: dict[str, Any], other: dict[str, Any], place: str) -> bool:
        values = [_values(schema) for schema in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        types = [_types_of(schema) for schema in (one, other)]
        if types[0] and types[1] and not types[0] & types[1]:
            return True
        members = [schema.get("properties") for schema in (one, other)]
        required = set(one.get("required") or ()) & set(other.get("required") or ())
        if types != [{"object"}, {"object"}] or not all(isinstance(named, dict) for named in members):
            return False
        told_by = (
            [_values(self._resolved(named.get(name), place)) for named in members]  # type: ignore[union-attr]
            for name in required
        )
        return any(a is not None and b is not None and not a & b for a, b in told_by)

    # ---- the types -------------------------------------------------------------------------------

    def _string(self, schema: dict[str, Any], place: str) -> str:
        said: list[str] = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if "minLength" in schema or "maxLength" in schema:
            said.append("minLength" if "minLength" in schema else "maxLength")
        if len(said) > 1:
            self._refuse(f"{place}/{said[1]}", f"it stands beside {said[0]}, and both cannot be held to")
        if not said:
            return "string"
        return rf'("\"" {self._characters(schema, said[0], place)} "\"")'

    def _characters(self, schema: dict[str, Any], keyword: str, place: str) -> str:
        value = schema[keyword]
        if keyword == "pattern":
            if not isinstance(value, str):
                self._refuse(f"{place}/pattern", f"{shown(value)} is no text")
            return pattern_rule(value, self._rules)
        if keyword == "format":
            if value not in _FORMATS:
                self._refuse(f"{place}/format", f"{shown(value)} is not one of {', '.join(_FORMATS)}")
            return _FORMATS[value]
        return gbnf.repetition("char", *self._counts(schema, "minLength", "maxLength", place))

    def _number(self, schema: dict[str, Any], place: str) -> str:
        return self._bounded(numbers, schema, place)

    def _integer(self, schema: dict[str, Any], place: str) -> str:
        return self._bounded(integers, schema, place)

    def _bounded(self, write: Callable[[Bounds], str], schema: dict[str, Any], place: str) -> str:
        for keyword in _NUMERIC:
            value = schema.get(keyword, 0)
            if not _is_of(value, "number") or abs(value) > _LARGEST:
                self._refuse(f"{place}/{keyword}", f"{shown(value)} is no number of a double's size")
        written = write(Bounds.of(schema))
        if not written:
            self._refuse(place, "no number with few digits lies within its bounds")
        return written

    def _boolean(self, schema: dict[str, Any], place: str) -> str:
        return '"true" | "false"'

    def _null(self, schema: dict[str, Any], place: str) -> str:
        return '"null"'

    def _array(self, schema: dict[str, Any], place: str) -> str:
        if schema.get("uniqueItems"):
            self._refuse(f"{place}/uniqueItems", "a grammar cannot hold to it")
        least, most = self._counts(schema, "minItems", "maxItems", place)
        first, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # draft 7's
            first, rest = rest, schema.get("additionalItems", True)
        if not isinstance(first, list):
            self._refuse(f"{place}/prefixItems", f"{shown(first)} is no list of schemas")
        if most is not None:
            first = first[:most]
        items = [self._value(item, f"{place}/prefixItems/{i}") for i, item in enumerate(first)]
        if items and least <= len(items):
            return self._list(items)
        if rest is False:
            if least > len(items):
                self._refuse(f"{place}/minItems", f"{least} is more than there may be")
            return self._list(items)
        least, most = least - len(items), None if most is None else most - len(items)
        if most == 0:
            return self._list(items)
        item = self._value(rest, f"{place}/items")
        # rules of their own, for llama.cpp multiplies the repetitions of nested brackets
        next_one = self._rule(f'ws "," ws {item}')
        more = self._rule(f"{item} {gbnf.repetition(next_one, max(0, least - 1), most and most - 1)}")
        return self._list([*items, more if least else f"({more})?"])

    @staticmethod
    def _list(items: Iterable[str]) -> str:
        inside = ' ws "," ws '.join(items)
        return f'("[" ws {inside} ws "]")' if inside else '("[" ws "]")'

    def _object(self, schema: dict[str, Any], place: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            self._refuse(f"{place}/properties", f"{shown(properties)} is no object of schemas")
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._refuse(f"{place}/required", f"{shown(required)} is no list of names")
        others = schema.get("additionalProperties", True)
        missing = [name for name in required if name not in properties]
        if missing and others is False:
            self._refuse(f"{place}/required", f"{shown(missing[0])} is no member of properties")
        members = {**properties, **dict.fromkeys(missing, others)}
        if members or others is False:
            return self._members(members, set(required), place)
        value = self._value(others, f"{place}/additionalProperties")
        member = f'string ws ":" ws {value}'
        return f'("{{" ws ({member} (ws "," ws {member})*)? ws "}}")'

    def _members(self, members: Mapping[str, Any], required: set[str], place: str) -> str:
        """An object of these members in their order, of which only those required must be there."""
        beginnings: list[str] = []  # one for each member that may be the first
        rest = self._rule('""')  # what may follow the members after this one
        may_be_empty = True
        for name, schema in reversed(list(members.items())):
            value = self._value(schema, f"{place}/properties/{_escaped(name)}")
            member = self._rule(f'{gbnf.literal(_as_json(name))} ws ":" ws {value}')
            if name in required:
                beginnings, may_be_empty = [], False
            beginnings.insert(0, f"{member} {rest}")
            following = f'ws "," ws {member}'
            rest = self._rule(f"{following} {rest}" if name in required else f"({following})? {rest}")
        if not beginnings:
            return '("{" ws "}")'
        inside = gbnf.alternation(beginnings)
        return f'("{{" ws {f"({inside})?" if may_be_empty else inside} ws "}}")'

    # ---- refusals --------------------------------------------------------------------------------

    def _counts(self, schema: dict[str, Any], low: str, high: str, place: str) -> tuple[int, int | None]:
        for keyword in (low, high):
            count = schema.get(keyword, 0)
            if not _is_of(count, "integer") or count < 0:
                self._refuse(f"{place}/{keyword}", f"{shown(count)} is no count")
            if count > gbnf.MAX_REPETITIONS:
                self._refuse(
                    f"{place}/{keyword}", f"llama.cpp counts to {gbnf.MAX_REPETITIONS:,}, not to {count:,}"
                )
        least, most = int(schema.get(low, 0)), schema.get(high)
        if most is not None and most < least:
            self._refuse(f"{place}/{high}", f"{most} is less than {low}, {least}")
        return least, None if most is None else int(most)

    def _refuse(self, place: str, reason: str, hint: str = _HINT) -> NoReturn:
        raise UsageError(f"the JSON schema, {place}: {reason}", hint)


_NUMERIC = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")
_KINDS: dict[str, _Kind] = {
    "string": _Kind(frozenset(("minLength", "maxLength", "pattern", "format")), _Schema._string),
    "number": _Kind(frozenset(_NUMERIC), _Schema._number),
    "integer": _Kind(frozenset(_NUMERIC), _Schema._integer),
    "boolean": _Kind(frozenset(), _Schema._boolean),
    "null": _Kind(frozenset(), _Schema._null),
    "array": _Kind(
        frozenset(("items", "prefixItems", "additionalItems", "minItems", "maxItems", "uniqueItems")),
        _Schema._array,
    ),
    "object": _Kind(frozenset(("properties", "required", "additionalProperties")), _Schema._object),
}
_ALL_KEYWORDS = frozenset().union(*(kind.keywords for kind in _KINDS.values()))


def _is_of(value: Any, name: str) -> bool:
    """Whether a value is of one of JSON's types, as schemas name them."""
    if isinstance(value, bool):
        return name == "boolean"
    if isinstance(value, int | float):
        return name == "number" or (name == "integer" and value == int(value))
    kinds: dict[str, type] = {"string": str, "array": list, "object": dict, "null": type(None)}
    return name in kinds and isinstance(value, kinds[name])


def _listed(schema: Mapping[str, Any]) -> list[Any] | None:
    """All values that a schema accepts, where it lists them."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum")
    return listed if isinstance(listed, list) else None


def _values(schema: Mapping[str, Any]) -> set[str] | None:
    """The same as JSON; 1.0 is 1."""
    listed = _listed(schema)
    if listed is None:
        return None
    return {_as_json(int(value) if _is_of(value, "integer") else value) for value in listed}


def _types_of(schema: Mapping[str, Any]) -> set[str]:
    """The types of what a schema accepts, none where it does not say."""
    said = schema.get("type", [])
    types = set(said) if isinstance(said, list) else {said}
    if not types:
        listed = _listed(schema) or ()
        types = {
            name
            for name, kind in _KINDS.items()
            if kind.keywords & schema.keys() or any(_is_of(value, name) for value in listed)
        }
    return types | {"integer"} if "number" in types else types


def _as_json(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    # half a character cannot be written, only escaped
    return json.dumps(value) if re.search("[\ud800-\udfff]", text) else text


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
