"""A GGUF file's positions: its keys, and the small tensors with frequency factors.

Not here: what they mean (rope/).
"""

from __future__ import annotations

import numpy as np

from pigguf.errors import GGUFError
from pigguf.gguf_io import GGUFFile, TensorData, TensorType
from pigguf.gguf_io.metadata import FOREIGN_FILE_HINT
from pigguf.rope import POSITION_TENSORS, Positions, rope_from_metadata


def rope_from_gguf(file: GGUFFile) -> Positions:
    """Return a file's positions as llama.cpp reads them.

    Raises:
        GGUFError: llama.cpp refuses a key, or a tensor is not a vector of F32, on which it aborts (ggml.c,
            ggml_rope_impl).
        ReadError: The file became shorter since its header was read.
    """
    present = [file.tensors[name] for name in POSITION_TENSORS if name in file.tensors]
    for tensor in present:
        if tensor.type != TensorType.F32 or len(tensor.shape) != 1:
            raise GGUFError(
                f"{file.path}: {tensor.name} is {tensor.type.name} {tensor.shape}, not an F32 vector",
                FOREIGN_FILE_HINT,
            )
    if not present:
        return rope_from_metadata(file.metadata, file.architecture)
    with TensorData(file) as data:
        values = {tensor.name: data.rows(tensor, 0, 1).view(np.float32)[0] for tensor in present}
    return rope_from_metadata(file.metadata, file.architecture, values)
