"""Reading any tokenizer files gives a Vocab or a TokenizerError."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.vocab_gguf import END, write_byte_level, write_json

from pigguf.errors import TokenizerError
from pigguf.tokenizer import read_vocab, write_tokenizer
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_by_name
from pigguf.tokenizer.tokenizer_json import BYTE_TOKENS
from pigguf.tokenizer.vocab import TokenType, Vocab

SIZE = 300
JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    7,
    2.5,
    10**30,
    "",
    "x",
    "<s>",
    [],
    ["x"],
    [1],
    {},
    {"type": "x"},
    [[]],
)


def byte_level(directory: Path) -> None:
    write_byte_level(
        directory, pre_tokenizer_by_name("smollm").rules, size=SIZE, special=(END, "<s>"), texts=["ab"]
    )


def sentencepiece(directory: Path) -> None:
    tokens = ("<unk>", "<s>", "</s>", *BYTE_TOKENS, "▁", "a", "b", "▁a", "▁ab")
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    types = (*kinds, *[TokenType.NORMAL] * (len(tokens) - len(kinds)))
    scores = tuple(float(-token) for token in range(len(tokens)))
    roles = {"bos": 1, "eos": 2, "unk": 0}
    write_tokenizer(Vocab("llama", "default", tokens, types, scores, (), roles, True, False, True), directory)
    (directory / "tokenizer.model").unlink()


def write_other_files(directory: Path) -> None:
    """Write every kind of file that may be beside tokenizer.json."""
    decoder = {"1": {"content": "<s>", "special": True, "lstrip": False}}
    named = {"bos_token": "<s>", "eos_token": {"content": END}, "additional_special_tokens": ["<s>"]}
    templates = [{"name": "default", "template": "x"}]
    write_json(
        directory / "tokenizer_config.json",
        {**named, "added_tokens_decoder": decoder, "chat_template": templates, "legacy": True},
    )
    write_json(directory / "special_tokens_map.json", named)
    write_json(directory / "added_tokens.json", {"<s>": 1})
    write_json(directory / "generation_config.json", {"eos_token_id": [0, 1]})
    write_json(directory / "chat_template.json", {"chat_template": "y"})


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_any_value_of_any_key_is_read_or_refused(make: Any, tmp_path: Path) -> None:
    make(tmp_path)
    if make is byte_level:
        write_other_files(tmp_path)
    rng = random.Random(0)
    refused = 0
    for path in sorted(tmp_path.glob("*.json")):
        original = path.read_bytes()
        for path_to_value in paths_to_values(json.loads(original), rng):
            for junk in rng.sample(JUNK, 5):
                content = json.loads(original)
                set_value(content, path_to_value, junk)
                write_json(path, content)
                refused += is_refused(tmp_path)
        path.write_bytes(original)
    assert not is_refused(tmp_path)
    assert refused > 100


def is_refused(directory: Path) -> bool:
    try:
        read_vocab(directory, {"bos_token_id": 1, "eos_token_id": 0}, SIZE)
    except TokenizerError:
        return True
    return False


def paths_to_values(content: Any, rng: random.Random) -> Iterator[tuple[Any, ...]]:
    """Yield paths to the values of a JSON object; of long lists and objects only to a few."""
    items = list(content.items()) if isinstance(content, dict) else list(enumerate(content))
    for key, value in rng.sample(items, min(len(items), 12)):
        yield (key,)
        if isinstance(value, (dict, list)):
            yield from ((key, *rest) for rest in paths_to_values(value, rng))


def set_value(content: Any, path_to_value: tuple[Any, ...], value: Any) -> None:
    for key in path_to_value[:-1]:
        content = content[key]
    content[path_to_value[-1]] = value


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    byte_level(source)
    write_other_files(source)
    for path in sorted(source.glob("*.json")):
        copy = Path(shutil.copytree(source, tmp_path / path.stem))
        whole = path.read_bytes()
        for length in range(0, len(whole), max(1, len(whole) // 40)):
            (copy / path.name).write_bytes(whole[:length])
            assert is_refused(copy), f"{path.name} cut at {length} of {len(whole)}"
