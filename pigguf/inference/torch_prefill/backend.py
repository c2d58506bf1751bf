"""TorchPrefiller: the engine's Prefiller that computes prompts in PyTorch, and when it is used.

Nothing here imports torch; torch_prefill/prefill.py does, when a prompt is prefilled.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from pigguf.common.system_memory import available_memory
from pigguf.errors import ReadError
from pigguf.gguf_io import GGUFFile, TensorType, row_bytes
from pigguf.inference.engine.context_options import UNQUANTIZED_CACHE_TYPES, ContextOptions
from pigguf.inference.engine.kv_sequence import KVSequence
from pigguf.inference.engine.model import Model
from pigguf.inference.torch_prefill.supported_models import ModelShape, read_model_shape
from pigguf.progress import Progress, stage
from pigguf.rope import Positions

MIN_PROMPT_TOKENS = 2048  # from this length on, importing torch and reading the weights again pays off
CHUNK_TOKENS = 4096  # tokens that go through all layers together; an interrupted chunk is lost

_BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})  # as /proc/cpuinfo names them

_log = logging.getLogger("pigguf")


def supports_torch_prefill(file: GGUFFile, rope: Positions, options: ContextOptions, gpu_layers: int) -> bool:
    """Return whether PyTorch can prefill prompts of this model on this machine.

    Args:
        file: a header that passed `check_loadable`.
        rope: the positions in effect.
        options: the context's options.
        gpu_layers: how many layers are on GPUs.
    """
    shape = _supported_shape(file, rope, options, gpu_layers)
    return shape is not None and bool(bfloat16_instructions()) and _has_torch()


class TorchPrefiller:
    """A Prefiller that computes long prompts in PyTorch, for the contexts of one model with the same options.

    Args:
        min_tokens: shorter prompts are left to llama.cpp.
    """

    def __init__(self, model: Model, options: ContextOptions, min_tokens: int = MIN_PROMPT_TOKENS) -> None:
        self._model = model
        self._options = options
        self._min_tokens = min_tokens
        self._shape = _supported_shape(model.file, model.rope, options, model.gpu_layers)

    @property
    def is_supported(self) -> bool:
        """Whether this model's prompts can be computed in PyTorch on this machine."""
        return self._shape is not None and bool(bfloat16_instructions()) and _has_torch()

    def should_prefill(self, n_past: int, count: int) -> bool:
        """Return whether the prompt has enough tokens, and there is enough memory for it; see Prefiller."""
        if count < self._min_tokens or self._shape is None or not self.is_supported:
            return False
        available = available_memory()
        needed = prefill_memory_bytes(self._shape, self._options, n_past, count)
        return available is None or needed < available

    def prefill(self, session: KVSequence, tokens: Sequence[int], progress: Progress) -> None:
        """Append tokens to the session; see Prefiller.

        If torch fails, or its results differ from llama.cpp's, a warning is logged, the session keeps the
        tokens that were computed, and llama.cpp prefills from then on.
        """
        from pigguf.inference.torch_prefill.forward import PrefillMismatch
        from pigguf.inference.torch_prefill.prefill import prefill_prompt

        assert self._shape is not None
        with stage(progress, "prefill", len(tokens), "tokens"):
            try:
                prefill_prompt(self._shape, session, tokens, progress)
            except (PrefillMismatch, ReadError, RuntimeError, MemoryError) as error:  # torch's: RuntimeError
                self._shape = None
                _log.warning(
                    "PyTorch cannot prefill prompts of %s, llama.cpp does: %s", self._model.path, error
                )


@cache
def bfloat16_instructions() -> frozenset[str]:
    """Return the CPU's bfloat16 instruction sets; empty if the system does not report them."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return _BFLOAT16_FLAGS & set(flags[1].split()) if flags else frozenset()


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _supported_shape(
    file: GGUFFile, rope: Positions, options: ContextOptions, gpu_layers: int
) -> ModelShape | None:
    unquantized = {options.cache_k, options.cache_v} <= set(UNQUANTIZED_CACHE_TYPES)
    return read_model_shape(file, rope) if unquantized and not gpu_layers else None


def kv_tensor_types(options: ContextOptions) -> tuple[TensorType, TensorType]:
    """Return the tensor types of the K and the V cache."""
    return getattr(TensorType, options.cache_k.upper()), getattr(TensorType, options.cache_v.upper())


def prefill_memory_bytes(shape: ModelShape, options: ContextOptions, n_past: int, count: int) -> int:
    """Return the bytes that prefilling `count` tokens after `n_past` needs in addition to the context."""
    cells, chunk = n_past + count, min(count, CHUNK_TOKENS)
    kv_width = shape.n_head_kv * shape.head_dim
    cell_bytes = sum(row_bytes(type_, kv_width) for type_ in kv_tensor_types(options))
    state = (cells + n_past) * cell_bytes * shape.n_layer  # the new state, and the session's own
    one_layer = 2 * (cells * (2 * kv_width + 2 * shape.n_head_kv) + shape.layer_elements)
    activations = 4 * chunk * (3 * shape.n_embd + 4 * shape.n_head * shape.head_dim)
    return state + one_layer + activations
