"""How fast a setting is at a depth: the real engine, over a cache that was filled without being computed.

    speed = measure(model, Visit(setting, depth, prompt=512, steps=8))

What lies in a KV cache does not change how long attention over it takes, so random keys and values stand in
for a document: a depth of 8192 costs a copy, not a prefill. Where they cannot (two caches of sliding layers),
tokens are read. Left out: which visits are worth their time (run.py).
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

import numpy as np

from pigguf.common.system_memory import available_memory, in_words
from pigguf.errors import DoesNotFit
from pigguf.gguf_io import TensorType, block_elements, row_bytes
from pigguf.inference.engine import Context, ContextOptions, FlashAttentionSwitch, Model, Session
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.tuning.choose_settings import Move
from pigguf.inference.tuning.profile import Setting, Speed
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SILENT
from pigguf.quantization.ggml_kernels import encode

_SEQUENCE = 0  # the first one of a context
_PATTERN_ROWS = 64  # of random keys and values, over and over
_SHALLOW = 32  # tokens; a move of so few costs what every move does


@dataclass(frozen=True)
class Visit:
    """What to measure after `depth` tokens: a prompt of so many tokens, so many single ones; 0 is neither."""

    setting: Setting
    depth: int
    prompt: int
    steps: int

    @property
    def length(self) -> int:
        return self.depth + max(self.prompt, self.steps + 1)


def measure(model: Model, visit: Visit) -> Speed:
    """One sample of a setting's speed.

    Raises:
        DoesNotFit: no memory for the cache, or for what fills it.
        EngineError: the setting is none for this model, or llama.cpp failed.
    """
    with Context(model, visit.setting.options(visit.length)) as context, context.sequence() as session:
        fill(session, visit.depth)
        return Speed(visit.depth, _prefill(session, visit.prompt), _decode(session, visit.steps))


def measure_move(model: Model, depth: int) -> Move:
    """What it costs to lay a cache of f16 out the other way, from one at `depth` and a shallow one.

    Raises:
        As measure does.
    """
    shallow = min(_SHALLOW, depth)
    few, many = _move(model, shallow), _move(model, depth)
    a_token = max(0.0, many - few) / max(1, depth - shallow)
    return Move(max(0.0, few - a_token * shallow), a_token)


def measure_torch(model: Model, setting: Setting, tokens: int) -> float | None:
    """Seconds in which torch reads a whole prompt; None where it cannot.

    Raises:
        As measure does.
    """
    options = setting.options(tokens)
    reader = TorchPrefiller(model, options, least=1)
    with Context(model, options, prefiller=reader) as context, context.sequence() as session:
        if not reader.is_worth(0, tokens):
            return None
        begun = time.perf_counter()
        reader.prefill(session, some_tokens(model, tokens), SILENT)
        return time.perf_counter() - begun if session.n_past == tokens else None


def fill(session: Session, depth: int) -> None:
    """Make an empty session hold `depth` tokens."""
    tokens = some_tokens(session.context.model, depth)
    if not tokens:
        return
    if session.context.model.sliding_window:
        session.prefill(tokens)
    else:
        session.import_state(_random_state(session, depth), tokens)


def some_tokens(model: Model, count: int) -> list[int]:
    """Tokens of the vocabulary, the same ones every time."""
    return random.Random(0).choices(range(model.vocab_size), k=count)


def _prefill(session: Session, count: int) -> float | None:
    """Tokens a second of a prompt; the session is as it was."""
    if not count:
        return None
    depth, tokens = session.n_past, some_tokens(session.context.model, count)
    begun = time.perf_counter()
    session.prefill(tokens)
    took = time.perf_counter() - begun
    session.truncate(depth)
    return count / took


def _decode(session: Session, steps: int) -> float | None:
    """Tokens a second of single tokens, after one that warms up.

    Straight through the context, as generate computes them: feed looks for Ctrl-C between operators, which
    costs a small model as much as its decode, and what generate draws might end it.
    """
    if not steps:
        return None
    context, depth = session.context, session.n_past
    times = []
    for position, token in enumerate(some_tokens(context.model, steps + 1), depth):
        begun = time.perf_counter()
        context.decode(_SEQUENCE, (token,), position, (0,))
        context.logits(0)  # which waits for a GPU
        times.append(time.perf_counter() - begun)
    context.cut(_SEQUENCE, depth)
    return 1 / median(times[1:])


def _move(model: Model, depth: int) -> float:
    options = ContextOptions(length=depth + 1, handoff=FlashAttentionSwitch(decode=1))
    with Context(model, options) as context, context.sequence() as session:
        fill(session, depth)
        begun = time.perf_counter()
        context.choose_flash_attention(depth, 1)
        return time.perf_counter() - begun


# ---- states that nothing was computed for --------------------------------------------------------


def _random_state(session: Session, depth: int) -> bytearray:
    """A state of random keys and values, as this session's cache has them."""
    context = session.context
    session.prefill(some_tokens(context.model, 1))
    like = kv_state_layout.read_layout(session.export_state())
    session.truncate(0)
    block = block_elements(like.key_types[0])
    _refuse_too_large(depth * sum(like.key_bytes) * 2)
    key_type, value_type = like.key_types[0], like.value_types[0]
    widths = tuple(size // row_bytes(key_type, block) * block for size in like.key_bytes)  # of values too
    state, layout = kv_state_layout.new_state(
        depth, key_type, value_type, widths, transposed=context.values_transposed
    )
    for type_, regions in ((key_type, layout.keys), (value_type, layout.values)):
        for where, width in zip(regions, widths, strict=True):
            rows = np.frombuffer(state, np.uint8, where.stop - where.start, where.start)
            rows[:] = np.resize(_pattern(type_, width), rows.size)
    return state


@lru_cache(maxsize=8)
def _pattern(type_: TensorType, width: int) -> np.ndarray:
    """Bytes of rows of normal numbers, to be repeated."""
    numbers = np.random.default_rng(0).standard_normal((_PATTERN_ROWS, width)).astype(np.float32)
    return encode(numbers, type_).reshape(-1)


def _refuse_too_large(size: int) -> None:
    available = available_memory()
    if available is not None and size > available:
        raise DoesNotFit(
            f"what fills the cache takes {in_words(size)}, and {in_words(available)} of memory are free"
        )
