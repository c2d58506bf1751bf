"""Sentencepiece BPE (Llama 2, Mistral): llama.cpp's model "llama", from tokenizer.model or tokenizer.json.

llama.cpp merges the neighbours whose joined text is a token with the highest score (the algorithm of
sentencepiece's src/bpe_model.cc). tokenizer.model holds the scores. A tokenizer.json holds merges in
order instead, and is read only where they come from scores: then every way to halve a token is a
merge, and a token's merges stand together.

Left out: sentencepiece's unigram algorithm and its text normalization, which llama.cpp's "llama" lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from pigguf.errors import TokenizerError
from pigguf.tokenizer.added_tokens import renamed_pieces
from pigguf.tokenizer.known_differences import Limit
from pigguf.tokenizer.sentencepiece_model import ALGORITHMS, BPE, SentencePieceModel, read_model
from pigguf.tokenizer.tokenizer_files import CONFIG, SENTENCEPIECE, TokenizerFiles
from pigguf.tokenizer.tokenizer_json import BYTE_TOKENS, TokenizerJson
from pigguf.tokenizer.vocab import TokenType
from pigguf.tokenizer.vocab_entries import Pieces

SPACE: Final = "▁"

REPLACE_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND_SPACE: Final = {"type": "Prepend", "prepend": SPACE}


# Gemma's files split at spaces, of which their normalizer has left none.
_SPLIT_AT_SPACES: Final = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def _metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": False}


# (normalizer, pre_tokenizer) -> whether a text gets a space before it, and how far llama.cpp agrees.
# Metaspace puts its space only where none is; "first" only before the text's beginning.
_PREFIX_RULES: Final[tuple[tuple[Any, bool, tuple[Limit, ...]], ...]] = (
    (([PREPEND_SPACE, REPLACE_SPACES], []), True, ()),
    (([REPLACE_SPACES], []), False, ()),
    (([REPLACE_SPACES], [_SPLIT_AT_SPACES]), False, ()),
    (([], [_metaspace("never")]), False, ()),
    (([], [_metaspace("first")]), True, (Limit.SPACE_PREFIX,)),
    (([], [_metaspace("always")]), True, (Limit.SPACE_PREFIX,)),
)


def read_sentencepiece_model(files: TokenizerFiles, tokenizer: TokenizerJson | None) -> Pieces:
    """The pieces of a tokenizer.model.

    Args:
        files: the directory's files; tokenizer.model is among them.
        tokenizer: the tokenizer.json beside it, or None; its rules say how text begins.

    Raises:
        TokenizerError: llama.cpp has nothing like the model, or the two files differ.
    """
    file = str(files.path(SENTENCEPIECE))
    model = read_model(files.sentencepiece or b"", file)
    _check_model(model, file)
    types = {token: TokenType(piece.type) for token, piece in enumerate(model.pieces)}
    renamed = renamed_pieces(files, [piece.text for piece in model.pieces])
    texts = [
        renamed.get(token, _input_text(piece.text, types[token])) for token, piece in enumerate(model.pieces)
    ]
    ids = {text: token for token, text in enumerate(texts)}
    if len(ids) < len(texts):
        twin = next(text for text in texts if texts.count(text) > 1)
        raise TokenizerError(f"{file} holds the piece {twin!r} more than once")
    _check_nul(texts, file)
    if tokenizer is not None:
        _check_against_json(ids, tokenizer, file)
    add_space_prefix, limits = _prefix(files, model, tokenizer)
    return Pieces(
        model="llama",
        pre="default",
        file=file,
        ids=ids,
        types=types,
        scores={token: piece.score for token, piece in enumerate(model.pieces)},
        own_ids={"bos": model.bos_id, "eos": model.eos_id, "unk": model.unk_id, "pad": model.pad_id},
        around=tokenizer.around if tokenizer is not None else None,
        add_space_prefix=add_space_prefix,
        limits=(
            *limits,
            *((Limit.SPACE_TOKENS,) if any(" " in text for text in texts) else ()),
        ),
    )


def read_sentencepiece_json(tokenizer: TokenizerJson) -> Pieces:
    """The pieces of a tokenizer.json in sentencepiece's style.

    Raises:
        TokenizerError: a rule is not known, or the merges do not come from scores.
    """
    tokenizer.expect("dropout", None, 0.0)
    tokenizer.expect("continuing_subword_prefix", None, "")
    tokenizer.expect("end_of_word_suffix", None, "")
    tokenizer.expect("ignore_merges", None, False)
    tokenizer.expect("byte_fallback", True)
    missing = [token for token in BYTE_TOKENS if token not in tokenizer.ids]
    if missing:  # llama.cpp ends the process at the first text that needs one
        raise tokenizer.refuse("model", f"lacks the byte tokens {missing[:3]} ...")
    add_space_prefix, limits = _json_prefix(tokenizer)
    _check_added_tokens(tokenizer)
    types = {tokenizer.ids[token]: TokenType.BYTE for token in BYTE_TOKENS}
    unknown = tokenizer.ids.get(tokenizer.model.get("unk_token") or "", -1)
    if unknown >= 0:
        types[unknown] = TokenType.UNKNOWN
    return Pieces(
        model="llama",
        pre="default",
        file=str(tokenizer.path),
        ids=tokenizer.ids,
        types=types,
        scores=scores_from_merges(tokenizer),
        own_ids={"unk": unknown},
        around=tokenizer.around,
        add_space_prefix=add_space_prefix,
        limits=limits,
    )


def scores_from_merges(tokenizer: TokenizerJson) -> dict[int, float]:
    """Scores under which llama.cpp merges as the file's merges say: minus the place of a token's first merge.

    Raises:
        TokenizerError: no scores can do that.
    """
    ids = tokenizer.ids
    order: dict[str, int] = {}
    halves: dict[str, set[tuple[str, str]]] = {}
    last = ""
    for left, right in _runs_by_length(tokenizer.merges):
        joined = left + right
        if joined in order and joined != last:
            raise _no_scores(tokenizer, f"the merges of {joined!r} do not stand together")
        order.setdefault(joined, len(order))
        halves.setdefault(joined, set()).add((left, right))
        last = joined
    added = {entry.get("content") for entry in tokenizer.content.get("added_tokens") or ()}
    for text in ids.keys() - added - set(BYTE_TOKENS):
        known = halves.get(text, set())
        if sum(1 for _ in splits(text, ids)) > len(known):
            lacking = set(splits(text, ids)) - known
            raise _no_scores(tokenizer, f"the merge {sorted(lacking)[0]} into {text!r} is not among them")
    return {ids[text]: float(-place) for text, place in order.items()}


def _runs_by_length(merges: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Gemma's merges begin with runs of one character, those of the longest left half first.

    A run then grows one by one from its left end, as it does where longer runs count more than shorter
    ones; and runs of different characters never meet. So they may be ordered by their length.
    """
    end = next((at for at, pair in enumerate(merges) if len(set("".join(pair))) > 1), len(merges))
    sizes: dict[str, list[tuple[int, int]]] = {}
    for left, right in merges[:end]:
        sizes.setdefault(left[0], []).append((len(left), len(right)))
    if any(run != sorted(run, reverse=True) for run in sizes.values()):
        return merges
    return [*sorted(merges[:end], key=lambda pair: (-len("".join(pair)), pair[0][0])), *merges[end:]]


def splits(text: str, ids: Mapping[str, int]) -> Iterator[tuple[str, str]]:
    """Every way to halve a text into two tokens, the shortest left half first."""
    for at in range(1, len(text)):
        if text[:at] in ids and text[at:] in ids:
            yield text[:at], text[at:]


def _no_scores(tokenizer: TokenizerJson, reason: str) -> TokenizerError:
    return TokenizerError(
        f"{tokenizer.path}: model.merges have no equal in scores, by which llama.cpp merges: {reason}",
        "bring the tokenizer.model that this file was made from",
    )


def _input_text(text: str, kind: TokenType) -> str:
    """llama.cpp looks for user-defined tokens in the text before it marks spaces."""
    return text.replace(SPACE, " ") if kind is TokenType.USER_DEFINED else text


def _check_model(model: SentencePieceModel, file: str) -> None:
    """Refuse what llama.cpp's "llama" does not do, instead of running it wrongly."""
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
        if piece.type == TokenType.UNUSED and (len(piece.text) == 1 or any(splits(piece.text, ids))):
            raise TokenizerError(
                f"{file}: piece {token} {piece.text!r} is marked unused; llama.cpp would use it",
                "llama.cpp keeps clear of an unused piece only where no two others make it",
            )
    texts = {piece.text for piece in model.pieces if piece.type == TokenType.BYTE}
    missing = [token for token in BYTE_TOKENS if token not in texts]
    if missing:  # llama.cpp ends the process at the first text that needs one
        raise TokenizerError(
            f"{file} has no byte tokens (byte_fallback): {missing[0]} is the first to be missing",
            "llama.cpp cannot run a sentencepiece vocabulary without them",
        )


def _check_nul(texts: Sequence[str], file: str) -> None:
    """llama.cpp reads a token's text up to U+0000; a piece of that alone is never found."""
    for token, text in enumerate(texts):
        if text.strip("\0") and "\0" in text:
            raise TokenizerError(
                f"{file}: piece {token} {text!r} holds U+0000, at which llama.cpp cuts it off"
            )


def _check_against_json(ids: Mapping[str, int], tokenizer: TokenizerJson, file: str) -> None:
    """A tokenizer.json made from the model has its pieces under the same ids."""
    theirs = {_marked(text): token for text, token in tokenizer.ids.items()}
    for text, token in ids.items():
        if theirs.get(_marked(text)) != token:
            raise TokenizerError(
                f"{tokenizer.path} gives {text!r} the id {theirs.get(_marked(text))} "
                f"and {file} gives it {token}",
                "they are two tokenizers: remove the one that the model was not trained with",
            )


def _marked(text: str) -> str:
    return text.replace(" ", SPACE)


def _prefix(
    files: TokenizerFiles, model: SentencePieceModel, tokenizer: TokenizerJson | None
) -> tuple[bool, tuple[Limit, ...]]:
    """tokenizer.json's rules where there are some, else LlamaTokenizer's options in tokenizer_config.json."""
    if tokenizer is not None:
        return _json_prefix(tokenizer)
    if not model.add_dummy_prefix or files.config.get("add_prefix_space") is False:
        return False, ()
    legacy = files.config.get("legacy")
    if legacy not in (None, True, False):
        raise TokenizerError(f"{files.path(CONFIG)}: legacy = {legacy!r} is neither true nor false")
    return True, (Limit.SPACE_PREFIX,) if legacy is False else ()


def _json_prefix(tokenizer: TokenizerJson) -> tuple[bool, tuple[Limit, ...]]:
    normalizers = tokenizer.steps("normalizer")
    pre_tokenizers = [_essence(step) for step in tokenizer.steps("pre_tokenizer")]
    for rules, add_space_prefix, limits in _PREFIX_RULES:
        if rules == (normalizers, pre_tokenizers):
            return add_space_prefix, limits
    key = "pre_tokenizer" if pre_tokenizers else "normalizer"
    raise tokenizer.refuse(key, "is not one of the ways in which sentencepiece marks spaces")


def _essence(step: Mapping[str, Any]) -> Mapping[str, Any]:
    """A Metaspace without the key that tokenizers used to write beside prepend_scheme."""
    return {
        key: value for key, value in step.items() if key != "add_prefix_space" or "prepend_scheme" not in step
    }


def _check_added_tokens(tokenizer: TokenizerJson) -> None:
    """A Prepend normalizer also turns "<s>" into "▁<s>" where it is looked for in normalized text."""
    if PREPEND_SPACE not in tokenizer.steps("normalizer"):
        return
    for entry in tokenizer.content.get("added_tokens") or ():
        if entry.get("normalized"):
            raise TokenizerError(
                f"{tokenizer.path}: the added token {entry.get('content')!r} has normalized = true, by which "
                "it is only found at the beginning of a text and after a space",
                "set normalized to false, or bring the tokenizer.model that this file was made from",
            )
