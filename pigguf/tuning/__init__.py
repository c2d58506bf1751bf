"""How a model runs fastest on this machine: measured once, kept, and found before every load.

    tuning = find_tuning(file)            what was measured, or a short built-in rule; a few milliseconds
    result = tune(path, progress=...)     a minute or two

    values  what is measured and kept          keys   what it holds for: the machine, the model's shape
    choice  pure functions from speeds to it   store  where it is kept
    probe   the speed of a setting at a depth  rule   what goes for a machine that was never tuned
    rounds  comparisons within a budget        run    the tuning itself

Chosen is only what changes no answer. Left out: memory (planning.py), and who applies it (runtime.py).
"""

from pigguf.tuning.run import BUDGET, Choice, TuningResult, tune
from pigguf.tuning.store import find_tuning
from pigguf.tuning.values import Measurement, Speed, Tuning

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
