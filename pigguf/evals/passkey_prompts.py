"""Ways to hide a number in a text and to ask for it: data, one entry a wording.

A prompt is the header, filler, the sentence with the number, filler, and the question, a line each. A
name with "-chat" behind it puts the text into the model's chat template as the user's message, with the
question alone at its end; the answer is then the assistant's.
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
    """The words of a passkey test.

    Attributes:
        header: what the text begins with.
        filler: sentences that say nothing, repeated in this order.
        passkey: the sentence with the number, which is written {key}.
        question: what is asked.
        answer: how the answer begins, where the model continues a text.
    """

    header: str
    filler: tuple[str, ...]
    passkey: str
    question: str
    answer: str


WORDINGS: dict[str, PasskeyWording] = {
    # arXiv 2306.15595, Section 3.3, which takes it from Mohtashami and Jaggi (arXiv 2305.16300)
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
    # Ours; no model of this project is trained on it.
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
    """The prompts of one wording as tokens of one model.

    Args:
        name: of NAMES.

    Attributes:
        wording: its words.
        answer_tokens: most tokens in which the number is looked for.

    Raises:
        UsageError: no such wording.
        TokenizerError: a chat wording for a model without a chat template.
    """

    def __init__(self, model: Model, name: str) -> None:
        if name not in WORDING_NAMES:
            raise UsageError(f"there is no wording {name!r}", f"one of {', '.join(WORDING_NAMES)}")
        chat = name.endswith(CHAT_SUFFIX)
        self.wording = WORDINGS[name.removesuffix(CHAT_SUFFIX)]
        self.max_answer_tokens = 32 if chat else 8  # an assistant may answer with a sentence
        self._tokens = prompt_encoder(model, chat=chat)
        words = self.wording
        self._question = words.question if chat else f"{words.question} {words.answer}"

    def encode(self, key: str, before: int, after: int) -> list[int]:
        """The prompt with so many sentences of filler before and after the number."""
        filler = self.wording.filler
        lines = (
            self.wording.header,
            " ".join(islice(cycle(filler), before)),
            self.wording.passkey.format(key=key),
            " ".join(islice(cycle(filler), after)),
            self._question,
        )
        return self._tokens("\n".join(line for line in lines if line))
