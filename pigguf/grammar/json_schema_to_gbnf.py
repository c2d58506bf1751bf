"""A JSON schema as a GBNF grammar: every text that the grammar accepts is JSON that the schema accepts.

No keyword is ignored except those that only describe; one that a grammar cannot enforce is an error with its
location. The grammar may be narrower than the schema: members are in the schema's order, an object with
`properties` has no other members, numbers have at most 15 digits, and a tuple has all of its items.

llama-cpp-python's converter (llama_cpp.llama_grammar) is not used because it accepts line breaks in strings,
which is not JSON, ignores the bounds of numbers and most unknown keywords, and ends a literal at its first
quote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any, NoReturn

from pigguf.common.text_decoding import decode_text, preview_json_value
from pigguf.errors import UsageError
from pigguf.grammar import gbnf
from pigguf.grammar.number_ranges import UNBOUNDED, NumberBounds, integer_expression, number_expression
from pigguf.grammar.regex_to_gbnf import add_pattern_rules
from pigguf.grammar.schema_types import (
    NUMBER_KEYWORDS,
    TYPE_KEYWORDS,
    is_of_type,
    listed_values,
    possible_types,
    to_json,
)

_HINT = "leave it out, or state it in the prompt and check the answer"
_DESCRIPTIVE_KEYWORDS = {
    *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"),
    *("$schema", "$id", "$comment", "$defs", "definitions", "discriminator"),
}
_COMBINING_KEYWORDS = ("$ref", "const", "enum", "anyOf", "oneOf", "allOf")
_ALL_TYPE_KEYWORDS = frozenset().union(*TYPE_KEYWORDS.values())
_MAX_ONE_OF = 100  # schemas of a oneOf, which are compared in pairs
_MAX_NUMBER = 10**308
_MAX_PATHS = 1 << 14

_DAY = '("0" [1-9] | "1" [0-9] | "2" [0-8])'  # of any month
_DATE = (
    f'[1-2] [0-9]{{3}} "-" (("0" [1-9] | "1" [0-2]) "-" {_DAY} | ("0" [13-9] | "1" [0-2]) "-" ("29" | "30")'
    ' | ("0" [13578] | "10" | "12") "-31")'
)
_MINUTES = '([0-1] [0-9] | "2" [0-3]) ":" [0-5] [0-9]'
_TIME = f'{_MINUTES} ":" [0-5] [0-9] ("." [0-9]{{1,6}})? ("Z" | [-+] {_MINUTES})'
_UUID = ' "-" '.join(f"[0-9a-fA-F]{{{count}}}" for count in (8, 4, 4, 4, 12))
_FORMATS = {"date": _DATE, "time": _TIME, "date-time": f'{_DATE} "T" {_TIME}', "uuid": _UUID}

# Rules that others refer to. Whitespace is a space, or a line break and an indent, as models write JSON.
_SHARED_RULES = {
    "ws": r'(" " | "\n" [ \t]{0,20})?',
    "char": f'{gbnf.character_class(gbnf.UNESCAPED)} | "\\\\" (["\\\\/bfnrt] | "u" hex)',
    # without surrogates, of which two would be one character
    "hex": "[0-9A-CE-Fa-ce-f] [0-9a-fA-F]{3} | [Dd] [0-7] [0-9a-fA-F]{2}",
    "string": r'"\"" char* "\""',
    "number": number_expression(UNBOUNDED),
    "value": 'string | number | object | array | "true" | "false" | "null"',
    "object": '"{" ws (string ws ":" ws value (ws "," ws string ws ":" ws value)*)? ws "}"',
    "array": '"[" ws (value (ws "," ws value)*)? ws "]"',
}


def read_json_schema(text: str) -> Any:
    """Return a schema given as JSON, or as the path of a file that contains it.

    Raises:
        UsageError: There is no such file, or it is not JSON.
    """
    if text.lstrip().startswith("{") or text.strip() in ("true", "false"):
        return _parse_json(text, "the JSON schema")
    try:
        data = Path(text).read_bytes()
    except OSError as error:
        raise UsageError(
            f"the JSON schema {text}: {error.strerror}", "give a file, or the schema itself: {...}"
        ) from error
    return _parse_json(decode_text(data, text), text)


def _parse_json(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{name} is not JSON: {error}") from error


def json_schema_to_grammar(schema: Any) -> str:
    """Return the grammar of the JSON that a schema accepts, for SamplingParams.grammar.

    Args:
        schema: A JSON schema (draft 7 to 2020-12) as json.loads returns it.

    Raises:
        UsageError: It is not a schema, or a grammar cannot enforce it.
    """
    builder = GrammarBuilder()
    return builder.to_gbnf(builder.add_schema(schema))


class GrammarBuilder:
    """A grammar in the making, which may contain the values of several schemas."""

    def __init__(self) -> None:
        self._rules = dict(_SHARED_RULES)

    def add_schema(self, schema: Any) -> str:
        """Add the rules of a schema, and return the expression of a value that it accepts.

        Raises:
            UsageError: As for `json_schema_to_grammar`.
        """
        try:
            plain = json.loads(json.dumps(schema, allow_nan=False))
            return _SchemaConverter(plain, self._rules).convert()
        except (TypeError, ValueError) as error:
            raise UsageError(f"the JSON schema is not a JSON value: {error}") from error
        except RecursionError as error:
            raise UsageError("the JSON schema is nested too deeply") from error

    def to_gbnf(self, root: str, **rules: str) -> str:
        """Return the whole grammar.

        Args:
            root: The expression of the whole text.
            rules: Further rules by their names; they and the root may refer to the expressions of schemas.
        """
        all_rules = {**self._rules, **rules, "root": root}
        return "\n".join(f"{name} ::= {expression}" for name, expression in all_rules.items())


class _SchemaConverter:
    """Adds the rules of one schema. A `pointer` is a JSON pointer into it: "#/properties/name"."""

    def __init__(self, root: Any, rules: dict[str, str]) -> None:
        self._root = root
        self._rules = rules
        self._reference_rules: dict[str, str] = {}
        # For rules of alternatives and of references, over how many paths a value may begin: llama.cpp visits
        # each of them (llama_grammar_detect_left_recursion).
        self._path_counts: dict[str, int] = {}

    def convert(self) -> str:
        """Add the rules, and return the expression of a value."""
        return self._value(self._root, "#")

    def _add_rule(self, expression: str) -> str:
        return gbnf.add_rule(self._rules, expression)

    # ---- values ------------------------------------------------------------------------------------

    def _value(self, schema: Any, pointer: str) -> str:
        """Return the rule of a value that a schema accepts."""
        if schema is True or schema == {}:
            return "value"
        if not isinstance(schema, dict):
            problem = "accepts no value" if schema is False else "is not a schema"
            self._reject(pointer, f"{preview_json_value(schema)} {problem}")
        keywords = {keyword for keyword in schema if keyword not in _DESCRIPTIVE_KEYWORDS}
        if not keywords:
            return "value"
        for keyword in _COMBINING_KEYWORDS:
            if keyword in schema:
                return self._combined(schema, keyword, keywords - {keyword}, pointer)
        for keyword in sorted(keywords - {"type"} - _ALL_TYPE_KEYWORDS):
            self._reject(f"{pointer}/{keyword}", "a grammar cannot enforce it")
        converters = [_TYPE_CONVERTERS[name] for name in self._types(schema, pointer)]
        return self._add_rule(" | ".join(convert(self, schema, pointer) for convert in converters))

    def _types(self, schema: dict[str, Any], pointer: str) -> list[str]:
        """Return the types that a schema states, or else the one that its keywords belong to."""
        if "type" not in schema:
            implied = [
                name
                for name, keywords in TYPE_KEYWORDS.items()
                if name != "integer" and keywords & schema.keys()
            ]
            if len(implied) > 1:
                self._reject(pointer, f"it has keywords of {' and '.join(implied)}, and no type")
            return implied
        types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
        for name in types or [None]:
            if not isinstance(name, str) or name not in TYPE_KEYWORDS:
                self._reject(f"{pointer}/type", f"{preview_json_value(name)} is not a type")
        return types

    def _combined(self, schema: dict[str, Any], keyword: str, others: set[str], pointer: str) -> str:
        """Return the rule of a schema with a keyword that refers to other schemas or lists values."""
        permitted = {"type"} if keyword in ("const", "enum") else set()
        for other in sorted(others - permitted):
            self._reject(f"{pointer}/{other}", f"a grammar cannot enforce it together with {keyword}")
        value, pointer = schema[keyword], f"{pointer}/{keyword}"
        if keyword == "$ref":
            return self._reference(value, pointer)
        if keyword == "const":
            return self._constants([value], schema, pointer)
        if not isinstance(value, list) or not value:
            contents = "values" if keyword == "enum" else "schemas"
            self._reject(pointer, f"{preview_json_value(value)} is not a list of {contents}")
        if keyword == "enum":
            return self._constants(value, schema, pointer)
        if keyword == "allOf" and len(value) > 1:
            self._reject(pointer, "a grammar cannot enforce several schemas at once")
        if keyword == "oneOf":
            self._check_disjoint(value, pointer)
        return self._any_of(value, pointer)

    def _any_of(self, schemas: list[Any], pointer: str) -> str:
        options = [self._value(schema, f"{pointer}/{i}") for i, schema in enumerate(schemas)]
        options = list(dict.fromkeys(options))
        if len(options) == 1:
            return options[0]
        paths = sum(self._path_counts.get(option, 1) for option in options)
        if paths > _MAX_PATHS:
            self._reject(
                pointer, f"a value may begin in {paths:,} ways, more than the limit of {_MAX_PATHS:,}"
            )
        rule = self._add_rule(" | ".join(options))
        self._path_counts[rule] = paths
        return rule

    def _constants(self, values: list[Any], schema: dict[str, Any], pointer: str) -> str:
        types = self._types(schema, pointer) if "type" in schema else list(TYPE_KEYWORDS)
        of_type = [value for value in values if any(is_of_type(value, name) for name in types)]
        if not of_type:
            self._reject(pointer, f"no value is of type {' or '.join(types)}")
        return self._add_rule(" | ".join(gbnf.literal(to_json(value)) for value in of_type))

    # ---- references --------------------------------------------------------------------------------

    def _reference(self, reference: Any, pointer: str) -> str:
        """Return the rule of what a $ref refers to, which may be incomplete: schemas may be recursive."""
        target = self._target(reference, pointer)
        if reference not in self._reference_rules:
            name = self._reference_rules[reference] = self._add_rule("")
            self._rules[name] = value = self._value(target, reference)
            self._path_counts[name] = self._path_counts.get(value, 1)
            self._check_not_circular(name, pointer)
        return self._reference_rules[reference]

    def _target(self, reference: Any, pointer: str) -> Any:
        """Return the schema that a $ref refers to."""
        if not isinstance(reference, str) or not re.fullmatch("#(/.*)?", reference):
            self._reject(pointer, f"{preview_json_value(reference)} is not within the schema (#/$defs/name)")
        target = self._root
        for token in reference.split("/")[1:]:
            key = token.replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and key.isdecimal() and int(key) < len(target):
                target = target[int(key)]
            elif isinstance(target, dict) and key in target:
                target = target[key]
            else:
                self._reject(pointer, f"{preview_json_value(reference)} does not exist in the schema")
        return target

    def _check_not_circular(self, name: str, pointer: str) -> None:
        """Reject a reference that refers only to itself, which describes nothing."""
        seen = {name}
        while (name := self._rules[name]) in self._rules:
            if name in seen:
                self._reject(pointer, "it refers to itself")
            seen.add(name)

    def _resolve(self, schema: Any, pointer: str) -> dict[str, Any]:
        """Return what a schema finally refers to."""
        seen: set[str] = set()
        while isinstance(schema, dict) and "$ref" in schema:
            target = self._target(schema["$ref"], pointer)
            if schema["$ref"] in seen:
                self._reject(pointer, "it refers to itself")
            seen.add(schema["$ref"])
            schema = target
        return schema if isinstance(schema, dict) else {}

    # ---- oneOf -------------------------------------------------------------------------------------

    def _check_disjoint(self, schemas: list[Any], pointer: str) -> None:
        """Reject a oneOf unless no value fits two of its schemas: only then is it an anyOf."""
        if len(schemas) > _MAX_ONE_OF:
            self._reject(
                pointer, f"it has {len(schemas):,} schemas, and at most {_MAX_ONE_OF} can be compared"
            )
        resolved = [self._resolve(schema, pointer) for schema in schemas]
        for (i, one), (j, other) in combinations(enumerate(resolved), 2):
            if not self._are_disjoint(one, other, pointer):
                self._reject(
                    pointer,
                    f"the schemas {i} and {j} may accept the same value",
                    "use anyOf, or give each schema a member with its own value (const)",
                )

    def _are_disjoint(self, one: dict[str, Any], other: dict[str, Any], pointer: str) -> bool:
        """Return whether two schemas can have no value in common, by values, types or a required member."""
        values = [listed_values(schema) for schema in (one, other)]
        if values[0] is not None and values[1] is not None:
            return not values[0] & values[1]
        types = [possible_types(schema) for schema in (one, other)]
        if types[0] and types[1] and not types[0] & types[1]:
            return True
        properties = [schema.get("properties") for schema in (one, other)]
        if types != [{"object"}, {"object"}] or not all(isinstance(named, dict) for named in properties):
            return False
        member_values = (
            [listed_values(self._resolve(named.get(name), pointer)) for named in properties]  # type: ignore[union-attr]
            for name in set(one.get("required") or ()) & set(other.get("required") or ())
        )
        return any(a is not None and b is not None and not a & b for a, b in member_values)

    # ---- types -------------------------------------------------------------------------------------

    def _string(self, schema: dict[str, Any], pointer: str) -> str:
        keywords: list[str] = [keyword for keyword in ("pattern", "format") if keyword in schema]
        if "minLength" in schema or "maxLength" in schema:
            keywords.append("minLength" if "minLength" in schema else "maxLength")
        if len(keywords) > 1:
            self._reject(
                f"{pointer}/{keywords[1]}", f"a grammar cannot enforce it together with {keywords[0]}"
            )
        if not keywords:
            return "string"
        return rf'("\"" {self._string_contents(schema, keywords[0], pointer)} "\"")'

    def _string_contents(self, schema: dict[str, Any], keyword: str, pointer: str) -> str:
        value = schema[keyword]
        if keyword == "pattern":
            if not isinstance(value, str):
                self._reject(f"{pointer}/pattern", f"{preview_json_value(value)} is not text")
            return add_pattern_rules(value, self._rules)
        if keyword == "format":
            if value not in _FORMATS:
                self._reject(
                    f"{pointer}/format", f"{preview_json_value(value)} is not one of {', '.join(_FORMATS)}"
                )
            return _FORMATS[value]
        return gbnf.repetition("char", *self._counts(schema, "minLength", "maxLength", pointer))

    def _number(self, schema: dict[str, Any], pointer: str) -> str:
        return self._bounded(number_expression, schema, pointer)

    def _integer(self, schema: dict[str, Any], pointer: str) -> str:
        return self._bounded(integer_expression, schema, pointer)

    def _bounded(
        self, to_expression: Callable[[NumberBounds], str], schema: dict[str, Any], pointer: str
    ) -> str:
        for keyword in NUMBER_KEYWORDS:
            value = schema.get(keyword, 0)
            if not is_of_type(value, "number") or abs(value) > _MAX_NUMBER:
                self._reject(
                    f"{pointer}/{keyword}", f"{preview_json_value(value)} is not a number that a double holds"
                )
        expression = to_expression(NumberBounds.from_schema(schema))
        if not expression:
            self._reject(pointer, "no number with few digits is within its bounds")
        return expression

    def _boolean(self, schema: dict[str, Any], pointer: str) -> str:
        return '"true" | "false"'

    def _null(self, schema: dict[str, Any], pointer: str) -> str:
        return '"null"'

    def _array(self, schema: dict[str, Any], pointer: str) -> str:
        if schema.get("uniqueItems"):
            self._reject(f"{pointer}/uniqueItems", "a grammar cannot enforce it")
        minimum, maximum = self._counts(schema, "minItems", "maxItems", pointer)
        prefix, rest = schema.get("prefixItems", []), schema.get("items", True)
        if isinstance(rest, list):  # draft 7's form of a tuple
            prefix, rest = rest, schema.get("additionalItems", True)
        if not isinstance(prefix, list):
            self._reject(f"{pointer}/prefixItems", f"{preview_json_value(prefix)} is not a list of schemas")
        if maximum is not None:
            prefix = prefix[:maximum]
        items = [self._value(item, f"{pointer}/prefixItems/{i}") for i, item in enumerate(prefix)]
        if items and minimum <= len(items):
            return _array_of(items)
        if rest is False:
            if minimum > len(items):
                self._reject(f"{pointer}/minItems", f"{minimum} is more than the items that are allowed")
            return _array_of(items)
        minimum, maximum = minimum - len(items), None if maximum is None else maximum - len(items)
        if maximum == 0:
            return _array_of(items)
        item = self._value(rest, f"{pointer}/items")
        # rules of their own, because llama.cpp multiplies the repetitions of nested brackets
        next_item = self._add_rule(f'ws "," ws {item}')
        further = gbnf.repetition(next_item, max(0, minimum - 1), maximum and maximum - 1)
        list_rule = self._add_rule(f"{item} {further}")
        return _array_of([*items, list_rule if minimum else f"({list_rule})?"])

    def _object(self, schema: dict[str, Any], pointer: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(properties, dict):
            self._reject(
                f"{pointer}/properties", f"{preview_json_value(properties)} is not an object of schemas"
            )
        if not isinstance(required, list) or not all(isinstance(name, str) for name in required):
            self._reject(f"{pointer}/required", f"{preview_json_value(required)} is not a list of names")
        additional = schema.get("additionalProperties", True)
        undeclared = [name for name in required if name not in properties]
        if undeclared and additional is False:
            self._reject(
                f"{pointer}/required", f"{preview_json_value(undeclared[0])} is not among the properties"
            )
        members = {**properties, **dict.fromkeys(undeclared, additional)}
        if members or additional is False:
            return self._members(members, set(required), pointer)
        value = self._value(additional, f"{pointer}/additionalProperties")
        member = f'string ws ":" ws {value}'
        return f'("{{" ws ({member} (ws "," ws {member})*)? ws "}}")'

    def _members(self, members: Mapping[str, Any], required: set[str], pointer: str) -> str:
        """Return an object of members in their order, of which those not required may be absent."""
        beginnings: list[str] = []  # one for each member that may be the first
        rest = self._add_rule('""')  # what may follow the member
        may_be_empty = True
        for name, schema in reversed(list(members.items())):
            value = self._value(schema, f"{pointer}/properties/{_escape_pointer(name)}")
            member = self._add_rule(f'{gbnf.literal(to_json(name))} ws ":" ws {value}')
            if name in required:
                beginnings, may_be_empty = [], False
            beginnings.insert(0, f"{member} {rest}")
            following = f'ws "," ws {member}'
            rest = self._add_rule(f"{following} {rest}" if name in required else f"({following})? {rest}")
        if not beginnings:
            return '("{" ws "}")'
        inside = gbnf.alternation(beginnings)
        return f'("{{" ws {f"({inside})?" if may_be_empty else inside} ws "}}")'

    # ---- checks ------------------------------------------------------------------------------------

    def _counts(self, schema: dict[str, Any], low: str, high: str, pointer: str) -> tuple[int, int | None]:
        """Return the minimum and maximum of a length, by their keywords."""
        for keyword in (low, high):
            count = schema.get(keyword, 0)
            if not is_of_type(count, "integer") or count < 0:
                self._reject(f"{pointer}/{keyword}", f"{preview_json_value(count)} is not a count")
            if count > gbnf.MAX_REPETITIONS:
                self._reject(
                    f"{pointer}/{keyword}",
                    f"{count:,} is more than llama.cpp's limit of {gbnf.MAX_REPETITIONS:,} repetitions",
                )
        minimum, maximum = int(schema.get(low, 0)), schema.get(high)
        if maximum is not None and maximum < minimum:
            self._reject(f"{pointer}/{high}", f"{maximum} is less than {low}, {minimum}")
        return minimum, None if maximum is None else int(maximum)

    def _reject(self, pointer: str, reason: str, hint: str = _HINT) -> NoReturn:
        raise UsageError(f"the JSON schema, {pointer}: {reason}", hint)


_TYPE_CONVERTERS: dict[str, Callable[[_SchemaConverter, dict[str, Any], str], str]] = {
    "string": _SchemaConverter._string,
    "number": _SchemaConverter._number,
    "integer": _SchemaConverter._integer,
    "boolean": _SchemaConverter._boolean,
    "null": _SchemaConverter._null,
    "array": _SchemaConverter._array,
    "object": _SchemaConverter._object,
}


def _array_of(items: Iterable[str]) -> str:
    inside = ' ws "," ws '.join(items)
    return f'("[" ws {inside} ws "]")' if inside else '("[" ws "]")'


def _escape_pointer(name: str) -> str:
    """Return a member's name as a JSON pointer writes it."""
    return name.replace("~", "~0").replace("/", "~1")
