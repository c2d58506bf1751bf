"""Byte-level tokenizers kept in older files -> the tokenizer.json that says the same.

Two forms. vocab.json with merges.txt (GPT-2, OPT, older Pythia and Qwen): the rules around the merges
are the tokenizer class's, as transformers builds them (models/gpt2, gpt_neox, qwen2: tokenization_*.py).
tokenizer.model in tiktoken's form (Meta's own files of Llama 3): base64 of a token's bytes and its rank
a line; rules and special tokens are those of Meta's llama-models/models/llama3/tokenizer.py.

Left out: other models' tiktoken files (qwen.tiktoken ...), whose rules stand in code beside them.
"""

from __future__ import annotations

import base64
import binascii
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.byte_alphabet import spelled
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_named

Json = Mapping[str, Any]

_NFC: Final = {"type": "NFC"}
_BYTE_LEVEL: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_AS_TOKENIZER_JSON: Final = (
    "save it as tokenizer.json with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
)


@dataclass(frozen=True)
class OlderForm:
    """What the files say together.

    Attributes:
        file: the name of the one that holds the vocabulary.
        content: the tokenizer.json that says the same.
        names: bos_token and eos_token as the class names them where no file does.
    """

    file: str
    content: Json
    names: Mapping[str, str]


@dataclass(frozen=True)
class _Class:
    """What a tokenizer class adds to its files: llama.cpp's name of its split, its normalizer, its end."""

    pre: str
    normalizer: Json | None = None
    end: str = "<|endoftext|>"


_GPT2: Final = _Class("gpt-2")
_NEOX: Final = _Class("gpt-2", _NFC)
_QWEN2: Final = _Class("qwen2", _NFC)

_CLASSES: Final = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _NEOX,
    "Qwen2Tokenizer": _QWEN2,
}
# Where tokenizer_config.json names no class, the model's type does (transformers auto/tokenization_auto.py).
_CLASS_OF_MODEL: Final = {
    **dict.fromkeys(("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
}

LLAMA3_RANKS: Final = 128000
_LLAMA3_SPECIAL: Final = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
# Llama 3.1 gave names to three that Llama 3 had in reserve.
_LLAMA31_SPECIAL: Final = {
    **_LLAMA3_SPECIAL,
    4: "<|finetune_right_pad_id|>",
    8: "<|eom_id|>",
    10: "<|python_tag|>",
}


def from_pairs(vocab: Json, merges: str, stated: Json, model_type: str | None, path: Path) -> OlderForm:
    """What a vocab.json and a merges.txt say.

    Args:
        vocab, merges: the two files.
        stated: tokenizer_config.json and special_tokens_map.json, the stronger over the weaker.
        model_type: config.json's.
        path: vocab.json's, named in errors.

    Raises:
        TokenizerError: the class is not known, or it puts a space before every text.
    """
    name = stated.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type or "")
    rules = _CLASSES.get(str(name).removesuffix("Fast"))
    if rules is None:
        raise TokenizerError(
            f"{path} with merges.txt does not say how text is split before it is merged, and tokenizer_class "
            f"= {name!r} (model_type = {model_type!r}) is none whose rules are known",
            f"known are {', '.join(_CLASSES)}; {_AS_TOKENIZER_JSON}",
        )
    if stated.get("add_prefix_space"):
        raise TokenizerError(
            f"{path}: tokenizer_config.json has add_prefix_space = true, a space before every text, "
            "which llama.cpp does not put before byte-level text",
            "set it to false where the model was trained without",
        )
    names = {key: _text(stated.get(key)) or rules.end for key in ("bos_token", "eos_token")}
    names = {key: text for key, text in names.items() if text in vocab}
    bos, eos = ([text] if (text := names.get(key)) else [] for key in ("bos_token", "eos_token"))
    content = _tokenizer_json(
        rules.pre,
        vocab,
        [line for line in merges.splitlines() if line and not line.startswith("#version")],
        special={text: vocab[text] for text in names.values()},
        normalizer=rules.normalizer,
        before=bos if stated.get("add_bos_token") else [],
        after=eos if stated.get("add_eos_token") else [],
    )
    return OlderForm(path.name, content, names)


def is_tiktoken(content: bytes) -> bool:
    """Whether a tokenizer.model is in tiktoken's form: its first line is base64 and a number."""
    words = content[:1024].split(b"\n", 1)[0].split()
    return len(words) == 2 and words[1].isdigit() and _bytes(words[0]) is not None


def from_tiktoken(content: bytes, params: Json, path: Path) -> OlderForm:
    """What Llama 3's tokenizer.model says.

    Args:
        content: the file.
        params: Meta's params.json beside it, or {}; Llama 3.1 and later have use_scaled_rope in it.
        path: the file's, named in errors.

    Raises:
        TokenizerError: a line is damaged, or the file is another model's.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        token = _bytes(words[0]) if len(words) == 2 and words[1].isdigit() else None
        if token is None:
            raise TokenizerError(
                f"{path}: line {number} is no token and rank: {line[:60]!r}", "download the file again"
            )
        ranks[token] = int(words[1])
    if sorted(ranks.values()) != list(range(LLAMA3_RANKS)):
        raise TokenizerError(
            f"{path} holds {len(ranks)} tokens in tiktoken's form; known is Llama 3's, with {LLAMA3_RANKS}",
            _AS_TOKENIZER_JSON,
        )
    special = llama3_special_tokens(bool(params.get("use_scaled_rope")))
    names = {"bos_token": _LLAMA3_SPECIAL[0], "eos_token": _LLAMA3_SPECIAL[1]}
    return OlderForm(path.name, from_ranks(ranks, special), names)


def llama3_special_tokens(named: bool) -> list[str]:
    """The 256 special tokens in order; `named` with Llama 3.1's names for what Llama 3 had in reserve."""
    known = _LLAMA31_SPECIAL if named else _LLAMA3_SPECIAL
    reserved = itertools.count()
    return [
        known[place] if place in known else f"<|reserved_special_token_{next(reserved)}|>"
        for place in range(256)
    ]


def from_ranks(ranks: Mapping[bytes, int], special: list[str]) -> Json:
    """The tokenizer.json of tokens by rank and special tokens after them, whose first goes before a text.

    A merge's place is the rank of what it makes; every way to halve a token is a merge (tiktoken merges
    the neighbours whose joined bytes have the lowest rank). A word that is a token is taken whole.
    """
    names = {token: spelled(token) for token in ranks}
    merges = [
        f"{names[token[:at]]} {names[token[at:]]}"
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in _halves(token, ranks)
    ]
    vocab = {names[token]: rank for token, rank in ranks.items()}
    ids = {text: len(ranks) + place for place, text in enumerate(special)}
    return _tokenizer_json(
        "llama-bpe", vocab, merges, special=ids, normalizer=None, before=special[:1], after=[]
    )


def _halves(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Where a token parts into two tokens, halves of low rank first (as transformers' TikTokenConverter)."""
    places = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
    return sorted(places, key=lambda at: (ranks[token[:at]], ranks[token[at:]]))


def _tokenizer_json(
    pre: str,
    vocab: Json,
    merges: list[str],
    *,
    special: Mapping[str, int],
    normalizer: Json | None,
    before: list[str],
    after: list[str],
) -> Json:
    row = pre_tokenizer_named(pre)
    parts = {text: {"SpecialToken": {"id": text, "type_id": 0}} for text in (*before, *after)}
    text_part = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*(parts[text] for text in before), text_part, *(parts[text] for text in after)]
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": token,
                "content": text,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for text, token in special.items()
        ],
        "normalizer": normalizer,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(row.rules)},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                text: {"id": text, "ids": [special[text]], "tokens": [text]} for text in parts
            },
        },
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": row.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _bytes(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
