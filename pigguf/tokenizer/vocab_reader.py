"""read_vocab: the tokenizer files of a checkpoint -> Vocab.

Which file is read: a byte-level tokenizer.json or an older form of one; else tokenizer.model, which has
sentencepiece's own scores; else a tokenizer.json in sentencepiece's style.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import AddedToken, added_tokens, named_roles
from pigguf.tokenizer.byte_level_bpe import read_byte_level
from pigguf.tokenizer.chat_template import ChatTemplate
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.sentencepiece_bpe import read_sentencepiece_json, read_sentencepiece_model
from pigguf.tokenizer.special_tokens import special_ids
from pigguf.tokenizer.tokenizer_files import (
    CONFIG,
    MERGES,
    SENTENCEPIECE,
    TOKENIZER,
    VOCAB,
    TokenizerFiles,
)
from pigguf.tokenizer.tokenizer_json import TokenizerJson
from pigguf.tokenizer.vocab import (
    ENDS_AS_FILLER,
    ENDS_BY_TEXT,
    MATCHED_IN_TEXT,
    NEVER_STRIPPING,
    STRIPPED_END,
    TokenType,
    Vocab,
)
from pigguf.tokenizer.vocab_entries import Pieces

ADDED_SCORE = -1000.0  # as llama.cpp's converter gives added tokens (conversion/base.py)

# Files that are not read, and what they hold.
_UNREAD = {
    "tekken.json": "Mistral's tekken.json, which their Hugging Face repositories have as tokenizer.json too",
    "*.tiktoken": "a tiktoken file, whose rules stand in code beside it",
    "spiece.model": "spiece.model, a T5-like vocabulary",
    "vocab.txt": "vocab.txt, a WordPiece vocabulary (BERT), which llama.cpp runs for encoders only",
}


def read_vocab(directory: Path, config: Mapping[str, Any], vocab_size: int) -> Vocab:
    """Read the tokenizer of a checkpoint.

    Args:
        directory: where its files lie.
        config: config.json, which may name special tokens.
        vocab_size: rows of the embedding; a smaller vocabulary is filled up with unused "[PADn]" tokens.

    Raises:
        TokenizerError: there is no tokenizer, a rule of it is not understood or has no equal in
            llama.cpp, its files contradict each other, or it holds more tokens than the embedding.
    """
    files = TokenizerFiles.open(directory)
    pieces = read_pieces(files)
    template, template_notes = chat_template(files)
    added, row_notes = _with_rows(files, added_tokens(files, pieces.ids), vocab_size, template or "")
    ids = {**pieces.ids, **{token.content: token.id for token in added.values()}}
    _check_size(ids, vocab_size, pieces.file)
    tokens, types, scores = _columns(pieces, added, ids, vocab_size)
    special = special_ids(files, config, ids, _own_ids(pieces, ids), vocab_size)
    add_bos, add_eos = _around(pieces, files, {role: tokens[id] for role, id in special.ids.items()})
    strips = _strips_after_special(files, added, types, tokens)
    limits = (*pieces.limits, *_stripping_limits(added, strips))
    return Vocab(
        model=pieces.model,
        pre=pieces.pre,
        tokens=tuple(tokens),
        types=tuple(types),
        scores=tuple(scores) if pieces.model == "llama" else (),
        merges=pieces.merges,
        special_ids=special.ids,
        add_bos=add_bos,
        add_eos=add_eos,
        add_space_prefix=pieces.add_space_prefix,
        strips_after_special=strips,
        chat_template=template,
        limits=limits,
        notes=(
            *special.notes,
            *_framing_notes(pieces, files, add_bos=add_bos, add_eos=add_eos),
            *template_notes,
            *row_notes,
            *_padding_notes(ids, vocab_size),
            *_end_notes(tokens, types),
            *(limit.value for limit in limits),
        ),
    )


def read_pieces(files: TokenizerFiles) -> Pieces:
    """The merging part of the tokenizer. Raises as read_vocab does."""
    tokenizer = TokenizerJson.of(files)
    if tokenizer is not None and tokenizer.is_byte_level:
        return read_byte_level(tokenizer)
    if files.sentencepiece is not None:
        return read_sentencepiece_model(files, tokenizer)
    if tokenizer is not None:
        return read_sentencepiece_json(tokenizer)
    found = next((name for name in _UNREAD if any(files.directory.glob(name))), None)
    raise TokenizerError(
        f"{files.directory} holds neither {TOKENIZER} nor {SENTENCEPIECE}, nor {VOCAB} with {MERGES}"
        + (f"; it holds {_UNREAD[found]}" if found else ""),
        "download the tokenizer too; other forms become tokenizer.json with transformers: "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...)",
    )


def chat_template(files: TokenizerFiles) -> tuple[str | None, tuple[str, ...]]:
    """The chat template and what was left out: a file of its own counts before tokenizer_config.json.

    Raises:
        TokenizerError: several are named and none is the default, or it is not jinja.
    """
    template, notes = _default_template(files)
    if template is not None:
        ChatTemplate(template)
    return template, notes


def _default_template(files: TokenizerFiles) -> tuple[str | None, tuple[str, ...]]:
    stated = files.config.get("chat_template") if files.chat_template is None else files.chat_template
    if stated is None or isinstance(stated, str):
        return stated, ()
    if isinstance(stated, list):
        stated = {entry.get("name"): entry.get("template") for entry in stated if isinstance(entry, dict)}
    default = stated.get("default")
    if not isinstance(default, str):
        raise TokenizerError(
            f"{files.path(CONFIG)}: chat_template names several templates and none is the default",
            "put the template into chat_template.jinja",
        )
    others = [name for name in stated if name != "default"]
    if not others:
        return default, ()
    return default, (f"of the chat templates the default was taken, and left out: {others}",)


def token_type(pieces: Pieces, token: int, added: AddedToken | None) -> TokenType:
    """What a token is (llama.cpp conversion/base.py, get_vocab_base and _create_vocab_sentencepiece)."""
    own = pieces.types.get(token, TokenType.NORMAL)
    if added is None or own is TokenType.UNKNOWN:
        return own
    return TokenType.CONTROL if added.special or added.looks_special else TokenType.USER_DEFINED


def _strips_after_special(
    files: TokenizerFiles, added: Mapping[int, AddedToken], types: Sequence[TokenType], tokens: Sequence[str]
) -> bool:
    """Whether white space after special tokens is taken away, as Phi-3's files have it.

    Raises:
        TokenizerError: after some it is and after others not, in another way than llama.cpp's.
    """
    stripping = {token.content: token for token in added.values() if token.strips_after}
    if not stripping:
        return False
    matched = {text for text, kind in zip(tokens, types, strict=True) if kind in MATCHED_IN_TEXT}
    odd = (stripping.keys() ^ (matched - NEVER_STRIPPING)) - {STRIPPED_END}
    if odd or not {STRIPPED_END, *NEVER_STRIPPING} <= set(tokens):
        text, token = next(iter(stripping.items()))
        raise TokenizerError(
            f"{files.path(token.file)}: the added token {text!r} has rstrip = true and others differ "
            f"({', '.join(sorted(odd)[:3])}); llama.cpp takes white space away after all special tokens of a "
            "Phi-3 vocabulary, or after none",
            "set rstrip to false where the model does not depend on it",
        )
    return True


def _stripping_limits(added: Mapping[int, AddedToken], strips: bool) -> tuple[Limit, ...]:
    kept = not any(token.content == STRIPPED_END and token.strips_after for token in added.values())
    return (Limit.STRIPPED_END,) if strips and kept else ()


def _columns(
    pieces: Pieces, added: Mapping[int, AddedToken], ids: Mapping[str, int], size: int
) -> tuple[list[str], list[TokenType], list[float]]:
    """Texts, types and scores by id, with "[PADn]" where there is no token (as get_vocab_base names them)."""
    tokens = [f"[PAD{token}]" for token in range(size)]
    types = [TokenType.UNUSED] * size
    scores = [ADDED_SCORE] * size
    for text, token in ids.items():
        tokens[token] = text
        types[token] = token_type(pieces, token, added.get(token))
        scores[token] = pieces.scores.get(token, 0.0 if text in pieces.ids else ADDED_SCORE)
    return tokens, types, scores


def _with_rows(
    files: TokenizerFiles, added: Mapping[int, AddedToken], size: int, template: str
) -> tuple[dict[int, AddedToken], tuple[str, ...]]:
    """The added tokens that the embedding has rows for, and a note on those that it does without.

    It does without a padding token, and without one that no text of a conversation brings up (Gemma 3's
    "<image_soft_token>" beside a text model): those are left out. Any other stays, and is refused later.
    """
    needed = {text for role, (text, _) in named_roles(files).items() if role in ("bos", "eos")}
    idle = {
        id: token
        for id, token in added.items()
        if id >= size and token.special and token.content not in needed and token.content not in template
    }
    notes = tuple(
        f"{token.file}: the token {id} {token.content!r} has no row in the embedding and was left out"
        for id, token in idle.items()
    )
    return {id: token for id, token in added.items() if id not in idle}, notes


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
        hole = next(token for token in range(highest) if token not in taken)
        raise TokenizerError(
            f"{file}: no token has the id {hole}, and others have higher ones (up to {highest})",
            "the vocabulary is not whole: download the tokenizer again",
        )


def _own_ids(pieces: Pieces, ids: Mapping[str, int]) -> dict[str, int]:
    """Roles that the tokenizer itself fills: by number, or by what it puts around a text."""
    before, after = pieces.around or ((), ())
    shown = {role: ids.get(texts[0], -1) for role, texts in (("bos", before), ("eos", after)) if texts}
    return {**shown, **pieces.own_ids}


def _around(pieces: Pieces, files: TokenizerFiles, roles: Mapping[str, str]) -> tuple[bool, bool]:
    """Whether BOS and EOS are put around a text.

    transformers 5 takes this from tokenizer.json where there is one, and add_bos_token and
    add_eos_token only where there is none (tokenization_utils_base.py, `_from_pretrained`).
    """
    if pieces.around is None:  # the defaults are those that LlamaTokenizer documents
        return bool(files.config.get("add_bos_token", True)), bool(files.config.get("add_eos_token", False))
    before, after = pieces.around
    if before not in ((), (roles.get("bos"),)) or after not in ((), (roles.get("eos"),)):
        raise TokenizerError(
            f"{files.path(files.tokenizer_file)}: post_processor puts {list(before)} before a text and "
            f"{list(after)} after it; llama.cpp can put BOS ({roles.get('bos')!r}) and "
            f"EOS ({roles.get('eos')!r})",
            f"make bos_token and eos_token in {CONFIG} agree with it",
        )
    return bool(before), bool(after)


def _framing_notes(pieces: Pieces, files: TokenizerFiles, **taken: bool) -> tuple[str, ...]:
    if pieces.around is None:
        return ()
    stated = {key: files.config.get(f"{key}_token") for key in taken}
    return tuple(
        f"{CONFIG}: {key}_token = {stated[key]} contradicts the post_processor of {TOKENIZER}, which was "
        "followed, as transformers does"
        for key in taken
        if stated[key] not in (None, taken[key])
    )


def _padding_notes(ids: Mapping[str, int], size: int) -> tuple[str, ...]:
    missing = size - len(ids)
    if not missing:
        return ()
    return (
        f"the tokenizer has {len(ids)} tokens and the embedding {size} rows: "
        f"{missing} unused tokens fill it up, [PAD{len(ids)}] to [PAD{size - 1}]",
    )


def _end_notes(tokens: list[str], types: list[TokenType]) -> tuple[str, ...]:
    """llama.cpp ends an answer at these texts, whatever the model means by them."""
    return tuple(
        f"token {token} {text!r} is plain text in the source; llama.cpp ends an answer at it"
        for token, text in enumerate(tokens)
        if text in ENDS_BY_TEXT | ENDS_AS_FILLER and types[token] not in MATCHED_IN_TEXT
    )
