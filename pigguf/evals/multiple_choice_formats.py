"""Multiple-choice questions in the formats of BoolQ, PIQA, RACE and WinoGrande, and a plain one.

The keys of a record determine its format; one file may mix formats. The prompts are those of
lm-evaluation-harness (lm_eval/tasks/super_glue/boolq, piqa, race, winogrande), except RACE: there a record is
one question, with the prompt that the harness uses for all questions of an article except the last.

Not supported: few-shot examples in the prompt, and answers by letter.
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
        record: the record that it was parsed from.
        format_name: the name of its format in QUESTION_FORMATS.
        choices: a (context, continuation) pair for each choice; a space goes between the two.
        answer: the index of the right choice.
    """

    record: JsonlRecord
    format_name: str
    choices: tuple[tuple[str, str], ...]
    answer: int


_Choices = tuple[Sequence[tuple[str, str]], int]  # (context, continuation) pairs, and the right one's index


def _parse_boolq(record: JsonlRecord) -> _Choices:
    question = record.get_text("question").strip().removesuffix("?")
    context = f"{record.get_text('passage')}\nQuestion: {question}?\nAnswer:"
    return [(context, "no"), (context, "yes")], int(record.get("answer", bool))


def _parse_piqa(record: JsonlRecord) -> _Choices:
    context = f"Question: {record.get_text('goal')}\nAnswer:"
    choices = [(context, record.get_text(key)) for key in ("sol1", "sol2")]
    return choices, _index_of_value(record, "label", [0, 1])


def _parse_race(record: JsonlRecord) -> _Choices:
    context = f"Article: {record.get_text('article')}\n\nQuestion: {record.get_text('question')}\nAnswer:"
    options = _get_texts(record, "options")
    letters = list(string.ascii_uppercase[: len(options)])
    return [(context, option) for option in options], _index_of_value(record, "answer", letters)


def _parse_winogrande(record: JsonlRecord) -> _Choices:
    before, blank, after = record.get_text("sentence").partition("_")
    if not blank or not after.strip():
        raise record.value_error("sentence", "a sentence with a _ before its end")
    options = [record.get_text(key) for key in ("option1", "option2")]
    choices = [(before + option, after.strip()) for option in options]
    return choices, _index_of_value(record, "answer", ["1", "2"])


def _parse_plain(record: JsonlRecord) -> _Choices:
    context, choices = record.get("context", str).rstrip(), _get_texts(record, "choices")
    labels = list(range(len(choices)))
    return [(context, choice) for choice in choices], _index_of_value(record, "label", labels)


# format -> the keys of its records, and the function that parses one
QUESTION_FORMATS: dict[str, tuple[frozenset[str], Callable[[JsonlRecord], _Choices]]] = {
    "BoolQ": (frozenset({"question", "passage", "answer"}), _parse_boolq),
    "PIQA": (frozenset({"goal", "sol1", "sol2", "label"}), _parse_piqa),
    "RACE": (frozenset({"article", "question", "options", "answer"}), _parse_race),
    "WinoGrande": (frozenset({"sentence", "option1", "option2", "answer"}), _parse_winogrande),
    "choices": (frozenset({"context", "choices", "label"}), _parse_plain),
}


def parse_question(record: JsonlRecord) -> MultipleChoiceQuestion:
    """Parse a record in the format that its keys determine; other keys are ignored.

    Raises:
        TextError: if the keys are not those of a format, or a value is not valid.
    """
    name = next((name for name, (keys, _) in QUESTION_FORMATS.items() if keys <= record.values.keys()), None)
    if name is None:
        known = "; ".join(
            f"{name}: {', '.join(sorted(keys))}" for name, (keys, _) in QUESTION_FORMATS.items()
        )
        raise TextError(
            f"{record.location}: a question with the keys {', '.join(record.values)} is of no known form",
            f"the forms and their keys are {known}",
        )
    choices, answer = QUESTION_FORMATS[name][1](record)
    return MultipleChoiceQuestion(
        record, name, tuple((context, text.strip()) for context, text in choices), answer
    )


def _get_texts(record: JsonlRecord, key: str) -> list[str]:
    texts = record.get(key, list)
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise record.value_error(key, "two or more texts that are not blank")
    return texts


def _index_of_value(record: JsonlRecord, key: str, allowed_values: list[Any]) -> int:
    value = record.values[key]
    if type(value) is not type(allowed_values[0]) or value not in allowed_values:
        raise record.value_error(key, f"one of {', '.join(map(repr, allowed_values))}")
    return allowed_values.index(value)
