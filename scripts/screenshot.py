"""Turn the contents of a terminal into an SVG picture for the README.

usage: tmux capture-pane -ep | .venv/bin/python scripts/screenshot.py TITLE docs/demo.svg
"""

from __future__ import annotations

import re
import sys
from io import StringIO
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text


def main(title: str, target: Path) -> None:
    lines = sys.stdin.read().rstrip().splitlines()
    screen = Text("\n").join(Text.from_ansi(line) for line in lines)
    width = max(cell_len(line.plain) for line in screen.split("\n"))
    console = Console(record=True, file=StringIO(), width=width, force_terminal=True)
    console.print(screen, soft_wrap=True)
    svg = console.export_svg(title=title)
    target.write_text(re.sub(r"@font-face {.*?}\n", "", svg, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
