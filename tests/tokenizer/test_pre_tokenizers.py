"""Every pre-tokenizer splits text as llama.cpp does under each of its names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.vocab_gguf import (
    assert_same_tokens,
    load_in_llama_cpp,
    random_texts,
    training_texts,
    write_byte_level,
)

from pigguf.errors import TokenizerError
from pigguf.tokenizer import TokenizerDifference, load_reference_encoder, read_vocab, select_roundtrip_texts
from pigguf.tokenizer.known_differences import remove_differing_text
from pigguf.tokenizer.pre_tokenizers import (
    PRE_TOKENIZERS,
    PreTokenizer,
    match_pre_tokenizer,
    pre_tokenizer_by_name,
)

SIZE = 1500


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS, ids=lambda pre_tokenizer: pre_tokenizer.name)
def test_a_pre_tokenizer_gives_llama_cpps_tokens(pre_tokenizer: PreTokenizer, tmp_path: Path) -> None:
    write_byte_level(
        tmp_path,
        pre_tokenizer.rules,
        ignore_merges=pre_tokenizer.ignore_merges,
        size=SIZE,
        texts=texts_for(pre_tokenizer),
    )
    vocab = read_vocab(tmp_path, {}, SIZE)
    assert vocab.pre == pre_tokenizer.name
    encode = load_reference_encoder(tmp_path)
    texts = (
        *select_roundtrip_texts(vocab),
        *remove_differing_text(random_texts(seed=2, count=400), pre_tokenizer.known_differences),
    )
    for name in (pre_tokenizer.name, *pre_tokenizer.aliases):
        llama = load_in_llama_cpp(replace(vocab, pre=name), tmp_path)
        assert_same_tokens(encode, llama.tokenize, texts)


def texts_for(pre_tokenizer: PreTokenizer) -> list[str]:
    """Return the texts to train the pre-tokenizer's vocabulary on.

    The vocabularies of deepseek-coder have no merge across a Unicode space and a Chinese character,
    which llama.cpp and tokenizer.json split differently; neither has one trained without such spaces.
    """
    if pre_tokenizer.name != "deepseek-coder":
        return training_texts()
    return [" ".join(text.split()) for text in training_texts()]


@pytest.mark.parametrize("pre_tokenizer", PRE_TOKENIZERS, ids=lambda pre_tokenizer: pre_tokenizer.name)
def test_every_rule_variant_gives_the_same_tokens(pre_tokenizer: PreTokenizer, tmp_path: Path) -> None:
    encoders = []
    for number, spelling in enumerate(pre_tokenizer.rule_variants):
        directory = tmp_path / str(number)
        directory.mkdir()
        write_byte_level(directory, spelling, ignore_merges=pre_tokenizer.ignore_merges, size=600)
        assert read_vocab(directory, {}, 600).pre == pre_tokenizer.name
        encoders.append(load_reference_encoder(directory))
    for encoder in encoders[1:]:
        assert_same_tokens(encoders[0], encoder, random_texts(seed=3, count=200))


def test_other_rules_give_other_tokens(tmp_path: Path) -> None:
    """Check that the comparison can fail: with a wrong name it does."""
    pre_tokenizer = next(
        pre_tokenizer for pre_tokenizer in PRE_TOKENIZERS if pre_tokenizer.name == "llama-bpe"
    )
    write_byte_level(tmp_path, pre_tokenizer.rules, ignore_merges=True)
    vocab = read_vocab(tmp_path, {}, SIZE)
    encode = load_reference_encoder(tmp_path)
    llama = load_in_llama_cpp(replace(vocab, pre="gpt-2"), tmp_path)
    assert any(encode(text) != llama.tokenize(text) for text in select_roundtrip_texts(vocab))


@pytest.mark.parametrize(
    ("difference", "name", "text"),
    [
        (TokenizerDifference.LETTER_CASE, "tekken", "L'ÉTAT C'EST MOI"),
        (TokenizerDifference.COMBINING_MARKS, "tekken", "नमस्ते दुनिया, यह हिन्दी है।"),
        (TokenizerDifference.MIXED_SPACES, "deepseek-llm", "空格 \u00a0\u3000混合"),
    ],
)
def test_the_two_differ_as_known_differences_says(
    difference: TokenizerDifference, name: str, text: str, tmp_path: Path
) -> None:
    pre_tokenizer = pre_tokenizer_by_name(name)
    assert difference in pre_tokenizer.known_differences
    texts = [*[text] * 200, *training_texts()]  # so that the words of the text are merged
    write_byte_level(
        tmp_path, pre_tokenizer.rules, ignore_merges=pre_tokenizer.ignore_merges, size=3000, texts=texts
    )
    vocab = read_vocab(tmp_path, {}, 3000)
    assert difference.value in vocab.notes
    encode, llama = load_reference_encoder(tmp_path), load_in_llama_cpp(vocab, tmp_path)
    assert encode(text) != llama.tokenize(text)
    (clear,) = remove_differing_text([text], [difference])
    assert encode(clear) == llama.tokenize(clear)


def test_ignore_merges_is_part_of_the_rules() -> None:
    llama_bpe = next(pre_tokenizer for pre_tokenizer in PRE_TOKENIZERS if pre_tokenizer.name == "llama-bpe")
    assert match_pre_tokenizer(llama_bpe.rules, False, "tokenizer.json").name == "dbrx"


def test_every_name_is_listed_once() -> None:
    names = [
        name for pre_tokenizer in PRE_TOKENIZERS for name in (pre_tokenizer.name, *pre_tokenizer.aliases)
    ]
    assert len(set(names)) == len(names)


def test_unknown_rules_are_refused_with_their_text() -> None:
    rule = {
        "type": "Split",
        "pattern": {"Regex": "[A-Z]?[a-z]+"},
        "behavior": "Isolated",
        "invert": False,
    }
    with pytest.raises(TokenizerError) as refusal:
        match_pre_tokenizer([rule], False, "somewhere/tokenizer.json")
    assert "somewhere/tokenizer.json" in refusal.value.message
    assert json.dumps(rule) in refusal.value.message
    assert "smollm" in (refusal.value.hint or "")


def test_nfc_is_a_known_difference_and_removed_from_the_texts(tmp_path: Path) -> None:
    pre_tokenizer = next(pre_tokenizer for pre_tokenizer in PRE_TOKENIZERS if pre_tokenizer.name == "qwen2")
    write_byte_level(tmp_path, pre_tokenizer.rules, normalizer={"type": "NFC"})
    vocab = read_vocab(tmp_path, {}, SIZE)
    assert vocab.known_differences == (TokenizerDifference.NFC,)
    assert any("NFC" in note for note in vocab.notes)
    encode, llama = load_reference_encoder(tmp_path), load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(encode, llama.tokenize, select_roundtrip_texts(vocab))
    decomposed = "cafe\u0301"
    assert encode(decomposed) != llama.tokenize(decomposed)
