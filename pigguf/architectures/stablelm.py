"""StableLM and StableLM 2: Llama with layer norms and partial rotary (a quarter of a head).

Sources: transformers' modeling_stablelm.py; llama.cpp src/models/stablelm.cpp and conversion/stablelm.py. The
graph requires an output matrix. Not supported: norms of each head (qk_layernorm, StableLM 2 12B).
"""

from __future__ import annotations

from pigguf.architectures.family import UNTIED_BY_DEFAULT, Family
from pigguf.architectures.hparam_rules import FeatureFlag, PartialRotary
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import HIDDEN_SIZE, layer_norm, lm_head, tensor

QKV_BIAS, PARALLEL_RESIDUAL = "use_qkv_bias", "use_parallel_residual"

STABLELM = Family(
    architecture="stablelm",
    hf_classes=("StableLmForCausalLM",),
    model_type="stablelm",
    tensor_rules=(
        EMBEDDING,
        *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
        *attention(QKV_BIAS),
        *(
            tensor(
                f"{LAYER}.post_attention_layernorm.{kind}",
                f"blk.{{}}.ffn_norm.{kind}",
                HIDDEN_SIZE,
                when=f"!{PARALLEL_RESIDUAL}",
            )
            for kind in ("weight", "bias")
        ),
        *feed_forward(),
        *layer_norm("model.norm", "output_norm"),
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={"max_position_embeddings": 4096},
    norm_type="layer",
    norm_epsilon_key="layer_norm_eps",
    norm_epsilon_default=1e-5,
    optional_features={
        **UNTIED_BY_DEFAULT,
        QKV_BIAS: FeatureFlag(QKV_BIAS),
        PARALLEL_RESIDUAL: FeatureFlag(PARALLEL_RESIDUAL),
    },
    allowed_values={
        "tie_word_embeddings": ((False,), "the embedding as output matrix"),
        "qk_layernorm": ((False,), "a norm for each head"),
    },
    rotary=PartialRotary(default=0.25),
)
