"""Vocab: a tokenizer as a GGUF file stores it, and its metadata keys in both directions.

There are two models: "gpt2" (byte-level BPE with merges) and "llama" (sentencepiece BPE, whose merges follow
from scores). Other models (WordPiece, unigram, RWKV ...) are not supported. Fill-in-the-middle tokens are
not roles here: llama.cpp knows them by their text, or by the keys that are written.

Source: llama.cpp src/llama-vocab.cpp (`load`) for keys and their defaults.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from types import MappingProxyType
from typing import Final

from pigguf.errors import TokenizerError
from pigguf.gguf_io.metadata import (
    Metadata,
    TypedValue,
    array,
    boolean,
    get_array,
    get_value,
    require_value,
    string,
    u32,
)
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.pre_tokenizers import adds_bos_by_default


class TokenType(IntEnum):
    """The type of a token, with the numbers of llama.h's llama_token_type and of sentencepiece."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


SPECIAL_TOKEN_TYPES: Final = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED})
"""Types of tokens that llama.cpp matches in the text before the pre-tokenizer splits it."""


EOG_TOKENS: Final = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
"""Tokens that llama.cpp takes for end-of-generation by their text (src/llama-vocab.cpp, special_eog_ids)."""

FIM_EOG_TOKENS: Final = frozenset(
    {
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    }
)
"""Fill-in-the-middle tokens (padding, repository, file separator) that llama.cpp takes for end-of-generation
too; if a vocabulary has several of a kind, one of them."""

_FIM_KEYS: Final = {
    "[PREFIX]": "tokenizer.ggml.fim_pre_token_id",
    "[SUFFIX]": "tokenizer.ggml.fim_suf_token_id",
    "[MIDDLE]": "tokenizer.ggml.fim_mid_token_id",
}
"""Codestral's fill-in-the-middle tokens, which llama.cpp does not know by their text."""

NO_RSTRIP_TOKENS: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Tokens after which llama.cpp keeps white space even with rstrip_special."""

RSTRIP_EOS_TOKEN: Final = "</s>"
"""The token after which llama.cpp always strips with rstrip_special; it and those above must exist."""

_ID_KEYS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
_LLAMA_IDS: Final = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's defaults for model "llama"


@dataclass(frozen=True)
class Vocab:
    """A vocabulary with its special tokens, rules and chat template.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (sentencepiece BPE).
        pre: llama.cpp's name of the pre-tokenizer ("default" for "llama").
        tokens: texts by id; byte-level tokens in GPT-2's byte alphabet, sentencepiece's with U+2581.
        types: type of each token.
        scores: by id, the highest is merged first ("llama"); empty for "gpt2".
        merges: "left right", in order ("gpt2"); empty for "llama".
        special_ids: role -> id for the roles that are filled: bos, eos, eot, eom, unk, pad.
        add_bos, add_eos: whether BOS is added before and EOS after a text.
        add_space_prefix: whether a space is added before a text ("llama").
        rstrip_special: whether white space after special tokens is removed, which llama.cpp decides by the
            model's name alone (see rstrip_compatible_name).
        chat_template: jinja source, or None.
        known_differences: how the source's tokenizer and llama.cpp are known to differ.
        notes: what a user should know of how the tokenizer was read, one sentence each.

    Raises:
        TokenizerError: lengths differ, two tokens have one text, an id is out of range, or there is no EOS.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    types: tuple[TokenType, ...]
    scores: tuple[float, ...]
    merges: tuple[str, ...]
    special_ids: Mapping[str, int]
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    rstrip_special: bool = False
    chat_template: str | None = None
    known_differences: tuple[TokenizerDifference, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", MappingProxyType(dict(self.special_ids)))
        _check_lengths(self)
        _check_texts(self.tokens)
        _check_special_ids(self)

    @property
    def eog_ids(self) -> tuple[int, ...]:
        """Tokens with end-of-generation roles (eos, eot, eom), EOS first."""
        named = (self.special_ids[role] for role in ("eos", "eot", "eom") if role in self.special_ids)
        return tuple(dict.fromkeys(named))

    def rstrip_compatible_name(self, name: str) -> str:
        """Return a general.name with which llama.cpp strips white space after special tokens as it should.

        It strips for every model whose name contains "phi-3" or "phi3" (src/llama-vocab.cpp).
        """
        if self.rstrip_special:
            return name if is_rstrip_model_name(name) else f"{name} (Phi-3)"
        return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)

    def special_token(self, role: str) -> str | None:
        """Return the text of the token in a role, or None if the role is not filled."""
        return self.tokens[self.special_ids[role]] if role in self.special_ids else None

    def metadata(self) -> dict[str, TypedValue]:
        """Return every tokenizer.* key, also those with a default in llama.cpp, which depends on `pre`."""
        keys = {
            "tokenizer.ggml.model": string(self.model),
            "tokenizer.ggml.pre": string(self.pre),
            "tokenizer.ggml.tokens": array("str", self.tokens),
            "tokenizer.ggml.token_type": array("i32", tuple(int(kind) for kind in self.types)),
        }
        if self.scores:
            keys["tokenizer.ggml.scores"] = array("f32", self.scores)
        if self.model == "gpt2":
            keys["tokenizer.ggml.merges"] = array("str", self.merges)
        for role, key in _ID_KEYS.items():
            if role in self.special_ids:
                keys[key] = u32(self.special_ids[role])
        for token, text in enumerate(self.tokens):
            if text in _FIM_KEYS and self.types[token] in SPECIAL_TOKEN_TYPES:
                keys[_FIM_KEYS[text]] = u32(token)
        keys["tokenizer.ggml.add_bos_token"] = boolean(self.add_bos)
        keys["tokenizer.ggml.add_eos_token"] = boolean(self.add_eos)
        keys["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        if self.chat_template is not None:
            keys["tokenizer.chat_template"] = string(self.chat_template)
        return keys


def vocab_from_metadata(metadata: Metadata) -> Vocab:
    """Return the vocabulary of a GGUF file, with llama.cpp's defaults for missing keys.

    Raises:
        TokenizerError: the model is not supported, or the keys contradict each other.
        GGUFError: a key is missing or of the wrong type.
    """
    model = require_value(metadata, "tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"tokenizer.ggml.model is {model!r}; supported are 'gpt2' and 'llama'",
            "the file itself may be fine: llama.cpp supports more tokenizer models than pigguf",
        )
    pre = get_value(metadata, "tokenizer.ggml.pre", str, "default") or "default"
    tokens = get_array(metadata, "tokenizer.ggml.tokens") or ()
    types = get_array(metadata, "tokenizer.ggml.token_type") or (TokenType.NORMAL,) * len(tokens)
    is_llama = model == "llama"
    return Vocab(
        model=model,
        pre=pre,
        tokens=tokens,
        types=tuple(_parse_token_type(kind) for kind in types),
        scores=get_array(metadata, "tokenizer.ggml.scores") or (0.0,) * len(tokens) if is_llama else (),
        merges=() if is_llama else get_array(metadata, "tokenizer.ggml.merges") or (),
        special_ids=_special_ids(metadata, _LLAMA_IDS if is_llama else {}),
        add_bos=_read_flag(metadata, "add_bos_token", is_llama or adds_bos_by_default(pre)),
        add_eos=_read_flag(metadata, "add_eos_token", False),
        add_space_prefix=_read_flag(metadata, "add_space_prefix", is_llama),
        rstrip_special=is_rstrip_model_name(get_value(metadata, "general.name", str) or ""),
        chat_template=get_value(metadata, "tokenizer.chat_template", str),
    )


def is_rstrip_model_name(name: str) -> bool:
    """Return whether llama.cpp strips white space after special tokens of a model with this name."""
    return re.search("phi-?3", name, re.IGNORECASE) is not None


def _special_ids(metadata: Metadata, defaults: Mapping[str, int]) -> dict[str, int]:
    ids = {role: get_value(metadata, key, int, defaults.get(role)) for role, key in _ID_KEYS.items()}
    return {role: token for role, token in ids.items() if token is not None}


def _read_flag(metadata: Metadata, name: str, default: bool) -> bool:
    value = get_value(metadata, f"tokenizer.ggml.{name}", bool)
    return default if value is None else value


def _parse_token_type(value: int) -> TokenType:
    try:
        return TokenType(value)
    except ValueError:
        raise TokenizerError(f"tokenizer.ggml.token_type has {value}, which is not a token type") from None


def _check_lengths(vocab: Vocab) -> None:
    count = len(vocab.tokens)
    if count == 0:
        raise TokenizerError("the vocabulary has no tokens")
    for name, values in (("types", vocab.types), ("scores", vocab.scores)):
        if len(values) != count and (name == "types" or vocab.model == "llama"):
            raise TokenizerError(f"the vocabulary has {count} tokens and {len(values)} {name}")


def _check_texts(tokens: tuple[str, ...]) -> None:
    """Raise for empty and duplicate texts: llama.cpp aborts the process for duplicates."""
    if "" in tokens:
        raise TokenizerError(f"token {tokens.index('')} of the vocabulary has no text")
    if len(set(tokens)) != len(tokens):
        text, times = Counter(tokens).most_common(1)[0]
        first = tokens.index(text)
        second = tokens.index(text, first + 1)
        raise TokenizerError(f"the vocabulary has {text!r} {times} times, as tokens {first} and {second}")


def _check_special_ids(vocab: Vocab) -> None:
    for role, token in vocab.special_ids.items():
        if not 0 <= token < len(vocab.tokens):
            raise TokenizerError(
                f"the {role} token has the id {token}; the vocabulary ends at {len(vocab.tokens) - 1}"
            )
    if "eos" not in vocab.special_ids:  # llama.cpp's default would be token 11 ("gpt2") or 2 ("llama")
        raise TokenizerError("no EOS token is named", "name one in tokenizer_config.json: eos_token")
    if vocab.add_bos and "bos" not in vocab.special_ids:
        raise TokenizerError(
            "add_bos is true but no BOS token is named",
            "name one in tokenizer_config.json: bos_token",
        )
