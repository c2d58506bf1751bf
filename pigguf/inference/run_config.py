"""How a model is run: RunConfig is what was asked for, ResolvedRun what was decided, with reasons.

EngineConfig    what llama.cpp alone is run with; evaluations take this
RunConfig       an EngineConfig with everything else that a user can ask for
ResolvedRun     made from a RunConfig by inference/resolve_run.py; nothing in it is left open
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pigguf.errors import UsageError
from pigguf.inference.engine import CacheType, ContextOptions, GpuLayers, RuntimeRope
from pigguf.inference.memory_planning import MemoryPlan
from pigguf.inference.setting_decision import SettingDecision
from pigguf.inference.tuning.profile import TuningProfile

PrefillBackend = Literal["auto", "llama.cpp", "torch"]


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """What llama.cpp runs a model with, of the things a user can ask for.

    Attributes:
        gpu_layers: how many layers go to GPUs; "auto" is as many as fit.
        threads: CPU threads; None is what was measured, or the machine's cores.
        cache_k, cache_v: types of the KV cache; a quantized one is smaller, and slower on a CPU.
        flash_attention: always on or off; None is what was measured, or what llama.cpp chooses.
        workers: "host:port" of other machines' `pigguf worker`; their devices take the layers instead of this
            machine's GPUs.
        split: the share of the layers of each of the workers' devices; None is in proportion to free memory.
    """

    gpu_layers: GpuLayers = "auto"
    threads: int | None = None
    cache_k: CacheType = "f16"
    cache_v: CacheType = "f16"
    flash_attention: bool | None = None
    workers: tuple[str, ...] = ()
    split: tuple[float, ...] | None = None


@dataclass(frozen=True)
class RunConfig(EngineConfig):
    """How a model is to be run; what is None or "auto" is decided by what fits and what was measured.

    Attributes:
        ctx: context window in tokens; None is the model's own, or as many tokens as fit in half of the free
            memory.
        rope: rope parameters that override the file's, for a file that is known to be wrong.
        prefill: what computes long prompts; "auto" is PyTorch if it is installed and faster.
        prompt_cache: save the KV states of long prompts on disk, and restore them in the next process.

    Raises:
        UsageError: PyTorch is to prefill layers that are on workers.
    """

    ctx: int | None = None
    rope: RuntimeRope | None = None
    prefill: PrefillBackend = "auto"
    prompt_cache: bool = True

    def __post_init__(self) -> None:
        if self.workers and self.prefill == "torch":
            raise UsageError(
                "`prefill=torch` computes prompts on this machine only, but the layers are on workers",
                "use `prefill=auto`, or leave out `workers`",
            )


@dataclass(frozen=True)
class ResolvedRun:
    """How a model is run, with nothing left open; made by `resolve_run`.

    Attributes:
        config: what was asked for.
        plan: the memory that it needs, which fits.
        profile: the tuning profile that applies on this machine.
        torch_min_prompt: prompts of at least this many tokens are prefilled with PyTorch; None is never.
        decisions: what was decided for each setting, with the reason in words.
    """

    config: RunConfig
    plan: MemoryPlan
    profile: TuningProfile
    torch_min_prompt: int | None
    decisions: tuple[SettingDecision, ...]

    @property
    def options(self) -> ContextOptions:
        """The options for `Context`, with a length."""
        return self.plan.options

    @property
    def gpu_layers(self) -> int:
        """The number of layers on GPUs, for `Model.open`."""
        return self.plan.gpu_layers
