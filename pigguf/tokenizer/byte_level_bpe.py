"""Byte-level BPE from a tokenizer.json (GPT-2, Llama 3, Qwen2, SmolLM ...): llama.cpp's model "gpt2".

Left out: added tokens and roles (special_tokens.py), the pre-tokenizer's rules (pre_tokenizers.py).
"""

from __future__ import annotations

import json

from pigguf.tokenizer.byte_alphabet import BYTE_ALPHABET
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.pre_tokenizers import recognise
from pigguf.tokenizer.tokenizer_json import TokenizerJson
from pigguf.tokenizer.vocab_entries import Pieces


def read_byte_level(tokenizer: TokenizerJson) -> Pieces:
    """The tokens and merges of a byte-level BPE.

    Raises:
        TokenizerError: a rule of the file is not known, or llama.cpp has nothing like it.
    """
    tokenizer.expect("dropout", None, 0.0)
    tokenizer.expect("continuing_subword_prefix", None, "")
    tokenizer.expect("end_of_word_suffix", None, "")
    if not set(BYTE_ALPHABET) <= tokenizer.ids.keys():
        # SmolLM2 lacks some control characters' bytes. llama.cpp drops such, as tokenizers does with these
        # off (which then merges what stood on either side, where both are one word).
        tokenizer.expect("unk_token", None)
        tokenizer.expect("byte_fallback", None, False)
    if (tokenizer.content.get("decoder") or {}).get("type") != "ByteLevel":
        raise tokenizer.refuse("decoder", "does not turn byte-level tokens back into text")
    row = recognise(
        tokenizer.steps("pre_tokenizer"),
        bool(tokenizer.model.get("ignore_merges")),
        str(tokenizer.path),
    )
    return Pieces(
        model="gpt2",
        pre=row.name,
        file=str(tokenizer.path),
        ids=tokenizer.ids,
        merges=tuple(_joined(tokenizer, left, right) for left, right in tokenizer.merges),
        around=tokenizer.around,
        limits=(*_normalizer_limits(tokenizer), *row.limits),
    )


def _joined(tokenizer: TokenizerJson, left: str, right: str) -> str:
    if " " in left or " " in right:  # GGUF keeps a merge as one text, parted by its space
        raise tokenizer.refuse("model", f"holds the merge {json.dumps([left, right])} with a space in it")
    return f"{left} {right}"


def _normalizer_limits(tokenizer: TokenizerJson) -> tuple[Limit, ...]:
    normalizers = tokenizer.steps("normalizer")
    if not normalizers:
        return ()
    if normalizers == [{"type": "NFC"}]:
        return (Limit.NFC,)
    raise tokenizer.refuse("normalizer", "changes text before it is split, and llama.cpp does not")
