"""Read added tokens: those outside the merges, matched in the text before anything else is done to it.

Which files count is as in transformers 5 (tokenization_utils_base.py, `_from_pretrained`): if
tokenizer_config.json has added_tokens_decoder, special_tokens_map.json and added_tokens.json are ignored;
otherwise both are read, and the map overrides the config.

Not here: which token has which role (special_tokens.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.tokenizer_files import (
    ADDED_TOKENS,
    SPECIAL_TOKENS_MAP,
    TOKENIZER_CONFIG,
    Json,
    TokenizerFiles,
)

SPECIAL_TOKEN_ROLES: Final = ("bos", "eos", "unk", "pad")
_OTHER_ROLE_KEYS: Final = ("sep_token", "cls_token", "mask_token")
_TOKEN_LIST_KEYS: Final = ("additional_special_tokens", "extra_special_tokens")

# Control tokens that some models' files do not mark as special (llama.cpp conversion/base.py,
# does_token_look_special).
_CONTROL_TOKENS: Final = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_CONTROL_AFFIXES: Final = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


@dataclass(frozen=True)
class AddedToken:
    """One added token.

    Attributes:
        id, content: the token and its text.
        special: whether it is a control token, which is not shown to users.
        normalized: whether it is matched in the normalized text.
        rstrip: whether white space after it is removed.
        file: the file that defines it.
    """

    id: int
    content: str
    special: bool
    normalized: bool
    rstrip: bool
    file: str

    @property
    def looks_special(self) -> bool:
        """Whether the text looks like a control token's, whatever the file says."""
        return self.content in _CONTROL_TOKENS or any(
            self.content.startswith(prefix) and self.content.endswith(suffix)
            for prefix, suffix in _CONTROL_AFFIXES
        )


# Reserved tokens that a fine-tune may name, as InternLM2's "[UNUSED_TOKEN_145]".
_PLACEHOLDER: Final = re.compile(r"[\[<|]+(unused|reserved|extra|placeholder)", re.IGNORECASE)


def placeholder_names(files: TokenizerFiles, texts: Sequence[str]) -> dict[int, str]:
    """Return the texts that added_tokens_decoder gives to placeholders and special tokens, by id.

    transformers renames placeholders in the sentencepiece vocabulary (tokenization_utils_tokenizers.py,
    "Replace placeholder tokens"), and so does llama.cpp's converter (conversion/internlm.py). A special
    token is matched as it is written: CodeLlama's "▁<PRE>" is not " <PRE>".

    Args:
        files: the directory's files.
        texts: the texts of the sentencepiece vocabulary, by id.
    """
    defined = {added.id: added for added in _defined_tokens(files) if added.file == TOKENIZER_CONFIG}
    return {
        token: added.content
        for token, added in defined.items()
        if token < len(texts)
        and (_PLACEHOLDER.match(texts[token]) or (added.special and texts[token] == added.content))
    }


def read_added_tokens(files: TokenizerFiles, base: Mapping[str, int]) -> dict[int, AddedToken]:
    """Return every added token by id; those that are named in a role are special.

    Args:
        files: the directory's files.
        base: text -> id of the base vocabulary.

    Raises:
        TokenizerError: two files give one id to two tokens or one token two ids; or a token has lstrip or
            single_word, which llama.cpp cannot do.
    """
    by_id: dict[int, AddedToken] = {}
    ids: dict[str, int] = dict(base)
    texts = {token: text for text, token in base.items()}
    for defined in _defined_tokens(files):
        added = _unescape_spaces(defined, texts)
        if ids.get(added.content, added.id) != added.id:
            raise TokenizerError(
                f"{files.path(added.file)} gives {added.content!r} the id {added.id}; "
                f"another file gives it {ids[added.content]}",
                "the tokenizer's files contradict each other: take them all from one source",
            )
        if texts.get(added.id, added.content) != added.content:
            raise TokenizerError(
                f"{files.path(added.file)} gives the id {added.id} to {added.content!r}; "
                f"another file gives it to {texts[added.id]!r}",
                "the tokenizer's files contradict each other: take them all from one source",
            )
        ids[added.content], texts[added.id] = added.id, added.content
        by_id[added.id] = added
    for text, token in ((text, ids[text]) for text in _named_texts(files) if text in ids):
        if token in by_id:
            by_id[token] = replace(by_id[token], special=True)
        elif text in _bos_and_eos(files):  # a pad_token "!" stays a normal token
            by_id[token] = AddedToken(
                token, text, True, normalized=False, rstrip=False, file=TOKENIZER_CONFIG
            )
    return dict(sorted(by_id.items()))


def _unescape_spaces(added: AddedToken, texts: Mapping[int, str]) -> AddedToken:
    """Return a user-defined "▁▁" of sentencepiece as the two spaces that llama.cpp matches."""
    spaced = added.content.replace("▁", " ")
    return replace(added, content=spaced) if texts.get(added.id) == spaced else added


def _defined_tokens(files: TokenizerFiles) -> Iterable[AddedToken]:
    """Yield added tokens as the files list them; a later one overrides an earlier one of the same id."""
    for entry in (files.tokenizer_json or {}).get("added_tokens") or ():
        yield _added_token(files, files.tokenizer_json_source, entry.get("id"), entry)
    decoder = files.tokenizer_config.get("added_tokens_decoder")
    if decoder is not None:
        for key, entry in decoder.items():
            yield _added_token(files, TOKENIZER_CONFIG, key, entry or {})
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
        raise TokenizerError(
            f"{files.path(file)}: the added token {token}: {entry} has no valid id or no text"
        )
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
    """Return the files that name tokens in roles, the one that overrides the others first."""
    config = (TOKENIZER_CONFIG, files.tokenizer_config)
    if files.tokenizer_config.get("added_tokens_decoder") is not None:
        return (config,)
    return ((SPECIAL_TOKENS_MAP, files.special_tokens_map), config)


def special_token_names(files: TokenizerFiles) -> dict[str, tuple[str, str]]:
    """Return role -> (the token's text, the file that names it)."""
    named: dict[str, tuple[str, str]] = {}
    for file, values in _naming_files(files):
        for role in SPECIAL_TOKEN_ROLES:
            text = _token_text(values.get(f"{role}_token"))
            if text and role not in named:  # conversions of LLaMA-1 have empty texts
                named[role] = (text, file)
    return named


def _bos_and_eos(files: TokenizerFiles) -> list[str]:
    """Return the texts that are named as BOS and EOS."""
    return [text for role, (text, _) in special_token_names(files).items() if role in ("bos", "eos")]


def _named_texts(files: TokenizerFiles) -> list[str]:
    """Return every text that is named by a role or in a list of special tokens."""
    texts = [text for text, _ in special_token_names(files).values()]
    for _, values in _naming_files(files):
        for name in (*_OTHER_ROLE_KEYS, *_TOKEN_LIST_KEYS):
            value = values.get(name)
            if name in _TOKEN_LIST_KEYS and isinstance(value, dict):
                value = list(value.values())
            texts += [
                text
                for entry in (value if isinstance(value, list) else [value])
                if (text := _token_text(entry))
            ]
    return texts


def _token_text(value: Any) -> str | None:
    """Return the text of a token that is given as text or as {"content": text}."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None
