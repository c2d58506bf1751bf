"""Passkey: from how far back a model still finds a number (arXiv 2306.15595, Section 3.3 and Table 4).

    report = passkey("model.gguf", max_length=32768)

Contract: a prompt of wordings.py hides a random key of five digits, and the greedy answer is right where
its first five digits are the key. `distance` is the paper's k: tokens from the key's first digit, where it
is mentioned first, to the end of the input. The distances are spread evenly over the window; filler is cut
at the end of a sentence, so that a real distance is the grid's or up to a sentence less (the last one also
leaves room for the header and the answer), and both are told. `k_max` is the largest distance of the grid
such that it and all smaller ones are answered right in at least 20 % of their trials.

The paper leaves open how long an input is. Here it grows: the key stays where it is, and what follows it
makes the distance. That lets one pass over the window ask at all distances of a trial: the cache is cut
back behind each question to what the next prompt shares with it (Session.set_prompt), so that every prompt
is, token by token, the one that a prefill of its own would read. What lies before the key is shared by all
trials. One sequence is enough for that: copies of it (llama_memory_seq_cp) would save no token more, and
would cost cells, and attention over the cells of other copies. The tokens computed are counted beside
those of separate prefills.

The key starts at `depths` places, spread evenly over the window, the first right behind the header: passes
from later places are shorter, and with them each length is asked with the key at several depths. k_max is
of the first place, as it alone has all distances; k_max_at_every_depth demands the same of every place.

Left out: inputs that always fill the window with the key moved, which share only what lies before the key.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pigguf.common.numerics import common_prefix_length
from pigguf.errors import UsageError
from pigguf.evals.confidence_intervals import wilson
from pigguf.evals.journal import Journal
from pigguf.evals.log_likelihood import NestedProgress
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.evals.passkey_plan import PasskeyPlan, PasskeyPosition, plan_passes
from pigguf.evals.passkey_prompts import PasskeyPrompts
from pigguf.evals.position_variants import parse_variants
from pigguf.evals.report import (
    Cell,
    EvalReport,
    HeatMap,
    LinePlot,
    Plot,
    PlotPoint,
    PlotSeries,
    ReportTable,
    software_versions,
)
from pigguf.inference.engine import Model, SamplingParams, Session
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress, stage

ENOUGH = 0.2  # of the trials, for k_max
_DIGITS = 5
_GREEDY = SamplingParams(temperature=0)


def passkey(
    model: str | Path,
    *,
    max_length: int | None = None,
    distances: int = 32,
    trials: int = 10,
    depths: int = 4,
    wording: str = "paper",
    seed: int = 0,
    compare: Sequence[str] = (),
    engine: EngineConfig | None = None,
    progress: Progress = SILENT,
) -> EvalReport:
    """From how far back the model finds a number.

    Args:
        model: a GGUF file.
        max_length: longest input in tokens, its answer included; None is the file's window.
        distances: how many, spread evenly over max_length.
        trials: keys for each distance and depth.
        depths: at how many places of the input the key is put; 1 is the cheapest.
        wording: of wordings.NAMES.
        seed: of the keys.
        compare: baselines to run beside the file as shipped (baselines.py).
        engine: how the engine runs it.
        progress: one stage a baseline, "passkey", in tokens.

    Raises:
        UsageError: options out of range; a window too small for so many distances or depths.
        TokenizerError: a chat wording for a model without a chat template.
        ContextOverflow: a window beyond the model's.
        As Subject.of and Subject.open do.
    """
    if trials < 1 or depths < 1:
        raise UsageError(f"{trials} trials at {depths} depths", "give numbers from 1")
    subject = ModelUnderTest.from_file(model, engine, progress)
    window = subject.context_length if max_length is None else max_length
    baselines = parse_variants(compare, subject.file, window)
    readings = [subject.with_variant(baseline.name, baseline.rope) for baseline in baselines]
    measured = [reading for reading in readings if reading.supports_window(window)]
    if not measured:
        subject.check_window(window)
    with Model.open(subject.path, vocab_only=True) as vocabulary:
        prompts = PasskeyPrompts(vocabulary, wording)
        keys = random_keys(seed, depths * trials)
        longest = max(keys, key=lambda key: len(prompts.encode(key, 0, 0)))
        plan = plan_passes(prompts, longest, window, distances, depths)
        settings = {
            "max_length": window,
            "distances": distances,
            "trials": trials,
            "depths": depths,
            "wording": wording,
            "words": asdict(prompts.wording),
            "seed": seed,
            "compare": [baseline.name for baseline in baselines[1:]],
            **subject.engine_settings(),
        }
        made_by = software_versions()
        with Journal(subject.sha256, "passkey", settings, made_by) as journal:
            found = {
                reading.name: _Rates(
                    plan,
                    _run(reading, window, plan, _passes(reading, plan, keys), prompts, journal, progress),
                )
                for reading in measured
            }
    return EvalReport(
        evaluation="passkey",
        subject=subject.as_data(),
        settings=settings,
        versions=made_by,
        results={"readings": {name: rates.as_data() for name, rates in found.items()}},
        tables=_tables([reading.name for reading in readings], found),
        plots=_plots(plan, found),
    )


# ---- asking --------------------------------------------------------------------------------------

Answer = dict[str, Any]
"""One question: start and distance on the grid, tokens (the real distance), length of the prompt, key,
answer, right, and what it took: computed, and separate, what it would have taken by itself."""


@dataclass(frozen=True)
class _Pass:
    """One trial: a key, the place that it is put at, and what the journal calls it."""

    name: str
    start: PasskeyPosition
    key: str


def random_keys(seed: int, count: int) -> list[str]:
    """Keys of five digits, the first not 0."""
    draw = random.Random(seed)
    return [str(draw.randrange(10 ** (_DIGITS - 1), 10**_DIGITS)) for _ in range(count)]


def _passes(reading: ModelUnderTest, plan: PasskeyPlan, keys: Sequence[str]) -> list[_Pass]:
    """As many for each start, in its order."""
    trials = len(keys) // len(plan.depths)
    return [
        _Pass(f"{reading.name}/{start.grid_tokens}/{trial}", start, keys[number * trials + trial])
        for number, start in enumerate(plan.depths)
        for trial in range(trials)
    ]


def _run(
    reading: ModelUnderTest,
    window: int,
    plan: PasskeyPlan,
    passes: Sequence[_Pass],
    prompts: PasskeyPrompts,
    journal: Journal,
    progress: Progress,
) -> list[Answer]:
    """All answers of the file under one reading of positions, from the journal or computed."""
    missing = [one for one in passes if one.name not in journal]
    if missing:
        with (
            reading.open(window, progress=progress) as context,
            context.sequence() as session,
            stage(progress, f"passkey, {reading.name}", _cost(missing, plan, prompts), "tokens"),
        ):
            for one in missing:
                journal.get_or_compute(one.name, partial(_answers, session, prompts, plan, one, progress))
    return [answer for one in passes for answer in journal[one.name]]


def _cost(passes: Sequence[_Pass], plan: PasskeyPlan, prompts: PasskeyPrompts) -> int:
    """Tokens to compute for passes one after the other, but for those of the answers."""
    total = 0
    held: list[int] = []
    for one in passes:
        beginning = prompts.encode(one.key, one.start.n_sentences, 0)
        total += one.start.n_tokens - common_prefix_length(held, beginning) + plan.prefill_tokens(one.start)
        held = beginning
    return total


def _answers(session: Session, prompts: PasskeyPrompts, plan: PasskeyPlan, one: _Pass, progress: Progress) -> list[Answer]:
    """Ask for one key at all distances, from the nearest on: each prompt goes on where the last one was."""
    asked = plan.distances_from(one.start)
    return [_ask(session, prompts, one.start, distance, one.key, progress) for distance in asked]


def _ask(
    session: Session, prompts: PasskeyPrompts, start: PasskeyPosition, distance: PasskeyPosition, key: str, progress: Progress
) -> Answer:
    prompt = prompts.encode(key, start.n_sentences, distance.n_sentences)
    kept = session.set_prompt(prompt, NestedProgress(progress))
    text, drawn = _decode(session, prompts.max_answer_tokens)
    decodes = max(0, drawn - 1)  # the first token is drawn from the prompt's own logits
    return {
        "start": start.grid_tokens,
        "distance": distance.grid_tokens,
        "tokens": len(prompt) - start.n_tokens,
        "length": len(prompt),
        "key": key,
        "answer": text,
        "right": extract_digits(text) == key,
        "computed": len(prompt) - kept + decodes,
        "separate": len(prompt) + decodes,
    }


def _decode(session: Session, limit: int) -> tuple[str, int]:
    """The greedy answer up to its fifth digit, and how many tokens were drawn."""
    model = session.context.model
    drawn, answer = 0, b""
    with closing(session.generate(_GREEDY, limit, prompt_lookup=False)) as tokens:
        for token in tokens:
            drawn += 1
            answer += model.token_to_piece(token)
            if len(extract_digits(_text(answer))) == _DIGITS:
                break
    return _text(answer), drawn


def extract_digits(answer: str) -> str:
    """The first five digits of an answer, be they tokens of their own or apart."""
    return "".join(re.findall("[0-9]", answer)[:_DIGITS])


def _text(answer: bytes) -> str:
    return answer.decode("utf-8", "replace")


# ---- what it comes to ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rate:
    """How many of so many answers were right."""

    right: int
    trials: int

    @classmethod
    def of(cls, answers: Iterable[Answer]) -> _Rate:
        rights = [answer["right"] for answer in answers]
        return cls(sum(rights), len(rights))

    @property
    def share(self) -> float:
        return self.right / self.trials

    def as_data(self) -> dict[str, Any]:
        low, high = wilson(self.right, self.trials)
        return {**asdict(self), "rate": self.share, "low": low, "high": high}


class _Rates:
    """The answers under one reading of positions, by place.

    Attributes:
        answers: all of them.
        cells: rates by start and distance, both on the grid.
        distances: by distance: its tokens, the rate over all starts, and the smallest of one start.
        total: of all answers.
        k_max, k_max_at_every_depth: on the grid, 0 where not even the first distance is reached.
    """

    def __init__(self, plan: PasskeyPlan, answers: list[Answer]) -> None:
        self.answers = answers
        self.cells = {
            (start.grid_tokens, distance.grid_tokens): _Rate.of(
                answer
                for answer in answers
                if (answer["start"], answer["distance"]) == (start.grid_tokens, distance.grid_tokens)
            )
            for start in plan.depths
            for distance in plan.distances_from(start)
        }
        self.distances = {
            distance.grid_tokens: (
                distance.n_tokens,
                _Rate.of(answer for answer in answers if answer["distance"] == distance.grid_tokens),
                min(rate.share for (_, grid), rate in self.cells.items() if grid == distance.grid_tokens),
            )
            for distance in plan.distances
        }
        self.total = _Rate.of(answers)
        self.k_max = k_max({distance: self.cells[0, distance].share for distance in self.distances})
        self.k_max_at_every_depth = k_max(
            {distance: smallest for distance, (_, _, smallest) in self.distances.items()}
        )

    @property
    def smallest(self) -> float:
        """The smallest rate of one start and distance."""
        return min(smallest for _, _, smallest in self.distances.values())

    def sum(self, field: str) -> int:
        return sum(answer[field] for answer in self.answers)

    def as_data(self) -> dict[str, Any]:
        return {
            "k_max": self.k_max,
            "k_max_tokens": self.distances[self.k_max][0] if self.k_max else 0,
            "k_max_at_every_depth": self.k_max_at_every_depth,
            **self.total.as_data(),
            "smallest_rate": self.smallest,
            "tokens_computed": self.sum("computed"),
            "tokens_of_separate_prefills": self.sum("separate"),
            "distances": [
                {"distance": distance, "tokens": tokens, **rate.as_data(), "smallest_rate": smallest}
                for distance, (tokens, rate, smallest) in self.distances.items()
            ],
            "cells": [
                {"start": start, "distance": distance, **rate.as_data()}
                for (start, distance), rate in self.cells.items()
            ],
            "answers": self.answers,
        }


def k_max(shares: Mapping[int, float]) -> int:
    """The largest distance such that it and all before it have enough right; 0 where the first has not."""
    reached = 0
    for distance, share in sorted(shares.items()):
        if share < ENOUGH:
            break
        reached = distance
    return reached


def _tables(names: Sequence[str], found: Mapping[str, _Rates]) -> tuple[ReportTable, ...]:
    """How far each reading reaches, and the rates by distance; a window beyond the file's has no figures."""
    summary: list[tuple[Cell, ...]] = []
    for name in names:
        rates = found.get(name)
        summary.append((name, *(_summary(rates) if rates else (None,) * 7)))
    distances = next(iter(found.values())).distances
    by_distance: list[tuple[Cell, ...]] = []
    for distance, (tokens, _, _) in distances.items():
        row: list[Cell] = [distance, tokens]
        for rates in found.values():
            _, rate, smallest = rates.distances[distance]
            row += [_percent(rate.share), _percent(smallest)]
        by_distance.append(tuple(row))
    columns = [column for name in found for column in (f"{name}, %", "at the worst depth, %")]
    return (
        ReportTable(
            "Effective window by passkey",
            (
                "positions",
                "k_max",
                "k_max at every depth",
                "right, %",
                "of",
                "smallest rate, %",
                "tokens computed",
                "of separate prefills",
            ),
            tuple(summary),
        ),
        ReportTable("Right by distance from the end", ("distance", "tokens", *columns), tuple(by_distance)),
    )


def _summary(rates: _Rates) -> tuple[Cell, ...]:
    return (
        rates.k_max,
        rates.k_max_at_every_depth,
        _percent(rates.total.share),
        rates.total.trials,
        _percent(rates.smallest),
        rates.sum("computed"),
        rates.sum("separate"),
    )


def _percent(share: float) -> float:
    return round(100 * share, 1)


def _plots(plan: PasskeyPlan, found: Mapping[str, _Rates]) -> tuple[Plot, ...]:
    series = tuple(
        PlotSeries(
            name,
            tuple(
                PlotPoint(tokens, rate.share, *wilson(rate.right, rate.trials))
                for tokens, rate, _ in rates.distances.values()
            ),
        )
        for name, rates in found.items()
    )
    lines = LinePlot("Passkey found, by its distance", "tokens from the end of the input", "share right", series)
    return lines, *(_heat_map(plan, name, rates) for name, rates in found.items())


def _heat_map(plan: PasskeyPlan, name: str, rates: _Rates) -> HeatMap:
    def share(start: PasskeyPosition, length: PasskeyPosition) -> float | None:
        """A start lies on the distances' grid, so that lengths do too."""
        step = length.grid_step - start.grid_step
        return rates.cells[start.grid_tokens, plan.distances[step - 1].grid_tokens].share if step > 0 else None

    return HeatMap(
        f"Passkey found, {name}",
        "length of the input, tokens",
        "tokens before the passkey",
        x=tuple(length.grid_tokens for length in plan.distances),
        y=tuple(start.grid_tokens for start in plan.depths),
        values=tuple(tuple(share(start, length) for length in plan.distances) for start in plan.depths),
    )
