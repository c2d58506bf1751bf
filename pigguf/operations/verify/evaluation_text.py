"""The text whose predictions `pigguf verify` compares, and the depths at which it compares them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text
from pigguf.errors import ContextOverflow, TextError, UsageError
from pigguf.rope import Positions
from pigguf.tokenizer import ROUNDTRIP_TEXTS, Vocab
from pigguf.tokenizer.known_differences import remove_differing_text

MIN_DEPTH = 16
_CHARACTERS_PER_TOKEN = 16  # at most, for nearly all texts


class EvaluationText(NamedTuple):
    """The text that is evaluated.

    Attributes:
        name: What messages call it.
        text: The characters of which the tokens were made.
        tokens: Its tokens by the checkpoint's tokenizer, with BOS first if the model wants it.
    """

    name: str
    text: str
    tokens: list[int]


def max_depth(depths: Sequence[int] | None, tokens: int, context_length: int) -> int:
    """Return how many tokens are to be evaluated.

    Args:
        depths: The depths given, or None.
        tokens: The most tokens to evaluate without depths.
        context_length: The checkpoint's context length.

    Raises:
        UsageError: A depth or the number of tokens is too small.
        ContextOverflow: A depth is beyond the context length.
    """
    if depths is None:
        if tokens < MIN_DEPTH:
            raise UsageError(f"{tokens} tokens are too few to compare", f"give `tokens={MIN_DEPTH}` or more")
        return min(tokens, context_length)
    if not depths or min(depths) < MIN_DEPTH:
        raise UsageError(
            f"a depth of {min(depths, default=0)} is too small to compare", f"give {MIN_DEPTH} or more"
        )
    if max(depths) > context_length:
        raise ContextOverflow(
            f"the depth {max(depths):,} is beyond the checkpoint's context of {context_length:,} tokens",
            f"compare at {context_length:,} tokens or less",
        )
    return max(depths)


def default_depths(rope: Positions, tokens: int) -> list[int]:
    """Return the default depths: a quarter, half and end of the original window, half and end of the new one.

    Args:
        rope: The windows.
        tokens: How many tokens there are to evaluate.
    """
    extended = min(rope.context_length, tokens)
    original = min(rope.original_context, extended)
    depths = {original // 4, original // 2, original, extended}
    if extended // 2 > original:
        depths.add(extended // 2)
    return sorted(depth for depth in depths if depth >= min(MIN_DEPTH, extended))


def read_evaluation_text(
    path: str | os.PathLike[str] | None, count: int, vocab: Vocab, encode: Callable[[str], list[int]]
) -> EvaluationText:
    """Return the first `count` tokens of a text, or all that it has.

    Args:
        path: A file of UTF-8 text; None for samples in many languages.
        count: How many tokens are to be evaluated.
        vocab: The checkpoint's vocabulary.
        encode: The checkpoint's own tokenizer.

    Raises:
        ReadError: The system refuses to read the file.
        UsageError: It is not UTF-8.
    """
    if path is None:
        name, whole = "samples in many languages", _mixed_samples(vocab, _CHARACTERS_PER_TOKEN * count)
    else:
        name = str(path)
        try:
            whole = decode_text(Path(path).read_bytes(), name)
        except OSError as error:
            raise read_error(Path(path), error) from error
    bos = [vocab.special_ids["bos"]] if vocab.add_bos else []
    # a part of a long text is nearly always enough, and costs less to tokenize
    for text in (whole[: _CHARACTERS_PER_TOKEN * count], whole):
        tokens = [*bos, *encode(text)][:count]
        if len(tokens) == count:
            break
    return EvaluationText(name, text, tokens)


def _mixed_samples(vocab: Vocab, characters: int) -> str:
    """Return sentences in many languages and lines of code, repeated in a new order each time."""
    texts = remove_differing_text(ROUNDTRIP_TEXTS, vocab.known_differences)
    lines = [line for line in texts if line.isprintable() and " " in line.strip()]
    order = random.Random(0)
    text = ""
    while len(text) < characters:
        text += "\n".join(order.sample(lines, len(lines))) + "\n"
    return text[:characters]


def check_long_enough(text: EvaluationText, count: int) -> None:
    """Raise TextError if a text has fewer than `count` tokens."""
    if len(text.tokens) < count:
        raise TextError(
            f"{text.name} has {len(text.tokens):,} tokens, and {count:,} are needed",
            "give a longer text, or smaller `depths`",
        )
