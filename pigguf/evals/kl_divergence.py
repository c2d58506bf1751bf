"""kl: how far a model's predictions are from a reference's, token by token, and how far at depth.

    report = kl("model-Q4_K_M.gguf", ["novel.txt"], reference="checkpoint/", window=8192)

At every position of a text, D(reference || model) = sum of p log(p / q) over the vocabulary, in nats, with
p the reference's distribution over the next token and q the model's; and whether both would say the same
token. The text is cut into windows end to end; a window's position i is the prediction after i + 1 of its
tokens. By position: what quantization costs at depth; and with the same file as reference, what a type of
the KV cache costs, for the reference's is always f16.

Both models are open at once and compute the same batch in turn, so that logits of one batch of each are
held, however long the window. Logits are float32, what is made of them float64. llama.cpp
tools/perplexity/perplexity.cpp measures the same in two runs, through a file of the reference's logits
rounded to 16 bits; here nothing is rounded.

A checkpoint as reference is converted to F32 in the cache directory, for as long as it is measured.
Intervals take the positions as independent, as llama.cpp's do. Left out: the terminal and the page.
"""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pigguf.common.numerics import Logits, kl_divergence
from pigguf.common.parallel import usable_cores
from pigguf.errors import UsageError
from pigguf.evals.confidence_intervals import wilson
from pigguf.evals.journal import Journal, evals_cache_directory
from pigguf.evals.log_likelihood import map_in_parallel, NestedProgress
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.inference.run_config import EngineConfig
from pigguf.evals.perplexity import MIN_WINDOW, TokenizedText, ScoredWindow, WindowSelection, tokenize_texts, check_texts_fill_window
from pigguf.evals.report import LinePlot, PlotPoint, Report, PlotSeries, ReportTable, software_versions
from pigguf.gguf_io.metadata import elements
from pigguf.inference.engine import Session
from pigguf.progress import SILENT, Progress, stage

FIRST_BUCKET = 1024  # positions; each further bucket reaches twice as far
_IN_95_PERCENT = 1.959963984540054  # standard errors of a normal distribution
_COLUMNS = 4  # what `divergence` returns

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class KLStatistics:
    """How far the model is from the reference over some positions.

    Attributes:
        first, last: the positions, of a window.
        tokens: how many predictions were compared.
        mean, low, high: KL in nats, with its interval of 95 %; None where one token tells no spread.
        median, percentile_99, most: of the KL of single predictions.
        same_top, same_top_low, same_top_high: the share of predictions whose likeliest token is the
            reference's, with its interval of 95 %.
        perplexity, reference_perplexity: of the text at these positions.
        ratio, ratio_low, ratio_high: of the two perplexities. Both read the same tokens, so that its
            interval of 95 % is narrower than theirs.
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
) -> Report:
    """Measure how far a GGUF file is from a reference. Interrupted, it goes on where it was when run again.

    Args:
        model: a GGUF file.
        text: files of UTF-8 text, none shorter than the window.
        reference: a GGUF file of the same vocabulary, or the directory of a checkpoint. It runs with a
            KV cache of f16, whatever the model's is.
        window: in tokens; None is the longest that both are made for.
        max_windows: compute so many windows at most, spread evenly over the text.
        progress: "writing" of a converted reference, then a stage in tokens computed.

    Raises:
        UsageError: options that do not fit together, or files whose vocabularies differ.
        TextError: a text that is shorter than the window.
        ContextOverflow: a window beyond one of the models'.
        OutputError: the cache directory cannot be written.
        As Subject.of, Subject.open and, for a checkpoint, `pigguf.convert` do.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    with _as_gguf(Path(reference), progress) as file:
        other = ModelUnderTest.from_file(file, replace(subject.engine, cache_k="f16", cache_v="f16"), progress)
        _refuse_other_vocabulary(subject, other, Path(reference))
        length = _checked_window(window, subject, other)
        if max_windows is not None and max_windows < 1:
            raise UsageError(f"the most windows are {max_windows}", "give a number from 1")
        documents = tokenize_texts(subject, text, None)
        check_texts_fill_window(documents, length)
        settings = {
            "reference": {**other.as_data(), "path": str(reference), "cache_type": "f16"},
            "window": length,
            "max_windows": max_windows,
            "text": [{"name": d.name, "sha256": d.sha256, "tokens": len(d.tokens)} for d in documents],
            **subject.engine_settings(),
        }
        pieces = WindowSelection("whole", None, max_windows).windows(documents, length)
        made_by = software_versions()
        with Journal(subject.sha256, "kl", settings, made_by) as journal:
            measured = _measured(subject, other, documents, pieces, length, journal, progress)
    overall = summarize_positions(measured, 1, length)
    by_position = [summarize_positions(measured, first, end) for first, end in position_buckets(length)]
    return Report(
        evaluation="kl",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={
            "verdict": describe_verdict(overall, by_position),
            "overall": vars(overall),
            "by_position": [vars(bucket) for bucket in by_position],
        },
        tables=(_table(overall, by_position),),
        plots=_plots(by_position),
    )


def position_buckets(length: int) -> list[tuple[int, int]]:
    """The positions of a window as 1-1023, 1024-2047, 2048-4095 and so on: each [first, end)."""
    starts = [1]
    start = FIRST_BUCKET
    while start < length:
        starts.append(start)
        start *= 2
    return list(zip(starts, (*starts[1:], length), strict=True))


# ---- what is compared ----------------------------------------------------------------------------


@contextmanager
def _as_gguf(reference: Path, progress: Progress) -> Iterator[Path]:
    """The reference as a GGUF file; a checkpoint is converted for the time being."""
    if not reference.is_dir():
        yield reference
        return
    from pigguf.operations.convert import convert

    with tempfile.TemporaryDirectory(prefix="reference-", dir=evals_cache_directory()) as folder:
        target = Path(folder) / "reference.gguf"
        convert(reference, target, type="F32", progress=progress)
        yield target


def _refuse_other_vocabulary(subject: ModelUnderTest, other: ModelUnderTest, reference: Path) -> None:
    """
    Raises:
        UsageError: a token of one is not the same token of the other.
    """
    ours, theirs = (elements(s.file.metadata, "tokenizer.ggml.tokens") or () for s in (subject, other))
    if tuple(ours) == tuple(theirs):
        return
    if len(ours) != len(theirs):
        different = f"{len(ours):,} tokens and {len(theirs):,}"
    else:
        place = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
        different = f"token {place:,} is {ours[place]!r} and {theirs[place]!r}"
    raise UsageError(
        f"{subject.path} and {reference} have different vocabularies: {different}",
        "a reference is the same model in another type, or another training of it",
    )


def _checked_window(window: int | None, subject: ModelUnderTest, other: ModelUnderTest) -> int:
    if window is None:
        return min(subject.context_length, other.context_length)
    if window < MIN_WINDOW:
        raise UsageError(f"the window is {window}", f"give {MIN_WINDOW} tokens at least")
    subject.check_window(window)
    other.check_window(window)
    return window


# ---- the work ------------------------------------------------------------------------------------


def _measured(
    subject: ModelUnderTest,
    other: ModelUnderTest,
    documents: Sequence[TokenizedText],
    pieces: Sequence[ScoredWindow],
    length: int,
    journal: Journal,
    progress: Progress,
) -> Floats:
    """What `summarized` takes, of all windows: from the journal, or computed."""
    keys = {piece: f"{piece.text_index}/{piece.start}" for piece in pieces}
    missing = [piece for piece in pieces if keys[piece] not in journal]
    if missing:
        with (
            subject.open(length, progress=progress) as ours,
            other.open(length, progress=progress) as theirs,
            ours.sequence() as session,
            theirs.sequence() as reference,
            stage(progress, f"comparing, window {length:,}", len(missing) * (length - 1), "tokens"),
        ):
            for piece in missing:
                tokens = documents[piece.text_index].tokens[piece.start : piece.start + length]
                journal.get_or_compute(keys[piece], partial(_compared, session, reference, tokens, NestedProgress(progress)))
    windows = [_unpacked(journal[keys[piece]]) for piece in pieces]
    return np.stack(windows, axis=1)


def _compared(session: Session, reference: Session, tokens: list[int], progress: Progress) -> str:
    """One window's divergences, packed for the journal.

    Raises:
        EngineError: llama.cpp failed, or a model computes logits that are not numbers.
    """
    session.truncate(0)
    reference.truncate(0)
    given, wanted = tokens[:-1], range(len(tokens) - 1)
    expected = reference.evaluate_batches(given, wanted, lambda indices, rows: (indices, np.array(rows)))
    with ThreadPoolExecutor(usable_cores()) as threads:

        def compare(indices: list[int], rows: list[Logits]) -> list[tuple[float, ...]]:
            same_indices, theirs = next(expected)
            if same_indices != indices:
                raise AssertionError(f"batches differ: {same_indices[:1]} and {indices[:1]}")
            nexts = (tokens[i + 1] for i in indices)
            return map_in_parallel(threads, kl_divergence, zip(theirs, rows, nexts, strict=True))

        batches = session.evaluate_batches(given, wanted, compare, progress)
        found = np.array([row for batch in batches for row in batch]).T
    for numbers, whose in ((found[2], session), (found[3], reference)):
        if not np.isfinite(numbers).all():
            raise whose.nonfinite_logits_error()
    return base64.b64encode(found.astype("<f8").tobytes()).decode()


def _unpacked(packed: str) -> Floats:
    return np.frombuffer(base64.b64decode(packed), "<f8").reshape(_COLUMNS, -1)


# ---- what it comes to ----------------------------------------------------------------------------


def summarize_positions(measured: Floats, first: int, end: int) -> KLStatistics:
    """The figures of positions [first, end) of all windows.

    Args:
        measured: of each window and each position from 1 on what `divergence` returns: shape (4, windows,
            positions).
    """
    distances, same, model, reference = (column.ravel() for column in measured[:, :, first - 1 : end - 1])
    mean, low, high = _mean(distances)
    lost, lost_low, lost_high = _mean(reference - model)
    right = int(same.sum())
    same_low, same_high = wilson(right, same.size)
    return KLStatistics(
        first=first,
        last=end - 1,
        tokens=distances.size,
        mean=mean,
        low=low,
        high=high,
        median=float(np.median(distances)),
        percentile_99=float(np.percentile(distances, 99)),
        most=float(distances.max()),
        same_top=right / same.size,
        same_top_low=same_low,
        same_top_high=same_high,
        perplexity=math.exp(-model.mean()),
        reference_perplexity=math.exp(-reference.mean()),
        ratio=math.exp(lost),
        ratio_low=None if lost_low is None else math.exp(lost_low),
        ratio_high=None if lost_high is None else math.exp(lost_high),
    )


def _mean(values: Floats) -> tuple[float, float | None, float | None]:
    """The mean, and its interval of 95 %."""
    mean = float(values.mean())
    if values.size < 2:
        return mean, None, None
    reach = _IN_95_PERCENT * float(values.std(ddof=1)) / math.sqrt(values.size)
    return mean, mean - reach, mean + reach


def describe_verdict(overall: KLStatistics, by_position: Sequence[KLStatistics]) -> str:
    """The figures in words, and whether the model is further from the reference at depth."""
    parts = [
        f"On average the predictions are {overall.mean:.3g} nats from the reference's, and the likeliest "
        f"token is the same in {overall.same_top:.1%} of them.",
        f"The text's perplexity is {overall.perplexity:.5g}, the reference's "
        f"{overall.reference_perplexity:.5g}: {_percent(overall.ratio)}.",
    ]
    near, deep = by_position[0], by_position[-1]
    if near is not deep:
        parts.append(
            f"{_depth(near, deep)}: {near.mean:.3g} nats up to position {near.last:,}, {deep.mean:.3g} "
            f"from {deep.first:,} on."
        )
    return " ".join(parts)


def _percent(ratio: float) -> str:
    change = abs(ratio - 1)
    return f"{change:.2%} {'higher' if ratio > 1 else 'lower'}" if change >= 5e-5 else "the same"


def _depth(near: KLStatistics, deep: KLStatistics) -> str:
    """Whether the model is further from the reference at depth, where the intervals tell."""
    if None not in (near.high, deep.low) and deep.low > near.high:  # type: ignore[operator]
        return "It is further from the reference at depth"
    if None not in (near.low, deep.high) and deep.high < near.low:  # type: ignore[operator]
        return "It is nearer to the reference at depth"
    return "It is as near to the reference at depth, as far as the intervals tell"


# ---- what it looks like --------------------------------------------------------------------------


def _table(overall: KLStatistics, by_position: Sequence[KLStatistics]) -> ReportTable:
    headers = (
        *("positions", "tokens", "mean KL", "from (95 %)", "to", "median KL", "99 % below"),
        *("same top, %", "perplexity", "reference's", "ratio"),
    )
    named = [(f"{d.first:,}–{d.last:,}", d) for d in by_position]
    if len(named) > 1:
        named.append(("all", overall))
    rows = tuple(
        (
            *(name, d.tokens, d.mean, d.low, d.high, d.median, d.percentile_99),
            *(100 * d.same_top, d.perplexity, d.reference_perplexity, d.ratio),
        )
        for name, d in named
    )
    return ReportTable("KL divergence from the reference in nats, by position in the window", headers, rows)


def _plots(by_position: Sequence[KLStatistics]) -> tuple[LinePlot, ...]:
    if len(by_position) < 2:
        return ()
    ends = [float(d.last + 1) for d in by_position]
    mean = tuple(PlotPoint(x, d.mean, d.low, d.high) for x, d in zip(ends, by_position, strict=True))
    same = tuple(
        PlotPoint(x, 100 * d.same_top, 100 * d.same_top_low, 100 * d.same_top_high)
        for x, d in zip(ends, by_position, strict=True)
    )
    label = "positions up to"
    return (
        LinePlot("KL divergence by position", label, "mean KL, nats", (PlotSeries("KL", mean),), log_x=True),
        LinePlot("Same likeliest token by position", label, "%", (PlotSeries("same", same),), log_x=True),
    )
