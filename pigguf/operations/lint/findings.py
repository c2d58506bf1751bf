"""What `lint` returns: a fault in a file's position keys, and the changes that would fix it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from pigguf.gguf_io.metadata import TypedValue
from pigguf.operations.lint.position_keys import (
    CONTEXT_LENGTH,
    FREQ_BASE,
    ORIGINAL_CONTEXT_LENGTH,
    SCALING_FACTOR,
    SCALING_TYPE,
)
from pigguf.rope import Evidence, RopeOverrides
from pigguf.rope.overrides import NO_OVERRIDES

# `repair` writes these keys itself, in their right types, wherever it is given rope numbers.
_WRITTEN_WITH_ROPE = tuple(
    f".{key}" for key in (CONTEXT_LENGTH, FREQ_BASE, SCALING_TYPE, SCALING_FACTOR, ORIGINAL_CONTEXT_LENGTH)
)


@dataclass(frozen=True)
class SuggestedFix:
    """A change that would fix a fault, as arguments of `pigguf.repair`.

    Attributes:
        rope: The factor and window lengths to set; the others are derived from them.
        rope_theta: The rope theta to set, or None.
        set: Keys by their full names, with the values to set.
        condition: What must be true for the fix to be right ("if ..."); "" if the file itself proves it.
    """

    rope: RopeOverrides = NO_OVERRIDES
    rope_theta: float | None = None
    set: Mapping[str, TypedValue] = field(default_factory=dict)
    condition: str = ""

    def if_unconditional(self, condition: str) -> SuggestedFix:
        """Return the fix with a condition, unless it has one of its own."""
        return replace(self, condition=self.condition or condition)


@dataclass(frozen=True)
class LintFinding:
    """A fault in a file's position keys.

    Attributes:
        problem: A name of the fault for programs: "window-not-multiplied".
        message: What is wrong and what it causes, in one sentence.
        evidence: The keys that show it.
        fixes: What would fix it: several if the user has to choose, none if nothing is known.
    """

    problem: str
    message: str
    evidence: tuple[Evidence, ...]
    fixes: tuple[SuggestedFix, ...] = ()


def certain_fixes(findings: Iterable[LintFinding]) -> tuple[SuggestedFix, ...]:
    """Return the fixes that need no choice and no condition, in order, ready to be applied together.

    If one of them sets rope numbers, edits of keys that `repair` writes with those numbers are left out.
    """
    fixes = [
        finding.fixes[0] for finding in findings if len(finding.fixes) == 1 and not finding.fixes[0].condition
    ]
    if any(fix.rope != NO_OVERRIDES for fix in fixes):
        fixes = [replace(fix, set=_not_written_with_rope(fix.set)) for fix in fixes]
    changing = [fix for fix in fixes if fix != SuggestedFix()]
    return tuple(fix for i, fix in enumerate(changing) if fix not in changing[:i])


def _not_written_with_rope(edits: Mapping[str, TypedValue]) -> dict[str, TypedValue]:
    return {key: typed for key, typed in edits.items() if not key.endswith(_WRITTEN_WITH_ROPE)}
