"""Scores, tables and plots of the passkey test: hit rates by depth and distance, and k_max.

Not here: prompts and answers (passkey.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pigguf.evals.confidence_intervals import wilson
from pigguf.evals.passkey_plan import PasskeyPlan, PasskeyPosition
from pigguf.evals.report import Cell, HeatMap, LinePlot, Plot, PlotPoint, PlotSeries, ReportTable

K_MAX_HIT_RATE = 0.2  # the share of trials that must be answered right, for k_max

PasskeyAnswer = dict[str, Any]
"""One answer: start and distance (in tokens of the grid), tokens (the exact distance), length of the prompt,
key, answer, right, computed (tokens decoded for it), and separate (with a prefill of its own)."""


@dataclass(frozen=True)
class HitRate:
    """How many of a number of trials were answered right.

    Attributes:
        right: the number of right answers.
        trials: the number of all answers.
    """

    right: int
    trials: int

    @classmethod
    def of(cls, answers: Iterable[PasskeyAnswer]) -> HitRate:
        """Count the right ones among answers."""
        hits = [answer["right"] for answer in answers]
        return cls(sum(hits), len(hits))

    @property
    def share(self) -> float:
        """The share of right answers, between 0 and 1."""
        return self.right / self.trials

    def as_data(self) -> dict[str, Any]:
        """Return the counts and the share with its 95 % confidence interval, for a report."""
        low, high = wilson(self.right, self.trials)
        return {**asdict(self), "rate": self.share, "low": low, "high": high}


@dataclass(frozen=True)
class DistanceScore:
    """The answers at one distance.

    Attributes:
        n_tokens: the exact distance in tokens.
        rate: the hit rate over all depths.
        lowest_share: the lowest share of right answers at one depth.
    """

    n_tokens: int
    rate: HitRate
    lowest_share: float


class PasskeyScores:
    """The hit rates of one position variant.

    Attributes:
        answers: all answers.
        cells: (depth, distance) -> hit rate, both as tokens of the grid.
        distances: distance in tokens of the grid -> its score.
        total: the hit rate over all answers.
        k_max: the effective window in tokens of the grid; 0 if the first distance is not reached.
        k_max_at_every_depth: the same, if every depth must reach the hit rate.
    """

    def __init__(self, plan: PasskeyPlan, answers: list[PasskeyAnswer]) -> None:
        self.answers = answers
        self.cells = {
            (depth.grid_tokens, distance.grid_tokens): HitRate.of(
                answer
                for answer in answers
                if (answer["start"], answer["distance"]) == (depth.grid_tokens, distance.grid_tokens)
            )
            for depth in plan.depths
            for distance in plan.distances_from(depth)
        }
        self.distances = {distance.grid_tokens: self._score_distance(distance) for distance in plan.distances}
        self.total = HitRate.of(answers)
        self.k_max = k_max({distance: self.cells[0, distance].share for distance in self.distances})
        self.k_max_at_every_depth = k_max(
            {distance: score.lowest_share for distance, score in self.distances.items()}
        )

    def _score_distance(self, distance: PasskeyPosition) -> DistanceScore:
        at_distance = [answer for answer in self.answers if answer["distance"] == distance.grid_tokens]
        shares = [rate.share for (_, grid), rate in self.cells.items() if grid == distance.grid_tokens]
        return DistanceScore(distance.n_tokens, HitRate.of(at_distance), min(shares))

    @property
    def lowest_share(self) -> float:
        """The lowest share of right answers at one depth and distance."""
        return min(score.lowest_share for score in self.distances.values())

    def sum(self, key: str) -> int:
        """Return the sum of a value over all answers."""
        return sum(answer[key] for answer in self.answers)

    def as_data(self) -> dict[str, Any]:
        """Return the scores and all answers, for a report."""
        return {
            "k_max": self.k_max,
            "k_max_tokens": self.distances[self.k_max].n_tokens if self.k_max else 0,
            "k_max_at_every_depth": self.k_max_at_every_depth,
            **self.total.as_data(),
            "smallest_rate": self.lowest_share,
            "tokens_computed": self.sum("computed"),
            "tokens_of_separate_prefills": self.sum("separate"),
            "distances": [
                {
                    "distance": distance,
                    "tokens": score.n_tokens,
                    **score.rate.as_data(),
                    "smallest_rate": score.lowest_share,
                }
                for distance, score in self.distances.items()
            ],
            "cells": [
                {"start": depth, "distance": distance, **rate.as_data()}
                for (depth, distance), rate in self.cells.items()
            ],
            "answers": self.answers,
        }


def k_max(shares: Mapping[int, float]) -> int:
    """Return the largest distance such that it and all smaller ones have a share of at least K_MAX_HIT_RATE.

    Args:
        shares: distance in tokens -> share of right answers.

    Returns:
        The distance in tokens; 0 if the smallest distance has a lower share.
    """
    largest = 0
    for distance, share in sorted(shares.items()):
        if share < K_MAX_HIT_RATE:
            break
        largest = distance
    return largest


def passkey_tables(names: Sequence[str], scores: Mapping[str, PasskeyScores]) -> tuple[ReportTable, ...]:
    """Return a table of the effective windows, and one of the hit rates by distance.

    Args:
        names: the names of all variants; one whose window is too short has a row without values.
        scores: variant -> its scores.
    """
    summary: list[tuple[Cell, ...]] = []
    for name in names:
        variant_scores = scores.get(name)
        summary.append((name, *(_summary(variant_scores) if variant_scores else (None,) * 7)))
    first_scores = next(iter(scores.values()))
    by_distance: list[tuple[Cell, ...]] = []
    for distance, first_score in first_scores.distances.items():
        row: list[Cell] = [distance, first_score.n_tokens]
        for variant_scores in scores.values():
            score = variant_scores.distances[distance]
            row += [_percent(score.rate.share), _percent(score.lowest_share)]
        by_distance.append(tuple(row))
    columns = [column for name in scores for column in (f"{name}, %", "at the worst depth, %")]
    headers = (
        *("positions", "k_max", "k_max at every depth", "right, %", "of", "smallest rate, %"),
        *("tokens computed", "of separate prefills"),
    )
    return (
        ReportTable("Effective window by passkey", headers, tuple(summary)),
        ReportTable("Right by distance from the end", ("distance", "tokens", *columns), tuple(by_distance)),
    )


def _summary(scores: PasskeyScores) -> tuple[Cell, ...]:
    return (
        scores.k_max,
        scores.k_max_at_every_depth,
        _percent(scores.total.share),
        scores.total.trials,
        _percent(scores.lowest_share),
        scores.sum("computed"),
        scores.sum("separate"),
    )


def _percent(share: float) -> float:
    return round(100 * share, 1)


def passkey_plots(plan: PasskeyPlan, scores: Mapping[str, PasskeyScores]) -> tuple[Plot, ...]:
    """Return a line plot of all variants by distance, and for each variant a heat map by depth and length."""
    series = tuple(
        PlotSeries(
            name,
            tuple(
                PlotPoint(score.n_tokens, score.rate.share, *wilson(score.rate.right, score.rate.trials))
                for score in variant_scores.distances.values()
            ),
        )
        for name, variant_scores in scores.items()
    )
    lines = LinePlot(
        "Passkey found, by its distance", "tokens from the end of the input", "share right", series
    )
    return lines, *(_heat_map(plan, name, variant_scores) for name, variant_scores in scores.items())


def _heat_map(plan: PasskeyPlan, name: str, scores: PasskeyScores) -> HeatMap:
    def share(depth: PasskeyPosition, length: PasskeyPosition) -> float | None:
        """Return the share at the distance length - depth, which is on the grid because both are."""
        step = length.grid_step - depth.grid_step
        if step <= 0:
            return None
        return scores.cells[depth.grid_tokens, plan.distances[step - 1].grid_tokens].share

    return HeatMap(
        f"Passkey found, {name}",
        "length of the input, tokens",
        "tokens before the passkey",
        x=tuple(length.grid_tokens for length in plan.distances),
        y=tuple(depth.grid_tokens for depth in plan.depths),
        values=tuple(tuple(share(depth, length) for length in plan.distances) for depth in plan.depths),
    )
