"""Tuning: how a model runs fastest on this machine; measured once, stored, and loaded before every load.

    profile = load_tuning_profile(file)   what was measured, or a built-in default; a few milliseconds
    result = tune(path, progress=...)     a minute or two

    profile            TuningProfile and the measured speeds, as plain values
    profile_store      tuning profiles on disk
    machine_key        what a profile applies to: the machine, the model's shape
    default_profiles   the profile of a machine that was never tuned
    measure_speed      the speed of one setting at one depth
    timed_comparison   comparisons of settings within a time budget
    choose_settings    from measured speeds to settings; pure functions
    tune               the tuning itself

Only settings that change no answer are chosen. Not here: memory (inference/memory_planning), and applying a
profile (inference/resolve_run.py).
"""

from pigguf.inference.tuning.profile import Measurement, SpeedAtDepth, TuningProfile
from pigguf.inference.tuning.profile_store import load_tuning_profile
from pigguf.inference.tuning.tune import BUDGET, TuningResult, tune

__all__ = [
    "BUDGET",
    "Measurement",
    "SpeedAtDepth",
    "TuningProfile",
    "TuningResult",
    "load_tuning_profile",
    "tune",
]
