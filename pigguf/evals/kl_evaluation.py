"""KL divergence of a model's predictions from a reference's, token by token and by position in the window.

    report = kl("model-Q4_K_M.gguf", ["novel.txt"], reference="checkpoint/", window=8192)

At each position of a text it measures D(reference || model) = sum of p log(p / q) over the vocabulary, in
nats, where p and q are the reference's and the model's distributions over the next token, and whether the
most likely token is the same. The text is split into adjacent windows; position i of a window is the
prediction after i of its tokens. The divergence by position shows what quantization costs at depth. With the
same file as reference it shows what a KV cache type costs, because the reference always runs with f16.

Both models are loaded at the same time and decode the same batch in turn, so only one batch of logits of each
is in memory, whatever the window length. Logits are float32, the rest is float64. llama.cpp's
tools/perplexity/perplexity.cpp measures the same in two runs, by way of a file of the reference's logits
rounded to 16 bits; nothing is rounded here.

If the reference is a checkpoint, it is converted to a temporary F32 file in the cache directory. Confidence
intervals treat positions as independent, as llama.cpp's do.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pigguf.common.parallel import usable_cores
from pigguf.common.softmax_and_kl import Logits, kl_divergence
from pigguf.errors import UsageError
from pigguf.evals.confidence_intervals import Z_95, wilson
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.journal import evals_cache_directory
from pigguf.evals.log_likelihood import map_in_parallel
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.report import EvalReport, LinePlot, PlotPoint, PlotSeries, ReportTable
from pigguf.evals.text_windows import (
    MIN_WINDOW,
    ScoredWindow,
    TokenizedText,
    WindowSelection,
    check_max_windows,
    check_texts_fill_window,
    texts_as_data,
    tokenize_texts,
)
from pigguf.gguf_io.metadata import get_array
from pigguf.inference.engine import Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress

FIRST_BUCKET = 1024  # positions; each further bucket ends twice as far
_COLUMNS = 4  # the values that `kl_divergence` returns

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KLStatistics:
    """Statistics of the divergence over a range of positions. Its attributes are the JSON keys of a report.

    Attributes:
        first: the first position in the window.
        last: the last position.
        tokens: how many predictions were compared.
        mean: the mean KL divergence, in nats.
        low: the lower end of its 95 % confidence interval; None if only one prediction was compared.
        high: the upper end.
        median: the median KL divergence of a prediction.
        percentile_99: the 99th percentile.
        most: the maximum.
        same_top: the share of predictions whose most likely token is the reference's.
        same_top_low: the lower end of its 95 % confidence interval.
        same_top_high: the upper end.
        perplexity: the model's perplexity on the text at these positions.
        reference_perplexity: the reference's.
        ratio: perplexity / reference_perplexity.
        ratio_low: the lower end of its 95 % confidence interval, which is narrower than those of the
            perplexities, because both models predict the same tokens.
        ratio_high: the upper end.
    """

    first: int
    last: int
    tokens: int
    mean: float
    low: float | None
    high: float | None
    median: float
    percentile_99: float
    most: float
    same_top: float
    same_top_low: float
    same_top_high: float
    perplexity: float
    reference_perplexity: float
    ratio: float
    ratio_low: float | None
    ratio_high: float | None


def kl(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    reference: str | Path,
    window: int | None = None,
    max_windows: int | None = None,
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure how far a GGUF file's predictions are from a reference's. Resumes if it was interrupted.

    Args:
        model: the path of a GGUF file.
        text: paths of UTF-8 text files, none shorter than the window.
        reference: a GGUF file with the same vocabulary, or the directory of a checkpoint. It runs with a KV
            cache of f16, whatever the model's is.
        window: the window length, in tokens; None is the longest that both models support.
        max_windows: the most windows to compute, spread evenly over the text; None is all.
        engine: how the engine runs the models; None is the default configuration.
        progress: receives "writing" while a reference is converted, then a stage in tokens.

    Raises:
        UsageError: if options are not valid, or the two vocabularies differ.
        TextError: if a text is shorter than the window.
        ContextOverflow: if the window is longer than one of the models supports.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the models raise, and for a checkpoint `pigguf.convert`.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    with _reference_as_gguf(Path(reference), progress) as file:
        f16_cache = replace(subject.engine, cache_k="f16", cache_v="f16")
        reference_model = ModelUnderTest.from_file(file, f16_cache, progress)
        _check_same_vocabulary(subject, reference_model, Path(reference))
        length = _check_window(window, subject, reference_model)
        check_max_windows(max_windows)
        texts = tokenize_texts(subject, text, None)
        check_texts_fill_window(texts, length)
        settings = {
            "reference": {**reference_model.as_data(), "path": str(reference), "cache_type": "f16"},
            "window": length,
            "max_windows": max_windows,
            "text": texts_as_data(texts),
        }
        windows = WindowSelection("whole", None, max_windows).windows(texts, length)
        with Evaluation("kl", subject, settings, progress) as evaluation:
            measured = _compare_models(evaluation, subject, reference_model, texts, windows, length)
    overall = summarize_positions(measured, 1, length)
    by_position = [summarize_positions(measured, first, end) for first, end in position_buckets(length)]
    return evaluation.report(
        results={
            "verdict": describe_verdict(overall, by_position),
            "overall": vars(overall),
            "by_position": [vars(bucket) for bucket in by_position],
        },
        tables=(_table(overall, by_position),),
        plots=_plots(by_position),
    )


def position_buckets(length: int) -> list[tuple[int, int]]:
    """Split the positions of a window into 1-1023, 1024-2047, 2048-4095 and so on: each [first, end)."""
    starts = [1]
    start = FIRST_BUCKET
    while start < length:
        starts.append(start)
        start *= 2
    return list(zip(starts, (*starts[1:], length), strict=True))


# ---- the reference -------------------------------------------------------------------------------


@contextmanager
def _reference_as_gguf(reference: Path, progress: Progress) -> Iterator[Path]:
    """Yield the reference as a GGUF file; a checkpoint is converted to a temporary one."""
    if not reference.is_dir():
        yield reference
        return
    from pigguf.operations.convert import convert

    with tempfile.TemporaryDirectory(prefix="reference-", dir=evals_cache_directory()) as directory:
        target = Path(directory) / "reference.gguf"
        convert(reference, target, type="F32", progress=progress)
        yield target


def _check_same_vocabulary(model: ModelUnderTest, reference: ModelUnderTest, reference_path: Path) -> None:
    """Raise a UsageError if a token id stands for different tokens in the two models."""
    ours, theirs = (get_array(m.file.metadata, "tokenizer.ggml.tokens") or () for m in (model, reference))
    if tuple(ours) == tuple(theirs):
        return
    if len(ours) != len(theirs):
        difference = f"{len(ours):,} tokens and {len(theirs):,}"
    else:
        token = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        difference = f"token {token:,} is {ours[token]!r} and {theirs[token]!r}"
    raise UsageError(
        f"{model.path} and {reference_path} have different vocabularies: {difference}",
        "use the same model in another type, or another fine-tuning of it, as the reference",
    )


def _check_window(window: int | None, model: ModelUnderTest, reference: ModelUnderTest) -> int:
    """Return the window length to evaluate; raise if it is too short, or too long for one of the models."""
    if window is None:
        return min(model.context_length, reference.context_length)
    if window < MIN_WINDOW:
        raise UsageError(f"the window is {window}", f"give at least {MIN_WINDOW} tokens")
    model.check_window(window)
    reference.check_window(window)
    return window


# ---- comparing the logits ------------------------------------------------------------------------


def _compare_models(
    evaluation: Evaluation,
    model: ModelUnderTest,
    reference: ModelUnderTest,
    texts: Sequence[TokenizedText],
    windows: Sequence[ScoredWindow],
    length: int,
) -> Floats:
    """Return what `kl_divergence` gives at all positions: (4, n_windows, length - 1), float64."""

    @contextmanager
    def open_sessions(missing: Sequence[ScoredWindow]) -> Iterator[tuple[Session, Session]]:
        with (
            model.open(length, progress=evaluation.progress) as model_context,
            reference.open(length, progress=evaluation.progress) as reference_context,
            model_context.sequence() as session,
            reference_context.sequence() as reference_session,
        ):
            yield session, reference_session

    def compute(sessions: tuple[Session, Session], window: ScoredWindow) -> str:
        tokens = texts[window.text_index].tokens[window.start : window.start + length]
        return _compare_window(*sessions, tokens, evaluation.item_progress)

    packed = evaluation.run_items(
        f"comparing, window {length:,}",
        {f"{window.text_index}/{window.start}": window for window in windows},
        open_sessions,
        compute,
        lambda missing: len(missing) * (length - 1),
    )
    return np.stack([_unpack(value) for value in packed], axis=1)


def _compare_window(session: Session, reference: Session, tokens: list[int], progress: Progress) -> str:
    """Return the divergences of one window, (4, length - 1), packed for the journal.

    Raises:
        EngineError: if llama.cpp fails, or a model computes logits that are NaN or infinite.
    """
    session.truncate(0)
    reference.truncate(0)
    inputs, wanted = tokens[:-1], range(len(tokens) - 1)
    reference_batches = reference.evaluate_batches(
        inputs, wanted, lambda indices, rows: (indices, np.array(rows))
    )
    with ThreadPoolExecutor(usable_cores()) as threads:

        def compare(indices: list[int], rows: list[Logits]) -> list[tuple[float, ...]]:
            reference_indices, reference_rows = next(reference_batches)
            if reference_indices != indices:
                raise AssertionError(f"batches differ: {reference_indices[:1]} and {indices[:1]}")
            targets = (tokens[i + 1] for i in indices)
            return map_in_parallel(threads, kl_divergence, zip(reference_rows, rows, targets, strict=True))

        batches = session.evaluate_batches(inputs, wanted, compare, progress)
        columns = np.array([row for batch in batches for row in batch]).T  # (4, length - 1)
    for log_probs, computed_by in ((columns[2], session), (columns[3], reference)):
        if not np.isfinite(log_probs).all():
            raise computed_by.nonfinite_logits_error()
    return base64.b64encode(columns.astype("<f8").tobytes()).decode()


def _unpack(packed: str) -> Floats:
    return np.frombuffer(base64.b64decode(packed), "<f8").reshape(_COLUMNS, -1)


# ---- statistics ----------------------------------------------------------------------------------


def summarize_positions(measured: Floats, first: int, end: int) -> KLStatistics:
    """Summarize the positions [first, end) of all windows.

    Args:
        measured: what `kl_divergence` returns for each window and each position from 1 on:
            (4, n_windows, n_positions), float64.
        first: the first position.
        end: the position after the last one.
    """
    divergences, same_top, model, reference = (
        column.ravel() for column in measured[:, :, first - 1 : end - 1]
    )
    mean, low, high = _mean_with_interval(divergences)
    log_ratio, log_ratio_low, log_ratio_high = _mean_with_interval(reference - model)
    n_same = int(same_top.sum())
    same_low, same_high = wilson(n_same, same_top.size)
    return KLStatistics(
        first=first,
        last=end - 1,
        tokens=divergences.size,
        mean=mean,
        low=low,
        high=high,
        median=float(np.median(divergences)),
        percentile_99=float(np.percentile(divergences, 99)),
        most=float(divergences.max()),
        same_top=n_same / same_top.size,
        same_top_low=same_low,
        same_top_high=same_high,
        perplexity=math.exp(-model.mean()),
        reference_perplexity=math.exp(-reference.mean()),
        ratio=math.exp(log_ratio),
        ratio_low=None if log_ratio_low is None else math.exp(log_ratio_low),
        ratio_high=None if log_ratio_high is None else math.exp(log_ratio_high),
    )


def _mean_with_interval(values: Floats) -> tuple[float, float | None, float | None]:
    """Return the mean and the ends of its 95 % confidence interval."""
    mean = float(values.mean())
    if values.size < 2:
        return mean, None, None
    margin = Z_95 * float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean, mean - margin, mean + margin


def describe_verdict(overall: KLStatistics, by_position: Sequence[KLStatistics]) -> str:
    """Describe the results in words, and whether the model diverges more at depth."""
    sentences = [
        f"On average the predictions are {overall.mean:.3g} nats from the reference's, and the most likely "
        f"token is the same in {overall.same_top:.1%} of them.",
        f"The text's perplexity is {overall.perplexity:.5g}, the reference's "
        f"{overall.reference_perplexity:.5g}: {_percent_change(overall.ratio)}.",
    ]
    near, deep = by_position[0], by_position[-1]
    if near is not deep:
        sentences.append(
            f"{_describe_depth(near, deep)}: {near.mean:.3g} nats up to position {near.last:,}, "
            f"{deep.mean:.3g} from {deep.first:,} on."
        )
    return " ".join(sentences)


def _percent_change(ratio: float) -> str:
    change = abs(ratio - 1)
    return f"{change:.2%} {'higher' if ratio > 1 else 'lower'}" if change >= 5e-5 else "the same"


def _describe_depth(near: KLStatistics, deep: KLStatistics) -> str:
    """Describe whether the model diverges more at depth, if the confidence intervals do not overlap."""
    if near.high is not None and deep.low is not None and deep.low > near.high:
        return "It is further from the reference at depth"
    if near.low is not None and deep.high is not None and deep.high < near.low:
        return "It is nearer to the reference at depth"
    return "It is as near to the reference at depth, as far as the intervals show"


# ---- tables and plots ----------------------------------------------------------------------------


def _table(overall: KLStatistics, by_position: Sequence[KLStatistics]) -> ReportTable:
    headers = (
        *("positions", "tokens", "mean KL", "from (95 %)", "to", "median KL", "99 % below"),
        *("same top, %", "perplexity", "reference's", "ratio"),
    )
    named = [(f"{s.first:,}–{s.last:,}", s) for s in by_position]
    if len(named) > 1:
        named.append(("all", overall))
    rows = tuple(
        (
            *(name, s.tokens, s.mean, s.low, s.high, s.median, s.percentile_99),
            *(100 * s.same_top, s.perplexity, s.reference_perplexity, s.ratio),
        )
        for name, s in named
    )
    return ReportTable("KL divergence from the reference in nats, by position in the window", headers, rows)


def _plots(by_position: Sequence[KLStatistics]) -> tuple[LinePlot, ...]:
    if len(by_position) < 2:
        return ()
    divergence = tuple(PlotPoint(float(s.last + 1), s.mean, s.low, s.high) for s in by_position)
    same_top = tuple(
        PlotPoint(float(s.last + 1), 100 * s.same_top, 100 * s.same_top_low, 100 * s.same_top_high)
        for s in by_position
    )
    kl_series, same_series = (PlotSeries("KL", divergence),), (PlotSeries("same", same_top),)
    x_label = "positions up to"
    return (
        LinePlot("KL divergence by position", x_label, "mean KL, nats", kl_series, log_x=True),
        LinePlot("Same most likely token by position", x_label, "%", same_series, log_x=True),
    )
