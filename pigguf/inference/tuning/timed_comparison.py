"""Compare settings within a budget of seconds.

    comparison = SettingComparison(model, budget=90, progress=...)
    speeds = comparison.compare(ComparisonGroup("threads", 0.2), candidates)     (name, depth) -> median speed

Candidates are measured in turn, round after round, so that a disturbance affects all of them. Candidates at
one depth get samples of one size, as long ones as there is time for. The first round may use the whole
budget, the later ones only the group's share of it. What there is no time or memory for, or what the engine
cannot run, is listed in `skipped`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import ContextOptions, Model
from pigguf.inference.tuning.measure_speed import SpeedSample, measure_speed
from pigguf.inference.tuning.profile import Measurement, SpeedAtDepth
from pigguf.progress import Progress, stage

ROUNDS = 3
PROMPT, MIN_PROMPT = 512, 32  # tokens of a sample of prefill
STEPS, MIN_STEPS = 16, 3  # tokens of a sample of decode
_SAMPLES = 40  # about how many samples of prefill a budget should be enough for
_FILL_SECONDS_PER_BYTE = 3e-9  # of a KV cache; a first guess
# tokens in the KV cache after which a token takes twice as long: a guess for small models
_DOUBLING_DEPTH = 1024


class ComparisonGroup(NamedTuple):
    """What is compared, and the share of the budget at whose end its rounds after the first stop."""

    name: str
    share: float


@dataclass(frozen=True)
class TuningCandidate:
    """One setting at one depth.

    Attributes:
        name: the setting in words.
        options: the context's options; the length is set by each sample.
        depth: tokens in the KV cache before.
        prompt: tokens of a prompt; None is as many as there is time for.
        decodes: whether decode is measured too.
        cache_bytes: of the KV cache at the full context length, to be reported.
    """

    name: str
    options: ContextOptions
    depth: int = 0
    prompt: int | None = None
    decodes: bool = True
    cache_bytes: int | None = None


class SecondsPerToken(NamedTuple):
    """Seconds per token of prefill and of decode."""

    prefill: float
    decode: float


SpeedsByCandidate = Mapping[tuple[str, int], SpeedAtDepth]
"""(name, depth) of a candidate to its median speed."""


class SettingComparison:
    """The comparisons of one tuning.

    Attributes:
        model: the model that is measured.
        measurements: what was measured so far.
        skipped: what was not measured so far, and why, in words.
    """

    def __init__(self, model: Model, budget: float, progress: Progress) -> None:
        self.model = model
        self.measurements: list[Measurement] = []
        self.skipped: list[str] = []
        self._budget = budget
        self._progress = progress
        self._start = time.monotonic()
        self._pace: dict[int, SecondsPerToken] = {}  # by depth, the slowest seen
        self._fill_seconds_per_token = _FILL_SECONDS_PER_BYTE * model.kv_cache_bytes(1)

    @property
    def elapsed(self) -> float:
        """Seconds since the tuning began."""
        return time.monotonic() - self._start

    def warm_up(self) -> None:
        """Read the weights from disk once, and learn about how fast the model is.

        Raises:
            EngineError: the model does not run.
        """
        prompt = min(MIN_PROMPT, self.model.context_length // 2)
        with stage(self._progress, "warming up", 1, "steps"):
            self._measure(SpeedSample(ContextOptions(), 0, prompt, MIN_STEPS))
            self._progress.advance(1)
        if self.model.sliding_window:  # such caches are filled by prefill
            self._fill_seconds_per_token = 2 * self._pace[0].prefill

    def compare(self, group: ComparisonGroup, candidates: Sequence[TuningCandidate]) -> SpeedsByCandidate:
        """Measure candidates in turn, and return the median speed of each that could be measured."""
        speeds: dict[TuningCandidate, list[SpeedAtDepth]] = {candidate: [] for candidate in candidates}
        samples: dict[int, SpeedSample] = {}
        with stage(self._progress, group.name, ROUNDS * len(candidates), "steps"):
            for round_ in range(ROUNDS):
                for candidate in list(speeds):
                    sample = samples.setdefault(candidate.depth, self._plan_sample(candidate))
                    deadline = self._budget if round_ == 0 else self._budget * group.share
                    reason = self._measure_candidate(candidate, sample, deadline, speeds[candidate])
                    if reason and round_ == 0:
                        at_depth = f" at {candidate.depth:,} tokens" if candidate.depth else ""
                        self.skipped.append(f"{group.name}: {candidate.name}{at_depth}: {reason}")
                        del speeds[candidate]
                    self._progress.advance(1)
        medians = {candidate: _median_speed(measured) for candidate, measured in speeds.items()}
        self.measurements += [
            Measurement(group.name, one.name, speed, len(speeds[one]), one.cache_bytes)
            for one, speed in medians.items()
        ]
        return {(one.name, one.depth): speed for one, speed in medians.items()}

    def has_time_for(self, group: ComparisonGroup, seconds: float) -> bool:
        """Return whether the group's share of the budget still has this many seconds."""
        return self.elapsed + seconds <= self._budget * group.share

    def _measure_candidate(
        self, candidate: TuningCandidate, sample: SpeedSample, deadline: float, speeds: list[SpeedAtDepth]
    ) -> str | None:
        """Measure once more and append the speed, or return the reason why not."""
        sample = replace(sample, options=candidate.options)
        needed = self._estimate_seconds(sample)
        if self.elapsed + needed > deadline:
            return f"it would take {needed:,.0f} s"
        try:
            speeds.append(self._measure(sample))
        except (EngineError, UsageError) as error:
            return error.message
        return None

    def _measure(self, sample: SpeedSample) -> SpeedAtDepth:
        """Measure a sample, and learn from it for the estimates."""
        start = time.monotonic()
        speed = measure_speed(self.model, sample)
        seconds = time.monotonic() - start
        slowest = self._pace.get(sample.depth, SecondsPerToken(0, 0))
        pace = SecondsPerToken(
            max(slowest.prefill, 1 / speed.prefill if speed.prefill else 0),
            max(slowest.decode, 1 / speed.decode if speed.decode else 0),
        )
        self._pace[sample.depth] = pace
        if sample.depth:
            computed = sample.prompt * pace.prefill + (sample.steps + 1) * pace.decode
            fill = (seconds - computed) / sample.depth
            self._fill_seconds_per_token = max(self._fill_seconds_per_token, fill)
        return speed

    # ---- estimates -------------------------------------------------------------------------------

    def _plan_sample(self, candidate: TuningCandidate) -> SpeedSample:
        """Return a sample as long as there is time for and as fits into the context."""
        pace, seconds = self._estimate_pace(candidate.depth), self._budget / _SAMPLES
        tokens_left = self.model.context_length - candidate.depth - 1
        prompt = candidate.prompt or _power_of_two(MIN_PROMPT, seconds / pace.prefill, PROMPT)
        steps = _power_of_two(MIN_STEPS, seconds / 2 / pace.decode, STEPS) if candidate.decodes else 0
        return SpeedSample(
            candidate.options, candidate.depth, min(prompt, tokens_left), min(steps, tokens_left - 1)
        )

    def _estimate_seconds(self, sample: SpeedSample) -> float:
        pace = self._estimate_pace(
            sample.depth + sample.prompt // 2 if sample.prompt > PROMPT else sample.depth
        )
        fill = self._fill_seconds_per_token * sample.depth
        return fill + sample.prompt * pace.prefill + (sample.steps + 1) * pace.decode

    def _estimate_pace(self, depth: int) -> SecondsPerToken:
        """Return the seconds per token at a depth.

        They are measured, extrapolated from the two nearest depths that were measured, or guessed.
        """
        measured = sorted(self._pace, key=lambda other: abs(other - depth))
        nearest = self._pace[measured[0]]
        if measured[0] == depth:
            return nearest
        if len(measured) == 1:
            return SecondsPerToken(*(seconds * (1 + depth / _DOUBLING_DEPTH) for seconds in nearest))
        second = self._pace[measured[1]]
        fraction = (depth - measured[0]) / (measured[1] - measured[0])
        return SecondsPerToken(
            *(max(a, a + (b - a) * fraction) for a, b in zip(nearest, second, strict=True))
        )


def _power_of_two(least: int, wanted: float, most: int) -> int:
    """Return `most` halved until it is not above `wanted`, but at least `least`."""
    count = most
    while count > max(least, wanted):
        count //= 2
    return max(least, count)


def _median_speed(speeds: Sequence[SpeedAtDepth]) -> SpeedAtDepth:
    prefill = [speed.prefill for speed in speeds if speed.prefill is not None]
    decode = [speed.decode for speed in speeds if speed.decode is not None]
    return SpeedAtDepth(
        speeds[0].depth, median(prefill) if prefill else None, median(decode) if decode else None
    )
