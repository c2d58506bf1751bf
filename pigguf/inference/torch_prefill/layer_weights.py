"""Weights: a GGUF's layers in bfloat16, one held at a time, and the vectors of tokens.

Quantized tensors are decoded by ggml's own kernels, in slabs of rows on all cores, straight into the matrix
they belong to: queries, keys and values are one product, and so are the two inputs of the feed-forward.
Norms and biases stay float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import NamedTuple

import ml_dtypes
import numpy as np
import torch

from pigguf.common.lazy_tensor import SLAB_ELEMENTS, Array, LazyTensor
from pigguf.common.parallel import computed_ahead
from pigguf.gguf_io import GGUFFile, TensorData
from pigguf.inference.torch_prefill.supported_models import Shape
from pigguf.quantization.dequantize import float_tensors
from pigguf.rope.frequencies import FREQUENCIES, Divisors

_QKV = ("attn_q", "attn_k", "attn_v")
_GATE_UP = ("ffn_gate", "ffn_up")


class Layer(NamedTuple):
    """A layer's weights: matrices bfloat16 (outputs, inputs), the rest float32; None is absent.

    Attributes:
        attention_norm, feed_forward_norm: (width,).
        qkv, gate_up: rows of several tensors, one after the other; their biases alike.
    """

    attention_norm: torch.Tensor
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    output: torch.Tensor
    output_bias: torch.Tensor | None
    feed_forward_norm: torch.Tensor
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    down: torch.Tensor
    down_bias: torch.Tensor | None


class Weights:
    """A file's weights; a context manager, as it holds the file open.

    Raises:
        ReadError: a part of it cannot be opened.
    """

    def __init__(self, file: GGUFFile, shape: Shape) -> None:
        self._data = TensorData(file)
        self._tensors = {tensor.name: tensor for tensor in float_tensors(file, self._data)}
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        self._qkv = _matrix(queries + 2 * keys, shape.width)
        self._output = _matrix(shape.width, queries)
        self._gate_up = _matrix(2 * shape.inner, shape.width)
        self._down = _matrix(shape.width, shape.inner)

    @property
    def divisors(self) -> Divisors | None:
        """Of rope_freqs.weight."""
        tensor = self._tensors.get(FREQUENCIES)
        return None if tensor is None else tensor.load().astype(np.float32)

    def embedded(self, tokens: Sequence[int]) -> torch.Tensor:
        """The vectors of tokens: (tokens, width) float32."""
        table = self._tensors["token_embd.weight"]
        ids, places = np.unique(np.asarray(tokens), return_inverse=True)
        rows = np.concatenate([table.read(token, token + 1) for token in ids.tolist()]).astype(np.float32)
        return torch.from_numpy(rows[places])

    def layer(self, number: int) -> Layer:
        """A layer's weights, whose matrices are valid until the next call.

        Raises:
            ReadError: the file became shorter.
        """
        named = {
            name.removeprefix(f"blk.{number}."): tensor
            for name, tensor in self._tensors.items()
            if name.startswith(f"blk.{number}.")
        }
        _compute(
            slab
            for matrix, names in (
                (self._qkv, _QKV),
                (self._output, ("attn_output",)),
                (self._gate_up, _GATE_UP),
                (self._down, ("ffn_down",)),
            )
            for slab in _slabs(matrix, [named[f"{name}.weight"] for name in names])
        )
        return Layer(
            attention_norm=_floats(named["attn_norm.weight"]),
            qkv=_as_torch(self._qkv),
            qkv_bias=_biases(named, _QKV),
            query_norm=_optional(named.get("attn_q_norm.weight")),
            key_norm=_optional(named.get("attn_k_norm.weight")),
            output=_as_torch(self._output),
            output_bias=_biases(named, ("attn_output",)),
            feed_forward_norm=_floats(named["ffn_norm.weight"]),
            gate_up=_as_torch(self._gate_up),
            gate_up_bias=_biases(named, _GATE_UP),
            down=_as_torch(self._down),
            down_bias=_biases(named, ("ffn_down",)),
        )

    def close(self) -> None:
        self._data.close()

    def __enter__(self) -> Weights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _matrix(rows: int, columns: int) -> Array:
    return np.empty((rows, columns), ml_dtypes.bfloat16)


def _compute(slabs: Iterable[partial[None]]) -> None:
    """Numpy rounds to bfloat16 on the thread that decodes: torch would start a team of threads in each."""
    for _ in computed_ahead(slabs):
        pass


def _slabs(matrix: Array, tensors: list[LazyTensor]) -> Iterator[partial[None]]:
    """The work of putting tensors into a matrix, one after the other."""
    at = 0
    for tensor in tensors:
        for start, stop in tensor.slabs(SLAB_ELEMENTS):
            yield partial(_fill_rows, matrix[at + start : at + stop], tensor, start, stop)
        at += tensor.rows


def _fill_rows(rows: Array, tensor: LazyTensor, start: int, stop: int) -> None:
    rows[:] = tensor.read(start, stop)


def _as_torch(matrix: Array) -> torch.Tensor:
    """A bfloat16 array as a tensor over the same memory; numpy's own conversion does not know the type."""
    return torch.from_numpy(matrix.view(np.int16)).view(torch.bfloat16)


def _floats(tensor: LazyTensor) -> torch.Tensor:
    return torch.from_numpy(tensor.load().astype(np.float32))


def _optional(tensor: LazyTensor | None) -> torch.Tensor | None:
    return None if tensor is None else _floats(tensor)


def _biases(named: dict[str, LazyTensor], names: tuple[str, ...]) -> torch.Tensor | None:
    """Biases one after the other, zeros for one that is absent among others that are not."""
    found = [named.get(f"{name}.bias") for name in names]
    if not any(found):
        return None
    rows = [named[f"{name}.weight"].rows for name in names]
    return torch.cat(
        [torch.zeros(n) if bias is None else _floats(bias) for bias, n in zip(found, rows, strict=True)]
    )
