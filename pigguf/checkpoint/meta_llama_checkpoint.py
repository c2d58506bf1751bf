"""Read Meta's own Llama checkpoints: params.json with consolidated.00.pth, consolidated.01.pth, ...

A model that was trained on several devices is saved as that many model-parallel shards. Each has a slice of
every matrix, split by rows or by columns, and whole copies of the norms. Tensors get transformers' names, and
rows of q and k are reordered from Meta's interleaved RoPE layout to transformers' rotate_half layout. Nothing
is loaded: rows are put together from all shards when they are read.

params.json does not have the length of the context window. If it has no max_seq_len, and there is no
config.json, the user must give it (`rope.context`): 2048 for Llama 1, 4096 for Llama 2, 8192 for Llama 3.

Not here: the tokenizer. Not supported: checkpoints of other makers, whose params.json has other keys.
Source: transformers' convert_llama_weights_to_hf.py; meta-llama/llama's model.py (ModelArgs,
FeedForward, which layers are column-parallel) and llama-models' model.py (use_scaled_rope).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.weight_files import WeightFile, open_files
from pigguf.common.json_config import JsonConfig, format_json_value
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import CheckpointError, InvalidTensor, MissingTensor, UnsupportedModel

PARAMS_FILE = "params.json"
SHARD_PATTERN = r"consolidated\.(\d+)\.pth"
ROPE_FREQS = "rope.freqs"  # in Llama 1; it follows from the config
FIRST_Q_WEIGHT = "layers.0.attention.wq.weight"
DEFAULT_MULTIPLE_OF = 256  # ModelArgs.multiple_of

SplitAxis = Literal["rows", "columns", "embedding", "none"]


class MetaTensorRule(NamedTuple):
    """How one of Meta's tensors becomes one of transformers'.

    Attributes:
        name: transformers' name, without the layer's prefix.
        split_axis: along which axis the shards are slices of it; "none" for whole copies, "embedding" for
            columns in Llama 1 and 2 and rows in Llama 3.
        heads: the key of params.json with the number of heads whose rows are reordered; "" for none.
    """

    name: str
    split_axis: SplitAxis
    heads: Literal["", "n_heads", "n_kv_heads"] = ""


_TENSOR_RULES = {
    "tok_embeddings.weight": MetaTensorRule("model.embed_tokens.weight", "embedding"),
    "norm.weight": MetaTensorRule("model.norm.weight", "none"),
    "output.weight": MetaTensorRule("lm_head.weight", "rows"),
    "attention.wq.weight": MetaTensorRule("self_attn.q_proj.weight", "rows", "n_heads"),
    "attention.wk.weight": MetaTensorRule("self_attn.k_proj.weight", "rows", "n_kv_heads"),
    "attention.wv.weight": MetaTensorRule("self_attn.v_proj.weight", "rows"),
    "attention.wo.weight": MetaTensorRule("self_attn.o_proj.weight", "columns"),
    "feed_forward.w1.weight": MetaTensorRule("mlp.gate_proj.weight", "rows"),
    "feed_forward.w2.weight": MetaTensorRule("mlp.down_proj.weight", "columns"),
    "feed_forward.w3.weight": MetaTensorRule("mlp.up_proj.weight", "rows"),
    "attention_norm.weight": MetaTensorRule("input_layernorm.weight", "none"),
    "ffn_norm.weight": MetaTensorRule("post_attention_layernorm.weight", "none"),
}

_USED_PARAMS = {
    "dim",
    "n_layers",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "multiple_of",
    "ffn_dim_multiplier",
    "norm_eps",
    "rope_theta",
    "vocab_size",
    "max_seq_len",
    "use_scaled_rope",
    "rope_scaling_factor",
}
_IGNORED_PARAMS = {"max_batch_size"}

# (dim, n_layers) -> RoPE scaling factor of use_scaled_rope, as published; params.json does not have it.
_ROPE_SCALING_FACTORS = {
    (4096, 32): 8.0,  # Llama 3.1 8B
    (8192, 80): 8.0,  # 70B, and 3.3
    (16384, 126): 8.0,  # 405B
    (2048, 16): 32.0,  # Llama 3.2 1B
    (3072, 28): 32.0,  # 3B
}
_ORIGINAL_CONTEXT = 8192  # Llama 3's, before the scaling


def has_meta_shards(path: Path) -> bool:
    """Return whether a directory has consolidated.NN.pth files."""
    return path.is_dir() and any(re.fullmatch(SHARD_PATTERN, file.name) for file in path.iterdir())


def open_meta_shards(path: Path) -> list[WeightFile]:
    """Open all model-parallel shards, in order.

    Raises:
        CheckpointError: a shard is damaged or missing between others, or params.json is missing.
        MissingPackage: torch is not installed.
        ReadError: the system refuses to read one.
    """
    read_json(path / PARAMS_FILE)  # first, because it takes no time to see that it is missing
    paths_by_number = {
        int(match[1]): file
        for file in path.iterdir()
        if (match := re.fullmatch(SHARD_PATTERN, file.name)) is not None
    }
    for number in range(max(paths_by_number)):
        if number not in paths_by_number:
            raise CheckpointError(
                f"{path / f'consolidated.{number:02}.pth'} is missing, but "
                f"{paths_by_number[max(paths_by_number)].name} exists",
                "download the missing shard: each has a slice of every matrix",
            )
    return open_files([paths_by_number[number] for number in sorted(paths_by_number)])


def convert_meta_checkpoint(
    path: Path, config: Mapping[str, Any], shards: Sequence[WeightFile]
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """Return the config and the tensors of a model as transformers has them.

    Args:
        path: the directory.
        config: config.json, if the directory has one too, or {}; it must not contradict params.json.
        shards: all model-parallel shards, in order (open_meta_shards).

    Raises:
        CheckpointError: params.json lacks a key, has an invalid value, or does not agree with config.json
            or the number of shards.
        UnsupportedModel: params.json has an unknown key.
        MissingTensor, InvalidTensor: the shards do not fit each other.
    """
    params = JsonConfig(read_json(path / PARAMS_FILE), str(path / PARAMS_FILE))
    _check_known_keys(params)
    _check_shard_count(params, shards)
    tensors = {}
    for name in dict.fromkeys(name for shard in shards for name in shard.tensors):
        if name != ROPE_FREQS:
            tensor = _convert_tensor(name, shards, params)
            tensors[tensor.name] = tensor
    return _merge_configs(path, config, _config_from_params(params, tensors)), tensors


def _check_known_keys(params: JsonConfig) -> None:
    for key in params.values:
        if key not in _USED_PARAMS | _IGNORED_PARAMS and key in params:
            raise UnsupportedModel(
                f"{params.describe(key)} is not a known key of Meta's Llama",
                "convert it to transformers' format first, with its maker's script",
            )


def _check_shard_count(params: JsonConfig, shards: Sequence[WeightFile]) -> None:
    queries = shards[0].tensors.get(FIRST_Q_WEIGHT)
    rows = _head_count(params, "n_heads") * _head_dim(params)
    if queries is None or queries.rows == 0 or rows == queries.rows * len(shards):
        return
    expected = rows // queries.rows
    evidence = f"{params.file}: q has {rows} rows, of which {shards[0].path.name} has {queries.rows}"
    if expected > len(shards):
        raise CheckpointError(
            f"{evidence}: the model has {expected} shards, but only {len(shards)} "
            f"{'is' if len(shards) == 1 else 'are'} here",
            f"download consolidated.{len(shards):02}.pth to consolidated.{expected - 1:02}.pth too",
        )
    raise CheckpointError(
        f"{evidence}, but there are {len(shards)} shards",
        "params.json and the shards are of different models",
    )


def _convert_tensor(name: str, files: Sequence[WeightFile], params: JsonConfig) -> LazyTensor:
    """Return one tensor, put together from its shards, under transformers' name if it is known."""
    match = re.match(r"layers\.\d+\.", name)
    layer_prefix = match[0] if match else ""
    rule = _TENSOR_RULES.get(name.removeprefix(layer_prefix), MetaTensorRule(name, "none"))
    shards = []
    for file in files:
        if name not in file.tensors:
            raise MissingTensor(
                f"{file.path} lacks the tensor {name}, which another shard has", "download all shards again"
            )
        shards.append(file.tensors[name])
        if (shards[-1].shape, shards[-1].dtype) != (shards[0].shape, shards[0].dtype):
            raise InvalidTensor(
                f"{file.path}: {name} is {shards[-1].dtype} {list(shards[-1].shape)}, but "
                f"{shards[0].dtype} {list(shards[0].shape)} in {files[0].path.name}",
                "the shards are of different models: download them again",
            )
    if rule.split_axis != "none" and len(shards[0].shape) != 2:
        raise InvalidTensor(f"{files[0].path}: {name} has the shape {list(shards[0].shape)}, not two axes")
    tensor = _concatenate(shards, rule.split_axis, params.require("dim", int))
    if rule.heads:
        tensor = _reorder_rope_rows(tensor, _head_count(params, rule.heads), files[0].path)
    is_layer_tensor = layer_prefix and rule.name != name
    return replace(tensor, name=f"model.{layer_prefix}{rule.name}" if is_layer_tensor else rule.name)


def _concatenate(shards: Sequence[LazyTensor], split_axis: SplitAxis, dim: int) -> LazyTensor:
    first = shards[0]
    if split_axis == "embedding":  # Llama 1 and 2: columns; since Llama 3: rows
        split_axis = "rows" if first.shape[1] == dim else "columns"
    if split_axis == "none" or len(shards) == 1:
        return first
    rows, columns = first.shape

    def read_column_split(start: int, stop: int) -> Array:
        return np.concatenate([shard.read(start, stop) for shard in shards], axis=1)

    def read_row_split(start: int, stop: int) -> Array:
        slices = []
        for number, shard in enumerate(shards):
            low, high = max(start - number * rows, 0), min(stop - number * rows, rows)
            if low < high:
                slices.append(shard.read(low, high))
        return np.concatenate(slices)

    if split_axis == "columns":
        return replace(first, shape=(rows, columns * len(shards)), read=read_column_split)
    return replace(first, shape=(rows * len(shards), columns), read=read_row_split)


def _reorder_rope_rows(tensor: LazyTensor, n_heads: int, file: Path) -> LazyTensor:
    """Reorder each head's rows from interleaved (a0 b0 a1 b1 ...) to rotate_half (a0 a1 ... b0 b1 ...)."""
    if tensor.rows % (2 * n_heads):
        raise InvalidTensor(
            f"{file}: {tensor.name} has {tensor.rows} rows, which cannot be split into pairs for "
            f"{n_heads} heads"
        )
    head_order = np.arange(tensor.rows // n_heads).reshape(-1, 2).T.reshape(-1)
    order = (np.arange(n_heads)[:, None] * len(head_order) + head_order).reshape(-1)

    def read(start: int, stop: int) -> Array:
        sources = order[start:stop]
        low, high = int(sources.min()), int(sources.max()) + 1
        rows: Array = tensor.read(low, high)[sources - low]
        return rows

    return replace(tensor, read=read)


def _config_from_params(params: JsonConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    dim, n_layers = params.require("dim", int), params.require("n_layers", int)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _vocab_size(params, tensors),
        "hidden_size": dim,
        "intermediate_size": _intermediate_size(params, dim),
        "num_hidden_layers": n_layers,
        "num_attention_heads": _head_count(params, "n_heads"),
        "num_key_value_heads": _head_count(params, "n_kv_heads"),
        "head_dim": _head_dim(params),
        "rms_norm_eps": params.require("norm_eps", float),
        "tie_word_embeddings": "lm_head.weight" not in tensors,
    }
    if "rope_theta" in params:
        config["rope_theta"] = params.require("rope_theta", float)
    if "max_seq_len" in params:
        config["max_position_embeddings"] = params.require("max_seq_len", int)
    if params.optional("use_scaled_rope", bool, False):
        config["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": _rope_scaling_factor(params, dim, n_layers),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _ORIGINAL_CONTEXT,
        }
    return config


def _vocab_size(params: JsonConfig, tensors: Mapping[str, LazyTensor]) -> int:
    """Return vocab_size; where it is -1, the number of rows of the embedding."""
    if params.values.get("vocab_size", -1) != -1:
        return params.require("vocab_size", int)
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise MissingTensor(f"{params.file}: no shard has tok_embeddings.weight", "download all shards again")
    return embedding.shape[0]


def _intermediate_size(params: JsonConfig, dim: int) -> int:
    """Return 2/3 * 4 * dim * ffn_dim_multiplier, rounded up to a multiple of multiple_of (FeedForward)."""
    size = int(8 * dim / 3)
    if "ffn_dim_multiplier" in params:
        size = int(params.require("ffn_dim_multiplier", float) * size)
    multiple_of = params.optional("multiple_of", int, DEFAULT_MULTIPLE_OF)
    return -(-size // multiple_of) * multiple_of


def _head_count(params: JsonConfig, key: str) -> int:
    n_heads = params.require("n_heads", int)
    return n_heads if key == "n_heads" else params.optional(key, int, n_heads)


def _head_dim(params: JsonConfig) -> int:
    return params.optional("head_dim", int, params.require("dim", int) // params.require("n_heads", int))


def _rope_scaling_factor(params: JsonConfig, dim: int, n_layers: int) -> float:
    if "rope_scaling_factor" in params:
        return params.require("rope_scaling_factor", float)
    if (dim, n_layers) not in _ROPE_SCALING_FACTORS:
        raise CheckpointError(
            f"{params.describe('use_scaled_rope')}, but there is no rope_scaling_factor, and "
            f"dim = {dim} with n_layers = {n_layers} is not a model that Meta published",
            f"add rope_scaling_factor to {PARAMS_FILE}: 8 in Llama 3.1 and 3.3, 32 in Llama 3.2",
        )
    return _ROPE_SCALING_FACTORS[dim, n_layers]


def _merge_configs(path: Path, config: Mapping[str, Any], from_params: dict[str, Any]) -> dict[str, Any]:
    """Return config.json, completed from params.json.

    Raises:
        CheckpointError: the two contradict each other.
    """
    stated = {key: value for key, value in config.items() if value is not None}
    for key, value in from_params.items():
        if key in stated and stated[key] != value:
            raise CheckpointError(
                f"{path / 'config.json'}: {key} = {format_json_value(stated[key])}, but {PARAMS_FILE} gives "
                f"{format_json_value(value)}",
                "remove the file that does not belong to these weights",
            )
    return {**from_params, **stated}
