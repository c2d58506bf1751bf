"""Tunings on disk, by machine and model's shape: find_tuning before every load, keep_tuning after a tuning.

They lie as JSON in $XDG_CACHE_HOME/pigguf/tuning (by default ~/.cache), each with the keys that it holds
for and all that was measured. Contract: a file that is damaged, or says that it holds for something else, is
passed over with a warning; a file is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pigguf.common.files import atomic_write, cache_directory
from pigguf.errors import OutputError, UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import GpuLayers, Model
from pigguf.inference.tuning.machine_key import Key, machine_key, shape_key
from pigguf.inference.tuning.profile import Measurement, Tuning
from pigguf.inference.tuning.untuned_defaults import rule

FORMAT = 1

_log = logging.getLogger("pigguf")


def find_tuning(model: Model | GGUFFile, gpu_layers: GpuLayers = "auto") -> Tuning:
    """The settings that were measured for models of this shape on this machine, or the built-in rule's.

    Args:
        model: an open one, or a header.
        gpu_layers: as the model is or will be opened.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    machine, shape = machine_key(gpu_layers), shape_key(_header(model))
    return _read(machine, shape) or rule(machine)


def keep_tuning(
    file: GGUFFile, gpu_layers: GpuLayers, tuning: Tuning, measurements: Sequence[Measurement]
) -> Path:
    """Write a tuning where find_tuning looks for it; the file's path.

    Raises:
        OutputError: it cannot be written; an older one is as it was.
    """
    machine, shape = machine_key(gpu_layers), shape_key(file)
    path = tuning_path(machine, shape)
    content = {
        "format": FORMAT,
        "machine": machine,
        "shape": shape,
        "tuning": tuning.as_data(),
        "measurements": [asdict(one) for one in measurements],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path.parent}: {error.strerror}", "free some room, or name another place in XDG_CACHE_HOME"
        ) from error
    with atomic_write(path) as out:
        out.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def tuning_path(machine: Key, shape: Key) -> Path:
    """Where the tuning of these keys lies, whether there is one or not.

    Raises:
        UsageError: the system knows no home of this user.
    """
    identity = json.dumps([FORMAT, machine, shape], sort_keys=True)
    return cache_directory("tuning") / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"


def _header(model: Model | GGUFFile) -> GGUFFile:
    return model.file if isinstance(model, Model) else model


def _read(machine: Key, shape: Key) -> Tuning | None:
    """The tuning that is kept for these keys, or None where there is none to be used."""
    try:
        path = tuning_path(machine, shape)
    except UsageError:
        return None  # nobody has a place to keep one
    try:
        content: Any = json.loads(path.read_bytes())
        held = [content["format"], content["machine"], content["shape"]]
        if held != json.loads(json.dumps([FORMAT, machine, shape])):
            raise ValueError("it is of another machine or model")
        return Tuning.from_data(content["tuning"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else f"{error}"
        _log.warning("%s is passed over: %s; `pigguf tune` makes it anew", path, why)
        return None
