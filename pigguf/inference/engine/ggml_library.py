"""ggml's shared library with the signatures of the functions that pigguf calls; llama_cpp has loaded it."""

from __future__ import annotations

from functools import cache
from typing import Any

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine import library
from pigguf.llama_cpp_internals import ENGINE_VERSION_HINT
from pigguf.llama_cpp_internals.ggml_tensor_layout import TENSOR_OVERHEAD
from pigguf.llama_cpp_internals.symbols import DEVICE_FUNCTIONS, TENSOR_FUNCTIONS, declare


@cache
def ggml() -> Any:
    """Return ggml's shared library with the functions on devices and backends.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    library.load()
    import llama_cpp._ggml

    return declare(llama_cpp._ggml.libggml, DEVICE_FUNCTIONS)


@cache
def ggml_with_tensors() -> Any:
    """Return ggml's shared library with the functions on tensors and graphs too.

    Raises:
        BackendUnavailable: the engine cannot be loaded, or its tensors do not have the layout of GgmlTensor.
    """
    shared_library = declare(ggml(), TENSOR_FUNCTIONS)
    if shared_library.ggml_tensor_overhead() != TENSOR_OVERHEAD:
        raise BackendUnavailable(
            "the engine's tensors are not laid out in memory as this version of pigguf expects",
            ENGINE_VERSION_HINT,
        )
    return shared_library
