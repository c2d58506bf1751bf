"""RuntimeRope: rope values that override a file's own at load time, as GGUF metadata.

llama.cpp receives them as key-value overrides, in the one place where it also reads the file's own keys
(src/llama-model-loader.cpp, kv_overrides).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pigguf.errors import ContextOverflow, UsageError
from pigguf.gguf_io import GGUFFile
from pigguf.gguf_io.metadata import TypedValue, f32, string, u32
from pigguf.llama_cpp_internals.graph_inputs import POSITION_EMBEDDINGS
from pigguf.rope import AlibiPositions, LearnedPositions, RopeScaling, rope_from_metadata


@dataclass(frozen=True)
class RuntimeRope:
    """Rope values to use instead of the file's; None keeps the file's value.

    Attributes:
        factor: the scaling factor as Hugging Face states it (8.0, never 0.125). It replaces the file's factor
            and does not multiply it.
        theta: the rope frequency base.
        context_length: the context window of the model in tokens.
        scaling_type: how the factor scales positions, instead of what the file does: "linear", or "yarn" from
            the file's original context window. None is linear too, but never replaces a scaling of another
            type.

    Raises:
        UsageError: a value is out of range, or a scaling type has no factor.
    """

    factor: float | None = None
    theta: float | None = None
    context_length: int | None = None
    scaling_type: Literal["linear", "yarn"] | None = None

    def __post_init__(self) -> None:
        for name in ("factor", "theta"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"`rope.{name}={value}` is not a positive number", "give a number above 0")
        if self.context_length is not None and not 1 <= self.context_length < 2**31:
            raise UsageError(f"the context length is {self.context_length}", "give a number of tokens")
        if self.scaling_type is not None and self.factor is None:
            raise UsageError(f"{self.scaling_type} rope scaling needs a factor", "give `rope.factor`")
        if self.scaling_type == "yarn" and self.factor is not None and self.factor < 1:
            raise UsageError(f"the YaRN factor is {self.factor}", "it extends the window: give 1 or more")

    def metadata(self, file: GGUFFile) -> dict[str, TypedValue]:
        """Return the metadata keys that override the file's own.

        Raises:
            UsageError: the factor cannot replace the file's own scaling, or the model has no rotary
                positions.
            ContextOverflow: the window is longer than the file's table of learned positions.
        """
        own = rope_from_metadata(file.metadata, file.architecture)
        keys: dict[str, TypedValue] = {}
        if isinstance(own, LearnedPositions | AlibiPositions):
            self._check_unrotated(file, own)
        elif self.factor is not None:
            keys |= self._scaling_keys(file, own, self.factor)
        if self.theta is not None:
            keys[f"{file.architecture}.rope.freq_base"] = f32(self.theta)
        if self.context_length is not None:
            keys[f"{file.architecture}.context_length"] = u32(self.context_length)
        return keys

    def _check_unrotated(self, file: GGUFFile, own: LearnedPositions | AlibiPositions) -> None:
        if self.factor not in (None, 1) or self.theta is not None:
            override = f"factor {self.factor:g}" if self.theta is None else f"theta {self.theta:g}"
            raise UsageError(
                f"the rope {override} has no effect on {file.path}: {own.explain()}",
                "leave it out: the model has no rotary positions",
            )
        table = file.tensors.get(POSITION_EMBEDDINGS)
        if table is None or self.context_length in (None, table.rows):
            return
        window = f"a window of {self.context_length:,} tokens for {file.path}"
        if self.context_length > table.rows:
            raise ContextOverflow(
                f"{window}, whose table of learned positions ends after {table.rows:,}",
                "`pigguf convert --context N` resamples the table; or take a shorter window",
            )
        raise UsageError(
            f"{window}, whose table of learned positions has {table.rows:,}",
            "a shorter context needs no override",
        )

    def _scaling_keys(self, file: GGUFFile, own: RopeScaling, factor: float) -> dict[str, TypedValue]:
        prefix = f"{file.architecture}.rope.scaling"
        if self.scaling_type is None and own.rope_type not in ("none", "linear"):
            raise UsageError(
                f"{file.path} scales its positions by {own.rope_type}; a linear factor cannot replace that",
                "leave `rope.factor` out, and the file's own scaling stays in force",
            )
        # These keys would stay in force under any other type.
        remaining = [f"{prefix}.{name}" for name in own.parameters]
        if self.scaling_type is not None and (own.rope_type == "longrope" or remaining):
            raise UsageError(
                f"{file.path}: its {own.rope_type} scaling ({', '.join(remaining) or 'tables of factors'}) "
                f"cannot be replaced by {self.scaling_type}",
                "only linear and plain YaRN scaling can be replaced",
            )
        keys = {f"{prefix}.type": string(self.scaling_type or "linear"), f"{prefix}.factor": f32(factor)}
        if self.scaling_type == "yarn":  # without it, it would be the overridden context length
            keys[f"{prefix}.original_context_length"] = u32(own.original_context)
        return keys
