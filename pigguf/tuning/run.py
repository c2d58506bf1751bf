"""The tuning of a model on this machine: what is compared, in which order, and what is made of it.

    result = tune("model.gguf", progress=...)      kept for every load of a model of this shape

Contract: it ends within about its budget of seconds, whatever the model's size (rounds.py), and what there
was no time or memory for is told. Nothing that changes an answer is chosen: types of the KV cache are
measured and left to the user. Interrupted, it leaves nothing behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.engine import CacheType, GpuLayers, Handoff, Model
from pigguf.engine.context import UNQUANTIZED, default_threads
from pigguf.errors import EngineError, UsageError
from pigguf.hybrid import HybridReader
from pigguf.parallel import usable_cores
from pigguf.progress import SILENT, Progress, stage
from pigguf.tuning import choice
from pigguf.tuning.choice import Move
from pigguf.tuning.probe import measure_move, measure_torch
from pigguf.tuning.rounds import PROMPT, Candidate, Group, Rounds, Speeds
from pigguf.tuning.store import keep_tuning
from pigguf.tuning.values import Measurement, Setting, Speed, Tuning

BUDGET = 90.0  # seconds

THREADS, FLASH = Group("threads", 0.2), Group("flash attention", 0.65)
BATCH, CACHE = Group("batch", 0.8), Group("cache types", 0.9)
TORCH = "prefill backend"

_DEPTHS = (0, 2048, 8192)  # and near the end of the window
_DEPTH_STEP = 256
_BATCHES = {"cpu": (256, 512, 1024), "gpu": (512, 1024, 2048)}
_CACHE_DEPTH = 2048
_CACHES: tuple[tuple[CacheType, CacheType], ...] = (
    ("f16", "f16"), ("q8_0", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"),
)  # fmt: skip
_TORCH_PROMPTS = (1024, 2048, 4096, 8192)
_TORCH_WARM_UP = 64
_ON, _OFF = "on", "off"
_BUSY = 0.5  # of the cores

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class Choice:
    """What was chosen for one thing, and why, in words."""

    what: str
    value: str
    why: str


@dataclass(frozen=True)
class TuningResult:
    """What came of a tuning.

    Attributes:
        tuning: what is kept, and used from now on.
        measurements: all that was measured.
        choices: what follows, in words.
        left_out: what was not measured, and why.
        seconds: that it took, without loading.
        path: where it is kept.
    """

    tuning: Tuning
    measurements: tuple[Measurement, ...]
    choices: tuple[Choice, ...]
    left_out: tuple[str, ...]
    seconds: float
    path: Path


def tune(
    path: str | Path,
    *,
    gpu_layers: GpuLayers = "auto",
    budget: float = BUDGET,
    progress: Progress = SILENT,
) -> TuningResult:
    """Measure how a model runs fastest here, and keep it for every load of a model of its shape.

    Args:
        gpu_layers: as the model is going to be run.
        budget: seconds, about, without loading.
        progress: one stage for each comparison, in steps.

    Raises:
        As Model.open; UsageError for a budget that is none; OutputError where the result cannot be kept.
    """
    if budget <= 0:
        raise UsageError(f"a budget of {budget:g} seconds", "give more than 0")
    _warn_if_busy()
    with Model.open(path, gpu_layers=gpu_layers, progress=progress) as model:
        run = _Run(Rounds(model, budget, progress), progress)
        tuning = run.all()
        kept = keep_tuning(model.file, gpu_layers, tuning, run.rounds.measurements)
    rounds = run.rounds
    return TuningResult(
        tuning, tuple(rounds.measurements), tuple(run.choices), tuple(rounds.left_out), rounds.elapsed, kept
    )


class _Run:
    """One tuning: each step takes what the steps before have chosen."""

    def __init__(self, rounds: Rounds, progress: Progress) -> None:
        self.rounds = rounds
        self.choices: list[Choice] = []
        self._model = rounds.model
        self._progress = progress
        self._on_gpu = bool(self._model.gpu_layers)

    def all(self) -> Tuning:
        self.rounds.warm_up()
        setting = self._threads(Setting())
        flash, handoff, speeds = self._flash_attention(setting)
        setting = self._batch(replace(setting, flash_attention=True if handoff else flash))
        self._cache_types(setting)
        torch_from = self._torch(setting, handoff, speeds)
        return Tuning(
            setting.threads,
            setting.prefill_threads,
            setting.batch,
            flash,
            handoff,
            torch_from,
            speeds,
            "measured",
        )

    # ---- steps -----------------------------------------------------------------------------------

    def _threads(self, setting: Setting) -> Setting:
        default = default_threads()
        counts = [default, *sorted({usable_cores(), default // 2, default - 1} - {default, 0}, reverse=True)]
        if len(counts) == 1 or self._model.gpu_layers > self._model.layers:
            return setting
        candidates = [Candidate(_threads(count), replace(setting, threads=count)) for count in counts]
        speeds = self.rounds.compare(THREADS, candidates)
        chosen = {}
        for what, rates in (("decode", _decode_rates(speeds)), ("prefill", _prefill_rates(speeds))):
            chosen[what] = choice.fastest(
                {count: rates.get(_threads(count), 0.0) for count in counts}, default
            )
            self._choose(f"threads of {what}", str(chosen[what]), _told(rates))
        decode, prefill = (
            None if chosen[what] == default else chosen[what] for what in ("decode", "prefill")
        )
        if decode is not None and prefill is None:
            prefill = default  # which would follow decode's
        return replace(setting, threads=decode, prefill_threads=prefill)

    def _flash_attention(self, setting: Setting) -> tuple[bool | None, Handoff | None, tuple[Speed, ...]]:
        candidates = [
            Candidate(name, replace(setting, flash_attention=name == _ON), depth)
            for depth in self._depths()
            for name in (_ON, _OFF)
        ]
        found = self.rounds.compare(FLASH, candidates)
        depths = [d for d in self._depths() if (_ON, d) in found and (_OFF, d) in found]
        on, off = ([found[name, depth] for depth in depths] for name in (_ON, _OFF))
        move = self._move(depths[-1]) if depths else None
        flash, handoff = choice.flash_attention(on, off, move)
        self._choose("flash attention", *_flash_in_words(flash, handoff, on, off, move))
        return (
            flash,
            handoff,
            tuple(_fastest_road(flash, handoff, *pair) for pair in zip(on, off, strict=True)),
        )

    def _move(self, depth: int) -> Move | None:
        """What a handoff costs; None where there is none."""
        if self._model.sliding_window:
            return None
        try:
            return measure_move(self._model, depth)
        except EngineError as error:
            self.rounds.left_out.append(f"handoff: {error.message}")
            return None

    def _batch(self, setting: Setting) -> Setting:
        usual = _BATCHES["gpu" if self._on_gpu else "cpu"]
        sizes = [size for size in usual if size < self._model.context_length]
        if len(sizes) < 2:
            return setting
        candidates = [
            Candidate(f"{size} tokens", replace(setting, batch=size), prompt=max(sizes), decodes=False)
            for size in sizes
        ]
        rates = _prefill_rates(self.rounds.compare(BATCH, candidates))
        measured = {size: rates[f"{size} tokens"] for size in sizes if f"{size} tokens" in rates}
        best = choice.fastest(measured, setting.batch)
        self._choose("batch", f"{best} tokens", _told(rates))
        return replace(setting, batch=best)

    def _cache_types(self, setting: Setting) -> None:
        """Measured for the user to read: none but f16 is ever chosen, for they change answers."""
        depth = max(d for d in self._depths() if d <= _CACHE_DEPTH)
        candidates = []
        for k, v in _CACHES:
            try:
                size = self._model.cache_bytes(self._model.context_length, k, v)
            except UsageError as error:
                self.rounds.left_out.append(f"{CACHE.name}: {k}/{v}: {error.message}")
                continue
            flash = setting.flash_attention if v in UNQUANTIZED else True
            of_types = replace(setting, cache_k=k, cache_v=v, flash_attention=flash)
            candidates.append(Candidate(f"{k}/{v}", of_types, depth, cache_bytes=size))
        self.rounds.compare(CACHE, candidates)

    def _torch(self, setting: Setting, handoff: Handoff | None, speeds: Sequence[Speed]) -> int | None:
        """From how many tokens on torch reads prompts; what it takes to be loaded is not counted."""
        setting = replace(setting, flash_attention=False if handoff else setting.flash_attention)
        curve = choice.prefill_curve(speeds)
        window = self._model.context_length
        prompts = [count for count in _TORCH_PROMPTS if count < window]
        if not (curve and prompts and HybridReader(self._model, setting.options(window)).is_supported):
            return None
        times = self._torch_times(setting, prompts)
        found = choice.torch_from(times, curve)
        why = ", ".join(
            f"{took:.1f} s against {choice.seconds(curve, count):.1f} s for {count:,} tokens"
            for count, took in times
        )
        self._choose(TORCH, "llama.cpp" if found is None else f"torch from {found:,} tokens on", why)
        return found

    def _torch_times(self, setting: Setting, prompts: Sequence[int]) -> list[tuple[int, float]]:
        """(tokens, seconds) of whole prompts, as long as there is time for longer ones."""
        times: list[tuple[int, float]] = []
        with stage(self._progress, TORCH, len(prompts), "steps"):
            for count in prompts:
                expected = times[-1][1] * (count / times[-1][0]) * 1.2 if times else 0.0
                if not self.rounds.has_time_for(expected):
                    self.rounds.left_out.append(
                        f"{TORCH}: torch, {count:,} tokens: it would take {expected:,.0f} s"
                    )
                    break
                if not times:  # the first time imports torch
                    measure_torch(self._model, setting, _TORCH_WARM_UP)
                took = measure_torch(self._model, setting, count)
                if took is None:
                    self.rounds.left_out.append(f"{TORCH}: torch, {count:,} tokens: it cannot read them")
                    break
                times.append((count, took))
                self.rounds.measurements.append(
                    Measurement(TORCH, f"torch, {count:,} tokens", Speed(0, count / took, None), 1)
                )
                self._progress.advance(1)
        return times

    # ---- pieces ----------------------------------------------------------------------------------

    def _depths(self) -> list[int]:
        """Where flash attention is compared: the usual depths, and one near the end of the window."""
        window = self._model.context_length
        last = max(0, window - min(PROMPT, window // 2) - 1) // _DEPTH_STEP * _DEPTH_STEP
        return [*(depth for depth in _DEPTHS if depth < last), last]

    def _choose(self, what: str, value: str, why: str) -> None:
        self.choices.append(Choice(what, value, why))


def _fastest_road(flash: bool | None, handoff: Handoff | None, on: Speed, off: Speed) -> Speed:
    """What a long prompt and single tokens reach at a depth with these settings."""
    if handoff is None:
        return off if flash is False else on
    prompt_on = handoff.wants_flash(on.depth, handoff.prompt) is not False
    token_on = handoff.wants_flash(on.depth, 1) is not False
    return Speed(on.depth, (on if prompt_on else off).prefill, (on if token_on else off).decode)


def _warn_if_busy() -> None:
    """What is measured beside other work is kept, and would be believed."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > _BUSY * usable_cores():
        _log.warning("other programs keep %.1f cores busy: tune again when nothing else runs", load)


# ---- in words ------------------------------------------------------------------------------------


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _decode_rates(speeds: Speeds) -> dict[str, float]:
    return {name: speed.decode for (name, _), speed in speeds.items() if speed.decode}


def _prefill_rates(speeds: Speeds) -> dict[str, float]:
    return {name: speed.prefill for (name, _), speed in speeds.items() if speed.prefill}


def _told(rates: Mapping[str, float]) -> str:
    """ "512 tokens: 900 tokens/s, 256 tokens: 880 tokens/s"."""
    return ", ".join(f"{name}: {rate:,.4g} tokens/s" for name, rate in rates.items()) or "not measured"


def _flash_in_words(
    flash: bool | None, handoff: Handoff | None, on: Sequence[Speed], off: Sequence[Speed], move: Move | None
) -> tuple[str, str]:
    """The choice, and the figures at the deepest place behind it."""
    if not on:
        return "as llama.cpp chooses", "not measured"
    depth, rates = on[-1].depth, []
    for what, pair in (
        ("prefill", (on[-1].prefill, off[-1].prefill)),
        ("decode", (on[-1].decode, off[-1].decode)),
    ):
        if all(pair):
            rates.append(f"{what} {pair[0]:,.4g} tokens/s with it, {pair[1]:,.4g} without")
    why = f"at {depth:,} tokens {', '.join(rates)}"
    if move is not None:
        why += f"; the cache is laid out the other way in {move.seconds(depth):.1f} s"
    if handoff is None:
        return {None: "as llama.cpp chooses", True: _ON, False: _OFF}[flash], why
    value = f"single tokens without it from {handoff.decode:,} tokens on"
    if handoff.prefill is not None:
        value += f", prompts from {handoff.prefill:,} on"
    return value, why
