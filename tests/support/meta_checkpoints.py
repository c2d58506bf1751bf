"""Convert a transformers checkpoint to Meta's format, by the rules of Meta's model.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "model.layers.": "layers.",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
}
_COLUMN_SPLIT = ("attention.wo", "feed_forward.w2", "tok_embeddings")


def convert_to_meta(
    checkpoint: Path, n_shards: int = 1, embedding_rows: bool = False, **params: Any
) -> dict[str, torch.Tensor]:
    """Replace model.safetensors and config.json by consolidated.*.pth and params.json.

    Args:
        checkpoint: a Llama's directory.
        n_shards: how many model-parallel shards.
        embedding_rows: split the embedding by rows, as in Llama 3.
        params: keys of params.json that differ; a value of ... leaves one out.

    Returns:
        The first shard.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    heads = {"wq": config["num_attention_heads"], "wk": config["num_key_value_heads"]}
    states: list[dict[str, torch.Tensor]] = [{} for _ in range(n_shards)]
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        for theirs, metas in _NAMES.items():
            name = name.replace(theirs, metas)
        kind = name.split(".")[-2]
        if kind in heads:  # rotate_half -> interleaved
            rows, columns = tensor.shape
            tensor = tensor.view(heads[kind], 2, rows // heads[kind] // 2, columns).transpose(1, 2)
            tensor = tensor.reshape(rows, columns)
        axis = int(any(part in name for part in _COLUMN_SPLIT))
        if embedding_rows and "tok_embeddings" in name:
            axis = 0
        slices = [tensor] * n_shards if tensor.ndim == 1 else tensor.chunk(n_shards, dim=axis)
        for state, shard in zip(states, slices, strict=True):
            state[name] = shard.clone()
    for number, state in enumerate(states):
        state["rope.freqs"] = torch.ones(config["hidden_size"] // config["num_attention_heads"] // 2)
        torch.save(state, checkpoint / f"consolidated.{number:02}.pth")
    stated = {
        "dim": config["hidden_size"],
        "n_layers": config["num_hidden_layers"],
        "n_heads": config["num_attention_heads"],
        "n_kv_heads": config["num_key_value_heads"],
        "multiple_of": 32,
        "norm_eps": config["rms_norm_eps"],
        "vocab_size": -1,
        **params,
    }
    (checkpoint / "params.json").write_text(json.dumps({k: v for k, v in stated.items() if v is not ...}))
    for name in ("model.safetensors", "config.json", "generation_config.json"):
        (checkpoint / name).unlink(missing_ok=True)
    return states[0]
