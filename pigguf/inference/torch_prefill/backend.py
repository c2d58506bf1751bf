"""TorchPrefiller: the engine's Prefiller that reads in PyTorch, and when that is worth it.

Left out: the reading itself (reading.py), which imports torch.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pigguf.common.system_memory import available_memory
from pigguf.errors import ReadError
from pigguf.gguf_io import TensorType, row_bytes
from pigguf.inference.engine.context import UNQUANTIZED, ContextOptions
from pigguf.inference.engine.model import Model
from pigguf.inference.torch_prefill.supported_models import Shape, read_shape
from pigguf.progress import Progress, stage

if TYPE_CHECKING:
    from pigguf.inference.engine.session import Session

LEAST = 2048  # tokens of a prompt from which loading torch, and the weights once more, pay
PART = 4096  # tokens that go through all layers together; what is lost where the work is stopped

_ARITHMETIC = frozenset({"avx512_bf16", "amx_bf16"})  # in bfloat16, as /proc/cpuinfo names it

_log = logging.getLogger("pigguf")


class TorchPrefiller:
    """Reads long prompts for the contexts of one model that are made with the same options.

    Args:
        least: shorter prompts are left to llama.cpp.
    """

    def __init__(self, model: Model, options: ContextOptions, least: int = LEAST) -> None:
        self._model = model
        self._options = options
        self._least = least
        self._shape = _supported(model, options)

    @property
    def is_supported(self) -> bool:
        """Whether this model's prompts are read here at all, on this machine."""
        return self._shape is not None and bool(bfloat16_arithmetic()) and _has_torch()

    def is_worth(self, held: int, count: int) -> bool:
        """As Prefiller has it: they are enough, and there is memory for it."""
        if count < self._least or self._shape is None or not self.is_supported:
            return False
        available = available_memory()
        return available is None or needed_bytes(self._shape, self._options, held, count) < available

    def prefill(self, session: Session, tokens: Sequence[int], progress: Progress) -> None:
        """As Prefiller has it. Where torch fails, or computes something else than llama.cpp, a warning
        says so, the session is as far as it came, and nothing is worth it any more."""
        from pigguf.inference.torch_prefill.forward import Unproved
        from pigguf.inference.torch_prefill.prefill import read_prompt

        assert self._shape is not None
        with stage(progress, "prefill", len(tokens), "tokens"):
            try:
                read_prompt(self._shape, session, tokens, progress)
            except (Unproved, ReadError, RuntimeError, MemoryError) as error:  # torch's are RuntimeErrors
                self._shape = None
                _log.warning("PyTorch cannot read prompts of %s, llama.cpp does: %s", self._model.path, error)


@cache
def bfloat16_arithmetic() -> frozenset[str]:
    """Which instructions for it the CPU has; none where the system does not tell."""
    try:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        return frozenset()
    return _ARITHMETIC & set(flags[1].split()) if flags else frozenset()


def _has_torch() -> bool:
    return importlib.util.find_spec("torch") is not None


def _supported(model: Model, options: ContextOptions) -> Shape | None:
    unquantized = {options.cache_k, options.cache_v} <= set(UNQUANTIZED)
    return read_shape(model.file, model.rope) if unquantized and not model.gpu_layers else None


def cache_types(options: ContextOptions) -> tuple[TensorType, TensorType]:
    """Of K and of V."""
    return getattr(TensorType, options.cache_k.upper()), getattr(TensorType, options.cache_v.upper())


def needed_bytes(shape: Shape, options: ContextOptions, held: int, count: int) -> int:
    """Memory that a reading takes beside the context."""
    cells, part = held + count, min(count, PART)
    width = shape.kv_heads * shape.head_dim
    cell = sum(row_bytes(type_, width) for type_ in cache_types(options))
    state = (cells + held) * cell * shape.layers  # and what the session held
    one_layer = 2 * (cells * (2 * width + 2 * shape.kv_heads) + shape.layer_elements)
    vectors = 4 * part * (3 * shape.width + 4 * shape.heads * shape.head_dim)
    return state + one_layer + vectors
