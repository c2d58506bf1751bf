"""Lazy tensors: a name, a shape and a function that reads rows.

A GGUF header has every shape and type before the first byte of data, so a conversion first plans with lazy
tensors and then reads them, a slab of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SLAB_ELEMENTS = (
    1 << 20
)  # what a worker thread handles at a time: memory use does not depend on the size of the model


def row_count(shape: tuple[int, ...]) -> int:
    """Return the number of rows: the product of all axes but the last; of a vector, its length."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


@dataclass(frozen=True)
class LazyTensor:
    """A float tensor that is read in slabs of rows.

    Attributes:
        name: its name in the file it comes from (checkpoint or GGUF).
        shape: dimensions, rows first as in numpy and torch: (n_out, n_in) for a matrix.
        dtype: the type it is stored as: "F32", "F16" or "BF16".
        read: read(start, stop) returns rows [start, stop), as float32, float16 or ml_dtypes.bfloat16
            according to dtype. The last axis is a row, all axes before it are flattened; the rows of a 1-D
            tensor are its elements.
        row_group: slabs must start and end at multiples of this many rows (a matrix that is stored
            transposed is read as a whole).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Array]
    row_group: int = 1

    @property
    def rows(self) -> int:
        """The number of rows."""
        return row_count(self.shape)

    @property
    def row_elements(self) -> int:
        """The number of elements of a row."""
        return 1 if len(self.shape) <= 1 else self.shape[-1]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.rows * self.row_elements

    def slabs(self, max_elements: int) -> Iterator[tuple[int, int]]:
        """Yield row ranges that cover the tensor, of at most `max_elements` each, or of one row group.

        A tensor without elements yields none, whatever its number of rows.
        """
        groups = max(1, max_elements // max(1, self.row_elements * self.row_group))
        step = groups * self.row_group
        for start in range(0, self.rows if self.elements else 0, step):
            yield start, min(start + step, self.rows)

    def equals(self, other: LazyTensor) -> bool:
        """Return whether both have the same shape, dtype and values; they are read in slabs."""
        same_type = (self.shape, self.dtype) == (other.shape, other.dtype)
        return same_type and all(
            np.array_equal(self.read(start, stop), other.read(start, stop))
            for start, stop in self.slabs(SLAB_ELEMENTS)
        )

    def load(self) -> Array:
        """Return the whole tensor. For small tensors and tests: a conversion reads slabs."""
        return self.read(0, self.rows).reshape(self.shape)
