"""adapter_config.json of PEFT: what decides the merge, what is silent, and what cannot be merged.

Source: peft 0.21's LoraConfig, tuners/lora/model.py (_create_and_replace) and layer.py. Every key of
it is in one of the tables here; a key that is in none stops the work unless it says nothing.
Left out: other methods than LoRA.
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

_READ = {
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

# Keys that matter while training, or that repeat what the tensors' names say.
_SILENT = {
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

# Keys that make it another thing than W + scale * B A, where they say anything.
_REFUSED = {
    "alora_invocation_tokens": "the adapter works from an invocation on, and not on all tokens",
    "arrow_config": "several adapters are chosen between, token by token",
    "fan_in_fan_out": "its matrices are transposed, which those of these families never are",
    "kasa_config": "the base's own weights are changed before the adapter is added",
    "layer_replication": "layers of the base are used several times",
    "lora_bias": "it adds biases that these families do not have",
    "megatron_config": "it belongs to Megatron's layers",
    "monteclora_config": "its weights are drawn anew each time",
    "target_parameters": "it changes parameters that are no module's weight",
    "trainable_token_indices": "it trains single rows of the embedding",
    "use_bdlora": "its matrices are block-diagonal",
    "use_qalora": "its input is pooled in groups",
}

# Ways to begin that leave the base as it is; the others take something out of it, which merging misses.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal", "mica")
_BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraConfig:
    """What decides how large an adapter's matrices are and how they are scaled.

    Attributes:
        r, alpha: rank and alpha, where no pattern gives others.
        ranks, alphas: pattern of module names -> rank, alpha; the first that matches holds.
        rank_stabilized: the scale is alpha / sqrt(rank), not alpha / rank.
        dora: rows are brought to a learned length after the addition.
        base: what the adapter says it was trained on; "" where it does not.
    """

    r: int
    lora_alpha: float
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    use_rslora: bool
    use_dora: bool
    base_model: str

    def rank_of(self, module: str) -> int:
        return self.rank_pattern.get(_matching(self.rank_pattern, module), self.r)

    def scaling_of(self, module: str) -> float:
        """What B A is multiplied by for a module, by its name in the base."""
        rank, alpha = (
            self.rank_of(module),
            self.alpha_pattern.get(_matching(self.alpha_pattern, module), self.lora_alpha),
        )
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)


def read_adapter_config(directory: Path) -> LoraConfig:
    """Read an adapter's config.

    Raises:
        CheckpointError: the file is missing or not JSON, or a key holds what it cannot.
        UnsupportedModel: another method than LoRA, or a form of LoRA that cannot be merged here.
        ReadError: the system refuses to read it.
    """
    keys = JsonConfig(read_json(directory / ADAPTER_CONFIG_FILE), str(directory / ADAPTER_CONFIG_FILE))
    kind = keys.require("peft_type", str)
    if kind != "LORA":
        raise UnsupportedModel(
            f"{keys.describe('peft_type')} is not LORA, the one kind merged here", MERGE_WITH_PEFT
        )
    _refuse_other_forms(keys)
    return LoraConfig(
        r=keys.require("r", int),
        lora_alpha=keys.require("lora_alpha", float),
        rank_pattern=_patterns(keys, "rank_pattern", int),
        alpha_pattern=_patterns(keys, "alpha_pattern", float),
        use_rslora=keys.optional("use_rslora", bool, False),
        use_dora=keys.optional("use_dora", bool, False),
        base_model=keys.optional("base_model_name_or_path", str, ""),
    )


def _refuse_other_forms(keys: JsonConfig) -> None:
    for key, value in keys.values.items():
        silent = value is None or value is False or value in ("", [], {})
        if silent or key in _READ or key in _SILENT:
            continue
        if key not in _REFUSED:
            raise UnsupportedModel(
                f"{keys.describe(key)} is not known here, so whether it changes the weights is not either",
                f"set it to null if it does not; otherwise {MERGE_WITH_PEFT}",
            )
        raise UnsupportedModel(f"{keys.describe(key)} cannot be merged here: {_REFUSED[key]}", MERGE_WITH_PEFT)
    if keys.values.get("init_lora_weights", True) not in (*_PLAIN_STARTS, None):
        raise UnsupportedModel(
            f"{keys.describe('init_lora_weights')}: training began by taking something out of the base's "
            "weights, which the adapter on the base as it is would miss",
            "save it with peft's path_initial_model_for_weight_conversion, or " + MERGE_WITH_PEFT,
        )
    if keys.optional("bias", str, "none") not in _BIASES:
        raise keys.invalid_value("bias", f"one of {', '.join(_BIASES)}")


def _patterns(keys: JsonConfig, key: str, kind: type[Any]) -> dict[str, Any]:
    section = keys.section(key)
    if section is None:
        return {}
    for pattern in section.values:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{section.describe(pattern)}: the pattern is not one: {error}") from error
    return {pattern: section.require(pattern, kind) for pattern in section.values}


def _matching(patterns: dict[str, Any], module: str) -> str:
    """The first pattern that a module's name ends with, at a dot (peft's get_pattern_key), or "" for none."""
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), "")
