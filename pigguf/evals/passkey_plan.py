"""What a passkey test asks: where keys are put, and from how far back they are asked for.

    plan = plan_passes(Prompts(model, "paper"), key="12345", window=32768, distances=32, depths=4)
    for start in plan.starts:
        for distance in plan.asked(start): ...

Contract: starts and distances lie on one grid, the window's `distances`-th parts, and come as near to it from
below as whole sentences of filler do. Every prompt fits into the window together with its answer, and is a
length of the grid or a little less. Left out: asking (passkey.py), words (wordings.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pigguf.common.numerics import common_prefix_length
from pigguf.errors import UsageError
from pigguf.evals.passkey_prompts import PasskeyPrompts

_SAMPLE = 50  # sentences, to guess how many make a length


@dataclass(frozen=True)
class PasskeyPosition:
    """Where a key is put, or asked for.

    Attributes:
        step: of the grid.
        grid: tokens, as the grid has it.
        tokens: tokens in fact.
        sentences: of filler that make them.
    """

    grid_step: int
    grid_tokens: int
    n_tokens: int
    n_sentences: int


@dataclass(frozen=True)
class PasskeyPlan:
    """All there is to ask.

    Attributes:
        starts: tokens before a key; the first has no filler.
        distances: tokens from a key's first digit to the end of the input.
        question: tokens at a prompt's end that the next one does not share.
    """

    depths: tuple[PasskeyPosition, ...]
    distances: tuple[PasskeyPosition, ...]
    n_question_tokens: int

    def distances_from(self, start: PasskeyPosition) -> tuple[PasskeyPosition, ...]:
        """The distances for which there is room behind this start."""
        return self.distances[: len(self.distances) - start.grid_step]

    def prefill_tokens(self, start: PasskeyPosition) -> int:
        """Tokens to compute from a key on, for all its distances, but for those of the answers."""
        asked = self.distances_from(start)
        return asked[-1].n_tokens + (len(asked) - 1) * self.n_question_tokens


def plan_passes(prompts: PasskeyPrompts, key: str, window: int, distances: int, depths: int) -> PasskeyPlan:
    """The plan for inputs of `window` tokens at most, answers included.

    Args:
        key: one that takes as many tokens as any that will be asked for.

    Raises:
        UsageError: counts out of range, or a window too small for so many.
    """
    if not 1 <= depths <= distances:
        raise UsageError(
            f"{depths} depths on a grid of {distances} distances",
            "take from 1 to as many depths as there are distances",
        )
    answer = prompts.max_answer_tokens
    grid = [window * step // distances for step in range(distances + 1)]
    steps = [distances * depth // depths for depth in range(depths)]  # so that inputs have the grid's lengths
    header, rest = _split(prompts, key, 0, 0)

    def before(sentences: int) -> int:
        return _split(prompts, key, sentences, 0)[0]

    def after(sentences: int) -> int:
        return _split(prompts, key, 0, sentences)[1]

    # the last distance leaves room for the header too; a later start leaves the answer's to all of its own
    limits = [min(grid[step], window - answer - header) for step in range(1, distances + 1)]
    ahead = [_longest(after, limit) for limit in limits]
    behind = [(header, 0), *(_longest(before, grid[step] - answer) for step in steps[1:])]
    for name, places in (("distances", ahead), ("depths", behind)):
        tokens = [tokens for tokens, _ in places]
        if tokens[0] == 0 or len(set(tokens)) < len(tokens):
            raise UsageError(
                f"a window of {window:,} tokens is too small for {len(places)} {name}: header, passkey and "
                f"question alone take {header + rest}, an answer up to {answer}",
                f"take fewer {name}, or a longer window",
            )
    return PasskeyPlan(
        depths=tuple(PasskeyPosition(step, grid[step], *place) for step, place in zip(steps, behind, strict=True)),
        distances=tuple(PasskeyPosition(step, grid[step], *place) for step, place in enumerate(ahead, start=1)),
        n_question_tokens=_not_shared(prompts, key, ahead[0][1]),
    )


def _split(prompts: PasskeyPrompts, key: str, before: int, after: int) -> tuple[int, int]:
    """Tokens before the key's first digit, and from it on: there a prompt of another key begins to differ."""
    another = ("1" if key[0] != "1" else "2") + key[1:]
    prompt = prompts.encode(key, before, after)
    start = common_prefix_length(prompt, prompts.encode(another, before, after))
    return start, len(prompt) - start


def _not_shared(prompts: PasskeyPrompts, key: str, sentences: int) -> int:
    """Tokens of a prompt that one with more filler does not begin with."""
    prompt = prompts.encode(key, 0, sentences)
    return len(prompt) - common_prefix_length(prompt, prompts.encode(key, 0, sentences + 1))


def _longest(tokens: Callable[[int], int], limit: int) -> tuple[int, int]:
    """The most tokens within `limit`, and the sentences of filler that make them; (0, 0) if none do."""
    least = tokens(0)
    if least > limit:
        return 0, 0
    each = (tokens(_SAMPLE) - least) / _SAMPLE
    sentences = int((limit - least) / each)
    while tokens(sentences) > limit:
        sentences -= 1
    while tokens(sentences + 1) <= limit:
        sentences += 1
    return tokens(sentences), sentences
