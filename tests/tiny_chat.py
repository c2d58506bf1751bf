"""A tiny model that can be talked to: bytes for tokens, random weights, so that prompts are counted exactly
and answers say nothing."""

from __future__ import annotations

from pathlib import Path

from engine.tiny_gguf import write_tiny

from pigguf.metadata import string, u32

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def write_chatting(path: Path, window: int) -> Path:
    """A tiny Llama with a chat template and a window of so many tokens, each a byte of text."""
    return write_tiny(
        path, {"tokenizer.chat_template": string(TEMPLATE), "llama.context_length": u32(window)}
    )
