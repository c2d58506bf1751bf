"""Tokenizers without a tokenizer.json: vocab.json with merges.txt, and Llama 3's tokenizer.model."""

from __future__ import annotations

import base64
import re
import unicodedata
from collections.abc import Callable
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
from support.vocab_gguf import (
    END,
    assert_same_tokens,
    load_in_llama_cpp,
    random_texts,
    write_byte_level,
    write_json,
)
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer

from pigguf.errors import TokenizerError
from pigguf.tokenizer import (
    ROUNDTRIP_TEXTS,
    TokenizerDifference,
    TokenType,
    load_reference_encoder,
    read_vocab,
    select_roundtrip_texts,
    write_tokenizer,
)
from pigguf.tokenizer.byte_alphabet import BYTE_ALPHABET
from pigguf.tokenizer.legacy_formats import LLAMA3_BASE_TOKENS, llama3_special_tokens
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_by_name

SIZE = 600
OPT_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
OPT_END = {"content": "</s>", "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}


def write_pairs(directory: Path, *, pre: str = "gpt-2", special: tuple[str, ...] = (END,)) -> Path:
    """Train a vocabulary and write it as vocab.json and merges.txt, as GPT-2's files are."""
    content = write_byte_level(directory, pre_tokenizer_by_name(pre).rules, size=SIZE, special=special)
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer_config.json").unlink()
    write_json(directory / "vocab.json", content["model"]["vocab"])
    lines = ["#version: 0.2", *(" ".join(merge) for merge in content["model"]["merges"]), ""]
    (directory / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    return directory


@pytest.mark.parametrize(
    ("pre", "config", "model_type", "known_differences"),
    [
        ("gpt-2", {"tokenizer_class": "GPT2Tokenizer"}, None, ()),
        ("gpt-2", {"tokenizer_class": "CodeGenTokenizer"}, "phi", ()),
        ("gpt-2", {}, "gpt2", ()),
        ("gpt-2", {}, "gptj", ()),
        ("gpt-2", {"tokenizer_class": "GPTNeoXTokenizerFast"}, "gpt_neox", (TokenizerDifference.NFC,)),
        ("qwen2", {"tokenizer_class": "Qwen2Tokenizer"}, "qwen2", (TokenizerDifference.NFC,)),
    ],
)
def test_the_tokenizer_class_decides_how_text_is_split(
    pre: str,
    config: dict[str, Any],
    model_type: str | None,
    known_differences: tuple[TokenizerDifference, ...],
    tmp_path: Path,
) -> None:
    write_pairs(tmp_path, pre=pre)
    write_json(tmp_path / "tokenizer_config.json", config)
    if model_type:
        write_json(tmp_path / "config.json", {"model_type": model_type})
    vocab = read_vocab(tmp_path, {}, SIZE)
    assert (vocab.pre, vocab.known_differences, vocab.add_bos, vocab.special_token("eos")) == (
        pre,
        known_differences,
        False,
        END,
    )
    assert vocab.types[0] is TokenType.CONTROL
    llama = load_in_llama_cpp(vocab, tmp_path)
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=20, count=300))
    if TokenizerDifference.NFC in known_differences:
        texts = tuple(unicodedata.normalize("NFC", text) for text in texts)
    assert_same_tokens(load_reference_encoder(tmp_path), llama.tokenize, texts)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert_same_tokens(lambda text: theirs.encode(text, add_special_tokens=False), llama.tokenize, texts)


@pytest.mark.parametrize("add_bos", [True, False, None])
def test_opts_files_add_its_eos_before_a_text(add_bos: bool | None, tmp_path: Path) -> None:
    """Use the settings of facebook/opt-*: bos = eos = "</s>", and add_bos_token."""
    write_pairs(tmp_path, special=OPT_SPECIAL)
    names = {"bos_token": OPT_END, "eos_token": OPT_END, "unk_token": OPT_END}
    write_json(tmp_path / "special_tokens_map.json", {**names, "pad_token": "<pad>"})
    config = {**names, "pad_token": "<pad>", "tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    write_json(
        tmp_path / "tokenizer_config.json",
        config if add_bos is None else {**config, "add_bos_token": add_bos},
    )
    write_json(tmp_path / "config.json", {"model_type": "opt"})
    vocab = read_vocab(tmp_path, {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}, SIZE + 7)
    assert dict(vocab.special_ids) == {"bos": 2, "eos": 2, "unk": 2, "pad": 1}
    assert vocab.add_bos is bool(add_bos)
    llama, theirs = load_in_llama_cpp(vocab, tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Hello there", " x", "", "a</s>b"):
        assert llama.tokenize(text, add_special=True) == theirs.encode(text)
    assert_same_tokens(load_reference_encoder(tmp_path), llama.tokenize, select_roundtrip_texts(vocab))
    written = tmp_path / "written"
    written.mkdir()
    write_tokenizer(vocab, written)
    assert read_vocab(written, {}, SIZE + 7) == vocab


def test_merges_without_a_version_are_all_read(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    expected = read_vocab(tmp_path, {}, SIZE)
    path = tmp_path / "merges.txt"
    path.write_text(path.read_text(encoding="utf-8").removeprefix("#version: 0.2\n"), encoding="utf-8")
    assert read_vocab(tmp_path, {}, SIZE) == expected


def test_an_unknown_class_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "OurOwnTokenizer"})
    with pytest.raises(
        TokenizerError, match=r"vocab\.json .* tokenizer_class = 'OurOwnTokenizer'"
    ) as refusal:
        read_vocab(tmp_path, {}, SIZE)
    assert "GPT2Tokenizer" in (refusal.value.hint or "")
    assert "save_pretrained" in (refusal.value.hint or "")


def test_a_space_before_every_text_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}
    write_json(tmp_path / "tokenizer_config.json", config)
    with pytest.raises(TokenizerError, match="add_prefix_space = true") as refusal:
        read_vocab(tmp_path, {}, SIZE)
    assert refusal.value.hint


def test_a_damaged_merge_is_refused(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer"})
    with (tmp_path / "merges.txt").open("a", encoding="utf-8") as file:
        file.write("a b c\n")
    with pytest.raises(TokenizerError, match=r'vocab\.json: model.merges has "a b c"'):
        read_vocab(tmp_path, {}, SIZE)


# Llama 3's tokenizer.model


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    """Return 128000 ranks: 1500 trained with Llama 3's rules, the others of bytes that no text has."""
    directory = tmp_path_factory.mktemp("ranks")
    content = write_byte_level(directory, pre_tokenizer_by_name("llama-bpe").rules, size=1500, special=())
    bytes_of = {character: byte for byte, character in enumerate(BYTE_ALPHABET)}
    found = {bytes(bytes_of[c] for c in text): rank for text, rank in content["model"]["vocab"].items()}
    fillers = (bytes(rest) for rest in product((0xFE, 0xFF), range(256), range(256)))
    return {**found, **dict(zip(fillers, range(len(found), LLAMA3_BASE_TOKENS), strict=False))}


def write_tiktoken(directory: Path, ranks: dict[bytes, int]) -> Path:
    lines = (b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    (directory / "tokenizer.model").write_bytes(b"".join(lines))
    return directory


def merge_by_rank(word: bytes, ranks: dict[bytes, int]) -> list[int]:
    """Tokenize with tiktoken's algorithm: merge the pair of the lowest rank until there is none."""
    if word in ranks:
        return [ranks[word]]
    parts = [word[at : at + 1] for at in range(len(word))]
    while True:
        joined = [
            (ranks[left + right], at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in ranks
        ]
        if not joined:
            return [ranks[part] for part in parts]
        _, at = min(joined)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


def test_llama_3s_own_file_gives_tiktokens_tokens(ranks: dict[bytes, int], tmp_path: Path) -> None:
    write_tiktoken(tmp_path, ranks)
    vocab = read_vocab(tmp_path, {}, LLAMA3_BASE_TOKENS + 256)
    assert (vocab.model, vocab.pre, vocab.add_bos, vocab.add_eos) == ("gpt2", "llama-bpe", True, False)
    assert (vocab.special_token("bos"), vocab.special_token("eos")) == (
        "<|begin_of_text|>",
        "<|end_of_text|>",
    )
    assert vocab.tokens[LLAMA3_BASE_TOKENS + 8 : LLAMA3_BASE_TOKENS + 11] == (
        "<|reserved_special_token_4|>",
        "<|eot_id|>",
        "<|reserved_special_token_5|>",
    )
    assert set(vocab.types[LLAMA3_BASE_TOKENS:]) == {TokenType.CONTROL}
    llama = load_in_llama_cpp(vocab, tmp_path)
    assert llama.is_eog(vocab.tokens.index("<|eot_id|>"))
    texts = (*ROUNDTRIP_TEXTS, *random_texts(seed=21, count=300))
    assert_same_tokens(
        load_reference_encoder(tmp_path), llama.tokenize, (*texts, *select_roundtrip_texts(vocab))
    )
    rules = pre_tokenizer_by_name("llama-bpe").rules[0]["pattern"]["Regex"]
    split = pre_tokenizers.Split(Regex(rules), "isolated")

    def by_rank(text: str) -> list[int]:
        words = (word.encode() for word, _ in split.pre_tokenize_str(text))
        return [token for word in words for token in merge_by_rank(word, ranks)]

    assert_same_tokens(by_rank, llama.tokenize, texts)


def test_llama_31_names_reserved_tokens_of_llama_3(ranks: dict[bytes, int], tmp_path: Path) -> None:
    write_tiktoken(tmp_path, ranks)
    write_json(tmp_path / "params.json", {"dim": 4096, "use_scaled_rope": True})
    tokens = read_vocab(tmp_path, {}, LLAMA3_BASE_TOKENS + 256).tokens
    named = {4: "<|finetune_right_pad_id|>", 8: "<|eom_id|>", 9: "<|eot_id|>", 10: "<|python_tag|>"}
    assert {index: tokens[LLAMA3_BASE_TOKENS + index] for index in named} == named
    assert tokens[-1] == "<|reserved_special_token_247|>"
    assert llama3_special_tokens(llama31=False)[-1] == "<|reserved_special_token_250|>"


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda lines: [*lines[:-1], b"AAAA"], "line 128000 is not a token and a rank"),
        (lambda lines: [*lines[:-1], b"A?AA 127999"], "line 128000 is not a token and a rank"),
        (lambda lines: lines[:100000], "has 100000 tokens in tiktoken's format, not Llama 3's"),
        (lambda lines: [*lines[:-1], b"/////w== 128007"], "has 128000 tokens"),
    ],
)  # fmt: skip
def test_damaged_and_other_models_files_are_refused(
    damage: Callable[[list[bytes]], list[bytes]], reason: str, ranks: dict[bytes, int], tmp_path: Path
) -> None:
    path = write_tiktoken(tmp_path, ranks) / "tokenizer.model"
    path.write_bytes(b"\n".join(damage(path.read_bytes().splitlines())))
    with pytest.raises(TokenizerError, match=re.escape(reason)) as refusal:
        read_vocab(tmp_path, {}, LLAMA3_BASE_TOKENS + 256)
    assert str(path) in refusal.value.message
    assert refusal.value.hint
