"""Tensors as promises: a name, a shape and a way to read rows, nothing loaded.

A GGUF header lists every shape and type before the first byte of data, so a conversion
first arranges promises and only then reads them, a bounded slab of rows at a time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

SLAB_ELEMENTS = 1 << 20  # what one worker handles at a time: memory stays flat whatever the model's size


def row_count(shape: tuple[int, ...]) -> int:
    """Rows of a tensor: all axes but the last; of a vector, its elements."""
    return shape[0] if len(shape) == 1 else math.prod(shape[:-1])


@dataclass(frozen=True)
class LazyTensor:
    """One float tensor that can be read in slabs of rows.

    Attributes:
        name: its name in the world it comes from (checkpoint or GGUF).
        shape: dimensions, rows first as in numpy and torch: (n_out, n_in) for a matrix.
        dtype: how it is stored: "F32", "F16" or "BF16".
        read: read(start, stop) -> rows [start, stop), as float32, float16 or ml_dtypes.bfloat16 according
            to dtype. The last axis is a row, and all before it are counted through; 1-D tensors count
            elements as rows.
        row_group: slabs must begin and end at multiples of this many rows (a matrix that is kept the
            other way round is read whole).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[int, int], Array]
    row_group: int = 1

    @property
    def rows(self) -> int:
        return row_count(self.shape)

    @property
    def row_elements(self) -> int:
        """Elements of a row."""
        return 1 if len(self.shape) <= 1 else self.shape[-1]

    @property
    def elements(self) -> int:
        return self.rows * self.row_elements

    def slabs(self, max_elements: int) -> Iterator[tuple[int, int]]:
        """Row ranges that cover the tensor, none with more than max_elements unless one group is.

        A tensor without elements has none, however many rows it says it has.
        """
        groups = max(1, max_elements // max(1, self.row_elements * self.row_group))
        step = groups * self.row_group
        for start in range(0, self.rows if self.elements else 0, step):
            yield start, min(start + step, self.rows)

    def equals(self, other: LazyTensor) -> bool:
        """Whether both have the same shape, dtype and values; reads them in slabs."""
        alike = (self.shape, self.dtype) == (other.shape, other.dtype)
        return alike and all(
            np.array_equal(self.read(start, stop), other.read(start, stop))
            for start, stop in self.slabs(SLAB_ELEMENTS)
        )

    def load(self) -> Array:
        """The whole tensor. For small ones and tests: conversion reads slabs."""
        return self.read(0, self.rows).reshape(self.shape)
