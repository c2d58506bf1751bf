"""sweep: which rope scaling factor suits a model, by its perplexity under each, in each window.

    report = sweep("model.gguf", ["novel.txt"], factors=[1, 2, 4, 8])

For a checkpoint whose factor was lost, and for an untuned base. Every factor divides positions linearly, in
place of whatever the file says; 1 is no scaling, and is always among them, as is the file's own.

How the verdict is reached: a model is best under the factor it was trained with at every window, the short
ones too, for any other moves its tokens apart or together. An untuned base is best at 1 in short windows;
beyond its own a larger factor is then merely less bad. So the shortest window decides which factor it is,
and the longest window up to which its perplexity holds is the window that the model has. Best is clear
where the intervals of 95 % of the best and of the next factor are apart; all read the same text, so that
this asks for more than it must.

Perplexity is measured by half windows (perplexity.py). Left out: scalings other than linear
(`--compare` of the other evaluations), the terminal and the page.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.evals.journal import Journal
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.inference.run_config import EngineConfig
from pigguf.evals.perplexity import (
    FIRST_DEFAULT_WINDOW,
    MIN_WINDOW,
    TokenizedText,
    PerplexityResult,
    WindowSelection,
    measure_perplexity,
    tokenize_texts,
    check_texts_fill_window,
)
from pigguf.evals.position_variants import check_rope_replaceable
from pigguf.evals.report import HeatMap, LinePlot, PlotPoint, Report, PlotSeries, ReportTable, software_versions
from pigguf.inference.engine import RuntimeRope
from pigguf.progress import SILENT, Progress
from pigguf.rope import RopeScaling

FACTORS = (1.0, 2.0, 4.0, 8.0)
MAX_WINDOWS = 4  # of each length: about as many tokens as the interval of a clear difference needs

# A window holds while perplexity is no more than this above the best in shorter ones: text differs too.
_HOLDS = 1.1

# (factor, window) -> what was measured
Figures = Mapping[tuple[float, int], PerplexityResult]


@dataclass(frozen=True)
class BestFactor:
    """The best factor at one window, and the next best."""

    window: int
    factor: float
    perplexity: float
    next_factor: float
    next_perplexity: float
    clear: bool

    @property
    def margin(self) -> float:
        """How much higher the next factor's perplexity is, as a share of the best."""
        return self.next_perplexity / self.perplexity - 1


@dataclass(frozen=True)
class SweepVerdict:
    """What the figures say of the model.

    Attributes:
        factor: best at the shortest window.
        clear: by intervals apart, there.
        reach: the longest window, in tokens, up to which its perplexity holds.
        breaks_at: the first window at which it does not, or None where all hold.
        fits: by window.
    """

    factor: float
    clear: bool
    reach: int
    breaks_at: int | None
    fits: tuple[BestFactor, ...]


def sweep(
    model: str | Path,
    text: Sequence[str | Path],
    *,
    factors: Sequence[float] = FACTORS,
    windows: Sequence[int] | None = None,
    max_windows: int | None = MAX_WINDOWS,
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> Report:
    """Measure a GGUF file's perplexity under factors. Interrupted, it goes on where it was when run again.

    Args:
        model: a GGUF file.
        text: files of UTF-8 text, none shorter than the largest window.
        factors: linear rope scaling factors from 1, beside 1 and the file's own.
        windows: in tokens; None is 2048, doubling up to twice the file's context length as far as the
            texts reach.
        max_windows: of each length compute so many at most, spread evenly over the text; None is all.
        progress: a stage for each factor and window, in tokens computed.

    Raises:
        UsageError: options that do not fit together, or a file whose positions no override can replace.
        TextError: a text that is shorter than the largest window.
        OutputError: the cache directory cannot be written.
        As Subject.of and Subject.open do.
    """
    subject = ModelUnderTest.from_file(model, engine, progress)
    check_rope_replaceable(subject.file)
    tried = _checked_factors(factors, subject.file_rope)
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"the most windows are {max_windows}", "give a number from 1")
    documents = tokenize_texts(subject, text, None)
    lengths = _windows_of(subject, documents) if windows is None else _checked_windows(windows)
    check_texts_fill_window(documents, lengths[-1])
    settings = {
        "method": "half-window",
        "factors": tried,
        "windows": lengths,
        "max_windows": max_windows,
        "text": [{"name": d.name, "sha256": d.sha256, "tokens": len(d.tokens)} for d in documents],
        **subject.engine_settings(),
    }
    readings = {factor: _under(subject, factor, lengths[-1]) for factor in tried}
    rule = WindowSelection("half-window", None, max_windows)
    made_by = software_versions()
    with Journal(subject.sha256, "sweep", settings, made_by) as journal:
        figures = {
            (factor, length): measure_perplexity(reading, documents, length, rule, journal, progress)
            for length in lengths
            for factor, reading in readings.items()
        }
    verdict = judge_factors(figures)
    return Report(
        evaluation="sweep",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={
            "verdict": describe_verdict(verdict, figures, subject.file_rope),
            **asdict(verdict),
            "convert": convert_options(verdict, subject.file_rope),
            "perplexity": [{"factor": factor, **vars(figure)} for (factor, _), figure in figures.items()],
        },
        tables=(_perplexity_table(figures), _fit_table(verdict.fits, figures)),
        plots=(_heat_map(verdict.fits, figures), _lines(figures)),
    )


# ---- what is tried -------------------------------------------------------------------------------


def _under(subject: ModelUnderTest, factor: float, longest: int) -> ModelUnderTest:
    rope = RuntimeRope(factor, context_length=max(longest, subject.context_length), scaling_type="linear")
    rope.metadata(subject.file)  # refuses before anything is computed
    return subject.with_variant(_name(factor), rope)


def _name(factor: float) -> str:
    return f"factor {factor:g}"


def _checked_factors(factors: Sequence[float], own: RopeScaling) -> list[float]:
    for factor in factors:
        if not 1 <= factor < math.inf:
            raise UsageError(f"the factor {factor:g} is none that stretches a window", "give numbers from 1")
    tried = sorted({1.0, *map(float, factors), *([own.factor] if own.rope_type == "linear" else [])})
    if len(tried) < 2:
        raise UsageError("factor 1 alone is no sweep", "give other factors to compare it with")
    return tried


def _checked_windows(windows: Sequence[int]) -> list[int]:
    lengths = sorted(set(windows))
    if not lengths or lengths[0] < MIN_WINDOW:
        raise UsageError(f"the windows are {lengths}", f"give one or more, of {MIN_WINDOW} tokens at least")
    return lengths


def _windows_of(subject: ModelUnderTest, documents: Sequence[TokenizedText]) -> list[int]:
    """2048, doubling up to twice the file's context length, as far as the texts reach."""
    most = min(2 * subject.context_length, *(len(document.tokens) for document in documents))
    lengths = [min(FIRST_DEFAULT_WINDOW, subject.context_length)]
    while 2 * lengths[-1] <= most:
        lengths.append(2 * lengths[-1])
    return lengths


# ---- the verdict ---------------------------------------------------------------------------------


def judge_factors(figures: Figures) -> SweepVerdict:
    """What the figures of all factors at all windows come to."""
    fits = tuple(_fit(window, figures) for window in _windows(figures))
    factor = fits[0].factor
    reach, breaks_at = _reach([figures[factor, fit.window] for fit in fits])
    return SweepVerdict(factor, fits[0].clear, reach, breaks_at, fits)


def _fit(window: int, figures: Figures) -> BestFactor:
    ranked = sorted(
        ((factor, figure) for (factor, length), figure in figures.items() if length == window),
        key=lambda pair: pair[1].perplexity,
    )
    (factor, best), (next_factor, after) = ranked[:2]
    clear = best.high is not None and after.low is not None and best.high < after.low
    return BestFactor(window, factor, best.perplexity, next_factor, after.perplexity, clear)


def _reach(figures: Sequence[PerplexityResult]) -> tuple[int, int | None]:
    """The last window before perplexity rises, by more than intervals and _HOLDS allow; and the next."""
    best = figures[0]
    reach = best.window
    for figure in figures[1:]:
        apart = figure.low is None or best.high is None or figure.low > best.high
        if apart and figure.perplexity > _HOLDS * best.perplexity:
            return reach, figure.window
        reach = figure.window
        best = min(best, figure, key=lambda figure: figure.perplexity)
    return reach, None


def describe_verdict(verdict: SweepVerdict, figures: Figures, own: RopeScaling) -> str:
    """The verdict for a person: which factor, how surely, how far, and what to do."""
    return " ".join(
        (_best(verdict), *_beside_none(verdict, figures), _held(verdict, figures), _then(verdict, own))
    )


def _best(verdict: SweepVerdict) -> str:
    fits, name = verdict.fits, _name(verdict.factor)
    at = _listed([fit.window for fit in fits])
    if any(fit.factor != verdict.factor for fit in fits):
        groups = {fit.factor: [f.window for f in fits if f.factor == fit.factor] for fit in fits}
        each = "; ".join(f"{_name(factor)} at {_listed(windows)}" for factor, windows in groups.items())
        sure = "clearly so" if verdict.clear else f"not clearly: {_overlap(fits[0])}"
        return (
            f"No one factor fits best at every window: {each}. A model is best under the factor it was "
            f"trained with in its shortest windows too, and that is {name}, {sure}; one that wins in longer "
            "windows alone is only less bad there."
        )
    unclear = [fit for fit in fits if not fit.clear]
    if not unclear:
        return f"{name.capitalize()} fits best, clearly, at {at}: {_margin(fits[0])}."
    if len(unclear) == len(fits):
        return f"{name.capitalize()} has the lowest perplexity at {at}, but not clearly: {_overlap(fits[0])}."
    overlaps = "; ".join(_overlap(fit) for fit in unclear)
    return f"{name.capitalize()} fits best at {at}, but not clearly everywhere: {overlaps}."


def _margin(fit: BestFactor) -> str:
    higher = f"{fit.margin:.1%} higher" if fit.margin < 1 else f"{fit.margin + 1:.3g} times as high"
    return (
        f"at {fit.window:,} tokens its perplexity is {fit.perplexity:.5g}, that of {_name(fit.next_factor)} "
        f"{fit.next_perplexity:.5g} ({higher})"
    )


def _overlap(fit: BestFactor) -> str:
    return (
        f"at {fit.window:,} tokens the intervals of {_name(fit.factor)} ({fit.perplexity:.5g}) and "
        f"{_name(fit.next_factor)} ({fit.next_perplexity:.5g}) overlap"
    )


def _beside_none(verdict: SweepVerdict, figures: Figures) -> list[str]:
    if verdict.factor == 1:
        return []
    unscaled = figures[1.0, verdict.reach].perplexity
    ours = figures[verdict.factor, verdict.reach].perplexity
    return [f"Without scaling, perplexity at {verdict.reach:,} is {unscaled:.5g} instead of {ours:.5g}."]


def _held(verdict: SweepVerdict, figures: Figures) -> str:
    ours = figures[verdict.factor, verdict.reach].perplexity
    held = f"Under {_name(verdict.factor)} perplexity holds up to {verdict.reach:,} tokens ({ours:.5g})"
    if verdict.breaks_at is None:
        return f"{held}, the longest window measured."
    after = figures[verdict.factor, verdict.breaks_at].perplexity
    return f"{held} and rises at {verdict.breaks_at:,} ({after:.5g})."


def _then(verdict: SweepVerdict, own: RopeScaling) -> str:
    if not verdict.clear:
        return "Measure more text before relying on it (--max-windows, a longer --text)."
    if own.rope_type in ("none", "linear") and math.isclose(own.factor, verdict.factor, rel_tol=1e-3):
        return "That is the factor the file states."
    found = "no scaling" if own.rope_type == "none" else f"{own.rope_type}, factor {own.factor:g}"
    further = ""
    if verdict.breaks_at is None and verdict.factor > 1:
        further = f" (no window measured was too long; --context {_window(verdict, own)} may be too short)"
    return f"The file states {found}: convert the checkpoint again with {convert_options(verdict, own)}{further}."


def convert_options(verdict: SweepVerdict, own: RopeScaling) -> str:
    """The options for `pigguf convert` that say what was found."""
    context = _window(verdict, own)
    if verdict.factor == 1:
        return f"--rope-factor 1 --context {context}"
    original = round(context / verdict.factor)
    return f"--rope-factor {verdict.factor:g} --original-context {original} --context {context}"


def _window(verdict: SweepVerdict, own: RopeScaling) -> int:
    """As far as perplexity holds; all that the file states, if it held at every window measured."""
    return max(verdict.reach, own.context_length) if verdict.breaks_at is None else verdict.reach


def _listed(windows: Sequence[int]) -> str:
    *others, last = (f"{window:,}" for window in windows)
    return f"{', '.join(others)} and {last}" if others else last


# ---- what it looks like --------------------------------------------------------------------------


def _factors(figures: Figures) -> list[float]:
    return sorted({factor for factor, _ in figures})


def _windows(figures: Figures) -> list[int]:
    return sorted({window for _, window in figures})


def _perplexity_table(figures: Figures) -> ReportTable:
    windows = _windows(figures)
    return ReportTable(
        "Perplexity by factor and window (half-window)",
        ("factor", *(f"{window:,}" for window in windows)),
        tuple(
            (factor, *(figures[factor, window].perplexity for window in windows))
            for factor in _factors(figures)
        ),
    )


def _fit_table(fits: Sequence[BestFactor], figures: Figures) -> ReportTable:
    rows = []
    for fit in fits:
        best = figures[fit.factor, fit.window]
        ours = (fit.window, fit.factor, fit.perplexity, best.low, best.high)
        after = (fit.next_factor, fit.next_perplexity, 100 * fit.margin, "yes" if fit.clear else "no")
        rows.append((*ours, *after))
    headers = (
        *("window", "best factor", "perplexity", "from (95 %)", "to"),
        *("next factor", "its perplexity", "higher by, %", "clear"),
    )
    return ReportTable("Best factor by window", headers, tuple(rows))


def _heat_map(fits: Sequence[BestFactor], figures: Figures) -> HeatMap:
    best = {fit.window: fit.perplexity for fit in fits}
    return HeatMap(
        "How near each factor comes to the best at its window: the best perplexity as a share of its own",
        "window, tokens",
        "factor",
        tuple(float(window) for window in best),
        tuple(_factors(figures)),
        tuple(
            tuple(best[window] / figures[factor, window].perplexity for window in best)
            for factor in _factors(figures)
        ),
    )


def _lines(figures: Figures) -> LinePlot:
    values = [figure.perplexity for figure in figures.values()]
    series = []
    for factor in _factors(figures):
        own = [figures[factor, window] for window in _windows(figures)]
        points = tuple(PlotPoint(f.window, f.perplexity, f.low, f.high) for f in own)
        series.append(PlotSeries(_name(factor), points))
    return LinePlot(
        "Perplexity by window, under each factor",
        "window, tokens",
        "perplexity",
        tuple(series),
        log_x=True,
        log_y=max(values) > 10 * min(values),
    )
