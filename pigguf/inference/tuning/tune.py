"""Tune a model on this machine: what is compared, in which order, and what is chosen.

    result = tune("model.gguf", progress=...)      stored for every load of a model of this shape

It ends within about its budget of seconds, whatever the model's size (timed_comparison.py), and reports what
there was no time or memory for. Nothing that changes an answer is chosen: KV cache types are measured and
left to the user. An interrupted tuning stores nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.common.parallel import usable_cores
from pigguf.errors import EngineError, UsageError
from pigguf.inference.engine import CacheType, ContextOptions, FlashAttentionSwitch, GpuLayers, Model
from pigguf.inference.engine.context_options import UNQUANTIZED_CACHE_TYPES, default_threads
from pigguf.inference.setting_decision import SettingDecision
from pigguf.inference.torch_prefill import TorchPrefiller
from pigguf.inference.tuning import choose_settings
from pigguf.inference.tuning.choose_settings import SwitchCost
from pigguf.inference.tuning.default_profiles import ON_CPU, TORCH_MIN_PROMPT
from pigguf.inference.tuning.measure_speed import measure_switch_cost, measure_torch_prefill
from pigguf.inference.tuning.profile import Measurement, SpeedAtDepth, TuningProfile
from pigguf.inference.tuning.profile_store import save_tuning_profile
from pigguf.inference.tuning.timed_comparison import (
    PROMPT,
    ComparisonGroup,
    SettingComparison,
    SpeedsByCandidate,
    TuningCandidate,
)
from pigguf.progress import SILENT, Progress, stage

BUDGET = 90.0  # seconds

THREADS, FLASH = ComparisonGroup("threads", 0.2), ComparisonGroup("flash attention", 0.6)
TORCH, BATCH = ComparisonGroup("prefill backend", 0.8), ComparisonGroup("batch", 0.9)
CACHE = ComparisonGroup("cache types", 1.0)

_DEPTHS = (0, 2048, 8192)  # and one near the end of the context
_DEPTH_STEP = 256
_BATCHES = {"cpu": (256, 512, 1024), "gpu": (512, 1024, 2048)}
_CACHE_TYPES_DEPTH = 2048
_CACHE_TYPE_PAIRS: tuple[tuple[CacheType, CacheType], ...] = (
    ("f16", "f16"), ("q8_0", "f16"), ("q8_0", "q8_0"), ("q4_0", "q4_0"),
)  # fmt: skip
_TORCH_PROMPTS = (1024, 2048, 4096, 8192)
_TORCH_WARM_UP = 64
_ON, _OFF = "on", "off"
_BUSY_SHARE = 0.5  # of the cores
_NOT_MEASURED = "the built-in default, because it was not measured"

_log = logging.getLogger("pigguf")


@dataclass(frozen=True)
class TuningResult:
    """The result of a tuning.

    Attributes:
        profile: what is stored, and used from now on.
        measurements: all that was measured.
        decisions: what was chosen, with the measured reason in words.
        skipped: what was not measured, and why.
        seconds: how long it took, without loading.
        path: the file of the profile.
    """

    profile: TuningProfile
    measurements: tuple[Measurement, ...]
    decisions: tuple[SettingDecision, ...]
    skipped: tuple[str, ...]
    seconds: float
    path: Path


def tune(
    path: str | Path,
    *,
    gpu_layers: GpuLayers = "auto",
    budget: float = BUDGET,
    progress: Progress = SILENT,
) -> TuningResult:
    """Measure how a model runs fastest here, and store it for every load of a model of its shape.

    Args:
        path: a GGUF file.
        gpu_layers: as the model is going to be run.
        budget: about how many seconds it may take, without loading.
        progress: one stage for each comparison, in steps.

    Raises:
        UsageError: a budget that is not above 0.
        OutputError: the profile cannot be written.
        And as `Model.open` does.
    """
    if budget <= 0:
        raise UsageError(f"a budget of {budget:g} seconds", "give more than 0")
    _warn_if_busy()
    with Model.open(path, gpu_layers=gpu_layers, progress=progress) as model:
        comparison = SettingComparison(model, budget, progress)
        tuner = _Tuner(comparison, progress)
        profile = tuner.tune_all()
        stored = save_tuning_profile(model.file, gpu_layers, profile, comparison.measurements)
    return TuningResult(
        profile,
        tuple(comparison.measurements),
        tuple(tuner.decisions),
        tuple(comparison.skipped),
        comparison.elapsed,
        stored,
    )


class _Tuner:
    """One tuning: each step uses what the steps before have chosen."""

    def __init__(self, comparison: SettingComparison, progress: Progress) -> None:
        self.comparison = comparison
        self.decisions: list[SettingDecision] = []
        self._model = comparison.model
        self._progress = progress
        self._on_gpu = bool(self._model.gpu_layers)

    def tune_all(self) -> TuningProfile:
        """Run all steps and return the profile."""
        self.comparison.warm_up()
        options = self._choose_threads(ContextOptions())
        flash, switch, speeds = self._choose_flash_attention(options)
        options = replace(options, flash_attention=True if switch else flash)
        min_prompt = self._choose_torch(options, switch, speeds)
        options = self._choose_batch(options)
        self._measure_cache_types(options)
        return TuningProfile(
            threads=options.threads,
            prefill_threads=options.prefill_threads,
            batch=options.batch,
            flash_attention=flash,
            flash_attention_switch=switch,
            torch_min_prompt=min_prompt,
            speeds=speeds,
            source="measured",
        )

    # ---- steps -----------------------------------------------------------------------------------

    def _choose_threads(self, options: ContextOptions) -> ContextOptions:
        default = default_threads()
        counts = [default, *sorted({usable_cores(), default // 2, default - 1} - {default, 0}, reverse=True)]
        if len(counts) == 1 or self._model.gpu_layers > self._model.layers:
            return options
        candidates = [
            TuningCandidate(_name_threads(count), replace(options, threads=count)) for count in counts
        ]
        speeds = self.comparison.compare(THREADS, candidates)
        chosen = {}
        for phase, rates in (("decode", _decode_rates(speeds)), ("prefill", _prefill_rates(speeds))):
            chosen[phase] = choose_settings.fastest_setting(
                {count: rates.get(_name_threads(count), 0.0) for count in counts}, default
            )
            self._record(f"threads of {phase}", str(chosen[phase]), _format_rates(rates))
        decode, prefill = (
            None if chosen[phase] == default else chosen[phase] for phase in ("decode", "prefill")
        )
        if decode is not None and prefill is None:
            prefill = default  # None would follow decode's
        return replace(options, threads=decode, prefill_threads=prefill)

    def _choose_flash_attention(
        self, options: ContextOptions
    ) -> tuple[bool | None, FlashAttentionSwitch | None, tuple[SpeedAtDepth, ...]]:
        candidates = [
            TuningCandidate(name, replace(options, flash_attention=name == _ON), depth)
            for depth in self._depths()
            for name in (_ON, _OFF)
        ]
        speeds = self.comparison.compare(FLASH, candidates)
        depths = [d for d in self._depths() if (_ON, d) in speeds and (_OFF, d) in speeds]
        on, off = ([speeds[name, depth] for depth in depths] for name in (_ON, _OFF))
        cost = self._measure_switch_cost(depths[-1]) if depths else None
        flash, switch = choose_settings.choose_flash_attention(on, off, cost)
        default = None if self._model.sliding_window or self._on_gpu else ON_CPU.flash_attention_switch
        if default and depths != self._depths() and (not depths or depths[-1] < default.decode):
            flash, switch = None, default  # there was no time to measure that deep
        self._record("flash attention", *_explain_flash_attention(flash, switch, on, off, cost))
        return (
            flash,
            switch,
            tuple(_fastest_speeds(flash, switch, *pair) for pair in zip(on, off, strict=True)),
        )

    def _measure_switch_cost(self, depth: int) -> SwitchCost | None:
        """Return what a flash-attention switch costs; None if the model cannot switch."""
        if self._model.sliding_window:
            return None
        try:
            return measure_switch_cost(self._model, depth)
        except EngineError as error:
            self.comparison.skipped.append(f"flash-attention switch: {error.message}")
            return None

    def _choose_batch(self, options: ContextOptions) -> ContextOptions:
        sizes = [
            size for size in _BATCHES["gpu" if self._on_gpu else "cpu"] if size < self._model.context_length
        ]
        if len(sizes) < 2:
            return options
        candidates = [
            TuningCandidate(f"{size} tokens", replace(options, batch=size), prompt=max(sizes), decodes=False)
            for size in sizes
        ]
        rates = _prefill_rates(self.comparison.compare(BATCH, candidates))
        measured = {size: rates[f"{size} tokens"] for size in sizes if f"{size} tokens" in rates}
        best = choose_settings.fastest_setting(measured, options.batch)
        self._record("batch", f"{best} tokens", _format_rates(rates))
        return replace(options, batch=best)

    def _measure_cache_types(self, options: ContextOptions) -> None:
        """Measure KV cache types for the report; only f16 is ever used, because the others change answers."""
        depth = max(d for d in self._depths() if d <= _CACHE_TYPES_DEPTH)
        candidates = []
        for k, v in _CACHE_TYPE_PAIRS:
            try:
                size = self._model.kv_cache_bytes(self._model.context_length, k, v)
            except UsageError as error:
                self.comparison.skipped.append(f"{CACHE.name}: {k}/{v}: {error.message}")
                continue
            flash = options.flash_attention if v in UNQUANTIZED_CACHE_TYPES else True
            with_types = replace(options, cache_k=k, cache_v=v, flash_attention=flash)
            candidates.append(TuningCandidate(f"{k}/{v}", with_types, depth, cache_bytes=size))
        self.comparison.compare(CACHE, candidates)

    def _choose_torch(
        self,
        options: ContextOptions,
        switch: FlashAttentionSwitch | None,
        speeds: Sequence[SpeedAtDepth],
    ) -> int | None:
        """Return from how many tokens on torch prefills prompts; the time to import it is not counted."""
        options = replace(options, flash_attention=False if switch else options.flash_attention)
        window = self._model.context_length
        prompts = [count for count in _TORCH_PROMPTS if count < window]
        if not (prompts and TorchPrefiller(self._model, replace(options, length=window)).is_supported):
            return None
        curve = choose_settings.prefill_curve(speeds)
        times = self._measure_torch(options, prompts, curve) if curve else []
        if not times:
            self._record(TORCH.name, f"torch from {TORCH_MIN_PROMPT:,} tokens on", _NOT_MEASURED)
            return TORCH_MIN_PROMPT
        min_prompt = choose_settings.torch_min_prompt(times, curve)
        reason = ", ".join(
            f"{seconds:.1f} s against {choose_settings.prefill_seconds(curve, count):.1f} s "
            f"for {count:,} tokens"
            for count, seconds in times
        )
        value = "llama.cpp" if min_prompt is None else f"torch from {min_prompt:,} tokens on"
        self._record(TORCH.name, value, reason)
        return min_prompt

    def _measure_torch(
        self, options: ContextOptions, prompts: Sequence[int], llama: choose_settings.Curve
    ) -> list[tuple[int, float]]:
        """Return (tokens, seconds) of the prompts that torch prefilled in the time there was."""
        times: list[tuple[int, float]] = []
        with stage(self._progress, TORCH.name, len(prompts) + 1, "steps"):
            for count in (_TORCH_WARM_UP, *prompts):  # the first imports torch
                expected = _expected_torch_seconds(times, count, llama)
                seconds = None
                if self.comparison.has_time_for(TORCH, expected):
                    seconds = measure_torch_prefill(self._model, options, count)
                    reason = "torch cannot prefill them"
                else:
                    reason = f"it would take {expected:,.0f} s"
                if seconds is None:
                    self.comparison.skipped.append(f"{TORCH.name}: torch, {count:,} tokens: {reason}")
                    break
                if count != _TORCH_WARM_UP:
                    times.append((count, seconds))
                    speed = SpeedAtDepth(0, count / seconds, None)
                    self.comparison.measurements.append(
                        Measurement(TORCH.name, f"torch, {count:,} tokens", speed, 1)
                    )
                self._progress.advance(1)
        return times

    def _depths(self) -> list[int]:
        """Return where flash attention is compared: the usual depths, and one near the end of the context."""
        window = self._model.context_length
        last = max(0, window - min(PROMPT, window // 2) - 1) // _DEPTH_STEP * _DEPTH_STEP
        return [*(depth for depth in _DEPTHS if depth < last), last]

    def _record(self, setting: str, value: str, reason: str) -> None:
        self.decisions.append(SettingDecision(setting, value, reason))


def _fastest_speeds(
    flash: bool | None, switch: FlashAttentionSwitch | None, on: SpeedAtDepth, off: SpeedAtDepth
) -> SpeedAtDepth:
    """Return the speeds of a long prompt and of single tokens at a depth with the chosen settings."""
    if switch is None:
        return off if flash is False else on
    prompt_on = switch.wants_flash_attention(on.depth, switch.prompt) is not False
    token_on = switch.wants_flash_attention(on.depth, 1) is not False
    return SpeedAtDepth(on.depth, (on if prompt_on else off).prefill, (on if token_on else off).decode)


def _expected_torch_seconds(
    times: Sequence[tuple[int, float]], count: int, llama: choose_settings.Curve
) -> float:
    """Return the seconds torch may take: scaled from the prompt before, or half of what llama.cpp takes."""
    if not times:
        return choose_settings.prefill_seconds(llama, count) / 2
    tokens, seconds = times[-1]
    return 1.2 * seconds * count / tokens


def _warn_if_busy() -> None:
    """Warn if other programs use the CPU, because the profile is stored and used from then on."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > _BUSY_SHARE * usable_cores():
        _log.warning("other programs keep %.1f cores busy: tune again when nothing else runs", load)


# ---- texts ---------------------------------------------------------------------------------------


def _name_threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"


def _decode_rates(speeds: SpeedsByCandidate) -> dict[str, float]:
    return {name: speed.decode for (name, _), speed in speeds.items() if speed.decode}


def _prefill_rates(speeds: SpeedsByCandidate) -> dict[str, float]:
    return {name: speed.prefill for (name, _), speed in speeds.items() if speed.prefill}


def _format_rates(rates: Mapping[str, float]) -> str:
    """Return, for instance, "512 tokens: 900 tokens/s, 256 tokens: 880 tokens/s"."""
    return ", ".join(f"{name}: {rate:,.4g} tokens/s" for name, rate in rates.items()) or "not measured"


def _explain_flash_attention(
    flash: bool | None,
    switch: FlashAttentionSwitch | None,
    on: Sequence[SpeedAtDepth],
    off: Sequence[SpeedAtDepth],
    cost: SwitchCost | None,
) -> tuple[str, str]:
    """Return the decision in words, and its reason: the speeds at the deepest measured depth."""
    if switch is None:
        value = {None: "llama.cpp's choice", True: _ON, False: _OFF}[flash]
    else:
        value = f"off for single tokens from {switch.decode:,} tokens on"
    if switch and switch.prefill is not None:
        value += f", for prompts from {switch.prefill:,} on"
    if not on:
        return value, _NOT_MEASURED
    rates = [
        f"{phase} {with_it:,.4g} tokens/s with it, {without:,.4g} without"
        for phase in ("prefill", "decode")
        if (with_it := getattr(on[-1], phase)) and (without := getattr(off[-1], phase))
    ]
    reason = f"at {on[-1].depth:,} tokens {', '.join(rates)}"
    if cost is not None:
        reason += f"; a switch takes {cost.seconds(on[-1].depth):.1f} s"
    return value, reason
