"""RopeScaling: how positions become rotations, as GGUF keys and as config.json keys, both ways.

The GGUF side follows llama.cpp src/llama-model.cpp (load_hparams) and src/llama-context.cpp, the
config side transformers' modeling_rope_utils.py. Left out: deciding what a checkpoint means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.config import as_json
from pigguf.errors import GGUFError, UnsupportedModel
from pigguf.metadata import ANOTHER_MAKE, Kind, Metadata, Typed, f32, shortest_f32, string, u32

# The kinds llama.cpp knows by name; on any other it aborts the process.
GGUF_KINDS = ("none", "linear", "yarn", "longrope")
WRITTEN_KINDS = ("none", "linear")
WRITTEN = "this version writes linear and unscaled positions"

DEFAULT_BASE = 10000.0  # transformers' default_theta, and llama.cpp's where freq_base is absent
ROUNDING = 1e-3  # relative: published factors are rounded (24.41 for 100000 / 4096)
COMMAND_LINE = "command line"


def same(a: float, b: float) -> bool:
    """Equal but for the rounding of published factors."""
    return abs(a - b) <= ROUNDING * max(abs(a), abs(b))


@dataclass(frozen=True)
class Evidence:
    """One thing that was found: where, under which key, which value, and what it was taken to mean."""

    source: str
    key: str
    value: Any
    meaning: str

    def __str__(self) -> str:
        if self.source == COMMAND_LINE:
            return f"{self.key} {self.value}"
        return f"{self.source}: {self.key} = {as_json(self.value)}"


@dataclass(frozen=True)
class RopeScaling:
    """How positions become rotations.

    Attributes:
        kind: "none" or "linear"; read from a GGUF also "yarn" or "longrope".
        factor: position m is read as m / factor; 1.0 for "none".
        base: theta, the base of the rotation frequencies.
        original_context: tokens of the window the model was trained at.
        context_length: tokens of the window it can be used at, extended where it was extended.
        parameters: what else a GGUF says of its scaling, by the key's last part.
        evidence: everything that was found, in order.
        decisions: what was concluded, one plain sentence each.
        local_base: the base of layers with a sliding window, where it is another (Gemma 3).
    """

    kind: str
    factor: float
    base: float
    original_context: int
    context_length: int
    parameters: Mapping[str, Any] = field(default_factory=dict)
    evidence: tuple[Evidence, ...] = field(default=(), compare=False)
    decisions: tuple[str, ...] = field(default=(), compare=False)
    local_base: float | None = None

    @property
    def windows_agree(self) -> bool:
        """Whether factor x original context is the context length (some GGUFs never said so)."""
        return same(self.factor * self.original_context, self.context_length)

    def explain(self) -> str:
        """What the factor means for positions, in a sentence."""
        last = self.context_length - 1
        if self.kind == "none":
            return f"positions are read as they are, 0 to {last}"
        if self.kind == "linear":
            read = f"position {last}, the last, is read as {last / self.factor:.10g}"
            if self.windows_agree:
                return (
                    f"{read}: {self.context_length} positions share the {self.original_context} "
                    f"that the model was trained at"
                )
            return f"{read}: every position is divided by {self.factor:g}"
        return (
            f"positions are scaled by {self.kind}, factor {self.factor:g}, "
            f"from {self.original_context} tokens to {self.context_length}"
        )

    def as_data(self) -> dict[str, Any]:
        """The positions as commands and reports tell them in JSON."""
        return {
            "kind": self.kind,
            "factor": self.factor,
            "base": self.base,
            "original_context_length": self.original_context,
            "context_length": self.context_length,
            "parameters": dict(self.parameters),
        }

    def metadata(self, architecture: str) -> dict[str, Typed]:
        """The GGUF keys that say this.

        Unscaled positions get no scaling.type: absent means linear by 1 to llama.cpp, while "none"
        would also switch off a factor that someone gives at run time (llama-context.cpp).

        Raises:
            UnsupportedModel: a kind, or a parameter of it, that is not written.
        """
        self._refuse_unwritable()
        rope = f"{architecture}.rope"
        keys = {
            f"{architecture}.context_length": u32(self.context_length),
            f"{rope}.freq_base": f32(self.base),
        }
        if self.kind == "linear":
            keys[f"{rope}.scaling.type"] = string("linear")
            keys[f"{rope}.scaling.factor"] = f32(self.factor)
            keys[f"{rope}.scaling.original_context_length"] = u32(self.original_context)
        return keys

    def tensors(self, rotary_dimensions: int) -> dict[str, NDArray[np.float32]]:
        """The tensors of a GGUF that say this, by name; `rotary_dimensions` are those rotated of a head."""
        return {}

    def config(self) -> dict[str, Any]:
        """The config.json keys that say this, for an export.

        Both schemas, as they agree: rope_parameters for transformers 5 and later, rope_theta and
        rope_scaling for 4.31 and later (which wants exactly `type` and `factor`).
        max_position_embeddings is the extended window; original_max_position_embeddings stands at
        the top level, where transformers' linear kind takes no offence, and only if it is known.

        Raises:
            UnsupportedModel: a kind, or a parameter of it, that is not written.
        """
        self._refuse_unwritable()
        base, factor = shortest_f32(self.base), shortest_f32(self.factor)
        keys: dict[str, Any] = {"max_position_embeddings": self.context_length, "rope_theta": base}
        if self.kind == "none":
            return {**keys, "rope_parameters": {"rope_type": "default", "rope_theta": base}}
        if self.windows_agree:
            keys["original_max_position_embeddings"] = self.original_context
        return {
            **keys,
            "rope_parameters": {"rope_type": "linear", "rope_theta": base, "factor": factor},
            "rope_scaling": {"type": "linear", "factor": factor},
        }

    def _refuse_unwritable(self) -> None:
        if self.kind not in WRITTEN_KINDS:
            raise UnsupportedModel(
                f"rope scaling of kind {self.kind} (factor {self.factor:g}) cannot be written yet",
                WRITTEN,
            )
        for key, value in self.parameters.items():
            raise UnsupportedModel(
                f"rope.scaling.{key} = {value} beside rope.scaling.type {self.kind} cannot be written yet",
                "this version writes a factor and nothing else",
            )


def rope_from_metadata(metadata: Metadata, architecture: str) -> RopeScaling:
    """What a GGUF says of positions, as llama.cpp reads it (src/llama-model.cpp, load_hparams).

    Absent keys: base 10000, type linear, factor 1 (or the legacy scale_linear), original context =
    context length. A GGUF made before a factor was thought of may claim the original window as its
    context length; that is told as it stands (see RopeScaling.windows_agree).

    Raises:
        GGUFError: a key is missing, of a type llama.cpp does not take, or names a scaling on which
            llama.cpp aborts.
    """
    prefix = f"{architecture}.rope"
    evidence: list[Evidence] = []

    def read(key: str, kind: Kind, default: Any = None) -> Any:
        typed = metadata.get(key)
        if typed is None:
            return default
        if typed.kind != kind or typed.is_array:
            kept = f"{typed.kind}{'[]' if typed.is_array else ''}"
            raise GGUFError(f"metadata key {key} is {kept}, not {kind}", ANOTHER_MAKE)
        evidence.append(Evidence("GGUF", key, typed.value, "as llama.cpp reads it"))
        return typed.value

    context = read(f"{architecture}.context_length", "u32")
    if not context:
        absent = "missing" if context is None else 0
        raise GGUFError(f"metadata key {architecture}.context_length is {absent}", ANOTHER_MAKE)
    kind = read(f"{prefix}.scaling.type", "str", "linear")
    if kind not in GGUF_KINDS:
        raise GGUFError(
            f"metadata key {prefix}.scaling.type is {kind!r}, on which llama.cpp aborts",
            f"it knows {', '.join(GGUF_KINDS)}",
        )
    factor = read(f"{prefix}.scaling.factor", "f32")
    if factor is None:
        factor = read(f"{prefix}.scale_linear", "f32")
    factor = factor or 1.0
    base = read(f"{prefix}.freq_base", "f32", DEFAULT_BASE)
    for key, value in (("scaling.factor", factor), ("freq_base", base)):
        if not (math.isfinite(value) and value > 0):
            raise GGUFError(f"metadata key {prefix}.{key} is {value}, not a number above 0", ANOTHER_MAKE)
    original = read(f"{prefix}.scaling.original_context_length", "u32", context) or context
    if kind == "none" or (kind == "linear" and factor == 1.0):
        kind, factor, original = "none", 1.0, context
    return RopeScaling(
        kind=kind,
        factor=factor,
        base=base,
        original_context=original,
        context_length=context,
        parameters=_other_parameters(metadata, f"{prefix}.scaling."),
        evidence=tuple(evidence),
    )


def _other_parameters(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """Scaling keys beyond the common ones, all of which change the rotation or the attention."""
    common = {"type", "factor", "original_context_length", "finetuned"}
    names = [key.removeprefix(prefix) for key in metadata if key.startswith(prefix)]
    return {name: metadata[prefix + name].value for name in names if name not in common}
