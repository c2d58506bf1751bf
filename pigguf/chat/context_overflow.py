"""What to do when a conversation has outgrown its window: one registry of policies.

    error      nothing: the question is refused, with token counts
    shift      leave out the oldest turns, as few as it takes
    summarize  let the model condense the oldest turns into one

Contract: a policy gets the conversation with the question last, and gives one that takes less of the
window, or None where it can give nothing up. A turn is a question with its answer; they go together. The
system prompt and the question always stay. What was done is said in `notice`.
Left out: what becomes of the cache, and refusals (chat/conversation.py).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

OverflowPolicy = Literal["error", "shift", "summarize"]

MAX_SUMMARY_TOKENS = 256
"""Most tokens of a summary; an eighth of a small window."""

SUMMARY_REQUEST = "Summarize our conversation so far in a few sentences. Keep names, numbers, and what was decided."
"""What the model is asked for a summary, and what stands before it in the conversation from then on."""


@dataclass(frozen=True)
class OverflowBudget:
    """What a policy has to do with.

    Attributes:
        window: all of it, in tokens.
        tokens: most tokens of the conversation, so that its answer has room.
        count: how many a conversation takes.
        write: the model's own answer to a conversation, of so many tokens at most.
    """

    context_length: int
    max_prompt_tokens: int
    count_tokens: Callable[[Sequence[dict[str, str]]], int]
    generate: Callable[[Sequence[dict[str, str]], int], str]


@dataclass(frozen=True)
class ShortenedConversation:
    """A conversation that takes less of the window than it did.

    Attributes:
        messages: the conversation, the question last.
        notice: what was done, in words.
        moved: tokens that were taken out of its middle, the rest being as it was; 0 where it is not.
    """

    messages: list[dict[str, str]]
    notice: str
    shifted_tokens: int = 0


def error(messages: Sequence[dict[str, str]], space: OverflowBudget) -> ShortenedConversation | None:
    """Give nothing up."""
    return None


def shift(messages: Sequence[dict[str, str]], space: OverflowBudget) -> ShortenedConversation | None:
    """Leave out the oldest turns, as few as it takes."""
    head, turns, question = _parts(messages)

    def without(count: int) -> list[dict[str, str]]:
        return [*head, *chain(*turns[count:]), *question]

    fewest = bisect_left(range(len(turns) + 1), True, key=lambda n: space.count_tokens(without(n)) <= space.max_prompt_tokens)
    if not 0 < fewest <= len(turns):
        return None
    rest = without(fewest)
    dropped = space.count_tokens(messages) - space.count_tokens(rest)
    return ShortenedConversation(rest, f"The window is full: {_oldest(fewest)} left out ({dropped:,} tokens).", dropped)


def summarize(messages: Sequence[dict[str, str]], space: OverflowBudget) -> ShortenedConversation | None:
    """Let the model condense the oldest turns into one: all of them, the last only where it must be, or as
    many as the model can read at once."""
    head, turns, question = _parts(messages)
    request = {"role": "user", "content": SUMMARY_REQUEST}
    most = min(MAX_SUMMARY_TOKENS, space.max_prompt_tokens // 8)

    if space.count_tokens([*head, request, *question]) > space.max_prompt_tokens:
        return None

    def asked_of(count: int) -> list[dict[str, str]]:
        return [*head, *chain(*turns[:count]), request]

    def is_too_much(count: int) -> bool:
        return space.count_tokens(asked_of(count)) + most > space.context_length

    keeps_last = space.count_tokens([*head, request, *chain(*turns[-1:]), *question]) + most <= space.max_prompt_tokens
    wanted = len(turns) - (keeps_last and len(turns) > 1)
    count = bisect_left(range(1, wanted + 1), True, key=is_too_much)
    summary = space.generate(asked_of(count), most) if count else ""
    if not summary:
        return None
    rest = [*head, request, {"role": "assistant", "content": summary}, *chain(*turns[count:]), *question]
    before, after = space.count_tokens(messages), space.count_tokens(rest)
    if after >= before:
        return None
    notice = f"The window is full: {_oldest(count)} condensed, {before:,} tokens to {after:,}."
    return ShortenedConversation(rest, notice)


OVERFLOW_POLICIES: dict[OverflowPolicy, Callable[[Sequence[dict[str, str]], OverflowBudget], ShortenedConversation | None]] = {
    "error": error,
    "shift": shift,
    "summarize": summarize,
}


def system_prompt(messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """What stands before the first question."""
    return _parts(messages)[0]


def _parts(
    messages: Sequence[dict[str, str]],
) -> tuple[list[dict[str, str]], list[list[dict[str, str]]], list[dict[str, str]]]:
    """What comes before the first question, the turns, and the question that is last."""
    starts = [i for i, message in enumerate(messages) if message["role"] == "user"]
    if not starts:
        return list(messages), [], []
    turns = [list(messages[a:b]) for a, b in zip(starts, [*starts[1:], len(messages)], strict=True)]
    return list(messages[: starts[0]]), turns[:-1], turns[-1]


def _oldest(count: int) -> str:
    return "the oldest turn is" if count == 1 else f"the oldest {count:,} turns are"
