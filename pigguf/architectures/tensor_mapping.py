"""A family's tensor rules applied: checkpoint tensors -> GGUF tensors, and back, without loading them.

Every tensor that the rules demand must be present in its shape, and none may remain. Not here: the operations
on tensors (tensor_transforms.py), and their types and values, which are checked when they are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from pigguf.architectures.family import Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_names import (
    TensorMapping,
    TensorSpec,
    canonical_name,
    embedding_name,
    is_ignored,
    lm_head_name,
    tensor_mappings,
)
from pigguf.architectures.tensor_rules import IDENTITY, TensorRule, ValueTransform
from pigguf.architectures.tensor_transforms import (
    check_constant,
    constant_tensor,
    interpolate_position_table,
    invert_permutation,
    permute_rows,
    transform_values,
    transpose,
)
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import InvalidTensor, MissingTensor, UnmappedTensor
from pigguf.rope import LearnedPositions

_QUANTIZED_HINT = "the weights are quantized already: convert the checkpoint as it was before"
# What the name of an unknown tensor reveals, as a hint.
HINTS_BY_TENSOR_NAME = {
    r".*\.lora_.*": "the checkpoint contains adapter weights: merge them first (peft: merge_and_unload)",
    r".*\.(qweight|qzeros|scales|weight_scale|weight_scale_inv|absmax|SCB)": _QUANTIZED_HINT,
    r".*\.experts\.(gate_up_proj|down_proj)": (
        "its experts are in one tensor: save it in the published format (save_pretrained does, "
        "without save_original_format=False)"
    ),
    r".*experts.*": "this family has no mixture of experts",
    r".*(vision|visual|mm_projector|multi_modal).*": "pigguf has no multimodal family of this kind",
    r"rope_(freqs|factors_\w+)\.weight": "freq_factors (llama3, longrope) of an unknown kind",
    r".*\.bias": "config.json does not mention this bias (attention_bias, mlp_bias)",
}


def map_tensors_to_gguf(
    family: Family, hparams: HParams, tensors: Mapping[str, LazyTensor], source: str
) -> list[LazyTensor]:
    """Return a checkpoint's tensors under their GGUF names, in the order of the file, freq_factors last.

    The output matrix of a model with tied embeddings is ignored if it equals the embedding; llama.cpp then
    uses the embedding (src/models/llama.cpp). A different one is an error, as versions of transformers
    disagree on which of the two to use.

    Args:
        family: the model's family.
        hparams: the model's hyperparameters.
        tensors: by their names in the checkpoint.
        source: the checkpoint's path, for messages.

    Raises:
        MissingTensor: the checkpoint lacks a tensor of the family.
        UnmappedTensor: the checkpoint has a tensor that the family does not have.
        InvalidTensor: a tensor has another shape than the config gives it, or tied ones differ.
    """
    canonical = {canonical_name(family, name): tensor for name, tensor in tensors.items()}
    remaining = {name: tensor for name, tensor in canonical.items() if not is_ignored(family, name)}
    embedding, output = embedding_name(family), lm_head_name(family)
    is_stored_twice = output != embedding and output in remaining and embedding in remaining
    if hparams.tied_embeddings and is_stored_twice:
        check_tied_output(remaining[embedding], remaining.pop(output), source)
    used: dict[str, LazyTensor] = {}
    mapped: list[LazyTensor] = []
    for mapping in tensor_mappings(family, hparams):
        inputs = [_take(spec, mapping.rule, remaining, used, source) for spec in mapping.hf]
        mapped += _map_forward(mapping, inputs, hparams)
    _check_none_remaining(remaining, source)
    return mapped + _freq_factor_tensors(hparams)


def map_tensors_to_hf(
    family: Family, hparams: HParams, tensors: Mapping[str, LazyTensor], source: str
) -> list[LazyTensor]:
    """Return a GGUF's tensors, as floats, under the names of transformers.

    Args:
        family: the model's family.
        hparams: the model's hyperparameters.
        tensors: by their names in the GGUF.
        source: the file's path, for messages.

    Raises:
        MissingTensor: the file lacks a tensor of the family.
        UnmappedTensor: the file has a tensor that the family does not have.
        InvalidTensor: a tensor has another shape than the metadata gives it, or values other than those that
            follow from the positions or that the family requires.
    """
    remaining = dict(tensors)
    for expected in _freq_factor_tensors(hparams):
        actual = _take(TensorSpec(expected.name, expected.shape), None, remaining, {}, source)
        # powers in single precision differ in the last digits between libraries
        if not np.allclose(actual.load(), expected.load(), rtol=1e-6, atol=0):
            raise InvalidTensor(
                f"{source}: {expected.name} does not match the rope scaling of the metadata",
                hparams.rope.explain(),
            )
    mapped: dict[str, LazyTensor] = {}
    for mapping in tensor_mappings(family, hparams):
        inputs = [_take(spec, mapping.rule, remaining, {}, source) for spec in mapping.gguf]
        for tensor in _map_backward(mapping, inputs, hparams, source):
            if tensor.name in mapped and not tensor.equals(mapped[tensor.name]):
                raise InvalidTensor(
                    f"{source}: {mapping.gguf[0].name} differs from the embedding it is tied to"
                )
            mapped.setdefault(tensor.name, tensor)
    _check_none_remaining(remaining, source)
    return list(mapped.values())


def check_tied_output(embedding: LazyTensor, output: LazyTensor, source: str) -> None:
    """Raise if a stored output matrix differs from the embedding it is tied to.

    Args:
        embedding: the embedding.
        output: the output matrix.
        source: the checkpoint's path, for messages.

    Raises:
        InvalidTensor: the two differ.
    """
    if not embedding.equals(output):
        raise InvalidTensor(
            f"{source}: {output.name} differs from {embedding.name}, "
            "but config.json has tie_word_embeddings = true",
            "set tie_word_embeddings to false in config.json if the two were trained separately",
        )


def _take(
    spec: TensorSpec,
    rule: TensorRule | None,
    remaining: dict[str, LazyTensor],
    used: dict[str, LazyTensor],
    source: str,
) -> LazyTensor:
    """Move a tensor from `remaining` to `used`, or return it if it is used already, and check its shape."""
    tensor = remaining.pop(spec.name, None) or used.get(spec.name)
    if tensor is None:
        raise MissingTensor(
            f"{source} lacks the tensor {spec.name}", _missing_tensor_hint(spec.name, rule, remaining)
        )
    used[spec.name] = tensor
    if tensor.shape != spec.shape:
        patterns = () if rule is None else (*rule.hf, *rule.gguf)
        dimensions = next((pattern.shape for pattern in patterns if _matches(spec.name, pattern.name)), ())
        raise InvalidTensor(
            f"{source}: {spec.name} has the shape {tensor.shape}, not {spec.shape}",
            f"its dimensions should be {', '.join(dimensions)}" if dimensions else None,
        )
    return tensor


def _matches(name: str, pattern: str) -> bool:
    literals = re.split(r"\{\w*\}", pattern)
    return re.fullmatch(r"\d+".join(map(re.escape, literals)), name) is not None


def _check_none_remaining(remaining: Mapping[str, LazyTensor], source: str) -> None:
    for name in remaining:
        others = f" (and {len(remaining) - 1} more)" if len(remaining) > 1 else ""
        raise UnmappedTensor(
            f"{source}: this family has no tensor {name}{others}",
            _hint_by_name(name)
            or "ignoring it would change the model: check that the model is of the family in config.json",
        )


def _missing_tensor_hint(name: str, rule: TensorRule | None, others: Iterable[str]) -> str:
    if rule is not None and rule.gguf[0].name == "output.weight":
        return "if the embedding is also the output matrix, set tie_word_embeddings to true in config.json"
    hints = (_hint_by_name(other) for other in others if not other.endswith(".bias"))
    return next(
        filter(None, hints), "check that the checkpoint is complete, and of the family in config.json"
    )


def _hint_by_name(name: str) -> str | None:
    return next((hint for pattern, hint in HINTS_BY_TENSOR_NAME.items() if re.fullmatch(pattern, name)), None)


def _freq_factor_tensors(hparams: HParams) -> list[LazyTensor]:
    """Return the tensors that rope scaling brings (llama3's and longrope's freq_factors)."""

    def read(values: Array, start: int, stop: int) -> Array:
        return values[start:stop]

    tensors = hparams.rope.tensors(hparams.rotary_dim)
    return [LazyTensor(name, values.shape, "F32", partial(read, values)) for name, values in tensors.items()]


def _map_forward(
    mapping: TensorMapping, inputs: Sequence[LazyTensor], hparams: HParams
) -> Iterator[LazyTensor]:
    """Yield the GGUF's tensors of one rule."""
    rule = mapping.rule
    if not inputs:
        yield from (constant_tensor(spec, rule.fill_value) for spec in mapping.gguf)
        return
    if rule.transposed:
        inputs = [transpose(tensor) for tensor in inputs]
    if rule.transform != IDENTITY:
        inputs = [transform_values(tensor, rule.transform) for tensor in inputs]
    if rule.is_position_table and isinstance(hparams.rope, LearnedPositions):
        n_padding = inputs[0].rows - hparams.rope.original_context  # OPT's table begins with 2 padding rows
        yield interpolate_position_table(inputs[0], mapping.gguf[0], hparams.rope, n_padding)
        return
    permutation = None if rule.row_permutation is None else rule.row_permutation(hparams)
    yield from permute_rows(inputs, mapping.gguf, permutation)


def _map_backward(
    mapping: TensorMapping, inputs: Sequence[LazyTensor], hparams: HParams, source: str
) -> Iterator[LazyTensor]:
    """Yield the checkpoint's tensors of one rule."""
    rule = mapping.rule
    if not mapping.hf:
        for tensor in inputs:
            check_constant(rule.fill_value, tensor, source)
        return
    outputs = [TensorSpec(name, shape[::-1] if rule.transposed else shape) for name, shape in mapping.hf]
    permutation = (
        None if rule.row_permutation is None else invert_permutation(rule.row_permutation(hparams), outputs)
    )
    if rule.is_position_table and outputs[0].shape != inputs[0].shape:  # padding rows come first
        n_padding = outputs[0].shape[0] - inputs[0].rows
        permutation = np.arange(outputs[0].shape[0], dtype=np.int64) - n_padding
    for tensor in permute_rows(inputs, outputs, permutation):
        if rule.transform != IDENTITY:
            scale, offset, _ = rule.transform
            tensor = transform_values(tensor, ValueTransform(1 / scale, -offset / scale))
        yield transpose(tensor) if rule.transposed else tensor
