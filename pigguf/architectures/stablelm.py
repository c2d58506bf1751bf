"""StableLM and StableLM 2: Llama with layer norms, of whose heads a quarter is rotated.

Sources: transformers' modeling_stablelm.py; llama.cpp src/models/stablelm.cpp and conversion/stablelm.py.
The graph wants an output matrix. Left out: norms of each head (qk_layernorm, in StableLM 2 12B).
"""

from __future__ import annotations

from pigguf.architectures.family import TIED, Family
from pigguf.architectures.hparam_rules import Flag, HeadPart
from pigguf.architectures.llama import EMBEDDING, LAYER, ROTARY_BUFFERS, attention, feed_forward
from pigguf.architectures.tensor_rules import WIDTH, layer_norm, output, tensor

QKV_BIAS, PARALLEL = "use_qkv_bias", "use_parallel_residual"

STABLELM = Family(
    architecture="stablelm",
    classes=("StableLmForCausalLM",),
    model_type="stablelm",
    tensors=(
        EMBEDDING,
        *layer_norm(f"{LAYER}.input_layernorm", "blk.{}.attn_norm"),
        *attention(QKV_BIAS),
        *(
            tensor(
                f"{LAYER}.post_attention_layernorm.{kind}",
                f"blk.{{}}.ffn_norm.{kind}",
                WIDTH,
                when=f"!{PARALLEL}",
            )
            for kind in ("weight", "bias")
        ),
        *feed_forward(),
        *layer_norm("model.norm", "output_norm"),
        output(),
    ),
    dropped=ROTARY_BUFFERS,
    defaults={"max_position_embeddings": 4096},
    norm="layer",
    epsilon=("layer_norm_eps", 1e-5),
    parts={**TIED, QKV_BIAS: Flag(QKV_BIAS), PARALLEL: Flag(PARALLEL)},
    only={
        "tie_word_embeddings": ((False,), "the embedding as output matrix"),
        "qk_layernorm": ((False,), "a norm for each head"),
    },
    rotary=HeadPart(default=0.25),
)
