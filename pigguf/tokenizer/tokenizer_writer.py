"""Write a Vocab as tokenizer files that transformers loads and that give llama.cpp's tokens.

tokenizer.json is always written; tokenizer.model too for a sentencepiece vocabulary, because only it has the
scores. tokenizer_config.json names the class that uses tokenizer.json as it is: LlamaTokenizer would
replace its rules. (For model_type qwen2 transformers 5 uses Qwen2Tokenizer nevertheless, which
normalizes text to NFC.)

Not here: generation_config.json. Not written: normalization, which llama.cpp does not do.
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

    The unused "[PADn]" tokens at the end are not written; config.json's vocab_size counts them.

    Raises:
        TokenizerError: these files cannot express the vocabulary's rules exactly.
    """
    content = _sentencepiece_json(vocab) if vocab.model == "llama" else _byte_level_json(vocab)
    write_json(directory / TOKENIZER_JSON, content)
    write_json(directory / TOKENIZER_CONFIG, _config(vocab))
    if vocab.model == "llama":
        (directory / TOKENIZER_MODEL).write_bytes(serialize_sentencepiece_model(_sentencepiece_model(vocab)))


def _byte_level_json(vocab: Vocab) -> dict[str, Any]:
    pre_tokenizer = pre_tokenizer_by_name(vocab.pre)
    return {
        **_common_keys(vocab),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [dict(rule) for rule in pre_tokenizer.rules]},
        "decoder": _BYTE_LEVEL,
        "model": {
            **_model_keys(vocab),
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            "merges": [merge.split(" ") for merge in vocab.merges],
        },
    }


def _sentencepiece_json(vocab: Vocab) -> dict[str, Any]:
    """Return a tokenizer.json like Llama 2's own."""
    normalizers = [PREPEND_SPACE, REPLACE_SPACES] if vocab.add_space_prefix else [REPLACE_SPACES]
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if vocab.add_space_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {
        **_common_keys(vocab),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_model_keys(vocab),
            "unk_token": _unk_token(vocab),
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "merges": _merges_from_scores(vocab),
        },
    }


def _common_keys(vocab: Vocab) -> dict[str, Any]:
    """Return the keys that both kinds of BPE have in common."""
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
        "post_processor": _template_processing(vocab) if vocab.add_bos or vocab.add_eos else _BYTE_LEVEL,
    }


def _model_keys(vocab: Vocab) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "vocab": {vocab.tokens[token]: token for token in range(count_written_tokens(vocab))},
    }


def count_written_tokens(vocab: Vocab) -> int:
    """Return the number of tokens without the padding at the end."""
    count = len(vocab.tokens)
    while vocab.types[count - 1] is TokenType.UNUSED and vocab.tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    return count


def _template_processing(vocab: Vocab) -> dict[str, Any]:
    """Return a post_processor that adds BOS before and EOS after a text."""
    texts = {
        role: vocab.special_token(role)
        for role, enabled in (("bos", vocab.add_bos), ("eos", vocab.add_eos))
        if enabled
    }

    def special(role: str, type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": texts[role], "type_id": type_id}}] if role in texts else []

    def wrapped(name: str, type_id: int) -> list[dict[str, Any]]:
        text = {"Sequence": {"id": name, "type_id": type_id}}
        return [*special("bos", type_id), text, *special("eos", type_id)]

    return {
        "type": "TemplateProcessing",
        "single": wrapped("A", 0),
        "pair": [*wrapped("A", 0), *wrapped("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [vocab.special_ids[role]], "tokens": [text]}
            for role, text in texts.items()
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
    """Return every split of a token into two, tokens of higher scores first, shorter left parts first.

    The order is transformers' (tokenization_utils_base.py, generate_merges). Special tokens are
    matched before merging, so they have no merges.
    """
    ids = {
        text: token
        for token, text in enumerate(vocab.tokens[: count_written_tokens(vocab)])
        if vocab.types[token] not in SPECIAL_TOKEN_TYPES
    }
    by_score = sorted(ids.items(), key=lambda item: (-vocab.scores[item[1]], item[1]))
    return [[left, right] for text, _ in by_score for left, right in token_splits(text, ids)]


def _sentencepiece_model(vocab: Vocab) -> SentencePieceModel:
    ids = {role: vocab.special_ids.get(role, -1) for role in ("unk", "bos", "eos", "pad")}
    return SentencePieceModel(
        pieces=tuple(
            SentencePiece(_escaped_text(vocab, token), vocab.scores[token], int(vocab.types[token]))
            for token in range(count_written_tokens(vocab))
        ),
        algorithm=BPE,
        byte_fallback=True,
        unk_id=vocab.tokens.index(_unk_token(vocab)),
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        normalizer="identity",
        add_dummy_prefix=vocab.add_space_prefix,
        remove_extra_whitespaces=False,
    )


def _escaped_text(vocab: Vocab, token: int) -> str:
    """Return a token's text in sentencepiece, which matches user-defined pieces after it replaces spaces."""
    text = vocab.tokens[token]
    return text.replace(" ", SPACE) if vocab.types[token] is TokenType.USER_DEFINED else text


def _unk_token(vocab: Vocab) -> str:
    """Return the text of the token of type UNKNOWN, which sentencepiece needs.

    Raises:
        TokenizerError: there is not exactly one.
    """
    unknown = [token for token, kind in enumerate(vocab.types) if kind is TokenType.UNKNOWN]
    if len(unknown) != 1:
        raise TokenizerError(
            f"{len(unknown)} tokens have the type UNKNOWN; a sentencepiece vocabulary has exactly one"
        )
    return vocab.tokens[unknown[0]]
