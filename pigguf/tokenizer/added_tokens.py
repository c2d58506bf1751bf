"""Tokens beside the merges, matched in the text before anything else is done to it.

Which files count, as in transformers 5 (tokenization_utils_base.py, `_from_pretrained`):
tokenizer_config.json with added_tokens_decoder rules out special_tokens_map.json and
added_tokens.json; without it these two count, and the map overrules the config.

Left out: which token plays which part (special_ids.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.tokenizer_files import (
    ADDED_TOKENS,
    CONFIG,
    SPECIAL_TOKENS_MAP,
    Json,
    TokenizerFiles,
)

NAMED_ROLES: Final = ("bos", "eos", "unk", "pad")
_OTHER_NAMES: Final = ("sep_token", "cls_token", "mask_token")
_NAMED_LISTS: Final = ("additional_special_tokens", "extra_special_tokens")

# Not marked special in some models' files and meant as control tokens (llama.cpp conversion/base.py,
# does_token_look_special).
_CONTROL_TEXTS: Final = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_CONTROL_SHAPES: Final = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True)
class AddedToken:
    """One added token.

    Attributes:
        id, content: which token, and its text.
        special: whether it is meant for the model alone and not to be shown.
        normalized: whether it is looked for in the normalized text.
        strips_after: whether white space after it is taken away.
        file: which file says so.
    """

    id: int
    content: str
    special: bool
    normalized: bool
    strips_after: bool
    file: str

    @property
    def looks_special(self) -> bool:
        return self.content in _CONTROL_TEXTS or any(
            self.content.startswith(begin) and self.content.endswith(end) for begin, end in _CONTROL_SHAPES
        )


# Pieces that a vocabulary keeps free, to be named later: InternLM2's "[UNUSED_TOKEN_145]".
_PLACEHOLDER: Final = re.compile(r"[\[<|]+(unused|reserved|extra|placeholder)", re.IGNORECASE)


def renamed_pieces(files: TokenizerFiles, texts: Sequence[str]) -> dict[int, str]:
    """Texts that added_tokens_decoder gives to placeholders, and special tokens' own, by id.

    transformers renames placeholders in the sentencepiece vocabulary (tokenization_utils_tokenizers.py,
    "Replace placeholder tokens"), llama.cpp's converter too (conversion/internlm.py). A special token is
    looked for as it is written: CodeLlama's "▁<PRE>" is not " <PRE>".
    """
    named = {added.id: added for added in _stated_tokens(files) if added.file == CONFIG}
    return {
        token: added.content
        for token, added in named.items()
        if token < len(texts)
        and (_PLACEHOLDER.match(texts[token]) or (added.special and texts[token] == added.content))
    }


def added_tokens(files: TokenizerFiles, base: Mapping[str, int]) -> dict[int, AddedToken]:
    """Every added token by id; those named in a role are special.

    Args:
        files: the directory's files.
        base: text -> id of the tokens that merges or pieces make.

    Raises:
        TokenizerError: two files give one id to two tokens or one token two ids; or a token strips white
            space before it or wants whole words, which llama.cpp cannot do.
    """
    merged: dict[int, AddedToken] = {}
    ids: dict[str, int] = dict(base)
    texts = {token: text for text, token in base.items()}
    for stated in _stated_tokens(files):
        added = _in_input_text(stated, texts)
        if ids.get(added.content, added.id) != added.id:
            raise TokenizerError(
                f"{files.path(added.file)} gives {added.content!r} the id {added.id}; "
                f"elsewhere it has {ids[added.content]}",
                "the tokenizer's files contradict each other: take them all from one source",
            )
        if texts.get(added.id, added.content) != added.content:
            raise TokenizerError(
                f"{files.path(added.file)} gives the id {added.id} to {added.content!r}; "
                f"elsewhere it is {texts[added.id]!r}",
                "the tokenizer's files contradict each other: take them all from one source",
            )
        ids[added.content], texts[added.id] = added.id, added.content
        merged[added.id] = added
    for text, token in ((text, ids[text]) for text in _named_texts(files) if text in ids):
        if token in merged:
            merged[token] = replace(merged[token], special=True)
        elif text in _framing_texts(files):  # a pad_token "!" stays the exclamation mark that it is
            merged[token] = AddedToken(token, text, True, normalized=False, strips_after=False, file=CONFIG)
    return dict(sorted(merged.items()))


def _in_input_text(added: AddedToken, texts: Mapping[int, str]) -> AddedToken:
    """A user-defined "▁▁" of sentencepiece as the two spaces that are looked for (sentencepiece_style.py)."""
    spaced = added.content.replace("▁", " ")
    return replace(added, content=spaced) if texts.get(added.id) == spaced else added


def _stated_tokens(files: TokenizerFiles) -> Iterable[AddedToken]:
    """Added tokens as the files list them; a later one overrules an earlier one of the same id."""
    for entry in (files.tokenizer or {}).get("added_tokens") or ():
        yield _added_token(files, files.tokenizer_file, entry.get("id"), entry)
    decoder = files.config.get("added_tokens_decoder")
    if decoder is not None:
        for key, entry in decoder.items():
            yield _added_token(files, CONFIG, key, entry or {})
        return
    for text, token in files.added_tokens.items():
        yield _added_token(files, ADDED_TOKENS, token, {"content": text})


def _added_token(files: TokenizerFiles, file: str, token: Any, entry: Json) -> AddedToken:
    content = entry.get("content")
    try:
        token = int(token)
    except (TypeError, ValueError):
        token = -1
    if not content or token < 0:
        raise TokenizerError(f"{files.path(file)}: the added token {token}: {entry} has no id or no text")
    for flag in ("lstrip", "single_word"):
        if entry.get(flag):
            raise TokenizerError(
                f"{files.path(file)}: the added token {content!r} has {flag} = true, "
                "which llama.cpp cannot do",
                f"set {flag} to false where the model does not depend on it",
            )
    normalized = bool(entry.get("normalized", not entry.get("special", False)))
    special, strips_after = bool(entry.get("special", False)), bool(entry.get("rstrip", False))
    return AddedToken(token, content, special, normalized, strips_after, file)


def _naming_files(files: TokenizerFiles) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """The files that name tokens, the strongest first."""
    config = (CONFIG, files.config)
    if files.config.get("added_tokens_decoder") is not None:
        return (config,)
    return ((SPECIAL_TOKENS_MAP, files.special_tokens_map), config)


def named_roles(files: TokenizerFiles) -> dict[str, tuple[str, str]]:
    """role -> (the token's text, the file that names it)."""
    named: dict[str, tuple[str, str]] = {}
    for file, values in _naming_files(files):
        for role in NAMED_ROLES:
            text = _token_text(values.get(f"{role}_token"))
            if text and role not in named:  # an empty text names nothing (LLaMA-1 conversions have it)
                named[role] = (text, file)
    return named


def _framing_texts(files: TokenizerFiles) -> list[str]:
    """The texts named as BOS and EOS."""
    return [text for role, (text, _) in named_roles(files).items() if role in ("bos", "eos")]


def _named_texts(files: TokenizerFiles) -> list[str]:
    """Every text that a role or a list of special tokens names."""
    texts = [text for text, _ in named_roles(files).values()]
    for _, values in _naming_files(files):
        for name in (*_OTHER_NAMES, *_NAMED_LISTS):
            listed = values.get(name)
            listed = list(listed.values()) if name in _NAMED_LISTS and isinstance(listed, dict) else listed
            texts += [
                text
                for entry in (listed if isinstance(listed, list) else [listed])
                if (text := _token_text(entry))
            ]
    return texts


def _token_text(value: Any) -> str | None:
    """A token named as text or as {"content": text}."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
