"""perplexity: how well a model foretells a text, by the window that it is given.

    report = perplexity("model.gguf", ["novel.txt"], windows=[2048, 8192], method="half-window")

Perplexity is e to the mean of -log p(token | the tokens before it in its window). A method says which
windows a text of T tokens is cut into, and which of a window's L tokens are scored (METHODS):

    half-window   windows end to end; scored are the tokens after the middle, L/2 + 1 to L - 1. A window's
                  first token gives way to BOS where the model wants one. llama.cpp tools/perplexity/
                  perplexity.cpp by default: the figures are the same on the same text.
    sliding       every window S = `stride` tokens after the last, each computed afresh; scored are its last
                  S tokens, and of the text's first window all but the first. So every token is scored once,
                  with L - S tokens or more before it, but for the text's first L. The paper's (arXiv
                  2306.15595, Section 3.2: Press et al. 2022, S = 256). It computes about L/S tokens for
                  each that it scores.
    whole         windows end to end; scored are all tokens but a window's first. What a loop over
                  transformers' `loss` computes.

Each text is a document of its own: no window spans two. Its beginning has a BOS where the model wants
one; what is left at its end, too short for a window (or, sliding, for a stride), is not scored.

The interval of 95 % takes the tokens scored as independent, as llama.cpp's +/- does: 1.96 standard errors
of the mean log-likelihood. It tells what other text of this kind might have given; the difference between
two models on one text is surer than their intervals.

Left out: the terminal and the page; which readings of positions have names (baselines.py).
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text
from pigguf.errors import TextError, UsageError
from pigguf.evals.journal import Journal
from pigguf.evals.log_likelihood import NestedProgress, log_likelihoods
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.position_variants import parse_variants
from pigguf.evals.report import EvalReport, LinePlot, PlotPoint, PlotSeries, ReportTable, software_versions
from pigguf.inference.engine import Model, Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress, stage

WindowMethod = Literal["half-window", "sliding", "whole"]

DEFAULT_STRIDE = 256  # the paper's S
FIRST_DEFAULT_WINDOW = 2048  # of the default ones
MIN_WINDOW = 8  # of fewer tokens there is next to nothing to score

_IN_95_PERCENT = 1.959963984540054  # standard errors of a normal distribution


@dataclass(frozen=True)
class TokenizedText:
    """A text as the model reads it.

    Attributes:
        name, sha256: of the file.
        tokens: with BOS in front where the model wants one.
        bos: that token, or None.
    """

    name: str
    sha256: str
    tokens: list[int]
    bos_id: int | None


@dataclass(frozen=True)
class ScoredWindow:
    """One window: tokens [start, start + length) of a document, scored from its index `first` on."""

    text_index: int
    start: int
    first_scored: int


@dataclass(frozen=True)
class PerplexityResult:
    """Perplexity at one window, under one reading of positions.

    Attributes:
        name: of the reading.
        window: in tokens.
        perplexity, low, high: with its interval of 95 %; None where one token tells no spread.
        mean_log_likelihood: of a token, in nats; standard_error: of that.
        windows: how many were computed; tokens_scored, tokens_computed: in all of them.
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
    """Measure a GGUF file's perplexity on texts. Interrupted, it goes on where it was when run again.

    Args:
        model: a GGUF file.
        text: files of UTF-8 text, a document each, none shorter than the largest window.
        windows: in tokens; None is 2048, doubling up to the file's context length.
        method: see the module.
        stride: of the method "sliding"; None is 256.
        max_tokens: of each text take the first so many.
        max_windows: compute so many windows at most, spread evenly over all. Sliding, the first window
            is then scored like any other: its last tokens only.
        compare: further readings of positions (baselines.py). The file as shipped is then measured at
            the windows that it is made for, the others at all.
        progress: a stage for each reading and window, in tokens computed.

    Raises:
        UsageError: options that do not fit together.
        TextError: a text that is shorter than the largest window.
        ContextOverflow: a window beyond the model's.
        OutputError: the cache directory cannot be written.
        As Subject.of and Subject.open do.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    lengths = _checked_windows(subject, windows, bool(compare))
    rule = _checked_rule(method, stride, lengths, max_tokens, max_windows)
    readings = [subject.with_variant(b.name, b.rope) for b in parse_variants(compare, subject.file, lengths[-1])]
    documents = tokenize_texts(subject, text, max_tokens)
    check_texts_fill_window(documents, lengths[-1])
    settings = {
        "method": method,
        "stride": rule.stride,
        "windows": lengths,
        "max_tokens": max_tokens,
        "max_windows": max_windows,
        "compare": [reading.name for reading in readings[1:]],
        "text": [{"name": d.name, "sha256": d.sha256, "tokens": len(d.tokens)} for d in documents],
        **subject.engine_settings(),
    }
    made_by = software_versions()
    with Journal(subject.sha256, "perplexity", settings, made_by) as journal:
        figures = [
            measure_perplexity(reading, documents, length, rule, journal, progress)
            for length in lengths
            for reading in readings
            if reading.supports_window(length)
        ]
    return EvalReport(
        evaluation="perplexity",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={"perplexity": [vars(figure) for figure in figures]},
        tables=_tables(figures, [reading.name for reading in readings], lengths, method),
        plots=(_plot(figures, [reading.name for reading in readings]),),
    )


def default_windows(context_length: int) -> list[int]:
    """2048, doubling, and at the end the context length itself."""
    windows = []
    length = FIRST_DEFAULT_WINDOW
    while length < context_length:
        windows.append(length)
        length *= 2
    return [*windows, context_length]


# ---- what is scored ------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowSelection:
    """A method with its numbers: which windows are computed."""

    method: WindowMethod
    stride: int | None
    max_windows: int | None

    def windows(self, documents: Sequence[TokenizedText], length: int) -> list[ScoredWindow]:
        """The windows of `length` tokens in the documents' order."""
        starts = [
            (number, start, first)
            for number, document in enumerate(documents)
            for start, first in WINDOW_METHODS[self.method](len(document.tokens), length, self.stride or 0)
        ]
        if self.max_windows is not None:
            starts = list(_spread(starts, self.max_windows))
            if self.stride is not None:
                starts = [(number, start, length - self.stride) for number, start, _ in starts]
        return [ScoredWindow(*start) for start in starts]


def _half_window(count: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, length // 2 + 1) for start in range(0, count - length + 1, length))


def _sliding(count: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, length - stride if start else 1) for start in range(0, count - length + 1, stride))


def _whole(count: int, length: int, stride: int) -> Iterator[tuple[int, int]]:
    return ((start, 1) for start in range(0, count - length + 1, length))


# name -> for `count` tokens, windows of `length`, a stride: each window's start, and its first token scored
WINDOW_METHODS: dict[str, Callable[[int, int, int], Iterator[tuple[int, int]]]] = {
    "half-window": _half_window,
    "sliding": _sliding,
    "whole": _whole,
}


def _spread(items: Sequence[Any], most: int) -> Iterable[Any]:
    """At most so many of the items, evenly from the first to the last."""
    if most >= len(items):
        return items
    if most == 1:
        return items[:1]
    return (items[i * (len(items) - 1) // (most - 1)] for i in range(most))


def _checked_windows(subject: ModelUnderTest, windows: Sequence[int] | None, has_baselines: bool) -> list[int]:
    lengths = sorted(set(default_windows(subject.context_length) if windows is None else windows))
    if not lengths or lengths[0] < MIN_WINDOW:
        raise UsageError(f"the windows are {lengths}", f"give one or more, of {MIN_WINDOW} tokens at least")
    if not has_baselines:
        subject.check_window(lengths[-1])
    return lengths


def _checked_rule(
    method: WindowMethod,
    stride: int | None,
    lengths: Sequence[int],
    max_tokens: int | None,
    max_windows: int | None,
) -> WindowSelection:
    if method not in WINDOW_METHODS:
        raise UsageError(f"there is no method {method!r}", f"one of {', '.join(WINDOW_METHODS)}")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"the most windows are {max_windows}", "give a number from 1")
    if max_tokens is not None and max_tokens < lengths[-1]:
        raise UsageError(
            f"the first {max_tokens:,} tokens of a text do not fill a window of {lengths[-1]:,}",
            "take more of the text, or smaller windows",
        )
    if method != "sliding":
        if stride is not None:
            raise UsageError(f"the method {method} has no stride", "leave it out, or slide: --method sliding")
        return WindowSelection(method, None, max_windows)
    stride = DEFAULT_STRIDE if stride is None else stride
    if not 1 <= stride < lengths[0]:
        raise UsageError(
            f"a stride of {stride} tokens does not fit a window of {lengths[0]}",
            "a stride is at least 1 token and shorter than every window",
        )
    return WindowSelection(method, stride, max_windows)


# ---- texts ---------------------------------------------------------------------------------------


def tokenize_texts(subject: ModelUnderTest, files: Sequence[str | Path], max_tokens: int | None) -> list[TokenizedText]:
    """The texts as the subject's own tokenizer reads them, of each the first `max_tokens`.

    Raises:
        UsageError: no file; ReadError: one that cannot be read; TextError: one that is no text.
    """
    if isinstance(files, (str, os.PathLike)) or not files:
        raise UsageError(f"the texts are {files!r}", "give a sequence of one or more files")
    with Model.open(subject.path, vocab_only=True) as model:
        # llama.cpp says what it puts around a text; an EOS would end what goes on here
        bos = next((token for token in model.tokenize("") if token == model.bos), None)
        return [_document(model, Path(file), bos, max_tokens) for file in files]


def _document(model: Model, file: Path, bos: int | None, max_tokens: int | None) -> TokenizedText:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise read_error(file, error) from error
    tokens = model.tokenize(decode_text(data, str(file)), add_special=False)
    if bos is not None:
        tokens.insert(0, bos)
    return TokenizedText(str(file), hashlib.sha256(data).hexdigest(), tokens[:max_tokens], bos)


def check_texts_fill_window(documents: Sequence[TokenizedText], longest: int) -> None:
    """
    Raises:
        TextError: a text does not fill the longest window.
    """
    for document in documents:
        if len(document.tokens) < longest:
            raise TextError(
                f"{document.name} has {len(document.tokens):,} tokens; a window of {longest:,} needs as many",
                "give a longer text, or smaller windows with --windows",
            )


# ---- the work ------------------------------------------------------------------------------------


def measure_perplexity(
    subject: ModelUnderTest,
    documents: Sequence[TokenizedText],
    length: int,
    rule: WindowSelection,
    journal: Journal,
    progress: Progress,
) -> PerplexityResult:
    """One reading at one window: its pieces, from the journal or computed.

    Progress is a stage "NAME, window L", in tokens, where something is left to compute.

    Raises:
        As Subject.open does.
    """
    pieces = rule.windows(documents, length)
    keys = {piece: f"{subject.name}/{length}/{piece.text_index}/{piece.start}" for piece in pieces}
    missing = [piece for piece in pieces if keys[piece] not in journal]
    if missing:
        name = f"{subject.name}, window {length:,}"
        with (
            subject.open(length, progress=progress) as context,
            context.sequence() as session,
            stage(progress, name, len(missing) * (length - 1), "tokens"),
        ):
            for piece in missing:
                tokens = _window(documents[piece.text_index], piece.start, length, rule.method)
                journal.get_or_compute(keys[piece], partial(_sums, session, tokens, piece.first_scored, progress))
    sums = [journal[keys[piece]] for piece in pieces]
    scored = sum(length - piece.first_scored for piece in pieces)
    return _figure(subject.name, length, sums, scored, len(pieces))


def _window(document: TokenizedText, start: int, length: int, method: WindowMethod) -> list[int]:
    tokens = document.tokens[start : start + length]
    if method == "half-window" and document.bos_id is not None:
        tokens[0] = document.bos_id
    return tokens


def _sums(session: Session, tokens: list[int], first: int, progress: Progress) -> tuple[float, float]:
    """Of the log-likelihoods from `first` on: their sum, and the sum of their squares."""
    session.truncate(0)  # a window is computed afresh, whatever it shares with the last
    scores = log_likelihoods(session, tokens, first, NestedProgress(progress))
    return float(scores.sum()), float(scores @ scores)


def _figure(name: str, length: int, sums: Sequence[tuple[float, float]], scored: int, windows: int) -> PerplexityResult:
    mean = math.fsum(total for total, _ in sums) / scored
    error = low = high = None
    if scored > 1:
        variance = math.fsum(squares for _, squares in sums) / scored - mean * mean
        error = math.sqrt(max(0.0, variance) / (scored - 1))
        low, high = (math.exp(-mean + side * _IN_95_PERCENT * error) for side in (-1, 1))
    return PerplexityResult(
        name, length, math.exp(-mean), low, high, mean, error, windows, scored, windows * (length - 1)
    )


# ---- what it looks like --------------------------------------------------------------------------


def _tables(
    figures: Sequence[PerplexityResult], names: Sequence[str], lengths: Sequence[int], method: str
) -> tuple[ReportTable, ...]:
    """The paper's table, a row for each reading of positions; and what each figure rests on."""
    found = {(figure.name, figure.window): figure.perplexity for figure in figures}
    by_window = ReportTable(
        f"Perplexity by window ({method})",
        ("positions", *(f"{length:,}" for length in lengths)),
        tuple((name, *(found.get((name, length)) for length in lengths)) for name in names),
    )
    details = ReportTable(
        "Intervals of 95 %, and the tokens they rest on",
        ("positions", "window", "perplexity", "from", "to", "windows", "tokens scored", "tokens computed"),
        tuple(
            (f.name, f.window, f.perplexity, f.low, f.high, f.windows, f.tokens_scored, f.tokens_computed)
            for name in names
            for f in figures
            if f.name == name
        ),
    )
    return by_window, details


def _plot(figures: Sequence[PerplexityResult], names: Sequence[str]) -> LinePlot:
    values = [figure.perplexity for figure in figures]
    return LinePlot(
        "Perplexity by window",
        "window, tokens",
        "perplexity",
        tuple(
            PlotSeries(
                name, tuple(PlotPoint(f.window, f.perplexity, f.low, f.high) for f in figures if f.name == name)
            )
            for name in names
            if any(f.name == name for f in figures)
        ),
        log_x=True,
        log_y=max(values) > 10 * min(values),
    )
