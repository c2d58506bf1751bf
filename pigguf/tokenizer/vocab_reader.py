"""Read the tokenizer files of a checkpoint into a Vocab.

Which file is read: a byte-level tokenizer.json, or an older format of one; else tokenizer.model, which has
sentencepiece's own scores; else a tokenizer.json in sentencepiece's style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import AddedToken, read_added_tokens, special_token_names
from pigguf.tokenizer.base_vocab import BaseVocab
from pigguf.tokenizer.byte_level_bpe import read_byte_level_bpe
from pigguf.tokenizer.chat_template import ChatTemplate
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.sentencepiece_bpe import read_sentencepiece_json, read_sentencepiece_model
from pigguf.tokenizer.special_tokens import resolve_special_tokens
from pigguf.tokenizer.tokenizer_files import (
    MERGES_TXT,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
    TOKENIZER_MODEL,
    VOCAB_JSON,
    TokenizerFiles,
)
from pigguf.tokenizer.tokenizer_json import TokenizerJson
from pigguf.tokenizer.vocab import (
    EOG_TOKENS,
    FIM_EOG_TOKENS,
    NO_RSTRIP_TOKENS,
    RSTRIP_EOS_TOKEN,
    SPECIAL_TOKEN_TYPES,
    TokenType,
    Vocab,
)

ADDED_SCORE = -1000.0  # of added tokens, as in llama.cpp's converter (conversion/base.py)

# Files that are not supported -> what they are, for the message.
_UNSUPPORTED_FILES = {
    "tekken.json": "Mistral's tekken.json, which their Hugging Face repositories have as tokenizer.json too",
    "*.tiktoken": "a tiktoken file, whose rules are in code beside it",
    "spiece.model": "spiece.model, a T5-like vocabulary",
    "vocab.txt": "vocab.txt, a WordPiece vocabulary (BERT), which llama.cpp runs for encoders only",
}


def read_vocab(directory: Path, config: Mapping[str, Any], vocab_size: int) -> Vocab:
    """Read the tokenizer of a checkpoint.

    Args:
        directory: the checkpoint's directory.
        config: config.json, which may name special tokens.
        vocab_size: rows of the embedding; a smaller vocabulary is padded with unused "[PADn]" tokens.

    Raises:
        TokenizerError: there is no tokenizer, llama.cpp does not have one of its rules, its files contradict
            each other, or it has more tokens than the embedding has rows.
    """
    files = TokenizerFiles.open(directory)
    base = read_base_vocab(files)
    template, template_notes = read_chat_template(files)
    added, dropped_notes = _drop_unused_beyond_embedding(
        files, read_added_tokens(files, base.ids), vocab_size, template or ""
    )
    ids = {**base.ids, **{token.content: token.id for token in added.values()}}
    _check_size(ids, vocab_size, base.file)
    tokens, types, scores = _tokens_by_id(base, added, ids, vocab_size)
    special = resolve_special_tokens(files, config, ids, _declared_special_ids(base, ids), vocab_size)
    add_bos, add_eos = _add_bos_eos(base, files, {role: tokens[id] for role, id in special.ids.items()})
    rstrip = _rstrip_special(files, added, types, tokens)
    differences = (*base.known_differences, *_rstrip_differences(added, rstrip))
    return Vocab(
        model=base.model,
        pre=base.pre,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=tuple(scores) if base.model == "llama" else (),
        merges=base.merges,
        special_ids=special.ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=base.add_space_prefix,
        rstrip_special=rstrip,
        chat_template=template,
        known_differences=differences,
        notes=(
            *special.notes,
            *_add_bos_eos_notes(base, files, add_bos=add_bos, add_eos=add_eos),
            *template_notes,
            *dropped_notes,
            *_padding_notes(ids, vocab_size),
            *_eog_notes(tokens, types),
            *(difference.value for difference in differences),
        ),
    )


def read_base_vocab(files: TokenizerFiles) -> BaseVocab:
    """Read the tokenizer's vocabulary without added tokens.

    Raises:
        TokenizerError, ReadError: as read_vocab.
    """
    tokenizer = TokenizerJson.from_files(files)
    if tokenizer is not None and tokenizer.is_byte_level:
        return read_byte_level_bpe(tokenizer)
    if files.sentencepiece_model is not None:
        return read_sentencepiece_model(files, tokenizer)
    if tokenizer is not None:
        return read_sentencepiece_json(tokenizer)
    unsupported = next((name for name in _UNSUPPORTED_FILES if any(files.directory.glob(name))), None)
    raise TokenizerError(
        f"{files.directory} has neither {TOKENIZER_JSON} nor {TOKENIZER_MODEL}, nor {VOCAB_JSON} with "
        f"{MERGES_TXT}" + (f"; it has {_UNSUPPORTED_FILES[unsupported]}" if unsupported else ""),
        "download the tokenizer too; transformers converts other formats to tokenizer.json: "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )


def read_chat_template(files: TokenizerFiles) -> tuple[str | None, tuple[str, ...]]:
    """Return the chat template, or None, and notes on templates that are ignored.

    A file of its own comes before tokenizer_config.json.

    Raises:
        TokenizerError: there are several templates without a default, or it is not valid jinja.
    """
    template, notes = _default_template(files)
    if template is not None:
        ChatTemplate(template)
    return template, notes


def _default_template(files: TokenizerFiles) -> tuple[str | None, tuple[str, ...]]:
    stated = (
        files.tokenizer_config.get("chat_template") if files.chat_template is None else files.chat_template
    )
    if stated is None or isinstance(stated, str):
        return stated, ()
    if isinstance(stated, list):
        stated = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
    default = stated.get("default")
    if not isinstance(default, str):
        raise TokenizerError(
            f"{files.path(TOKENIZER_CONFIG)}: chat_template has several templates but no default",
            "put the template into chat_template.jinja",
        )
    others = [name for name in stated if name != "default"]
    if not others:
        return default, ()
    return default, (f"the default chat template is used; ignored: {others}",)


def token_type(base: BaseVocab, token: int, added: AddedToken | None) -> TokenType:
    """Return a token's type (llama.cpp conversion/base.py, get_vocab_base, _create_vocab_sentencepiece)."""
    base_type = base.types.get(token, TokenType.NORMAL)
    if added is None or base_type is TokenType.UNKNOWN:
        return base_type
    return TokenType.CONTROL if added.special or added.looks_special else TokenType.USER_DEFINED


def _rstrip_special(
    files: TokenizerFiles, added: Mapping[int, AddedToken], types: Sequence[TokenType], tokens: Sequence[str]
) -> bool:
    """Return whether white space after special tokens is removed, as in Phi-3's files.

    Raises:
        TokenizerError: it is removed after other tokens than llama.cpp does it after.
    """
    rstrip_tokens = {token.content: token for token in added.values() if token.rstrip}
    if not rstrip_tokens:
        return False
    special = {text for text, kind in zip(tokens, types, strict=True) if kind in SPECIAL_TOKEN_TYPES}
    differing = (rstrip_tokens.keys() ^ (special - NO_RSTRIP_TOKENS)) - {RSTRIP_EOS_TOKEN}
    if differing or not {RSTRIP_EOS_TOKEN, *NO_RSTRIP_TOKENS} <= set(tokens):
        text, token = next(iter(rstrip_tokens.items()))
        raise TokenizerError(
            f"{files.path(token.file)}: the added token {text!r} has rstrip = true and others differ "
            f"({', '.join(sorted(differing)[:3])}); llama.cpp removes white space after all special tokens "
            "of a Phi-3 vocabulary, or after none",
            "set rstrip to false if the model does not depend on it",
        )
    return True


def _rstrip_differences(added: Mapping[int, AddedToken], rstrip: bool) -> tuple[TokenizerDifference, ...]:
    keeps_after_eos = not any(token.content == RSTRIP_EOS_TOKEN and token.rstrip for token in added.values())
    return (TokenizerDifference.EOS_RSTRIP,) if rstrip and keeps_after_eos else ()


def _tokens_by_id(
    base: BaseVocab, added: Mapping[int, AddedToken], ids: Mapping[str, int], size: int
) -> tuple[list[str], list[TokenType], list[float]]:
    """Return texts, types and scores by id, with "[PADn]" for missing tokens (as in get_vocab_base)."""
    tokens = [f"[PAD{token}]" for token in range(size)]
    types = [TokenType.UNUSED] * size
    scores = [ADDED_SCORE] * size
    for text, token in ids.items():
        tokens[token] = text
        types[token] = token_type(base, token, added.get(token))
        scores[token] = base.scores.get(token, 0.0 if text in base.ids else ADDED_SCORE)
    return tokens, types, scores


def _drop_unused_beyond_embedding(
    files: TokenizerFiles, added: Mapping[int, AddedToken], size: int, template: str
) -> tuple[dict[int, AddedToken], tuple[str, ...]]:
    """Return the added tokens without those that are unused and beyond the embedding, and notes on those.

    A special token is unused if it is neither BOS nor EOS and is not in the chat template, such as a padding
    token or Gemma 3's "<image_soft_token>" in a text model. Any other token beyond the embedding is an
    error later.
    """
    required = {text for role, (text, _) in special_token_names(files).items() if role in ("bos", "eos")}
    unused = {
        id: token
        for id, token in added.items()
        if id >= size and token.special and token.content not in required and token.content not in template
    }
    notes = tuple(
        f"{token.file}: the token {id} {token.content!r} has no row in the embedding and was ignored"
        for id, token in unused.items()
    )
    return {id: token for id, token in added.items() if id not in unused}, notes


def _check_size(ids: Mapping[str, int], size: int, file: str) -> None:
    highest = max(ids.values())
    if highest >= size:
        raise TokenizerError(
            f"{file} and the added tokens reach up to token {highest}, {highest + 1} in all; "
            f"the embedding has {size} rows",
            "the tokenizer is another model's, or tokens were added without resize_token_embeddings; "
            "LongLoRA's 32001 tokens go with 32001 rows, which its adapters keep in trainable_params.bin",
        )
    if len(ids) <= highest:
        taken = set(ids.values())
        missing = next(token for token in range(highest) if token not in taken)
        raise TokenizerError(
            f"{file}: no token has the id {missing}, but others have higher ids (up to {highest})",
            "the vocabulary is incomplete: download the tokenizer again",
        )


def _declared_special_ids(base: BaseVocab, ids: Mapping[str, int]) -> dict[str, int]:
    """Return roles that the tokenizer itself fills: by id, or by the tokens that it adds around a text."""
    before, after = base.template_tokens or ((), ())
    from_template = {
        role: ids.get(texts[0], -1) for role, texts in (("bos", before), ("eos", after)) if texts
    }
    return {**from_template, **base.special_ids}


def _add_bos_eos(base: BaseVocab, files: TokenizerFiles, roles: Mapping[str, str]) -> tuple[bool, bool]:
    """Return add_bos and add_eos.

    transformers 5 reads them from tokenizer.json if there is one, and from add_bos_token and add_eos_token
    only if there is none (tokenization_utils_base.py, `_from_pretrained`).
    """
    if base.template_tokens is None:  # LlamaTokenizer's defaults
        return bool(files.tokenizer_config.get("add_bos_token", True)), bool(
            files.tokenizer_config.get("add_eos_token", False)
        )
    before, after = base.template_tokens
    if before not in ((), (roles.get("bos"),)) or after not in ((), (roles.get("eos"),)):
        raise TokenizerError(
            f"{files.path(files.tokenizer_json_source)}: post_processor adds {list(before)} before a text "
            f"and {list(after)} after it; llama.cpp can only add BOS ({roles.get('bos')!r}) and "
            f"EOS ({roles.get('eos')!r})",
            f"make bos_token and eos_token in {TOKENIZER_CONFIG} agree with it",
        )
    return bool(before), bool(after)


def _add_bos_eos_notes(base: BaseVocab, files: TokenizerFiles, **taken: bool) -> tuple[str, ...]:
    if base.template_tokens is None:
        return ()
    stated = {key: files.tokenizer_config.get(f"{key}_token") for key in taken}
    return tuple(
        f"{TOKENIZER_CONFIG}: {key}_token = {stated[key]} contradicts the post_processor of "
        f"{TOKENIZER_JSON}, which is used, as in transformers"
        for key in taken
        if stated[key] not in (None, taken[key])
    )


def _padding_notes(ids: Mapping[str, int], size: int) -> tuple[str, ...]:
    missing = size - len(ids)
    if not missing:
        return ()
    return (
        f"the tokenizer has {len(ids)} tokens and the embedding {size} rows: "
        f"{missing} unused tokens are added, [PAD{len(ids)}] to [PAD{size - 1}]",
    )


def _eog_notes(tokens: list[str], types: list[TokenType]) -> tuple[str, ...]:
    """Return notes on normal tokens that llama.cpp takes for end-of-generation by their text."""
    return tuple(
        f"token {token} {text!r} is normal text in the source; llama.cpp ends the generation at it"
        for token, text in enumerate(tokens)
        if text in EOG_TOKENS | FIM_EOG_TOKENS and types[token] not in SPECIAL_TOKEN_TYPES
    )
