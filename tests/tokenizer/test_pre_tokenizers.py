"""Every row of the table splits text as llama.cpp does under each of the row's names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.vocab_gguf import (
    assert_same_tokens,
    in_llama_cpp,
    random_texts,
    training_texts,
    write_byte_level,
)

from pigguf.errors import TokenizerError
from pigguf.tokenizer import Limit, read_vocab, roundtrip_samples, source_encoder
from pigguf.tokenizer.known_differences import kept_clear
from pigguf.tokenizer.pre_tokenizers import PRE_TOKENIZERS, PreTokenizer, pre_tokenizer_named, recognise

SIZE = 1500


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.name)
def test_a_row_makes_llama_cpps_tokens(row: PreTokenizer, tmp_path: Path) -> None:
    write_byte_level(tmp_path, row.rules, ignore_merges=row.ignore_merges, size=SIZE, texts=texts_for(row))
    vocab = read_vocab(tmp_path, {}, SIZE)
    assert vocab.pre == row.name
    encode = source_encoder(tmp_path)
    texts = (*roundtrip_samples(vocab), *kept_clear(random_texts(seed=2, count=400), row.limits))
    for name in (row.name, *row.aliases):
        llama = in_llama_cpp(replace(vocab, pre=name), tmp_path)
        assert_same_tokens(encode, llama.tokenize, texts)


def texts_for(row: PreTokenizer) -> list[str]:
    """What the row's vocabulary is trained on.

    The vocabularies of deepseek-coder have no merge across a Unicode space and a Chinese character,
    which llama.cpp and tokenizer.json split differently; neither has one trained without such spaces.
    """
    if row.name != "deepseek-coder":
        return training_texts()
    return [" ".join(text.split()) for text in training_texts()]


@pytest.mark.parametrize("row", PRE_TOKENIZERS, ids=lambda row: row.name)
def test_every_spelling_of_a_row_makes_the_same_tokens(row: PreTokenizer, tmp_path: Path) -> None:
    encoders = []
    for number, spelling in enumerate(row.spellings):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_byte_level(directory, spelling, ignore_merges=row.ignore_merges, size=600)
        assert read_vocab(directory, {}, 600).pre == row.name
        encoders.append(source_encoder(directory))
    for encoder in encoders[1:]:
        assert_same_tokens(encoders[0], encoder, random_texts(seed=3, count=200))


def test_rows_with_other_rules_make_other_tokens(tmp_path: Path) -> None:
    """The comparison can fail: a vocabulary under a wrong name does."""
    row = next(row for row in PRE_TOKENIZERS if row.name == "llama-bpe")
    write_byte_level(tmp_path, row.rules, ignore_merges=True)
    vocab = read_vocab(tmp_path, {}, SIZE)
    encode = source_encoder(tmp_path)
    llama = in_llama_cpp(replace(vocab, pre="gpt-2"), tmp_path)
    assert any(encode(text) != llama.tokenize(text) for text in roundtrip_samples(vocab))


@pytest.mark.parametrize(
    ("limit", "name", "text"),
    [
        (Limit.LETTER_CASE, "tekken", "L'ÉTAT C'EST MOI"),
        (Limit.MARKS, "tekken", "नमस्ते दुनिया, यह हिन्दी है।"),
        (Limit.MIXED_SPACES, "deepseek-llm", "空格 \u00a0\u3000混合"),
    ],
)
def test_a_limit_is_where_the_two_differ(limit: Limit, name: str, text: str, tmp_path: Path) -> None:
    row = pre_tokenizer_named(name)
    assert limit in row.limits
    texts = [*[text] * 200, *training_texts()]  # so that the words of the text are merged
    write_byte_level(tmp_path, row.rules, ignore_merges=row.ignore_merges, size=3000, texts=texts)
    vocab = read_vocab(tmp_path, {}, 3000)
    assert limit.value in vocab.notes
    encode, llama = source_encoder(tmp_path), in_llama_cpp(vocab, tmp_path)
    assert encode(text) != llama.tokenize(text)
    (clear,) = kept_clear([text], [limit])
    assert encode(clear) == llama.tokenize(clear)


def test_ignore_merges_is_part_of_the_rules() -> None:
    llama_bpe = next(row for row in PRE_TOKENIZERS if row.name == "llama-bpe")
    assert recognise(llama_bpe.rules, False, "tokenizer.json").name == "dbrx"


def test_every_name_stands_once() -> None:
    names = [name for row in PRE_TOKENIZERS for name in (row.name, *row.aliases)]
    assert len(set(names)) == len(names)


def test_unknown_rules_are_refused_with_their_text() -> None:
    rule = {
        "type": "Split",
        "pattern": {"Regex": "[A-Z]?[a-z]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    with pytest.raises(TokenizerError) as refusal:
        recognise([rule], False, "somewhere/tokenizer.json")
    assert "somewhere/tokenizer.json" in refusal.value.message
    assert json.dumps(rule) in refusal.value.message
    assert "smollm" in (refusal.value.hint or "")


def test_nfc_is_a_limit_and_the_samples_keep_clear_of_it(tmp_path: Path) -> None:
    row = next(row for row in PRE_TOKENIZERS if row.name == "qwen2")
    write_byte_level(tmp_path, row.rules, normalizer={"type": "NFC"})
    vocab = read_vocab(tmp_path, {}, SIZE)
    assert vocab.limits == (Limit.NFC,)
    assert any("NFC" in note for note in vocab.notes)
    encode, llama = source_encoder(tmp_path), in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(encode, llama.tokenize, roundtrip_samples(vocab))
    decomposed = "cafe\u0301"
    assert encode(decomposed) != llama.tokenize(decomposed)
