"""Prompts of evaluations as token ids: plain text to continue, or a user message in the chat template."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pigguf.chat.prompt_format import ChatFormat
from pigguf.inference.engine import Model


def prompt_encoder(model: Model, *, chat: bool) -> Callable[[str], list[int]]:
    """Return the function that encodes a prompt: as plain text, or with `chat` in the model's chat template.

    Raises:
        TokenizerError: if the model has no chat template, or one that is not supported.
    """
    if not chat:
        return partial(encode_prompt, model)
    chat_format = ChatFormat(model)
    return lambda text: chat_format.tokenize([{"role": "user", "content": text}])


def encode_prompt(model: Model, text: str) -> list[int]:
    """Return the token ids of a text to continue: with BOS if the model adds one, and never with EOS.

    The text of a special token inside the prompt is encoded as plain text.
    """
    bos = [token for token in model.tokenize("")[:1] if token == model.bos]
    return bos + model.tokenize(text, add_special=False)
