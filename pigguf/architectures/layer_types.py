"""Which layers have sliding window attention: layer_types of config.json <-> GGUF keys.

Where the graph has no sliding window, the window must hold the whole context.
"""

from __future__ import annotations

from typing import Any

from pigguf.architectures.family import NOT_COMPUTED_HINT, Family
from pigguf.architectures.hparams import HParams
from pigguf.common.json_config import JsonConfig, format_json_value
from pigguf.errors import UnsupportedModel
from pigguf.gguf_io.metadata import TypedValue, array, u32
from pigguf.llama_cpp_internals.sliding_window import PATTERN_KEY, WINDOW_KEY, sliding_layers

FULL_ATTENTION, SLIDING_ATTENTION = "full_attention", "sliding_attention"  # values in layer_types


def sliding_window_keys(
    family: Family, keys: JsonConfig, layers: int, context_length: int
) -> dict[str, TypedValue]:
    """Read the sliding window from a config, as GGUF keys without the architecture's prefix.

    Args:
        family: the family.
        keys: the language model's config.
        layers: the number of layers.
        context_length: the context length that will be written.

    Raises:
        CheckpointError: layer_types does not have an entry for each layer.
        UnsupportedModel: the graph has no sliding window, and the config's is shorter than the context.
    """
    window = family.read_sliding_window(keys)
    if window is None:
        _read_layer_types(family, keys, layers, (FULL_ATTENTION,))
        return {}
    layer_types = _read_layer_types(family, keys, layers, (FULL_ATTENTION, SLIDING_ATTENTION))
    if family.sliding_window_pattern:
        slides = tuple(layer_type == SLIDING_ATTENTION for layer_type in layer_types)
        default = sliding_layers(family.sliding_window_pattern, layers)
        pattern = {} if slides == default else {PATTERN_KEY: array("bool", slides)}
        return {WINDOW_KEY: u32(window), **pattern}
    if window < context_length:
        raise UnsupportedModel(
            f"config.json: sliding_window = {window} is below the context length {context_length}, and "
            f"llama.cpp's {family.architecture} graph always attends to the whole context",
            f"`rope.context={window}` converts the model for contexts in which both are the same",
        )
    return {}


def layer_types_config(family: Family, hparams: HParams) -> dict[str, Any]:
    """Return the config.json keys of the sliding window, for an export."""
    window, pattern = hparams.extra_keys.get(WINDOW_KEY), hparams.extra_keys.get(PATTERN_KEY)
    if window is None:
        return {}
    default = sliding_layers(family.sliding_window_pattern, hparams.layers)
    slides = default if pattern is None else pattern.value
    layer_types = [SLIDING_ATTENTION if each else FULL_ATTENTION for each in slides]
    return {"sliding_window": window.value, "layer_types": layer_types}


def _read_layer_types(
    family: Family, keys: JsonConfig, layers: int, allowed: tuple[str, ...]
) -> tuple[str, ...]:
    """Return layer_types, or what sliding_window_pattern or the family's default stands for."""
    layer_types = keys.values.get("layer_types")
    if layer_types is None:
        pattern = family.sliding_window_pattern
        pattern = keys.optional("sliding_window_pattern", int, pattern) if pattern else 0
        return tuple(
            SLIDING_ATTENTION if slides else FULL_ATTENTION for slides in sliding_layers(pattern, layers)
        )
    for layer_type in layer_types:
        if layer_type not in allowed:
            raise UnsupportedModel(
                f"{keys.file}: {keys.prefix}layer_types has {format_json_value(layer_type)}, "
                f"not {allowed[0]}",
                NOT_COMPUTED_HINT,
            )
    if len(layer_types) != layers:
        raise keys.invalid_value("layer_types", f"a list of {layers}, one for each layer")
    return tuple(layer_types)
