"""Convert byte-level tokenizers in older file formats to the equivalent tokenizer.json.

Two formats. vocab.json with merges.txt (GPT-2, OPT, older Pythia and Qwen): the rules around the merges are
those of the tokenizer class, as transformers builds them (models/gpt2, gpt_neox, qwen2: tokenization_*.py).
tokenizer.model in tiktoken's format (Meta's own files of Llama 3): a line is the base64 of a token's bytes
and its rank; rules and special tokens are those of Meta's llama-models/models/llama3/tokenizer.py.

Not supported: tiktoken files of other models (qwen.tiktoken ...), whose rules are in code next to them.
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
from pigguf.tokenizer.byte_alphabet import bytes_to_byte_level
from pigguf.tokenizer.pre_tokenizers import pre_tokenizer_by_name

Json = Mapping[str, Any]

_NFC: Final = {"type": "NFC"}
_BYTE_LEVEL: Final = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}
_SAVE_AS_TOKENIZER_JSON: Final = (
    "save it as tokenizer.json with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
)


@dataclass(frozen=True)
class LegacyTokenizer:
    """A tokenizer in an older format, converted.

    Attributes:
        file: name of the file with the vocabulary.
        tokenizer_json: content of the equivalent tokenizer.json.
        special_tokens: the class's default bos_token and eos_token, where no file names them.
    """

    file: str
    tokenizer_json: Json
    special_tokens: Mapping[str, str]


@dataclass(frozen=True)
class _TokenizerClassRules:
    """The rules of a transformers tokenizer class that are not in its files.

    Attributes:
        pre: llama.cpp's name of the pre-tokenizer.
        normalizer: as in tokenizer.json.
        eos_token: the default BOS and EOS token.
    """

    pre: str
    normalizer: Json | None = None
    eos_token: str = "<|endoftext|>"


_GPT2: Final = _TokenizerClassRules("gpt-2")
_NEOX: Final = _TokenizerClassRules("gpt-2", _NFC)
_QWEN2: Final = _TokenizerClassRules("qwen2", _NFC)

_CLASS_RULES: Final = {
    "GPT2Tokenizer": _GPT2,
    "CodeGenTokenizer": _GPT2,
    "GPTNeoXTokenizer": _NEOX,
    "Qwen2Tokenizer": _QWEN2,
}
# model_type -> class, if tokenizer_config.json names none (transformers auto/tokenization_auto.py).
_CLASS_OF_MODEL_TYPE: Final = {
    **dict.fromkeys(("codegen", "gpt2", "gpt_neo", "gptj", "opt", "phi", "starcoder2"), "GPT2Tokenizer"),
    **dict.fromkeys(("gpt_neox", "mpt"), "GPTNeoXTokenizer"),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
}

LLAMA3_BASE_TOKENS: Final = 128000
_LLAMA3_SPECIAL: Final = {
    0: "<|begin_of_text|>",
    1: "<|end_of_text|>",
    6: "<|start_header_id|>",
    7: "<|end_header_id|>",
    9: "<|eot_id|>",
}
# Llama 3.1 named three of Llama 3's reserved tokens.
_LLAMA31_SPECIAL: Final = {
    **_LLAMA3_SPECIAL,
    4: "<|finetune_right_pad_id|>",
    8: "<|eom_id|>",
    10: "<|python_tag|>",
}


def convert_vocab_and_merges(
    vocab: Json, merges: str, settings: Json, model_type: str | None, path: Path
) -> LegacyTokenizer:
    """Convert vocab.json and merges.txt.

    Args:
        vocab, merges: the two files.
        settings: tokenizer_config.json and special_tokens_map.json, merged.
        model_type: model_type of config.json.
        path: path of vocab.json, for messages.

    Raises:
        TokenizerError: the class is unknown, or it puts a space before every text.
    """
    name = settings.get("tokenizer_class") or _CLASS_OF_MODEL_TYPE.get(model_type or "")
    rules = _CLASS_RULES.get(str(name).removesuffix("Fast"))
    if rules is None:
        raise TokenizerError(
            f"{path} with merges.txt does not say how text is split before it is merged, and tokenizer_class "
            f"= {name!r} (model_type = {model_type!r}) is not a known class",
            f"known classes: {', '.join(_CLASS_RULES)}; {_SAVE_AS_TOKENIZER_JSON}",
        )
    if settings.get("add_prefix_space"):
        raise TokenizerError(
            f"{path}: tokenizer_config.json has add_prefix_space = true, a space before every text, "
            "which llama.cpp does not add to byte-level text",
            "set it to false if the model was trained without it",
        )
    special = {key: _token_text(settings.get(key)) or rules.eos_token for key in ("bos_token", "eos_token")}
    special = {key: text for key, text in special.items() if text in vocab}
    bos, eos = ([text] if (text := special.get(key)) else [] for key in ("bos_token", "eos_token"))
    content = _tokenizer_json(
        rules.pre,
        vocab,
        [line for line in merges.splitlines() if line and not line.startswith("#version")],
        special={text: vocab[text] for text in special.values()},
        normalizer=rules.normalizer,
        before=bos if settings.get("add_bos_token") else [],
        after=eos if settings.get("add_eos_token") else [],
    )
    return LegacyTokenizer(path.name, content, special)


def is_tiktoken(content: bytes) -> bool:
    """Return whether a tokenizer.model is in tiktoken's format: its first line is base64 and a number."""
    words = content[:1024].split(b"\n", 1)[0].split()
    return len(words) == 2 and words[1].isdigit() and _decode_base64(words[0]) is not None


def convert_llama3_tiktoken(content: bytes, params: Json, path: Path) -> LegacyTokenizer:
    """Convert Llama 3's tokenizer.model.

    Args:
        content: the file.
        params: Meta's params.json next to it, or {}; in Llama 3.1 and later it has use_scaled_rope.
        path: path of the file, for messages.

    Raises:
        TokenizerError: a line is damaged, or the file is another model's.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        words = line.split()
        token = _decode_base64(words[0]) if len(words) == 2 and words[1].isdigit() else None
        if token is None:
            raise TokenizerError(
                f"{path}: line {number} is not a token and a rank: {line[:60]!r}", "download the file again"
            )
        ranks[token] = int(words[1])
    if sorted(ranks.values()) != list(range(LLAMA3_BASE_TOKENS)):
        raise TokenizerError(
            f"{path} has {len(ranks)} tokens in tiktoken's format, not Llama 3's {LLAMA3_BASE_TOKENS}",
            _SAVE_AS_TOKENIZER_JSON,
        )
    special = llama3_special_tokens(bool(params.get("use_scaled_rope")))
    bos_eos = {"bos_token": _LLAMA3_SPECIAL[0], "eos_token": _LLAMA3_SPECIAL[1]}
    return LegacyTokenizer(path.name, tokenizer_json_from_ranks(ranks, special), bos_eos)


def llama3_special_tokens(llama31: bool) -> list[str]:
    """Return the 256 special tokens in order, with the names of Llama 3.1 or of Llama 3."""
    known = _LLAMA31_SPECIAL if llama31 else _LLAMA3_SPECIAL
    reserved = itertools.count()
    return [
        known[index] if index in known else f"<|reserved_special_token_{next(reserved)}|>"
        for index in range(256)
    ]


def tokenizer_json_from_ranks(ranks: Mapping[bytes, int], special: list[str]) -> Json:
    """Return the tokenizer.json of a tiktoken vocabulary.

    Merges are ordered by the rank of the merged token, and every split of a token into two tokens is a merge,
    because tiktoken merges the pair whose bytes together have the lowest rank. A word that is a token is
    not split (ignore_merges).

    Args:
        ranks: bytes of a token -> rank, which is its id.
        special: special tokens, with the ids after the ranks; the first is put before a text.
    """
    texts = {token: bytes_to_byte_level(token) for token in ranks}
    merges = [
        f"{texts[token[:at]]} {texts[token[at:]]}"
        for token in sorted(ranks, key=ranks.__getitem__)
        for at in _split_positions(token, ranks)
    ]
    vocab = {texts[token]: rank for token, rank in ranks.items()}
    ids = {text: len(ranks) + index for index, text in enumerate(special)}
    return _tokenizer_json(
        "llama-bpe", vocab, merges, special=ids, normalizer=None, before=special[:1], after=[]
    )


def _split_positions(token: bytes, ranks: Mapping[bytes, int]) -> list[int]:
    """Return where a token splits into two tokens, low ranks first (transformers' TikTokenConverter)."""
    positions = [at for at in range(1, len(token)) if token[:at] in ranks and token[at:] in ranks]
    return sorted(positions, key=lambda at: (ranks[token[:at]], ranks[token[at:]]))


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
    pre_tokenizer = pre_tokenizer_by_name(pre)
    special_parts = {text: {"SpecialToken": {"id": text, "type_id": 0}} for text in (*before, *after)}
    text_part = {"Sequence": {"id": "A", "type_id": 0}}
    single = [*(special_parts[text] for text in before), text_part, *(special_parts[text] for text in after)]
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
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": list(pre_tokenizer.rules)},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                text: {"id": text, "ids": [special[text]], "tokens": [text]} for text in special_parts
            },
        },
        "decoder": _BYTE_LEVEL,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre_tokenizer.ignore_merges,
            "vocab": vocab,
            "merges": merges,
        },
    }


def _decode_base64(text: bytes) -> bytes | None:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error:
        return None


def _token_text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None
