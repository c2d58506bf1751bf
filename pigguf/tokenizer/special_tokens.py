"""Which token plays which part: bos, eos, unk, pad, and the further ends of an answer.

generation_config.json says which tokens end an answer; config.json where it does not, as in
transformers' generate.

Left out: tokens that a chat template refers to by other names (image_token ...).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import NAMED_ROLES, named_roles
from pigguf.tokenizer.tokenizer_files import GENERATION_CONFIG, TokenizerFiles
from pigguf.tokenizer.vocab import ENDS_BY_TEXT


@dataclass(frozen=True)
class SpecialIds:
    """The roles that are filled, and what was decided on the way."""

    ids: Mapping[str, int]
    notes: tuple[str, ...]


def special_ids(
    files: TokenizerFiles,
    config: Mapping[str, Any],
    ids: Mapping[str, int],
    own: Mapping[str, int],
    size: int,
) -> SpecialIds:
    """Which token plays which part: bos, eos, unk, pad, and further ends of an answer as eot and eom.

    A name in the tokenizer's files counts first, then what the tokenizer itself says, then config.json.

    Args:
        files: the directory's files.
        config: config.json.
        ids: text -> id of every token.
        own: roles that tokenizer.model or tokenizer.json fills itself; -1 means none.
        size: how many tokens the model has.

    Raises:
        TokenizerError: BOS or EOS is named and not in the vocabulary, an id is no number, or more
            tokens end an answer than a GGUF file can name.
    """
    notes: list[str] = []
    found: dict[str, int] = {}
    named = named_roles(files)
    stated = {role: _config_ids(config, f"{role}_token_id", "config.json") for role in NAMED_ROLES}
    for role in NAMED_ROLES:
        text, file = named.get(role, ("", ""))
        if text and text not in ids:
            _refuse_unknown(role, text, files, file)
            notes.append(f"{file}: {role}_token {text!r} is not in the vocabulary and was left out")
        candidates = [ids.get(text, -1), own.get(role, -1), *stated[role]]
        chosen = next((token for token in candidates if token >= 0), -1)
        if role == "pad" and chosen >= size:  # a leftover: nothing is ever padded in running the model
            notes.append(f"config.json: pad_token_id = {chosen} is beyond the {size} tokens and was left out")
        elif chosen >= 0:
            found[role] = chosen
    if "bos" in found and stated["bos"] and stated["bos"][0] != found["bos"]:
        notes.append(
            f"config.json: bos_token_id = {stated['bos'][0]} contradicts the tokenizer's BOS, "
            f"token {found['bos']}, which was kept"
        )
    generation = _config_ids(files.generation_config, "eos_token_id", GENERATION_CONFIG)
    ends = list(dict.fromkeys([*([found["eos"]] if "eos" in found else []), *(generation or stated["eos"])]))
    special = {**found, **_end_roles(ends, ids)}
    for role, token in special.items():
        if token >= size:
            raise TokenizerError(
                f"the {role} token has the id {token}, and the vocabulary has {size} tokens",
                f"correct {role}_token_id in config.json or {GENERATION_CONFIG}",
            )
    return SpecialIds(special, tuple(notes))


def _end_roles(ends: list[int], ids: Mapping[str, int]) -> dict[str, int]:
    """eos for the first; eot and eom for those whose text does not end an answer in llama.cpp anyway."""
    if not ends:
        return {}
    texts = {token: text for text, token in ids.items()}
    silent = [token for token in ends[1:] if texts.get(token) not in ENDS_BY_TEXT]
    if len(silent) > 2:
        raise TokenizerError(
            f"the tokens {ends} all end an answer; a GGUF file can name three, and those that llama.cpp "
            f"does not know by their text are {[texts.get(token, token) for token in silent]}",
            f"keep the ones that the model really ends with in {GENERATION_CONFIG}: eos_token_id",
        )
    return {"eos": ends[0], **dict(zip(("eot", "eom"), silent, strict=False))}


def _refuse_unknown(role: str, text: str, files: TokenizerFiles, file: str) -> None:
    """Without BOS or EOS a model does not work; a padding or unknown token plays no part in running it."""
    if role in ("bos", "eos"):
        raise TokenizerError(
            f"{files.path(file)}: {role}_token = {text!r} is not in the vocabulary",
            "the tokenizer's files contradict each other: take them all from one source",
        )


def _config_ids(values: Mapping[str, Any], key: str, file: str) -> list[int]:
    """A key's token id or list of them; null and -1 mean none."""
    value = values.get(key)
    listed = value if isinstance(value, list) else [] if value is None else [value]
    for token in listed:
        if type(token) is not int:
            raise TokenizerError(f"{file}: {key} = {value!r} is not a token id")
    return [token for token in listed if token >= 0]
