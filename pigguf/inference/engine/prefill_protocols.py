"""What may take part in the prefill of a prompt besides llama.cpp: a prefill backend and a prompt cache.

Session.set_prompt restores what the prompt cache has of a prompt, leaves what is still long to the prefill
backend, and computes the rest with llama.cpp; the result is then saved to the prompt cache. Both are given to
the Context. Implementations: inference/torch_prefill/ and inference/prompt_cache/; inference/open_context.py
decides whether they take part.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.progress import Progress


class Prefiller(Protocol):
    """A prefill backend: it computes the KV states of long prompts faster than llama.cpp does."""

    def should_prefill(self, n_past: int, n_tokens: int) -> bool:
        """Return whether this backend is faster for `n_tokens` tokens after `n_past` that the cache holds."""

    def prefill(self, session: KVSequence, tokens: Sequence[int], progress: Progress) -> None:
        """Append tokens to the session's cache.

        What was computed before Ctrl-C or an error is in the cache then, and nothing else.

        Args:
            session: the session.
            tokens: the token ids.
            progress: one stage, "prefill", in tokens.

        Raises:
            Interrupted: session.interrupted became true.
            EngineError: it failed; what was computed until then is in the cache.
        """


class PromptCache(Protocol):
    """KV states of prompts that outlive the process."""

    def restore(self, session: KVSequence, tokens: Sequence[int]) -> None:
        """Load the longest saved prefix of `tokens`, if it is longer than what the session holds of them.

        A state that is damaged or of another model is skipped with a warning.
        """

    def save(self, session: KVSequence) -> None:
        """Save what the session holds, if it is worth the disk space; a disk error is a warning."""
