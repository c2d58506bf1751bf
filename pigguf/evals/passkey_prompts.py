"""Prompts of the passkey test: the wordings as data, and their encoding by a model's tokenizer.

A prompt is the header, filler, the sentence with the passkey, filler, and the question, each on a line. A
wording whose name ends in "-chat" is sent as a user message in the model's chat template, with only the
question at its end; the answer is then the assistant's.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice

from pigguf.errors import UsageError
from pigguf.evals.prompt_tokens import prompt_encoder
from pigguf.inference.engine import Model

CHAT_SUFFIX = "-chat"


@dataclass(frozen=True)
class PasskeyWording:
    """The texts of a passkey test. Its attributes are JSON keys of a report.

    Attributes:
        header: the beginning of the prompt.
        filler: irrelevant sentences, repeated in this order.
        passkey: the sentence with the passkey, which stands for {key}.
        question: the question.
        answer: the beginning of the answer, for a model that continues the text.
    """

    header: str
    filler: tuple[str, ...]
    passkey: str
    question: str
    answer: str


WORDINGS: dict[str, PasskeyWording] = {
    # arXiv 2306.15595, Section 3.3, which has it from Mohtashami and Jaggi (arXiv 2305.16300)
    "paper": PasskeyWording(
        header="There is an important info hidden inside a lot of irrelevant text. "
        "Find it and memorize them. I will quiz you about the important information there.",
        filler=(
            "The grass is green.",
            "The sky is blue.",
            "The sun is yellow.",
            "Here we go.",
            "There and back again.",
        ),
        passkey="The pass key is {key}. Remember it. {key} is the pass key.",
        question="What is the pass key?",
        answer="The pass key is",
    ),
    # Held out: no model of this project is trained on it.
    "locker": PasskeyWording(
        header="These notes say somewhere which combination opens a locker, a number of five digits. "
        "Look out for it; at the end it is asked for.",
        filler=(
            "The river runs past the old mill.",
            "Two boats lie at the pier.",
            "A bell rings at noon.",
            "The baker closes his shop.",
            "Then the street is quiet.",
        ),
        passkey="The locker opens with the number {key}. Write it down: {key} opens the locker.",
        question="With which number does the locker open?",
        answer="The locker opens with",
    ),
}
WORDING_NAMES = (*WORDINGS, *(name + CHAT_SUFFIX for name in WORDINGS))


class PasskeyPrompts:
    """Builds the prompts of one wording as token ids of one model.

    Args:
        model: the model, or its vocabulary alone.
        name: one of WORDING_NAMES.

    Attributes:
        wording: the texts.
        max_answer_tokens: the most tokens to generate for an answer.

    Raises:
        UsageError: if there is no wording of this name.
        TokenizerError: if it is a chat wording and the model has no chat template.
    """

    def __init__(self, model: Model, name: str) -> None:
        if name not in WORDING_NAMES:
            raise UsageError(f"unknown wording {name!r}", f"use one of {', '.join(WORDING_NAMES)}")
        chat = name.endswith(CHAT_SUFFIX)
        self.wording = WORDINGS[name.removesuffix(CHAT_SUFFIX)]
        self.max_answer_tokens = 32 if chat else 8  # an assistant may answer with a whole sentence
        self._encode = prompt_encoder(model, chat=chat)
        wording = self.wording
        self._question = wording.question if chat else f"{wording.question} {wording.answer}"

    def encode(self, key: str, sentences_before: int, sentences_after: int) -> list[int]:
        """Return the token ids of a prompt.

        Args:
            key: the passkey.
            sentences_before: the number of filler sentences before the passkey.
            sentences_after: the number of filler sentences between the passkey and the question.
        """
        filler = self.wording.filler
        lines = (
            self.wording.header,
            " ".join(islice(cycle(filler), sentences_before)),
            self.wording.passkey.format(key=key),
            " ".join(islice(cycle(filler), sentences_after)),
            self._question,
        )
        return self._encode("\n".join(line for line in lines if line))
