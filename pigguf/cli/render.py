"""Output of commands: tables, key-value lists and JSON on stdout, notes on stderr.

A terminal gets colours; a pipe or a file gets plain text that is never wrapped. Control characters are made
visible. NO_COLOR is honoured (by rich). Not here: errors (error_report.py) and progress (progress_bars.py).
"""

from __future__ import annotations

import json as _json
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pigguf.cli.formatting import printable

_PIPE_WIDTH = 10_000  # a pipe has no width to wrap at

# ---- results, on stdout --------------------------------------------------------------------------


def json(value: Any) -> None:
    """Print a value as JSON."""
    sys.stdout.write(_json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def key_values(rows: Iterable[tuple[str, object]], title: str | None = None) -> None:
    """Print names and values, aligned, below an optional title."""
    lines = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in lines), default=0)
    out = console(stderr=False)
    if title:
        out.print(Text(printable(title), style="bold"), soft_wrap=True)
    for name, value in lines:
        out.print(
            Text(f"{name:<{width}}  ", style="cyan") + Text(printable(value), style="default"), soft_wrap=True
        )


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], right: Iterable[str] = ()) -> None:
    """Print a table; the columns named in `right` are aligned right, as numbers are."""
    grid = Table(box=None, pad_edge=False, header_style="bold")
    numbers = set(right)
    for header in headers:
        grid.add_column(header, justify="right" if header in numbers else "left", no_wrap=True)
    for row in rows:
        grid.add_row(*(Text(printable(str(cell))) for cell in row))
    console(stderr=False).print(grid)


# ---- everything else, on stderr ------------------------------------------------------------------


def note(text: str) -> None:
    """Print a line on stderr."""
    console(stderr=True).print(Text(printable(text)), soft_wrap=True)


@cache
def console(stderr: bool) -> Console:
    """Return the console for stdout or stderr, made once."""
    made = Console(stderr=stderr, highlight=False, emoji=False, markup=False)
    if not made.is_terminal:
        made.width = _PIPE_WIDTH
    return made
