"""SettingDecision: one setting that was decided, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SettingDecision:
    """What was decided for one setting, and why.

    Attributes:
        setting: the setting's name in words: "context length", "flash attention".
        value: what was decided, in words.
        reason: why, in words: what was asked for, what was measured, what fits.
    """

    setting: str
    value: str
    reason: str
