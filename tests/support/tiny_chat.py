"""Tiny chat models: a token is a byte, so that prompts can be counted; their answers are meaningless."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from support.tiny_gguf import (
    FIRST_BYTE,
    METADATA,
    SHAPES,
    SPECIAL,
    TOKEN_TYPES,
    VOCABULARY,
    WIDTH,
    write_tiny,
)

from pigguf.gguf_io import PlannedTensor, TensorType, write_gguf
from pigguf.gguf_io.metadata import array, string, u32

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_chat_model(path: Path, window: int) -> Path:
    """Write a tiny Llama with random weights, a chat template, and a context window of `window` tokens."""
    return write_tiny(
        path, {"tokenizer.chat_template": string(TEMPLATE), "llama.context_length": u32(window)}
    )


def write_next_token_model(
    path: Path, template: str, steps: dict[str, str], control: tuple[str, ...] = ()
) -> Path:
    """Write a tiny model that generates what a test wants.

    Args:
        steps: text -> the most likely next text. Each is a byte, or becomes a token of its own.
        control: those of them that become control tokens.
    """
    base_texts = (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581")
    own_texts = [text for text in dict.fromkeys((*steps, *steps.values())) if len(text) > 1]
    own_texts += ["\u2581" * (2 + index) for index in range(VOCABULARY - len(base_texts) - len(own_texts))]
    token_types = [*TOKEN_TYPES[: len(base_texts)], *(3 if text in control else 4 for text in own_texts)]

    random = np.random.default_rng(0)
    shapes = {name: shape for name, shape in SHAPES.items() if len(shape) > 1}
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}  # layers that do nothing
    values |= {name: np.ones(shape, np.float32) for name, shape in SHAPES.items() if name not in shapes}
    tokens = values["token_embd.weight"] = random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    for before, after in steps.items():
        next_token = _token_id(after, base_texts, own_texts)
        values["output.weight"][next_token] += tokens[_token_id(before, base_texts, own_texts)]
    metadata = {
        **METADATA,
        "tokenizer.chat_template": string(template),
        "llama.context_length": u32(4096),
        "tokenizer.ggml.tokens": array("str", (*base_texts, *own_texts)),
        "tokenizer.ggml.token_type": array("i32", tuple(token_types)),
    }
    write_gguf(path, metadata, [_planned_tensor(name, value) for name, value in values.items()])
    return path


def _token_id(text: str, base_texts: tuple[str, ...], own_texts: list[str]) -> int:
    return len(base_texts) + own_texts.index(text) if len(text) > 1 else FIRST_BYTE + ord(text)


def _planned_tensor(name: str, values: NDArray[np.float32]) -> PlannedTensor:
    rows = values if values.ndim > 1 else values[:, None]
    return PlannedTensor(name, values.shape, TensorType.F32, [(0, len(rows))], lambda a, b: rows[a:b])
