"""A base with an adapter on it: the merged model's tensors, still promises.

Rows of a merged matrix are W + scale * B A in float32, computed when they are read, so that merging
takes no more memory than converting. peft rounds the sum to the base's dtype, which loses the last
bits of the adapter in a bfloat16 base; here nothing is rounded before the target's type.

What is merged is the model as peft runs it and as it was trained. peft's own merge_and_unload differs
from that where the base ties its output matrix to the embedding and LoRA changes either: it adds to
both. Here the two part there, as for whole tensors they do in peft's merge too.

Left out: positions (rope/).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from pigguf.architectures import family_from_config
from pigguf.architectures.tensor_mapping import check_tied_output
from pigguf.architectures.tensor_names import embedding_name, lm_head_name
from pigguf.checkpoint.adapter import Adapter, LoraUpdate, TensorChange
from pigguf.checkpoint.checkpoint import Checkpoint
from pigguf.common.json_config import JsonConfig
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import CheckpointError, InvalidTensor, UnmappedTensor

# Keys that an adapter's own config.json and the base's must agree on, where both have them.
_SHAPE_KEYS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "mlp_bias",
    "tie_word_embeddings",
)


def merge_adapter(checkpoint: Checkpoint, adapter: Adapter) -> Mapping[str, LazyTensor]:
    """The tensors of a checkpoint as an adapter changes them, under the same names.

    Where the checkpoint ties its embeddings, there is an output matrix (lm_head.weight) if, and only
    if, the adapter makes it another one than the embedding.

    Args:
        checkpoint: the base; both stay open while the tensors are read.
        adapter: what changes it.

    Raises:
        CheckpointError: the adapter's config.json is another model's.
        UnmappedTensor, InvalidTensor: the adapter changes what the base has not, or of another shape.
    """
    _refuse_another_model(checkpoint, adapter)
    tensors, changes = dict(checkpoint.tensors), dict(adapter.changes)
    if JsonConfig(checkpoint.config).optional("tie_word_embeddings", bool, False):
        _part_tied(tensors, changes, checkpoint)
    for target, change in changes.items():
        if target not in tensors:
            raise UnmappedTensor(
                f"{adapter.path} changes {target}, which {checkpoint.path} has not", _another_base(adapter)
            )
        tensors[target] = _changed(tensors[target], change, checkpoint, adapter)
    return tensors


def _refuse_another_model(checkpoint: Checkpoint, adapter: Adapter) -> None:
    ours, base = adapter.model_config, JsonConfig(checkpoint.config)
    for key in _SHAPE_KEYS:
        if ours is not None and key in ours and key in base and ours.values[key] != base.values[key]:
            raise CheckpointError(
                f"{ours.describe(key)}, but {checkpoint.path / 'config.json'}: {key} = {base.values[key]}",
                _another_base(adapter),
            )


def _part_tied(
    tensors: dict[str, LazyTensor], changes: dict[str, TensorChange], checkpoint: Checkpoint
) -> None:
    """Give the output matrix a tensor of its own where an adapter changes it and the embedding apart."""
    family = family_from_config(checkpoint.config)
    if embedding_name(family) not in tensors:
        return
    if lm_head_name(family) in tensors:
        check_tied_output(
            tensors[embedding_name(family)], tensors.pop(lm_head_name(family)), str(checkpoint.path)
        )
    embedding, output = (
        changes.pop(embedding_name(family), TensorChange()),
        changes.pop(lm_head_name(family), TensorChange()),
    )
    bases = [change.base_replacement for change in (embedding, output) if change.base_replacement is not None]
    if len(bases) == 2 and not bases[0].equals(bases[1]):
        raise InvalidTensor(
            f"{bases[0].name} and {bases[1].name} differ, but the base ties the two",
            "train on a base whose config.json has tie_word_embeddings = false",
        )
    shared = bases[0] if bases else None
    embedding, output = replace(embedding, base_replacement=shared), replace(output, base_replacement=shared)
    if embedding != TensorChange():
        changes[embedding_name(family)] = embedding
    if not _alike(embedding, output):
        tensors[lm_head_name(family)] = replace(tensors[embedding_name(family)], name=lm_head_name(family))
        if output != TensorChange():
            changes[lm_head_name(family)] = output


def _alike(embedding: TensorChange, output: TensorChange) -> bool:
    """Whether two changes of one tensor come to the same (as with peft's ensure_weight_tying)."""
    if (embedding.replacement is None, embedding.lora is None) != (
        output.replacement is None,
        output.lora is None,
    ):
        return False
    if embedding.replacement is not None and output.replacement is not None:
        return embedding.replacement.equals(output.replacement)
    if embedding.lora is not None and output.lora is not None:
        return _equal_updates(embedding.lora, output.lora)
    return True


def _equal_updates(a: LoraUpdate, b: LoraUpdate) -> bool:
    plain = a.dora_magnitude is None and b.dora_magnitude is None
    return plain and a.scaling == b.scaling and a.lora_b.equals(b.lora_b) and a.lora_a.equals(b.lora_a)


def _changed(
    tensor: LazyTensor, change: TensorChange, checkpoint: Checkpoint, adapter: Adapter
) -> LazyTensor:
    for other in (change.base_replacement, change.replacement):
        if other is not None:
            _refuse_shape(other.shape, tensor, other.name, checkpoint, adapter)
            tensor = replace(other, name=tensor.name)
    update = change.lora
    if update is None:
        return tensor
    names = f"{update.lora_b.name} with {update.lora_a.name}"
    _refuse_shape((update.lora_b.shape[0], update.lora_a.shape[1]), tensor, names, checkpoint, adapter)
    if update.dora_magnitude is not None:
        _refuse_shape(
            update.dora_magnitude.shape + tensor.shape[1:],
            tensor,
            update.dora_magnitude.name,
            checkpoint,
            adapter,
        )
    return _updated(tensor, update)


def _refuse_shape(
    shape: tuple[int, ...], tensor: LazyTensor, names: str, checkpoint: Checkpoint, adapter: Adapter
) -> None:
    if shape != tensor.shape:
        raise InvalidTensor(
            f"{adapter.path}: {names} is for a tensor of shape {list(shape)}, but {tensor.name} of "
            f"{checkpoint.path} has {list(tensor.shape)}",
            _more_tokens(shape, tensor) or _another_base(adapter),
        )


def _more_tokens(shape: tuple[int, ...], tensor: LazyTensor) -> str | None:
    """What to do where tokens were added before the adapter was trained, as LongLoRA adds [PAD]."""
    of_tokens = "embed" in tensor.name or "lm_head" in tensor.name
    if not of_tokens or shape[1:] != tensor.shape[1:] or shape[0] < tensor.shape[0]:
        return None
    return (
        f"tokens were added before the training: give them to the base too, with transformers' "
        f"resize_token_embeddings({shape[0]}) and the tokenizer that was trained with, and save that"
    )


def _updated(tensor: LazyTensor, update: LoraUpdate) -> LazyTensor:
    def read(start: int, stop: int) -> Array:
        rows = tensor.read(start, stop).astype(np.float32, copy=False)
        return update.add_to_rows(rows, start, stop)

    return replace(tensor, dtype="F32", read=read)


def _another_base(adapter: Adapter) -> str:
    named = f", {adapter.lora_config.base_model}" if adapter.lora_config.base_model else ""
    return f"the adapter belongs to another base{named}: convert it with that one"
