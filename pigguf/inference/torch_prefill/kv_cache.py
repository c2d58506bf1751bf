"""K and V of every layer as tensors over the bytes of one sequence's state.

The state is allocated at its full length first, and filled while layers are computed: nothing is stored
twice, and attention reads the same bytes that llama.cpp will read. Its layout is defined in
llama_cpp_internals/kv_state_layout.py.
"""

from __future__ import annotations

import numpy as np
import torch

from pigguf.gguf_io import TensorType
from pigguf.inference.torch_prefill.supported_models import ModelShape
from pigguf.llama_cpp_internals.kv_state_layout import KVStateLayout, new_state, read_layout

_DTYPES = {TensorType.F32: torch.float32, TensorType.F16: torch.float16, TensorType.BF16: torch.bfloat16}


class KVCacheTensors:
    """A sequence's K and V, for `n_cells` tokens from position 0 on.

    Args:
        shape: the model's dimensions.
        n_cells: how many tokens.
        key_type, value_type: F32, F16 or BF16, as in the context.
        transposed: whether V is transposed in the context.
    """

    def __init__(
        self,
        shape: ModelShape,
        n_cells: int,
        key_type: TensorType,
        value_type: TensorType,
        *,
        transposed: bool,
    ) -> None:
        self._shape = shape
        self._types = key_type, value_type
        self._transposed = transposed
        self._state, self._layout = self._new_state(n_cells)

    def keys(self, layer: int) -> torch.Tensor:
        """Return a view of a layer's keys: (n_cells, n_head_kv, head_dim)."""
        return self._by_heads(_keys(self._state, self._layout, layer))

    def values(self, layer: int) -> torch.Tensor:
        """Return a view of a layer's values: (n_cells, n_head_kv, head_dim).

        If V is transposed, the cells of one dimension are adjacent in memory.
        """
        return self._by_heads(_values(self._state, self._layout, layer))

    def load_state(self, state: bytearray) -> None:
        """Copy the K and V of a shorter state, each token to the cell of its position.

        Raises:
            EngineError: its layout is not the one that kv_state_layout knows.
        """
        layout = read_layout(state)
        order = None  # differs if tokens were removed: their cells were reused for later ones
        if (np.diff(layout.positions) != 1).any():
            order = torch.from_numpy(layout.positions.astype(np.int64).argsort())
        _copy(state, layout, self._state, self._layout, layout.cells, order)

    def truncated_state(self, n_cells: int) -> bytearray:
        """Return the state of the first `n_cells` cells; the cache's own bytes if those are all."""
        if n_cells == self._layout.cells:
            return self._state
        state, layout = self._new_state(n_cells)
        _copy(self._state, self._layout, state, layout, n_cells)
        return state

    def _new_state(self, n_cells: int) -> tuple[bytearray, KVStateLayout]:
        widths = (self._shape.n_head_kv * self._shape.head_dim,) * self._shape.n_layer
        return new_state(n_cells, *self._types, widths, transposed=self._transposed)

    def _by_heads(self, rows: torch.Tensor) -> torch.Tensor:
        return rows.view(-1, self._shape.n_head_kv, self._shape.head_dim)


def _keys(state: bytearray, layout: KVStateLayout, layer: int) -> torch.Tensor:
    """Return a view: (n_cells, n_head_kv * head_dim)."""
    return _as_tensor(state, layout.keys[layer], layout.key_types[layer]).view(layout.cells, -1)


def _values(state: bytearray, layout: KVStateLayout, layer: int) -> torch.Tensor:
    """Return a view: (n_cells, n_head_kv * head_dim)."""
    values = _as_tensor(state, layout.values[layer], layout.value_types[layer])
    return values.view(-1, layout.cells).T if layout.transposed else values.view(layout.cells, -1)


def _as_tensor(state: bytearray, region: slice, type_: TensorType) -> torch.Tensor:
    dtype = _DTYPES[type_]
    count = (region.stop - region.start) // dtype.itemsize
    return torch.frombuffer(state, dtype=dtype, count=count, offset=region.start)


def _copy(
    source: bytearray,
    source_layout: KVStateLayout,
    target: bytearray,
    target_layout: KVStateLayout,
    cells: int,
    order: torch.Tensor | None = None,
) -> None:
    """Copy the first cells of every layer, or the cells that `order` lists."""
    for layer in range(len(target_layout.keys)):
        for rows in (_keys, _values):
            matrix = rows(source, source_layout, layer)
            rows(target, target_layout, layer)[:cells] = matrix[:cells] if order is None else matrix[order]
