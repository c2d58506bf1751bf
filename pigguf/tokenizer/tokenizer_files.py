"""The tokenizer files of a checkpoint directory, read once: JSON objects and the sentencepiece model.

Where there is no tokenizer.json, an older form of the same may stand in its place (older_forms.py).

Left out: what the files mean. Mistral's tekken.json and other models' tiktoken files are not read.
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

# What the keys that are read must hold: an object by its keys (... for any key), a list by its
# element, or a type. null means what absence means.
_TOKEN: Final = {"id": int, "content": str}
_SHAPES: Final[dict[str, Any]] = {
    TOKENIZER_JSON: {
        "added_tokens": [_TOKEN],
        "normalizer": {},
        "pre_tokenizer": {},
        "post_processor": {},
        "decoder": {},
        "model": {"type": str, "vocab": {...: int}, "merges": [(str, list)], "unk_token": str},
    },
    TOKENIZER_CONFIG: {"added_tokens_decoder": {...: _TOKEN}, "chat_template": (str, list, dict)},
    ADDED_TOKENS: {...: int},
    VOCAB_JSON: {...: int},
    CONFIG_JSON: {"model_type": str},
    CHAT_TEMPLATE_JSON: {"chat_template": str},
}


@dataclass(frozen=True)
class TokenizerFiles:
    """What a directory holds; an absent JSON file is {}, and None where its absence matters.

    Attributes:
        directory: where they lie.
        tokenizer: tokenizer.json, or what an older form of it says, or None.
        tokenizer_file: the name of the file that `tokenizer` is read from.
        sentencepiece: the bytes of sentencepiece's tokenizer.model, or None.
        config, special_tokens_map, added_tokens, generation_config: the files of these names; an older
            form names its BOS and EOS in config where no file does.
        chat_template: the template of its own file (chat_template.jinja, else chat_template.json), or None.
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
        """Read the files.

        Raises:
            TokenizerError: a file is no JSON object, or holds something else than it should.
            ReadError: the system refuses to read one.
        """
        template = _text(directory / CHAT_TEMPLATE_JINJA)
        if template is None:
            template = (_object(directory / CHAT_TEMPLATE_JSON) or {}).get("chat_template")
        tokenizer, model = _object(directory / TOKENIZER_JSON), _bytes(directory / TOKENIZER_MODEL)
        config = _object(directory / TOKENIZER_CONFIG) or {}
        special_tokens_map = _object(directory / SPECIAL_TOKENS_MAP) or {}
        older = None if tokenizer else _older_form(directory, model, config, special_tokens_map)
        return cls(
            directory=directory,
            tokenizer_json=older.tokenizer_json if older else tokenizer,
            tokenizer_json_source=older.file if older else TOKENIZER_JSON,
            sentencepiece_model=None if model and is_tiktoken(model) else model,
            tokenizer_config={**(older.special_tokens if older else {}), **config},
            special_tokens_map=special_tokens_map,
            added_tokens=_object(directory / ADDED_TOKENS) or {},
            generation_config=_object(directory / GENERATION_CONFIG) or {},
            chat_template=template,
        )

    def path(self, name: str) -> Path:
        """A file's path, for messages."""
        return self.directory / name


def _older_form(directory: Path, model: bytes | None, config: Json, special: Json) -> LegacyTokenizer | None:
    """vocab.json with merges.txt, or a tokenizer.model in tiktoken's form."""
    if model is not None:
        if not is_tiktoken(model):
            return None
        return convert_llama3_tiktoken(model, _object(directory / META_PARAMS) or {}, directory / TOKENIZER_MODEL)
    vocab, merges = _object(directory / VOCAB_JSON), _text(directory / MERGES_TXT)
    if vocab is None or merges is None:
        return None
    stated = {**special, **config} if "added_tokens_decoder" in config else {**config, **special}
    model_type = (_object(directory / CONFIG_JSON) or {}).get("model_type")
    return convert_vocab_and_merges(vocab, merges, stated, model_type, directory / VOCAB_JSON)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise read_error(path, error) from error


def _text(path: Path) -> str | None:
    content = _bytes(path)
    try:
        return None if content is None else content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8: {error}", "download the file again") from error


def _object(path: Path) -> Json | None:
    text = _text(path)
    if text is None:
        return None
    try:
        content = json.loads(text, object_pairs_hook=lambda pairs: _without_twins(pairs, path))
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}", damaged_file_hint(text.encode())) from error
    if not isinstance(content, dict):
        raise TokenizerError(f"{path} holds a {type(content).__name__}, not an object")
    _check_shape(content, _SHAPES.get(path.name, {}), path, "")
    return content


def _check_shape(value: Any, shape: Any, path: Path, key: str) -> None:
    """Refuse a value of another shape (see _SHAPES) under `key`."""
    if value is None:
        return
    expected: Any = shape if isinstance(shape, (type, tuple)) else type(shape)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TokenizerError(f"{path}: {key} = {json.dumps(value)[:200]} is not {_name(expected)}")
    if isinstance(shape, list):
        _check_elements(value, shape[0], path, key)
    if isinstance(shape, dict):
        _check_keys(value, shape, path, f"{key}." if key else "")


def _check_elements(values: list[Any], shape: Any, path: Path, key: str) -> None:
    for element in values:
        if element is None:
            raise TokenizerError(f"{path}: {key} holds null")
        _check_shape(element, shape, path, f"{key}[]")


def _check_keys(values: Json, shape: dict[Any, Any], path: Path, prefix: str) -> None:
    for name, value in values.items():
        if name in shape or ... in shape:
            _check_shape(value, shape.get(name, shape.get(...)), path, f"{prefix}{name}")


def _name(expected: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
    kinds = expected if isinstance(expected, tuple) else (expected,)
    return " or ".join(names[kind] for kind in kinds)


def _without_twins(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    """Python keeps the last of two equal keys without a word: in a vocabulary that loses a token."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        twin = next(key for key in keys if keys.count(key) > 1)
        values = " and ".join(json.dumps(value)[:40] for key, value in pairs if key == twin)
        raise TokenizerError(f"{path} holds the key {twin!r} more than once: {values}")
    return content
