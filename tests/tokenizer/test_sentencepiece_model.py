"""tokenizer.model is parsed and serialized as sentencepiece does it."""

from __future__ import annotations

import io
import random

import pytest
import sentencepiece

from pigguf.errors import TokenizerError
from pigguf.tokenizer import ROUNDTRIP_TEXTS
from pigguf.tokenizer.sentencepiece_model import (
    BPE,
    NO_DUMMY_PREFIX,
    UNIGRAM,
    SentencePiece,
    SentencePieceModel,
    parse_sentencepiece_model,
    serialize_sentencepiece_model,
)


def trained(**options: object) -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line for text in ROUNDTRIP_TEXTS * 3 for line in text.split("\n") if line),
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


def test_every_field_equals_sentencepieces(content: bytes) -> None:
    processor = sentencepiece.SentencePieceProcessor(model_proto=content)
    model = parse_sentencepiece_model(content, "tokenizer.model")
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


def test_values_other_than_the_defaults_are_read() -> None:
    model = parse_sentencepiece_model(
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


def test_a_written_model_reads_back_and_tokenizes_alike(content: bytes) -> None:
    model = parse_sentencepiece_model(content, "tokenizer.model")
    written = serialize_sentencepiece_model(model)
    assert parse_sentencepiece_model(written, "tokenizer.model") == model
    before = sentencepiece.SentencePieceProcessor(model_proto=content)
    after = sentencepiece.SentencePieceProcessor(model_proto=written)
    assert before.encode(list(ROUNDTRIP_TEXTS)) == after.encode(list(ROUNDTRIP_TEXTS))


def test_an_appended_message_turns_the_dummy_prefix_off() -> None:
    content = trained(model_type="bpe")
    assert parse_sentencepiece_model(content, "tokenizer.model").add_dummy_prefix
    changed = content + NO_DUMMY_PREFIX
    assert not parse_sentencepiece_model(changed, "tokenizer.model").add_dummy_prefix
    with_prefix = sentencepiece.SentencePieceProcessor(model_proto=content)
    without = sentencepiece.SentencePieceProcessor(model_proto=changed)
    assert with_prefix.encode("text", out_type=str)[0].startswith("▁")
    assert not without.encode("text", out_type=str)[0].startswith("▁")


def test_negative_numbers_and_long_texts_round_trip() -> None:
    model = SentencePieceModel((SentencePiece("x" * 300, -1e10, 1),), pad_id=-1, unk_id=2**31 - 1)
    assert (
        parse_sentencepiece_model(serialize_sentencepiece_model(model), "tokenizer.model").pieces[0].text
        == "x" * 300
    )
    assert parse_sentencepiece_model(serialize_sentencepiece_model(model), "tokenizer.model").pad_id == -1
    assert (
        parse_sentencepiece_model(serialize_sentencepiece_model(model), "tokenizer.model").unk_id == 2**31 - 1
    )


def test_a_truncated_or_damaged_file_is_refused_or_has_fewer_pieces(content: bytes) -> None:
    """Raise only TokenizerError for damaged bytes; a cut between fields leaves fewer pieces."""
    whole = parse_sentencepiece_model(content, "tokenizer.model")
    rng = random.Random(0)
    refusals = []
    for _ in range(300):
        damaged = bytearray(content[: rng.randrange(1, len(content))])
        for _ in range(rng.randrange(3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            read = parse_sentencepiece_model(bytes(damaged), "here/tokenizer.model")
        except TokenizerError as error:
            refusals.append(error.message)
        else:
            assert len(read.pieces) <= len(whole.pieces) + 3
    assert len(refusals) > 200
    assert all("here/tokenizer.model" in message for message in refusals)


@pytest.mark.parametrize("content", [b"", b"{}", b"not a model at all", b"\x0a\x05ab"])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(TokenizerError, match=r"here/tokenizer\.model"):
        parse_sentencepiece_model(content, "here/tokenizer.model")
