"""Meta's own form of a Llama: params.json beside consolidated.00.pth, .01.pth ... -> config.json and tensors.

A model that was trained on several devices lies in as many files, each with a piece of every matrix:
some are cut between rows and some between columns, and the norms are whole in each. Names become
transformers', and so does the order of the rows of queries and keys, whose pairs are neighbours here and
halves of a head there. Nothing is loaded: a slab of rows is put together from all pieces when it is read.

params.json does not say how long the window is; where it has no max_seq_len, and no config.json lies
beside it, the user must (--context N): 2048 in Llama 1, 4096 in Llama 2, 8192 in Llama 3.

Source: transformers' convert_llama_weights_to_hf.py; meta-llama/llama's model.py (ModelArgs,
FeedForward, which layers are column-parallel) and llama-models' model.py (use_scaled_rope).
Left out: the tokenizer; pieces of models of other makers, whose params.json has other keys.
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
ROTARY_TABLE = "rope.freqs"  # of the first version; it follows from the config
FIRST_QUERIES = "layers.0.attention.wq.weight"
DEFAULT_MULTIPLE = 256  # of ModelArgs

SplitAxis = Literal["rows", "columns", "embedding", "nowhere"]


class MetaTensorRule(NamedTuple):
    """What becomes of one of Meta's tensors: transformers' name, how it is cut, whose heads its rows are."""

    name: str
    split_axis: SplitAxis
    heads: Literal["", "n_heads", "n_kv_heads"] = ""


_PLACES = {
    "tok_embeddings.weight": MetaTensorRule("model.embed_tokens.weight", "embedding"),
    "norm.weight": MetaTensorRule("model.norm.weight", "nowhere"),
    "output.weight": MetaTensorRule("lm_head.weight", "rows"),
    "attention.wq.weight": MetaTensorRule("self_attn.q_proj.weight", "rows", "n_heads"),
    "attention.wk.weight": MetaTensorRule("self_attn.k_proj.weight", "rows", "n_kv_heads"),
    "attention.wv.weight": MetaTensorRule("self_attn.v_proj.weight", "rows"),
    "attention.wo.weight": MetaTensorRule("self_attn.o_proj.weight", "columns"),
    "feed_forward.w1.weight": MetaTensorRule("mlp.gate_proj.weight", "rows"),
    "feed_forward.w2.weight": MetaTensorRule("mlp.down_proj.weight", "columns"),
    "feed_forward.w3.weight": MetaTensorRule("mlp.up_proj.weight", "rows"),
    "attention_norm.weight": MetaTensorRule("input_layernorm.weight", "nowhere"),
    "ffn_norm.weight": MetaTensorRule("post_attention_layernorm.weight", "nowhere"),
}

_READ = {
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
_SILENT = {"max_batch_size"}

# The factor of use_scaled_rope, which params.json leaves to the program: by dim and layers, as published
_SCALED = {
    (4096, 32): 8.0,  # Llama 3.1 8B
    (8192, 80): 8.0,  # 70B, and 3.3
    (16384, 126): 8.0,  # 405B
    (2048, 16): 32.0,  # Llama 3.2 1B
    (3072, 28): 32.0,  # 3B
}
_SCALED_WINDOW = 8192  # at which Llama 3 was trained before


def has_meta_shards(path: Path) -> bool:
    """Whether a directory has such files."""
    return path.is_dir() and any(re.fullmatch(SHARD_PATTERN, file.name) for file in path.iterdir())


def open_meta_shards(path: Path) -> list[WeightFile]:
    """Open all pieces of a model, in order.

    Raises:
        CheckpointError: one is missing between others or damaged, or params.json is missing.
        MissingPackage: torch is not installed.
        ReadError: the system refuses to read one.
    """
    read_json(path / PARAMS_FILE)  # before what takes longer
    numbered = {
        int(match[1]): file
        for file in path.iterdir()
        if (match := re.fullmatch(SHARD_PATTERN, file.name)) is not None
    }
    for number in range(max(numbered)):
        if number not in numbered:
            raise CheckpointError(
                f"{path / f'consolidated.{number:02}.pth'} is missing, and {numbered[max(numbered)].name} "
                "is there",
                "download the missing piece: every one holds a part of every matrix",
            )
    return open_files([numbered[number] for number in sorted(numbered)])


def convert_meta_checkpoint(
    path: Path, config: Mapping[str, Any], pieces: Sequence[WeightFile]
) -> tuple[dict[str, Any], dict[str, LazyTensor]]:
    """The config and the tensors of a model, as transformers has them.

    Args:
        path: the directory.
        config: a config.json that lies there too, or {}; it must not contradict params.json.
        pieces: as open_pieces gives them.

    Raises:
        CheckpointError: params.json lacks a key, holds what it cannot, or does not fit config.json or the
            number of pieces.
        UnsupportedModel: it has a key that is not known here.
        MissingTensor, InvalidTensor: the pieces do not fit each other.
    """
    params = JsonConfig(read_json(path / PARAMS_FILE), str(path / PARAMS_FILE))
    _refuse_other_keys(params)
    _refuse_missing_pieces(params, pieces)
    tensors = {}
    for name in dict.fromkeys(name for piece in pieces for name in piece.tensors):
        if name != ROTARY_TABLE:
            tensor = _from_pieces(name, pieces, params)
            tensors[tensor.name] = tensor
    return _agreed(path, config, _as_config(params, tensors)), tensors


def _refuse_other_keys(params: JsonConfig) -> None:
    for key in params.values:
        if key not in _READ | _SILENT and key in params:
            raise UnsupportedModel(
                f"{params.describe(key)} is no key of Meta's Llama that is known here",
                "convert what its maker's script for transformers makes of it",
            )


def _refuse_missing_pieces(params: JsonConfig, pieces: Sequence[WeightFile]) -> None:
    queries = pieces[0].tensors.get(FIRST_QUERIES)
    rows = _heads(params, "n_heads") * _head_dim(params)
    if queries is None or queries.rows == 0 or rows == queries.rows * len(pieces):
        return
    count = rows // queries.rows
    told = f"{params.file}: {rows} rows of queries, of which {pieces[0].path.name} has {queries.rows}"
    if count > len(pieces):
        raise CheckpointError(
            f"{told}: the model lies in {count} pieces, and {len(pieces)} "
            f"{'is' if len(pieces) == 1 else 'are'} here",
            f"download consolidated.{len(pieces):02}.pth to consolidated.{count - 1:02}.pth too",
        )
    raise CheckpointError(f"{told}, and {len(pieces)} pieces are here", "they belong to another model")


def _from_pieces(name: str, files: Sequence[WeightFile], params: JsonConfig) -> LazyTensor:
    """One tensor, put together, under its name in transformers (its own, where that is not known)."""
    match = re.match(r"layers\.\d+\.", name)
    layer = match[0] if match else ""
    place = _PLACES.get(name.removeprefix(layer), MetaTensorRule(name, "nowhere"))
    pieces = []
    for file in files:
        if name not in file.tensors:
            raise MissingTensor(
                f"{file.path} lacks the tensor {name}, which another piece holds", "download all pieces again"
            )
        pieces.append(file.tensors[name])
        if (pieces[-1].shape, pieces[-1].dtype) != (pieces[0].shape, pieces[0].dtype):
            raise InvalidTensor(
                f"{file.path}: {name} is {pieces[-1].dtype} {list(pieces[-1].shape)}, and "
                f"{pieces[0].dtype} {list(pieces[0].shape)} in {files[0].path.name}",
                "the pieces are of different models: download them again",
            )
    if place.split_axis != "nowhere" and len(pieces[0].shape) != 2:
        raise InvalidTensor(
            f"{files[0].path}: {name} has the shape {list(pieces[0].shape)}, not rows and columns"
        )
    tensor = _put_together(pieces, place.split_axis, params.require("dim", int))
    if place.heads:
        tensor = _in_halves(tensor, _heads(params, place.heads), files[0].path)
    return replace(tensor, name=f"model.{layer}{place.name}" if layer and place.name != name else place.name)


def _put_together(pieces: Sequence[LazyTensor], cut: SplitAxis, width: int) -> LazyTensor:
    first = pieces[0]
    if cut == "embedding":  # between columns in Llama 1 and 2, between rows since Llama 3
        cut = "rows" if first.shape[1] == width else "columns"
    if cut == "nowhere" or len(pieces) == 1:
        return first
    rows, columns = first.shape

    def read_beside(start: int, stop: int) -> Array:
        return np.concatenate([piece.read(start, stop) for piece in pieces], axis=1)

    def read_below(start: int, stop: int) -> Array:
        parts = []
        for number, piece in enumerate(pieces):
            low, high = max(start - number * rows, 0), min(stop - number * rows, rows)
            if low < high:
                parts.append(piece.read(low, high))
        return np.concatenate(parts)

    if cut == "columns":
        return replace(first, shape=(rows, columns * len(pieces)), read=read_beside)
    return replace(first, shape=(rows * len(pieces), columns), read=read_below)


def _in_halves(tensor: LazyTensor, heads: int, file: Path) -> LazyTensor:
    """Rows a0 b0 a1 b1 ... of every head as a0 a1 ... b0 b1 ..., as transformers rotates them."""
    if tensor.rows % (2 * heads):
        raise InvalidTensor(
            f"{file}: {tensor.name} has {tensor.rows} rows, which {heads} heads cannot share in pairs"
        )
    head = np.arange(tensor.rows // heads).reshape(-1, 2).T.reshape(-1)
    order = (np.arange(heads)[:, None] * len(head) + head).reshape(-1)

    def read(start: int, stop: int) -> Array:
        wanted = order[start:stop]
        low, high = int(wanted.min()), int(wanted.max()) + 1
        rows: Array = tensor.read(low, high)[wanted - low]
        return rows

    return replace(tensor, read=read)


def _as_config(params: JsonConfig, tensors: Mapping[str, LazyTensor]) -> dict[str, Any]:
    width, layers = params.require("dim", int), params.require("n_layers", int)
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _vocabulary(params, tensors),
        "hidden_size": width,
        "intermediate_size": _feed_forward(params, width),
        "num_hidden_layers": layers,
        "num_attention_heads": _heads(params, "n_heads"),
        "num_key_value_heads": _heads(params, "n_kv_heads"),
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
            "factor": _scaling_factor(params, width, layers),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": _SCALED_WINDOW,
        }
    return config


def _vocabulary(params: JsonConfig, tensors: Mapping[str, LazyTensor]) -> int:
    """-1 leaves it to the tokenizer: as many as the embedding has rows."""
    if params.values.get("vocab_size", -1) != -1:
        return params.require("vocab_size", int)
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None:
        raise MissingTensor(
            f"{params.file}: no piece holds tok_embeddings.weight", "download all pieces again"
        )
    return embedding.shape[0]


def _feed_forward(params: JsonConfig, width: int) -> int:
    """Two thirds of 4 x dim, times ffn_dim_multiplier, up to a multiple of multiple_of (FeedForward)."""
    inner = int(8 * width / 3)
    if "ffn_dim_multiplier" in params:
        inner = int(params.require("ffn_dim_multiplier", float) * inner)
    multiple = params.optional("multiple_of", int, DEFAULT_MULTIPLE)
    return -(-inner // multiple) * multiple


def _heads(params: JsonConfig, key: str) -> int:
    heads = params.require("n_heads", int)
    return heads if key == "n_heads" else params.optional(key, int, heads)


def _head_dim(params: JsonConfig) -> int:
    return params.optional("head_dim", int, params.require("dim", int) // params.require("n_heads", int))


def _scaling_factor(params: JsonConfig, width: int, layers: int) -> float:
    if "rope_scaling_factor" in params:
        return params.require("rope_scaling_factor", float)
    if (width, layers) not in _SCALED:
        raise CheckpointError(
            f"{params.describe('use_scaled_rope')}, and no rope_scaling_factor says by how much; "
            f"dim = {width} with n_layers = {layers} is no model that Meta published",
            f"write rope_scaling_factor into {PARAMS_FILE}: 8 in Llama 3.1 and 3.3, 32 in Llama 3.2",
        )
    return _SCALED[width, layers]


def _agreed(path: Path, config: Mapping[str, Any], made: dict[str, Any]) -> dict[str, Any]:
    """config.json where there is one, with what it leaves out; it must not say another thing."""
    stated = {key: value for key, value in config.items() if value is not None}
    for key, value in made.items():
        if key in stated and stated[key] != value:
            raise CheckpointError(
                f"{path / 'config.json'}: {key} = {format_json_value(stated[key])}, but {PARAMS_FILE} makes it "
                f"{format_json_value(value)}",
                "take away the file that does not belong to these weights",
            )
    return {**made, **stated}
