"""Perplexity of a model on texts, by the length of the context window.

    report = perplexity("model.gguf", ["novel.txt"], windows=[2048, 8192], method="half-window")

Perplexity is exp of the mean of -log p(token | the tokens before it in its window). Which windows a text is
split into, and which of their tokens are scored, is up to the method (text_windows.py).

The 95 % confidence interval treats the scored tokens as independent, as llama.cpp's +/- does: 1.96 standard
errors of the mean log-likelihood. It estimates how much other text of the same kind would differ. Differences
between two models on the same text are more certain than their intervals suggest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.evals.confidence_intervals import Z_95
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.log_likelihood import log_likelihoods
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.report import EvalReport, LinePlot, PlotPoint, PlotSeries, ReportTable
from pigguf.evals.text_windows import (
    WINDOW_METHODS,
    ScoredWindow,
    TokenizedText,
    WindowMethod,
    WindowSelection,
    check_max_windows,
    check_texts_fill_window,
    check_windows,
    default_windows,
    texts_as_data,
    tokenize_texts,
)
from pigguf.inference.engine import Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress

DEFAULT_STRIDE = 256  # tokens; the stride of the Position Interpolation paper


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity of one position variant at one window length. Its attributes are the JSON keys of a report.

    Attributes:
        name: the name of the variant.
        window: the window length, in tokens.
        perplexity: exp of the negative mean log-likelihood.
        low: the lower end of its 95 % confidence interval; None if only one token was scored.
        high: the upper end.
        mean_log_likelihood: the mean of a token, in nats.
        standard_error: the standard error of that mean; None if only one token was scored.
        windows: how many windows were computed.
        tokens_scored: how many tokens were scored in all windows.
        tokens_computed: how many tokens were decoded.
    """

    name: str
    window: int
    perplexity: float
    low: float | None
    high: float | None
    mean_log_likelihood: float
    standard_error: float | None
    windows: int
    tokens_scored: int
    tokens_computed: int


def perplexity(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    windows: Sequence[int] | None = None,
    method: WindowMethod = "half-window",
    stride: int | None = None,
    max_tokens: int | None = None,
    max_windows: int | None = None,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure the perplexity of a GGUF file on texts. An interrupted evaluation resumes when it is run again.

    Args:
        model: the path of a GGUF file.
        text: paths of UTF-8 text files, none shorter than the largest window.
        windows: the window lengths, in tokens; None is 2048, doubled up to the file's context length.
        method: one of WINDOW_METHODS.
        stride: the tokens between sliding windows; None is 256. Only for the method "sliding".
        max_tokens: the number of tokens to keep of the beginning of each text; None keeps all.
        max_windows: the most windows of each length, spread evenly over all texts; None is all. The first
            sliding window is then scored like the others: its last `stride` tokens only.
        compare: further position variants (position_variants.py). The file as shipped is then evaluated at
            the windows that it supports, the variants at all.
        engine: how the engine runs the model; None is the default configuration.
        progress: receives a stage for each variant and window length, in tokens.

    Raises:
        UsageError: if options are not valid or do not fit together.
        TextError: if a text is shorter than the largest window.
        ContextOverflow: if a window is longer than the model supports.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the model raise.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    lengths = _check_lengths(subject, windows, has_variants=bool(compare))
    selection = _check_selection(method, stride, lengths, max_tokens, max_windows)
    variants = subject.variants(compare, lengths[-1])
    names = [model.variant.name for model in variants]
    texts = tokenize_texts(subject, text, max_tokens)
    check_texts_fill_window(texts, lengths[-1])
    settings = {
        "method": method,
        "stride": selection.stride,
        "windows": lengths,
        "max_tokens": max_tokens,
        "max_windows": max_windows,
        "compare": names[1:],
        "text": texts_as_data(texts),
    }
    supported = [(v, length) for length in lengths for v in variants if v.supports_window(length)]
    with Evaluation("perplexity", subject, settings, progress) as evaluation:
        results = [measure_perplexity(evaluation, *each, texts, selection) for each in supported]
    return evaluation.report(
        results={"perplexity": [vars(result) for result in results]},
        tables=_tables(results, names, lengths, method),
        plots=(_plot(results, names),),
    )


def _check_lengths(model: ModelUnderTest, windows: Sequence[int] | None, has_variants: bool) -> list[int]:
    """Return the window lengths to evaluate; raise if one is too short, or too long as shipped."""
    lengths = check_windows(default_windows(model.context_length) if windows is None else windows)
    if not has_variants:
        model.check_window(lengths[-1])
    return lengths


def _check_selection(
    method: WindowMethod,
    stride: int | None,
    lengths: Sequence[int],
    max_tokens: int | None,
    max_windows: int | None,
) -> WindowSelection:
    """Return the selection of windows that the options describe; raise a UsageError if they do not fit."""
    if method not in WINDOW_METHODS:
        raise UsageError(f"unknown method {method!r}", f"use one of {', '.join(WINDOW_METHODS)}")
    check_max_windows(max_windows)
    if max_tokens is not None and max_tokens < lengths[-1]:
        raise UsageError(
            f"the first {max_tokens:,} tokens of a text do not fill a window of {lengths[-1]:,}",
            "use more of the text, or smaller windows",
        )
    if method != "sliding":
        if stride is not None:
            raise UsageError(
                f"the method {method} has no stride", "leave `stride` out, or use `method=sliding`"
            )
        return WindowSelection(method, None, max_windows)
    stride = DEFAULT_STRIDE if stride is None else stride
    if not 1 <= stride < lengths[0]:
        raise UsageError(
            f"a stride of {stride} tokens does not fit a window of {lengths[0]}",
            "a stride is at least 1 token and shorter than every window",
        )
    return WindowSelection(method, stride, max_windows)


def measure_perplexity(
    evaluation: Evaluation,
    model: ModelUnderTest,
    length: int,
    texts: Sequence[TokenizedText],
    selection: WindowSelection,
) -> PerplexityResult:
    """Measure one position variant at one window length; the items of the evaluation are the windows.

    Args:
        evaluation: the running evaluation.
        model: the model under the variant.
        length: the window length, in tokens.
        texts: the texts, none shorter than the window.
        selection: which windows are computed.

    Raises:
        PigError: whatever loading the model and decoding raise.
    """
    windows = selection.windows(texts, length)
    name = model.variant.name

    def compute(session: Session, window: ScoredWindow) -> tuple[float, float]:
        tokens = _window_tokens(texts[window.text_index], window.start, length, selection.method)
        session.truncate(0)  # windows share no cached tokens, even where their beginnings are the same
        scores = log_likelihoods(session, tokens, window.first_scored, evaluation.item_progress)
        return float(scores.sum()), float(scores @ scores)

    sums = evaluation.run_items(
        f"{name}, window {length:,}",
        {f"{name}/{length}/{window.text_index}/{window.start}": window for window in windows},
        lambda missing: model.open_session(length, progress=evaluation.progress),
        compute,
        lambda missing: len(missing) * (length - 1),
    )
    tokens_scored = sum(length - window.first_scored for window in windows)
    return _summarize(name, length, sums, tokens_scored)


def _window_tokens(text: TokenizedText, start: int, length: int, method: WindowMethod) -> list[int]:
    tokens = text.tokens[start : start + length]
    if method == "half-window" and text.bos_id is not None:
        tokens[0] = text.bos_id
    return tokens


def _summarize(
    name: str, length: int, sums: Sequence[tuple[float, float]], tokens_scored: int
) -> PerplexityResult:
    """Summarize each window's sum of log-likelihoods, and sum of their squares."""
    mean = math.fsum(total for total, _ in sums) / tokens_scored
    error = low = high = None
    if tokens_scored > 1:
        variance = math.fsum(squares for _, squares in sums) / tokens_scored - mean * mean
        error = math.sqrt(max(0.0, variance) / (tokens_scored - 1))
        low, high = (math.exp(-mean + side * Z_95 * error) for side in (-1, 1))
    return PerplexityResult(
        name=name,
        window=length,
        perplexity=math.exp(-mean),
        low=low,
        high=high,
        mean_log_likelihood=mean,
        standard_error=error,
        windows=len(sums),
        tokens_scored=tokens_scored,
        tokens_computed=len(sums) * (length - 1),
    )


# ---- tables and plots ----------------------------------------------------------------------------


def _tables(
    results: Sequence[PerplexityResult], names: Sequence[str], lengths: Sequence[int], method: str
) -> tuple[ReportTable, ...]:
    """Return the paper's table, with a row for each variant, and the details of each result."""
    by_variant: Mapping[tuple[str, int], float] = {(r.name, r.window): r.perplexity for r in results}
    by_window = ReportTable(
        f"Perplexity by window ({method})",
        ("positions", *(f"{length:,}" for length in lengths)),
        tuple((name, *(by_variant.get((name, length)) for length in lengths)) for name in names),
    )
    details = ReportTable(
        "Intervals of 95 %, and the tokens they rest on",
        ("positions", "window", "perplexity", "from", "to", "windows", "tokens scored", "tokens computed"),
        tuple(
            (r.name, r.window, r.perplexity, r.low, r.high, r.windows, r.tokens_scored, r.tokens_computed)
            for name in names
            for r in results
            if r.name == name
        ),
    )
    return by_window, details


def _plot(results: Sequence[PerplexityResult], names: Sequence[str]) -> LinePlot:
    values = [result.perplexity for result in results]
    series = []
    for name in names:
        points = tuple(PlotPoint(r.window, r.perplexity, r.low, r.high) for r in results if r.name == name)
        if points:
            series.append(PlotSeries(name, points))
    return LinePlot(
        "Perplexity by window",
        "window, tokens",
        "perplexity",
        tuple(series),
        log_x=True,
        log_y=max(values) > 10 * min(values),
    )
