"""Measure how fast a setting is at a depth: the real engine, with a KV cache filled without computing it.

    speed = measure_speed(model, SpeedSample(options, depth, prompt=512, steps=8))

The values in a KV cache do not change how long attention takes, so the cache is filled with random keys and
values: a depth of 8192 costs a copy instead of a prefill. Models with sliding-window layers have two caches,
which cannot be filled like that; there the tokens are prefilled. Which samples are worth their time is
decided in timed_comparison.py.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import median

import numpy as np

from pigguf.common.format_bytes import format_memory
from pigguf.common.system_memory import available_memory
from pigguf.errors import DoesNotFit
from pigguf.gguf_io import TensorType, block_elements, row_bytes
from pigguf.inference.engine import Context, ContextOptions, FlashAttentionSwitch, Model, Session
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.tuning.choose_settings import SwitchCost
from pigguf.inference.tuning.profile import SpeedAtDepth
from pigguf.llama_cpp_internals import kv_state_layout
from pigguf.progress import SILENT
from pigguf.quantization.ggml_kernels import encode

_SEQUENCE = 0  # the first one of a context
_PATTERN_ROWS = 64  # rows of random keys and values, which are repeated
_SHALLOW = 32  # tokens; a switch with so few costs what every switch does


@dataclass(frozen=True)
class SpeedSample:
    """What to measure with `depth` tokens in the KV cache.

    Attributes:
        options: the context's options; the length is set by the sample.
        depth: tokens in the KV cache before.
        prompt: tokens of a prompt to prefill; 0 measures no prefill.
        steps: single tokens to decode; 0 measures no decode.
    """

    options: ContextOptions
    depth: int
    prompt: int
    steps: int

    @property
    def length(self) -> int:
        """The context length that the sample needs, in tokens."""
        return self.depth + max(self.prompt, self.steps + 1)


def measure_speed(model: Model, sample: SpeedSample) -> SpeedAtDepth:
    """Measure one sample of a setting's speed.

    Raises:
        DoesNotFit: no memory for the KV cache, or for what fills it.
        EngineError: this model cannot run with the setting, or llama.cpp failed.
    """
    options = replace(sample.options, length=sample.length)
    with Context(model, options) as context, context.sequence() as session:
        fill_cache(session, sample.depth)
        return SpeedAtDepth(
            sample.depth, _measure_prefill(session, sample.prompt), _measure_decode(session, sample.steps)
        )


def measure_switch_cost(model: Model, depth: int) -> SwitchCost:
    """Measure what it costs to change the layout of an f16 KV cache, at `depth` and with few tokens.

    Raises:
        DoesNotFit, EngineError: as `measure_speed` does.
    """
    shallow = min(_SHALLOW, depth)
    shallow_seconds, deep_seconds = _measure_switch(model, shallow), _measure_switch(model, depth)
    per_token = max(0.0, deep_seconds - shallow_seconds) / max(1, depth - shallow)
    return SwitchCost(max(0.0, shallow_seconds - per_token * shallow), per_token)


def measure_torch_prefill(model: Model, options: ContextOptions, tokens: int) -> float | None:
    """Return the seconds in which torch prefills a whole prompt; None if it cannot.

    Raises:
        DoesNotFit, EngineError: as `measure_speed` does.
    """
    options = replace(options, length=tokens)
    prefiller = TorchPrefiller(model, options, min_tokens=1)
    with Context(model, options, prefiller=prefiller) as context, context.sequence() as session:
        if not prefiller.should_prefill(0, tokens):
            return None
        start = time.perf_counter()
        prefiller.prefill(session, random_tokens(model, tokens), SILENT)
        return time.perf_counter() - start if session.n_past == tokens else None


def fill_cache(session: Session, depth: int) -> None:
    """Fill an empty session with `depth` tokens."""
    tokens = random_tokens(session.context.model, depth)
    if not tokens:
        return
    if session.context.model.sliding_window:
        session.prefill(tokens)
    else:
        session.import_state(_random_state(session, depth), tokens)


def random_tokens(model: Model, count: int) -> list[int]:
    """Return random tokens of the vocabulary, the same ones every time."""
    return random.Random(0).choices(range(model.vocab_size), k=count)


def _measure_prefill(session: Session, count: int) -> float | None:
    """Return the tokens per second of a prompt, and restore the session."""
    if not count:
        return None
    depth, tokens = session.n_past, random_tokens(session.context.model, count)
    start = time.perf_counter()
    session.prefill(tokens)
    seconds = time.perf_counter() - start
    session.truncate(depth)
    return count / seconds


def _measure_decode(session: Session, steps: int) -> float | None:
    """Return the tokens per second of single tokens, after one that warms up.

    This calls the context directly, as `generate` does: Session.prefill checks for Ctrl-C between operators,
    which costs a small model as much as its decode, and what `generate` samples might end the answer.
    """
    if not steps:
        return None
    context, depth = session.context, session.n_past
    times = []
    for position, token in enumerate(random_tokens(context.model, steps + 1), depth):
        start = time.perf_counter()
        context.decode(_SEQUENCE, (token,), position, (0,))
        context.logits(0)  # which waits for a GPU
        times.append(time.perf_counter() - start)
    context.truncate(_SEQUENCE, depth)
    return 1 / median(times[1:])


def _measure_switch(model: Model, depth: int) -> float:
    options = ContextOptions(length=depth + 1, flash_attention_switch=FlashAttentionSwitch(decode=1))
    with Context(model, options) as context, context.sequence() as session:
        fill_cache(session, depth)
        start = time.perf_counter()
        context.choose_flash_attention(depth, 1)
        return time.perf_counter() - start


# ---- KV states that were not computed ------------------------------------------------------------


def _random_state(session: Session, depth: int) -> bytearray:
    """Return a state with random keys and values, in the layout of this session's KV cache."""
    context = session.context
    session.prefill(random_tokens(context.model, 1))
    one_token = kv_state_layout.read_layout(session.export_state())
    session.truncate(0)
    key_type, value_type = one_token.key_types[0], one_token.value_types[0]
    _check_fits(depth * sum(one_token.key_bytes) * 2)
    block = block_elements(key_type)
    # the widths of values are those of keys
    widths = tuple(size // row_bytes(key_type, block) * block for size in one_token.key_bytes)
    state, layout = kv_state_layout.new_state(
        depth, key_type, value_type, widths, transposed=context.values_transposed
    )
    for type_, regions in ((key_type, layout.keys), (value_type, layout.values)):
        for region, width in zip(regions, widths, strict=True):
            rows = np.frombuffer(state, np.uint8, region.stop - region.start, region.start)
            rows[:] = np.resize(_random_rows(type_, width), rows.size)
    return state


@lru_cache(maxsize=8)
def _random_rows(type_: TensorType, width: int) -> np.ndarray:
    """Return the bytes of rows of normally distributed numbers, to be repeated."""
    numbers = np.random.default_rng(0).standard_normal((_PATTERN_ROWS, width)).astype(np.float32)
    return encode(numbers, type_).reshape(-1)


def _check_fits(size: int) -> None:
    available = available_memory()
    if available is not None and size > available:
        raise DoesNotFit(
            f"filling the KV cache needs {format_memory(size)}, and {format_memory(available)} are free"
        )
