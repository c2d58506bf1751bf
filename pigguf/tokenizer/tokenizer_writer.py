"""write_tokenizer: Vocab -> tokenizer files that transformers loads and that make llama.cpp's tokens.

tokenizer.json always; tokenizer.model beside it for a sentencepiece vocabulary, because it alone
holds the scores. The class named in tokenizer_config.json is the one that takes tokenizer.json as
it stands: LlamaTokenizer would put rules of its own in its place. (For a model of type qwen2
transformers 5 takes Qwen2Tokenizer nevertheless, which brings text to the normal form NFC.)

Left out: generation_config.json, and normalization that llama.cpp does not do either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pigguf.common.file_io import write_json
from pigguf.errors import TokenizerError
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_by_name
from pigguf.tokenizer.sentencepiece_bpe import PREPEND_SPACE, REPLACE_SPACES, SPACE, token_splits
from pigguf.tokenizer.sentencepiece_model import (
    BPE,
    SentencePiece,
    SentencePieceModel,
    serialize_sentencepiece_model,
)
from pigguf.tokenizer.tokenizer_files import TOKENIZER_CONFIG, TOKENIZER_JSON, TOKENIZER_MODEL
from pigguf.tokenizer.vocab import NO_RSTRIP_TOKENS, SPECIAL_TOKEN_TYPES, TokenType, Vocab

_BYTE_LEVEL: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": True,
}


def write_tokenizer(vocab: Vocab, directory: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and, for sentencepiece, tokenizer.model.

    The unused "[PADn]" tokens at the end are not written: config.json's vocab_size stands for them.

    Raises:
        TokenizerError: the vocabulary's rules have no exact form in these files.
    """
    content = _sentencepiece_json(vocab) if vocab.model == "llama" else _byte_level_json(vocab)
    write_json(directory / TOKENIZER_JSON, content)
    write_json(directory / TOKENIZER_CONFIG, _config(vocab))
    if vocab.model == "llama":
        (directory / TOKENIZER_MODEL).write_bytes(serialize_sentencepiece_model(_sentencepiece_model(vocab)))


def _byte_level_json(vocab: Vocab) -> dict[str, Any]:
    row = pre_tokenizer_by_name(vocab.pre)
    return {
        **_frame(vocab),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [dict(rule) for rule in row.rules]},
        "decoder": _BYTE_LEVEL,
        "model": {
            **_model(vocab),
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.ignore_merges,
            "merges": [merge.split(" ") for merge in vocab.merges],
        },
    }


def _sentencepiece_json(vocab: Vocab) -> dict[str, Any]:
    """The form that Llama 2's own tokenizer.json has."""
    normalizers = [PREPEND_SPACE, REPLACE_SPACES] if vocab.add_space_prefix else [REPLACE_SPACES]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if vocab.add_space_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **_frame(vocab),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_model(vocab),
            "unk_token": _unknown(vocab),
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "merges": _merges_from_scores(vocab),
        },
    }


def _frame(vocab: Vocab) -> dict[str, Any]:
    """What both styles have in common."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {
                "id": token,
                "content": vocab.tokens[token],
                "single_word": False,
                "lstrip": False,
                "rstrip": vocab.rstrip_special and vocab.tokens[token] not in NO_RSTRIP_TOKENS,
                "normalized": False,
                "special": kind is not TokenType.USER_DEFINED,
            }
            for token, kind in enumerate(vocab.types)
            if kind in SPECIAL_TOKEN_TYPES
        ],
        "post_processor": _template(vocab) if vocab.add_bos or vocab.add_eos else _BYTE_LEVEL,
    }


def _model(vocab: Vocab) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "vocab": {vocab.tokens[token]: token for token in range(written_tokens(vocab))},
    }


def written_tokens(vocab: Vocab) -> int:
    """How many tokens there are without the padding at the end."""
    count = len(vocab.tokens)
    while vocab.types[count - 1] is TokenType.UNUSED and vocab.tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    return count


def _template(vocab: Vocab) -> dict[str, Any]:
    """A post_processor that puts BOS before and EOS after a text."""
    framing = {
        role: vocab.special_token(role) for role, wanted in (("bos", vocab.add_bos), ("eos", vocab.add_eos)) if wanted
    }

    def special(role: str, sequence: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": framing[role], "type_id": sequence}}] if role in framing else []

    def framed(name: str, sequence: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": sequence}}
        return [*special("bos", sequence), text, *special("eos", sequence)]

    return {
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": [*framed("A", 0), *framed("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [vocab.special_ids[role]], "tokens": [text]}
            for role, text in framing.items()
        },
    }


def _config(vocab: Vocab) -> dict[str, Any]:
    config: dict[str, Any] = {
        f"{role}_token": text
        for role in ("bos", "eos", "unk", "pad")
        if (text := vocab.special_token(role)) is not None
    }
    config |= {
        "add_bos_token": vocab.add_bos,
        "add_eos_token": vocab.add_eos,
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if vocab.model == "llama":
        config |= {"add_prefix_space": vocab.add_space_prefix, "legacy": True}
    if vocab.chat_template is not None:
        config["chat_template"] = vocab.chat_template
    return config


def _merges_from_scores(vocab: Vocab) -> list[list[str]]:
    """Every way to halve a token, tokens of higher score first, shorter left halves first.

    The order is transformers' (tokenization_utils_base.py, generate_merges). Tokens that are matched
    in the text before merging take no part.
    """
    ids = {
        text: token
        for token, text in enumerate(vocab.tokens[: written_tokens(vocab)])
        if vocab.types[token] not in SPECIAL_TOKEN_TYPES
    }
    by_score = sorted(ids.items(), key=lambda item: (-vocab.scores[item[1]], item[1]))
    return [[left, right] for text, _ in by_score for left, right in token_splits(text, ids)]


def _sentencepiece_model(vocab: Vocab) -> SentencePieceModel:
    ids = {role: vocab.special_ids.get(role, -1) for role in ("unk", "bos", "eos", "pad")}
    return SentencePieceModel(
        pieces=tuple(
            SentencePiece(_piece_text(vocab, token), vocab.scores[token], int(vocab.types[token]))
            for token in range(written_tokens(vocab))
        ),
        algorithm=BPE,
        byte_fallback=True,
        unk_id=vocab.tokens.index(_unknown(vocab)),
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        normalizer="identity",
        add_dummy_prefix=vocab.add_space_prefix,
        remove_extra_whitespaces=False,
    )


def _piece_text(vocab: Vocab, token: int) -> str:
    """sentencepiece looks for user-defined pieces after spaces are marked, llama.cpp before."""
    text = vocab.tokens[token]
    return text.replace(" ", SPACE) if vocab.types[token] is TokenType.USER_DEFINED else text


def _unknown(vocab: Vocab) -> str:
    """The text of the token of type UNKNOWN, which sentencepiece cannot do without.

    Raises:
        TokenizerError: there is none, or more than one.
    """
    unknown = [token for token, kind in enumerate(vocab.types) if kind is TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerError(
            f"{len(unknown)} tokens are of the type unknown; a sentencepiece vocabulary has one"
        )
    return vocab.tokens[unknown[0]]
