"""Tensor rows of a GGUF, read on demand."""

from __future__ import annotations

import os
from contextlib import suppress
from types import TracebackType

import numpy as np

from pigguf.common.file_io import read_error, read_exactly
from pigguf.common.lazy_tensor import Array
from pigguf.gguf_io.layout import GGUFFile, GGUFTensor, row_bytes


class TensorData:
    """The tensor bytes of a GGUF, in all its shards; read on demand, not memory-mapped, from any thread.

    Raises:
        ReadError: a shard cannot be opened.
    """

    def __init__(self, file: GGUFFile) -> None:
        self._shards = file.shards
        self._descriptors: list[int] = []
        for path in file.shards:
            try:
                self._descriptors.append(os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0)))
            except OSError as error:
                self.close()
                raise read_error(path, error) from error

    def rows(self, tensor: GGUFTensor, start: int, stop: int) -> Array:
        """Read rows [start, stop) as stored: (stop - start, row_bytes), uint8.

        Raises:
            ReadError: the file became shorter after its header was read.
        """
        width = row_bytes(tensor.type, tensor.row_elements)
        buffer = np.empty((stop - start, width), np.uint8)
        offset = tensor.offset + start * width
        view = memoryview(buffer).cast("B")
        read_exactly(self._descriptors[tensor.shard], view, offset, self._shards[tensor.shard])
        return buffer

    def close(self) -> None:
        """Close the files. Calling it twice is fine."""
        while self._descriptors:
            with suppress(OSError):
                os.close(self._descriptors.pop())

    def __enter__(self) -> TensorData:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
