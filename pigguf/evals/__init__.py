"""Evaluations of a GGUF file, run through the engine: perplexity, passkey, KL divergence and others.

    report = pigguf.evaluate("perplexity", "model.gguf", text=["novel.txt"], windows=[2048, 8192])

Each evaluation is a module with a function of the evaluation's name, which takes a model file and returns an
EvalReport (report.py), and is listed in EVALUATIONS. All are built on evaluation.py: the model under test,
its position variants, a resumable journal and the report. Modules are imported when their evaluation runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pigguf.errors import UsageError

if TYPE_CHECKING:
    from pigguf.evals.report import EvalReport

# the evaluation's name, which is also the name of its function -> its module
EVALUATIONS: dict[str, str] = {
    "perplexity": "pigguf.evals.perplexity",
    "passkey": "pigguf.evals.passkey",
    "kl": "pigguf.evals.kl_evaluation",
    "sweep": "pigguf.evals.rope_factor_sweep",
    "choice": "pigguf.evals.multiple_choice",
    "rouge": "pigguf.evals.rouge",
}


def evaluate(name: str, model: str | Path, **options: Any) -> EvalReport:
    """Run one evaluation on a GGUF file and return its report.

    Args:
        name: one of EVALUATIONS.
        model: the path of a GGUF file.
        options: the keyword arguments of the evaluation's own function.

    Raises:
        UsageError: if there is no evaluation of this name.
        PigError: whatever the evaluation raises.
    """
    if name not in EVALUATIONS:
        raise UsageError(f"unknown evaluation {name!r}", f"use one of {', '.join(EVALUATIONS)}")
    function: Callable[..., EvalReport] = getattr(importlib.import_module(EVALUATIONS[name]), name)
    return function(model, **options)
