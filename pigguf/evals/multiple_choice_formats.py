"""Questions with answers to choose from, as data sets write them: one entry of FORMS a form.

A record's keys tell its form; one file can mix forms. The words of the prompts are those of
lm-evaluation-harness (lm_eval/tasks/super_glue/boolq, piqa, race, winogrande), but for RACE: there a record
is one question, asked with the words that the harness has for the questions before an article's last.
Left out: examples in the prompt, and choices by letter.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pigguf.errors import TextError
from pigguf.evals.jsonl_datasets import JsonlRecord


@dataclass(frozen=True)
class MultipleChoiceQuestion:
    """A question as texts.

    Attributes:
        record: where it was read.
        form: its name in FORMS.
        choices: (context, continuation), a space to be put between them.
        answer: index of the right one.
    """

    record: JsonlRecord
    format_name: str
    choices: tuple[tuple[str, str], ...]
    answer: int


_Choices = tuple[Sequence[tuple[str, str]], int]  # contexts and continuations, and the right one's index


def _boolq(record: JsonlRecord) -> _Choices:
    question = record.get_text("question").strip().removesuffix("?")
    context = f"{record.get_text('passage')}\nQuestion: {question}?\nAnswer:"
    return [(context, "no"), (context, "yes")], int(record.get("answer", bool))


def _piqa(record: JsonlRecord) -> _Choices:
    context = f"Question: {record.get_text('goal')}\nAnswer:"
    return [(context, record.get_text(key)) for key in ("sol1", "sol2")], _one_of(record, "label", [0, 1])


def _race(record: JsonlRecord) -> _Choices:
    context = f"Article: {record.get_text('article')}\n\nQuestion: {record.get_text('question')}\nAnswer:"
    options = _texts(record, "options")
    letters = string.ascii_uppercase[: len(options)]
    return [(context, option) for option in options], _one_of(record, "answer", list(letters))


def _winogrande(record: JsonlRecord) -> _Choices:
    before, blank, after = record.get_text("sentence").partition("_")
    if not blank or not after.strip():
        raise record.value_error("sentence", "a sentence with a _ before its end")
    options = [record.get_text(key) for key in ("option1", "option2")]
    return [(before + option, after.strip()) for option in options], _one_of(record, "answer", ["1", "2"])


def _general(record: JsonlRecord) -> _Choices:
    context, choices = record.get("context", str).rstrip(), _texts(record, "choices")
    return [(context, choice) for choice in choices], _one_of(record, "label", list(range(len(choices))))


# name -> the keys that a record of this form has, and how it is read
QUESTION_FORMATS: dict[str, tuple[frozenset[str], Callable[[JsonlRecord], _Choices]]] = {
    "BoolQ": (frozenset({"question", "passage", "answer"}), _boolq),
    "PIQA": (frozenset({"goal", "sol1", "sol2", "label"}), _piqa),
    "RACE": (frozenset({"article", "question", "options", "answer"}), _race),
    "WinoGrande": (frozenset({"sentence", "option1", "option2", "answer"}), _winogrande),
    "choices": (frozenset({"context", "choices", "label"}), _general),
}


def parse_question(record: JsonlRecord) -> MultipleChoiceQuestion:
    """A record as a question; its keys tell its form, further ones are left alone.

    Raises:
        TextError: keys of no form, or a value that is not what its key wants.
    """
    form = next((name for name, (keys, _) in QUESTION_FORMATS.items() if keys <= record.values.keys()), None)
    if form is None:
        known = "; ".join(f"{name}: {', '.join(sorted(keys))}" for name, (keys, _) in QUESTION_FORMATS.items())
        raise TextError(
            f"{record.location}: a question with the keys {', '.join(record.values)} is of no known form",
            f"the forms and their keys are {known}",
        )
    choices, answer = QUESTION_FORMATS[form][1](record)
    return MultipleChoiceQuestion(record, form, tuple((context, text.strip()) for context, text in choices), answer)


def _texts(record: JsonlRecord, key: str) -> list[str]:
    texts = record.get(key, list)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise record.value_error(key, "two or more texts that are not blank")
    return texts


def _one_of(record: JsonlRecord, key: str, values: list[Any]) -> int:
    value = record.values[key]
    if type(value) is not type(values[0]) or value not in values:
        raise record.value_error(key, f"one of {', '.join(map(repr, values))}")
    return values.index(value)
