"""GGUF files: checked headers, tensor rows, and writing of files as streams, whole or in shards.

This is the only package that imports `gguf`, for its tables of types; reading and writing are our own.

    layout         value and tensor types, limits, and a header as a value (GGUFFile, GGUFTensor)
    metadata       typed values of keys, and typed access to them
    header_reader  the header of one file
    read_header    the header of a model, from one file or all its shards
    tensor_data    tensor rows
    shard_plan     how a model is split into shards: names, keys, which tensor goes where
    writer         serialized headers, and files as streams
"""

from pigguf.gguf_io.header_reader import read_shard
from pigguf.gguf_io.layout import (
    DEFAULT_ALIGNMENT,
    GGUFFile,
    GGUFTensor,
    TensorType,
    block_elements,
    errors_name_file,
    row_bytes,
)
from pigguf.gguf_io.read_header import read_header
from pigguf.gguf_io.shard_plan import plan_files
from pigguf.gguf_io.tensor_data import TensorData
from pigguf.gguf_io.writer import (
    PlannedFile,
    PlannedTensor,
    TensorInfo,
    file_size,
    serialize_header,
    write_gguf,
    write_gguf_files,
)

__all__ = [
    "DEFAULT_ALIGNMENT",
    "GGUFFile",
    "GGUFTensor",
    "PlannedFile",
    "PlannedTensor",
    "TensorData",
    "TensorInfo",
    "TensorType",
    "block_elements",
    "errors_name_file",
    "file_size",
    "plan_files",
    "read_header",
    "read_shard",
    "row_bytes",
    "serialize_header",
    "write_gguf",
    "write_gguf_files",
]
