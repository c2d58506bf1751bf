"""Gemma: Llama with wide heads, a scaled embedding that is also the output matrix, and norms by 1 + weight.

Sources: transformers' modeling_gemma.py; llama.cpp src/models/gemma.cpp and conversion/gemma.py, which adds
the 1 to the weights. The published configs say hidden_act "gelu" and mean its tanh approximation, which is
what transformers and the graph compute (configuration_gemma.py).
"""

from __future__ import annotations

from pigguf.architectures.family import AllowedValues, Family
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import HIDDEN_SIZE, TensorRule, ValueTransform, lm_head, norm

TANH_GELU = "gelu_pytorch_tanh"
GEMMA_ALLOWED_VALUES: dict[str, AllowedValues] = {
    "hidden_act": (("gelu", TANH_GELU), "another activation than the tanh approximation of GELU"),
    "hidden_activation": ((TANH_GELU,), "another activation than the tanh approximation of GELU"),
    "attention_bias": ((False,), "biases"),
    "use_bidirectional_attention": ((False,), "attention that is not causal"),
}
TIED_EMBEDDINGS_ONLY: dict[str, AllowedValues] = {
    "tie_word_embeddings": ((True,), "an output matrix that is not the embedding"),
}


def gemma_norm(hf: str, gguf: str, size: str = HIDDEN_SIZE) -> TensorRule:
    """Return the rule for the weight of a norm that scales by 1 + weight."""
    return norm(hf, gguf, size, transform=ValueTransform(offset=1.0))


ATTENTION_NORM = gemma_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm")
OUTPUT_NORM = gemma_norm("model.norm", "output_norm")

GEMMA = Family(
    architecture="gemma",
    hf_classes=("GemmaForCausalLM",),
    model_type="gemma",
    tensor_rules=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        gemma_norm(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
        *feed_forward(),
        OUTPUT_NORM,
        lm_head(),
    ),
    ignored_tensors=ROTARY_BUFFERS,
    config_defaults={"head_dim": 256, "max_position_embeddings": 8192},
    optional_features={},
    allowed_values={**GEMMA_ALLOWED_VALUES, **TIED_EMBEDDINGS_ONLY},
    allows_custom_head_dim=True,
    export_config={"hidden_act": TANH_GELU, "hidden_activation": TANH_GELU},
)
