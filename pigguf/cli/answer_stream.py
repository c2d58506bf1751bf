"""An answer on stdout while it is drawn: as it is into a pipe, made fit to read on a terminal.

A terminal gets lines that break between words, control characters as pictures, and no echo of what is
typed meanwhile: that waits, unseen, for the next prompt.
"""

from __future__ import annotations

import shutil
import sys
from types import TracebackType
from typing import Any

from rich.cells import cell_len

from pigguf.cli import terminal
from pigguf.cli.formatting import printable


class AnswerStream:
    """Writes one answer; as a context manager it ends the answer's last line, whatever happens."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._wrote = False
        self._column = 0
        self._word = ""  # held back until it is clear on which line it goes
        self._echo: list[Any] | None = None

    def write(self, text: str) -> None:
        """Print a piece of the answer at once; on a terminal up to its last whole word."""
        self._wrote = self._wrote or bool(text)
        if not self._on_terminal:
            self._print(text)
            return
        for character in printable(text):
            if character.isspace():
                self._end_word()
                self._space(character)
            else:
                if cell_len(character) == 2:  # scripts without spaces break anywhere
                    self._end_word()
                self._word += character
        sys.stdout.flush()

    def __enter__(self) -> AnswerStream:
        self._echo = terminal.switch_echo_off()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._end_word()
            if self._wrote:
                self._print("\n")
        finally:
            terminal.restore(self._echo)

    def _end_word(self) -> None:
        word, self._word = self._word, ""  # first of all: Ctrl-C may come after any line
        if not word:
            return
        width, cells = shutil.get_terminal_size().columns, cell_len(word)
        if self._column and self._column + cells > width:
            sys.stdout.write("\n")
            self._column = 0
        sys.stdout.write(word)
        self._column = (self._column + cells) % width if cells > width else self._column + cells

    def _space(self, character: str) -> None:
        at_edge = self._column >= shutil.get_terminal_size().columns
        if character == "\n" or at_edge:
            sys.stdout.write("\n")
            self._column = 0
        else:
            sys.stdout.write(character)
            self._column += 8 - self._column % 8 if character == "\t" else 1

    def _print(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
