"""What is read for the predictions, and at which depths they are compared."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text
from pigguf.errors import ContextOverflow, TextError, UsageError
from pigguf.rope import RopeScaling
from pigguf.tokenizer import ROUNDTRIP_TEXTS, Vocab
from pigguf.tokenizer.known_differences import remove_differing_text

MIN_DEPTH = 16
_CHARACTERS = 16  # of a text for each token that is to be read; seldom does one stand for so many


class EvaluationText(NamedTuple):
    """What is read: its name, the text, and its tokens by the checkpoint's tokenizer, BOS before them."""

    name: str
    text: str
    tokens: list[int]


def max_depth(depths: Sequence[int] | None, tokens: int, window: int) -> int:
    """How many tokens are to be read."""
    if depths is None:
        if tokens < MIN_DEPTH:
            raise UsageError(f"{tokens} tokens say nothing", f"read {MIN_DEPTH} at least")
        return min(tokens, window)
    if not depths or min(depths) < MIN_DEPTH:
        raise UsageError(f"the depth {min(depths, default=0)} says nothing", f"give {MIN_DEPTH} at least")
    if max(depths) > window:
        raise ContextOverflow(
            f"the depth {max(depths):,} is beyond the checkpoint's window of {window:,} tokens",
            f"compare at {window:,} at most",
        )
    return max(depths)


def default_depths(rope: RopeScaling, tokens: int) -> list[int]:
    extended = min(rope.context_length, tokens)
    original = min(rope.original_context, extended)
    places = {original // 4, original // 2, original, extended}
    if extended // 2 > original:
        places.add(extended // 2)
    return sorted(place for place in places if place >= min(MIN_DEPTH, extended))


def read_evaluation_text(
    path: str | os.PathLike[str] | None, count: int, vocab: Vocab, encode: Callable[[str], list[int]]
) -> EvaluationText:
    """So many tokens of a text, or all that it has."""
    if path is None:
        name, whole = "samples in many languages", _mixed_samples(vocab, _CHARACTERS * count)
    else:
        name = str(path)
        try:
            whole = decode_text(Path(path).read_bytes(), name)
        except OSError as error:
            raise read_error(Path(path), error) from error
    before = [vocab.special_ids["bos"]] if vocab.add_bos else []
    for text in (whole[: _CHARACTERS * count], whole):  # a long text costs no more than is read of it
        tokens = [*before, *encode(text)][:count]
        if len(tokens) == count:
            break
    return EvaluationText(name, text, tokens)


def _mixed_samples(vocab: Vocab, characters: int) -> str:
    """Sentences in many languages and lines of code, in an order of its own each time they come round."""
    lines = [line for line in remove_differing_text(ROUNDTRIP_TEXTS, vocab.known_differences) if line.isprintable() and " " in line.strip()]
    order = random.Random(0)
    text = ""
    while len(text) < characters:
        text += "\n".join(order.sample(lines, len(lines))) + "\n"
    return text[:characters]


def check_long_enough(text: EvaluationText, count: int) -> None:
    if len(text.tokens) < count:
        raise TextError(
            f"{text.name} has {len(text.tokens):,} tokens, and {count:,} are to be read",
            "give a longer text, or smaller --depths",
        )
