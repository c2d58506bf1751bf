"""What may stand beside llama.cpp's own prefill when a Session reads a prompt, as the session sees it.

A Session reads a prompt in `set_prompt`: it recalls what a PromptCache kept of it, gives what is still long
to a Prefiller, and the rest to llama.cpp; what was read is then kept. Both are handed to the Context.
Left out: who does it (sessions/ and hybrid/), and who decides whether they take part (inference/open_context.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pigguf.inference.engine.session import Session
    from pigguf.progress import Progress


class Prefiller(Protocol):
    """Another road for long prompts than llama.cpp's own."""

    def is_worth(self, held: int, count: int) -> bool:
        """Whether `count` tokens after `held` that the cache holds are read faster this way."""

    def prefill(self, session: Session, tokens: Sequence[int], progress: Progress) -> None:
        """Append tokens to the session's cache; one stage of progress, "prefill", in tokens.

        What was read before Ctrl-C or an error is in the cache then, and nothing else.

        Raises:
            Interrupted: session.interrupted became true.
            EngineError: it could not be done; the session is as far as it came.
        """


class PromptCache(Protocol):
    """States of sequences that outlive the process."""

    def restore(self, session: Session, tokens: Sequence[int]) -> None:
        """Make the session hold the longest kept beginning of `tokens`, if it is longer than what it holds.

        Never raises for a state that is damaged or foreign: it is passed over, with a warning.
        """

    def save(self, session: Session) -> None:
        """Keep what the session holds, if it is worth its room. A disk that refuses is a warning."""
