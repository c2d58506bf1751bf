"""StarCoder2: layer norms and biases everywhere, a feed-forward without gate, few KV heads.

Sources: transformers' modeling_starcoder2.py; llama.cpp src/models/starcoder2.cpp. The graph has no sliding
window, so that of the published models, 4096, limits the context length.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gemma import TANH_GELU
from pigguf.architectures.hparam_rules import explicit_sliding_window
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention
from pigguf.architectures.tensor_rules import HIDDEN_SIZE, INTERMEDIATE_SIZE, layer_norm, linear, lm_head

STARCODER2 = Family(
    architecture="starcoder2",
    hf_classes=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    tensor_rules=(
        EMBEDDING,
        *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
        *attention("", ""),
        *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
        *linear(f"{LAYER}.mlp.c_fc", "blk.{}.ffn_up", INTERMEDIATE_SIZE, HIDDEN_SIZE),
        *linear(f"{LAYER}.mlp.c_proj", "blk.{}.ffn_down", HIDDEN_SIZE, INTERMEDIATE_SIZE),
        *layer_norm("model.norm", "output_norm"),
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={"num_key_value_heads": 2},
    norm_type="layer",
    norm_epsilon_key="norm_epsilon",
    norm_epsilon_default=1e-5,
    optional_features=TIED_BY_DEFAULT,
    allowed_values={
        "hidden_act": ((TANH_GELU, "gelu_new"), "another activation than the tanh approximation of GELU"),
        "use_bias": ((True,), "projections without biases"),
        "mlp_type": (("default",), "another feed-forward"),
        "norm_type": (("layer_norm",), "another norm"),
    },
    read_sliding_window=explicit_sliding_window,
    export_config={"sliding_window": None},
)
