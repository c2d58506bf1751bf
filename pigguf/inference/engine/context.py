"""Context: a llama_context and the sessions on its sequences."""

from __future__ import annotations

from types import TracebackType

from pigguf.errors import EngineError
from pigguf.inference.engine.context_options import ContextOptions
from pigguf.inference.engine.llama_context import LlamaContext
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.prefill_protocols import Prefiller, PromptCache
from pigguf.inference.engine.protocols import BatchObserver
from pigguf.inference.engine.session import Session


class Context(LlamaContext):
    """An open context. A context manager; using it after close raises EngineError.

    Its sessions may be used from several threads, each session by one at a time: they take turns, with a
    prompt or a token each.

    Attributes:
        prefiller: the prefill backend for long prompts, or None.
        prompt_cache: saved KV states of prompts, or None.

    Raises:
        UsageError, ContextOverflow, DoesNotFit, EngineError: as LlamaContext.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions | None = None,
        activation_collector: BatchObserver | None = None,
        prefiller: Prefiller | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.prefiller = prefiller
        self.prompt_cache = prompt_cache
        self._sessions: dict[int, Session] = {}
        super().__init__(model, options, activation_collector)

    def sequence(self) -> Session:
        """Return a session on a free sequence, which is empty.

        Raises:
            EngineError: all `options.sequences` are in use, or the context is closed.
        """
        _ = self.handle
        with self.lock:
            free = (seq_id for seq_id in range(self.options.sequences) if seq_id not in self._sessions)
            seq_id = next(free, None)
            if seq_id is None:
                raise EngineError(
                    f"all {self.options.sequences} sequences of the context are in use",
                    "close a session, or make the context with more sequences",
                )
            session = Session(self, seq_id, self.prefiller, self.prompt_cache, self._release)
            self._sessions[seq_id] = session
        return session

    def _release(self, seq_id: int) -> None:
        del self._sessions[seq_id]

    def close(self) -> None:
        """Close the sessions and free the KV cache; a second call does nothing."""
        with self.lock:
            for session in list(self._sessions.values()):
                session.close()
            super().close()

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
