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

from pigguf.common.parallel import usable_cores
from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import CacheType, FlashAttentionSwitch, GpuLayers, Model
from pigguf.inference.engine.context import UNQUANTIZED, default_threads
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.tuning import choose_settings
from pigguf.inference.tuning.choose_settings import Move
from pigguf.inference.tuning.measure_speed import measure_move, measure_torch
from pigguf.inference.tuning.profile import Measurement, Setting, Speed, Tuning
from pigguf.inference.tuning.time_budget import PROMPT, Candidate, Group, Rounds, Speeds
from pigguf.inference.tuning.tuning_files import keep_tuning
from pigguf.inference.tuning.untuned_defaults import ON_CPU, TORCH_FROM
from pigguf.progress import SILENT, Progress, stage

BUDGET = 90.0  # seconds

THREADS, FLASH, TORCH = Group("threads", 0.2), Group("flash attention", 0.6), Group("prefill backend", 0.8)
BATCH, CACHE = Group("batch", 0.9), Group("cache types", 1.0)

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
        setting = replace(setting, flash_attention=True if handoff else flash)
        torch_from = self._torch(setting, handoff, speeds)
        setting = self._batch(setting)
        self._cache_types(setting)
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
            chosen[what] = choose_settings.fastest(
                {count: rates.get(_threads(count), 0.0) for count in counts}, default
            )
            self._choose(f"threads of {what}", str(chosen[what]), _told(rates))
        decode, prefill = (
            None if chosen[what] == default else chosen[what] for what in ("decode", "prefill")
        )
        if decode is not None and prefill is None:
            prefill = default  # which would follow decode's
        return replace(setting, threads=decode, prefill_threads=prefill)

    def _flash_attention(
        self, setting: Setting
    ) -> tuple[bool | None, FlashAttentionSwitch | None, tuple[Speed, ...]]:
        candidates = [
            Candidate(name, replace(setting, flash_attention=name == _ON), depth)
            for depth in self._depths()
            for name in (_ON, _OFF)
        ]
        found = self.rounds.compare(FLASH, candidates)
        depths = [d for d in self._depths() if (_ON, d) in found and (_OFF, d) in found]
        on, off = ([found[name, depth] for depth in depths] for name in (_ON, _OFF))
        move = self._move(depths[-1]) if depths else None
        flash, handoff = choose_settings.flash_attention(on, off, move)
        usual = None if self._model.sliding_window or self._on_gpu else ON_CPU.handoff
        if usual and depths != self._depths() and (not depths or depths[-1] < usual.decode):
            flash, handoff = None, usual  # how it is that deep there was no time to see
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
        best = choose_settings.fastest(measured, setting.batch)
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

    def _torch(
        self, setting: Setting, handoff: FlashAttentionSwitch | None, speeds: Sequence[Speed]
    ) -> int | None:
        """From how many tokens on torch reads prompts; what importing it takes is not counted."""
        setting = replace(setting, flash_attention=False if handoff else setting.flash_attention)
        window = self._model.context_length
        prompts = [count for count in _TORCH_PROMPTS if count < window]
        if not (prompts and TorchPrefiller(self._model, setting.options(window)).is_supported):
            return None
        curve = choose_settings.prefill_curve(speeds)
        times = self._torch_times(setting, prompts, curve) if curve else []
        if not times:
            self._choose(TORCH.name, f"torch from {TORCH_FROM:,} tokens on", "the rule: it was not measured")
            return TORCH_FROM
        found = choose_settings.torch_from(times, curve)
        why = ", ".join(
            f"{took:.1f} s against {choose_settings.seconds(curve, count):.1f} s for {count:,} tokens"
            for count, took in times
        )
        self._choose(TORCH.name, "llama.cpp" if found is None else f"torch from {found:,} tokens on", why)
        return found

    def _torch_times(
        self, setting: Setting, prompts: Sequence[int], llama: choose_settings.Curve
    ) -> list[tuple[int, float]]:
        """(tokens, seconds) of whole prompts that torch read, as long as there is time for longer ones."""
        times: list[tuple[int, float]] = []
        with stage(self._progress, TORCH.name, len(prompts) + 1, "steps"):
            for count in (_TORCH_WARM_UP, *prompts):
                expected = _torch_expected(times, count, llama)
                took = None
                if self.rounds.has_time_for(TORCH, expected):
                    took = measure_torch(self._model, setting, count)
                    why = "it cannot read them"
                else:
                    why = f"it would take {expected:,.0f} s"
                if took is None:
                    self.rounds.left_out.append(f"{TORCH.name}: torch, {count:,} tokens: {why}")
                    break
                if count != _TORCH_WARM_UP:  # which imports torch
                    times.append((count, took))
                    speed = Speed(0, count / took, None)
                    self.rounds.measurements.append(
                        Measurement(TORCH.name, f"torch, {count:,} tokens", speed, 1)
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


def _fastest_road(flash: bool | None, handoff: FlashAttentionSwitch | None, on: Speed, off: Speed) -> Speed:
    """What a long prompt and single tokens reach at a depth with these settings."""
    if handoff is None:
        return off if flash is False else on
    prompt_on = handoff.wants_flash(on.depth, handoff.prompt) is not False
    token_on = handoff.wants_flash(on.depth, 1) is not False
    return Speed(on.depth, (on if prompt_on else off).prefill, (on if token_on else off).decode)


def _torch_expected(times: Sequence[tuple[int, float]], count: int, llama: choose_settings.Curve) -> float:
    """Seconds that torch may take for a prompt: by the one before, or half of what llama.cpp takes."""
    if not times:
        return choose_settings.seconds(llama, count) / 2
    before, took = times[-1]
    return 1.2 * took * count / before


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
    flash: bool | None,
    handoff: FlashAttentionSwitch | None,
    on: Sequence[Speed],
    off: Sequence[Speed],
    move: Move | None,
) -> tuple[str, str]:
    """The choice, and the figures at the deepest place behind it."""
    if handoff is None:
        value = {None: "as llama.cpp chooses", True: _ON, False: _OFF}[flash]
    else:
        value = f"single tokens without it from {handoff.decode:,} tokens on"
    if handoff and handoff.prefill is not None:
        value += f", prompts from {handoff.prefill:,} on"
    if not on:
        return value, "the rule: it was not measured"
    figures = [
        f"{what} {one:,.4g} tokens/s with it, {other:,.4g} without"
        for what in ("prefill", "decode")
        if (one := getattr(on[-1], what)) and (other := getattr(off[-1], what))
    ]
    why = f"at {on[-1].depth:,} tokens {', '.join(figures)}"
    if move is not None:
        why += f"; the cache is laid out the other way in {move.seconds(on[-1].depth):.1f} s"
    return value, why
