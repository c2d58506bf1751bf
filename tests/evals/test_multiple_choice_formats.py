"""Questions in the formats of BoolQ, PIQA, RACE, WinoGrande and the plain one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pigguf.errors import TextError
from pigguf.evals.jsonl_datasets import JsonlRecord
from pigguf.evals.multiple_choice_formats import parse_question


def record(**values: Any) -> JsonlRecord:
    return JsonlRecord(Path("set.jsonl"), 3, values)


BOOLQ = {"question": "is water wet", "passage": "Water is wet.", "answer": True}


PIQA = {"goal": "To open a jar,", "sol1": "turn its lid.", "sol2": "turn its base.", "label": 0}


RACE = {"article": "Tom ran.", "question": "Who ran?", "options": ["Ann", "Tom", "Bo"], "answer": "B"}


WINOGRANDE = {
    "sentence": "The cup fell off the table and _ broke.",
    "option1": "the cup",
    "option2": "the table",
    "answer": "1",
}


CHOICES = {"context": "One, two, ", "choices": ["three", "nine"], "label": 0}


@pytest.mark.parametrize(
    ("values", "form", "texts", "answer"),
    [
        (
            BOOLQ,
            "BoolQ",
            [f"Water is wet.\nQuestion: is water wet?\nAnswer: {word}" for word in ("no", "yes")],
            1,
        ),
        ({**BOOLQ, "question": "is water dry? ", "answer": False}, "BoolQ", None, 0),
        (
            PIQA,
            "PIQA",
            [f"Question: To open a jar,\nAnswer: turn its {part}." for part in ("lid", "base")],
            0,
        ),
        (
            RACE,
            "RACE",
            [f"Article: Tom ran.\n\nQuestion: Who ran?\nAnswer: {name}" for name in ("Ann", "Tom", "Bo")],
            1,
        ),
        (
            WINOGRANDE,
            "WinoGrande",
            [f"The cup fell off the table and the {thing} broke." for thing in ("cup", "table")],
            0,
        ),
        (CHOICES, "choices", ["One, two, three", "One, two, nine"], 0),
        ({**CHOICES, "label": 1, "source": "elsewhere"}, "choices", None, 1),
    ],
)
def test_a_record_becomes_its_forms_texts(
    values: dict[str, Any], form: str, texts: list[str] | None, answer: int
) -> None:
    question = parse_question(record(**values))
    assert (question.format_name, question.answer) == (form, answer)
    if texts:
        assert [" ".join(pair) for pair in question.choices] == texts


def test_only_what_follows_the_blank_is_scored_in_winogrande() -> None:
    assert parse_question(record(**WINOGRANDE)).choices == (
        ("The cup fell off the table and the cup", "broke."),
        ("The cup fell off the table and the table", "broke."),
    )


def test_a_question_mark_is_not_doubled() -> None:
    question = parse_question(record(**{**BOOLQ, "question": "is water dry?"}))
    assert "is water dry?\n" in question.choices[0][0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"question": "why?"}, "line 3: a question with the keys question is of no known form"),
        ({**BOOLQ, "answer": "yes"}, "line 3: 'answer' is \"yes\""),
        ({**BOOLQ, "passage": " "}, "line 3: 'passage' is \" \""),
        ({**PIQA, "label": -1}, "line 3: 'label' is -1"),
        ({**PIQA, "label": True}, "line 3: 'label' is true"),
        ({**PIQA, "label": "0"}, "line 3: 'label' is \"0\""),
        ({**PIQA, "sol1": None}, "line 3: 'sol1' is null"),
        ({**RACE, "answer": "D"}, "line 3: 'answer' is \"D\""),
        ({**RACE, "answer": ["A"]}, "line 3: 'answer' is "),
        ({**RACE, "options": ["Tom"]}, "line 3: 'options' is "),
        ({**RACE, "options": "ABC"}, "line 3: 'options' is \"ABC\""),
        ({**WINOGRANDE, "sentence": "No blank."}, "line 3: 'sentence' is \"No blank.\""),
        ({**WINOGRANDE, "sentence": "It ends with _"}, "line 3: 'sentence' is "),
        ({**WINOGRANDE, "answer": ""}, "line 3: 'answer' is \"\""),
        ({**CHOICES, "choices": ["a", 2]}, "line 3: 'choices' is "),
        ({**CHOICES, "label": 2}, "line 3: 'label' is 2"),
        ({**CHOICES, "context": 5}, "line 3: 'context' is 5"),
    ],
)
def test_a_record_that_is_not_a_question_is_an_error(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TextError, match=message):
        parse_question(record(**values))
