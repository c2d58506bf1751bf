"""The settings of a machine that was never tuned: a short table, from measurements in docs/LOG.md.

Left out: what a tuning finds out for itself (run.py).
"""

from __future__ import annotations

import importlib.util
from dataclasses import replace

from pigguf.inference.engine import FlashAttentionSwitch
from pigguf.inference.torch_prefill.backend import bfloat16_arithmetic
from pigguf.inference.tuning.machine_key import Key
from pigguf.inference.tuning.profile import Tuning

# A GPU has kernels of its own for every depth: llama.cpp's defaults are its best.
ON_GPU = Tuning()
# With flash attention prompts are read faster, at all depths (AMX) or at all but the deepest; single tokens
# take up to three times as long from some thousand tokens on.
ON_CPU = Tuning(handoff=FlashAttentionSwitch(decode=4096))
TORCH_FROM = 4096  # where torch has bf16 arithmetic of the CPU's own


def rule(machine: Key) -> Tuning:
    """The built-in settings for a machine."""
    if machine["gpus"]:
        return ON_GPU
    return replace(ON_CPU, torch_from=TORCH_FROM if torch_is_fast() else None)


def torch_is_fast() -> bool:
    """Whether torch is there, on a CPU on which it is worth it; without importing it."""
    return bool(bfloat16_arithmetic()) and importlib.util.find_spec("torch") is not None
