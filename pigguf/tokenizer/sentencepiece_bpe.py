"""Read a sentencepiece BPE (Llama 2, Mistral), llama.cpp's model "llama", from tokenizer.model or .json.

llama.cpp merges the pair whose joined text is the token with the highest score (the algorithm of
sentencepiece's src/bpe_model.cc). tokenizer.model has the scores. A tokenizer.json has ordered merges
instead, and is accepted only if they come from scores: then every split of a token into two tokens is a
merge, and the merges of a token are consecutive.

Not supported: sentencepiece's unigram algorithm and its text normalization, which llama.cpp's "llama" lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import placeholder_names
from pigguf.tokenizer.base_vocab import BaseVocab
from pigguf.tokenizer.known_differences import TokenizerDifference
from pigguf.tokenizer.sentencepiece_model import (
    ALGORITHMS,
    BPE,
    SentencePieceModel,
    parse_sentencepiece_model,
)
from pigguf.tokenizer.tokenizer_files import TOKENIZER_CONFIG, TOKENIZER_MODEL, TokenizerFiles
from pigguf.tokenizer.tokenizer_json import BYTE_TOKENS, TokenizerJson
from pigguf.tokenizer.vocab import TokenType

SPACE: Final = "▁"

REPLACE_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND_SPACE: Final = {"type": "Prepend", "prepend": SPACE}


# Gemma's files split at spaces, although their normalizer leaves none.
_SPLIT_AT_SPACES: Final = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


# (normalizer, pre_tokenizer), add_space_prefix, and how llama.cpp differs.
# Metaspace adds its space only where there is none; "first" only at the beginning of a text.
_PREFIX_RULES: Final[tuple[tuple[Any, bool, tuple[TokenizerDifference, ...]], ...]] = (
    (([PREPEND_SPACE, REPLACE_SPACES], []), True, ()),
    (([REPLACE_SPACES], []), False, ()),
    (([REPLACE_SPACES], [_SPLIT_AT_SPACES]), False, ()),
    (([], [_metaspace("never")]), False, ()),
    (([], [_metaspace("first")]), True, (TokenizerDifference.SPACE_PREFIX,)),
    (([], [_metaspace("always")]), True, (TokenizerDifference.SPACE_PREFIX,)),
)


def read_sentencepiece_model(files: TokenizerFiles, tokenizer: TokenizerJson | None) -> BaseVocab:
    """Return the base vocabulary of a tokenizer.model.

    Args:
        files: the directory's files, with a tokenizer.model.
        tokenizer: the tokenizer.json next to it, or None; its rules decide the space prefix.

    Raises:
        TokenizerError: llama.cpp does not have the model's rules, or the two files differ.
    """
    file = str(files.path(TOKENIZER_MODEL))
    model = parse_sentencepiece_model(files.sentencepiece_model or b"", file)
    _check_model(model, file)
    types = {token: TokenType(piece.type) for token, piece in enumerate(model.pieces)}
    placeholders = placeholder_names(files, [piece.text for piece in model.pieces])
    texts = [
        placeholders.get(token, _unescape_user_defined(piece.text, types[token]))
        for token, piece in enumerate(model.pieces)
    ]
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) < len(texts):
        duplicate = next(text for text in texts if texts.count(text) > 1)
        raise TokenizerError(f"{file} has the piece {duplicate!r} more than once")
    _check_null_characters(texts, file)
    if tokenizer is not None:
        _check_against_json(ids, tokenizer, file)
    add_space_prefix, differences = _space_prefix(files, model, tokenizer)
    return BaseVocab(
        model="llama",
        pre="default",
        file=file,
        ids=ids,
        types=types,
        scores={token: piece.score for token, piece in enumerate(model.pieces)},
        special_ids={"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id},
        template_tokens=tokenizer.template_tokens if tokenizer is not None else None,
        add_space_prefix=add_space_prefix,
        known_differences=(
            *differences,
            *((TokenizerDifference.SPACE_TOKENS,) if any(" " in text for text in texts) else ()),
        ),
    )


def read_sentencepiece_json(tokenizer: TokenizerJson) -> BaseVocab:
    """Return the base vocabulary of a tokenizer.json in sentencepiece's style.

    Raises:
        TokenizerError: a rule is unknown, or the merges do not come from scores.
    """
    tokenizer.require_option("dropout", None, 0.0)
    tokenizer.require_option("continuing_subword_prefix", None, "")
    tokenizer.require_option("end_of_word_suffix", None, "")
    tokenizer.require_option("ignore_merges", None, False)
    tokenizer.require_option("byte_fallback", True)
    missing = [token for token in BYTE_TOKENS if token not in tokenizer.ids]
    if missing:  # llama.cpp aborts at the first text that needs one
        raise tokenizer.error("model", f"lacks the byte tokens {missing[:3]} ...")
    add_space_prefix, differences = _space_prefix_of_json(tokenizer)
    _check_added_tokens(tokenizer)
    types = {tokenizer.ids[token]: TokenType.BYTE for token in BYTE_TOKENS}
    unknown = tokenizer.ids.get(tokenizer.model.get("unk_token") or "", -1)
    if unknown >= 0:
        types[unknown] = TokenType.UNKNOWN
    return BaseVocab(
        model="llama",
        pre="default",
        file=str(tokenizer.path),
        ids=tokenizer.ids,
        types=types,
        scores=scores_from_merges(tokenizer),
        special_ids={"unk": unknown},
        template_tokens=tokenizer.template_tokens,
        add_space_prefix=add_space_prefix,
        known_differences=differences,
    )


def scores_from_merges(tokenizer: TokenizerJson) -> dict[int, float]:
    """Return scores that give the file's merges in llama.cpp: minus the index of a token's first merge.

    Returns:
        id -> score.

    Raises:
        TokenizerError: no scores give these merges.
    """
    ids = tokenizer.ids
    order: dict[str, int] = {}
    pairs: dict[str, set[tuple[str, str]]] = {}
    last = ""
    for left, right in _order_runs_by_length(tokenizer.merges):
        joined = left + right
        if joined in order and joined != last:
            raise _no_scores_error(tokenizer, f"the merges of {joined!r} are not consecutive")
        order.setdefault(joined, len(order))
        pairs.setdefault(joined, set()).add((left, right))
        last = joined
    added = {entry.get("content") for entry in tokenizer.content.get("added_tokens") or ()}
    for text in ids.keys() - added - set(BYTE_TOKENS):
        known = pairs.get(text, set())
        if sum(1 for _ in token_splits(text, ids)) > len(known):
            missing = set(token_splits(text, ids)) - known
            raise _no_scores_error(tokenizer, f"the merge {sorted(missing)[0]} into {text!r} is missing")
    return {ids[text]: float(-index) for text, index in order.items()}


def _order_runs_by_length(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Order the merges of runs of one character by length, where that gives the same tokens.

    Gemma's merges begin with such runs, the longest left half first. A run then grows by one from its left
    end, as it does if longer runs have higher scores than shorter ones; and runs of different
    characters never merge. So they can be ordered by length, as scores need it.
    """
    end = next((at for at, pair in enumerate(merges) if len(set("".join(pair))) > 1), len(merges))
    lengths: dict[str, list[tuple[int, int]]] = {}
    for left, right in merges[:end]:
        lengths.setdefault(left[0], []).append((len(left), len(right)))
    if any(run != sorted(run, reverse=True) for run in lengths.values()):
        return merges
    return [*sorted(merges[:end], key=lambda pair: (-len("".join(pair)), pair[0][0])), *merges[end:]]


def token_splits(text: str, ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Yield every split of a text into two tokens, the shortest left one first."""
    for at in range(1, len(text)):
        if text[:at] in ids and text[at:] in ids:
            yield text[:at], text[at:]


def _no_scores_error(tokenizer: TokenizerJson, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{tokenizer.path}: model.merges cannot be expressed as scores, which llama.cpp merges by: {reason}",
        "add the tokenizer.model that this file was made from",
    )


def _unescape_user_defined(text: str, kind: TokenType) -> str:
    """Return a user-defined token with spaces, because llama.cpp matches it before it replaces spaces."""
    return text.replace(SPACE, " ") if kind is TokenType.USER_DEFINED else text


def _check_model(model: SentencePieceModel, file: str) -> None:
    """Raise for what llama.cpp's "llama" does not do."""
    if model.algorithm != BPE:
        raise TokenizerError(
            f"{file}: trainer_spec.model_type is {ALGORITHMS.get(model.algorithm, model.algorithm)}, not BPE",
            "llama.cpp runs Llama-like models with BPE vocabularies only",
        )
    if model.charsmap:
        raise TokenizerError(
            f"{file}: normalizer_spec.name = {model.normalizer} changes text before it is split, "
            "and llama.cpp does not",
            "Llama's own tokenizer has the normalizer identity",
        )
    for key, value, expected in (
        ("normalizer_spec.remove_extra_whitespaces", model.remove_extra_whitespaces, False),
        ("normalizer_spec.escape_whitespaces", model.escape_whitespaces, True),
        ("trainer_spec.treat_whitespace_as_suffix", model.whitespace_as_suffix, False),
    ):
        if value != expected:
            raise TokenizerError(f"{file}: {key} = {value} changes tokens in a way that llama.cpp lacks")
    _check_pieces(model, file)


def _check_pieces(model: SentencePieceModel, file: str) -> None:
    known = {int(kind) for kind in TokenType}
    ids = {piece.text: token for token, piece in enumerate(model.pieces)}
    for token, piece in enumerate(model.pieces):
        if piece.type not in known:
            raise TokenizerError(f"{file}: piece {token} {piece.text!r} has the unknown type {piece.type}")
        if piece.type == TokenType.UNUSED and (len(piece.text) == 1 or any(token_splits(piece.text, ids))):
            raise TokenizerError(
                f"{file}: piece {token} {piece.text!r} is marked unused; llama.cpp would use it",
                "llama.cpp ignores an unused piece only if no two other pieces make it",
            )
    texts = {piece.text for piece in model.pieces if piece.type == TokenType.BYTE}
    missing = [token for token in BYTE_TOKENS if token not in texts]
    if missing:  # llama.cpp aborts at the first text that needs one
        raise TokenizerError(
            f"{file} lacks byte tokens (byte_fallback), the first is {missing[0]}",
            "llama.cpp cannot run a sentencepiece vocabulary without them",
        )


def _check_null_characters(texts: Sequence[str], file: str) -> None:
    """Raise for U+0000 inside a piece, where llama.cpp cuts it; a piece of only that never matches."""
    for token, text in enumerate(texts):
        if text.strip("\0") and "\0" in text:
            raise TokenizerError(
                f"{file}: piece {token} {text!r} contains U+0000, where llama.cpp cuts it off"
            )


def _check_against_json(ids: Mapping[str, int], tokenizer: TokenizerJson, file: str) -> None:
    """Raise if a tokenizer.json next to the model has other ids."""
    theirs = {_replace_spaces(text): token for text, token in tokenizer.ids.items()}
    for text, token in ids.items():
        if theirs.get(_replace_spaces(text)) != token:
            raise TokenizerError(
                f"{tokenizer.path} gives {text!r} the id {theirs.get(_replace_spaces(text))} "
                f"and {file} gives it {token}",
                "these are two tokenizers: remove the one that the model was not trained with",
            )


def _replace_spaces(text: str) -> str:
    return text.replace(" ", SPACE)


def _space_prefix(
    files: TokenizerFiles, model: SentencePieceModel, tokenizer: TokenizerJson | None
) -> tuple[bool, tuple[TokenizerDifference, ...]]:
    """Return add_space_prefix and its differences, by tokenizer.json, else by LlamaTokenizer's options."""
    if tokenizer is not None:
        return _space_prefix_of_json(tokenizer)
    if not model.add_dummy_prefix or files.tokenizer_config.get("add_prefix_space") is False:
        return False, ()
    legacy = files.tokenizer_config.get("legacy")
    if legacy not in (None, True, False):
        raise TokenizerError(f"{files.path(TOKENIZER_CONFIG)}: legacy = {legacy!r} is neither true nor false")
    return True, (TokenizerDifference.SPACE_PREFIX,) if legacy is False else ()


def _space_prefix_of_json(tokenizer: TokenizerJson) -> tuple[bool, tuple[TokenizerDifference, ...]]:
    normalizers = tokenizer.steps("normalizer")
    pre_tokenizers = [_normalize_step(step) for step in tokenizer.steps("pre_tokenizer")]
    for rules, add_space_prefix, differences in _PREFIX_RULES:
        if rules == (normalizers, pre_tokenizers):
            return add_space_prefix, differences
    key = "pre_tokenizer" if pre_tokenizers else "normalizer"
    raise tokenizer.error(key, "is not one of sentencepiece's ways to replace spaces")


def _normalize_step(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a Metaspace without the key that older tokenizers wrote next to prepend_scheme."""
    return {
        key: value for key, value in step.items() if key != "add_prefix_space" or "prepend_scheme" not in step
    }


def _check_added_tokens(tokenizer: TokenizerJson) -> None:
    """Raise for added tokens that are matched in normalized text, where Prepend makes "▁<s>" of "<s>"."""
    if PREPEND_SPACE not in tokenizer.steps("normalizer"):
        return
    for entry in tokenizer.content.get("added_tokens") or ():
        if entry.get("normalized"):
            raise TokenizerError(
                f"{tokenizer.path}: the added token {entry.get('content')!r} has normalized = true, so "
                "it is only matched at the beginning of a text and after a space",
                "set normalized to false, or add the tokenizer.model that this file was made from",
            )
