"""Comparisons of settings within a budget of seconds.

    rounds = Rounds(model, budget=90, progress=...)
    speeds = rounds.compare(Group("threads", 0.2), candidates)       (name, depth) -> median speed

Contract: candidates are measured in turn, round after round, so that a disturbance hits all of them alike;
candidates at one depth get samples of one size, as long as the model is fast. The first round takes what the
whole budget allows, the others what the group's share does. What there is no time or memory for, or what the
engine cannot run, is written down in `left_out`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import Model
from pigguf.inference.tuning.measure_speed import Visit, measure
from pigguf.inference.tuning.profile import Measurement, Setting, Speed
from pigguf.progress import Progress, stage

ROUNDS = 3
PROMPT, LEAST_PROMPT = 512, 32  # tokens of a sample of prefill
STEPS, LEAST_STEPS = 16, 3  # of decode
_SAMPLES = 40  # of prefill, about, that a budget should do for
_FILL = 3e-9  # seconds that a byte of a cache takes until it lies there, at first guess
_DOUBLED = 1024  # tokens in the cache, after which a token takes twice as long: a guess for small models


class Group(NamedTuple):
    """What is compared, and the share of the budget by whose end its rounds after the first are over."""

    name: str
    share: float


@dataclass(frozen=True)
class Candidate:
    """One setting at one depth.

    Attributes:
        prompt: tokens of a prompt; None is as many as there is time for.
        decodes: whether single tokens are measured too.
        cache_bytes: of the KV cache at the full window, to be told.
    """

    name: str
    setting: Setting
    depth: int = 0
    prompt: int | None = None
    decodes: bool = True
    cache_bytes: int | None = None


class Pace(NamedTuple):
    """Seconds a token of a prompt, and of an answer."""

    prompt: float
    token: float


Speeds = Mapping[tuple[str, int], Speed]


class Rounds:
    """The comparisons of one tuning.

    Attributes:
        measurements, left_out: what was measured so far, and what was not.
    """

    def __init__(self, model: Model, budget: float, progress: Progress) -> None:
        self.model = model
        self.measurements: list[Measurement] = []
        self.left_out: list[str] = []
        self._budget = budget
        self._progress = progress
        self._begun = time.monotonic()
        self._paces: dict[int, Pace] = {}  # by depth, the slowest seen
        self._fill = _FILL * model.cache_bytes(1)  # seconds a token of depth

    @property
    def elapsed(self) -> float:
        """Seconds since the tuning began."""
        return time.monotonic() - self._begun

    def warm_up(self) -> None:
        """Read the weights from the disk once, and learn about how fast the model is.

        Raises:
            EngineError: the model does not run.
        """
        prompt = min(LEAST_PROMPT, self.model.context_length // 2)
        with stage(self._progress, "warming up", 1, "steps"):
            self._visit(Visit(Setting(), 0, prompt, LEAST_STEPS))
            self._progress.advance(1)
        if self.model.sliding_window:  # whose caches are filled by reading
            self._fill = 2 * self._paces[0].prompt

    def compare(self, group: Group, candidates: Sequence[Candidate]) -> Speeds:
        """Measure candidates in turn; (name, depth) to the median of each that could be."""
        samples: dict[Candidate, list[Speed]] = {candidate: [] for candidate in candidates}
        visits: dict[int, Visit] = {}
        with stage(self._progress, group.name, ROUNDS * len(candidates), "steps"):
            for number in range(ROUNDS):
                for candidate in list(samples):
                    visit = visits.setdefault(candidate.depth, self._planned(candidate))
                    until = self._budget if number == 0 else self._budget * group.share
                    why_not = self._sample(candidate, visit, until, samples[candidate])
                    if why_not and number == 0:
                        at = f" at {candidate.depth:,} tokens" if candidate.depth else ""
                        self.left_out.append(f"{group.name}: {candidate.name}{at}: {why_not}")
                        del samples[candidate]
                    self._progress.advance(1)
        medians = {candidate: _median(found) for candidate, found in samples.items()}
        self.measurements += [
            Measurement(group.name, one.name, speed, len(samples[one]), one.cache_bytes)
            for one, speed in medians.items()
        ]
        return {(one.name, one.depth): speed for one, speed in medians.items()}

    def has_time_for(self, group: Group, seconds: float) -> bool:
        """Whether the group's share still holds so many seconds."""
        return self.elapsed + seconds <= self._budget * group.share

    def _sample(self, candidate: Candidate, visit: Visit, until: float, samples: list[Speed]) -> str | None:
        """Measure once more, or say why not."""
        visit = Visit(candidate.setting, visit.depth, visit.prompt, visit.steps)
        needed = self._seconds(visit)
        if self.elapsed + needed > until:
            return f"it would take {needed:,.0f} s"
        try:
            samples.append(self._visit(visit))
        except (EngineError, UsageError) as error:
            return error.message
        return None

    def _visit(self, visit: Visit) -> Speed:
        """Measure, and learn for the estimates."""
        begun = time.monotonic()
        speed = measure(self.model, visit)
        took = time.monotonic() - begun
        before = self._paces.get(visit.depth, Pace(0, 0))
        pace = Pace(
            max(before.prompt, 1 / speed.prefill if speed.prefill else 0),
            max(before.token, 1 / speed.decode if speed.decode else 0),
        )
        self._paces[visit.depth] = pace
        if visit.depth:
            sampled = visit.prompt * pace.prompt + (visit.steps + 1) * pace.token
            self._fill = max(self._fill, (took - sampled) / visit.depth)
        return speed

    # ---- estimates -------------------------------------------------------------------------------

    def _planned(self, candidate: Candidate) -> Visit:
        """A visit whose samples are as long as there is time for, and as the window has room for."""
        pace, seconds = self._pace(candidate.depth), self._budget / _SAMPLES
        room = self.model.context_length - candidate.depth - 1
        prompt = candidate.prompt or _between(LEAST_PROMPT, seconds / pace.prompt, PROMPT)
        steps = _between(LEAST_STEPS, seconds / 2 / pace.token, STEPS) if candidate.decodes else 0
        return Visit(candidate.setting, candidate.depth, min(prompt, room), min(steps, room - 1))

    def _seconds(self, visit: Visit) -> float:
        """About how long a visit takes."""
        pace = self._pace(visit.depth + visit.prompt // 2 if visit.prompt > PROMPT else visit.depth)
        return self._fill * visit.depth + visit.prompt * pace.prompt + (visit.steps + 1) * pace.token

    def _pace(self, depth: int) -> Pace:
        """Seconds a token at a depth: seen, drawn on from the two nearest that were seen, or guessed."""
        known = sorted(self._paces, key=lambda seen: abs(seen - depth))
        near = self._paces[known[0]]
        if known[0] == depth:
            return near
        if len(known) == 1:
            return Pace(*(seconds * (1 + depth / _DOUBLED) for seconds in near))
        far = self._paces[known[1]]
        way = (depth - known[0]) / (known[1] - known[0])
        return Pace(*(max(a, a + (b - a) * way) for a, b in zip(near, far, strict=True)))


def _between(least: int, wanted: float, most: int) -> int:
    """The power of two below `wanted`, within limits."""
    count = most
    while count > max(least, wanted):
        count //= 2
    return max(least, count)


def _median(samples: Sequence[Speed]) -> Speed:
    prefill = [speed.prefill for speed in samples if speed.prefill is not None]
    decode = [speed.decode for speed in samples if speed.decode is not None]
    return Speed(samples[0].depth, median(prefill) if prefill else None, median(decode) if decode else None)
