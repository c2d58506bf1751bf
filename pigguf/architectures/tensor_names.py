"""Names and shapes of a family's tensors, in checkpoints and in GGUF files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from pigguf.architectures.family import Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.tensor_rules import DIMENSIONS, EXPERT, TensorPattern, TensorRule


class TensorSpec(NamedTuple):
    """The name and the shape of a tensor that a model must have."""

    name: str
    shape: tuple[int, ...]


class TensorMapping(NamedTuple):
    """A tensor rule applied to a model (and a layer): the tensors of a checkpoint and those of the GGUF."""

    hf: tuple[TensorSpec, ...]
    gguf: tuple[TensorSpec, ...]
    rule: TensorRule


def embedding_name(family: Family) -> str:
    """Return the name of the embedding in a checkpoint."""
    return _hf_name(family, "token_embd.weight")


def lm_head_name(family: Family) -> str:
    """Return the name of the output matrix in a checkpoint; the embedding's if the two are always tied."""
    return _hf_name(family, "output.weight") or embedding_name(family)


def _hf_name(family: Family, gguf_name: str) -> str:
    rules = (rule for rule in family.tensor_rules if rule.gguf[0].name == gguf_name and rule.hf)
    return next((rule.hf[0].name for rule in rules), "")


def module_names(family: Family, *gguf_stems: str, depth: int = 1) -> tuple[str, ...]:
    """Return the names of the transformers modules whose weights have these names in a GGUF.

    Args:
        family: the family.
        gguf_stems: the last but one parts of GGUF names: "attn_q" of "blk.0.attn_q.weight".
        depth: how many of the last parts of a module's name are returned.
    """
    rules = [rule for rule in family.tensor_rules if rule.gguf[0].name.endswith(".weight")]
    names = {
        ".".join(pattern.name.split(".")[-1 - depth : -1]): None
        for rule in rules
        if rule.gguf[0].name.split(".")[-2] in gguf_stems
        for pattern in rule.hf
    }
    return tuple(names)


def is_ignored(family: Family, name: str) -> bool:
    """Return whether a checkpoint's tensor is not converted."""
    return re.fullmatch(family.ignored_tensors, name) is not None


def canonical_name(family: Family, name: str) -> str:
    """Return the name that the family's tensor rules have for a checkpoint's tensor."""
    for pattern, replacement in family.tensor_name_aliases:
        name = re.sub(pattern, replacement, name)
    return name


def tensor_mappings(family: Family, hparams: HParams) -> Iterator[TensorMapping]:
    """Yield every tensor that the model must have, in the order of the GGUF: embedding, layers, output."""
    rules = [rule for rule in family.tensor_rules if hparams.has_feature(rule.when)]
    first = next(index for index, rule in enumerate(rules) if rule.is_per_layer)
    for rule in rules[:first]:
        yield _map_tensors(rule, hparams)
    for layer in range(hparams.layers):
        for rule in rules:
            if rule.is_per_layer:
                yield _map_tensors(rule, hparams, layer)
    for rule in rules[first:]:
        if not rule.is_per_layer:
            yield _map_tensors(rule, hparams)


def _map_tensors(rule: TensorRule, hparams: HParams, layer: int = 0) -> TensorMapping:
    hf = tuple(spec for pattern in rule.hf for spec in _expand(pattern, hparams, layer))
    gguf = tuple(spec for pattern in rule.gguf for spec in _expand(pattern, hparams, layer))
    return TensorMapping(hf, gguf, rule)


def _expand(pattern: TensorPattern, hparams: HParams, layer: int) -> Iterator[TensorSpec]:
    """Yield the tensor that a pattern stands for, or one for each expert."""
    shape = tuple(DIMENSIONS[dimension](hparams) for dimension in pattern.shape)
    for expert in range(hparams.experts if EXPERT in pattern.name else 1):
        yield TensorSpec(pattern.name.format(layer, expert=expert), shape)
