"""Cache: the K and V of every layer as tensors over the bytes of one sequence's state.

The state is made at its whole length before anything is read, and filled as layers are computed: nothing is
held twice, and what attention reads of it is what llama.cpp will read. Its layout is llama_cpp_internals/kv_state_layout.py's.
"""

from __future__ import annotations

import numpy as np
import torch

from pigguf.gguf_io import TensorType
from pigguf.inference.torch_prefill.supported_models import Shape
from pigguf.llama_cpp_internals.kv_state_layout import Layout, new_state, read_layout

_DTYPES = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}


class Cache:
    """A sequence's K and V, for `cells` tokens from position 0 on.

    Args:
        key_type, value_type: F32, F16 or BF16, as the context has them.
        transposed: how V lies in it.
    """

    def __init__(
        self, shape: Shape, cells: int, key_type: TensorType, value_type: TensorType, *, transposed: bool
    ) -> None:
        self._shape = shape
        self._types = key_type, value_type
        self._transposed = transposed
        self._state, self._layout = self._new(cells)

    def keys(self, layer: int) -> torch.Tensor:
        """(cells, kv_heads, head_dim), a view."""
        return self._by_heads(_keys(self._state, self._layout, layer))

    def values(self, layer: int) -> torch.Tensor:
        """(cells, kv_heads, head_dim), a view; where V is transposed, a dimension's cells are neighbours."""
        return self._by_heads(_values(self._state, self._layout, layer))

    def take(self, state: bytearray) -> None:
        """Copy all that a shorter state has, each token to the cell of its position.

        Raises:
            EngineError: it is not laid out as kv_state.py knows.
        """
        layout = read_layout(state)
        places = None  # where tokens were dropped, later ones lie in their cells
        if (np.diff(layout.positions) != 1).any():
            places = torch.from_numpy(layout.positions.astype(np.int64).argsort())
        _copy(state, layout, self._state, self._layout, layout.cells, places)

    def first(self, cells: int) -> bytearray:
        """The state of the first cells alone; the cache's own bytes where those are all."""
        if cells == self._layout.cells:
            return self._state
        state, layout = self._new(cells)
        _copy(self._state, self._layout, state, layout, cells)
        return state

    def _new(self, cells: int) -> tuple[bytearray, Layout]:
        widths = (self._shape.kv_heads * self._shape.head_dim,) * self._shape.layers
        return new_state(cells, *self._types, widths, transposed=self._transposed)

    def _by_heads(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(-1, self._shape.kv_heads, self._shape.head_dim)


def _keys(state: bytearray, layout: Layout, layer: int) -> torch.Tensor:
    """(cells, width)."""
    return _numbers(state, layout.keys[layer], layout.key_types[layer]).view(layout.cells, -1)


def _values(state: bytearray, layout: Layout, layer: int) -> torch.Tensor:
    """(cells, width)."""
    numbers = _numbers(state, layout.values[layer], layout.value_types[layer])
    return numbers.view(-1, layout.cells).T if layout.transposed else numbers.view(layout.cells, -1)


def _numbers(state: bytearray, where: slice, type_: TensorType) -> torch.Tensor:
    dtype = _DTYPES[type_]
    count = (where.stop - where.start) // dtype.itemsize
    return torch.frombuffer(state, dtype=dtype, count=count, offset=where.start)


def _copy(
    source: bytearray,
    source_layout: Layout,
    target: bytearray,
    target_layout: Layout,
    cells: int,
    places: torch.Tensor | None = None,
) -> None:
    """Copy the first cells of every layer, or those at `places` in their order."""
    for layer in range(len(target_layout.keys)):
        for rows in (_keys, _values):
            found = rows(source, source_layout, layer)
            rows(target, target_layout, layer)[:cells] = found[:cells] if places is None else found[places]
