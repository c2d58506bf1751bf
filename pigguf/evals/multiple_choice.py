"""Choice: questions with answers to choose from, the likeliest being the model's (arXiv 2306.15595, Table 5).

    report = choice("model.gguf", "piqa.jsonl")

Contract: no example is shown and nothing is drawn. A choice's likelihood is the sum of log p of the tokens
by which context and continuation differ from the context alone, in float64; the continuation begins with a
space. `accuracy` counts the questions whose right choice has the largest sum; `accuracy_normalised` divides
the sums by the continuation's bytes of UTF-8 first (its space left out), so that a long answer is not worse
for being long. Each has its 95 % interval by Wilson. Of equals the first is taken.

These are lm-evaluation-harness's acc and acc_norm (lm_eval/api/task.py), which counts characters, not bytes.
What the choices of a question share is computed once: the cache is cut back to it. Left out: the words of
the prompts (questions.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.errors import TextError, UsageError
from pigguf.evals.confidence_intervals import mcnemar, wilson
from pigguf.evals.journal import Journal
from pigguf.evals.jsonl_datasets import load_datasets
from pigguf.evals.log_likelihood import log_likelihoods, NestedProgress
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.inference.run_config import EngineConfig
from pigguf.evals.multiple_choice_formats import MultipleChoiceQuestion, parse_question
from pigguf.evals.position_variants import parse_variants
from pigguf.evals.prompt_tokens import encode_prompt
from pigguf.evals.report import Cell, EvalReport, ReportTable, software_versions
from pigguf.inference.engine import Model, Session
from pigguf.progress import SILENT, Progress, stage


def choice(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """How many questions the model answers right. Interrupted, it goes on where it was when run again.

    Args:
        model: a GGUF file.
        data: files of JSON lines, a question each, in the forms of FORMS.
        compare: baselines to run beside the file as shipped (baselines.py).
        engine: how the engine runs it.
        progress: one stage a baseline, in tokens.

    Raises:
        UsageError: no file.
        TextError: a record that is no question, or does not fit into the window.
        OutputError: the cache directory cannot be written.
        As Subject.of and Subject.open do.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    sets = load_datasets(data, parse_question)
    readings = [
        subject.with_variant(b.name, b.rope) for b in parse_variants(compare, subject.file, subject.context_length)
    ]
    with Model.open(subject.path, vocab_only=True) as vocabulary:
        asked = [
            _asked(vocabulary, question, number, subject)
            for number, question in enumerate(question for each in sets for question in each.items)
        ]
    settings = {
        "data": [each.as_data() for each in sets],
        "compare": [reading.name for reading in readings[1:]],
        **subject.engine_settings(),
    }
    made_by = software_versions()
    with Journal(subject.sha256, "choice", settings, made_by) as journal:
        found = {reading.name: _run(reading, asked, journal, progress) for reading in readings}
    pairs = _pairs(found)
    return EvalReport(
        evaluation="choice",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={
            "readings": {
                name: {"sets": [score.as_data() for score in accuracy_by_file(answers)], "questions": answers}
                for name, answers in found.items()
            },
            "paired": [pair.as_data() for pair in pairs],
        },
        tables=_tables(found, pairs),
        plots=(),
    )


@dataclass(frozen=True)
class _Asked:
    """A question as tokens: for each choice all of them, and the index of the first that is scored.

    Its number is that among all questions.
    """

    question: MultipleChoiceQuestion
    number: int
    choices: tuple[tuple[list[int], int], ...]

    @property
    def longest(self) -> int:
        return max(len(tokens) for tokens, _ in self.choices)

    @property
    def cost(self) -> int:
        """Tokens to compute: the first choice whole, of the others what they do not share."""
        (first, _), *others = self.choices
        return len(first) - 1 + sum(len(tokens) - scored for tokens, scored in others)


def _asked(model: Model, question: MultipleChoiceQuestion, number: int, subject: ModelUnderTest) -> _Asked:
    """
    Raises:
        TextError: the question does not fit, or there is nothing before its choices.
    """
    asked = _Asked(question, number, tuple(_tokens(model, question, *texts) for texts in question.choices))
    if asked.longest > subject.context_length:
        raise TextError(
            f"{question.record.location}: a question of {asked.longest:,} tokens does not fit the window of "
            f"{subject.context_length:,}",
            "leave it out, or take a model with a larger window",
        )
    return asked


def _tokens(model: Model, question: MultipleChoiceQuestion, context: str, continuation: str) -> tuple[list[int], int]:
    whole = encode_prompt(model, f"{context} {continuation}")
    alone = encode_prompt(model, context)
    scored = next(
        (i for i, (x, y) in enumerate(zip(alone, whole, strict=False)) if x != y), min(len(alone), len(whole))
    )
    if scored == 0:
        raise TextError(
            f"{question.record.location}: nothing stands before the choices, and the model has no BOS",
            "the first token of a text has no likelihood: give a context",
        )
    return whole, scored


Answer = dict[str, Any]
"""One question: file, line, form, answer, log_likelihoods of its choices, chosen and chosen_normalised."""


def _run(reading: ModelUnderTest, asked: Sequence[_Asked], journal: Journal, progress: Progress) -> list[Answer]:
    """The answers under one reading of positions, from the journal or computed."""
    keys = [f"{reading.name}/{one.number}" for one in asked]
    missing = [one for one in asked if keys[one.number] not in journal]
    if missing:
        length = max(one.longest for one in missing)
        with (
            reading.open(length, progress=progress) as context,
            context.sequence() as session,
            stage(progress, f"choice, {reading.name}", sum(one.cost for one in missing), "tokens"),
        ):
            for one in missing:
                journal.get_or_compute(keys[one.number], partial(_sums, session, one, progress))
    return [_answer(one.question, journal[keys[one.number]]) for one in asked]


def _sums(session: Session, asked: _Asked, progress: Progress) -> list[float]:
    return [
        math.fsum(log_likelihoods(session, tokens, scored, NestedProgress(progress)))
        for tokens, scored in asked.choices
    ]


def _answer(question: MultipleChoiceQuestion, sums: Sequence[float]) -> Answer:
    sizes = [len(continuation.encode()) for _, continuation in question.choices]
    return {
        "file": str(question.record.path),
        "line": question.record.line,
        "form": question.format_name,
        "answer": question.answer,
        "log_likelihoods": list(sums),
        "chosen": int(np.argmax(sums)),
        "chosen_normalised": int(np.argmax(np.divide(sums, sizes))),
    }


# ---- what it comes to ----------------------------------------------------------------------------

ACCURACY_MEASURES = {"accuracy": "chosen", "accuracy_normalised": "chosen_normalised"}


@dataclass(frozen=True)
class AccuracyScore:
    """How many questions of one form in one file were right, by both measures; names are "" for all."""

    file: str
    form: str
    questions: int
    right: int
    right_normalised: int

    def as_data(self) -> dict[str, Any]:
        data = asdict(self)
        for measure, right in (("accuracy", self.right), ("accuracy_normalised", self.right_normalised)):
            data[measure] = right / self.questions
            data[f"{measure}_interval"] = wilson(right, self.questions)
        return data


def accuracy_by_file(answers: Sequence[Answer]) -> list[AccuracyScore]:
    """A score for each form in each file, in the data's order, and one for all where there are several."""
    groups: dict[tuple[str, str], list[Answer]] = {}
    for answer in answers:
        groups.setdefault((answer["file"], answer["form"]), []).append(answer)
    if len(groups) > 1:
        groups["", ""] = list(answers)
    return [
        AccuracyScore(file, form, len(group), _right(group, "chosen"), _right(group, "chosen_normalised"))
        for (file, form), group in groups.items()
    ]


def _right(answers: Sequence[Answer], chosen: str) -> int:
    return sum(answer[chosen] == answer["answer"] for answer in answers)


@dataclass(frozen=True)
class PairedComparison:
    """Two answers to the same questions compared: how often only one was right, and how sure that is.

    Attributes:
        first, second: names of readings, or of models.
        measure: "accuracy" or "accuracy_normalised".
        p: of McNemar's exact test.
    """

    first: str
    second: str
    measure: str
    first_only: int
    second_only: int
    p: float

    def as_data(self) -> dict[str, Any]:
        return asdict(self)


def compare_paired(
    first: str, answers: Sequence[Answer], second: str, others: Sequence[Answer], measure: str
) -> PairedComparison:
    """Compare two models, or two readings of one, by their answers to the same questions in one order.

    Raises:
        UsageError: the questions are not the same.
    """
    chosen = ACCURACY_MEASURES[measure]
    if [_identity(answer) for answer in answers] != [_identity(answer) for answer in others]:
        raise UsageError(
            f"{first} and {second} answered different questions", "compare them on the same data"
        )
    rights = [
        (one[chosen] == one["answer"], other[chosen] == other["answer"])
        for one, other in zip(answers, others, strict=True)
    ]
    first_only, second_only = rights.count((True, False)), rights.count((False, True))
    return PairedComparison(first, second, measure, first_only, second_only, mcnemar(first_only, second_only))


def _identity(answer: Answer) -> tuple[Any, ...]:
    return answer["line"], answer["form"], answer["answer"], len(answer["log_likelihoods"])


def _pairs(found: Mapping[str, Sequence[Answer]]) -> list[PairedComparison]:
    """The file as shipped with each other reading of it."""
    (shipped, answers), *others = found.items()
    return [compare_paired(shipped, answers, name, theirs, m) for name, theirs in others for m in ACCURACY_MEASURES]


def _tables(found: Mapping[str, Sequence[Answer]], pairs: Sequence[PairedComparison]) -> tuple[ReportTable, ...]:
    rows: list[tuple[Cell, ...]] = []
    for name, answers in found.items():
        for score in accuracy_by_file(answers):
            cells: list[Cell] = [name, Path(score.file).name or "all", score.form or "all", score.questions]
            for right in (score.right, score.right_normalised):
                low, high = wilson(right, score.questions)
                cells += [_percent(right / score.questions), f"{100 * low:.1f} to {100 * high:.1f}"]
            rows.append(tuple(cells))
    accuracy = ReportTable(
        "Zero-shot accuracy",
        ("positions", "file", "form", "questions", "right, %", "interval", "normalised, %", "its interval"),
        tuple(rows),
    )
    if not pairs:
        return (accuracy,)
    against = ReportTable(
        "The same questions under two readings (McNemar's exact test)",
        ("positions", "against", "measure", "only the first right", "only the second", "p"),
        tuple(
            (
                pair.first,
                pair.second,
                pair.measure.replace("_", " "),
                pair.first_only,
                pair.second_only,
                pair.p,
            )
            for pair in pairs
        ),
    )
    return accuracy, against


def _percent(share: float) -> float:
    return round(100 * share, 1)
