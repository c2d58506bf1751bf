"""Lint: find faults in a GGUF file's position keys, each with its evidence and what would fix it.

    for finding in lint(read_header("model.gguf")):
        print(finding.problem, finding.message)

A file's keys become claims like those of a checkpoint (rope/evidence.py), the same code decides on them
(rope/decision.py), and the result is compared with what the file states. A new fault is a function in RULES.
A fix without a condition is proved by the file itself; one that only a name supports, or that leaves a
choice, states its condition.

    key_rules.py             types and values of single keys
    linear_scaling_rules.py  linear scaling: type, factor, windows
    yarn_longrope_rules.py   YaRN and LongRoPE
    position_keys.py         PositionKeys: reads a file's keys
    position_claims.py       the keys as claims
    model_names.py           what a model's name implies
    fix_suggestions.py       rope numbers that would fix a file
    findings.py              LintFinding, SuggestedFix, certain_fixes

Not here: changing the file (operations/repair.py), and the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pigguf.gguf_io import GGUFFile
from pigguf.operations.lint.findings import LintFinding, SuggestedFix, certain_fixes
from pigguf.operations.lint.key_rules import (
    missing_context_length,
    unknown_scaling_type,
    wrong_dimension_count,
    wrong_rope_theta,
    wrong_types,
)
from pigguf.operations.lint.linear_scaling_rules import (
    bad_factor,
    factor_switched_off,
    linear_windows,
    missing_factor,
    missing_scaling_type,
    two_factors,
)
from pigguf.operations.lint.position_claims import position_claims
from pigguf.operations.lint.position_keys import POSITION_KEYS, PositionKeys
from pigguf.operations.lint.yarn_longrope_rules import yarn_longrope_windows

__all__ = [
    "POSITION_KEYS",
    "RULES",
    "LintFinding",
    "PositionKeys",
    "SuggestedFix",
    "certain_fixes",
    "lint",
    "position_claims",
]

RULES: tuple[Callable[[PositionKeys], Iterator[LintFinding]], ...] = (
    wrong_types,
    missing_context_length,
    unknown_scaling_type,
    bad_factor,
    two_factors,
    factor_switched_off,
    missing_scaling_type,
    missing_factor,
    linear_windows,
    yarn_longrope_windows,
    wrong_rope_theta,
    wrong_dimension_count,
)


def lint(file: GGUFFile) -> tuple[LintFinding, ...]:
    """Return every fault in a file's position keys; () if there is none, or if the file has no such keys.

    Raises:
        GGUFError: The file does not state its architecture.
    """
    keys = PositionKeys(file)
    if not any(keys.has(key) for key in POSITION_KEYS):
        return ()  # an adapter or a projector
    return tuple(finding for rule in RULES for finding in rule(keys))
