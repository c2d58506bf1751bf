"""Prompts of the passkey test, to the letter."""

from __future__ import annotations

import re

from pigguf.chat.prompt_format import ChatFormat
from pigguf.evals.passkey_prompts import WORDINGS, PasskeyPrompts
from pigguf.inference.engine import Model


def test_the_prompt_is_that_of_the_paper(vocabulary: Model) -> None:
    tokens = PasskeyPrompts(vocabulary, "paper").encode("12345", 5, 7)
    assert vocabulary.detokenize(tokens) == (
        "There is an important info hidden inside a lot of irrelevant text. Find it and memorize them. "
        "I will quiz you about the important information there.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
        "The pass key is 12345. Remember it. 12345 is the pass key.\n"
        "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
        "The grass is green. The sky is blue.\n"
        "What is the pass key? The pass key is"
    )


def test_filler_may_be_absent(vocabulary: Model) -> None:
    text = vocabulary.detokenize(PasskeyPrompts(vocabulary, "paper").encode("12345", 0, 0))
    assert "there.\nThe pass key is 12345." in text
    assert "the pass key.\nWhat is the pass key?" in text


def test_a_chat_wording_asks_as_the_user_and_leaves_the_answer_to_the_assistant(vocabulary: Model) -> None:
    tokens = PasskeyPrompts(vocabulary, "paper-chat").encode("12345", 1, 1)
    text = (
        f"{WORDINGS['paper'].header}\nThe grass is green.\nThe pass key is 12345. Remember it. "
        "12345 is the pass key.\nThe grass is green.\nWhat is the pass key?"
    )
    assert tokens == ChatFormat(vocabulary).tokenize([{"role": "user", "content": text}])


def test_the_held_out_wording_shares_no_sentence_with_the_papers() -> None:
    def sentences(name: str) -> set[str]:
        words = WORDINGS[name]
        text = " ".join((words.header, *words.filler, words.passkey, words.question, words.answer))
        return set(re.split(r"(?<=[.?:]) ", text))

    assert not sentences("paper") & sentences("locker")
