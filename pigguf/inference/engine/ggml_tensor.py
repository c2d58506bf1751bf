"""A tensor as it lies in ggml's memory, for whoever looks into a graph that llama.cpp built.

The layout is compared with the library's own size of it before anything is read by it.
Upstream: ggml.h (struct ggml_tensor).
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

from pigguf.errors import BackendUnavailable
from pigguf.inference.engine import library

_OBJECT_BYTES = 32  # sizeof(struct ggml_object)


class Tensor(ctypes.Structure):
    """struct ggml_tensor."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )

    def source(self, number: int) -> Tensor:
        """What the tensor is computed from."""
        return Tensor.from_address(self.src[number])

    @property
    def weight_name(self) -> str:
        """The name without what a backend puts around its copies: "CUDA0#blk.0.attn_k.weight#0"."""
        name = str(self.name, "utf-8", "replace")
        return name.split("#")[1] if "#" in name else name


@cache
def ggml() -> Any:
    """ggml's shared library with the signatures that are used on tensors.

    Raises:
        BackendUnavailable: tensors lie in memory in another way than this module knows.
    """
    library.load()
    import llama_cpp._ggml

    shared = llama_cpp._ggml.libggml
    size, handle = ctypes.c_size_t, ctypes.c_void_p
    for name, result, arguments in (
        ("ggml_tensor_overhead", size, []),
        ("ggml_op_name", ctypes.c_char_p, [ctypes.c_int]),
        ("ggml_nbytes", size, [handle]),
        ("ggml_graph_n_nodes", ctypes.c_int, [handle]),
        ("ggml_graph_node", handle, [handle, ctypes.c_int]),
        ("ggml_backend_buffer_is_host", ctypes.c_bool, [handle]),
        ("ggml_backend_buffer_get_type", handle, [handle]),
        ("ggml_backend_buft_name", ctypes.c_char_p, [handle]),
        ("ggml_backend_buft_get_alloc_size", size, [handle, handle]),
        ("ggml_backend_tensor_get", None, [handle, handle, size, size]),
    ):
        function = getattr(shared, name)
        function.restype, function.argtypes = result, arguments
    if shared.ggml_tensor_overhead() != _OBJECT_BYTES + ctypes.sizeof(Tensor):
        raise BackendUnavailable(
            "the engine's tensors lie in memory in a way that this pigguf does not know",
            "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for",
        )
    return shared
