"""From GGUF: what a file's keys and small tensors say of positions, as llama.cpp reads them.

Source: llama.cpp src/llama-model.cpp (load_hparams) and src/llama-hparams.h for what absent keys mean.
Left out: whether that is what the model was trained with (operations/lint.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pigguf.errors import GGUFError
from pigguf.gguf_io.metadata import ANOTHER_MAKE, Kind, Metadata
from pigguf.llama_cpp_internals.rope_keys import UNSCALED_SLIDING
from pigguf.rope.frequencies import FREQUENCIES, LLAMA3_BANDS, LONG, SHORT, Divisors, llama3_from_divisors
from pigguf.rope.scaling import DEFAULT_BASE, GGUF_KINDS, NEUTRAL, Evidence, RopeScaling
from pigguf.rope.unrotated import unrotated_from_metadata


def rope_from_metadata(
    metadata: Metadata, architecture: str, tensors: Mapping[str, Divisors] | None = None
) -> RopeScaling:
    """What a GGUF says of positions, as llama.cpp reads it (src/llama-model.cpp, load_hparams).

    Absent keys: base 10000, type linear, factor 1 (or the legacy scale_linear), original context =
    context length. A GGUF made before a factor was thought of may claim the original window as its
    context length; that is told as it stands (see RopeScaling.windows_agree).

    Args:
        metadata: the file's keys.
        architecture: general.architecture.
        tensors: the values of POSITION_TENSORS, as far as the file has them. Without them a Llama 3 looks
            unscaled, and LongRoPE has no lists.

    Raises:
        GGUFError: a key is missing, of a type llama.cpp does not take, or names a scaling on which
            llama.cpp aborts.
    """
    unrotated = unrotated_from_metadata(metadata, architecture)
    if unrotated is not None:
        return unrotated
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
    stated = read(f"{prefix}.scaling.original_context_length", "u32") or None
    original = stated or context
    parameters = _other_parameters(metadata, f"{prefix}.scaling.")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        kind, factor, original = "none", 1.0, context
    divisors = tensors or {}
    if kind == "longrope" or (kind == "none" and divisors.keys() & {SHORT, LONG}):  # Phi-3's needs no type
        kind, original = "longrope", stated or context
        for name, tensor in (("short_factor", SHORT), ("long_factor", LONG)):
            if tensor in divisors:
                parameters[name] = tuple(float(value) for value in divisors[tensor])
    elif FREQUENCIES in divisors:
        found = llama3_from_divisors(divisors[FREQUENCIES], base, stated) if kind == "none" else None
        if found is None:
            parameters["rope_freqs"] = tuple(float(value) for value in divisors[FREQUENCIES])
        else:
            kind, (factor, original) = "llama3", found
            parameters |= LLAMA3_BANDS
    local = read(f"{architecture}.rope.freq_base_swa", "f32")
    if local is None and metadata.get(f"{architecture}.attention.sliding_window") is not None:
        local = UNSCALED_SLIDING.get(architecture)
    return RopeScaling(
        rope_type=kind,
        factor=factor,
        rope_theta=base,
        original_context=original,
        context_length=context,
        parameters=parameters,
        evidence=tuple(evidence),
        local_rope_theta=None if kind == "none" and local == base else local,
    )


def _other_parameters(metadata: Metadata, prefix: str) -> dict[str, Any]:
    """Scaling keys beyond the common ones that change the rotation or the attention."""
    common = {"type", "factor", "original_context_length", "finetuned"}
    values = {
        key.removeprefix(prefix): typed.value for key, typed in metadata.items() if key.startswith(prefix)
    }
    return {
        name: value for name, value in values.items() if name not in common and value != NEUTRAL.get(name)
    }
