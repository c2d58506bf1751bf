"""C functions called through ctypes besides llama-cpp-python's own bindings, and their signatures.

Types are spelled as in C. A private symbol has no declaration in an installed header: an upgrade may rename
it without notice.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import Any, NamedTuple


class CFunction(NamedTuple):
    """A function of a shared library and its signature."""

    name: str
    restype: Any
    argtypes: tuple[Any, ...]


_INT, _SIZE, _POINTER, _STRING = ctypes.c_int, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_char_p
_U32 = ctypes.c_uint32

# ggml/include/ggml-backend.h: devices and backends
DEVICE_FUNCTIONS = (
    CFunction("ggml_backend_dev_count", _SIZE, ()),
    CFunction("ggml_backend_dev_get", _POINTER, (_SIZE,)),
    CFunction("ggml_backend_dev_name", _STRING, (_POINTER,)),
    CFunction("ggml_backend_dev_description", _STRING, (_POINTER,)),
    CFunction("ggml_backend_dev_type", _INT, (_POINTER,)),
    CFunction("ggml_backend_dev_memory", None, (_POINTER, _POINTER, _POINTER)),
    CFunction("ggml_backend_dev_backend_reg", _POINTER, (_POINTER,)),
    CFunction("ggml_backend_dev_buffer_type", _POINTER, (_POINTER,)),
    CFunction("ggml_backend_dev_by_name", _POINTER, (_STRING,)),
    CFunction("ggml_backend_buft_name", _STRING, (_POINTER,)),
    CFunction("ggml_backend_reg_name", _STRING, (_POINTER,)),
    CFunction("ggml_backend_reg_by_name", _POINTER, (_STRING,)),
    CFunction("ggml_backend_reg_get_proc_address", _POINTER, (_POINTER, _STRING)),
    CFunction("ggml_backend_reg_dev_count", _SIZE, (_POINTER,)),
    CFunction("ggml_backend_reg_dev_get", _POINTER, (_POINTER, _SIZE)),
)
# ggml/include/ggml.h and ggml-backend.h: tensors, graphs and buffers
TENSOR_FUNCTIONS = (
    CFunction("ggml_tensor_overhead", _SIZE, ()),
    CFunction("ggml_op_name", _STRING, (_INT,)),
    CFunction("ggml_nbytes", _SIZE, (_POINTER,)),
    CFunction("ggml_graph_n_nodes", _INT, (_POINTER,)),
    CFunction("ggml_graph_node", _POINTER, (_POINTER, _INT)),
    CFunction("ggml_backend_buffer_is_host", ctypes.c_bool, (_POINTER,)),
    CFunction("ggml_backend_buffer_get_type", _POINTER, (_POINTER,)),
    CFunction("ggml_backend_buft_get_alloc_size", _SIZE, (_POINTER, _POINTER)),
    CFunction("ggml_backend_tensor_get", None, (_POINTER, _POINTER, _SIZE, _SIZE)),
)

# Private, of libllama: ggml_cgraph * llama_graph_reserve(llama_context *, uint32_t n_tokens, uint32_t n_seqs,
# uint32_t n_outputs), declared in src/llama-ext.h, under its C++ name.
GRAPH_RESERVE = CFunction(
    "_Z19llama_graph_reserveP13llama_contextjjj", _POINTER, (_POINTER, _U32, _U32, _U32)
)

# Looked up with ggml_backend_reg_get_proc_address in the registry "RPC" (ggml/src/ggml-rpc/ggml-rpc.cpp).
RPC_REGISTRY = b"RPC"
RPC_ADD_SERVER = b"ggml_backend_rpc_add_server"
RPC_START_SERVER = b"ggml_backend_rpc_start_server"

# ggml_op_name of the products whose inputs an importance matrix sums (ggml/src/ggml.c, GGML_OP_NAME).
MUL_MAT, MUL_MAT_ID = b"MUL_MAT", b"MUL_MAT_ID"
MAX_OP_NUMBER = 64  # both are below it


def declare(shared_library: Any, functions: Iterable[CFunction]) -> Any:
    """Set restype and argtypes of functions of a ctypes library, and return the library.

    Raises:
        AttributeError: the library has no function of a name.
    """
    for name, restype, argtypes in functions:
        function = getattr(shared_library, name)
        function.restype, function.argtypes = restype, list(argtypes)
    return shared_library
