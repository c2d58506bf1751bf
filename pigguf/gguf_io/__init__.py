"""GGUF files: read a header and check it, read tensor rows, write files as streams, whole or in parts.

The only importer of the `gguf` package, for its tables of types; reading and writing are our own.

    layout   what a file is made of, and a header as a value
    read     one file's header, tensor rows
    split    how a model is cut into files: names, keys, which tensor goes where
    join     read_header: the header of a model, from one file or all its parts
    write    a header's bytes, files as streams
"""

from pigguf.gguf_io.layout import (
    DEFAULT_ALIGNMENT,
    GGUFFile,
    GGUFTensor,
    TensorType,
    block_elements,
    named,
    row_bytes,
)
from pigguf.gguf_io.read_shards import read_header
from pigguf.gguf_io.reader import TensorData, read_part
from pigguf.gguf_io.shard_plan import planned_files
from pigguf.gguf_io.writer import (
    PlannedFile,
    PlannedTensor,
    TensorInfo,
    file_bytes,
    header_bytes,
    write_files,
    write_gguf,
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
    "file_bytes",
    "header_bytes",
    "named",
    "planned_files",
    "read_header",
    "read_part",
    "row_bytes",
    "write_files",
    "write_gguf",
]
