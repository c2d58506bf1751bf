"""ROUGE of a model's summaries (arXiv 2306.15595, Section 3.5 and Table 6, GovReport).

    report = rouge("model.gguf", ["govreport.jsonl"])

The prompt and the sampling are the paper's: temperature 0.5, top-p 0.95, up to 1000 tokens, from the first
15000 tokens of a document, fewer if the window does not hold them and the summary. ROUGE-1, -2 and -L are the
F-measures of the package rouge-score with the Porter stemmer, in percent: the mean over all documents, with
its bootstrap 95 % confidence interval. The sampling seed of a document is the evaluation's plus the
document's index.

A record is {"document": ..., "summary": ...}; the files of GovReport have "report" instead of "document".
ROUGE-Lsum, which is computed by lines, is not supported. This is the only module that imports `rouge_score`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pigguf.errors import MissingPackage, UsageError
from pigguf.evals.confidence_intervals import bootstrap
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.jsonl_datasets import JsonlRecord, load_datasets
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.prompt_tokens import prompt_encoder
from pigguf.evals.report import Cell, EvalReport, ReportTable
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress

MAX_INPUT = 15_000
MAX_OUTPUT = 1_000
PROMPT = (
    "Read the following article and then summarize it.\n{document}\n"
    "Now summarize the above article.\nSummary:"
)
ROUGE_MEASURES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L"}

RougeScores = Mapping[str, float]  # key of ROUGE_MEASURES -> F-measure in percent
RougeScorer = Callable[[str, str], RougeScores]  # of a reference summary and a generated one

GeneratedSummary = dict[str, Any]
"""One generated summary: prompt_tokens, tokens (generated), text."""


@dataclass(frozen=True)
class SummarizationExample:
    """A document and its reference summary.

    Attributes:
        record: the record that it was parsed from.
        document: the text to summarize.
        summary: the reference summary.
    """

    record: JsonlRecord
    document: str
    summary: str


@dataclass(frozen=True)
class SummaryRequest:
    """An example whose document is to be summarized.

    Attributes:
        example: the example.
        index: its index among all examples.
        prompt: the token ids of the prompt.
    """

    example: SummarizationExample
    index: int
    prompt: list[int]


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
    """Measure the ROUGE scores of a GGUF file's summaries. Resumes if it was interrupted.

    Args:
        model: the path of a GGUF file.
        data: paths of JSON lines files with a document and its summary a line.
        max_input: the number of tokens to keep of the beginning of a document.
        max_output: the most tokens of a summary.
        chat: whether to put the prompt into the model's chat template, for an instruction-tuned model.
        seed: of the sampling.
        compare: further position variants (position_variants.py).
        engine: how the engine runs the model; None is the default configuration.
        progress: receives a stage for each variant, in tokens of the prompts and of the longest summaries.

    Raises:
        MissingPackage: if the package rouge-score is not installed.
        UsageError: if there is no file, an option is out of range, or the window has no room for a document.
        TextError: if a record is not a document with a summary.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the model raise.
    """
    score = load_rouge_scorer()
    _check_token_counts(max_input=max_input, max_output=max_output)
    subject = ModelUnderTest.from_file(model, engine, progress)
    datasets = load_datasets(data, parse_example)
    variants = subject.variants(compare, subject.context_length)
    examples = [example for dataset in datasets for example in dataset.items]
    requests = _encode_requests(subject, examples, chat, max_input, max_output)
    sampling = _sampling_params(seed)
    settings = {
        "data": [dataset.as_data() for dataset in datasets],
        "prompt": PROMPT,
        "chat": chat,
        "max_input": max_input,
        "max_output": max_output,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed,
        "compare": [variant.variant.name for variant in variants[1:]],
    }
    with Evaluation("rouge", subject, settings, progress) as evaluation:
        results = {
            variant.variant.name: _score_variant(evaluation, variant, requests, seed, max_output, score)
            for variant in variants
        }
    means = {name: _mean_scores(scored) for name, scored in results.items()}
    readings = {name: {"mean": means[name], "summaries": scored} for name, scored in results.items()}
    return evaluation.report(results={"readings": readings}, tables=(_table(results, means),))


def _check_token_counts(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise UsageError(f"`{name}` is {count}", "give at least 1 token")


def _encode_requests(
    model: ModelUnderTest,
    examples: Sequence[SummarizationExample],
    chat: bool,
    max_input: int,
    max_output: int,
) -> list[SummaryRequest]:
    with Model.open(model.path, vocab_only=True) as vocab:
        prompts = SummaryPrompts(vocab, chat, max_input, model.context_length - max_output)
        return [
            SummaryRequest(example, index, prompts.encode(example.document))
            for index, example in enumerate(examples)
        ]


def parse_example(record: JsonlRecord) -> SummarizationExample:
    """Parse a record into a document and its summary.

    Raises:
        TextError: if a key is missing, or its value is not text.
    """
    document = record.get_text("report" if "report" in record.values else "document")
    return SummarizationExample(record, document, record.get_text("summary"))


def load_rouge_scorer() -> RougeScorer:
    """Return the function that scores a generated summary against a reference.

    Raises:
        MissingPackage: if rouge-score is not installed.
    """
    try:
        from rouge_score.rouge_scorer import RougeScorer as PackageScorer
    except ImportError as error:
        raise MissingPackage(
            f"ROUGE is computed by the package rouge-score, which is not installed: {error}",
            'pip install -e ".[evals]" in the clone',
        ) from error
    scorer = PackageScorer(list(ROUGE_MEASURES), use_stemmer=True)

    def score(reference: str, text: str) -> RougeScores:
        return {name: 100 * result.fmeasure for name, result in scorer.score(reference, text).items()}

    return score


def _sampling_params(seed: int) -> SamplingParams:
    return SamplingParams(temperature=0.5, top_k=0, top_p=0.95, min_p=0.0, seed=seed)


class SummaryPrompts:
    """Builds the prompts of documents as token ids, truncating documents that are too long.

    Args:
        model: the model, or its vocabulary alone.
        chat: whether to use the chat template.
        max_input: the most tokens of a document.
        max_prompt: the most tokens of a prompt: the window without the summary.

    Raises:
        UsageError: if max_prompt has no room for a document.
    """

    def __init__(self, model: Model, chat: bool, max_input: int, max_prompt: int) -> None:
        self._model = model
        self._encode = prompt_encoder(model, chat=chat)
        self._max_prompt = max_prompt
        n_template = len(self._encode(PROMPT.format(document="")))
        self._max_document = min(max_input, max_prompt - n_template)
        if self._max_document < 1:
            raise UsageError(
                f"a window of {model.context_length:,} tokens has no room for a document: the prompt takes "
                f"{n_template} of it and the summary {model.context_length - max_prompt:,}",
                "give the summary fewer tokens with `max_output`",
            )

    def encode(self, document: str) -> list[int]:
        """Return the token ids of the prompt of a document, at most max_prompt of them."""
        tokens = self._model.tokenize(document, add_special=False)
        text, n_kept = document, len(tokens)
        if n_kept > self._max_document:
            n_kept = self._max_document
            text = self._first_tokens_as_text(tokens, n_kept)
        prompt = self._encode(PROMPT.format(document=text))
        while len(prompt) > self._max_prompt:  # the last word of a truncated text may encode differently
            n_kept -= len(prompt) - self._max_prompt
            prompt = self._encode(PROMPT.format(document=self._first_tokens_as_text(tokens, n_kept)))
        return prompt

    def _first_tokens_as_text(self, tokens: list[int], count: int) -> str:
        """Return the text of the first tokens, without an incomplete character at its end."""
        return self._model.detokenize(tokens[:count]).rstrip("\ufffd")


def _score_variant(
    evaluation: Evaluation,
    model: ModelUnderTest,
    requests: Sequence[SummaryRequest],
    seed: int,
    max_output: int,
    score: RougeScorer,
) -> list[dict[str, Any]]:
    """Return the scored summaries of one position variant; the items of the evaluation are the documents."""
    name = model.variant.name

    def summarize(session: Session, request: SummaryRequest) -> GeneratedSummary:
        sampling = _sampling_params(seed + request.index)
        return _generate_summary(session, request.prompt, sampling, max_output, evaluation.item_progress)

    summaries = evaluation.run_items(
        f"rouge, {name}",
        {f"{name}/{request.index}": request for request in requests},
        lambda missing: model.open_session(
            max(len(request.prompt) for request in missing) + max_output, progress=evaluation.progress
        ),
        summarize,
        lambda missing: sum(len(request.prompt) + max_output for request in missing),
    )
    return [
        _score_summary(request.example, summary, score)
        for request, summary in zip(requests, summaries, strict=True)
    ]


def _generate_summary(
    session: Session, prompt: list[int], sampling: SamplingParams, max_output: int, progress: Progress
) -> GeneratedSummary:
    session.set_prompt(prompt, progress)
    tokens = []
    for token in session.generate(sampling, max_output, prompt_lookup=False):
        tokens.append(token)
        progress.advance(1)
    progress.advance(max_output - len(tokens))  # the stage's total counts the longest summary
    return {
        "prompt_tokens": len(prompt),
        "tokens": len(tokens),
        "text": session.context.model.detokenize(tokens).strip(),
    }


# ---- scores and table ----------------------------------------------------------------------------


def _score_summary(
    example: SummarizationExample, summary: GeneratedSummary, score: RougeScorer
) -> dict[str, Any]:
    return {
        "file": str(example.record.path),
        "line": example.record.line,
        **summary,
        **score(example.summary, summary["text"]),
    }


def _mean_scores(scored: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Return for each measure the mean and the ends of its 95 % confidence interval."""
    means = {}
    for measure in ROUGE_MEASURES:
        values = [summary[measure] for summary in scored]
        low, high = bootstrap(values)
        means[measure] = {"mean": statistics.fmean(values), "low": low, "high": high}
    return means


def _table(
    results: Mapping[str, Sequence[Mapping[str, Any]]], means: Mapping[str, Mapping[str, Mapping[str, float]]]
) -> ReportTable:
    rows: list[tuple[Cell, ...]] = []
    for name, scored in results.items():
        cells: list[Cell] = [name, len(scored)]
        for measure in ROUGE_MEASURES:
            mean, low, high = (means[name][measure][key] for key in ("mean", "low", "high"))
            cells += [mean, f"{low:.1f} to {high:.1f}"]
        cells += [statistics.fmean(summary[key] for summary in scored) for key in ("prompt_tokens", "tokens")]
        rows.append(tuple(cells))
    columns = [column for name in ROUGE_MEASURES.values() for column in (name, f"{name}'s interval")]
    return ReportTable(
        "Summaries against people's, in percent",
        ("positions", "documents", *columns, "tokens of a prompt", "of a summary"),
        tuple(rows),
    )
