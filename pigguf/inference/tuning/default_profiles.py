"""The tuning profile of a machine that was never tuned: a short table, from measurements in docs/LOG.md."""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.torch_prefill.backend import bfloat16_instructions
from pigguf.inference.tuning.machine_key import Key
from pigguf.inference.tuning.profile import TuningProfile

# A GPU has kernels of its own for every depth: llama.cpp's defaults are the best there.
ON_GPU = TuningProfile()
# Flash attention makes prefill faster at all depths (AMX), or at all but the deepest; decode takes up to
# three times as long with it from some thousand tokens on.
ON_CPU = TuningProfile(flash_attention_switch=FlashAttentionSwitch(decode=4096))
TORCH_MIN_PROMPT = 4096  # on CPUs with bfloat16 instructions


def default_profile(machine: Key) -> TuningProfile:
    """Return the built-in settings for a machine."""
    if machine["gpus"]:
        return ON_GPU
    return replace(ON_CPU, torch_min_prompt=TORCH_MIN_PROMPT if has_fast_torch() else None)


def has_fast_torch() -> bool:
    """Return whether torch is installed on a CPU with bfloat16 instructions, without importing it."""
    return bool(bfloat16_instructions()) and importlib.util.find_spec("torch") is not None
