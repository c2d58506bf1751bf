"""Text and numbers for people: durations, and text that is safe to print on a terminal."""

from __future__ import annotations

# Control characters other than tab and line feed, shown as control pictures (U+2400 and up): an answer or a
# file name must not move the cursor, ring the bell, or rename the terminal window.
_CONTROL_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
_CONTROL_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(128, 160), 65533)


def printable(text: str) -> str:
    """Return the text with control characters made visible."""
    return text.translate(_CONTROL_PICTURES)


def format_duration(seconds: float) -> str:
    """Format seconds: 7.2 as "7 s", 95 as "1:35", 5025 as "1:23:45"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02}:{rest:02}"
    return f"{minutes}:{rest:02}" if minutes else f"{rest} s"


def truncate_line(text: str, width: int) -> str:
    """Return the text on one line of at most `width` characters."""
    line = " ".join(printable(text).split())
    return line if len(line) <= width else line[: width - 1] + "…"
