"""What goes into a model's weight matrices while it computes: sums of squares for an importance matrix.

llama.cpp's scheduler asks a callback of every node whether its data is wanted, and hands it over once it is
computed. Wanted are the products with weights of layers; their other factor is what is summed. A batch
counts when it was computed to its end, so one that was given up and done again counts once.

Upstream: tools/imatrix/imatrix.cpp (collect_imatrix), ggml-backend.h. Sums of
a batch are single precision as there, sums of batches are double.
Left out: the output matrix, as llama-imatrix leaves it out unless it is told otherwise.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from pigguf.common.lazy_tensor import Array
from pigguf.errors import BackendUnavailable, EngineError
from pigguf.inference.engine import library
from pigguf.inference.engine.ggml_tensor import Tensor, ggml
from pigguf.quantization import Sums

LEAST_ROWS = 16  # of a product that counts: smaller batches are passed over, as upstream does

_F32 = 0  # enum ggml_type


class InputObserver:
    """Sums the squares of what weight matrices are multiplied with; for one Context, whose decode tells it
    how each batch ended.

    Attributes:
        callback: for llama_context_params.cb_eval.
    """

    def __init__(self) -> None:
        self._ggml = ggml()
        self._product, self._experts_product = _products()
        self._sums: dict[str, Sums] = {}
        self._batch: dict[str, Sums] = {}
        self._last: tuple[int, Array] = (0, np.empty(0))
        self._failure: BaseException | None = None
        self.callback = library.load().ggml_backend_sched_eval_callback(self._receive)

    @property
    def sums(self) -> dict[str, Sums]:
        """What was summed so far, by the name of the weight tensor."""
        return dict(self._sums)

    def settle(self, computed: bool) -> None:
        """The batch is over: count it if it was computed to its end, forget it if not.

        Raises:
            EngineError: an input was not a finite number.
        """
        batch, failure = self._batch, self._failure
        self._batch, self._failure, self._last = {}, None, (0, np.empty(0))
        if failure is not None:
            raise failure
        if computed:
            for name, sums in batch.items():
                self._sums[name] = _added(self._sums.get(name), sums)

    def _receive(self, address: int, ask: bool, _: object) -> bool:
        """Called by C of every node: whether it is wanted, and then whether to go on. No exception leaves."""
        op = ctypes.c_int.from_address(address + Tensor.op.offset).value
        if op not in (self._product, self._experts_product) or self._failure is not None:
            return False
        try:
            node = Tensor.from_address(address)
            if ask:
                return self._wants(node)
            self._take(node)
        except BaseException as error:
            self._failure = error
        return self._failure is None

    def _wants(self, node: Tensor) -> bool:
        weight, inputs = node.source(0), node.source(1)
        if inputs.type != _F32 or not weight.weight_name.startswith("blk."):
            return False
        return bool(node.op == self._experts_product or inputs.ne[1] >= LEAST_ROWS)

    def _take(self, node: Tensor) -> None:
        weight = node.source(0)
        name = weight.weight_name
        sums = (
            self._of_experts(node, weight)
            if node.op == self._experts_product
            else self._of_product(node, weight)
        )
        if not np.isfinite(sums.squares).all():
            raise EngineError(
                f"an input of {name} is not a finite number",
                "the file is damaged, or the text leads the model astray: try a model of another type",
            )
        self._batch[name] = _added(self._batch.get(name), sums)

    def _of_product(self, node: Tensor, weight: Tensor) -> Sums:
        inputs = node.source(1)
        matrices = weight.ne[2] * weight.ne[3]
        if matrices == 1:
            squares = self._squares_of_all(node.src[1], inputs)
        else:
            values = self._values(inputs, np.float32)
            squares = np.zeros((matrices, inputs.ne[0]))
            for i3 in range(inputs.ne[3]):
                for i2 in range(inputs.ne[2]):
                    matrix = i3 % weight.ne[3] * weight.ne[2] + i2 % weight.ne[2]
                    squares[matrix] += _squares(values[i3, i2])
        rows = inputs.ne[1] * inputs.ne[2] * inputs.ne[3]
        return Sums(squares, np.array([rows // matrices]))

    def _squares_of_all(self, address: int, inputs: Tensor) -> Array:
        """One sum of all rows. Several products may have one input (of attention): it is summed once."""
        if self._last[0] != address:
            values = self._values(inputs, np.float32)
            self._last = address, _squares(values.reshape(-1, inputs.ne[0]))[None]
        return self._last[1]

    def _of_experts(self, node: Tensor, weight: Tensor) -> Sums:
        """Each expert's sum is of the rows that were sent to it."""
        inputs, chosen = node.source(1), node.source(2)
        values = self._values(inputs, np.float32)[0]  # (tokens, slots or 1, columns)
        experts = self._values(chosen, np.int32)[0, 0]  # (tokens, slots)
        squares, counts = np.zeros((weight.ne[2], inputs.ne[0])), np.zeros(weight.ne[2], np.int64)
        for expert in np.unique(experts):
            tokens, slots = np.nonzero(experts == expert)
            squares[expert] = _squares(values[tokens, slots % inputs.ne[1]])
            counts[expert] = len(tokens)
        return Sums(squares, counts)

    def _values(self, tensor: Tensor, dtype: Any) -> Array:
        """A tensor's values, axes in numpy's order: a view of the host's memory, or a copy of a device's."""
        size = self._ggml.ggml_nbytes(ctypes.byref(tensor))
        if self._ggml.ggml_backend_buffer_is_host(tensor.buffer):
            raw = (ctypes.c_char * size).from_address(tensor.data)
        else:
            raw = (ctypes.c_char * size)()
            self._ggml.ggml_backend_tensor_get(ctypes.byref(tensor), raw, 0, size)
        shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
        return np.ndarray(shape, dtype, raw, strides=strides)


def _squares(rows: Array) -> Array:
    """Sums of squares over the rows."""
    summed: Array = np.einsum("ij,ij->j", rows, rows)
    return summed.astype(np.float64)


def _added(before: Sums | None, more: Sums) -> Sums:
    return more if before is None else Sums(before.squares + more.squares, before.counts + more.counts)


@cache
def _products() -> tuple[int, int]:
    """ggml's numbers of the two products.

    Raises:
        BackendUnavailable: it has none of that name.
    """
    names = [ggml().ggml_op_name(number) for number in range(64)]
    if b"MUL_MAT" not in names:
        raise BackendUnavailable(
            "the engine's products have a name that this pigguf does not know",
            "`pigguf doctor` shows which llama-cpp-python is installed, and which one pigguf is made for",
        )
    return names.index(b"MUL_MAT"), names.index(b"MUL_MAT_ID")
