"""A session: one sequence's tokens in a context, fed, cut back, and continued."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pigguf.engine.sampling import Sampling
from pigguf.progress import SILENT, Progress

StopReason = Literal["end", "length", "window", "interrupted"]


class Session:
    """One sequence. Made by Context.sequence(); a context manager that gives the sequence back.

    Attributes:
        tokens: what the cache holds, position i at index i; true after every call, interrupted or not.
        stop_reason: why the last generate stopped: "end" (the model ended its answer), "length" (the
            limit), "window" (no room for another token), "interrupted"; None while it runs.
    """

    stop_reason: StopReason | None

    @property
    def tokens(self) -> list[int]:
        """A copy of what the cache holds."""
        raise NotImplementedError

    @property
    def length(self) -> int:
        """How many tokens the cache holds, without copying them."""
        raise NotImplementedError

    @property
    def room(self) -> int:
        """How many more tokens fit into the window."""
        raise NotImplementedError

    def feed(self, tokens: Sequence[int], progress: Progress = SILENT) -> None:
        """Prefill: append tokens to the cache, a batch at a time. One stage, "prefill", in tokens.

        Ctrl-C stops it within a moment; the session then holds what was done and can go on.

        Raises:
            ContextOverflow: they do not fit; nothing was fed.
            EngineError: closed, empty vocabulary range, or llama.cpp failed.
        """
        raise NotImplementedError

    def advance_to(self, tokens: Sequence[int], progress: Progress = SILENT) -> int:
        """Make the cache hold exactly `tokens`, keeping the common prefix and feeding the rest.

        Returns how many tokens were kept. Raises as feed does; nothing is dropped when they do not fit.
        """
        raise NotImplementedError

    def keep(self, count: int) -> None:
        """Drop all tokens after the first `count`; 0 empties the sequence."""
        raise NotImplementedError

    def evaluate(
        self, tokens: Sequence[int], wanted: Iterable[int], progress: Progress = SILENT
    ) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Feed tokens and yield (i, logits after tokens[i]) for each wanted index i, ascending.

        logits: float32 (vocab_size,), the caller's own copy. Memory is one micro-batch of rows at most.
        """
        raise NotImplementedError

    def generate(self, sampling: Sampling | None = None, limit: int | None = None) -> Iterator[int]:
        """Draw tokens after what the cache holds, until the model ends, the limit, or the window.

        The end token is not yielded. A yielded token enters the cache when the next is asked for, so
        after the last one `tokens` does not hold it; advance_to feeds what is missing.
        """
        raise NotImplementedError

    def interrupt(self) -> None:
        """Stop the running feed (raises Interrupted there) or generate, from another thread."""
        raise NotImplementedError

    def close(self) -> None:
        """Empty the sequence and give it back to the context. Twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_: Any = None
