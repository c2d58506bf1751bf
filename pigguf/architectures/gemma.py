"""Gemma: Llama with wide heads, the embedding scaled and used as output matrix, and norms by 1 + weight.

Sources: transformers' modeling_gemma.py; llama.cpp src/models/gemma.cpp and conversion/gemma.py, whose
norms have the 1 in their weights. The published configs say hidden_act "gelu" and mean its tanh form,
which is what transformers and the graph compute (configuration_gemma.py).
"""

from __future__ import annotations

from pigguf.architectures.family import Allowed, Family
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import WIDTH, Change, TensorRule, norm, output

TANH_GELU = "gelu_pytorch_tanh"
ONLY: dict[str, Allowed] = {
    "hidden_act": (("gelu", TANH_GELU), "another activation than the tanh form of GELU"),
    "hidden_activation": ((TANH_GELU,), "another activation than the tanh form of GELU"),
    "attention_bias": ((False,), "biases"),
    "use_bidirectional_attention": ((False,), "attention that is not causal"),
}
TIED_ONLY: dict[str, Allowed] = {
    "tie_word_embeddings": ((True,), "an output matrix that is not the embedding"),
}


def one_more(hf: str, gguf: str, size: str = WIDTH) -> TensorRule:
    """A rule for the weight of a norm that scales by 1 + weight."""
    return norm(hf, gguf, size, change=Change(add=1.0))


ATTENTION_NORM = one_more(f"{LAYER}.input_layernorm", "blk.{}.attn_norm")
OUTPUT_NORM = one_more("model.norm", "output_norm")

GEMMA = Family(
    architecture="gemma",
    classes=("GemmaForCausalLM",),
    model_type="gemma",
    tensors=(
        EMBEDDING,
        ATTENTION_NORM,
        *attention(),
        one_more(f"{LAYER}.post_attention_layernorm", "blk.{}.ffn_norm"),
        *feed_forward(),
        OUTPUT_NORM,
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    defaults={"head_dim": 256, "max_position_embeddings": 8192},
    parts={},
    only={**ONLY, **TIED_ONLY},
    free_head_dim=True,
    export={"hidden_act": TANH_GELU, "hidden_activation": TANH_GELU},
)
