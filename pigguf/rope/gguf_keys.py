"""The rope keys of a GGUF, read as llama.cpp reads them.

Source: llama.cpp src/llama-model.cpp (load_hparams), and src/llama-hparams.h for the meaning of missing keys.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import FOREIGN_FILE_HINT, Metadata, ValueType
from pigguf.llama_cpp_internals.rope_keys import GGUF_ROPE_TYPES, UNSCALED_SLIDING
from pigguf.rope.evidence import Evidence
from pigguf.rope.rope_scaling import DEFAULT_ROPE_THETA, FreqFactors

_COMMON_SCALING_KEYS = ("type", "factor", "original_context_length", "finetuned")
# llama.cpp's defaults (src/llama-hparams.h), which are the same as no key.
_DEFAULTS = {"attn_factor": 1.0, "yarn_beta_fast": 32.0, "yarn_beta_slow": 1.0, "yarn_log_multiplier": 0.0}


@dataclass(frozen=True)
class GGUFRopeKeys:
    """The rope keys of a GGUF.

    Attributes:
        rope_type: one of GGUF_ROPE_TYPES; "none" also for linear scaling by 1.
        factor: the scaling factor; 1.0 for "none".
        rope_theta: the base of the rotation frequencies.
        context_length: the context length in tokens.
        stated_original_context: the original context length; None if there is no such key.
        attn_factor: what queries and keys are multiplied by.
        local_rope_theta: rope_theta of layers with sliding window attention; None if there are none.
        other_parameters: further rope.scaling keys, by their last part, where they are not the defaults.
        tensors: the file's POSITION_TENSORS.
        evidence: the keys that were read.
    """

    rope_type: str
    factor: float
    rope_theta: float
    context_length: int
    stated_original_context: int | None
    attn_factor: float
    local_rope_theta: float | None
    other_parameters: Mapping[str, Any]
    tensors: Mapping[str, FreqFactors]
    evidence: tuple[Evidence, ...]

    def common_fields(self) -> dict[str, Any]:
        """Return the fields of RopeScaling that are the same for all rope types."""
        return {
            "rope_theta": self.rope_theta,
            "original_context": self.stated_original_context or self.context_length,
            "context_length": self.context_length,
            "attn_factor": self.attn_factor,
            "local_rope_theta": self.local_rope_theta,
            "other_parameters": self.other_parameters,
            "evidence": self.evidence,
        }

    def tensor_values(self, name: str) -> tuple[float, ...]:
        """Return the values of a tensor, () if the file has none."""
        return tuple(float(value) for value in self.tensors.get(name, ()))


def read_rope_keys(metadata: Metadata, architecture: str, tensors: Mapping[str, FreqFactors]) -> GGUFRopeKeys:
    """Read the rope keys of a GGUF.

    Args:
        metadata: the file's keys.
        architecture: general.architecture.
        tensors: the file's POSITION_TENSORS.

    Raises:
        GGUFError: a key is missing, of a type that llama.cpp does not take, or names a rope type on which
            llama.cpp aborts.
    """
    reader = _KeyReader(metadata, architecture)
    context_length = reader.read("context_length", "u32")
    if not context_length:
        problem = "missing" if context_length is None else 0
        raise GGUFError(f"metadata key {architecture}.context_length is {problem}", FOREIGN_FILE_HINT)
    rope_type = reader.read("rope.scaling.type", "str", "linear")
    if rope_type not in GGUF_ROPE_TYPES:
        raise GGUFError(
            f"metadata key {architecture}.rope.scaling.type is {rope_type!r}, on which llama.cpp aborts",
            f"it knows {', '.join(GGUF_ROPE_TYPES)}",
        )
    factor = reader.read("rope.scaling.factor", "f32")
    if factor is None:
        factor = reader.read("rope.scale_linear", "f32")
    factor = factor or 1.0
    rope_theta = reader.read("rope.freq_base", "f32", DEFAULT_ROPE_THETA)
    for key, value in (("scaling.factor", factor), ("freq_base", rope_theta)):
        if not (math.isfinite(value) and value > 0):
            raise GGUFError(
                f"metadata key {architecture}.rope.{key} is {value}, not a number above 0", FOREIGN_FILE_HINT
            )
    original_context = reader.read("rope.scaling.original_context_length", "u32") or None
    local_rope_theta = reader.read("rope.freq_base_swa", "f32")
    if local_rope_theta is None and metadata.get(f"{architecture}.attention.sliding_window") is not None:
        local_rope_theta = UNSCALED_SLIDING.get(architecture)
    if rope_type == "linear" and factor == 1.0:
        rope_type = "none"
    parameters = _read_other_parameters(metadata, f"{architecture}.rope.scaling.")
    return GGUFRopeKeys(
        rope_type=rope_type,
        factor=1.0 if rope_type == "none" else factor,
        rope_theta=rope_theta,
        context_length=context_length,
        stated_original_context=original_context,
        attn_factor=parameters.pop("attn_factor", 1.0),
        local_rope_theta=local_rope_theta,
        other_parameters=parameters,
        tensors=tensors,
        evidence=tuple(reader.evidence),
    )


class _KeyReader:
    """Reads keys of one type, and collects them as evidence."""

    def __init__(self, metadata: Metadata, architecture: str) -> None:
        self.metadata = metadata
        self.architecture = architecture
        self.evidence: list[Evidence] = []

    def read(self, key: str, kind: ValueType, default: Any = None) -> Any:
        """Return a key's value, or `default` if it is missing.

        Raises:
            GGUFError: it is of another type.
        """
        name = f"{self.architecture}.{key}"
        typed = self.metadata.get(name)
        if typed is None:
            return default
        if typed.type != kind or typed.is_array:
            actual = f"{typed.type}{'[]' if typed.is_array else ''}"
            raise GGUFError(f"metadata key {name} is {actual}, not {kind}", FOREIGN_FILE_HINT)
        self.evidence.append(Evidence("GGUF", name, typed.value, "as llama.cpp reads it"))
        return typed.value


def _read_other_parameters(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """Return the scaling keys, except the common ones, that change rotations or attention."""
    values = {
        key.removeprefix(prefix): typed.value for key, typed in metadata.items() if key.startswith(prefix)
    }
    return {
        name: value
        for name, value in values.items()
        if name not in _COMMON_SCALING_KEYS and value != _DEFAULTS.get(name)
    }
