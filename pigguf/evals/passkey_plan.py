"""The plan of a passkey test: at which depths passkeys are hidden, and at which distances they are asked for.

    plan = plan_passkey_test(PasskeyPrompts(model, "paper"), "12345", window=32768, distances=32, depths=4)
    for depth in plan.depths:
        for distance in plan.distances_from(depth): ...

The depth of a passkey is the number of tokens before it, its distance the number of tokens from its first
digit to the end of the prompt. Both are on one grid, the window divided by `distances`, rounded down to whole
sentences of filler. Every prompt fits into the window together with its answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import UsageError
from pigguf.evals.passkey_prompts import PasskeyPrompts

_SAMPLE_SENTENCES = 50  # to estimate how many sentences of filler make a number of tokens


@dataclass(frozen=True)
class PasskeyPosition:
    """A depth or a distance on the grid.

    Attributes:
        grid_step: the index on the grid.
        grid_tokens: the tokens of the grid's step.
        n_tokens: the tokens that whole sentences of filler make, at most grid_tokens.
        n_sentences: the number of those sentences.
    """

    grid_step: int
    grid_tokens: int
    n_tokens: int
    n_sentences: int


@dataclass(frozen=True)
class PasskeyPlan:
    """All depths and distances of a passkey test.

    Attributes:
        depths: the tokens before a passkey, ascending; the first depth has no filler.
        distances: the tokens from a passkey's first digit to the end of the prompt, ascending.
        n_question_tokens: the tokens at the end of a prompt that it does not share with the next longer one.
    """

    depths: tuple[PasskeyPosition, ...]
    distances: tuple[PasskeyPosition, ...]
    n_question_tokens: int

    def distances_from(self, depth: PasskeyPosition) -> tuple[PasskeyPosition, ...]:
        """Return the distances that fit into the window after a passkey at this depth."""
        return self.distances[: len(self.distances) - depth.grid_step]

    def prefill_tokens(self, depth: PasskeyPosition) -> int:
        """Return the tokens to prefill from the passkey on for all distances, without the answers."""
        distances = self.distances_from(depth)
        return distances[-1].n_tokens + (len(distances) - 1) * self.n_question_tokens


def plan_passkey_test(
    prompts: PasskeyPrompts, key: str, window: int, distances: int, depths: int
) -> PasskeyPlan:
    """Plan the depths and distances for prompts of at most `window` tokens, answers included.

    Args:
        prompts: builds the prompts.
        key: the passkey that takes the most tokens of all that will be used.
        window: the window in tokens.
        distances: the number of distances.
        depths: the number of depths.

    Raises:
        UsageError: if the counts are out of range, or the window is too small for them.
    """
    if not 1 <= depths <= distances:
        raise UsageError(
            f"{depths} depths on a grid of {distances} distances",
            "give at least 1 depth, and at most as many as there are distances",
        )
    answer = prompts.max_answer_tokens
    grid = [window * step // distances for step in range(distances + 1)]
    depth_steps = [distances * depth // depths for depth in range(depths)]  # whole steps of the grid
    header, rest = _tokens_around_key(prompts, key, 0, 0)

    def tokens_before(n_sentences: int) -> int:
        return _tokens_around_key(prompts, key, n_sentences, 0)[0]

    def tokens_after(n_sentences: int) -> int:
        return _tokens_around_key(prompts, key, 0, n_sentences)[1]

    # the longest distance leaves room for the header; each later depth, for the answers at all its distances
    limits = [min(grid[step], window - answer - header) for step in range(1, distances + 1)]
    after = [_fit_sentences(tokens_after, limit) for limit in limits]
    before = [(header, 0), *(_fit_sentences(tokens_before, grid[step] - answer) for step in depth_steps[1:])]
    for name, fits in (("distances", after), ("depths", before)):
        n_tokens = [tokens for tokens, _ in fits]
        if n_tokens[0] == 0 or len(set(n_tokens)) < len(n_tokens):
            raise UsageError(
                f"a window of {window:,} tokens is too small for {len(fits)} {name}: header, passkey and "
                f"question alone take {header + rest}, an answer up to {answer}",
                f"use fewer {name}, or a longer window",
            )
    return PasskeyPlan(
        depths=tuple(
            PasskeyPosition(step, grid[step], *fit) for step, fit in zip(depth_steps, before, strict=True)
        ),
        distances=tuple(PasskeyPosition(step, grid[step], *fit) for step, fit in enumerate(after, start=1)),
        n_question_tokens=_unshared_suffix_tokens(prompts, key, after[0][1]),
    )


def _tokens_around_key(
    prompts: PasskeyPrompts, key: str, sentences_before: int, sentences_after: int
) -> tuple[int, int]:
    """Return the tokens before the passkey's first digit, and from it on.

    The first digit is where the prompt of another passkey starts to differ.
    """
    other_key = ("1" if key[0] != "1" else "2") + key[1:]
    prompt = prompts.encode(key, sentences_before, sentences_after)
    start = common_prefix_length(prompt, prompts.encode(other_key, sentences_before, sentences_after))
    return start, len(prompt) - start


def _unshared_suffix_tokens(prompts: PasskeyPrompts, key: str, n_sentences: int) -> int:
    """Return the tokens of a prompt that are not a prefix of the prompt with one more sentence of filler."""
    prompt = prompts.encode(key, 0, n_sentences)
    return len(prompt) - common_prefix_length(prompt, prompts.encode(key, 0, n_sentences + 1))


def _fit_sentences(count_tokens: Callable[[int], int], limit: int) -> tuple[int, int]:
    """Return the most tokens within `limit`, and how many sentences make them; (0, 0) if none do."""
    least = count_tokens(0)
    if least > limit:
        return 0, 0
    tokens_per_sentence = (count_tokens(_SAMPLE_SENTENCES) - least) / _SAMPLE_SENTENCES
    n_sentences = int((limit - least) / tokens_per_sentence)
    while count_tokens(n_sentences) > limit:
        n_sentences -= 1
    while count_tokens(n_sentences + 1) <= limit:
        n_sentences += 1
    return count_tokens(n_sentences), n_sentences
