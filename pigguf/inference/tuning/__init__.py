"""How a model runs fastest on this machine: measured once, kept, and found before every load.

    tuning = find_tuning(file)            what was measured, or a short built-in rule; a few milliseconds
    result = tune(path, progress=...)     a minute or two

    values  what is measured and kept          keys   what it holds for: the machine, the model's shape
    choice  pure functions from speeds to it   store  where it is kept
    probe   the speed of a setting at a depth  rule   what goes for a machine that was never tuned
    rounds  comparisons within a budget        run    the tuning itself

Chosen is only what changes no answer. Left out: memory (inference/planning.py), and who applies it (inference/open_context.py).
"""

from pigguf.inference.tuning.profile import Measurement, Speed, Tuning
from pigguf.inference.tuning.tune import BUDGET, Choice, TuningResult, tune
from pigguf.inference.tuning.tuning_files import find_tuning

__all__ = [
    "BUDGET",
    "Choice",
    "Measurement",
    "Speed",
    "Tuning",
    "TuningResult",
    "find_tuning",
    "tune",
]
