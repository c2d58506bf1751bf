"""A GGUF file's position keys, by their names without the architecture's prefix.

What llama.cpp does with each key: src/llama-model.cpp (load_hparams); a key of another type is refused by
src/llama-model-loader.cpp.
"""

from __future__ import annotations

import math
from typing import Any

from pigguf.common.json_config import MAX_COUNT
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import TypedValue, ValueType, round_to_shortest_f32
from pigguf.rope import Evidence

CONTEXT_LENGTH = "context_length"
FREQ_BASE = "rope.freq_base"
SCALING_TYPE = "rope.scaling.type"
SCALING_FACTOR = "rope.scaling.factor"
SCALE_LINEAR = "rope.scale_linear"  # older files' name of the factor
ORIGINAL_CONTEXT_LENGTH = "rope.scaling.original_context_length"
DIMENSION_COUNT = "rope.dimension_count"

# Every position key that llama.cpp reads, with the one type it accepts.
POSITION_KEYS: dict[str, ValueType] = {
    CONTEXT_LENGTH: "u32",
    DIMENSION_COUNT: "u32",
    "rope.dimension_count_swa": "u32",
    FREQ_BASE: "f32",
    "rope.freq_base_swa": "f32",
    SCALE_LINEAR: "f32",
    SCALING_TYPE: "str",
    SCALING_FACTOR: "f32",
    ORIGINAL_CONTEXT_LENGTH: "u32",
    "rope.scaling.finetuned": "bool",
    "rope.scaling.alpha": "f32",
    "rope.scaling.attn_factor": "f32",
    "rope.scaling.yarn_log_multiplier": "f32",
    "rope.scaling.yarn_ext_factor": "f32",
    "rope.scaling.yarn_attn_factor": "f32",
    "rope.scaling.yarn_beta_fast": "f32",
    "rope.scaling.yarn_beta_slow": "f32",
}
YARN_KEYS = tuple(key for key in POSITION_KEYS if ".yarn_" in key)
_FREQ_FACTORS_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class PositionKeys:
    """The position keys of one file, whatever types they are stored in.

    Attributes:
        file: The file's header.
        architecture: The value of general.architecture, which is the keys' prefix.
    """

    def __init__(self, file: GGUFFile) -> None:
        self.file = file
        self.architecture = file.architecture

    def full_name(self, key: str) -> str:
        """Return a key's name with the architecture's prefix."""
        return f"{self.architecture}.{key}"

    def typed(self, key: str) -> TypedValue | None:
        """Return a key's value with its type, or None if the key is absent."""
        return self.file.metadata.get(self.full_name(key))

    def has(self, key: str) -> bool:
        """Return whether the key is present."""
        return self.typed(key) is not None

    def number(self, key: str) -> float | None:
        """Return a key as a number, even if it is stored as another type or as text, or None."""
        typed = self.typed(key)
        return None if typed is None or typed.is_array or typed.type == "bool" else _as_number(typed.value)

    def positive(self, key: str) -> float | None:
        """Return a finite number above 0, or None. llama.cpp treats 0 as absent.

        The number is the shortest decimal of its single-precision value: 0.1, not 0.10000000149.
        """
        number = self.number(key)
        return (
            round_to_shortest_f32(number)
            if number is not None and math.isfinite(number) and number > 0
            else None
        )

    def count(self, key: str) -> int | None:
        """Return a whole number from 1 up, or None."""
        number = self.number(key)
        if number is None or not math.isfinite(number) or not 1 <= number <= MAX_COUNT:
            return None
        return int(number) if number == int(number) else None

    @property
    def scaling_type(self) -> str | None:
        """rope.scaling.type; None if it is absent, which llama.cpp reads as linear."""
        typed = self.typed(SCALING_TYPE)
        return None if typed is None else str(typed.value)

    @property
    def is_linear_or_unscaled(self) -> bool:
        """Whether the scaling type, as written, is linear, none or absent."""
        return self.scaling_type in (None, "none", "linear")

    @property
    def factor(self) -> float | None:
        """The scaling factor as llama.cpp reads it: rope.scale_linear if rope.scaling.factor is absent."""
        return self.positive(SCALING_FACTOR if self.has(SCALING_FACTOR) else SCALE_LINEAR)

    @property
    def has_freq_factors(self) -> bool:
        """Whether a tensor divides each frequency by its own factor (Llama 3, LongRoPE)."""
        return any(name in self.file.tensors for name in _FREQ_FACTORS_TENSORS)

    @property
    def has_yarn_keys(self) -> bool:
        """Whether any key of YaRN's own is present."""
        return any(self.has(key) for key in YARN_KEYS)

    @property
    def head_dim(self) -> int | None:
        """Dimensions of an attention head, or None if the file does not state them."""
        key_length = self.count("attention.key_length")
        if key_length is not None:
            return key_length
        width, heads = self.count("embedding_length"), self.count("attention.head_count")
        return None if width is None or heads is None else width // heads

    def evidence_of(self, *keys: str) -> tuple[Evidence, ...]:
        """Return the keys that are present as evidence, in the order given."""
        return tuple(self.evidence(key, "as it stands") for key in keys if self.has(key))

    def evidence(self, key: str, meaning: str) -> Evidence:
        """Return a key that is present as evidence, with what it is taken to mean."""
        typed = self.typed(key)
        assert typed is not None
        is_single = typed.type == "f32" and not typed.is_array
        value = round_to_shortest_f32(typed.value) if is_single else typed.value
        return Evidence("GGUF", self.full_name(key), value, meaning)


def _as_number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None
