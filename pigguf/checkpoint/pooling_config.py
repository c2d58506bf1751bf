"""Read how a checkpoint pools its hidden states into an embedding, as sentence-transformers saves it.

Source: sentence-transformers, models/Pooling.py; llama.h, enum llama_pooling_type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pigguf.checkpoint.json_file import read_json
from pigguf.gguf_io.metadata import TypedValue, u32

POOLING_FILE: Final = "1_Pooling/config.json"
# pooling_mode -> llama.h's llama_pooling_type; and the boolean keys that older versions wrote instead.
_POOLING_TYPES: Final = {"mean": 1, "cls": 2, "lasttoken": 3}
_LEGACY_KEYS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


class PoolingMetadata(NamedTuple):
    """The pooling type as GGUF metadata.

    Attributes:
        metadata: GGUF key -> value; empty where there is no pooling, or one that GGUF does not have.
        notes: what a user should know, one sentence each.
    """

    metadata: dict[str, TypedValue]
    notes: tuple[str, ...] = ()


def read_pooling_config(path: Path, architecture: str) -> PoolingMetadata:
    """Read a checkpoint's pooling config, if it has one.

    Args:
        path: the checkpoint's directory.
        architecture: GGUF's general.architecture, the prefix of the key.

    Raises:
        CheckpointError: the file is not a JSON object.
    """
    config = read_json(path / POOLING_FILE, optional=True)
    legacy_keys = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    modes = [_LEGACY_KEYS.get(key, key) for key in legacy_keys] or [str(config.get("pooling_mode"))] * bool(
        config
    )
    if not modes:
        return PoolingMetadata({})
    if len(modes) == 1 and modes[0] in _POOLING_TYPES:
        return PoolingMetadata({f"{architecture}.pooling_type": u32(_POOLING_TYPES[modes[0]])})
    note = (
        f"{POOLING_FILE} has the pooling mode {', '.join(modes)}, which GGUF does not have: "
        "the model gives no embeddings"
    )
    return PoolingMetadata({}, (note,))
