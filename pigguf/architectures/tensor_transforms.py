"""Operations on lazy tensors that a mapping needs: permute rows, transpose, transform values, interpolate.

Reading a slab of the result reads the rows it needs and few others. Not here: which tensor needs which
(tensor_mapping.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from pigguf.architectures.row_permutations import RowIndices
from pigguf.architectures.tensor_names import TensorSpec
from pigguf.architectures.tensor_rules import IDENTITY, ValueTransform
from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor, row_count
from pigguf.errors import InvalidTensor
from pigguf.rope import LearnedPositions

MAX_GAP = 64  # rows between two wanted ones that are read along, instead of reading twice


def invert_permutation(permutation: RowIndices, outputs: Sequence[TensorSpec]) -> RowIndices:
    """Return for each of the checkpoint's rows its index in the GGUF, (n_rows,); -1 where it has none."""
    inverse = np.full(sum(row_count(spec.shape) for spec in outputs), -1, dtype=np.int64)
    inverse[permutation] = np.arange(len(permutation))
    return inverse


def permute_rows(
    inputs: Sequence[LazyTensor], outputs: Sequence[TensorSpec], permutation: RowIndices | None
) -> Iterator[LazyTensor]:
    """Yield tensors whose concatenated rows are those of the concatenated inputs in another order.

    Args:
        inputs: the tensors to read.
        outputs: names and shapes of the results.
        permutation: for each output row the input row, (n_rows,); -1 for a row of zeros; None for the same
            order.
    """
    if permutation is None and len(inputs) == len(outputs) == 1:
        yield replace(inputs[0], name=outputs[0].name, shape=outputs[0].shape)
        return
    n_rows = sum(row_count(spec.shape) for spec in outputs)
    rows = np.arange(n_rows, dtype=np.int64) if permutation is None else permutation
    dtypes = {tensor.dtype for tensor in inputs}
    dtype = dtypes.pop() if len(dtypes) == 1 else "F32"
    if len(inputs) > 1 and dtypes:  # of different types: all become F32
        inputs = [transform_values(tensor, IDENTITY) for tensor in inputs]
    first = 0
    for spec in outputs:
        own_rows = rows[first : first + row_count(spec.shape)]
        first += len(own_rows)
        yield LazyTensor(spec.name, spec.shape, dtype, partial(_read_rows, tuple(inputs), own_rows))


def _read_rows(inputs: tuple[LazyTensor, ...], rows: RowIndices, start: int, stop: int) -> Array:
    """Read rows[start:stop] of the concatenated inputs; rows below 0 are zeros."""
    wanted = rows[start:stop]
    ascending = np.unique(wanted[wanted >= 0])
    runs = np.split(ascending, np.flatnonzero(np.diff(ascending) > MAX_GAP) + 1)
    result: Array | None = None
    first = 0
    for tensor in inputs:
        for run in runs:
            low = max(int(run[0]), first) if len(run) else first
            high = min(int(run[-1]) + 1, first + tensor.rows) if len(run) else first
            if low >= high:
                continue
            values = tensor.read(low - first, high - first)
            if result is None:
                result = np.zeros((len(wanted), *values.shape[1:]), values.dtype)
            in_run = (wanted >= low) & (wanted < high)
            result[in_run] = values[wanted[in_run] - low]
        first += tensor.rows
    if result is None:
        return np.zeros((len(wanted), *inputs[0].shape[1:]), np.float32)
    return result


def transpose(tensor: LazyTensor) -> LazyTensor:
    """Return the transposed matrix, which is read as a whole, in one slab."""

    def read(start: int, stop: int) -> Array:
        return np.ascontiguousarray(tensor.load().T[start:stop])

    shape = tensor.shape[::-1]
    return replace(tensor, shape=shape, read=read, row_group=shape[0])


def transform_values(tensor: LazyTensor, transform: ValueTransform) -> LazyTensor:
    """Return the tensor in F32 with transformed values."""

    def read(start: int, stop: int) -> Array:
        rows = tensor.read(start, stop).astype(np.float32)
        if transform.normalize_rows:  # as torch.nn.functional.normalize
            rows /= np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)
        if transform.scale != 1.0:
            rows *= np.float32(transform.scale)
        if transform.offset != 0.0:
            rows += np.float32(transform.offset)
        return rows

    return replace(tensor, dtype="F32", read=read)


def interpolate_position_table(
    table: LazyTensor, output: TensorSpec, positions: LearnedPositions, n_padding: int
) -> LazyTensor:
    """Return a table of learned positions with rows for another context length.

    Args:
        table: the checkpoint's table, (n_padding + original_context, n_embd).
        output: name and shape of the result, (context_length, n_embd).
        positions: the original and the new context length, and how to interpolate.
        n_padding: rows at the table's start that stand for no position.
    """
    lower_rows, weights = positions.interpolation_weights()
    if not weights.any():
        return next(permute_rows([table], [output], lower_rows + n_padding))

    def read(start: int, stop: int) -> Array:
        lower, weight = lower_rows[start:stop], weights[start:stop, None]
        first = int(lower[0])
        rows = table.read(first + n_padding, int(lower[-1]) + 2 + n_padding).astype(np.float64)
        return ((1 - weight) * rows[lower - first] + weight * rows[lower - first + 1]).astype(np.float32)

    return LazyTensor(output.name, output.shape, "F32", read)


def constant_tensor(spec: TensorSpec, value: float) -> LazyTensor:
    """Return a tensor all of whose values are the same."""

    def read(start: int, stop: int) -> Array:
        return np.full((stop - start, *spec.shape[1:]), value, np.float32)

    return LazyTensor(spec.name, spec.shape, "F32", read)


def check_constant(value: float, tensor: LazyTensor, source: str) -> None:
    """Raise if a tensor has other values than one.

    Raises:
        InvalidTensor: it has.
    """
    for start, stop in tensor.slabs(SLAB_ELEMENTS):
        if (tensor.read(start, stop) != value).any():
            raise InvalidTensor(
                f"{source}: {tensor.name} has values other than {value:g}, and this family has no such "
                "tensor",
                "the file was made from a model of another family",
            )
