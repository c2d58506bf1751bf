"""A tiny model that can be talked to: bytes for tokens, random weights, so that prompts are counted exactly
and answers say nothing."""

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
    """A tiny Llama with a chat template and a window of so many tokens, each a byte of text."""
    return write_tiny(
        path, {"tokenizer.chat_template": string(TEMPLATE), "llama.context_length": u32(window)}
    )


def write_next_token_model(
    path: Path, template: str, steps: dict[str, str], control: tuple[str, ...] = ()
) -> Path:
    """A tiny model whose likeliest token after each of these is the one beside it, and everything else is
    as likely as anything: it answers what a test wants.

    Args:
        steps: bytes, or texts that become tokens of their own, as control tokens where `control` names them.
    """
    known = (*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581")
    own = [text for text in dict.fromkeys((*steps, *steps.values())) if len(text) > 1]
    own += ["\u2581" * (2 + index) for index in range(VOCABULARY - len(known) - len(own))]
    kinds = [*TOKEN_TYPES[: len(known)], *(3 if text in control else 4 for text in own)]

    random = np.random.default_rng(0)
    shapes = {name: shape for name, shape in SHAPES.items() if len(shape) > 1}
    values = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}  # layers that do nothing
    values |= {name: np.ones(shape, np.float32) for name, shape in SHAPES.items() if name not in shapes}
    tokens = values["token_embd.weight"] = random.standard_normal((VOCABULARY, WIDTH)).astype(np.float32)
    for before, after in steps.items():
        values["output.weight"][_number(after, known, own)] += tokens[_number(before, known, own)]
    metadata = {
        **METADATA,
        "tokenizer.chat_template": string(template),
        "llama.context_length": u32(4096),
        "tokenizer.ggml.tokens": array("str", (*known, *own)),
        "tokenizer.ggml.token_type": array("i32", tuple(kinds)),
    }
    write_gguf(path, metadata, [_planned(name, value) for name, value in values.items()])
    return path


def _number(text: str, known: tuple[str, ...], own: list[str]) -> int:
    return len(known) + own.index(text) if len(text) > 1 else FIRST_BYTE + ord(text)


def _planned(name: str, values: NDArray[np.float32]) -> PlannedTensor:
    rows = values if values.ndim > 1 else values[:, None]
    return PlannedTensor(name, values.shape, TensorType.F32, [(0, len(rows))], lambda a, b: rows[a:b])
