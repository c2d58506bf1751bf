"""Evaluations: what a GGUF file is worth, measured through the engine by the paper's own yardsticks.

    report = pigguf.evaluate("perplexity", "model.gguf", text=["novel.txt"], windows=[2048, 8192])

An evaluation is a module with a function of its own name that takes a model and returns a Report
(report.py), and a row in EVALUATIONS. Modules are imported only when their evaluation runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pigguf.errors import UsageError

if TYPE_CHECKING:
    from pigguf.evals.report import EvalReport

# name, which is also its function's -> module
EVALUATIONS: dict[str, str] = {
    "perplexity": "pigguf.evals.perplexity",
    "passkey": "pigguf.evals.passkey",
    "kl": "pigguf.evals.kl_divergence",
    "sweep": "pigguf.evals.rope_factor_sweep",
    "choice": "pigguf.evals.multiple_choice",
    "rouge": "pigguf.evals.rouge",
}


def evaluate(name: str, model: str | Path, **options: Any) -> EvalReport:
    """Run one evaluation.

    Args:
        name: of EVALUATIONS.
        model: a GGUF file.
        options: of the evaluation's own function.

    Raises:
        UsageError: no such evaluation.
        Whatever the evaluation raises.
    """
    if name not in EVALUATIONS:
        raise UsageError(f"there is no evaluation {name!r}", f"one of {', '.join(EVALUATIONS)}")
    function: Callable[..., EvalReport] = getattr(importlib.import_module(EVALUATIONS[name]), name)
    return function(model, **options)
