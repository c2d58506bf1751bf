"""Read adapter_config.json of PEFT: the keys that decide the merge, are ignored, or are not supported.

Only LoRA is supported. Every key of peft's LoraConfig is in one of the tables here; a key that is in none is
an error unless its value is empty.

Source: peft 0.21's LoraConfig, tuners/lora/model.py (_create_and_replace) and layer.py.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigguf.checkpoint.json_file import read_json
from pigguf.common.json_config import JsonConfig
from pigguf.errors import CheckpointError, UnsupportedModel

ADAPTER_CONFIG_FILE = "adapter_config.json"
MERGE_WITH_PEFT = "merge it with peft (merge_and_unload, save_pretrained), and convert what that saves"

_USED_KEYS = {
    "peft_type",
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "bias",
    "init_lora_weights",
}

# Keys that matter in training only, or that repeat what the names of the tensors show.
_IGNORED_KEYS = {
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "velora_config",
}

# Key -> why the result is not W + scaling * B @ A where the key is set.
_UNSUPPORTED_KEYS = {
    "alora_invocation_tokens": "the adapter applies after its invocation tokens only, not to all tokens",
    "arrow_config": "it routes each token to one of several adapters",
    "fan_in_fan_out": "its matrices are transposed, which they are not in the supported families",
    "kasa_config": "it changes the base model's weights before the adapter is added",
    "layer_replication": "layers of the base model are used several times",
    "lora_bias": "it adds biases that the supported families do not have",
    "megatron_config": "it belongs to Megatron's layers",
    "monteclora_config": "its weights are sampled in every forward pass",
    "target_parameters": "it changes parameters that are not the weight of a module",
    "trainable_token_indices": "it trains single rows of the embedding",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "its input is pooled in groups",
}

# Values of init_lora_weights that leave the base model's weights as they are; the others subtract from them.
_BASE_KEEPING_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_BIAS_VALUES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraConfig:
    """The part of an adapter's LoraConfig that decides the merge.

    Attributes:
        r, lora_alpha: rank and alpha, where no pattern gives others.
        rank_pattern, alpha_pattern: regular expression for module names -> rank or alpha; the first that
            matches applies.
        use_rslora: the scaling is alpha / sqrt(rank), not alpha / rank.
        use_dora: rows are scaled to a learned norm after the update.
        base_model: base_model_name_or_path; "" where it is missing.
    """

    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    use_dora: bool
    base_model: str

    def rank_of(self, module: str) -> int:
        """Return the rank of a module, by its name in the base model."""
        return self.rank_pattern.get(_matching_pattern(self.rank_pattern, module), self.r)

    def scaling_of(self, module: str) -> float:
        """Return the factor of B @ A for a module, by its name in the base model."""
        rank = self.rank_of(module)
        alpha = self.alpha_pattern.get(_matching_pattern(self.alpha_pattern, module), self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read an adapter's adapter_config.json.

    Raises:
        CheckpointError: the file is missing or not JSON, or a key has an invalid value.
        UnsupportedModel: the adapter is not LoRA, or a variant of LoRA that cannot be merged here.
        ReadError: the system refuses to read it.
    """
    keys = JsonConfig(read_json(directory / ADAPTER_CONFIG_FILE), str(directory / ADAPTER_CONFIG_FILE))
    if keys.require("peft_type", str) != "LORA":
        raise UnsupportedModel(
            f"{keys.describe('peft_type')} is not supported: only LORA can be merged here", MERGE_WITH_PEFT
        )
    _check_supported(keys)
    return LoraConfig(
        r=keys.require("r", int),
        lora_alpha=keys.require("lora_alpha", float),
        rank_pattern=_read_patterns(keys, "rank_pattern", int),
        alpha_pattern=_read_patterns(keys, "alpha_pattern", float),
        use_rslora=keys.optional("use_rslora", bool, False),
        use_dora=keys.optional("use_dora", bool, False),
        base_model=keys.optional("base_model_name_or_path", str, ""),
    )


def _check_supported(keys: JsonConfig) -> None:
    for key, value in keys.values.items():
        is_empty = value is None or value is False or value in ("", [], {})
        if is_empty or key in _USED_KEYS or key in _IGNORED_KEYS:
            continue
        if key not in _UNSUPPORTED_KEYS:
            raise UnsupportedModel(
                f"{keys.describe(key)} is an unknown key, which may change the weights",
                f"set it to null if it does not; otherwise {MERGE_WITH_PEFT}",
            )
        raise UnsupportedModel(
            f"{keys.describe(key)} cannot be merged here: {_UNSUPPORTED_KEYS[key]}", MERGE_WITH_PEFT
        )
    if keys.values.get("init_lora_weights", True) not in (*_BASE_KEEPING_INITS, None):
        raise UnsupportedModel(
            f"{keys.describe('init_lora_weights')}: the training subtracted from the base model's "
            "weights first, so the adapter does not fit the original base model",
            "save it with peft's path_initial_model_for_weight_conversion, or " + MERGE_WITH_PEFT,
        )
    if keys.optional("bias", str, "none") not in _BIAS_VALUES:
        raise keys.invalid_value("bias", f"one of {', '.join(_BIAS_VALUES)}")


def _read_patterns(keys: JsonConfig, key: str, kind: type[Any]) -> dict[str, Any]:
    section = keys.section(key)
    if section is None:
        return {}
    for pattern in section.values:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(
                f"{section.describe(pattern)}: invalid regular expression: {error}"
            ) from error
    return {pattern: section.require(pattern, kind) for pattern in section.values}


def _matching_pattern(patterns: dict[str, Any], module: str) -> str:
    """Return the first pattern that matches the end of a module's name (peft's get_pattern_key), or ""."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), "")
