"""What a tuning profile applies to: this machine as the engine sees it, and models of one shape.

Two files of one shape run at the same speed, whatever their weights and paths; another quantization, a longer
context or a rebuilt engine changes the key. Both keys are stored in the profile in readable form, and neither
identifies a person.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from pigguf.common.parallel import usable_cores
from pigguf.gguf_io import GGUFFile
from pigguf.inference.engine import GpuLayers
from pigguf.inference.engine.context_options import default_threads
from pigguf.inference.engine.devices import cpu_features, list_devices

Key = Mapping[str, Any]

# The hyperparameters that decide how long a token takes, and at which depths it was measured.
_SHAPE = (
    "context_length", "block_count", "embedding_length", "feed_forward_length", "expert_count",
    "expert_used_count", "expert_feed_forward_length", "attention.head_count", "attention.head_count_kv",
    "attention.key_length", "attention.value_length", "attention.sliding_window",
)  # fmt: skip


def machine_key(gpu_layers: GpuLayers = "auto") -> Key:
    """Return the machine and its engine; without GPUs if no layer is to go there.

    Raises:
        BackendUnavailable: the engine cannot be loaded.
    """
    devices = list_devices()
    gpus = [device for device in devices if "gpu" in device.kind and gpu_layers != 0]
    return {
        "cpu": next((device.description for device in devices if device.kind == "cpu"), "unknown"),
        "cores": default_threads(),
        "usable_cores": usable_cores(),
        "engine": version("llama-cpp-python"),
        "engine_features": sorted(cpu_features()),
        "gpus": [[gpu.description, gpu.backend, gpu.memory_total] for gpu in gpus],
        "gpu_layers": gpu_layers if gpus else 0,
    }


def shape_key(file: GGUFFile) -> Key:
    """Return what of a file decides its speed."""
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        sizes[tensor.type.name] += tensor.nbytes
    shape_keys = ((name, file.metadata.get(f"{file.architecture}.{name}")) for name in _SHAPE)
    return {
        "architecture": file.architecture,
        "bytes": dict(sorted(sizes.items())),
        **{name: _plain(typed.value) for name, typed in shape_keys if typed is not None},
    }


def _plain(value: Any) -> Any:
    """Return a metadata value as JSON values; arrays have one number per layer."""
    return [int(one) for one in value] if isinstance(value, (list, tuple)) else int(value)
