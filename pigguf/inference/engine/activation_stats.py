"""Activation statistics for an importance matrix: sums of squares of the inputs of weight matrices.

llama.cpp's scheduler asks a callback for every node of a graph whether its data is wanted, and calls it again
once the node is computed. Wanted are the products with weights of layers, and their other operand is what is
summed. A batch counts when it was computed to its end, so one that was aborted and computed again counts
once.

Upstream: tools/imatrix/imatrix.cpp (collect_imatrix), ggml-backend.h. Sums of a batch are single precision as
there, sums of batches are double. The output matrix is left out, as llama-imatrix does by default.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.errors import BackendUnavailable, EngineError
from pigguf.inference.engine import library
from pigguf.inference.engine.ggml_library import ggml_with_tensors
from pigguf.llama_cpp_internals import ENGINE_VERSION_HINT
from pigguf.llama_cpp_internals.ggml_tensor_layout import TYPE_F32, GgmlTensor
from pigguf.llama_cpp_internals.symbols import MAX_OP_NUMBER, MUL_MAT, MUL_MAT_ID
from pigguf.quantization import ImatrixSums

MIN_BATCH_TOKENS = 16  # products with fewer rows are skipped, as upstream does


class ActivationCollector:
    """Sums the squares of the inputs of weight matrices during one Context's decode.

    Attributes:
        callback: for llama_context_params.cb_eval.
    """

    def __init__(self) -> None:
        self._ggml = ggml_with_tensors()
        self._mul_mat, self._mul_mat_id = _product_ops()
        self._sums: dict[str, ImatrixSums] = {}
        self._batch_sums: dict[str, ImatrixSums] = {}
        self._last_input: tuple[int, Array] = (0, np.empty(0))  # address and sum
        self._failure: BaseException | None = None
        self.callback = library.load().ggml_backend_sched_eval_callback(self._receive)

    @property
    def sums(self) -> dict[str, ImatrixSums]:
        """The sums so far, by the name of the weight tensor."""
        return dict(self._sums)

    def end_batch(self, computed: bool) -> None:
        """Add the batch's sums if it was computed to its end, and discard them otherwise.

        Raises:
            EngineError: an input was not a finite number.
        """
        batch_sums, failure = self._batch_sums, self._failure
        self._batch_sums, self._failure, self._last_input = {}, None, (0, np.empty(0))
        if failure is not None:
            raise failure
        if computed:
            for name, sums in batch_sums.items():
                self._sums[name] = _add(self._sums.get(name), sums)

    def _receive(self, address: int, ask: bool, _: object) -> bool:
        """Return whether a node is wanted, or whether to continue; called by C, so no exception may leave."""
        op = ctypes.c_int.from_address(address + GgmlTensor.op.offset).value
        if op not in (self._mul_mat, self._mul_mat_id) or self._failure is not None:
            return False
        try:
            node = GgmlTensor.from_address(address)
            if ask:
                return self._wants(node)
            self._collect(node)
        except BaseException as error:
            self._failure = error
        return self._failure is None

    def _wants(self, node: GgmlTensor) -> bool:
        weight, inputs = node.source(0), node.source(1)
        if inputs.type != TYPE_F32 or not weight.weight_name.startswith("blk."):
            return False
        return bool(node.op == self._mul_mat_id or inputs.ne[1] >= MIN_BATCH_TOKENS)

    def _collect(self, node: GgmlTensor) -> None:
        weight = node.source(0)
        name = weight.weight_name
        is_experts = node.op == self._mul_mat_id
        sums = self._sum_experts(node, weight) if is_experts else self._sum_product(node, weight)
        if not np.isfinite(sums.squares).all():
            raise EngineError(
                f"an input of {name} is not a finite number",
                "the file is damaged, or the text leads the model astray: try a model of another type",
            )
        self._batch_sums[name] = _add(self._batch_sums.get(name), sums)

    def _sum_product(self, node: GgmlTensor, weight: GgmlTensor) -> ImatrixSums:
        inputs = node.source(1)
        n_matrices = weight.ne[2] * weight.ne[3]
        if n_matrices == 1:
            squares = self._sum_all_rows(node.src[1], inputs)
        else:
            values = self._values(inputs, np.float32)
            squares = np.zeros((n_matrices, inputs.ne[0]))
            for i3 in range(inputs.ne[3]):
                for i2 in range(inputs.ne[2]):
                    matrix = i3 % weight.ne[3] * weight.ne[2] + i2 % weight.ne[2]
                    squares[matrix] += _sum_of_squares(values[i3, i2])
        n_rows = inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
        return ImatrixSums(squares, np.array([n_rows // n_matrices]))

    def _sum_all_rows(self, address: int, inputs: GgmlTensor) -> Array:
        """Return the sum over all rows, (1, columns); products in a row that share an input share it."""
        if self._last_input[0] != address:
            values = self._values(inputs, np.float32)
            self._last_input = address, _sum_of_squares(values.reshape(-1, inputs.ne[0]))[None]
        return self._last_input[1]

    def _sum_experts(self, node: GgmlTensor, weight: GgmlTensor) -> ImatrixSums:
        """Return for each expert the sum over the rows that were routed to it."""
        inputs, expert_ids = node.source(1), node.source(2)
        values = self._values(inputs, np.float32)[0]  # (n_tokens, n_used or 1, columns)
        experts = self._values(expert_ids, np.int32)[0, 0]  # (n_tokens, n_used)
        squares, counts = np.zeros((weight.ne[2], inputs.ne[0])), np.zeros(weight.ne[2], np.int64)
        for expert in np.unique(experts):
            tokens, slots = np.nonzero(experts == expert)
            squares[expert] = _sum_of_squares(values[tokens, slots % inputs.ne[1]])
            counts[expert] = len(tokens)
        return ImatrixSums(squares, counts)

    def _values(self, tensor: GgmlTensor, dtype: Any) -> Array:
        """Return a tensor's values, axes in numpy's order: a view of host memory, or a copy from a device."""
        size = self._ggml.ggml_nbytes(ctypes.byref(tensor))
        if self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            raw = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = (ctypes.c_char * size)()
            self._ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw, 0, size)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.ndarray(shape, dtype, raw, strides=strides)


def _sum_of_squares(rows: Array) -> Array:
    """Return the sums of squares over the rows: (n_rows, columns) -> (columns,), float64."""
    summed: Array = np.einsum("ij,ij->j", rows, rows)
    return summed.astype(np.float64)


def _add(total: ImatrixSums | None, more: ImatrixSums) -> ImatrixSums:
    return more if total is None else ImatrixSums(total.squares + more.squares, total.counts + more.counts)


@cache
def _product_ops() -> tuple[int, int]:
    """Return ggml's numbers of MUL_MAT and MUL_MAT_ID.

    Raises:
        BackendUnavailable: it has no operations of these names.
    """
    names = [ggml_with_tensors().ggml_op_name(number) for number in range(MAX_OP_NUMBER)]
    if MUL_MAT not in names or MUL_MAT_ID not in names:
        raise BackendUnavailable(
            "the engine names its matrix products differently than this version of pigguf expects",
            ENGINE_VERSION_HINT,
        )
    return names.index(MUL_MAT), names.index(MUL_MAT_ID)
