"""What a model's name implies about its positions, if its keys do not state it.

Names are weak evidence: a fix that rests on one always has a condition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TypeVar

from pigguf.gguf_io.metadata import get_array
from pigguf.operations.lint.position_keys import FREQ_BASE, PositionKeys
from pigguf.rope import Evidence
from pigguf.rope.known_models import KNOWN_MODELS

Number = TypeVar("Number", int, float)

# Keys that state the model's own name or that of its source.
_NAME_KEYS = re.compile(
    r"general\.(name|basename|finetune|source\.(url|repo_url|huggingface\.repository)"
    r"|base_model\.\d+\.(name|repo_url))$"
)
# A context length in a name, "vicuna-13b-v1.5-16k": sizes of extended windows, not of data sets.
_CONTEXT_IN_NAME = re.compile(r"(?<![a-z0-9.])(8|16|32|64|128|256|512)k(?![a-z0-9])", re.IGNORECASE)
_MIN_EXTENSION = 1.5  # a name's context length divided by the file's, to count as a lost extension

# Regular expressions of names -> the original context length and the rope theta of those models, by their own
# config.json. The configs state the scaling too, which is why rope/known_models.json does not list them: here
# it was lost in a conversion.
_ORIGINAL_CONTEXT: dict[str, int] = {
    r"longchat-\d+b-16k": 2048,
    r"(longchat|vicuna)-\d+b-v1\.5|llama-2-7b-32k|llongma-2|giraffe-v2": 4096,
}
_ROPE_THETA: dict[str, float] = {
    r"code-?llama(?!.*70b)": 1e6,  # the 70B was trained at 4096 tokens with 10000
    r"deepseek-coder-(1\.3|5\.7|6\.7|33)b": 1e5,
    r"llama-?3(?!\d)": 5e5,
    r"qwen2(\.5)?-|mixtral": 1e6,
}
_LLAMA3_VOCAB_SIZE = 128256


def model_names(keys: PositionKeys) -> list[Evidence]:
    """Return the names of the model, by its keys and by its file."""
    stated = [
        Evidence("GGUF", key, typed.value, "a name")
        for key, typed in keys.file.metadata.items()
        if typed.type == "str" and not typed.is_array and _NAME_KEYS.match(key)
    ]
    return [*stated, Evidence("file", "name", keys.file.path.name, "a name")]


def context_lengths_in_names(keys: PositionKeys) -> Iterator[tuple[Evidence, int]]:
    """Yield each name that contains a context length ("16k"), with that length in tokens."""
    for name in model_names(keys):
        for match in _CONTEXT_IN_NAME.finditer(str(name.value)):
            yield name, int(match[1]) * 1024


def factor_from_name(keys: PositionKeys, context_length: int) -> tuple[Evidence, float] | None:
    """Return a name that states or implies an extended window, with the factor it implies, or None.

    Args:
        keys: The file's position keys.
        context_length: The file's own context length, in tokens.
    """
    config = {"max_position_embeddings": context_length, "rope_theta": keys.positive(FREQ_BASE)}
    for name in model_names(keys):
        for family in KNOWN_MODELS:
            if family.rope_scaling.get("rope_type") == "linear" and family.matches(str(name.value), config):
                return name, float(family.rope_scaling["factor"])
    trained = _look_up(keys, _ORIGINAL_CONTEXT)
    for name, extended in context_lengths_in_names(keys):
        if trained is not None and context_length in (trained[1], extended) and extended > trained[1]:
            return name, extended / trained[1]
        if extended / context_length >= _MIN_EXTENSION:
            return name, extended / context_length
    return None


def rope_theta_from_name(keys: PositionKeys) -> tuple[Evidence, float] | None:
    """Return what identifies a model with a rope theta other than 10000, with that theta, or None."""
    tokens = get_array(keys.file.metadata, "tokenizer.ggml.tokens")
    if keys.architecture == "llama" and tokens is not None and len(tokens) == _LLAMA3_VOCAB_SIZE:
        return Evidence("GGUF", "tokenizer.ggml.tokens", len(tokens), "Llama 3's own vocabulary"), 5e5
    return _look_up(keys, _ROPE_THETA)


def _look_up(keys: PositionKeys, table: Mapping[str, Number]) -> tuple[Evidence, Number] | None:
    """Return the first name that matches an expression of the table, with the table's number for it."""
    for name in model_names(keys):
        for pattern, number in table.items():
            if re.search(pattern, str(name.value), re.IGNORECASE):
                return name, number
    return None
