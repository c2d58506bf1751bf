"""Tuning profiles on disk, by machine and model shape: loaded before every load, saved after a tuning.

They are JSON files in $XDG_CACHE_HOME/pigguf/tuning (by default ~/.cache), each with its keys and all
measurements. A file that is damaged, or that applies to something else, is ignored with a warning. Files are
written atomically.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pigguf.common.atomic_write import atomic_write
from pigguf.common.cache_directory import cache_directory
from pigguf.errors import OutputError, UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import GpuLayers, Model
from pigguf.inference.tuning.default_profiles import default_profile
from pigguf.inference.tuning.machine_key import Key, machine_key, shape_key
from pigguf.inference.tuning.profile import Measurement, TuningProfile

FORMAT = 1

_log = logging.getLogger("pigguf")


def load_tuning_profile(model: Model | GGUFFile, gpu_layers: GpuLayers = "auto") -> TuningProfile:
    """Return the settings measured on this machine for models of this shape, or the built-in default.

    Args:
        model: an open model, or a header.
        gpu_layers: as the model is or will be opened.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    file = model.file if isinstance(model, Model) else model
    machine, shape = machine_key(gpu_layers), shape_key(file)
    return _read_profile(machine, shape) or default_profile(machine)


def save_tuning_profile(
    file: GGUFFile, gpu_layers: GpuLayers, profile: TuningProfile, measurements: Sequence[Measurement]
) -> Path:
    """Write a profile to the file where `load_tuning_profile` looks for it, and return that file's path.

    Raises:
        OutputError: it cannot be written; an older one is unchanged.
    """
    machine, shape = machine_key(gpu_layers), shape_key(file)
    path = tuning_profile_path(machine, shape)
    content = {
        "format": FORMAT,
        "machine": machine,
        "shape": shape,
        "tuning": profile.to_json(),
        "measurements": [asdict(one) for one in measurements],
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"{path.parent}: {error.strerror}",
            "free some disk space, or set XDG_CACHE_HOME to another directory",
        ) from error
    with atomic_write(path) as out:
        out.write((json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode())
    return path


def tuning_profile_path(machine: Key, shape: Key) -> Path:
    """Return the path of the profile for these keys, whether the file exists or not.

    Raises:
        UsageError: the system has no home directory for this user.
    """
    identity = json.dumps([FORMAT, machine, shape], sort_keys=True)
    return cache_directory("tuning") / f"{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"


def _read_profile(machine: Key, shape: Key) -> TuningProfile | None:
    """Return the stored profile for these keys, or None if there is no usable one."""
    try:
        path = tuning_profile_path(machine, shape)
    except UsageError:
        return None  # without a home directory nothing is stored
    try:
        content: Any = json.loads(path.read_bytes())
        stored_keys = [content["format"], content["machine"], content["shape"]]
        if stored_keys != json.loads(json.dumps([FORMAT, machine, shape])):
            raise ValueError("it is for another machine or model")
        return TuningProfile.from_json(content["tuning"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"{error}"
        _log.warning("%s is ignored: %s; `pigguf tune` replaces it", path, reason)
        return None
