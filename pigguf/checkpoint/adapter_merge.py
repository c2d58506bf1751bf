"""Merge a LoRA adapter into its base model: the merged tensors, still lazy.

Rows of a merged matrix are W + scaling * B @ A in float32, computed when they are read, so merging takes no
more memory than converting. peft rounds the sum to the base model's dtype, which loses the last bits of the
adapter in a bfloat16 base; here nothing is rounded before the target type.

The result is the model as peft runs it and as it was trained. peft's own merge_and_unload differs where the
base ties lm_head to the embedding and LoRA changes one of them: it adds to both. Here they become two
tensors, as they do for whole tensors in peft's merge too.

Not here: RoPE scaling of the merged model (rope/).
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

# Keys on which the adapter's own config.json and the base model's must agree, where both have them.
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
    """Return the tensors of a checkpoint with an adapter merged into them, under the same names.

    If the checkpoint ties its embeddings, there is an lm_head.weight only if the adapter makes it differ
    from the embedding.

    Args:
        checkpoint: the base model; both must stay open while the tensors are read.
        adapter: the adapter.

    Raises:
        CheckpointError: the adapter's config.json is another model's.
        UnmappedTensor: the adapter changes a tensor that the base model does not have.
        InvalidTensor: the adapter's tensors do not have the shapes of the base model's.
    """
    _check_same_model(checkpoint, adapter)
    tensors, changes = dict(checkpoint.tensors), dict(adapter.changes)
    if JsonConfig(checkpoint.config).optional("tie_word_embeddings", bool, False):
        _untie_where_changed(tensors, changes, checkpoint)
    for target, change in changes.items():
        if target not in tensors:
            raise UnmappedTensor(
                f"{adapter.path} changes {target}, which {checkpoint.path} does not have",
                _wrong_base_hint(adapter),
            )
        tensors[target] = _apply_change(tensors[target], change, checkpoint, adapter)
    return tensors


def _check_same_model(checkpoint: Checkpoint, adapter: Adapter) -> None:
    theirs, base = adapter.model_config, JsonConfig(checkpoint.config)
    for key in _SHAPE_KEYS:
        if theirs is not None and key in theirs and key in base and theirs.values[key] != base.values[key]:
            raise CheckpointError(
                f"{theirs.describe(key)}, but {checkpoint.path / 'config.json'}: {key} = {base.values[key]}",
                _wrong_base_hint(adapter),
            )


def _untie_where_changed(
    tensors: dict[str, LazyTensor], changes: dict[str, TensorChange], checkpoint: Checkpoint
) -> None:
    """Give lm_head a tensor of its own if the adapter changes it and the embedding differently."""
    family = family_from_config(checkpoint.config)
    embedding, lm_head = embedding_name(family), lm_head_name(family)
    if embedding not in tensors:
        return
    if lm_head in tensors:
        check_tied_output(tensors[embedding], tensors.pop(lm_head), str(checkpoint.path))
    embedding_change = changes.pop(embedding, TensorChange())
    lm_head_change = changes.pop(lm_head, TensorChange())
    replacements = [
        change.base_replacement
        for change in (embedding_change, lm_head_change)
        if change.base_replacement is not None
    ]
    if len(replacements) == 2 and not replacements[0].equals(replacements[1]):
        raise InvalidTensor(
            f"{replacements[0].name} and {replacements[1].name} differ, but the base model ties the two",
            "train on a base whose config.json has tie_word_embeddings = false",
        )
    shared = replacements[0] if replacements else None
    embedding_change = replace(embedding_change, base_replacement=shared)
    lm_head_change = replace(lm_head_change, base_replacement=shared)
    if embedding_change != TensorChange():
        changes[embedding] = embedding_change
    if not _equal_changes(embedding_change, lm_head_change):
        tensors[lm_head] = replace(tensors[embedding], name=lm_head)
        if lm_head_change != TensorChange():
            changes[lm_head] = lm_head_change


def _equal_changes(a: TensorChange, b: TensorChange) -> bool:
    """Return whether two changes of one tensor give the same (as with peft's ensure_weight_tying)."""
    if (a.replacement is None, a.lora is None) != (b.replacement is None, b.lora is None):
        return False
    if a.replacement is not None and b.replacement is not None:
        return a.replacement.equals(b.replacement)
    if a.lora is not None and b.lora is not None:
        return _equal_updates(a.lora, b.lora)
    return True


def _equal_updates(a: LoraUpdate, b: LoraUpdate) -> bool:
    no_dora = a.dora_magnitude is None and b.dora_magnitude is None
    return no_dora and a.scaling == b.scaling and a.lora_b.equals(b.lora_b) and a.lora_a.equals(b.lora_a)


def _apply_change(
    tensor: LazyTensor, change: TensorChange, checkpoint: Checkpoint, adapter: Adapter
) -> LazyTensor:
    for replacement in (change.base_replacement, change.replacement):
        if replacement is not None:
            _check_shape(replacement.shape, tensor, replacement.name, checkpoint, adapter)
            tensor = replace(replacement, name=tensor.name)
    update = change.lora
    if update is None:
        return tensor
    names = f"{update.lora_b.name} with {update.lora_a.name}"
    _check_shape((update.lora_b.shape[0], update.lora_a.shape[1]), tensor, names, checkpoint, adapter)
    magnitude = update.dora_magnitude
    if magnitude is not None:
        _check_shape(magnitude.shape + tensor.shape[1:], tensor, magnitude.name, checkpoint, adapter)

    def read(start: int, stop: int) -> Array:
        return update.add_to_rows(tensor.read(start, stop).astype(np.float32, copy=False), start, stop)

    return replace(tensor, dtype="F32", read=read)


def _check_shape(
    shape: tuple[int, ...], tensor: LazyTensor, names: str, checkpoint: Checkpoint, adapter: Adapter
) -> None:
    if shape != tensor.shape:
        raise InvalidTensor(
            f"{adapter.path}: {names} is for a tensor of shape {list(shape)}, but {tensor.name} of "
            f"{checkpoint.path} has {list(tensor.shape)}",
            _added_tokens_hint(shape, tensor) or _wrong_base_hint(adapter),
        )


def _added_tokens_hint(shape: tuple[int, ...], tensor: LazyTensor) -> str | None:
    """Return what to do if tokens were added before the training, as LongLoRA adds [PAD]; else None."""
    is_per_token = "embed" in tensor.name or "lm_head" in tensor.name
    if not is_per_token or shape[1:] != tensor.shape[1:] or shape[0] < tensor.shape[0]:
        return None
    return (
        f"tokens were added before the training: add them to the base model too, with transformers' "
        f"resize_token_embeddings({shape[0]}) and the tokenizer of the training, and save that"
    )


def _wrong_base_hint(adapter: Adapter) -> str:
    base_model = f", {adapter.lora_config.base_model}" if adapter.lora_config.base_model else ""
    return f"the adapter belongs to another base model{base_model}: convert it with that one"
