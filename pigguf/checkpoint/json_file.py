"""Read a JSON file of a checkpoint or an adapter, with errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pigguf.common.file_io import damaged_file_hint, read_error
from pigguf.errors import CheckpointError


def read_json(path: Path, optional: bool = False) -> dict[str, Any]:
    """Read a JSON object from a file; return {} if an optional file is absent.

    Raises:
        CheckpointError: the file is missing, not JSON, or not an object.
        ReadError: the system refuses to read it.
    """
    raw = b""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except FileNotFoundError:
        if optional:
            return {}
        raise CheckpointError(
            f"{path} is missing", f"check that {path.parent} is a complete checkpoint"
        ) from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}", damaged_file_hint(raw)) from error
    except OSError as error:
        raise read_error(path, error) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is a JSON {type(content).__name__}, not an object")
    return content
