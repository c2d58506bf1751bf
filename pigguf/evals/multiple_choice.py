"""Zero-shot multiple choice, answered by likelihood (arXiv 2306.15595, Table 5).

    report = choice("model.gguf", ["piqa.jsonl"])

The likelihood of a choice is the sum of log p of the tokens that context and continuation have after those of
the context alone, in float64; the continuation starts with a space. `accuracy` counts the questions whose
right choice has the highest sum. `accuracy_normalised` first divides the sums by the length of the
continuation in bytes of UTF-8 (without its space), so that long answers are not at a disadvantage. Both have
Wilson's 95 % confidence interval. Of equal choices the first is taken. Nothing is sampled.

These are acc and acc_norm of lm-evaluation-harness (lm_eval/api/task.py), which counts characters instead of
bytes. What the choices of a question share is computed once, because the KV cache is truncated to it. The
formats of questions and their prompts are in multiple_choice_formats.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pigguf.common.token_prefix import common_prefix_length
from pigguf.errors import TextError, UsageError
from pigguf.evals.confidence_intervals import mcnemar, wilson
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.jsonl_datasets import load_datasets
from pigguf.evals.log_likelihood import log_likelihoods
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.multiple_choice_formats import MultipleChoiceQuestion, parse_question
from pigguf.evals.prompt_tokens import encode_prompt
from pigguf.evals.report import Cell, EvalReport, ReportTable
from pigguf.inference.engine import Model, Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress

QuestionResult = dict[str, Any]
"""One question: file, line, form (its format), answer (the right choice), log_likelihoods of the choices, and
chosen and chosen_normalised, the model's choices by both measures."""

# measure -> the key of the model's choice in a QuestionResult
ACCURACY_MEASURES = {"accuracy": "chosen", "accuracy_normalised": "chosen_normalised"}


def choice(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure how many multiple-choice questions a GGUF file answers right. Resumes if it was interrupted.

    Args:
        model: the path of a GGUF file.
        data: paths of JSON lines files with a question a line, in one of QUESTION_FORMATS.
        compare: further position variants (position_variants.py), compared with the file as shipped.
        engine: how the engine runs the model; None is the default configuration.
        progress: receives a stage for each variant, in tokens.

    Raises:
        UsageError: if there is no file, or a variant is not valid.
        TextError: if a record is not a question, or does not fit into the context window.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the model raise.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    datasets = load_datasets(data, parse_question)
    variants = subject.variants(compare, subject.context_length)
    with Model.open(subject.path, vocab_only=True) as vocab:
        questions = [
            _encode_question(vocab, question, subject.context_length)
            for dataset in datasets
            for question in dataset.items
        ]
    settings = {
        "data": [dataset.as_data() for dataset in datasets],
        "compare": [variant.variant.name for variant in variants[1:]],
    }
    with Evaluation("choice", subject, settings, progress) as evaluation:
        results = {
            variant.variant.name: _answer_questions(evaluation, variant, questions) for variant in variants
        }
    comparisons = _compare_with_shipped(results)
    return evaluation.report(
        results={
            "readings": {
                name: {
                    "sets": [score.as_data() for score in accuracy_by_file(variant_results)],
                    "questions": variant_results,
                }
                for name, variant_results in results.items()
            },
            "paired": [comparison.as_data() for comparison in comparisons],
        },
        tables=_tables(results, comparisons),
    )


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids.

    Attributes:
        question: the question as texts.
        choices: for each choice all its tokens, and the index of the first one that is scored.
    """

    question: MultipleChoiceQuestion
    choices: tuple[tuple[list[int], int], ...]

    @property
    def longest(self) -> int:
        """The tokens of the longest choice with its context."""
        return max(len(tokens) for tokens, _ in self.choices)

    @property
    def n_tokens(self) -> int:
        """The tokens to compute: all of the first choice, and of the others what differs from it."""
        (first, _), *others = self.choices
        return len(first) - 1 + sum(len(tokens) - first_scored for tokens, first_scored in others)


def _encode_question(vocab: Model, question: MultipleChoiceQuestion, context_length: int) -> EncodedQuestion:
    """Encode a question; raise a TextError if it does not fit into the window, or has no context."""
    choices = tuple(_encode_choice(vocab, question, *texts) for texts in question.choices)
    encoded = EncodedQuestion(question, choices)
    if encoded.longest > context_length:
        raise TextError(
            f"{question.record.location}: a question of {encoded.longest:,} tokens does not fit the "
            f"window of {context_length:,}",
            "remove it, or use a model with a larger window",
        )
    return encoded


def _encode_choice(
    vocab: Model, question: MultipleChoiceQuestion, context: str, continuation: str
) -> tuple[list[int], int]:
    tokens = encode_prompt(vocab, f"{context} {continuation}")
    first_scored = common_prefix_length(encode_prompt(vocab, context), tokens)
    if first_scored == 0:
        raise TextError(
            f"{question.record.location}: there is no text before the choices, and the model adds no BOS",
            "the first token of a text has no likelihood: give a context",
        )
    return tokens, first_scored


def _answer_questions(
    evaluation: Evaluation, model: ModelUnderTest, questions: Sequence[EncodedQuestion]
) -> list[QuestionResult]:
    """Return the results of one position variant; the items of the evaluation are the questions."""
    name = model.variant.name

    def sum_log_likelihoods(session: Session, question: EncodedQuestion) -> list[float]:
        return [
            math.fsum(log_likelihoods(session, tokens, first_scored, evaluation.item_progress))
            for tokens, first_scored in question.choices
        ]

    sums = evaluation.run_items(
        f"choice, {name}",
        {f"{name}/{number}": question for number, question in enumerate(questions)},
        lambda missing: model.open_session(
            max(question.longest for question in missing), progress=evaluation.progress
        ),
        sum_log_likelihoods,
        lambda missing: sum(question.n_tokens for question in missing),
    )
    return [
        _question_result(question.question, question_sums)
        for question, question_sums in zip(questions, sums, strict=True)
    ]


def _question_result(question: MultipleChoiceQuestion, sums: Sequence[float]) -> QuestionResult:
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


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AccuracyScore:
    """How many questions were answered right. Its attributes are JSON keys of a report.

    Attributes:
        file: the path of the data set; "" for the total.
        form: the format of the questions; "" for the total.
        questions: the number of questions.
        right: those answered right by `accuracy`.
        right_normalised: those answered right by `accuracy_normalised`.
    """

    file: str
    form: str
    questions: int
    right: int
    right_normalised: int

    def as_data(self) -> dict[str, Any]:
        """Return the counts, and both accuracies with their confidence intervals, for a report."""
        data = asdict(self)
        for measure, right in (("accuracy", self.right), ("accuracy_normalised", self.right_normalised)):
            data[measure] = right / self.questions
            data[f"{measure}_interval"] = wilson(right, self.questions)
        return data


def accuracy_by_file(results: Sequence[QuestionResult]) -> list[AccuracyScore]:
    """Return a score for each format in each file, in order, and the total if there are several."""
    groups: dict[tuple[str, str], list[QuestionResult]] = {}
    for result in results:
        groups.setdefault((result["file"], result["form"]), []).append(result)
    if len(groups) > 1:
        groups["", ""] = list(results)
    return [
        AccuracyScore(
            file, form, len(group), _count_right(group, "chosen"), _count_right(group, "chosen_normalised")
        )
        for (file, form), group in groups.items()
    ]


def _count_right(results: Sequence[QuestionResult], chosen: str) -> int:
    return sum(result[chosen] == result["answer"] for result in results)


@dataclass(frozen=True)
class PairedComparison:
    """Two models, or two variants, on the same questions. Its attributes are JSON keys of a report.

    Attributes:
        first: the name of the first model or variant.
        second: the name of the second one.
        measure: "accuracy" or "accuracy_normalised".
        first_only: the number of questions that only the first answered right.
        second_only: the number of questions that only the second answered right.
        p: the p-value of McNemar's exact test.
    """

    first: str
    second: str
    measure: str
    first_only: int
    second_only: int
    p: float

    def as_data(self) -> dict[str, Any]:
        """Return the comparison for a report."""
        return asdict(self)


def compare_paired(
    first: str,
    first_results: Sequence[QuestionResult],
    second: str,
    second_results: Sequence[QuestionResult],
    measure: str,
) -> PairedComparison:
    """Compare the answers of two models, or two variants, to the same questions in the same order.

    Args:
        first: the name of the first model or variant.
        first_results: its results.
        second: the name of the second one.
        second_results: its results.
        measure: one of ACCURACY_MEASURES.

    Raises:
        UsageError: if the questions are not the same.
    """
    chosen = ACCURACY_MEASURES[measure]
    if [_question_identity(r) for r in first_results] != [_question_identity(r) for r in second_results]:
        raise UsageError(
            f"{first} and {second} answered different questions", "compare them on the same data"
        )
    right = [
        (one[chosen] == one["answer"], other[chosen] == other["answer"])
        for one, other in zip(first_results, second_results, strict=True)
    ]
    first_only, second_only = right.count((True, False)), right.count((False, True))
    return PairedComparison(first, second, measure, first_only, second_only, mcnemar(first_only, second_only))


def _question_identity(result: QuestionResult) -> tuple[Any, ...]:
    return result["line"], result["form"], result["answer"], len(result["log_likelihoods"])


def _compare_with_shipped(results: Mapping[str, Sequence[QuestionResult]]) -> list[PairedComparison]:
    """Compare the file as shipped, which is the first, with each other variant."""
    (shipped, shipped_results), *others = results.items()
    return [
        compare_paired(shipped, shipped_results, name, variant_results, measure)
        for name, variant_results in others
        for measure in ACCURACY_MEASURES
    ]


# ---- tables --------------------------------------------------------------------------------------


def _tables(
    results: Mapping[str, Sequence[QuestionResult]], comparisons: Sequence[PairedComparison]
) -> tuple[ReportTable, ...]:
    rows: list[tuple[Cell, ...]] = []
    for name, variant_results in results.items():
        for score in accuracy_by_file(variant_results):
            cells: list[Cell] = [name, Path(score.file).name or "all", score.form or "all", score.questions]
            for right in (score.right, score.right_normalised):
                low, high = wilson(right, score.questions)
                cells += [round(100 * right / score.questions, 1), f"{100 * low:.1f} to {100 * high:.1f}"]
            rows.append(tuple(cells))
    accuracy = ReportTable(
        "Zero-shot accuracy",
        ("positions", "file", "form", "questions", "right, %", "interval", "normalised, %", "its interval"),
        tuple(rows),
    )
    if not comparisons:
        return (accuracy,)
    paired = ReportTable(
        "The same questions under two position variants (McNemar's exact test)",
        ("positions", "against", "measure", "only the first right", "only the second", "p"),
        tuple(
            (c.first, c.second, c.measure.replace("_", " "), c.first_only, c.second_only, c.p)
            for c in comparisons
        ),
    )
    return accuracy, paired
