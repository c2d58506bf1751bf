"""What a graph aborts on is refused with file, key and value, and what is only next to it runs.

Without the check each file of REFUSED ends the process (a GGML_ASSERT, a null pointer), except for
"gemma2 does not see": its attention then has nothing to attend to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import GRAPHS, LAYERS, WIDTH, TinyModel, graph, text_tokens, write_tiny

from pigguf.architectures.gemma3 import GEMMA3
from pigguf.architectures.granite import GRANITE
from pigguf.architectures.mixtral import MIXTRAL
from pigguf.architectures.qwen3 import QWEN3
from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import array, boolean, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model

FIRST: dict[str, TinyModel] = {tiny.architecture: tiny for tiny in reversed(GRAPHS.values())}
NONE: dict[str, Any] = {}


def in_layers(**tensors: tuple[int, ...] | None) -> dict[str, tuple[int, ...] | None]:
    return {
        f"blk.{i}.{name.replace('__', '.')}": shape for i in range(LAYERS) for name, shape in tensors.items()
    }


FUSED_OF_WIDER_HEADS = in_layers(attn_qkv__weight=(3 * WIDTH, WIDTH), attn_qkv__bias=(3 * WIDTH,))
FUSED_OF_5_HEADS = in_layers(attn_qkv__weight=(WIDTH + 120, WIDTH), attn_qkv__bias=(WIDTH + 120,))
NARROW_HEADS = graph(GEMMA3, LAYERS, frozenset(), head_dim=8, rotary_dim=8)

REFUSED: dict[str, tuple[TinyModel, dict[str, Any], dict[str, Any], str]] = {
    "llama, layers unlike": (
        FIRST["llama"],
        {"llama.attention.head_count_kv": array("u32", (2, 4))},
        NONE,
        "llama.attention.head_count_kv is [2, 4]",
    ),
    "granite, layers unlike": (
        FIRST["granite"],
        {"granite.attention.head_count": array("u32", (4, 2))},
        NONE,
        "granite.attention.head_count is [4, 2]",
    ),
    "gpt2, wider heads": (
        FIRST["gpt2"],
        {"gpt2.attention.key_length": u32(32), "gpt2.attention.value_length": u32(32)},
        FUSED_OF_WIDER_HEADS,
        "gpt2.attention.head_count is 4, and heads of 32 are not the embedding length 64",
    ),
    "gpt2, 5 heads": (
        FIRST["gpt2"],
        {"gpt2.attention.head_count": u32(5), "gpt2.attention.head_count_kv": u32(5)},
        FUSED_OF_5_HEADS,
        "gpt2.attention.head_count is 5, and heads of 12 are not the embedding length 64",
    ),
    "gemma3, none slides": (
        FIRST["gemma3"],
        {"gemma3.attention.sliding_window_pattern": array("bool", (False, False))},
        NONE,
        "gemma3.attention.sliding_window_pattern is (False, False), by which no layer slides",
    ),
    "gemma2, none of one slides": (
        FIRST["gemma2"],
        {"gemma2.attention.sliding_window_pattern": u32(1)},
        NONE,
        "gemma2.attention.sliding_window_pattern is 1, by which no layer slides",
    ),
    "olmo2, none of one slides": (
        FIRST["olmo2"],
        {"olmo2.attention.sliding_window": u32(16), "olmo2.attention.sliding_window_pattern": u32(1)},
        NONE,
        "olmo2.attention.sliding_window_pattern is 1",
    ),
    "gemma2 does not see": (
        FIRST["gemma2"],
        {"gemma2.attention.sliding_window": u32(0)},
        NONE,
        "gemma2.attention.sliding_window is 0, not a number of tokens",
    ),
    "gemma3, sliding heads narrower": (
        NARROW_HEADS,
        {
            "gemma3.attention.key_length": u32(16),
            "gemma3.attention.value_length": u32(16),
            "gemma3.rope.dimension_count": u32(16),
            "gemma3.attention.key_length_swa": u32(8),
            "gemma3.attention.value_length_swa": u32(8),
        },
        NONE,
        "gemma3.attention.key_length_swa is 8, not 16",
    ),
    "gemma3, sliding heads rotated in part": (
        FIRST["gemma3"],
        {"gemma3.rope.dimension_count_swa": u32(7)},
        NONE,
        "gemma3.rope.dimension_count_swa is 7, not 16",
    ),
    "bloom, an unknown scaling": (
        FIRST["bloom"],
        {"bloom.rope.scaling.type": string("su")},
        NONE,
        "bloom.rope.scaling.type is 'su', none of none, linear, yarn, longrope",
    ),
    "starcoder2, half a head rotated": (
        FIRST["starcoder2"],
        {"starcoder2.rope.dimension_count": u32(8)},
        NONE,
        "starcoder2.rope.dimension_count is 8, not the key length 16",
    ),
    "phi3, no queries": (
        FIRST["phi3"],
        NONE,
        in_layers(attn_qkv__weight=None),
        "tensor blk.0.attn_q.weight is missing",
    ),
    "mpt, norms of queries": (
        FIRST["mpt"],
        NONE,
        in_layers(attn_q_norm__weight=(WIDTH,)),
        "tensor blk.0.attn_q_norm.weight is one that llama.cpp cannot compute with",
    ),
    "mixtral, a layer without experts": (
        graph(MIXTRAL, LAYERS, frozenset()),
        {"llama.expert_used_count": array("u32", (4, 0))},
        NONE,
        "llama.expert_used_count is 0, with 4 experts",
    ),
    "mixtral, too many experts at once": (
        graph(MIXTRAL, LAYERS, frozenset(), experts=512, feed_forward_length=1),
        {"llama.expert_used_count": u32(300)},
        NONE,
        "llama.expert_used_count is 300, more than llama.cpp's graph has room for",
    ),
}

RUNS: dict[str, tuple[TinyModel, dict[str, Any]]] = {
    "gemma3, a window of all": (FIRST["gemma3"], {"gemma3.attention.sliding_window": u32(2**31 - 1)}),
    "gemma3, all slide": (
        FIRST["gemma3"],
        {"gemma3.attention.sliding_window_pattern": array("bool", (True, True))},
    ),
    "gemma3, none has a window": (FIRST["gemma3"], {"gemma3.attention.sliding_window": u32(0)}),
    "olmo2, sliding layers": (FIRST["olmo2"], {"olmo2.attention.sliding_window": u32(16)}),
    "mpt, no distances": (FIRST["mpt"], {"mpt.attention.max_alibi_bias": f32(0.0)}),
    "granite, nothing rotates": (FIRST["granite"], {"granite.rope.scaling.finetuned": boolean(False)}),
    "granite, wider heads": (graph(GRANITE, LAYERS, frozenset(), head_dim=24, rotary_dim=24), {}),
    "qwen3, wider heads": (graph(QWEN3, LAYERS, frozenset(), head_dim=32, rotary_dim=32), {}),
    "mixtral, many experts at once": (
        graph(MIXTRAL, LAYERS, frozenset(), experts=512, feed_forward_length=1),
        {"llama.expert_used_count": u32(128)},
    ),
}


@pytest.mark.parametrize(("tiny", "keys", "shapes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_graph_aborts_on_is_refused(
    tiny: TinyModel, keys: dict[str, Any], shapes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = write_tiny(tmp_path / "m.gguf", keys, shapes=shapes, model=tiny)
    with pytest.raises(GGUFError) as caught:
        Model.open(path)
    assert caught.value.message.startswith(f"{path}: {message}")
    assert "download or convert it again" in (caught.value.hint or "")


@pytest.mark.parametrize(("tiny", "keys"), RUNS.values(), ids=RUNS)
def test_what_is_only_unusual_runs(tiny: TinyModel, keys: dict[str, Any], tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "m.gguf", keys, model=tiny)
    with Model.open(path) as model, Context(model, ContextOptions(threads=1)) as context:
        context.sequence().prefill(text_tokens(40))
