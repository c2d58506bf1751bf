"""read_header: a GGUF's header, of one file or joined from the parts of a split one."""

from __future__ import annotations

import os

from pigguf.errors import UnsupportedModel
from pigguf.gguf_file.layout import GGUFFile
from pigguf.gguf_file.read import read_part
from pigguf.metadata import get


def read_header(path: str | os.PathLike[str]) -> GGUFFile:
    """Read and check a GGUF header.

    Raises:
        GGUFError: the file is missing, not GGUF, damaged, or shorter than its header says.
        UnsupportedModel: a whole GGUF of a sort that is not read (version 1, big-endian, split).
        ReadError: the system refuses to read it.
    """
    file = read_part(path)
    count = get(file.metadata, "split.count", int, 0)
    if count is not None and count > 1:
        raise UnsupportedModel(
            f"{path}: one part of a GGUF split into {count} files (split.count)",
            "join the parts with llama.cpp's llama-gguf-split --merge",
        )
    return file
