"""rouge: the model's summaries compared with people's (arXiv 2306.15595, Section 3.5 and Table 6, GovReport).

    report = rouge("model.gguf", ["govreport.jsonl"])

Contract: the paper's prompt and protocol: temperature 0.5, top-p 0.95, up to 1000 tokens, of a document the
first 15000 tokens, fewer where the window would not hold them with the answer. ROUGE-1, -2 and -L are the
F-measures of `rouge-score` with Porter's stemmer, in percent: the mean over all documents, with its 95 %
interval by resampling. A document's seed is the evaluation's plus its number.
A record is {"document": ..., "summary": ...}; GovReport's own files say "report" for "document".

The only importer of `rouge_score`. Left out: ROUGE-Lsum, which is of lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pigguf.errors import MissingPackage, UsageError
from pigguf.evals.confidence_intervals import bootstrap
from pigguf.evals.journal import Journal
from pigguf.evals.jsonl_datasets import JsonlRecord, load_datasets
from pigguf.evals.log_likelihood import NestedProgress
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.inference.run_config import EngineConfig
from pigguf.evals.position_variants import parse_variants
from pigguf.evals.prompt_tokens import prompt_encoder
from pigguf.evals.report import Cell, EvalReport, ReportTable, software_versions
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.progress import SILENT, Progress, stage

MAX_INPUT = 15_000
MAX_OUTPUT = 1_000
PROMPT = (
    "Read the following article and then summarize it.\n{document}\n"
    "Now summarize the above article.\nSummary:"
)
ROUGE_MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}

Scores = Mapping[str, float]
Scorer = Callable[[str, str], Scores]


@dataclass(frozen=True)
class SummarizationExample:
    """A document and the summary that a person wrote of it."""

    record: JsonlRecord
    document: str
    summary: str


def rouge(
    model: str | Path,
    data: Sequence[str | Path],
    *,
    max_input: int = MAX_INPUT,
    max_output: int = MAX_OUTPUT,
    chat: bool = False,
    seed: int = 0,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """How near the model's summaries are to people's. Interrupted, it goes on when run again.

    Args:
        model: a GGUF file.
        data: files of JSON lines, an article each.
        max_input: of a document take the first so many tokens.
        max_output: most tokens of a summary.
        chat: put the prompt into the model's chat template, for a model that was trained to answer.
        seed: of what is drawn.
        compare: baselines to run beside the file as shipped (baselines.py).
        engine: how the engine runs it.
        progress: one stage a baseline, in tokens of the prompts and of the longest summaries.

    Raises:
        MissingPackage: the package rouge-score is missing.
        UsageError: no file, or options out of range, or a window without room for a summary.
        TextError: a record that is no article with a summary.
        OutputError: the cache directory cannot be written.
        As Subject.of and Subject.open do.
    """
    score = load_rouge_scorer()
    for name, count in (("max_input", max_input), ("max_output", max_output)):
        if count < 1:
            raise UsageError(f"{name} is {count}", "give a number of tokens from 1")
    subject = ModelUnderTest.from_file(model, engine, progress)
    sets = load_datasets(data, parse_example)
    window = subject.context_length
    readings = [subject.with_variant(b.name, b.rope) for b in parse_variants(compare, subject.file, window)]
    with Model.open(subject.path, vocab_only=True) as vocabulary:
        prompts = SummaryPrompts(vocabulary, chat, max_input, window - max_output)
        asked = [
            _Asked(article, number, prompts.encode(article.document))
            for number, article in enumerate(article for each in sets for article in each.items)
        ]
    settings = {
        "data": [each.as_data() for each in sets],
        "prompt": PROMPT,
        "chat": chat,
        "max_input": max_input,
        "max_output": max_output,
        "temperature": _sampling(seed).temperature,
        "top_p": _sampling(seed).top_p,
        "seed": seed,
        "compare": [reading.name for reading in readings[1:]],
        **subject.engine_settings(),
    }
    made_by = software_versions()
    with Journal(subject.sha256, "rouge", settings, made_by) as journal:
        found = {
            reading.name: [
                _scored(one, answer, score)
                for one, answer in zip(
                    asked, _run(reading, asked, seed, max_output, journal, progress), strict=True
                )
            ]
            for reading in readings
        }
    results = {name: {"mean": _means(scored), "summaries": scored} for name, scored in found.items()}
    return EvalReport(
        evaluation="rouge",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={"readings": results},
        tables=(_table(found),),
        plots=(),
    )


def parse_example(record: JsonlRecord) -> SummarizationExample:
    """
    Raises:
        TextError: a key is missing or holds no text.
    """
    document = record.get_text("report" if "report" in record.values else "document")
    return SummarizationExample(record, document, record.get_text("summary"))


def load_rouge_scorer() -> Scorer:
    """What compares a reference and a text: F-measures in percent, by MEASURES.

    Raises:
        MissingPackage: rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError as error:
        raise MissingPackage(
            f"summaries are compared by the package rouge-score, which is missing: {error}",
            'pip install -e ".[evals]" in the clone',
        ) from error
    compare = RougeScorer(list(ROUGE_MEASURES), use_stemmer=True)

    def score(reference: str, text: str) -> Scores:
        return {name: 100 * found.fmeasure for name, found in compare.score(reference, text).items()}

    return score


def _sampling(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.5, top_k=0, top_p=0.95, min_p=0.0, seed=seed)


# ---- the work ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Asked:
    """An article's prompt as tokens, and its number among all."""

    article: SummarizationExample
    number: int
    prompt: list[int]


class SummaryPrompts:
    """Makes the prompts of documents, cut to `max_input` tokens, or to what a prompt's `room` leaves them."""

    def __init__(self, model: Model, chat: bool, max_input: int, room: int) -> None:
        self._model = model
        self._encode = prompt_encoder(model, chat=chat)
        self._room = room
        bare = len(self._encode(PROMPT.format(document="")))
        self._most = min(max_input, room - bare)
        if self._most < 1:
            raise UsageError(
                f"a window of {model.context_length:,} tokens has no room for a document: the prompt takes "
                f"{bare} of it and the summary {model.context_length - room:,}",
                "give the summary fewer tokens with --max-output",
            )

    def encode(self, document: str) -> list[int]:
        tokens = self._model.tokenize(document, add_special=False)
        text, kept = document, len(tokens)
        if kept > self._most:
            kept = self._most
            text = self._beginning(tokens, kept)
        prompt = self._encode(PROMPT.format(document=text))
        while len(prompt) > self._room:  # the cut text's last word can be other tokens than it was
            kept -= len(prompt) - self._room
            prompt = self._encode(PROMPT.format(document=self._beginning(tokens, kept)))
        return prompt

    def _beginning(self, tokens: list[int], count: int) -> str:
        """The text of the first tokens, without the part of a character at its end."""
        return self._model.detokenize(tokens[:count]).rstrip("\ufffd")


def _run(
    reading: ModelUnderTest,
    asked: Sequence[_Asked],
    seed: int,
    max_output: int,
    journal: Journal,
    progress: Progress,
) -> list[Answer]:
    """The summaries under one reading of positions, from the journal or drawn."""
    keys = [f"{reading.name}/{one.number}" for one in asked]
    missing = [one for one in asked if keys[one.number] not in journal]
    if missing:
        length = max(len(one.prompt) for one in missing) + max_output
        total = sum(len(one.prompt) for one in missing) + len(missing) * max_output
        with (
            reading.open(length, progress=progress) as context,
            context.sequence() as session,
            stage(progress, f"rouge, {reading.name}", total, "tokens"),
        ):
            for one in missing:
                sampling = _sampling(seed + one.number)
                summarize = partial(_summary, session, one.prompt, sampling, max_output, progress)
                journal.get_or_compute(keys[one.number], summarize)
    return [journal[key] for key in keys]


Answer = dict[str, Any]
"""One document's summary by the model: prompt_tokens, tokens, text."""


def _summary(
    session: Session, prompt: list[int], sampling: SamplingParams, max_output: int, progress: Progress
) -> Answer:
    model = session.context.model
    session.set_prompt(prompt, NestedProgress(progress))
    tokens = []
    for token in session.generate(sampling, max_output, prompt_lookup=False):
        tokens.append(token)
        progress.advance(1)
    progress.advance(max_output - len(tokens))
    return {
        "prompt_tokens": len(prompt),
        "tokens": len(tokens),
        "text": model.detokenize(tokens).strip(),
    }


# ---- what it comes to ----------------------------------------------------------------------------


def _scored(asked: _Asked, answer: Answer, score: Scorer) -> dict[str, Any]:
    record = asked.article.record
    return {
        "file": str(record.path),
        "line": record.line,
        **answer,
        **score(asked.article.summary, answer["text"]),
    }


def _means(scored: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """By measure, its mean and 95 % interval."""
    means = {}
    for name in ROUGE_MEASURES:
        values = [one[name] for one in scored]
        low, high = bootstrap(values)
        means[name] = {"mean": statistics.fmean(values), "low": low, "high": high}
    return means


def _table(found: Mapping[str, Sequence[Mapping[str, Any]]]) -> ReportTable:
    rows: list[tuple[Cell, ...]] = []
    for name, scored in found.items():
        means = _means(scored)
        cells: list[Cell] = [name, len(scored)]
        for measure in ROUGE_MEASURES:
            mean, low, high = (means[measure][key] for key in ("mean", "low", "high"))
            cells += [mean, f"{low:.1f} to {high:.1f}"]
        cells += [statistics.fmean(one[key] for one in scored) for key in ("prompt_tokens", "tokens")]
        rows.append(tuple(cells))
    columns = [column for name in ROUGE_MEASURES.values() for column in (name, f"{name}'s interval")]
    return ReportTable(
        "Summaries against people's, in percent",
        ("positions", "documents", *columns, "tokens of a prompt", "of a summary"),
        tuple(rows),
    )
