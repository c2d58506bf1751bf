"""Decide how a model is run: from a RunConfig, the tuning profile and the free memory to a ResolvedRun.

    resolved = resolve_run("model.gguf", RunConfig(ctx=32768))
    for decision in resolved.decisions: print(decision.setting, decision.value, decision.reason)
    plan_run("model.gguf", RunConfig())        only the memory, whether it fits or not

Nothing is loaded. What fits is decided by inference/memory_planning; threads, batch and flash attention come
from the tuning profile (inference/tuning); long prompts go through PyTorch if that is faster
(inference/torch_prefill). None of it changes what llama.cpp alone would compute, except for rounding.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pigguf.errors import UsageError
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.inference.engine import ContextOptions
from pigguf.inference.engine.context_options import UNQUANTIZED_CACHE_TYPES
from pigguf.inference.memory_planning import MeasuredSpeed, MemoryPlan, fit_to_memory, plan
from pigguf.inference.rpc.client import Workers, connect_or_none
from pigguf.inference.run_config import ResolvedRun, RunConfig
from pigguf.inference.setting_decision import SettingDecision
from pigguf.inference.torch_prefill.backend import MIN_PROMPT_TOKENS, supports_torch_prefill
from pigguf.inference.tuning import TuningProfile, load_tuning_profile
from pigguf.rope import rope_from_metadata

_ASKED = "asked for"
_ENGINE_DEFAULT = "the engine's default"


def resolve_run(
    path: str | Path, config: RunConfig, sequences: int = 1, *, workers: Workers | None = None
) -> ResolvedRun:
    """Decide everything that a RunConfig leaves open. Nothing is loaded.

    Args:
        path: a GGUF file.
        sequences: how many sequences share the context; each has the whole context window.
        workers: connected workers; None connects to those of the config for as long as this takes.

    Raises:
        As `open_session` does.
    """
    if workers is not None:
        return _resolve(path, config, sequences, workers)
    with connect_or_none(config.workers, config.split) as connected:
        return _resolve(path, config, sequences, connected)


def plan_run(path: str | Path, config: RunConfig) -> MemoryPlan:
    """Return the memory that a run needs, whether it fits or not, with the measured speed. Nothing is loaded.

    Raises:
        As `open_session` does, except for DoesNotFit.
    """
    file = read_header(path)
    profile = _find_profile(file, config)
    with connect_or_none(config.workers, config.split) as workers:
        planned = plan(
            file,
            _context_options(config, profile),
            gpu_layers=config.gpu_layers,
            rope=config.rope,
            workers=workers,
        )
    return replace(planned, speed=_speed_at_full_context(profile, planned.context_length))


def _resolve(path: str | Path, config: RunConfig, sequences: int, workers: Workers | None) -> ResolvedRun:
    file = read_header(path)
    profile = _find_profile(file, config)
    options = _context_options(config, profile)
    if sequences > 1:  # they share a context, which no single one of them may switch
        options = replace(options, sequences=sequences, flash_attention_switch=None)
    planned = fit_to_memory(file, options, gpu_layers=config.gpu_layers, rope=config.rope, workers=workers)
    torch_min_prompt, prefill = _choose_prefill_backend(file, config, planned, profile)
    decisions = (
        _explain_context_length(config, planned),
        _explain_gpu_layers(config, planned),
        _explain_threads(config, profile),
        SettingDecision("batch", f"{planned.options.batch} tokens", _source(config, profile)),
        _explain_flash_attention(config, options, planned, profile),
        prefill,
        SettingDecision("prompt cache", "on" if config.prompt_cache else "off", _ASKED),
    )
    return ResolvedRun(config, planned, profile, torch_min_prompt, decisions)


def _find_profile(file: GGUFFile, config: RunConfig) -> TuningProfile:
    """Return what was measured on this machine; llama.cpp's own defaults if other machines compute."""
    return TuningProfile() if config.workers else load_tuning_profile(file, config.gpu_layers)


def _context_options(config: RunConfig, profile: TuningProfile) -> ContextOptions:
    """Return what was asked for, completed by the tuning profile where the two do not conflict."""
    unquantized = config.cache_v in UNQUANTIZED_CACHE_TYPES
    flash_attention = config.flash_attention
    if flash_attention is None and unquantized:
        flash_attention = profile.flash_attention
    may_switch = flash_attention is None and unquantized
    return ContextOptions(
        length=config.ctx,
        threads=config.threads or profile.threads,
        prefill_threads=config.threads or profile.prefill_threads,
        batch=profile.batch,
        cache_k=config.cache_k,
        cache_v=config.cache_v,
        flash_attention=flash_attention,
        flash_attention_switch=profile.flash_attention_switch if may_switch else None,
    )


def _speed_at_full_context(profile: TuningProfile, context_length: int) -> MeasuredSpeed | None:
    """Return the speed that was measured nearest to a full context window."""
    speeds = [
        MeasuredSpeed(speed.depth, speed.prefill, speed.decode)
        for speed in profile.speeds
        if speed.prefill and speed.decode and speed.depth <= context_length
    ]
    return max(speeds, key=lambda speed: speed.depth, default=None)


def _choose_prefill_backend(
    file: GGUFFile, config: RunConfig, planned: MemoryPlan, profile: TuningProfile
) -> tuple[int | None, SettingDecision]:
    """Return from how many tokens on PyTorch computes prompts, or None for llama.cpp, and the decision.

    Raises:
        UsageError: PyTorch was asked for, and cannot prefill this model here.
    """

    def llama_cpp(reason: str) -> tuple[None, SettingDecision]:
        return None, SettingDecision("prefill", "llama.cpp", reason)

    if config.prefill == "llama.cpp":
        return llama_cpp(_ASKED)
    if config.prefill == "auto" and profile.torch_min_prompt is None:
        return llama_cpp(f"PyTorch is not faster, or not installed: {_source(config, profile)}")
    overrides = config.rope.metadata(file) if config.rope else {}
    rope = rope_from_metadata(file.metadata | overrides, file.architecture)
    if not supports_torch_prefill(file, rope, planned.options, planned.gpu_layers):
        if config.prefill == "torch":
            raise UsageError(
                f"PyTorch cannot prefill prompts of {file.path} on this machine",
                'it needs `pip install -e ".[torch]"` in the clone, a CPU with bfloat16 instructions, a '
                "model like Llama or Qwen, and an unquantized KV cache; `prefill=auto` uses what there is",
            )
        return llama_cpp("PyTorch does not support this model, KV cache or machine")
    min_prompt = profile.torch_min_prompt or MIN_PROMPT_TOKENS
    reason = _ASKED if config.prefill == "torch" else _source(config, profile)
    return min_prompt, SettingDecision("prefill", f"PyTorch from {min_prompt:,} tokens on", reason)


# ---- reasons in words ----------------------------------------------------------------------------


def _source(config: RunConfig, profile: TuningProfile) -> str:
    if config.workers:
        return f"{_ENGINE_DEFAULT}, because workers compute"
    return "measured by `pigguf tune`" if profile.source == "measured" else "the built-in default profile"


def _explain_context_length(config: RunConfig, planned: MemoryPlan) -> SettingDecision:
    if config.ctx is not None:
        reason = _ASKED
    elif planned.context_length == planned.model_context_length:
        reason = "the model's own"
    else:
        reason = "as many tokens as fit without using more than half of the free memory"
    return SettingDecision("context length", f"{planned.context_length:,} tokens", reason)


def _explain_gpu_layers(config: RunConfig, planned: MemoryPlan) -> SettingDecision:
    reason = _ASKED if config.gpu_layers != "auto" else "as many as fit on the GPUs' free memory"
    value = f"{planned.gpu_layers} of {planned.offloadable_layers}"
    return SettingDecision("GPU layers", value, reason)


def _explain_threads(config: RunConfig, profile: TuningProfile) -> SettingDecision:
    decode = config.threads or profile.threads
    prefill = config.threads or profile.prefill_threads or decode
    if decode is None and prefill is None:
        return SettingDecision("threads", "all cores", _ENGINE_DEFAULT)
    value = f"{decode or 'all cores'} for decode, {prefill or 'all cores'} for prefill"
    return SettingDecision("threads", value, _ASKED if config.threads else _source(config, profile))


def _explain_flash_attention(
    config: RunConfig, options: ContextOptions, planned: MemoryPlan, profile: TuningProfile
) -> SettingDecision:
    name = "flash attention"
    if config.flash_attention is not None:
        return SettingDecision(name, "on" if config.flash_attention else "off", _ASKED)
    if config.cache_v not in UNQUANTIZED_CACHE_TYPES:
        return SettingDecision(name, "on", f"a V cache of {config.cache_v} needs it")
    if options.flash_attention is not None:
        return SettingDecision(name, "on" if options.flash_attention else "off", _source(config, profile))
    switch = planned.options.flash_attention_switch
    if switch is not None:
        value = f"on, off for decode from {switch.decode:,} tokens on"
        return SettingDecision(name, value, _source(config, profile))
    if options.flash_attention_switch is not None:
        return SettingDecision(name, "llama.cpp's choice", "a switch by depth does not fit into memory")
    if profile.flash_attention_switch is not None and options.sequences > 1:
        return SettingDecision(name, "llama.cpp's choice", "sequences that share a context cannot switch")
    return SettingDecision(name, "llama.cpp's choice", _source(config, profile))
