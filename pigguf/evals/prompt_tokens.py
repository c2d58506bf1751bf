"""A prompt as tokens: a text that the model is to go on with, or a message that it is to answer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pigguf.chat.prompt_format import ChatFormat
from pigguf.inference.engine import Model


def prompt_encoder(model: Model, *, chat: bool) -> Callable[[str], list[int]]:
    """What makes tokens of a prompt; with `chat`, as the user's message in the model's chat template.

    Raises:
        TokenizerError: the model has no chat template, or one that is not understood.
    """
    if not chat:
        return partial(encode_prompt, model)
    chat_format = ChatFormat(model)
    return lambda text: chat_format.tokenize([{"role": "user", "content": text}])


def encode_prompt(model: Model, text: str) -> list[int]:
    """The text's tokens behind BOS, where the model wants one, and without the EOS that some put at its end.

    A special token's name in the text is plain text.
    """
    bos = [token for token in model.tokenize("")[:1] if token == model.bos]
    return bos + model.tokenize(text, add_special=False)
