"""A context: the KV cache of a model for one or many sequences, and the buffers to compute in.

Every decode of the engine goes through Context.decode: one batch of one sequence's tokens, at explicit
positions. Upstream: llama.cpp include/llama.h, src/llama-context.cpp.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pigguf.engine import library
from pigguf.engine.memory import available_memory, in_words
from pigguf.engine.model import Model
from pigguf.errors import ContextOverflow, DoesNotFit, EngineError, UsageError
from pigguf.gguf_file import TensorType
from pigguf.parallel import usable_cores

if TYPE_CHECKING:
    from pigguf.engine.observe import InputObserver
    from pigguf.engine.session import Session

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
_UNQUANTIZED = ("f32", "f16", "bf16")

CACHE_BLOCK = 256  # llama-context.cpp pads a sequence's cells to this
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
OUTPUT_BYTES = 64 << 20  # logits of one batch; llama.cpp reserves twice as much for them

# How a model gets a longer window, by what its positions are.
_LONGER = {
    "learned": "convert its checkpoint with --context N, which resamples its table of positions",
    "alibi": "override its context length",
}
_ROTATED_LONGER = "override its rope factor and context length"

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # llama.h, enum llama_flash_attn_type
_DECODED, _ABORTED = 0, 2  # llama_decode's answers


@dataclass(frozen=True)
class ContextOptions:
    """How a context is made.

    Attributes:
        length: window of each sequence in tokens; None is all the model claims.
        threads: CPU threads for decode; None is the machine's cores.
        prefill_threads: CPU threads for prefill; None is as many as for decode.
        batch: most tokens computed at once; progress is told at its edges.
        cache_k, cache_v: types of the KV cache.
        flash_attention: None lets llama.cpp choose. A quantized V cache needs it.
        sequences: how many Sessions may live at once.

    Raises:
        UsageError: values out of range or that do not fit together.
    """

    length: int | None = None
    threads: int | None = None
    prefill_threads: int | None = None
    batch: int = 512
    cache_k: CacheType = "f16"
    cache_v: CacheType = "f16"
    flash_attention: bool | None = None
    sequences: int = 1

    def __post_init__(self) -> None:
        for name, most in (
            ("length", 2**31 - 1),
            ("threads", 512),  # GGML_MAX_N_THREADS
            ("prefill_threads", 512),
            ("batch", 2**16),
            ("sequences", MAX_SEQUENCES),
        ):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise UsageError(f"{name} is {value}", f"{name} must be between 1 and {most}")
        for name in ("cache_k", "cache_v"):
            if getattr(self, name) not in get_args(CacheType):
                raise UsageError(
                    f"the KV cache type {getattr(self, name)!r} is unknown",
                    f"one of {', '.join(get_args(CacheType))}",
                )
        if self.cache_v not in _UNQUANTIZED and self.flash_attention is False:
            raise UsageError(
                f"a V cache of type {self.cache_v} needs flash attention, which is switched off",
                "leave flash attention on, or take f16 for the V cache",
            )


class Context:
    """An open context. A context manager; using it after close raises EngineError.

    Its sessions may be used from several threads, a session by one at a time: they take turns,
    a prompt or a token each.

    Attributes:
        turn: a lock to hold around work with `decode`, `logits` and `cut` that belongs together.
        model, options: what it was made of.
        observer: who sees what goes into the weights, or None.
        length: window of each sequence in tokens.
        cache_bytes: what the KV cache takes.
        batch_size: most tokens of one decode; most_outputs: most of them whose logits are kept.

    Raises:
        UsageError: options that do not fit the model.
        ContextOverflow: a length past the model's context_length.
        DoesNotFit: not enough memory; the message has the sizes.
        EngineError: the model is closed or has no weights.
    """

    def __init__(
        self,
        model: Model,
        options: ContextOptions | None = None,
        observer: InputObserver | None = None,
    ) -> None:
        self.model = model
        self.options = options or ContextOptions()
        self.observer = observer
        self.length = _window(model, self.options)
        self.cache_bytes = _refuse_too_large(model, self.options, self.length)
        self._llama = library.load()
        self._sessions: dict[int, Session] = {}
        self.turn = threading.RLock()
        self.most_outputs = max(
            self.options.sequences, min(self.options.batch, OUTPUT_BYTES // (4 * model.vocab_size))
        )
        self._handle = self._create()
        model.attach(self)
        self.batch_size: int = self._llama.llama_n_batch(self._handle)
        self._batch = _Batch(self._llama, self.batch_size)
        self._memory = self._llama.llama_get_memory(self._handle)
        self._logits_of: tuple[int, int] | None = None
        self._stop: Callable[[], bool] | None = None
        self._abort = self._llama.ggml_abort_callback(self._should_abort)  # C only has its address
        self._no_abort = self._llama.ggml_abort_callback()

    def _create(self) -> Any:
        if self.model.vocab_only:
            raise EngineError(f"{self.model.path} was opened for its vocabulary only")
        threads = self.options.threads or default_threads()
        parameters = self._llama.llama_context_default_params()  # every rope value "from the model"
        parameters.n_ctx = _padded(self.length) * self.options.sequences
        parameters.n_seq_max = self.options.sequences
        parameters.n_batch = parameters.n_ubatch = self.options.batch
        parameters.n_outputs_max = self.most_outputs
        parameters.n_threads = threads
        parameters.n_threads_batch = self.options.prefill_threads or threads
        parameters.type_k = getattr(TensorType, self.options.cache_k.upper())
        parameters.type_v = getattr(TensorType, self.options.cache_v.upper())
        parameters.flash_attn_type = _FLASH_ATTENTION[self.options.flash_attention]
        if self.observer is not None:
            parameters.cb_eval = self.observer.callback
        with library.complaints() as said:
            handle = self._llama.llama_init_from_model(self.model.handle, parameters)
        if not handle:
            raise self._creation_failure(said)
        return handle

    def _creation_failure(self, said: list[str]) -> EngineError:
        reason = said[0] if said else "it gave no reason"
        if any("alloc" in line or "out of memory" in line for line in said):
            return DoesNotFit(
                f"no memory for a context of {self.length:,} tokens, whose KV cache takes "
                f"{in_words(self.cache_bytes)}: {reason}",
                "take a shorter context, a quantized KV cache, or fewer layers on the GPU",
            )
        return EngineError(f"llama.cpp cannot make a context of {self.length:,} tokens: {reason}")

    def sequence(self) -> Session:
        """A new empty sequence.

        Raises:
            EngineError: all `sequences` are in use.
        """
        from pigguf.engine.session import Session

        _ = self.handle
        with self.turn:
            free = next((id_ for id_ in range(self.options.sequences) if id_ not in self._sessions), None)
            if free is None:
                raise EngineError(
                    f"all {self.options.sequences} sequences of the context are in use",
                    "close a session, or make the context with more sequences",
                )
            session = self._sessions[free] = Session(self, free)
        return session

    def close(self) -> None:
        """Free the cache; its sessions are closed with it. Twice is fine."""
        with self.turn:
            for session in list(self._sessions.values()):
                session.close()
            if self._handle is not None:
                self._llama.llama_free(self._handle)
                self._handle = None
                self.model.detach(self)

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---- for sessions ----------------------------------------------------------------------------

    @property
    def handle(self) -> Any:
        """The library's llama_context pointer.

        Raises:
            EngineError: the context was closed.
        """
        if self._handle is None:
            raise EngineError("the context was closed", "keep its `with` block open while it is used")
        return self._handle

    def decode(
        self,
        sequence: int,
        tokens: Sequence[int],
        position: int,
        outputs: Sequence[int],
        stop: Callable[[], bool] | None = None,
    ) -> bool:
        """Compute one batch and put it into the cache, all of it or nothing.

        Args:
            tokens: at most batch_size, of the vocabulary.
            position: of the first token.
            outputs: indices into tokens whose logits are kept, at most most_outputs.
            stop: asked often while the CPU computes; True gives the batch up. It must not raise.

        Returns:
            False if `stop` gave it up.

        Raises:
            EngineError: llama.cpp failed, or the observer did.
        """
        handle = self.handle
        self._batch.fill(sequence, tokens, position, outputs)
        self._logits_of = None
        if stop is not None:
            self._stop = stop
            self._llama.llama_set_abort_callback(handle, self._abort, None)
        with library.complaints() as said:
            answer = self._llama.llama_decode(handle, self._batch.c)
        if stop is not None:
            self._llama.llama_set_abort_callback(handle, self._no_abort, None)
            self._stop = None
        if self.observer is not None:
            self.observer.settle(answer == _DECODED)
        if answer == _ABORTED:
            return False
        if answer != _DECODED:
            reason = f": {said[0]}" if said else ""
            raise EngineError(f"llama.cpp failed to compute (llama_decode: {answer}){reason}")
        if outputs and outputs[-1] == len(tokens) - 1:
            self._logits_of = (sequence, position + len(tokens))
        return True

    def logits(self, index: int) -> NDArray[np.float32]:
        """A view of the last batch's logits after its token `index`, -1 for the last kept: (vocab_size,).

        It is valid until the next decode. Whether it holds numbers is not checked.
        """
        address = ctypes.addressof(self._llama.llama_get_logits_ith(self.handle, index).contents)
        return np.frombuffer((ctypes.c_float * self.model.vocab_size).from_address(address), np.float32)

    def has_logits_of(self, sequence: int, length: int) -> bool:
        """Whether logits(-1) are those after the first `length` tokens of this sequence."""
        return self._logits_of == (sequence, length)

    def cached(self, sequence: int) -> int:
        """How many tokens of a sequence the cache holds."""
        return int(self._llama.llama_memory_seq_pos_max(self._memory, sequence)) + 1

    def cut(self, sequence: int, length: int) -> None:
        """Drop a sequence's tokens from position `length` on.

        Raises:
            EngineError: this model's memory cannot forget a part.
        """
        _ = self.handle
        if not self._llama.llama_memory_seq_rm(self._memory, sequence, length, -1):
            raise EngineError(f"{self.model.path} cannot drop tokens from its cache")
        if self._logits_of is not None and self._logits_of[0] == sequence and self._logits_of[1] > length:
            self._logits_of = None

    def release(self, sequence: int) -> None:
        """Take a closed session's sequence back."""
        del self._sessions[sequence]

    def _should_abort(self, _: object) -> bool:
        return self._stop is not None and self._stop()


class _Batch:
    """A llama_batch for tokens of one sequence, its arrays made once."""

    def __init__(self, llama: Any, size: int) -> None:
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._sequence = (ctypes.c_int32 * 1)()
        sequence = ctypes.cast(self._sequence, ctypes.POINTER(ctypes.c_int32))
        self._sequences = (ctypes.POINTER(ctypes.c_int32) * size)(*[sequence] * size)
        self.c = llama.llama_batch(
            0, self._tokens, None, self._positions, self._counts, self._sequences, self._outputs
        )

    def fill(self, sequence: int, tokens: Sequence[int], position: int, outputs: Sequence[int]) -> None:
        count = len(tokens)
        self._sequence[0] = sequence
        self._tokens[:count] = list(tokens)
        self._positions[:count] = list(range(position, position + count))
        ctypes.memset(self._outputs, 0, count)
        for index in outputs:
            self._outputs[index] = 1
        self.c.n_tokens = count


def default_threads() -> int:
    """Cores this process may run on; two threads of one core count once, as they share its arithmetic."""
    if not hasattr(os, "sched_getaffinity"):
        return usable_cores()
    try:
        return len({_siblings(cpu) for cpu in os.sched_getaffinity(0)})
    except OSError:
        return usable_cores()


def _siblings(cpu: int) -> str:
    return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text()


def _window(model: Model, options: ContextOptions) -> int:
    if options.length is None:
        return model.context_length
    if options.length > model.context_length:
        raise ContextOverflow(
            f"a context of {options.length:,} tokens is longer than the {model.context_length:,} "
            f"that {model.path} is made for",
            f"take {model.context_length:,} at most, or {_LONGER.get(model.rope.kind, _ROTATED_LONGER)}",
        )
    return options.length


def _padded(length: int) -> int:
    return -(-length // CACHE_BLOCK) * CACHE_BLOCK


def _refuse_too_large(model: Model, options: ContextOptions, length: int) -> int:
    """Bytes of the KV cache, if there is room for them; on a GPU its own allocation tells."""
    cells = _padded(length) * options.sequences
    if cells >= 2**31:
        raise DoesNotFit(f"{options.sequences} sequences of {length:,} tokens are more than llama.cpp counts")
    needed = model.cache_bytes(cells, options.cache_k, options.cache_v)
    available = available_memory()
    if not model.gpu_layers and available is not None and needed > available:
        raise DoesNotFit(
            f"a context of {length:,} tokens takes {in_words(needed)} for its KV cache and "
            f"{in_words(available)} of memory are free",
            "take a shorter context, or a quantized KV cache",
        )
    return needed
