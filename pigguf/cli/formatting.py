"""Words and numbers for people: sizes, times, and text that is safe to show on a terminal."""

from __future__ import annotations

# Control characters other than tab and line feed, shown as their pictures (U+2400 and up): a model's
# answer or a file's name must not move the cursor, ring, or rename the window.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(128, 160), 65533)


def printable(text: str) -> str:
    """The text with control characters made visible instead of obeyed."""
    return text.translate(_PICTURES)


def duration(seconds: float) -> str:
    """A time: 7.2 -> "7 s", 95 -> "1:35", 5025 -> "1:23:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def shortened(text: str, width: int) -> str:
    """The text on one line of at most `width` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
