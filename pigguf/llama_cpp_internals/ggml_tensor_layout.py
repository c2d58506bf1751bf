"""struct ggml_tensor in memory (ggml/include/ggml.h), for reading nodes of a graph that llama.cpp built.

Its size is compared with ggml_tensor_overhead before a tensor is read
(pigguf/inference/engine/ggml_library.py).
"""

from __future__ import annotations

import ctypes

from pigguf.llama_cpp_internals.log_lines import parse_weight_name

GGML_OBJECT_BYTES = 32  # sizeof(struct ggml_object), which ggml_tensor_overhead adds
TYPE_F32 = 0  # enum ggml_type


class GgmlTensor(ctypes.Structure):
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

    def source(self, index: int) -> GgmlTensor:
        """Return the operand `index` of the operation that computes this tensor."""
        return GgmlTensor.from_address(self.src[index])

    @property
    def text_name(self) -> str:
        """The tensor's name."""
        return str(self.name, "utf-8", "replace")

    @property
    def weight_name(self) -> str:
        """The tensor's name, without what a backend adds to the name of its copies."""
        return parse_weight_name(self.text_name)


TENSOR_OVERHEAD = GGML_OBJECT_BYTES + ctypes.sizeof(GgmlTensor)
