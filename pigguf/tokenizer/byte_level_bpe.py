"""Read a byte-level BPE from a tokenizer.json (GPT-2, Llama 3, Qwen2, SmolLM ...): llama.cpp's model "gpt2".

Not here: added tokens and roles (added_tokens.py, special_tokens.py), the rules of pre-tokenizers
(pre_tokenizers.py).
"""

from __future__ import annotations

import json

from pigguf.tokenizer.base_vocab import BaseVocab
from pigguf.tokenizer.byte_alphabet import BYTE_ALPHABET
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.pre_tokenizers import match_pre_tokenizer
from pigguf.tokenizer.tokenizer_json import TokenizerJson


def read_byte_level_bpe(tokenizer: TokenizerJson) -> BaseVocab:
    """Return the base vocabulary of a byte-level BPE.

    Raises:
        TokenizerError: a rule of the file is unknown, or llama.cpp does not have it.
    """
    tokenizer.require_option("dropout", None, 0.0)
    tokenizer.require_option("continuing_subword_prefix", None, "")
    tokenizer.require_option("end_of_word_suffix", None, "")
    if not set(BYTE_ALPHABET) <= tokenizer.ids.keys():
        # SmolLM2 lacks the bytes of some control characters. llama.cpp drops such bytes, and so does
        # tokenizers with these options off (it then merges across them, if both sides are one word).
        tokenizer.require_option("unk_token", None)
        tokenizer.require_option("byte_fallback", None, False)
    if (tokenizer.content.get("decoder") or {}).get("type") != "ByteLevel":
        raise tokenizer.error("decoder", "does not decode byte-level tokens")
    pre_tokenizer = match_pre_tokenizer(
        tokenizer.steps("pre_tokenizer"),
        bool(tokenizer.model.get("ignore_merges")),
        str(tokenizer.path),
    )
    return BaseVocab(
        model="gpt2",
        pre=pre_tokenizer.name,
        file=str(tokenizer.path),
        ids=tokenizer.ids,
        merges=tuple(_join_merge(tokenizer, left, right) for left, right in tokenizer.merges),
        template_tokens=tokenizer.template_tokens,
        known_differences=(*_normalizer_differences(tokenizer), *pre_tokenizer.known_differences),
    )


def _join_merge(tokenizer: TokenizerJson, left: str, right: str) -> str:
    if " " in left or " " in right:  # in GGUF a merge is one string, split at its space
        raise tokenizer.error("model", f"has the merge {json.dumps([left, right])} with a space in it")
    return f"{left} {right}"


def _normalizer_differences(tokenizer: TokenizerJson) -> tuple[TokenizerDifference, ...]:
    normalizers = tokenizer.steps("normalizer")
    if not normalizers:
        return ()
    if normalizers == [{"type": "NFC"}]:
        return (TokenizerDifference.NFC,)
    raise tokenizer.error("normalizer", "changes text before it is split, and llama.cpp does not")
