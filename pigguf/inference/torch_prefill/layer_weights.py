"""A GGUF file's weights in bfloat16, one layer at a time, and the embeddings of tokens.

Quantized tensors are dequantized by ggml's own kernels, in slabs of rows on all cores, directly into the
matrix they are part of: queries, keys and values are one matrix product, and so are gate and up of the
feed-forward. Norms and biases stay float32.
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
from pigguf.common.parallel import map_ahead
from pigguf.gguf_io import GGUFFile, TensorData
from pigguf.inference.torch_prefill.supported_models import ModelShape
from pigguf.quantization.dequantize import float_tensors
from pigguf.rope.rope_scaling import ROPE_FREQS, FreqFactors

_QKV = ("attn_q", "attn_k", "attn_v")
_GATE_UP = ("ffn_gate", "ffn_up")


class LayerWeights(NamedTuple):
    """One layer's weights: matrices (outputs, inputs) bfloat16, the rest float32; None is absent.

    Attributes:
        attention_norm, feed_forward_norm: (n_embd,).
        qkv: attn_q, attn_k and attn_v, ((n_head + 2 * n_head_kv) * head_dim, n_embd), and the bias alike.
        gate_up: ffn_gate and ffn_up, (2 * n_ff, n_embd), and the bias alike.
        query_norm, key_norm: (head_dim,).
        output: attn_output, (n_embd, n_head * head_dim).
        down: ffn_down, (n_embd, n_ff).
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


class WeightLoader:
    """A file's weights; a context manager, because it keeps the file open.

    Args:
        file: the header.
        shape: the model's dimensions.

    Raises:
        ReadError: a shard of it cannot be opened.
    """

    def __init__(self, file: GGUFFile, shape: ModelShape) -> None:
        self._data = TensorData(file)
        self._tensors = {tensor.name: tensor for tensor in float_tensors(file, self._data)}
        queries, keys = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
        self._qkv = _matrix(queries + 2 * keys, shape.n_embd)
        self._output = _matrix(shape.n_embd, queries)
        self._gate_up = _matrix(2 * shape.n_ff, shape.n_embd)
        self._down = _matrix(shape.n_embd, shape.n_ff)

    @property
    def freq_factors(self) -> FreqFactors | None:
        """The values of rope_freqs.weight, or None."""
        tensor = self._tensors.get(ROPE_FREQS)
        return None if tensor is None else tensor.load().astype(np.float32)

    def embed_tokens(self, tokens: Sequence[int]) -> torch.Tensor:
        """Return the embeddings of tokens: (n_tokens, n_embd) float32."""
        table = self._tensors["token_embd.weight"]
        ids, indices = np.unique(np.asarray(tokens), return_inverse=True)
        rows = np.concatenate([table.read(token, token + 1) for token in ids.tolist()]).astype(np.float32)
        return torch.from_numpy(rows[indices])

    def load_layer(self, number: int) -> LayerWeights:
        """Return a layer's weights; its matrices are valid until the next call.

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
        return LayerWeights(
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
        """Close the file."""
        self._data.close()

    def __enter__(self) -> WeightLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _matrix(rows: int, columns: int) -> Array:
    return np.empty((rows, columns), ml_dtypes.bfloat16)


def _compute(slabs: Iterable[partial[None]]) -> None:
    """Compute slabs on all cores.

    numpy rounds to bfloat16 in the thread that dequantizes; torch would start more threads in each.
    """
    for _ in map_ahead(slabs):
        pass


def _slabs(matrix: Array, tensors: list[LazyTensor]) -> Iterator[partial[None]]:
    """Yield the tasks that copy tensors into a matrix, one below the other."""
    row = 0
    for tensor in tensors:
        for start, stop in tensor.slabs(SLAB_ELEMENTS):
            yield partial(_fill_rows, matrix[row + start : row + stop], tensor, start, stop)
        row += tensor.rows


def _fill_rows(rows: Array, tensor: LazyTensor, start: int, stop: int) -> None:
    rows[:] = tensor.read(start, stop)


def _as_torch(matrix: Array) -> torch.Tensor:
    """Return a tensor over the memory of a bfloat16 array, a type that torch.from_numpy does not know."""
    return torch.from_numpy(matrix.view(np.int16)).view(torch.bfloat16)


def _floats(tensor: LazyTensor) -> torch.Tensor:
    return torch.from_numpy(tensor.load().astype(np.float32))


def _optional(tensor: LazyTensor | None) -> torch.Tensor | None:
    return None if tensor is None else _floats(tensor)


def _biases(named: dict[str, LazyTensor], names: tuple[str, ...]) -> torch.Tensor | None:
    """Return biases concatenated, with zeros for a missing one; None if all are missing."""
    biases = [named.get(f"{name}.bias") for name in names]
    if not any(biases):
        return None
    rows = [named[f"{name}.weight"].rows for name in names]
    return torch.cat(
        [torch.zeros(n) if bias is None else _floats(bias) for bias, n in zip(biases, rows, strict=True)]
    )
