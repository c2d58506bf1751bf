"""A context: the KV cache of a model for one or many sequences, and the buffers to compute in."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from pigguf.engine.model import Model

if TYPE_CHECKING:
    from pigguf.engine.session import Session

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]


@dataclass(frozen=True)
class ContextOptions:
    """How a context is made.

    Attributes:
        length: window of each sequence in tokens; None is all the model claims.
        threads, prefill_threads: CPU threads for decode and for prefill; None is the machine's cores,
            and prefill's default is decode's.
        batch: most tokens handed to llama.cpp at once; interruption and progress come at its edges.
        micro_batch: most tokens computed at once.
        cache_k, cache_v: types of the KV cache.
        flash_attention: None lets llama.cpp choose. A quantized V cache needs it.
        sequences: how many Sessions may live at once.
    """

    length: int | None = None
    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = 2048
    micro_batch: int = 512
    cache_k: CacheType = "f16"
    cache_v: CacheType = "f16"
    flash_attention: bool | None = None
    sequences: int = 1


class Context:
    """An open context. A context manager; using it after close raises EngineError. Not thread safe.

    Attributes:
        model, options: what it was made of.
        length: window of each sequence in tokens.

    Raises:
        UsageError: options that do not fit together.
        ContextOverflow: a length past the model's context_length (give the model a RopeOverride).
        DoesNotFit: not enough memory; the message has the sizes.
    """

    model: Model
    options: ContextOptions
    length: int

    def __init__(self, model: Model, options: ContextOptions | None = None) -> None:
        raise NotImplementedError

    def sequence(self) -> Session:
        """A new empty sequence. Raises EngineError when all `sequences` are in use."""
        raise NotImplementedError

    def close(self) -> None:
        """Free the cache; its sessions are closed with it. Twice is fine."""
        raise NotImplementedError

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
