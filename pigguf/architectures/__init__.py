"""Model families: config.json and tensor names of transformers <-> metadata and tensor names of GGUF.

    registry.py         FAMILIES, and which family a config or a GGUF belongs to
    llama.py, ...       a family each, as data
    family.py           Family: the fields of that data
    hparams.py          HParams: the hyperparameters of a model
    config_reader.py    config.json -> HParams and positions
    config_writer.py    HParams -> config.json
    metadata_reader.py  GGUF metadata -> HParams
    hparam_checks.py    hyperparameters that do not fit each other
    layer_types.py      which layers have sliding window attention
    hparam_rules.py     building blocks of a family's config keys
    tensor_rules.py     building blocks of a family's tensors; row_permutations.py: the layout of heads
    tensor_names.py     tensor names and shapes of a model
    tensor_mapping.py   checkpoint tensors <-> GGUF tensors

Not here: positions (pigguf.rope), tokenizers (pigguf.tokenizer), quantization.
"""

from pigguf.architectures.config_reader import hparams_from_config, positions_from_config
from pigguf.architectures.config_writer import config_from_hparams, config_with_positions
from pigguf.architectures.family import HF_CLASS_KEY, Family
from pigguf.architectures.hparams import HParams
from pigguf.architectures.metadata_reader import hparams_from_metadata
from pigguf.architectures.registry import (
    FAMILIES,
    family_by_architecture,
    family_from_config,
    family_from_metadata,
)
from pigguf.architectures.tensor_mapping import map_tensors_to_gguf, map_tensors_to_hf

__all__ = [
    "FAMILIES",
    "HF_CLASS_KEY",
    "Family",
    "HParams",
    "config_from_hparams",
    "config_with_positions",
    "family_by_architecture",
    "family_from_config",
    "family_from_metadata",
    "hparams_from_config",
    "hparams_from_metadata",
    "map_tensors_to_gguf",
    "map_tensors_to_hf",
    "positions_from_config",
]
