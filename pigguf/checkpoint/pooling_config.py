"""How a checkpoint's states become an embedding, where sentence-transformers saved it for that.

Source: sentence-transformers, models/Pooling.py; llama.h, enum llama_pooling_type.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from pigguf.checkpoint.json_file import read_json
from pigguf.gguf_io.metadata import Typed, u32

POOLING_FILE: Final = "1_Pooling/config.json"
# As its config says it today, and as a key that was true before -> the library's number.
_MODES: Final = {"mean": 1, "cls": 2, "lasttoken": 3}
_KEYS: Final = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}


class Pooled(NamedTuple):
    """Keys for a file, and what a person should know."""

    metadata: dict[str, Typed]
    notes: tuple[str, ...] = ()


def read_pooling(path: Path, architecture: str) -> Pooled:
    """What a checkpoint's directory says of pooling, if anything.

    Raises:
        CheckpointError: its file is no JSON object.
    """
    config = read_json(path / POOLING_FILE, optional=True)
    said = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    modes = [_KEYS.get(key, key) for key in said] or [str(config.get("pooling_mode"))] * bool(config)
    if not modes:
        return Pooled({})
    if len(modes) == 1 and modes[0] in _MODES:
        return Pooled({f"{architecture}.pooling_type": u32(_MODES[modes[0]])})
    found = ", ".join(modes)
    return Pooled({}, (f"{POOLING_FILE} pools by {found}, which a GGUF cannot say: it gives no embeddings",))
