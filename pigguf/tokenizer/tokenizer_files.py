"""Read the tokenizer files of a checkpoint directory: JSON objects and the sentencepiece model.

If there is no tokenizer.json, an older format of one may be there (legacy_formats.py).

Not here: what the files mean. Not supported: Mistral's tekken.json and tiktoken files of other models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pigguf.common.file_io import damaged_file_hint, read_error
from pigguf.errors import TokenizerError
from pigguf.tokenizer.legacy_formats import (
    LegacyTokenizer,
    convert_llama3_tiktoken,
    convert_vocab_and_merges,
    is_tiktoken,
)

Json = Mapping[str, Any]

TOKENIZER_JSON = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
GENERATION_CONFIG = "generation_config.json"
CHAT_TEMPLATE_JINJA = "chat_template.jinja"
CHAT_TEMPLATE_JSON = "chat_template.json"
TOKENIZER_MODEL = "tokenizer.model"
VOCAB_JSON = "vocab.json"
MERGES_TXT = "merges.txt"
CONFIG_JSON = "config.json"
META_PARAMS = "params.json"
TOKENIZER_FILE_NAMES = (
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    MERGES_TXT,
    TOKENIZER_CONFIG,
    SPECIAL_TOKENS_MAP,
    ADDED_TOKENS,
    GENERATION_CONFIG,
    CHAT_TEMPLATE_JINJA,
    CHAT_TEMPLATE_JSON,
)

# Types of the keys that are read: a dict gives an object's keys (... for any key), a list the type of its
# elements. null means the same as a missing key.
_TOKEN_SCHEMA: Final = {"id": int, "content": str}
_SCHEMAS: Final[dict[str, Any]] = {
    TOKENIZER_JSON: {
        "added_tokens": [_TOKEN_SCHEMA],
        "normalizer": {},
        "pre_tokenizer": {},
        "post_processor": {},
        "decoder": {},
        "model": {"type": str, "vocab": {...: int}, "merges": [(str, list)], "unk_token": str},
    },
    TOKENIZER_CONFIG: {"added_tokens_decoder": {...: _TOKEN_SCHEMA}, "chat_template": (str, list, dict)},
    ADDED_TOKENS: {...: int},
    VOCAB_JSON: {...: int},
    CONFIG_JSON: {"model_type": str},
    CHAT_TEMPLATE_JSON: {"chat_template": str},
}


@dataclass(frozen=True)
class TokenizerFiles:
    """A directory's tokenizer files; an absent JSON file is {}, or None where its absence matters.

    Attributes:
        directory: the directory.
        tokenizer_json: content of tokenizer.json, or converted from an older format, or None.
        tokenizer_json_source: name of the file that tokenizer_json was read from.
        sentencepiece_model: the bytes of sentencepiece's tokenizer.model, or None.
        tokenizer_config: tokenizer_config.json; with an older format's default BOS and EOS.
        special_tokens_map, added_tokens, generation_config: the files of these names.
        chat_template: the template in its own file (chat_template.jinja, else chat_template.json), or None.
    """

    directory: Path
    tokenizer_json: Json | None
    tokenizer_json_source: str
    sentencepiece_model: bytes | None
    tokenizer_config: Json
    special_tokens_map: Json
    added_tokens: Json
    generation_config: Json
    chat_template: str | None

    @classmethod
    def open(cls, directory: Path) -> TokenizerFiles:
        """Read the files of a directory.

        Raises:
            TokenizerError: a file is not a JSON object, or a key has a value of the wrong type.
            ReadError: the system refuses to read one.
        """
        template = _read_text(directory / CHAT_TEMPLATE_JINJA)
        if template is None:
            template = (_read_object(directory / CHAT_TEMPLATE_JSON) or {}).get("chat_template")
        tokenizer, model = _read_object(directory / TOKENIZER_JSON), _read_bytes(directory / TOKENIZER_MODEL)
        config = _read_object(directory / TOKENIZER_CONFIG) or {}
        special_tokens_map = _read_object(directory / SPECIAL_TOKENS_MAP) or {}
        legacy = None if tokenizer else _read_legacy_format(directory, model, config, special_tokens_map)
        return cls(
            directory=directory,
            tokenizer_json=legacy.tokenizer_json if legacy else tokenizer,
            tokenizer_json_source=legacy.file if legacy else TOKENIZER_JSON,
            sentencepiece_model=None if model and is_tiktoken(model) else model,
            tokenizer_config={**(legacy.special_tokens if legacy else {}), **config},
            special_tokens_map=special_tokens_map,
            added_tokens=_read_object(directory / ADDED_TOKENS) or {},
            generation_config=_read_object(directory / GENERATION_CONFIG) or {},
            chat_template=template,
        )

    def path(self, name: str) -> Path:
        """Return a file's path, for messages."""
        return self.directory / name


def _read_legacy_format(
    directory: Path, model: bytes | None, config: Json, special: Json
) -> LegacyTokenizer | None:
    """Convert vocab.json with merges.txt, or a tiktoken tokenizer.model; return None if there is neither."""
    if model is not None:
        if not is_tiktoken(model):
            return None
        return convert_llama3_tiktoken(
            model, _read_object(directory / META_PARAMS) or {}, directory / TOKENIZER_MODEL
        )
    vocab, merges = _read_object(directory / VOCAB_JSON), _read_text(directory / MERGES_TXT)
    if vocab is None or merges is None:
        return None
    settings = {**special, **config} if "added_tokens_decoder" in config else {**config, **special}
    model_type = (_read_object(directory / CONFIG_JSON) or {}).get("model_type")
    return convert_vocab_and_merges(vocab, merges, settings, model_type, directory / VOCAB_JSON)


def _read_bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_error(path, error) from error


def _read_text(path: Path) -> str | None:
    content = _read_bytes(path)
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error}", "download the file again") from error


def _read_object(path: Path) -> Json | None:
    text = _read_text(path)
    if text is None:
        return None
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _reject_duplicate_keys(pairs, path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}", damaged_file_hint(text.encode())) from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} is a JSON {type(content).__name__}, not an object")
    _check_schema(content, _SCHEMAS.get(path.name, {}), path, "")
    return content


def _check_schema(value: Any, schema: Any, path: Path, key: str) -> None:
    """Raise if the value under `key` does not match its schema (_SCHEMAS)."""
    if value is None:
        return
    expected: Any = schema if isinstance(schema, (type, tuple)) else type(schema)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TokenizerError(f"{path}: {key} = {json.dumps(value)[:200]} is not {_type_names(expected)}")
    if isinstance(schema, list):
        _check_elements(value, schema[0], path, key)
    if isinstance(schema, dict):
        _check_keys(value, schema, path, f"{key}." if key else "")


def _check_elements(values: list[Any], schema: Any, path: Path, key: str) -> None:
    for element in values:
        if element is None:
            raise TokenizerError(f"{path}: {key} contains null")
        _check_schema(element, schema, path, f"{key}[]")


def _check_keys(values: Json, schema: dict[Any, Any], path: Path, prefix: str) -> None:
    for name, value in values.items():
        if name in schema or ... in schema:
            _check_schema(value, schema.get(name, schema.get(...)), path, f"{prefix}{name}")


def _type_names(expected: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", int: "an integer"}
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join(names[kind] for kind in kinds)


def _reject_duplicate_keys(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Raise for duplicate keys, of which json would silently keep the last and lose a token."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        duplicate = next(key for key in keys if keys.count(key) > 1)
        values = " and ".join(json.dumps(value)[:40] for key, value in pairs if key == duplicate)
        raise TokenizerError(f"{path} has the key {duplicate!r} more than once: {values}")
    return content
