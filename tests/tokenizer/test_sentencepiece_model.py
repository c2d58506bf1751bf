"""tokenizer.model is read and written as sentencepiece itself reads and writes it."""

from __future__ import annotations

import io
import random

import pytest
import sentencepiece

from pigguf.errors import TokenizerError
from pigguf.tokenizer import SAMPLES
from pigguf.tokenizer.sentencepiece_model import (
    BPE,
    NO_DUMMY_PREFIX,
    UNIGRAM,
    Piece,
    SentencePieceModel,
    read_model,
    write_model,
)


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in SAMPLES * 3 for line in text.split("\n") if line),
        model_writer=model,
        **{"vocab_size": 1100, "byte_fallback": True, "minloglevel": 2, **options},
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def content() -> bytes:
    return trained(
        model_type="bpe",
        normalization_rule_name="nmt_nfkc",
        user_defined_symbols=["<sep>"],
        pad_id=3,
        add_dummy_prefix=False,
    )


def test_every_field_is_what_sentencepiece_says(content: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = read_model(content, "tokenizer.model")
    ids = range(processor.get_piece_size())
    assert [piece.text for piece in model.pieces] == processor.id_to_piece(list(ids))
    assert [piece.score for piece in model.pieces] == [processor.get_score(token) for token in ids]
    assert [piece.type == 2 for piece in model.pieces] == [processor.is_unknown(token) for token in ids]
    assert [piece.type == 3 for piece in model.pieces] == [processor.is_control(token) for token in ids]
    assert [piece.type == 6 for piece in model.pieces] == [processor.is_byte(token) for token in ids]
    assert model.pieces[processor.piece_to_id("<sep>")].type == 4
    assert (model.unk_id, model.bos_id, model.eos_id, model.pad_id) == (0, 1, 2, 3)
    assert (model.algorithm, model.byte_fallback, model.whitespace_as_suffix) == (BPE, True, False)
    assert (model.normalizer, model.add_dummy_prefix, model.escape_whitespaces) == ("nmt_nfkc", False, True)
    assert model.remove_extra_whitespaces
    assert len(model.charsmap) > 1000


def test_the_other_values_are_read_too() -> None:
    model = read_model(
        trained(
            model_type="unigram",
            normalization_rule_name="identity",
            treat_whitespace_as_suffix=True,
            vocab_size=1000,
        ),
        "tokenizer.model",
    )
    assert (model.algorithm, model.normalizer, model.charsmap) == (UNIGRAM, "identity", b"")
    assert (model.whitespace_as_suffix, model.add_dummy_prefix, model.pad_id) == (True, True, -1)


def test_what_is_written_reads_back_and_tokenizes_alike(content: bytes) -> None:
    model = read_model(content, "tokenizer.model")
    written = write_model(model)
    assert read_model(written, "tokenizer.model") == model
    before = sentencepiece.SentencePieceProcessor(model_proto=content)
    after = sentencepiece.SentencePieceProcessor(model_proto=written)
    assert before.encode(list(SAMPLES)) == after.encode(list(SAMPLES))


def test_an_appended_message_turns_the_dummy_prefix_off() -> None:
    content = trained(model_type="bpe")
    assert read_model(content, "tokenizer.model").add_dummy_prefix
    changed = content + NO_DUMMY_PREFIX
    assert not read_model(changed, "tokenizer.model").add_dummy_prefix
    with_prefix = sentencepiece.SentencePieceProcessor(model_proto=content)
    without = sentencepiece.SentencePieceProcessor(model_proto=changed)
    assert with_prefix.encode("text", out_type=str)[0].startswith("▁")
    assert not without.encode("text", out_type=str)[0].startswith("▁")


def test_negative_numbers_and_long_texts_survive() -> None:
    model = SentencePieceModel((Piece("x" * 300, -1e10, 1),), pad_id=-1, unk_id=2**31 - 1)
    assert read_model(write_model(model), "tokenizer.model").pieces[0].text == "x" * 300
    assert read_model(write_model(model), "tokenizer.model").pad_id == -1
    assert read_model(write_model(model), "tokenizer.model").unk_id == 2**31 - 1


def test_a_cut_or_damaged_file_is_refused_or_still_whole_pieces(content: bytes) -> None:
    """Nothing but a TokenizerError ever comes out of bad bytes; a cut between fields leaves fewer of them."""
    whole = read_model(content, "tokenizer.model")
    rng = random.Random(0)
    refusals = []
    for _ in range(300):
        damaged = bytearray(content[: rng.randrange(1, len(content))])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read = read_model(bytes(damaged), "here/tokenizer.model")
        except TokenizerError as error:
            refusals.append(error.message)
        else:
            assert len(read.pieces) <= len(whole.pieces) + 3
    assert len(refusals) > 200
    assert all("here/tokenizer.model" in message for message in refusals)


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model at all", b"\x0a\x05ab"])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"here/tokenizer\.model"):
        read_model(content, "here/tokenizer.model")
