"""SmolLM3: Llama without positions in every fourth layer.

Sources: transformers' modeling_smollm3.py; llama.cpp src/models/smollm3.cpp, which has no key for these
layers, and no biases.
"""

from __future__ import annotations

from dataclasses import replace

from pigguf.architectures.family import NOT_COMPUTED_HINT, TIED_BY_DEFAULT
from pigguf.architectures.hparam_rules import explicit_sliding_window
from pigguf.architectures.hparams import HParams
from pigguf.architectures.llama import ATTENTION_BIAS as BIAS
from pigguf.architectures.llama import LLAMA, MLP_BIAS
from pigguf.common.json_config import JsonConfig
from pigguf.errors import UnsupportedModel

NO_ROPE_LAYER_INTERVAL = 4


def _window(keys: JsonConfig) -> int | None:
    return explicit_sliding_window(keys) if keys.optional("use_sliding_window", bool, False) else None


def _check(keys: JsonConfig, hparams: HParams) -> None:
    """Raise if other layers have no positions; no_rope_layers is 1 for layers with rotary positions."""
    key, interval = "no_rope_layers", keys.optional("no_rope_layer_interval", int, NO_ROPE_LAYER_INTERVAL)
    asked = keys.values.get(key)
    if asked is None:
        key, asked = "no_rope_layer_interval", [int((i + 1) % interval != 0) for i in range(hparams.layers)]
    if asked != [int((i + 1) % NO_ROPE_LAYER_INTERVAL != 0) for i in range(hparams.layers)]:
        raise UnsupportedModel(
            f"{keys.describe(key)} removes positions from other layers than every fourth", NOT_COMPUTED_HINT
        )


SMOLLM3 = replace(
    LLAMA,
    architecture="smollm3",
    hf_classes=("SmolLM3ForCausalLM",),
    model_type="smollm3",
    tensor_rules=tuple(rule for rule in LLAMA.tensor_rules if rule.when not in (BIAS, MLP_BIAS)),
    config_defaults={"num_key_value_heads": 4, "max_position_embeddings": 32768, "rope_theta": 2e6},
    optional_features=TIED_BY_DEFAULT,
    allowed_values={BIAS: ((False,), "biases"), MLP_BIAS: ((False,), "biases")},
    read_sliding_window=_window,
    check_config=_check,
    export_config={"use_sliding_window": False},
)
