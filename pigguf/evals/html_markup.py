"""HTML and SVG elements that are well-formed XML, escaped text, and numbers as people read them."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from pigguf.evals.report import Cell


def element(tag: str, *children: str, **attributes: Any) -> str:
    """Return the markup of an element.

    Args:
        tag: the name of the element.
        children: markup, which is not escaped.
        attributes: values, which are escaped; floats are rounded to a hundredth. A trailing underscore of a
            name is removed (class_), other underscores become hyphens.
    """
    attribute_markup = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape_text(_attribute_text(value))}"'
        for name, value in attributes.items()
    )
    return f"<{tag}{attribute_markup}>{''.join(children)}</{tag}>"


def _attribute_text(value: Any) -> str:
    return f"{round(value, 2):g}" if isinstance(value, float) else str(value)


def escape_text(text: str) -> str:
    """Escape text for HTML; characters that are not printable, and could mislead, become escape sequences."""
    return html.escape("".join(map(_printable, text)))


def _printable(character: str) -> str:
    if character.isprintable() or character in "\t\n":
        return character
    return character.encode("unicode_escape").decode()


def format_cell(cell: Cell) -> str:
    """Return a cell's text: numbers with five significant digits, a dash if there is no value."""
    if cell is None:
        return "–"
    if isinstance(cell, float):
        if cell == 0 or 1e-4 <= abs(cell) < 1e5:
            return f"{cell:,.5g}"
        return f"{cell:,.0f}" if cell.is_integer() and abs(cell) < 1e7 else f"{cell:.3g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def format_column(column: Sequence[Cell]) -> list[str]:
    """Return the texts of the cells of one column, or one axis, all with the same number of decimals.

    That is the number with which the smallest value has four significant digits, if any cell has that many
    decimals.
    """
    texts = [format_cell(cell) for cell in column]
    numbers = {text: abs(cell) for cell, text in zip(column, texts, strict=True) if _is_finite_float(cell)}
    if not numbers or any("e" in text for text in numbers):
        return texts
    smallest = min((number for number in numbers.values() if number), default=1.0)
    decimals = min(
        max(len(text.partition(".")[2]) for text in numbers), max(0, 3 - math.floor(math.log10(smallest)))
    )
    return [
        f"{cell:,.{decimals}f}" if _is_finite_float(cell) else text
        for cell, text in zip(column, texts, strict=True)
    ]


def _is_finite_float(cell: Cell) -> TypeGuard[float]:
    return isinstance(cell, float) and math.isfinite(cell)
