"""Positions that are no rotation: a table of learned positions, and distances (ALiBi).

A learned table has a row for each position of the window the model was trained at. Position
Interpolation reads position m of the longer window as m (L - 1) / (L' - 1), both ends on each other
(align-corners, as vision transformers resize theirs), so that the table gets L' rows, each between two
of the old ones (arXiv 2306.15595, Section 4, where the paper expects it to work). With ALiBi (arXiv
2108.12409) a distance lowers attention by itself: there is no position to scale, and no last one.

Left out: resampling the rows (architectures/tensor_mapping.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pigguf.common.config import MAX_COUNT, Config
from pigguf.errors import CheckpointError, GGUFError, RopeConflict
from pigguf.gguf_io.metadata import ANOTHER_MAKE, Metadata, Typed, need, u32
from pigguf.rope.evidence import RopeOverrides
from pigguf.rope.scaling import COMMAND_LINE, DEFAULT_BASE, Evidence, RopeScaling

WINDOW = "max_position_embeddings"
INTERPOLATIONS = ("linear", "nearest", "none")


@dataclass(frozen=True)
class LearnedPositions(RopeScaling):
    """A table of learned positions; `factor` is by how much its rows were made more.

    Attributes:
        interpolation: "linear": a row lies between two of the original ones; "nearest": it is the nearer
            one; "none": the first rows are kept as they are, which can only make a window shorter.
    """

    interpolation: str = "linear"

    def to_gguf(self, architecture: str) -> dict[str, Typed]:
        return {f"{architecture}.context_length": u32(self.context_length)}

    def to_config(self) -> dict[str, Any]:
        return {WINDOW: self.context_length}

    def explain(self) -> str:
        rows = f"positions are rows of a learned table, 0 to {self.context_length - 1}"
        if self.context_length == self.original_context:
            return rows
        if self.interpolation == "none":
            return f"{rows}, the first of {self.original_context}"
        return f"{rows}, resampled ({self.interpolation}) from {self.original_context}"

    def sources(self) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """For each row of the resampled table the original row below it, and the part of the next one."""
        rows = np.arange(self.context_length, dtype=np.int64)
        if self.interpolation == "none" or self.context_length == self.original_context:
            return rows, np.zeros(len(rows))
        places = rows * ((self.original_context - 1) / max(1, self.context_length - 1))
        if self.interpolation == "nearest":
            return np.floor(places + 0.5).astype(np.int64), np.zeros(len(rows))
        below = np.minimum(np.floor(places).astype(np.int64), max(0, self.original_context - 2))
        return below, places - below


@dataclass(frozen=True)
class AlibiPositions(RopeScaling):
    """Attention that distances lower; there is nothing to scale."""

    def to_gguf(self, architecture: str) -> dict[str, Typed]:
        return {f"{architecture}.context_length": u32(self.context_length)}

    def to_config(self) -> dict[str, Any]:
        return {WINDOW: self.context_length}

    def explain(self) -> str:
        return f"distances lower attention (ALiBi), up to {self.context_length} tokens: nothing is scaled"


def read_learned(config: Mapping[str, Any], overrides: RopeOverrides) -> LearnedPositions:
    """The window of a model with learned positions, longer or shorter where the user says so.

    Args:
        config: config.json, with the number of the table's rows as max_position_embeddings.
        overrides: the user's numbers: a context length, or a factor of the original one.

    Raises:
        CheckpointError: the config gives no window.
        RopeConflict: numbers that contradict each other.
    """
    original, evidence = _window(config)
    context, interpolation = original, overrides.interpolation or "linear"
    given = []
    if overrides.original_context not in (None, original):
        raise RopeConflict(
            f"--original-context {overrides.original_context} contradicts {evidence}, the rows of the table",
            "leave it out: the table itself says how long the original window is",
        )
    if overrides.factor is not None:
        context = _whole(original * overrides.factor, f"--rope-factor {overrides.factor}")
        given.append(Evidence(COMMAND_LINE, "--rope-factor", overrides.factor, "the user's word"))
    if overrides.context is not None:
        if overrides.factor is not None and overrides.context != context:
            raise RopeConflict(
                f"--context {overrides.context} is not {original} x --rope-factor {overrides.factor:g}",
                "give one of the two",
            )
        context = _whole(overrides.context, f"--context {overrides.context}")
        given.append(Evidence(COMMAND_LINE, "--context", overrides.context, "the user's word"))
    if interpolation == "none" and context > original:
        raise RopeConflict(
            f"--interpolation none leaves the table its {original} rows, and {context} positions need more",
            "give --interpolation linear or nearest, or a shorter --context",
        )
    how = f"resampled ({interpolation}) from {original} rows to {context}"
    why = "kept as it is" if context == original else how
    return LearnedPositions(
        rope_type="learned",
        factor=context / original,
        rope_theta=DEFAULT_BASE,
        original_context=original,
        context_length=context,
        evidence=(evidence, *given),
        decisions=(f"the table of learned positions is {why}: {evidence}",),
        interpolation=interpolation,
    )


def read_alibi(config: Mapping[str, Any], overrides: RopeOverrides) -> AlibiPositions:
    """The window of a model with ALiBi, which --context may set.

    Raises:
        CheckpointError: nothing gives a window.
        RopeConflict: a factor, which such a model has not.
    """
    for flag, value in (
        ("--rope-factor", overrides.factor),
        ("--original-context", overrides.original_context),
    ):
        if value not in (None, 1):
            raise RopeConflict(
                f"{flag} {value:g}: a model with ALiBi has no positions to scale",
                "--context N sets the window; what is far away fades by itself",
            )
    if overrides.context is not None:
        evidence = Evidence(COMMAND_LINE, "--context", overrides.context, "the user's word")
        context = _whole(overrides.context, f"--context {overrides.context}")
    else:
        context, evidence = _window(config)
    return AlibiPositions(
        rope_type="alibi",
        factor=1.0,
        rope_theta=DEFAULT_BASE,
        original_context=context,
        context_length=context,
        evidence=(evidence,),
        decisions=(f"positions are distances (ALiBi), and the context length is {context}: {evidence}",),
    )


# The graphs of llama.cpp (src/models/) that rotate nothing, and what their positions are.
UNROTATED: Mapping[str, tuple[str, type[RopeScaling]]] = {
    "gpt2": ("learned", LearnedPositions),
    "starcoder": ("learned", LearnedPositions),
    "bloom": ("alibi", AlibiPositions),
    "mpt": ("alibi", AlibiPositions),
}
# Graphs that rotate, but not in models of so many layers, which have ALiBi (src/models/baichuan.cpp).
ALIBI_BY_LAYERS: Mapping[str, int] = {"baichuan": 40}


def unrotated_from_metadata(metadata: Metadata, architecture: str) -> RopeScaling | None:
    """What a GGUF says of positions that are no rotation; None where they are one.

    Raises:
        GGUFError: it gives no window.
    """
    if architecture in UNROTATED:
        kind, positions = UNROTATED[architecture]
    elif architecture in ALIBI_BY_LAYERS and (
        need(metadata, f"{architecture}.block_count", int) == ALIBI_BY_LAYERS[architecture]
    ):
        kind, positions = "alibi", AlibiPositions
    else:
        return None
    context = _gguf_window(metadata, architecture)
    return positions(kind, 1.0, DEFAULT_BASE, context, context)


def _gguf_window(metadata: Metadata, architecture: str) -> int:
    context = need(metadata, f"{architecture}.context_length", int)
    if context < 1:
        raise GGUFError(f"metadata key {architecture}.context_length is {context}", ANOTHER_MAKE)
    return context


def _window(config: Mapping[str, Any]) -> tuple[int, Evidence]:
    keys = Config(config)
    if WINDOW not in keys:
        raise CheckpointError(f"config.json lacks {WINDOW}", "give the window with --context N")
    return keys.require(WINDOW, int), Evidence("config.json", WINDOW, config[WINDOW], "the window")


def _whole(context: float, said: str) -> int:
    if not 1 <= context <= MAX_COUNT or context != int(context):
        raise RopeConflict(f"{said} makes a window of {context:g} tokens", "give whole numbers above 0")
    return int(context)
