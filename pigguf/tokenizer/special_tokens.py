"""Resolve which token has which role: bos, eos, unk, pad, and further end-of-generation tokens (eot, eom).

generation_config.json lists the end-of-generation tokens; if it does not, config.json does, as in
transformers' generate.

Not here: tokens that a chat template names in other roles (image_token ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import SPECIAL_TOKEN_ROLES, special_token_names
from pigguf.tokenizer.tokenizer_files import GENERATION_CONFIG, TokenizerFiles
from pigguf.tokenizer.vocab import EOG_TOKENS


@dataclass(frozen=True)
class ResolvedSpecialTokens:
    """The roles of special tokens.

    Attributes:
        ids: role -> id, for roles that are filled.
        notes: decisions that a user should know, one sentence each.
    """

    ids: Mapping[str, int]
    notes: tuple[str, ...]


def resolve_special_tokens(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    ids: Mapping[str, int],
    declared: Mapping[str, int],
    size: int,
) -> ResolvedSpecialTokens:
    """Resolve bos, eos, unk, pad, and further end-of-generation tokens as eot and eom.

    A name in the tokenizer's files comes first, then the tokenizer itself, then config.json.

    Args:
        files: the directory's files.
        config: config.json.
        ids: text -> id of every token.
        declared: roles that tokenizer.model or tokenizer.json fills itself; -1 for none.
        size: rows of the model's embedding.

    Raises:
        TokenizerError: BOS or EOS is named but not in the vocabulary, an id is not an integer, or there are
            more end-of-generation tokens than GGUF has keys for.
    """
    notes: list[str] = []
    resolved: dict[str, int] = {}
    named = special_token_names(files)
    stated = {role: _config_ids(config, f"{role}_token_id", "config.json") for role in SPECIAL_TOKEN_ROLES}
    for role in SPECIAL_TOKEN_ROLES:
        text, file = named.get(role, ("", ""))
        if text and text not in ids:
            _check_not_required(role, text, files, file)
            notes.append(f"{file}: {role}_token {text!r} is not in the vocabulary and was ignored")
        candidates = [ids.get(text, -1), declared.get(role, -1), *stated[role]]
        chosen = next((token for token in candidates if token >= 0), -1)
        if role == "pad" and chosen >= size:  # harmless: inference pads nothing
            notes.append(f"config.json: pad_token_id = {chosen} is beyond the {size} tokens and was ignored")
        elif chosen >= 0:
            resolved[role] = chosen
    if "bos" in resolved and stated["bos"] and stated["bos"][0] != resolved["bos"]:
        notes.append(
            f"config.json: bos_token_id = {stated['bos'][0]} contradicts the tokenizer's BOS, "
            f"token {resolved['bos']}, which is used"
        )
    generation = _config_ids(files.generation_config, "eos_token_id", GENERATION_CONFIG)
    eog_tokens = list(
        dict.fromkeys([*([resolved["eos"]] if "eos" in resolved else []), *(generation or stated["eos"])])
    )
    special = {**resolved, **_eog_roles(eog_tokens, ids)}
    for role, token in special.items():
        if token >= size:
            raise TokenizerError(
                f"the {role} token has the id {token}, and the vocabulary has {size} tokens",
                f"correct {role}_token_id in config.json or {GENERATION_CONFIG}",
            )
    return ResolvedSpecialTokens(special, tuple(notes))


def _eog_roles(eog_tokens: list[int], ids: Mapping[str, int]) -> dict[str, int]:
    """Return eos for the first, and eot and eom for those that llama.cpp does not know by their text."""
    if not eog_tokens:
        return {}
    texts = {token: text for text, token in ids.items()}
    unknown = [token for token in eog_tokens[1:] if texts.get(token) not in EOG_TOKENS]
    if len(unknown) > 2:
        raise TokenizerError(
            f"the tokens {eog_tokens} all end the generation; GGUF has keys for three, and llama.cpp "
            f"does not know these by their text: {[texts.get(token, token) for token in unknown]}",
            f"keep only those that the model really generates in {GENERATION_CONFIG}: eos_token_id",
        )
    return {"eos": eog_tokens[0], **dict(zip(("eot", "eom"), unknown, strict=False))}


def _check_not_required(role: str, text: str, files: TokenizerFiles, file: str) -> None:
    """Raise if a missing token is BOS or EOS; inference needs neither a padding nor an unknown token."""
    if role in ("bos", "eos"):
        raise TokenizerError(
            f"{files.path(file)}: {role}_token = {text!r} is not in the vocabulary",
            "the tokenizer's files contradict each other: take them all from one source",
        )


def _config_ids(values: Mapping[str, Any], key: str, file: str) -> list[int]:
    """Return a key's token id, or list of them, as a list; null and -1 mean none."""
    value = values.get(key)
    tokens = value if isinstance(value, list) else [] if value is None else [value]
    for token in tokens:
        if type(token) is not int:
            raise TokenizerError(f"{file}: {key} = {value!r} is not a token id")
    return [token for token in tokens if token >= 0]
