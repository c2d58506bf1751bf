"""Vocab: a tokenizer as a GGUF file holds it, and the metadata keys both ways.

Two kinds of vocabulary: "gpt2" (byte-level BPE with merges) and "llama" (sentencepiece BPE, whose
merges follow from scores). Keys and their defaults: llama.cpp src/llama-vocab.cpp, `load`.
Left out: other kinds (wordpiece, unigram, rwkv ...). Fill-in-the-middle tokens play no role here: they
are known by their text, to llama.cpp or to the keys that are written.
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
    Typed,
    array,
    boolean,
    elements,
    get,
    need,
    string,
    u32,
)
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.pre_tokenizers import adds_bos_by_default


class TokenType(IntEnum):
    """What a token is; the numbers are llama.h's llama_token_type and sentencepiece's Type alike."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


MATCHED_IN_TEXT: Final = frozenset({TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED})
"""Types whose text llama.cpp finds in the input before it splits anything."""


ENDS_BY_TEXT: Final = frozenset(
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
"""Tokens that end an answer because of their text alone (llama.cpp src/llama-vocab.cpp, special_eog_ids)."""

ENDS_AS_FILLER: Final = frozenset(
    {
        *("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        *("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>"),
    }
)
"""Tokens that llama.cpp takes for fill-in-the-middle's padding, repository and file marks, and ends at too;
where several stand in a vocabulary, one of each kind."""

_FILLER_KEYS: Final = {
    "[PREFIX]": "tokenizer.ggml.fim_pre_token_id",
    "[SUFFIX]": "tokenizer.ggml.fim_suf_token_id",
    "[MIDDLE]": "tokenizer.ggml.fim_mid_token_id",
}
"""Codestral's fill-in-the-middle tokens, whose texts llama.cpp does not know as it does others'."""

NEVER_STRIPPING: Final = frozenset({"<unk>", "<s>", "<|endoftext|>"})
"""Tokens after which llama.cpp keeps white space in a model that strips it (see Vocab.model_name)."""

STRIPPED_END: Final = "</s>"
"""The one after which it always strips; it and the three above must exist."""

_ID_KEYS: Final = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "eot": "tokenizer.ggml.eot_token_id",
    "eom": "tokenizer.ggml.eom_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
}
_LLAMA_IDS: Final = {"bos": 1, "eos": 2, "unk": 0}  # llama.cpp's own where a "llama" file names none


@dataclass(frozen=True)
class Vocab:
    """A vocabulary and the rules around it.

    Attributes:
        model: "gpt2" (byte-level BPE) or "llama" (sentencepiece BPE).
        pre: llama.cpp's name for the rules that split text before merging ("default" for "llama").
        tokens: the texts, by id; byte-level tokens in GPT-2's byte alphabet, sentencepiece's with U+2581.
        types: what each token is.
        scores: by id, higher merges first ("llama"); empty for "gpt2".
        merges: "left right", first merges first ("gpt2"); empty for "llama".
        special_ids: role -> id for the roles that are filled: bos, eos, eot, eom, unk, pad.
        add_bos, add_eos: whether a text gets BOS before it and EOS after it.
        add_space_prefix: whether a text gets a space before it ("llama").
        strips_after_special: whether white space after special tokens is taken away, which llama.cpp does
            by the model's name alone (see model_name).
        chat_template: jinja source, or None.
        limits: where the source's tokenizer and llama.cpp are known to differ.
        notes: what reading decided that a person should know, one sentence each.

    Raises:
        TokenizerError: lengths differ, two tokens share a text, an id lies outside, no token ends an answer.
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
    strips_after_special: bool = False
    chat_template: str | None = None
    limits: tuple[Limit, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "special_ids", MappingProxyType(dict(self.special_ids)))
        _check_lengths(self)
        _check_texts(self.tokens)
        _check_special_ids(self)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens named as ends of an answer, the preferred one first."""
        named = (self.special_ids[role] for role in ("eos", "eot", "eom") if role in self.special_ids)
        return tuple(dict.fromkeys(named))

    def model_name(self, name: str) -> str:
        """The general.name under which llama.cpp strips white space after special tokens, or does not.

        It does so for every model whose name has "phi-3" or "phi3" in it (src/llama-vocab.cpp).
        """
        if self.strips_after_special:
            return name if strips_by_name(name) else f"{name} (Phi-3)"
        return re.sub("(phi)-?3", r"\1 3", name, flags=re.IGNORECASE)

    def text(self, role: str) -> str | None:
        """The text of the token in a role, or None where the role is not filled."""
        return self.tokens[self.special_ids[role]] if role in self.special_ids else None

    def metadata(self) -> dict[str, Typed]:
        """Every tokenizer.* key, written out also where llama.cpp has a default: defaults differ by `pre`."""
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
            if text in _FILLER_KEYS and self.types[token] in MATCHED_IN_TEXT:
                keys[_FILLER_KEYS[text]] = u32(token)
        keys["tokenizer.ggml.add_bos_token"] = boolean(self.add_bos)
        keys["tokenizer.ggml.add_eos_token"] = boolean(self.add_eos)
        keys["tokenizer.ggml.add_space_prefix"] = boolean(self.add_space_prefix)
        if self.chat_template is not None:
            keys["tokenizer.chat_template"] = string(self.chat_template)
        return keys


def vocab_from_metadata(metadata: Metadata) -> Vocab:
    """The vocabulary of a GGUF file, with llama.cpp's defaults where a key is absent.

    Raises:
        TokenizerError: a kind of vocabulary that is not known here, or one that contradicts itself.
        GGUFError: a key is missing or of the wrong type.
    """
    model = need(metadata, "tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise TokenizerError(
            f"tokenizer.ggml.model is {model!r}; known are 'gpt2' and 'llama'",
            "the file itself may be fine: llama.cpp knows more kinds of vocabulary than pigguf",
        )
    pre = get(metadata, "tokenizer.ggml.pre", str, "default") or "default"
    tokens = elements(metadata, "tokenizer.ggml.tokens") or ()
    types = elements(metadata, "tokenizer.ggml.token_type") or (TokenType.NORMAL,) * len(tokens)
    llama = model == "llama"
    return Vocab(
        model=model,
        pre=pre,
        tokens=tokens,
        types=tuple(_token_type(kind) for kind in types),
        scores=elements(metadata, "tokenizer.ggml.scores") or (0.0,) * len(tokens) if llama else (),
        merges=() if llama else elements(metadata, "tokenizer.ggml.merges") or (),
        special_ids=_special_ids(metadata, _LLAMA_IDS if llama else {}),
        add_bos=_flag(metadata, "add_bos_token", llama or adds_bos_by_default(pre)),
        add_eos=_flag(metadata, "add_eos_token", False),
        add_space_prefix=_flag(metadata, "add_space_prefix", llama),
        strips_after_special=strips_by_name(get(metadata, "general.name", str) or ""),
        chat_template=get(metadata, "tokenizer.chat_template", str),
    )


def strips_by_name(name: str) -> bool:
    """Whether llama.cpp strips white space after the special tokens of a model of that name."""
    return re.search("phi-?3", name, re.IGNORECASE) is not None


def _special_ids(metadata: Metadata, defaults: Mapping[str, int]) -> dict[str, int]:
    found = {role: get(metadata, key, int, defaults.get(role)) for role, key in _ID_KEYS.items()}
    return {role: token for role, token in found.items() if token is not None}


def _flag(metadata: Metadata, name: str, default: bool) -> bool:
    value = get(metadata, f"tokenizer.ggml.{name}", bool)
    return default if value is None else value


def _token_type(value: int) -> TokenType:
    try:
        return TokenType(value)
    except ValueError:
        raise TokenizerError(f"tokenizer.ggml.token_type holds {value}, which is no token type") from None


def _check_lengths(vocab: Vocab) -> None:
    count = len(vocab.tokens)
    if count == 0:
        raise TokenizerError("the vocabulary holds no tokens")
    for name, values in (("types", vocab.types), ("scores", vocab.scores)):
        if len(values) != count and (name == "types" or vocab.model == "llama"):
            raise TokenizerError(f"the vocabulary has {count} tokens and {len(values)} {name}")


def _check_texts(tokens: tuple[str, ...]) -> None:
    """llama.cpp aborts the process where two tokens share a text."""
    if "" in tokens:
        raise TokenizerError(f"token {tokens.index('')} of the vocabulary has no text")
    if len(set(tokens)) != len(tokens):
        text, times = Counter(tokens).most_common(1)[0]
        first = tokens.index(text)
        second = tokens.index(text, first + 1)
        raise TokenizerError(f"the vocabulary holds {text!r} {times} times, as tokens {first} and {second}")


def _check_special_ids(vocab: Vocab) -> None:
    for role, token in vocab.special_ids.items():
        if not 0 <= token < len(vocab.tokens):
            raise TokenizerError(
                f"the {role} token has the id {token}; the vocabulary ends at {len(vocab.tokens) - 1}"
            )
    if "eos" not in vocab.special_ids:  # llama.cpp would take token 11 ("gpt2") or 2 ("llama") for one
        raise TokenizerError(
            "no token is named as the end of a text (eos)", "name one in tokenizer_config.json: eos_token"
        )
    if vocab.add_bos and "bos" not in vocab.special_ids:
        raise TokenizerError(
            "texts are to begin with a BOS token and no token is named as one",
            "name one in tokenizer_config.json: bos_token",
        )
