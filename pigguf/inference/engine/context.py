"""A context: the KV cache of a model for one or many sequences, and the buffers to compute in.

Every decode of the engine goes through here, at explicit positions: `decode` is a batch of one sequence's
tokens, `decode_rows` one of many sequences'. A Handoff lets a context change between flash attention and
none, as either is faster at that depth: the sequences' states move from a llama_context that is freed into
the one that is made after it, so that there is one cache at a time.
Upstream: llama.cpp include/llama.h, src/llama-context.cpp.
"""

from __future__ import annotations

import ctypes
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from pigguf.common.parallel import usable_cores
from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import ContextOverflow, DoesNotFit, EngineError, UsageError
from pigguf.gguf_io import TensorType
from pigguf.inference.engine import library
from pigguf.inference.engine.model import Model
from pigguf.inference.engine.sigint import defer_sigint
from pigguf.llama_cpp_internals import kv_state_layout

if TYPE_CHECKING:
    from pigguf.inference.engine.activation_stats import InputObserver
    from pigguf.inference.engine.prefill_backend import Prefiller, PromptCache
    from pigguf.inference.engine.session import Session

CacheType = Literal["f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl"]
UNQUANTIZED = ("f32", "f16", "bf16")

_log = logging.getLogger("pigguf")

CACHE_BLOCK = 256  # llama-context.cpp pads a sequence's cells to this
MAX_SEQUENCES = 256  # LLAMA_MAX_SEQ
OUTPUT_BYTES = 64 << 20  # logits of one batch; llama.cpp reserves twice as much for them

# How a model gets a longer window, by what its positions are.
_LONGER = {
    "learned": "convert its checkpoint with --context N, which resamples its table of positions",
    "alibi": "override its context length",
}
_ROTATED_LONGER = "override its rope factor and context length"

_TURNED_ALONE = ("none", "linear", "llama3")  # rope kinds that turn keys, and do nothing else to them
_ROTATED_BASIS = 64  # heads of a multiple of it have their quantized keys rotated

_FLASH_ATTENTION = {None: -1, False: 0, True: 1}  # llama.h, enum llama_flash_attn_type
_NO_POOLING = 0  # llama.h, enum llama_pooling_type: each token keeps its own
_DECODED, _ABORTED = 0, 2  # llama_decode's answers


@dataclass(frozen=True)
class FlashAttentionSwitch:
    """From which depth on flash attention is left, and when it is worth to come back to it.

    Attributes:
        decode: tokens in the cache from which single tokens are computed without it.
        prefill: tokens in the cache from which prompts are, too; None is never.
        prompt: fewer tokens of a prompt than this are read in whatever way the cache lies.
    """

    decode: int
    prefill: int | None = None
    prompt: int = 512

    def wants_flash(self, held: int, count: int) -> bool | None:
        """Whether `count` tokens after `held` go with flash attention; None is either way."""
        if count == 1:
            return None if held < self.decode else False
        if count < self.prompt:
            return None
        return self.prefill is None or held < self.prefill


class Row(NamedTuple):
    """A token of a batch that mixes sequences."""

    token: int
    position: int
    sequence: int
    wants_logits: bool


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
        handoff: prefill with flash attention, decode without it where that is faster; None is no change.
        sequences: how many Sessions may live at once.
        embeddings: states of tokens are kept beside their logits.

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
    handoff: FlashAttentionSwitch | None = None
    sequences: int = 1
    embeddings: bool = False

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
        if self.cache_v not in UNQUANTIZED and self.flash_attention is False:
            raise UsageError(
                f"a V cache of type {self.cache_v} needs flash attention, which is switched off",
                "leave flash attention on, or take f16 for the V cache",
            )
        if self.handoff is not None and (self.flash_attention is not None or self.cache_v not in UNQUANTIZED):
            raise UsageError(
                "a handoff changes flash attention, which another option or a quantized V cache settles",
                "leave flash attention open, and the V cache unquantized",
            )


class Context:
    """An open context. A context manager; using it after close raises EngineError.

    Its sessions may be used from several threads, a session by one at a time: they take turns,
    a prompt or a token each.

    Attributes:
        turn: a lock to hold around work with `decode`, `logits` and `cut` that belongs together.
        model, options: what it was made of.
        observer: who sees what goes into the weights, or None.
        reader, store: other roads of a prompt into the cache (roads.py), or None.
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
        prefiller: Prefiller | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.model = model
        self.options = options or ContextOptions()
        self.observer = observer
        self.prefiller = prefiller
        self.prompt_cache = prompt_cache
        self._handoff = _handoff(model, self.options)
        self._flash = True if self._handoff else self.options.flash_attention
        self.length = _window(model, self.options)
        self.cache_bytes = _refuse_too_large(model, self.options, self.length)
        self._llama = library.load()
        self._sessions: dict[int, Session] = {}
        self.turn = threading.RLock()
        self.most_outputs = most_outputs(self.options, model.vocab_size)
        self._handle = self._create()
        model.attach(self)
        self.batch_size: int = self._llama.llama_n_batch(self._handle)
        self._batch = _Batch(self._llama, self.batch_size, self.options.sequences)
        self._memory = self._llama.llama_get_memory(self._handle)
        self._logits_of: tuple[int, int] | None = None
        self._stop = _Stop()
        self._abort = self._llama.ggml_abort_callback(self._stop)  # C only has its address
        self._no_abort = self._llama.ggml_abort_callback()

    def _create(self) -> Any:
        if self.model.vocab_only:
            raise EngineError(f"{self.model.path} was opened for its vocabulary only")
        options = replace(self.options, length=self.length, handoff=None, flash_attention=self._flash)
        parameters = context_parameters(options, self.model.vocab_size)
        if self.observer is not None:
            parameters.cb_eval = self.observer.callback
        handle = None
        try:
            with (
                library.complaints() as said,
                defer_sigint(),
            ):  # in the log's callback Ctrl-C would be lost
                handle = self._llama.llama_init_from_model(self.model.handle, parameters)
        except BaseException:
            if handle:
                self._llama.llama_free(handle)
            raise
        if not handle:
            self.model.check_workers()
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
        from pigguf.inference.engine.session import Session

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
            WorkerLost: a worker of the model's failed.
        """
        self._batch.fill(sequence, tokens, position, outputs)
        if not self._compute(stop, bool(outputs)):
            return False
        if outputs and outputs[-1] == len(tokens) - 1:
            self._logits_of = (sequence, position + len(tokens))
        return True

    def decode_rows(self, rows: Sequence[Row]) -> None:
        """Compute one batch of several sequences' tokens; `logits(i)` are those after rows[i].

        Args:
            rows: at most batch_size, a sequence's together and in order; at most most_outputs want logits.

        Raises:
            EngineError: llama.cpp failed, or the observer did; the cache may hold a part of the batch.
        """
        self._batch.fill_rows(rows)
        self._compute(None, any(row.wants_logits for row in rows))

    def _compute(self, stop: Callable[[], bool] | None, has_logits: bool) -> bool:
        """Compute what the batch was filled with; whether it was not given up."""
        handle = self.handle
        self._logits_of = None
        if stop is not None:
            self._stop.wanted = stop
            self._llama.llama_set_abort_callback(handle, self._abort, None)
        with library.complaints() as said:
            answer = self._llama.llama_decode(handle, self._batch.c)
            if has_logits and self.model.workers is not None:  # else it goes on when logits are asked for
                self._llama.llama_synchronize(handle)
        if stop is not None:
            self._llama.llama_set_abort_callback(handle, self._no_abort, None)
            self._stop.wanted = None
        if self.observer is not None:
            self.observer.settle(answer == _DECODED)
        self.model.check_workers()
        if answer == _ABORTED:
            return False
        if answer != _DECODED:
            reason = f": {said[0]}" if said else ""
            raise EngineError(f"llama.cpp failed to compute (llama_decode: {answer}){reason}")
        return True

    # ---- flash attention, or none ----------------------------------------------------------------

    def choose_flash_attention(self, held: int, count: int) -> bool:
        """Lay the cache out as `count` tokens after `held` are computed fastest; a move loses the logits.

        Returns:
            Whether it moved.

        Raises:
            EngineError: there is no memory for the other layout, nor for the old one again.
        """
        if not self.would_move(held, count):
            return False
        wanted = not self._flash
        try:
            self._move(wanted)
        except EngineError as error:
            self.give_up_handoff(error.message)
        return self._flash == wanted

    def would_move(self, held: int, count: int) -> bool:
        """Whether the cache lies otherwise than `count` tokens after `held` are computed fastest."""
        wanted = self._handoff.wants_flash(held, count) if self._handoff else None
        return wanted is not None and wanted != self._flash

    def give_up_handoff(self, why: str) -> None:
        """From now on the cache stays as it lies."""
        self._handoff = None
        _log.warning("flash attention stays %s: %s", "on" if self._flash else "off", why)

    def _move(self, flash: bool) -> None:
        """Make the llama_context anew, with flash attention or without, and give it the sequences' states."""
        with self.turn, defer_sigint():
            states = {sequence: self.state(sequence) for sequence in self._sessions if self.cached(sequence)}
            for state in states.values():
                kv_state_layout.read_layout(state)  # before anything is given up
            moved = self._remake(flash)
            if not moved:
                self._remake(not flash)
            for sequence, state in states.items():
                if moved:
                    kv_state_layout.transpose_values(state)
                self.set_state(sequence, state)
            if not moved:
                raise EngineError("there is no memory to lay the KV cache out the other way")

    def _remake(self, flash: bool) -> bool:
        """Free the llama_context and make another; whether there was memory for it."""
        if self._handle is not None:
            self._llama.llama_free(self._handle)
        self._handle, self._flash, self._logits_of = None, flash, None
        with suppress(DoesNotFit):
            self._handle = self._create()
            self._memory = self._llama.llama_get_memory(self._handle)
        return self._handle is not None

    # ---- states of sequences ---------------------------------------------------------------------

    @property
    def values_transposed(self) -> bool:
        """Whether V lies transposed in the states of this context, as it does without flash attention."""
        return self._flash is False

    def state(self, sequence: int) -> bytearray:
        """A sequence's KV state, as kv_state.py reads it.

        Raises:
            EngineError: llama.cpp failed.
        """
        size = self._llama.llama_state_seq_get_size(self.handle, sequence)
        state = bytearray(size)
        raw = (ctypes.c_uint8 * size).from_buffer(state)
        if size == 0 or self._llama.llama_state_seq_get_data(self.handle, raw, size, sequence) != size:
            raise EngineError("llama.cpp cannot give out a sequence's KV state")
        self.model.check_workers()
        return state

    def set_state(self, sequence: int, state: bytearray) -> None:
        """Put a state in place of what a sequence holds.

        Raises:
            EngineError: llama.cpp refuses it; the sequence is empty then.
        """
        self._logits_of = None
        raw = (ctypes.c_uint8 * len(state)).from_buffer(state)
        with library.complaints() as said:
            taken = self._llama.llama_state_seq_set_data(self.handle, raw, len(state), sequence)
        if taken != len(state):
            self.cut(sequence, 0)
            raise EngineError(f"llama.cpp refuses a KV state: {said[0] if said else 'it gave no reason'}")

    def save_state(self, sequence: int, path: str, tokens: Sequence[int]) -> int:
        """Write a sequence's tokens and state to a file, as llama.cpp streams them; bytes written.

        Raises:
            EngineError: it could not be written whole.
        """
        array = (ctypes.c_int32 * len(tokens))(*tokens)
        with library.complaints() as said:
            written = self._llama.llama_state_seq_save_file(
                self.handle, os.fsencode(path), sequence, array, len(tokens)
            )
        self.model.check_workers()
        # The library's last write is its fclose, which it does not look at.
        if not written or os.path.getsize(path) != written:
            raise EngineError(f"{path}: {said[0] if said else 'the KV state was not written whole'}")
        return int(written)

    def load_state(self, sequence: int, path: str, count: int) -> list[int]:
        """Put what a file of save_state holds in place of what a sequence holds; its `count` tokens.

        The file must be known to be whole, and of a context like this one: the library trusts it.

        Raises:
            EngineError: llama.cpp refuses it; the sequence is empty then.
        """
        self._logits_of = None
        tokens, found = (ctypes.c_int32 * count)(), ctypes.c_size_t()
        with library.complaints() as said:
            read = self._llama.llama_state_seq_load_file(
                self.handle, os.fsencode(path), sequence, tokens, count, ctypes.byref(found)
            )
        if not read or found.value != count:
            self.cut(sequence, 0)
            raise EngineError(f"{path}: {said[0] if said else 'llama.cpp refuses the KV state'}")
        return list(tokens)

    def shift(self, sequence: int, start: int, stop: int) -> None:
        """Drop the tokens at [start, stop) and move those after them to the positions before.

        llama.cpp turns their keys back by the file's rope when it computes next.

        Raises:
            EngineError: this model's memory cannot.
        """
        if not self._can_shift() or not self._llama.llama_memory_seq_rm(self._memory, sequence, start, stop):
            raise EngineError(
                f"{self.model.path} cannot move what its KV cache holds to other positions",
                "clear the conversation, or take another way with a full window",
            )
        self._logits_of = None
        self._llama.llama_memory_seq_add(self._memory, sequence, stop, -1, start - stop)

    def _can_shift(self) -> bool:
        """llama.cpp also scales the keys that it turns where a kind scales them, once more each time, and
        crashes on quantized ones that it does not keep in another basis (llama-kv-cache.cpp, attn_rot)."""
        is_whole = self.options.cache_k in UNQUANTIZED or self.model.head_length % _ROTATED_BASIS == 0
        return (
            is_whole
            and self.model.rope.rope_type in _TURNED_ALONE
            and bool(self._llama.llama_memory_can_shift(self._memory))
        )

    def logits(self, index: int) -> NDArray[np.float32]:
        """A view of the last batch's logits after its token `index`, -1 for the last kept: (vocab_size,).

        It is valid until the next decode. Whether it holds numbers is not checked.
        """
        address = ctypes.addressof(self._llama.llama_get_logits_ith(self.handle, index).contents)
        return np.frombuffer((ctypes.c_float * self.model.vocab_size).from_address(address), np.float32)

    @property
    def embedding_width(self) -> int:
        """Of the states that `embedding` gives."""
        return int(self._llama.llama_model_n_embd(self.model.handle))

    def embedding(self, index: int) -> NDArray[np.float32]:
        """A view of the state of the last batch's token `index` after the last norm: (embedding_width,).

        As `logits`, and only where the options ask for embeddings.
        """
        address = ctypes.addressof(self._llama.llama_get_embeddings_ith(self.handle, index).contents)
        return np.frombuffer((ctypes.c_float * self.embedding_width).from_address(address), np.float32)

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

    def copy(self, source: int, target: int, length: int) -> None:
        """Put the first `length` tokens of one sequence in place of what another holds.

        The next decode moves the data: until then no state of either is taken or set.

        Raises:
            EngineError: this model's memory cannot forget a part.
        """
        self.cut(target, 0)
        self._llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        self.cut(target, length)

    def release(self, sequence: int) -> None:
        """Take a closed session's sequence back."""
        del self._sessions[sequence]


class _Stop:
    """What C asks whether to give up. It has no reference to its context, which would be a circle."""

    def __init__(self) -> None:
        self.wanted: Callable[[], bool] | None = None

    def __call__(self, _: object) -> bool:
        return self.wanted is not None and self.wanted()


class _Batch:
    """A llama_batch, its arrays made once: filled with tokens of one sequence, or with rows of several."""

    def __init__(self, llama: Any, size: int, sequences: int) -> None:
        self._tokens = (ctypes.c_int32 * size)()
        self._positions = (ctypes.c_int32 * size)()
        self._outputs = (ctypes.c_int8 * size)()
        self._counts = (ctypes.c_int32 * size)(*[1] * size)
        self._sequence = (ctypes.c_int32 * 1)()
        pointer = ctypes.POINTER(ctypes.c_int32)
        self._one = (pointer * size)(*[ctypes.cast(self._sequence, pointer)] * size)
        self._many = (pointer * size)()
        self._numbers = (ctypes.c_int32 * sequences)(*range(sequences))  # C only has their addresses
        self._each = [
            ctypes.cast(ctypes.byref(self._numbers, 4 * sequence), pointer) for sequence in range(sequences)
        ]
        self.c = llama.llama_batch(
            0, self._tokens, None, self._positions, self._counts, self._one, self._outputs
        )

    def fill(self, sequence: int, tokens: Sequence[int], position: int, outputs: Sequence[int]) -> None:
        count = len(tokens)
        self._sequence[0] = sequence
        self._tokens[:count] = list(tokens)
        self._positions[:count] = list(range(position, position + count))
        ctypes.memset(self._outputs, 0, count)
        for index in outputs:
            self._outputs[index] = 1
        self.c.seq_id = self._one
        self.c.n_tokens = count

    def fill_rows(self, rows: Sequence[Row]) -> None:
        for index, row in enumerate(rows):
            self._tokens[index] = row.token
            self._positions[index] = row.position
            self._many[index] = self._each[row.sequence]
            self._outputs[index] = row.wants_logits
        self.c.seq_id = self._many
        self.c.n_tokens = len(rows)


def context_parameters(options: ContextOptions, vocab_size: int) -> Any:
    """llama_context_params of a context, or of a dry run of one; the options have a length.

    Raises:
        DoesNotFit: more cells than llama.cpp counts.
    """
    threads = options.threads or default_threads()
    parameters = library.load().llama_context_default_params()  # every rope value "from the model"
    parameters.n_ctx = cells(options)
    parameters.n_seq_max = options.sequences
    parameters.n_batch = parameters.n_ubatch = options.batch
    parameters.n_outputs_max = most_outputs(options, vocab_size)
    parameters.n_threads = threads
    parameters.n_threads_batch = options.prefill_threads or threads
    parameters.type_k = getattr(TensorType, options.cache_k.upper())
    parameters.type_v = getattr(TensorType, options.cache_v.upper())
    parameters.flash_attn_type = _FLASH_ATTENTION[options.flash_attention]
    if options.embeddings:
        parameters.embeddings, parameters.pooling_type = True, _NO_POOLING
    return parameters


def cells(options: ContextOptions) -> int:
    """Tokens that the KV cache has room for, of all sequences together.

    Raises:
        DoesNotFit: more than llama.cpp counts.
    """
    assert options.length is not None
    count = -(-options.length // CACHE_BLOCK) * CACHE_BLOCK * options.sequences
    if count >= 2**31:
        raise DoesNotFit(
            f"{options.sequences} sequences of {options.length:,} tokens are more than llama.cpp counts"
        )
    return count


def most_outputs(options: ContextOptions, vocab_size: int) -> int:
    """Tokens of a batch whose logits are kept."""
    return max(options.sequences, min(options.batch, OUTPUT_BYTES // (4 * vocab_size)))


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
            f"take {model.context_length:,} at most, or {_LONGER.get(model.rope.rope_type, _ROTATED_LONGER)}",
        )
    return options.length


def _handoff(model: Model, options: ContextOptions) -> FlashAttentionSwitch | None:
    """The handoff that is asked for; states of sliding layers do not hold all that a cut may need again."""
    return None if model.sliding_window else options.handoff


def _refuse_too_large(model: Model, options: ContextOptions, length: int) -> int:
    """Bytes of the KV cache, if there is room for them; on a GPU its own allocation tells.

    Those of sliding layers are counted as if they saw everything: inference/planning.py knows better.
    """
    count = cells(replace(options, length=length))
    needed = model.cache_bytes(count, options.cache_k, options.cache_v)
    available = available_memory()
    is_told = not model.gpu_layers and not model.sliding_window
    if available is not None and is_told and needed > available:
        raise DoesNotFit(
            f"a context of {length:,} tokens takes {in_words(needed)} for its KV cache and "
            f"{in_words(available)} of memory are free",
            "take a shorter context, or a quantized KV cache",
        )
    return needed
