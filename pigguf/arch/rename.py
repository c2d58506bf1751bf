"""A family's table applied: checkpoint tensors -> GGUF tensors, and back, all of them still promises.

Every tensor the table demands must be there in its shape, and none may be left over. The rows of
rotary tensors change places on the way: transformers rotates halves of a head (row i with row
i + head_dim / 2), llama.cpp's llama graph neighbours (row 2i with row 2i + 1); conversion/llama.py
calls it permute. Reading a slab reads the rows of its heads and no others.

Left out: types and values (the reader of the promises checks them).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from pigguf.arch.family import Family, NamedShape
from pigguf.errors import InvalidTensor, MissingTensor, UnmappedTensor
from pigguf.spec import ModelSpec
from pigguf.tensors import Array, TensorRef

EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

QUANTIZED = "the weights are quantized already: give the checkpoint as it was before"
# What an unknown tensor's name gives away, for the hint.
TELLING_NAMES = {
    r".*\.lora_.*": "an adapter lies among the weights: merge it first (peft: merge_and_unload)",
    r".*\.(qweight|qzeros|scales|weight_scale|weight_scale_inv|absmax|SCB)": QUANTIZED,
    r".*experts.*": "a mixture of experts is none of the families pigguf knows",
    r".*(vision|visual|mm_projector|multi_modal).*": "a model that sees is none of the families pigguf knows",
    r"rope_(freqs|factors_\w+)\.weight": "scaling by dimension (llama3, longrope) cannot be written yet",
    r".*\.bias": "config.json says nothing of this bias (attention_bias, mlp_bias)",
}


def to_gguf(
    family: Family, spec: ModelSpec, tensors: Mapping[str, TensorRef], source: str
) -> list[TensorRef]:
    """A checkpoint's tensors under their GGUF names, in the order of the file.

    The output matrix of a model whose embeddings are tied is dropped where it equals the embedding;
    llama.cpp then uses the embedding (src/models/llama.cpp). Versions of transformers disagree on
    one that differs, so that is refused.

    Args:
        family, spec: the model.
        tensors: by their names in the checkpoint.
        source: the checkpoint's path, for messages.

    Raises:
        MissingTensor, UnmappedTensor: the table and the checkpoint do not cover each other.
        InvalidTensor: a tensor has another shape than the config gives it, or tied ones differ.
    """
    weights = {name: tensor for name, tensor in tensors.items() if not family.drops(name)}
    if spec.tied_embeddings and OUTPUT in weights and EMBEDDING in weights:
        refuse_unequal_output(weights[EMBEDDING], weights.pop(OUTPUT), source)
    return _renamed(family, spec, weights, source, lambda row: (row.hf, row.gguf), _to_neighbours)


def to_hf(family: Family, spec: ModelSpec, tensors: Mapping[str, TensorRef], source: str) -> list[TensorRef]:
    """A GGUF's tensors, as floats, under the names of transformers. As to_gguf, backwards."""
    return _renamed(family, spec, tensors, source, lambda row: (row.gguf, row.hf), _to_halves)


def _renamed(
    family: Family,
    spec: ModelSpec,
    tensors: Mapping[str, TensorRef],
    source: str,
    names: Callable[[NamedShape], tuple[str, str]],
    reorder: Callable[[Array], Array],
) -> list[TensorRef]:
    left = dict(tensors)
    renamed = []
    for row in family.shapes(spec):
        old, new = names(row)
        if old not in left:
            raise MissingTensor(f"{source} lacks the tensor {old}", _why_missing(old, left))
        tensor = left.pop(old)
        if tensor.shape != row.shape:
            raise InvalidTensor(
                f"{source}: {old} has the shape {tensor.shape}, not {row.shape}",
                f"its sizes should be {', '.join(row.rule.shape)}",
            )
        if row.rule.rotary:
            tensor = _by_heads(tensor, spec.head_dim, reorder)
        renamed.append(replace(tensor, name=new))
    for name in left:
        others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise UnmappedTensor(
            f"{source}: the tensor {name} is none of this family's{others}",
            _told_by(name)
            or "to leave it out would change the model: is it of the family config.json names?",
        )
    return renamed


def _why_missing(name: str, others: Iterable[str]) -> str:
    if name == OUTPUT:
        return "if the embedding serves as output matrix, config.json should say tie_word_embeddings: true"
    told = (_told_by(other) for other in others if not other.endswith(".bias"))
    return next(filter(None, told), "is the checkpoint whole, and of the family that config.json names?")


def _told_by(name: str) -> str | None:
    return next((hint for pattern, hint in TELLING_NAMES.items() if re.fullmatch(pattern, name)), None)


def _by_heads(tensor: TensorRef, head_dim: int, reorder: Callable[[Array], Array]) -> TensorRef:
    """The tensor with the rows of each head put in another order, which takes whole heads to read."""
    group = math.lcm(head_dim, tensor.row_group)

    def read(start: int, stop: int) -> Array:
        first, last = start // group * group, -(-stop // group) * group
        rows = tensor.read(first, last)
        heads = rows.reshape(-1, head_dim, *tensor.shape[1:])
        ordered: Array = reorder(heads).reshape(rows.shape)
        return ordered[start - first : stop - first]

    return replace(tensor, read=read, row_group=group)


def _to_neighbours(heads: Array) -> Array:
    """(heads, head_dim, ...): rows a0 a1 ... b0 b1 ... become a0 b0 a1 b1 ..."""
    count, head_dim, *rest = heads.shape
    return heads.reshape(count, 2, head_dim // 2, *rest).swapaxes(1, 2)


def _to_halves(heads: Array) -> Array:
    """The inverse of _to_neighbours."""
    count, head_dim, *rest = heads.shape
    return heads.reshape(count, head_dim // 2, 2, *rest).swapaxes(1, 2)


def refuse_unequal_output(embedding: TensorRef, output: TensorRef, source: str) -> None:
    """Refuse an output matrix that is stored beside the embedding it is tied to, and differs from it.

    Raises:
        InvalidTensor: it does.
    """
    if not embedding.equals(output):
        raise InvalidTensor(
            f"{source}: {OUTPUT} differs from {EMBEDDING}, but config.json has tie_word_embeddings = true",
            "set tie_word_embeddings to false in config.json if the two were trained apart",
        )
