"""The demo model's vocabulary, from its GGUF file to tokenizer files and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.vocab_gguf import LlamaVocab, assert_same_tokens, load_in_llama_cpp, random_texts
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pigguf.gguf_io import read_header
from pigguf.tokenizer import (
    ChatTemplate,
    TokenType,
    Vocab,
    load_reference_encoder,
    read_vocab,
    select_roundtrip_texts,
    vocab_from_metadata,
    write_tokenizer,
)

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Grüße! 你好？\n  <tag>"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Again"},
]


@pytest.fixture(scope="module")
def vocab(smollm2_gguf: Path) -> Vocab:
    return vocab_from_metadata(read_header(smollm2_gguf).metadata)


@pytest.fixture(scope="module")
def llama(smollm2_gguf: Path) -> LlamaVocab:
    return LlamaVocab(smollm2_gguf)


@pytest.fixture(scope="module")
def written(vocab: Vocab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("smollm2")
    write_tokenizer(vocab, directory)
    return directory


@pytest.fixture(scope="module")
def transformers(written: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(written)


def test_the_vocabulary_is_read_from_the_file(vocab: Vocab) -> None:
    assert (vocab.model, vocab.pre, len(vocab.tokens), len(vocab.merges)) == ("gpt2", "smollm", 49152, 48900)
    assert dict(vocab.special_ids) == {"bos": 1, "eos": 2, "unk": 0, "pad": 2}
    assert (vocab.add_bos, vocab.add_eos, vocab.add_space_prefix) == (False, False, False)
    assert vocab.types.count(TokenType.CONTROL) == 17
    assert vocab.special_token("eos") == "<|im_end|>"
    assert vocab.special_token("eot") is None


def test_transformers_gives_llama_cpps_tokens(
    vocab: Vocab, llama: LlamaVocab, transformers: PreTrainedTokenizerBase
) -> None:
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=10, count=1500))
    assert_same_tokens(
        lambda text: transformers.encode(text, add_special_tokens=False), llama.tokenize, texts
    )
    assert transformers.encode("Hi") == llama.tokenize("Hi", add_special=True)


def test_the_reference_encoder_gives_llama_cpps_tokens(
    vocab: Vocab, llama: LlamaVocab, written: Path
) -> None:
    texts = (*select_roundtrip_texts(vocab), *random_texts(seed=11, count=500))
    assert_same_tokens(load_reference_encoder(written), llama.tokenize, texts)


def test_decoding_gives_the_text_back(vocab: Vocab, transformers: PreTrainedTokenizerBase) -> None:
    for text in select_roundtrip_texts(vocab):
        assert transformers.decode(transformers.encode(text)) == text


def test_written_files_read_back_the_same(vocab: Vocab, written: Path) -> None:
    assert read_vocab(written, {"bos_token_id": 1, "eos_token_id": 2}, 49152) == vocab


def test_metadata_reads_back_the_same(vocab: Vocab, llama: LlamaVocab, tmp_path: Path) -> None:
    assert vocab_from_metadata(vocab.metadata()) == vocab
    again = load_in_llama_cpp(vocab, tmp_path)
    assert_same_tokens(llama.tokenize, again.tokenize, random_texts(seed=12, count=200))
    ends = [token for token in range(len(vocab.tokens)) if llama.is_eog(token)]
    assert [token for token in range(len(vocab.tokens)) if again.is_eog(token)] == ends
    assert 2 in ends


def test_the_chat_template_renders_as_in_transformers(
    vocab: Vocab, transformers: PreTrainedTokenizerBase
) -> None:
    template = ChatTemplate(vocab.chat_template or "")
    for messages in (MESSAGES, MESSAGES[1:], MESSAGES[1:2]):
        for prompt in (True, False):
            assert template.render(messages, add_generation_prompt=prompt) == (
                transformers.apply_chat_template(messages, add_generation_prompt=prompt, tokenize=False)
            )
