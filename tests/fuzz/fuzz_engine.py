"""Open bad GGUF files one after another and run those that open.

usage: python fuzz_engine.py DIRECTORY SET:SEEDxCOUNT...

It is a child process of the tests, because what it looks for is the end of the process. It prints each case
before it runs it, and after a set how many files were refused and how many ran.
"""

from __future__ import annotations

import functools
import itertools
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.tiny_gguf import (
    GRAPHS,
    LAYERS,
    METADATA,
    SHAPES,
    TOKENS,
    VOCABULARY,
    WIDE_GRAPHS,
    WIDTH,
    TinyModel,
    graph,
    text_tokens,
    write_tiny,
)

from pigguf.architectures import FAMILIES
from pigguf.errors import PigError
from pigguf.gguf_io import TensorType, read_header
from pigguf.gguf_io.metadata import TypedValue, array, boolean, f32, string, u32
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams

Write = Callable[[Path], None]
Case = tuple[str, Write]

NUMBERS = (0, 1, 2, 3, 7, 33, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
REALS = (0.0, -1.0, 1e-30, 1e30, float("inf"), float("nan"))
TEXTS = (
    "",
    "none",
    "linear",
    "yarn",
    "longrope",
    "dynamic",
    "gpt2",
    "no_vocab",
    "bert",
    "whitespace",
    "qwen2",
    "mamba",
)
OTHER_KEYS: dict[str, TypedValue] = {
    "llama.attention.key_length": u32(16),
    "llama.attention.value_length": u32(16),
    "llama.attention.causal": boolean(True),
    "llama.rope.scaling.type": string("linear"),
    "llama.rope.scaling.factor": f32(2.0),
    "llama.rope.scaling.original_context_length": u32(512),
    "llama.rope.scaling.attn_factor": f32(1.0),
    "llama.rope.scaling.yarn_log_multiplier": f32(0.1),
    "llama.rope.scale_linear": f32(2.0),
    "llama.expert_count": u32(0),
    "llama.expert_used_count": u32(0),
    "llama.expert_group_count": u32(0),
    "llama.expert_group_used_count": u32(0),
    "llama.nextn_predict_layers": u32(0),
    "llama.vocab_size": u32(VOCABULARY),
    "llama.pooling_type": u32(0),
    "llama.attention.layer_norm_epsilon": f32(1e-5),
    "llama.attention.sliding_window": u32(0),
    "llama.attention.key_length_swa": u32(16),
    "llama.rope.dimension_count_swa": u32(16),
    "llama.embedding_length_out": u32(WIDTH),
    "llama.attention.scale": f32(1.0),
    "llama.logit_scale": f32(1.0),
    "general.alignment": u32(32),
    "general.file_type": u32(0),
    "split.count": u32(1),
    "tokenizer.ggml.pre": string("default"),
    "tokenizer.ggml.add_bos_token": boolean(True),
    "tokenizer.ggml.add_eos_token": boolean(True),
    "tokenizer.ggml.add_space_prefix": boolean(True),
    "tokenizer.ggml.unknown_token_id": u32(0),
    "tokenizer.ggml.eot_token_id": u32(2),
    "tokenizer.ggml.padding_token_id": u32(0),
    "tokenizer.ggml.token_type_count": u32(1),
    "tokenizer.ggml.merges": array("str", ("a n",)),
    "tokenizer.ggml.suppress_tokens": array("i32", (1,)),
    "tokenizer.ggml.precompiled_charsmap": array("u8", (1,)),
    "tokenizer.chat_template": string("{{ messages }}"),
}

# Keys of the graphs beyond Llama's, without the architecture's name (llama-arch.cpp), and tensors.
GRAPH_KEYS: dict[str, TypedValue] = {
    "attention.sliding_window": u32(16),
    "attention.sliding_window_pattern": u32(2),
    "attention.value_length_swa": u32(16),
    "attention.clamp_kqv": f32(1.0),
    "attention.max_alibi_bias": f32(8.0),
    "attention.temperature_length": u32(16),
    "attn_logit_softcapping": f32(50.0),
    "final_logit_softcapping": f32(30.0),
    "residual_scale": f32(1.0),
    "embedding_scale": f32(1.0),
    "use_parallel_residual": boolean(True),
    "rope.freq_base_swa": f32(10000.0),
    "rope.scaling.finetuned": boolean(True),
    "rope.scaling.alpha": f32(1.0),
    "rope.dimension_sections": array("i32", (4, 4, 4, 4)),
    "deepstack_mapping": array("i32", (-1, 0)),
    "expert_feed_forward_length": u32(96),
    "expert_shared_feed_forward_length": u32(96),
    "expert_shared_count": u32(0),
    "expert_weights_scale": f32(1.0),
    "expert_weights_norm": boolean(True),
    "expert_gating_func": u32(1),
    "interleave_moe_layer_step": u32(1),
    "dense_2_feat_out": u32(64),
    "dense_3_feat_in": u32(64),
    "classifier.output_labels": array("str", ("yes", "no")),
    "tensor_data_layout": string("Meta AI original pth"),
    "swin_norm": boolean(True),
    "decoder_start_token_id": u32(1),
}
OTHER_TENSORS: dict[str, tuple[int, ...]] = {
    "token_types.weight": (2, WIDTH),
    "rope_factors_long.weight": (8,),
    "rope_factors_short.weight": (8,),
    "rope_freqs.weight": (8,),
    "cls.weight": (WIDTH, WIDTH),
    "cls.output.weight": (1, WIDTH),
    "dense_2.weight": (WIDTH, WIDTH),
    "dense_3.weight": (WIDTH, WIDTH),
    "output.scale": (1,),
    "output.input_scale": (1,),
    "blk.0.attn_q_norm.bias": (WIDTH,),
    "blk.0.attn_k_norm.bias": (WIDTH,),
    "blk.0.attn_qkv.scale": (1,),
    "blk.0.attn_output.scale": (1,),
    "blk.0.ffn_up.scale": (1,),
    "blk.0.ffn.act.scales": (96,),
    "blk.0.ffn_act.scales": (96,),
    "blk.0.attn_sinks.weight": (4,),
    "blk.0.ffn_gate_up_exps.weight": (4, 192, WIDTH),
    "blk.0.ffn_gate_shexp.weight": (96, WIDTH),
    "blk.0.ffn_up_shexp.weight": (96, WIDTH),
    "blk.0.ffn_down_shexp.weight": (WIDTH, 96),
}


def truncations(_: random.Random) -> Iterator[Case]:
    """Cut the file at every offset in its header's beginning, and at many after."""
    whole = _whole()
    for size in (*range(400), *range(400, len(whole), 331), len(whole) - 1):
        yield f"cut at {size}", _bytes(whole[:size])


def flips(chance: random.Random) -> Iterator[Case]:
    """Bytes of the header changed at random."""
    whole = _whole()
    end = read_header(_sample()).data_offset
    while True:
        changed = bytearray(whole)
        offsets = [chance.randrange(end) for _ in range(chance.choice((1, 1, 2, 8)))]
        for offset in offsets:
            changed[offset] = chance.randrange(256)
        yield f"bytes {offsets} changed", _bytes(bytes(changed))


def keys(_: random.Random) -> Iterator[Case]:
    """Every key gone, and with every odd value and type."""
    for name, typed in {**METADATA, **OTHER_KEYS}.items():
        yield f"{name} gone", _model(metadata={name: None})
        for value in _odd_values(typed):
            shown = f"{value.type}[{len(value.value)}]" if value.is_array else f"{value.type} {value.value!r}"
            yield f"{name} = {shown}", _model(metadata={name: value})


def pairs(chance: random.Random) -> Iterator[Case]:
    """Several keys with odd values at once."""
    known = {**METADATA, **OTHER_KEYS}
    while True:
        names = chance.sample(sorted(known), chance.choice((2, 2, 3, 4)))
        values = {name: chance.choice([*_odd_values(known[name]), known[name]]) for name in names}
        yield (
            f"several: { {k: v.value if not v.is_array else len(v.value) for k, v in values.items()} }",
            _model(metadata=values),
        )


def tensors(_: random.Random) -> Iterator[Case]:
    """Every tensor gone, of every type, and of other shapes."""
    first = [name for name in SHAPES if f"blk.{LAYERS - 1}" not in name]
    for name in first:
        yield f"{name} gone", _model(shapes={name: None})
        for shape in (
            (1,),
            (WIDTH,),
            (1, WIDTH),
            (WIDTH, 1),
            (WIDTH, WIDTH),
            (VOCABULARY, 32),
            (2, 2, WIDTH),
        ):
            yield f"{name} {shape}", _model(shapes={name: shape})
        for kind in TensorType:
            if SHAPES[name][-1] % 256:
                wide = {n: tuple(256 if d == WIDTH else d for d in s) for n, s in SHAPES.items()}
                size = {"llama.embedding_length": u32(256), "llama.rope.dimension_count": u32(64)}
                wide |= {n: (128, 256) for n in SHAPES if "attn_k" in n or "attn_v" in n}
                wide |= {n: tuple(256 if d == 96 else d for d in s) for n, s in wide.items() if "ffn_" in n}
                size["llama.feed_forward_length"] = u32(256)
                yield f"{name} of type {kind.name}", _model(metadata=size, shapes=wide, types={name: kind})
    yield "a tensor too many", _model(shapes={"blk.0.extra.weight": (WIDTH,)})
    yield "no output", _model(shapes={"output.weight": None})
    for extra in ("rope_freqs.weight", "blk.0.attn_q.bias", "output.bias", "blk.0.attn_q.scale"):
        for shape in ((8,), (1,), (WIDTH,)):
            for kind in (None, TensorType.F16, TensorType.I32):
                yield (
                    f"{extra} {shape} {kind}",
                    _model(shapes={extra: shape}, types={extra: kind} if kind else {}),
                )


def vocabularies(_: random.Random) -> Iterator[Case]:
    """Token lists that contradict themselves."""
    for name, tokens in {
        "one token twice": (*TOKENS[:-1], TOKENS[-2]),
        "two empty": ("", "", *TOKENS[2:]),
        "empty and its name": ("", "[EMPTY_0]", *TOKENS[2:]),
        "a byte missing": (*TOKENS[:20], "other", *TOKENS[21:]),
        "short": TOKENS[:-1],
        "long": (*TOKENS, "more"),
        "one": TOKENS[:1],
        "none": (),
    }.items():
        yield f"vocabulary: {name}", _model(metadata={"tokenizer.ggml.tokens": array("str", tokens)})
        bpe = {"tokenizer.ggml.model": string("gpt2"), "tokenizer.ggml.merges": array("str", ("a n",))}
        yield (
            f"bpe vocabulary: {name}",
            _model(metadata={**bpe, "tokenizer.ggml.tokens": array("str", tokens)}),
        )
    for types in ((), (1,), (6,) * VOCABULARY, (99,) * VOCABULARY, (-1,) * VOCABULARY):
        for model in ("llama", "gpt2"):
            yield (
                f"{model}, {len(types)} token types {types[:1]}",
                _model(
                    metadata={
                        "tokenizer.ggml.model": string(model),
                        "tokenizer.ggml.merges": array("str", ("a n", " ", "", "x")),
                        "tokenizer.ggml.token_type": array("i32", types),
                    }
                ),
            )
    for pre in PRE_TOKENIZERS:
        metadata = {
            "tokenizer.ggml.model": string("gpt2"),
            "tokenizer.ggml.merges": array("str", ("a n",)),
            "tokenizer.ggml.pre": string(pre),
        }
        yield f"pre-tokenizer {pre}", _model(metadata=metadata)


# llama-vocab.cpp, one of each kind
PRE_TOKENIZERS = (
    *(
        "default",
        "llama-bpe",
        "deepseek-llm",
        "deepseek-coder",
        "deepseek-v3",
        "youtu",
        "falcon",
        "mpt",
        "gpt-2",
    ),
    *(
        "starcoder",
        "jais-2",
        "gemma4",
        "sarvam-moe",
        "roberta-bpe",
        "whitespace",
        "refact",
        "command-r",
        "qwen2",
    ),
    *(
        "qwen35",
        "stablelm2",
        "olmo",
        "dbrx",
        "smaug-bpe",
        "poro-chat",
        "chatglm-bpe",
        "glm4",
        "viking",
        "jais",
    ),
    *(
        "tekken",
        "smollm",
        "codeshell",
        "bloom",
        "gpt3-finnish",
        "exaone",
        "exaone-moe",
        "chameleon",
        "minerva-7b",
    ),
    *("gpt-4o", "superbpe", "trillion", "bailingmoe", "seed-coder", "hunyuan", "hunyuan-dense", "kimi-k2"),
    *("grok-2", "afmoe", "minimax-m2", "solar-open", "minicpm5", "spark2_5", "granite-embed-multi-311m"),
    *("granite-docling", "tiny_aya", "hy_v4", "joyai-llm", "ufakzeka", "laguna", "mellum2", "unheard of"),
)


def weights(chance: random.Random) -> Iterator[Case]:
    """Numbers in the weights replaced by NaN, infinity or very large values."""
    whole = _whole()
    for tensor in read_header(_sample()).tensors.values():
        for value in (float("nan"), float("inf"), -3e38):
            changed = bytearray(whole)
            position = tensor.offset + 4 * chance.randrange(tensor.nbytes // 4)
            changed[position : position + 4] = struct.pack("<f", value)
            yield f"{tensor.name} holds {value} at byte {position}", _bytes(bytes(changed))


def graphs(_: random.Random) -> Iterator[Case]:
    """Every graph as it is, which runs."""
    for name, tiny in GRAPHS.items():
        yield name, _model(model=tiny)


def graph_keys(_: random.Random) -> Iterator[Case]:
    """In every graph every key gone, and with every odd value and type."""
    for name, tiny in GRAPHS.items():
        for key, typed in _keys_of(tiny).items():
            yield f"{name}: {key} gone", _model(model=tiny, metadata={key: None})
            for value in (*_odd_values(typed), *_uneven(tiny)):
                yield f"{name}: {key} = {_shown(value)}", _model(model=tiny, metadata={key: value})


def graph_tensors(_: random.Random) -> Iterator[Case]:
    """In every graph every tensor gone, of other shapes and types, and tensors that others have."""
    for name, tiny in GRAPHS.items():
        for tensor in {**tiny.shapes, **_others(tiny)}:
            if not tensor.startswith("blk.") or tensor.startswith("blk.0."):
                yield f"{name}: {tensor} gone", _model(model=tiny, shapes={tensor: None})
                for shape in _odd_shapes(tiny, tensor):
                    yield f"{name}: {tensor} {shape}", _model(model=tiny, shapes={tensor: shape})
        wide = WIDE_GRAPHS[name]
        for tensor, shape in {**wide.shapes, **_others(wide)}.items():
            if not tensor.startswith("blk.") or tensor.startswith("blk.0."):
                for kind in TensorType:
                    yield (
                        f"{name}: {tensor} of type {kind.name}",
                        _model(model=wide, shapes={tensor: shape}, types={tensor: kind}),
                    )


def graph_pairs(chance: random.Random) -> Iterator[Case]:
    """In a graph several keys with odd values, and tensors gone or of other shapes and types, at once."""
    while True:
        name, tiny = chance.choice(list(GRAPHS.items()))
        known, shapes = _keys_of(tiny), {**tiny.shapes, **_others(tiny)}
        keys = chance.sample(sorted(known), chance.choice((1, 2, 2, 3)))
        odd = {key: chance.choice([*_odd_values(known[key]), *_uneven(tiny)]) for key in keys}
        names = chance.sample(sorted(shapes), chance.choice((0, 1, 1, 2)))
        changed = {tensor: chance.choice([None, *_odd_shapes(tiny, tensor)]) for tensor in names}
        types = {tensor: chance.choice(list(TensorType)) for tensor in names if chance.random() < 0.2}
        yield (
            f"{name}: { {key: _shown(value) for key, value in odd.items()} } {changed} {types}",
            _model(model=tiny, metadata=odd, shapes=changed, types=types),
        )


def graph_sizes(chance: random.Random) -> Iterator[Case]:
    """In a graph other sizes, with tensors that fit them; and a key with an odd value."""
    families = [family for family in FAMILIES if not family.runs_as_other_architecture]
    while True:
        family, layers = chance.choice(families), chance.choice((1, 2, 2, 3))
        parts = frozenset(part for part in family.optional_features if chance.random() < 0.5)
        changed = chance.sample(sorted(SIZES), chance.choice((1, 1, 2, 3)))
        sizes = {size: chance.choice(SIZES[size]) for size in changed}
        tiny = graph(family, layers, parts, **sizes)
        known = _keys_of(tiny)
        key = chance.choice(sorted(known))
        odd = (
            {key: chance.choice([*_odd_values(known[key]), *_uneven(tiny)])} if chance.random() < 0.3 else {}
        )
        yield (
            f"{tiny.architecture}, {layers} layers, {sorted(parts)}, {sizes} {odd}",
            _model(model=tiny, metadata=odd),
        )


SIZES: dict[str, tuple[int, ...]] = {
    "embedding_length": (1, 2, 32, 48, 96, 128),
    "feed_forward_length": (1, 2, 32, 64),
    "heads": (1, 2, 3, 6, 8),
    "kv_heads": (1, 3, 4, 8),
    "head_dim": (1, 2, 6, 8, 24, 32, 64),
    "rotary_dim": (0, 1, 2, 4, 8, 16, 32),
    "experts": (0, 1, 2, 3, 8),
    "vocab_size": (1, 256, VOCABULARY + 1),
}


def _keys_of(tiny: TinyModel) -> dict[str, TypedValue]:
    """Return the keys of a model, and those that only other graphs or other models have."""
    own = {key: typed for key, typed in tiny.metadata.items() if not key.startswith("tokenizer.")}
    prefix = f"{tiny.architecture}."
    others = {key.replace("llama.", prefix): typed for key, typed in OTHER_KEYS.items() if "llama." in key}
    return {**others, **{prefix + key: typed for key, typed in GRAPH_KEYS.items()}, **own}


def _others(tiny: TinyModel) -> dict[str, tuple[int, ...]]:
    """Tensors that other models have, in the sizes of this one."""
    width = tiny.shapes["output_norm.weight"][0]
    return {name: shape for name, shape in _every_tensor(width).items() if name not in tiny.shapes}


@functools.cache
def _every_tensor(width: int) -> dict[str, tuple[int, ...]]:
    """Every tensor that a graph may have, in a first layer or beside the layers."""
    found = {
        name: tuple(width if size == WIDTH else size for size in shape)
        for name, shape in OTHER_TENSORS.items()
    }
    for tiny in (GRAPHS if width == WIDTH else WIDE_GRAPHS).values():
        found |= tiny.shapes
    return {name: shape for name, shape in found.items() if not re.match(r"blk\.[1-9]", name)}


def _odd_shapes(tiny: TinyModel, tensor: str) -> Iterator[tuple[int, ...]]:
    own = tiny.shapes.get(tensor) or _others(tiny)[tensor]
    yield from (own, own[::-1], (*own, 1), (1, *own), own[1:] or (1,), (2 * own[0], *own[1:]))
    yield from ((own[0], 2 * own[-1]), (1,), (WIDTH,), (1, WIDTH), (WIDTH, WIDTH), (WIDTH // 4, 4))


def _uneven(tiny: TinyModel) -> Iterator[TypedValue]:
    """Numbers that differ between layers, and the ones that sizes are made of."""
    layers = int(tiny.metadata[f"{tiny.architecture}.block_count"].value)
    yield from (u32(number) for number in (4, 5, 8, 16, 32, 64, 128))
    for value in ((4, 2), (2, 4), (2, 1), (4, 0), (0, 1)):
        yield array("u32", value * (layers // 2))
        yield array("i32", value * (layers // 2))
    for flags in ((True, False), (False, True), (True, True), (False, False)):
        yield array("bool", flags * (layers // 2))


def _shown(value: TypedValue) -> str:
    if value.is_array:
        return f"{value.type}[{len(value.value)}] {value.value[:2]!s}"
    return f"{value.type} {value.value!r}"


SETS: dict[str, Callable[[random.Random], Iterator[Case]]] = {
    "truncations": truncations,
    "flips": flips,
    "keys": keys,
    "pairs": pairs,
    "tensors": tensors,
    "vocabularies": vocabularies,
    "weights": weights,
    "graphs": graphs,
    "graph_keys": graph_keys,
    "graph_tensors": graph_tensors,
    "graph_pairs": graph_pairs,
    "graph_sizes": graph_sizes,
}
ENDLESS = ("flips", "pairs", "graph_pairs", "graph_sizes")
TEXT = "Hello  world,\n\tcaf\u00e9 \U0001f600 12345 don't </s> <s> \u4f60\u597d\0 \u00a0 a ." * 3


def run(path: Path) -> None:
    """Everything a person may do with a model, in short."""
    with Model.open(path) as model:
        tokens = model.tokenize(TEXT, parse_special=True)
        model.detokenize(tokens, special=True)
        model.detokenize(list(range(model.vocab_size)), special=True)
        options = ContextOptions(length=min(model.context_length, 128), batch=32, threads=1)
        with Context(model, options) as context, context.sequence() as session:
            room = min(context.length, 40)
            session.prefill([token % model.vocab_size for token in text_tokens(room)])
            list(session.generate(SamplingParams(seed=1, repeat_penalty=1.1), 3))


def _odd_values(typed: TypedValue) -> Iterator[TypedValue]:
    if typed.is_array:
        yield from (
            array(typed.type, ()),
            array(typed.type, typed.value[:1]),
            array("i32", (1, 2)),
            array("str", ("a",)),
        )
        yield from (
            array("u8", (1,)),
            u32(1),
            TypedValue(typed.type, typed.value + typed.value, is_array=True),
        )
        return
    yield from (u32(number) for number in NUMBERS)
    yield from (f32(number) for number in REALS)
    yield from (string(text) for text in TEXTS)
    yield from (
        boolean(True),
        boolean(False),
        TypedValue("u64", 2**63),
        TypedValue("i32", -1),
        TypedValue("u16", 1),
    )
    yield from (
        array("u32", (2,)),
        array("u32", (4,) * LAYERS),
        array("u32", (0,) * LAYERS),
        array("f32", (1.0,)),
    )


def _model(**changes: Any) -> Write:
    return lambda path: void(write_tiny(path, **changes))


def _bytes(data: bytes) -> Write:
    return lambda path: void(path.write_bytes(data))


def void(_: object) -> None:
    """Forget a result."""


_SAMPLE: list[Path] = []


def _sample() -> Path:
    return _SAMPLE[0]


def _whole() -> bytes:
    return _sample().read_bytes()


def main() -> None:
    directory = Path(sys.argv[1])
    _SAMPLE.append(write_tiny(directory / "whole.gguf"))
    run(_sample())
    path = directory / "case.gguf"
    for wanted in sys.argv[2:]:
        name, seed, count = re.fullmatch(r"(\w+):(\d+)x(\d+)", wanted).groups()
        refused = ran = 0
        for case, write in _chosen(name, int(seed), int(count)):
            path.unlink(missing_ok=True)
            try:
                write(path)
            except (PigError, ArithmeticError, LookupError, TypeError, ValueError):
                continue  # our own writer refuses it
            sys.stdout.write(f"{name}: {case}\n")
            sys.stdout.flush()
            try:
                run(path)
                ran += 1
            except PigError:
                refused += 1
        sys.stdout.write(f"{name}: {refused} refused, {ran} ran\n")


def _chosen(name: str, seed: int, count: int) -> list[Case]:
    """Return `count` cases of a set, chosen at random."""
    chance = random.Random(seed)
    cases = SETS[name](chance)
    if name in ENDLESS:
        return list(itertools.islice(cases, count))
    every = list(cases)
    return chance.sample(every, min(count, len(every)))


if __name__ == "__main__":
    main()
