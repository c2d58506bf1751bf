"""Structure: a file's hyperparameters, positions, keys and tensor shapes against what convert would write.

Keys are compared by their meaning for llama.cpp, not by how they are written: one that another converter
leaves out because its value is llama.cpp's default is only a note, and so is a key that has no part in the
computation (general.*).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from pigguf.architectures import Family, hparams_from_metadata
from pigguf.architectures.hparams import NORM_EPSILON_KEYS
from pigguf.errors import PigError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import TypedValue
from pigguf.operations.convert import ConversionPlan
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.operations.verify.discrepancy import Discrepancy, values_match
from pigguf.operations.verify.verification_result import VerificationPart

# Attributes of HParams and of RopeScaling, with the GGUF keys that state them.
_HPARAM_KEYS = {
    "layers": "block_count",
    "embedding_length": "embedding_length",
    "feed_forward_length": "feed_forward_length",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rotary_dim": "rope.dimension_count",
    "vocab_size": "vocab_size",
    "experts": "expert_count",
}
_ROPE_KEYS = {
    "rope_type": "rope.scaling.type",
    "context_length": "context_length",
    "factor": "rope.scaling.factor",
    "rope_theta": "rope.freq_base",
    "original_context": "rope.scaling.original_context_length",
    "parameters": "rope.scaling",
    "local_rope_theta": "rope.freq_base_swa",
}
_UNROTATED_ATTRIBUTES = ("rope_type", "context_length")  # all that learned positions and ALiBi state
_ORIGINAL_CONTEXT_UNUSED = ("none", "linear")  # rope types whose computation ignores the original context
_QUANTIZATION_KEYS = ("general.file_type", "general.quantization_version")


class _Fact(NamedTuple):
    """A value under the key that states it, in the file and by the checkpoint."""

    name: str
    in_file: Any
    in_checkpoint: Any


def compare_structure(file: GGUFFile, family: Family, plan: ConversionPlan) -> VerificationPart:
    """Compare a file's hyperparameters, positions and tensor shapes with those of a conversion's plan."""
    facts = [_Fact("general.architecture", file.architecture, plan.hparams.architecture)]
    if file.architecture == plan.hparams.architecture:
        facts += _hparam_facts(file, family, plan)
    differences = [Discrepancy.between(*fact) for fact in facts if not values_match(*fact[1:])]
    planned = {tensor.name: tensor.shape for tensor in plan.tensors}
    stored = {name: tensor.shape for name, tensor in file.tensors.items()}
    names = dict.fromkeys((*planned, *stored))
    differences += [
        Discrepancy.between(name, stored.get(name), planned.get(name))
        for name in names
        if stored.get(name) != planned.get(name)
    ]
    differing = {difference.name for difference in differences}
    notes = tuple(note for note in _key_notes(file, plan) if note.name not in differing)
    return VerificationPart(len(facts) + len(names), tuple(differences), notes)


def _hparam_facts(file: GGUFFile, family: Family, plan: ConversionPlan) -> Iterator[_Fact]:
    """Yield the hyperparameters and positions of both, under the keys that state them."""
    try:
        stored = hparams_from_metadata(family, file.metadata, file.tensors)
        stored_rope = rope_from_gguf(file)
    except PigError as error:
        yield _Fact("keys", error.message, "keys of this family")
        return
    prefix, planned, rope = file.architecture, plan.hparams, plan.rope
    for name, key in _HPARAM_KEYS.items():
        yield _Fact(f"{prefix}.{key}", getattr(stored, name), getattr(planned, name))
    epsilon_key = NORM_EPSILON_KEYS[planned.norm_type]
    yield _Fact(f"{prefix}.{epsilon_key}", stored.norm_epsilon, planned.norm_epsilon)
    for key in dict.fromkeys((*stored.extra_keys, *planned.extra_keys)):
        yield _Fact(
            f"{prefix}.{key}", _value(stored.extra_keys.get(key)), _value(planned.extra_keys.get(key))
        )
    for name in _UNROTATED_ATTRIBUTES if rope.rope_type in ("learned", "alibi") else _ROPE_KEYS:
        if name != "original_context" or rope.rope_type not in _ORIGINAL_CONTEXT_UNUSED:
            yield _Fact(f"{prefix}.{_ROPE_KEYS[name]}", getattr(stored_rope, name), getattr(rope, name))


def _key_notes(file: GGUFFile, plan: ConversionPlan) -> Iterator[Discrepancy]:
    """Yield the keys that convert would write differently, except the tokenizer's and those of the split."""
    for key in dict.fromkeys((*file.metadata, *plan.metadata)):
        if key.startswith(("tokenizer.", "split.")) or key in _QUANTIZATION_KEYS:
            continue
        stored, planned = _value(file.metadata.get(key)), _value(plan.metadata.get(key))
        if not values_match(stored, planned):
            yield Discrepancy.between(key, stored, planned)


def _value(typed: TypedValue | None) -> Any:
    return None if typed is None else typed.value
