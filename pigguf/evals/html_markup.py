"""Pieces of HTML and SVG that are well-formed XML too: elements, safe text, figures as people read them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from pigguf.evals.report import Cell


def element(tag: str, *children: str, **attributes: Any) -> str:
    """An element. Children are markup already; attributes are escaped here.

    A trailing underscore of an attribute's name is dropped (class_), others become hyphens; numbers are
    rounded to a hundredth.
    """
    written = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape_text(_attribute(value))}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{written}>{''.join(children)}</{tag}>"


def _attribute(value: Any) -> str:
    return f"{round(value, 2):g}" if isinstance(value, float) else str(value)


def escape_text(text: str) -> str:
    """Text that means nothing but itself; what cannot be shown, and could mislead, is shown as its escape."""
    return html.escape("".join(map(_visible, text)))


def _visible(character: str) -> str:
    if character.isprintable() or character in "\t\n":
        return character
    return character.encode("unicode_escape").decode()


def format_cell(cell: Cell) -> str:
    """A cell as a person reads it: five significant digits; a dash where there is no figure."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        if cell == 0 or 1e-4 <= abs(cell) < 1e5:
            return f"{cell:,.5g}"
        return f"{cell:,.0f}" if cell.is_integer() and abs(cell) < 1e7 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def format_column(column: Sequence[Cell]) -> list[str]:
    """Figures that stand in one column, or on one axis: all with as many decimals as the least needs for
    four significant digits, if any of them has so many."""
    plain = [format_cell(cell) for cell in column]
    numbers = {text: abs(cell) for cell, text in zip(column, plain, strict=True) if _is_real(cell)}
    if not numbers or any("e" in text for text in numbers):
        return plain
    least = min((number for number in numbers.values() if number), default=1.0)
    decimals = min(
        max(len(text.partition(".")[2]) for text in numbers), max(0, 3 - math.floor(math.log10(least)))
    )
    return [
        f"{cell:,.{decimals}f}" if _is_real(cell) else text for cell, text in zip(column, plain, strict=True)
    ]


def _is_real(cell: Cell) -> TypeGuard[float]:
    return isinstance(cell, float) and math.isfinite(cell)
