"""The verdict of a rope factor sweep: the best factor, how certain it is, and up to which window it holds.

It is given as data (`judge_factors`), in words (`describe_verdict`), and as options for `pigguf convert`
(`convert_options`). Not here: measuring the perplexities (rope_factor_sweep.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pigguf.evals.perplexity import PerplexityResult
from pigguf.rope import Positions

# A window holds while its perplexity is at most this many times the best of shorter ones: text differs, too.
_MAX_RISE = 1.1

# (factor, window length) -> the perplexity there
PerplexityGrid = Mapping[tuple[float, int], PerplexityResult]


@dataclass(frozen=True)
class BestFactor:
    """The best and the next best factor at one window length. Its attributes are JSON keys of a report.

    Attributes:
        window: the window length, in tokens.
        factor: the factor with the lowest perplexity.
        perplexity: that perplexity.
        next_factor: the factor with the next lowest perplexity.
        next_perplexity: that perplexity.
        clear: whether the two confidence intervals do not overlap.
    """

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
    """What the perplexities of all factors show. Its attributes are JSON keys of a report.

    Attributes:
        factor: the best factor at the shortest window.
        clear: whether it is clearly the best there.
        reach: the longest window, in tokens, up to which its perplexity holds.
        breaks_at: the first window at which it does not, or None if it holds at all of them.
        fits: the best factor at each window, ascending.
    """

    factor: float
    clear: bool
    reach: int
    breaks_at: int | None
    fits: tuple[BestFactor, ...]


def judge_factors(grid: PerplexityGrid) -> SweepVerdict:
    """Return the verdict on the perplexities of all factors at all windows."""
    fits = tuple(_best_factor(window, grid) for window in window_lengths(grid))
    factor = fits[0].factor
    reach, breaks_at = _find_reach([grid[factor, fit.window] for fit in fits])
    return SweepVerdict(factor, fits[0].clear, reach, breaks_at, fits)


def window_lengths(grid: PerplexityGrid) -> list[int]:
    """Return the window lengths of a grid, ascending."""
    return sorted({window for _, window in grid})


def variant_name(factor: float) -> str:
    """Return the name of the position variant of a factor."""
    return f"factor {factor:g}"


def _best_factor(window: int, grid: PerplexityGrid) -> BestFactor:
    ranked = sorted(
        ((factor, result) for (factor, length), result in grid.items() if length == window),
        key=lambda pair: pair[1].perplexity,
    )
    (factor, best), (next_factor, second) = ranked[:2]
    clear = best.high is not None and second.low is not None and best.high < second.low
    return BestFactor(window, factor, best.perplexity, next_factor, second.perplexity, clear)


def _find_reach(results: Sequence[PerplexityResult]) -> tuple[int, int | None]:
    """Return the last window before perplexity rises, and the window where it does, if there is one.

    A rise is more than _MAX_RISE, with confidence intervals that do not overlap.

    Args:
        results: the perplexities of one factor, by ascending window.
    """
    best = results[0]
    reach = best.window
    for result in results[1:]:
        disjoint = result.low is None or best.high is None or result.low > best.high
        if disjoint and result.perplexity > _MAX_RISE * best.perplexity:
            return reach, result.window
        reach = result.window
        best = min(best, result, key=lambda result: result.perplexity)
    return reach, None


# ---- in words ------------------------------------------------------------------------------------


def describe_verdict(verdict: SweepVerdict, grid: PerplexityGrid, file_rope: Positions) -> str:
    """Describe a verdict: which factor, how certainly, up to which window, and what to do.

    Args:
        verdict: the verdict.
        grid: the perplexities that it rests on.
        file_rope: the rope settings that the file states.
    """
    sentences = (
        _describe_best_factor(verdict),
        *_describe_without_scaling(verdict, grid),
        _describe_reach(verdict, grid),
        _describe_next_step(verdict, file_rope),
    )
    return " ".join(sentences)


def _describe_best_factor(verdict: SweepVerdict) -> str:
    fits, name = verdict.fits, variant_name(verdict.factor)
    windows = _join_windows([fit.window for fit in fits])
    if any(fit.factor != verdict.factor for fit in fits):
        return _describe_different_factors(verdict)
    unclear = [fit for fit in fits if not fit.clear]
    if not unclear:
        return f"{name.capitalize()} fits best, clearly, at {windows}: {_describe_margin(fits[0])}."
    if len(unclear) == len(fits):
        return (
            f"{name.capitalize()} has the lowest perplexity at {windows}, but not clearly: "
            f"{_describe_overlap(fits[0])}."
        )
    overlaps = "; ".join(_describe_overlap(fit) for fit in unclear)
    return f"{name.capitalize()} fits best at {windows}, but not clearly everywhere: {overlaps}."


def _describe_different_factors(verdict: SweepVerdict) -> str:
    windows_by_factor: dict[float, list[int]] = {}
    for fit in verdict.fits:
        windows_by_factor.setdefault(fit.factor, []).append(fit.window)
    each = "; ".join(
        f"{variant_name(factor)} at {_join_windows(windows)}" for factor, windows in windows_by_factor.items()
    )
    certainty = "clearly so" if verdict.clear else f"not clearly: {_describe_overlap(verdict.fits[0])}"
    return (
        f"No one factor fits best at every window: {each}. A model is best under the factor it was "
        f"trained with in its shortest windows too, and that is {variant_name(verdict.factor)}, {certainty}; "
        "one that wins in longer windows alone is only less bad there."
    )


def _describe_margin(fit: BestFactor) -> str:
    higher = f"{fit.margin:.1%} higher" if fit.margin < 1 else f"{fit.margin + 1:.3g} times as high"
    return (
        f"at {fit.window:,} tokens its perplexity is {fit.perplexity:.5g}, "
        f"that of {variant_name(fit.next_factor)} {fit.next_perplexity:.5g} ({higher})"
    )


def _describe_overlap(fit: BestFactor) -> str:
    return (
        f"at {fit.window:,} tokens the intervals of {variant_name(fit.factor)} ({fit.perplexity:.5g}) and "
        f"{variant_name(fit.next_factor)} ({fit.next_perplexity:.5g}) overlap"
    )


def _describe_without_scaling(verdict: SweepVerdict, grid: PerplexityGrid) -> list[str]:
    if verdict.factor == 1:
        return []
    unscaled = grid[1.0, verdict.reach].perplexity
    scaled = grid[verdict.factor, verdict.reach].perplexity
    return [f"Without scaling, perplexity at {verdict.reach:,} is {unscaled:.5g} instead of {scaled:.5g}."]


def _describe_reach(verdict: SweepVerdict, grid: PerplexityGrid) -> str:
    at_reach = grid[verdict.factor, verdict.reach].perplexity
    name = variant_name(verdict.factor)
    holds = f"Under {name} perplexity holds up to {verdict.reach:,} tokens ({at_reach:.5g})"
    if verdict.breaks_at is None:
        return f"{holds}, the longest window measured."
    at_break = grid[verdict.factor, verdict.breaks_at].perplexity
    return f"{holds} and rises at {verdict.breaks_at:,} ({at_break:.5g})."


def _describe_next_step(verdict: SweepVerdict, file_rope: Positions) -> str:
    if not verdict.clear:
        return "Measure more windows, or a longer text, before relying on it."
    is_linear = file_rope.rope_type in ("none", "linear")
    if is_linear and math.isclose(file_rope.factor, verdict.factor, rel_tol=1e-3):
        return "That is the factor the file states."
    stated = f"{file_rope.rope_type}, factor {file_rope.factor:g}"
    if file_rope.rope_type == "none":
        stated = "no scaling"
    caveat = ""
    if verdict.breaks_at is None and verdict.factor > 1:
        context = _context_window(verdict, file_rope)
        caveat = f" (no window measured was too long; --context {context} may be too short)"
    options = convert_options(verdict, file_rope)
    return f"The file states {stated}: convert the checkpoint again with {options}{caveat}."


def convert_options(verdict: SweepVerdict, file_rope: Positions) -> str:
    """Return the command-line options with which `pigguf convert` writes the factor that was found."""
    context = _context_window(verdict, file_rope)
    if verdict.factor == 1:
        return f"--rope-factor 1 --context {context}"
    original = round(context / verdict.factor)
    return f"--rope-factor {verdict.factor:g} --original-context {original} --context {context}"


def _context_window(verdict: SweepVerdict, file_rope: Positions) -> int:
    """Return the window up to which perplexity holds: the file's own if it holds at all windows."""
    if verdict.breaks_at is None:
        return max(verdict.reach, file_rope.context_length)
    return verdict.reach


def _join_windows(windows: Sequence[int]) -> str:
    *others, last = (f"{window:,}" for window in windows)
    return f"{', '.join(others)} and {last}" if others else last
