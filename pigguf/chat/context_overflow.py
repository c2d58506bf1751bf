"""Overflow policies: what a conversation gives up when it has outgrown its context window.

    error      nothing: the question is refused, with token counts
    shift      drop the oldest turns, as few as needed
    summarize  let the model summarize the oldest turns into one

A policy gets the conversation with the question last, and returns a shorter one, or None if it cannot shorten
it. A turn is a question with its answer, which are dropped together. The system prompt and the question
always stay. Not here: the KV cache and the errors (conversation.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

OverflowPolicy = Literal["error", "shift", "summarize"]

MAX_SUMMARY_TOKENS = 256
"""The most tokens of a summary; in a small context window, an eighth of it."""

SUMMARY_REQUEST = (
    "Summarize our conversation so far in a few sentences. Keep names, numbers, and what was decided."
)
"""The request to the model for a summary; from then on it stands before the summary in the conversation."""


@dataclass(frozen=True)
class OverflowBudget:
    """What a policy may use.

    Attributes:
        context_length: the context window in tokens.
        max_prompt_tokens: the most tokens of the conversation that leave room for its answer.
        count_tokens: returns how many tokens a conversation has.
        generate: returns the model's answer to a conversation, limited to a number of tokens.
    """

    context_length: int
    max_prompt_tokens: int
    count_tokens: Callable[[Sequence[dict[str, str]]], int]
    generate: Callable[[Sequence[dict[str, str]], int], str]


@dataclass(frozen=True)
class ShortenedConversation:
    """A conversation that a policy has shortened.

    Attributes:
        messages: the conversation, the question last.
        notice: what was done, for the user.
        shifted_tokens: tokens that were removed from its middle; 0 if the rest is not unchanged.
    """

    messages: list[dict[str, str]]
    notice: str
    shifted_tokens: int = 0


def error(messages: Sequence[dict[str, str]], budget: OverflowBudget) -> ShortenedConversation | None:
    """Return None: nothing is given up."""
    return None


def shift(messages: Sequence[dict[str, str]], budget: OverflowBudget) -> ShortenedConversation | None:
    """Drop the oldest turns, as few as needed."""
    system, turns, question = _split_turns(messages)

    def without(count: int) -> list[dict[str, str]]:
        return [*system, *chain(*turns[count:]), *question]

    dropped = bisect_left(
        range(len(turns) + 1),
        True,
        key=lambda count: budget.count_tokens(without(count)) <= budget.max_prompt_tokens,
    )
    if not 0 < dropped <= len(turns):
        return None
    rest = without(dropped)
    tokens = budget.count_tokens(messages) - budget.count_tokens(rest)
    notice = f"The context window is full: {_oldest_turns(dropped)} dropped ({tokens:,} tokens)."
    return ShortenedConversation(rest, notice, tokens)


def summarize(messages: Sequence[dict[str, str]], budget: OverflowBudget) -> ShortenedConversation | None:
    """Replace the oldest turns by the model's summary of them.

    All turns except the last are summarized, the last one too if it has to be; or as many as fit into one
    prompt.
    """
    system, turns, question = _split_turns(messages)
    request = {"role": "user", "content": SUMMARY_REQUEST}
    max_tokens = min(MAX_SUMMARY_TOKENS, budget.max_prompt_tokens // 8)

    if budget.count_tokens([*system, request, *question]) > budget.max_prompt_tokens:
        return None

    def summary_prompt(count: int) -> list[dict[str, str]]:
        return [*system, *chain(*turns[:count]), request]

    def is_too_long(count: int) -> bool:
        return budget.count_tokens(summary_prompt(count)) + max_tokens > budget.context_length

    with_last_turn = [*system, request, *chain(*turns[-1:]), *question]
    last_turn_fits = budget.count_tokens(with_last_turn) + max_tokens <= budget.max_prompt_tokens
    wanted = len(turns) - (last_turn_fits and len(turns) > 1)
    count = bisect_left(range(1, wanted + 1), True, key=is_too_long)
    summary = budget.generate(summary_prompt(count), max_tokens) if count else ""
    if not summary:
        return None
    rest = [*system, request, {"role": "assistant", "content": summary}, *chain(*turns[count:]), *question]
    before, after = budget.count_tokens(messages), budget.count_tokens(rest)
    if after >= before:
        return None
    notice = f"The context window is full: {_oldest_turns(count)} summarized, {before:,} tokens to {after:,}."
    return ShortenedConversation(rest, notice)


OVERFLOW_POLICIES: dict[
    OverflowPolicy, Callable[[Sequence[dict[str, str]], OverflowBudget], ShortenedConversation | None]
] = {
    "error": error,
    "shift": shift,
    "summarize": summarize,
}


def system_messages(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return the messages before the first question."""
    return _split_turns(messages)[0]


def _split_turns(
    messages: Sequence[dict[str, str]],
) -> tuple[list[dict[str, str]], list[list[dict[str, str]]], list[dict[str, str]]]:
    """Return the messages before the first question, the turns, and the question that is last."""
    starts = [index for index, message in enumerate(messages) if message["role"] == "user"]
    if not starts:
        return list(messages), [], []
    turns = [
        list(messages[start:stop]) for start, stop in zip(starts, [*starts[1:], len(messages)], strict=True)
    ]
    return list(messages[: starts[0]]), turns[:-1], turns[-1]


def _oldest_turns(count: int) -> str:
    return "the oldest turn was" if count == 1 else f"the oldest {count:,} turns were"
