"""StarCoder2: layer norms and biases everywhere, a plain feed-forward, few keys.

Sources: transformers' modeling_starcoder2.py; llama.cpp src/models/starcoder2.cpp. The graph has no sliding
window: that of the published models, 4096, bounds the context.
"""

from __future__ import annotations

from pigguf.architectures.family import TIED_BY_DEFAULT, Family
from pigguf.architectures.gemma import TANH_GELU
from pigguf.architectures.hparam_rules import stated_window
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention
from pigguf.architectures.tensor_rules import INNER, WIDTH, layer_norm, linear, output

STARCODER2 = Family(
    architecture="starcoder2",
    classes=("Starcoder2ForCausalLM",),
    model_type="starcoder2",
    tensors=(
        EMBEDDING,
        *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
        *attention("", ""),
        *layer_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
        *linear(f"{LAYER}.mlp.c_fc", "blk.{}.ffn_up", INNER, WIDTH),
        *linear(f"{LAYER}.mlp.c_proj", "blk.{}.ffn_down", WIDTH, INNER),
        *layer_norm("model.norm", "output_norm"),
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    defaults={"num_key_value_heads": 2},
    norm="layer",
    epsilon=("norm_epsilon", 1e-5),
    parts=TIED_BY_DEFAULT,
    only={
        "hidden_act": ((TANH_GELU, "gelu_new"), "another activation than the tanh form of GELU"),
        "use_bias": ((True,), "projections without biases"),
        "mlp_type": (("default",), "another feed-forward"),
        "norm_type": (("layer_norm",), "another norm"),
    },
    sliding_window=stated_window,
    export={"sliding_window": None},
)
