"""Find the rope scaling factor that suits a model: its perplexity under several factors, by window length.

    report = sweep("model.gguf", ["novel.txt"], factors=[1, 2, 4, 8])

This is for checkpoints whose factor is not known, and for base models that were not fine-tuned. Each factor
divides positions linearly and replaces whatever the file states. Factor 1, no scaling, is always evaluated,
and so is the file's own.

How the verdict is reached: a model has its lowest perplexity under the factor that it was trained with at
every window, short ones included, because any other factor changes the distances between its tokens. A base
model that was not fine-tuned is best at factor 1 in short windows; beyond its own window, a larger factor is
then merely less bad. So the shortest window determines the factor, and the model's context window is the
longest up to which its perplexity under that factor does not rise. The best factor is clear if the 95 %
confidence intervals of its perplexity and the next best one do not overlap. All factors are evaluated on the
same text, so this asks for more than necessary.

Perplexity is measured with the method "half-window" (text_windows.py). Scalings other than linear are not
tried; for those, see `compare` of the other evaluations. The verdict is written in sweep_verdict.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.evals.evaluation import Evaluation
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.perplexity import measure_perplexity
from pigguf.evals.position_variants import PositionVariant, check_rope_replaceable
from pigguf.evals.report import EvalReport, HeatMap, LinePlot, PlotPoint, PlotSeries, ReportTable
from pigguf.evals.sweep_verdict import (
    BestFactor,
    PerplexityGrid,
    convert_options,
    describe_verdict,
    judge_factors,
    variant_name,
    window_lengths,
)
from pigguf.evals.text_windows import (
    FIRST_DEFAULT_WINDOW,
    TokenizedText,
    WindowSelection,
    check_max_windows,
    check_texts_fill_window,
    check_windows,
    texts_as_data,
    tokenize_texts,
)
from pigguf.inference.engine import RuntimeRope
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress
from pigguf.rope import Positions

FACTORS = (1.0, 2.0, 4.0, 8.0)
MAX_WINDOWS = 4  # of each length; enough tokens for the confidence intervals of a clear difference


def sweep(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    factors: Sequence[float] = FACTORS,
    windows: Sequence[int] | None = None,
    max_windows: int | None = MAX_WINDOWS,
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """Measure the perplexity of a GGUF file under several rope factors. Resumes if it was interrupted.

    Args:
        model: the path of a GGUF file.
        text: paths of UTF-8 text files, none shorter than the largest window.
        factors: linear rope scaling factors of 1 or more, besides 1 and the file's own.
        windows: the window lengths, in tokens; None is 2048, doubled up to twice the file's context length,
            as far as the texts are long enough.
        max_windows: the most windows of each length, spread evenly over the texts; None is all.
        engine: how the engine runs the model; None is the default configuration.
        progress: receives a stage for each factor and window length, in tokens.

    Raises:
        UsageError: if options are not valid, or no override can replace the file's rope settings.
        TextError: if a text is shorter than the largest window.
        OutputError: if the cache directory cannot be written.
        PigError: whatever reading and loading the model raise.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    check_rope_replaceable(subject.file)
    all_factors = _check_factors(factors, subject.file_rope)
    check_max_windows(max_windows)
    texts = tokenize_texts(subject, text, None)
    lengths = _default_windows(subject, texts) if windows is None else check_windows(windows)
    check_texts_fill_window(texts, lengths[-1])
    settings = {
        "method": "half-window",
        "factors": all_factors,
        "windows": lengths,
        "max_windows": max_windows,
        "text": texts_as_data(texts),
    }
    variants = {factor: _with_factor(subject, factor, lengths[-1]) for factor in all_factors}
    with Evaluation("sweep", subject, settings, progress) as evaluation:
        grid = _measure_grid(evaluation, variants, lengths, texts, max_windows)
    verdict = judge_factors(grid)
    return evaluation.report(
        results={
            "verdict": describe_verdict(verdict, grid, subject.file_rope),
            **asdict(verdict),
            "convert": convert_options(verdict, subject.file_rope),
            "perplexity": [{"factor": factor, **vars(result)} for (factor, _), result in grid.items()],
        },
        tables=(_perplexity_table(grid), _best_factor_table(verdict.fits, grid)),
        plots=(_heat_map(verdict.fits, grid), _line_plot(grid)),
    )


def _measure_grid(
    evaluation: Evaluation,
    variants: Mapping[float, ModelUnderTest],
    lengths: Sequence[int],
    texts: Sequence[TokenizedText],
    max_windows: int | None,
) -> PerplexityGrid:
    selection = WindowSelection("half-window", None, max_windows)
    return {
        (factor, length): measure_perplexity(evaluation, variant, length, texts, selection)
        for length in lengths
        for factor, variant in variants.items()
    }


def _with_factor(model: ModelUnderTest, factor: float, longest: int) -> ModelUnderTest:
    rope = RuntimeRope(factor, context_length=max(longest, model.context_length), scaling_type="linear")
    rope.metadata(model.file)  # raises before anything is computed
    return model.with_variant(PositionVariant(variant_name(factor), rope))


def _check_factors(factors: Sequence[float], file_rope: Positions) -> list[float]:
    """Return the factors to evaluate, ascending; raise a UsageError if one is below 1, or there is only 1."""
    for factor in factors:
        if not 1 <= factor < math.inf:
            raise UsageError(f"the factor {factor:g} does not extend a window", "give numbers of 1 or more")
    file_factors = [file_rope.factor] if file_rope.rope_type == "linear" else []
    all_factors = sorted({1.0, *map(float, factors), *file_factors})
    if len(all_factors) < 2:
        raise UsageError("factor 1 alone is not a sweep", "give other factors to compare it with")
    return all_factors


def _default_windows(model: ModelUnderTest, texts: Sequence[TokenizedText]) -> list[int]:
    """Return 2048, doubled up to twice the file's context length, as far as the texts are long enough."""
    longest = min(2 * model.context_length, *(len(text.tokens) for text in texts))
    lengths = [min(FIRST_DEFAULT_WINDOW, model.context_length)]
    while 2 * lengths[-1] <= longest:
        lengths.append(2 * lengths[-1])
    return lengths


# ---- tables and plots ----------------------------------------------------------------------------


def _factors(grid: PerplexityGrid) -> list[float]:
    return sorted({factor for factor, _ in grid})


def _perplexity_table(grid: PerplexityGrid) -> ReportTable:
    windows = window_lengths(grid)
    return ReportTable(
        "Perplexity by factor and window (half-window)",
        ("factor", *(f"{window:,}" for window in windows)),
        tuple(
            (factor, *(grid[factor, window].perplexity for window in windows)) for factor in _factors(grid)
        ),
    )


def _best_factor_table(fits: Sequence[BestFactor], grid: PerplexityGrid) -> ReportTable:
    rows = []
    for fit in fits:
        best = grid[fit.factor, fit.window]
        best_cells = (fit.window, fit.factor, fit.perplexity, best.low, best.high)
        next_cells = (fit.next_factor, fit.next_perplexity, 100 * fit.margin, "yes" if fit.clear else "no")
        rows.append((*best_cells, *next_cells))
    headers = (
        *("window", "best factor", "perplexity", "from (95 %)", "to"),
        *("next factor", "its perplexity", "higher by, %", "clear"),
    )
    return ReportTable("Best factor by window", headers, tuple(rows))


def _heat_map(fits: Sequence[BestFactor], grid: PerplexityGrid) -> HeatMap:
    best = {fit.window: fit.perplexity for fit in fits}
    return HeatMap(
        "How near each factor comes to the best at its window: the best perplexity as a share of its own",
        "window, tokens",
        "factor",
        tuple(float(window) for window in best),
        tuple(_factors(grid)),
        tuple(
            tuple(best[window] / grid[factor, window].perplexity for window in best)
            for factor in _factors(grid)
        ),
    )


def _line_plot(grid: PerplexityGrid) -> LinePlot:
    values = [result.perplexity for result in grid.values()]
    series = []
    for factor in _factors(grid):
        results = [grid[factor, window] for window in window_lengths(grid)]
        points = tuple(PlotPoint(r.window, r.perplexity, r.low, r.high) for r in results)
        series.append(PlotSeries(variant_name(factor), points))
    return LinePlot(
        "Perplexity by window, under each factor",
        "window, tokens",
        "perplexity",
        tuple(series),
        log_x=True,
        log_y=max(values) > 10 * min(values),
    )
