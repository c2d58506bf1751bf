"""Plots as an SVG document of its own, without an HTML page around it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pigguf.evals.html_markup import element, escape_text
from pigguf.evals.html_style import STYLE
from pigguf.evals.report import LinePlot
from pigguf.evals.svg_plots import WIDE, marker, render_plot

_CSS_COLOUR = re.compile(r"(--[\w-]+): (#\w+);")
_EMPTY_PLOT_HEIGHT = 40.0  # pixels of the paragraph that a plot without points becomes


def render_svg_document(plots: Sequence[LinePlot]) -> str:
    """Return line plots one below the other with titles and legends, in the light colours of a page."""
    parts, top = [], 0.0
    for plot in plots:
        parts.append(element("text", escape_text(plot.title), x=0, y=top + 18, class_="name title"))
        top += 30
        for index, series in enumerate(plot.series if len(plot.series) > 1 else ()):
            parts.append(marker(index, 8, top + 8))
            parts.append(element("text", escape_text(series.name), x=20, y=top + 13, class_="name"))
            top += 20
        drawing = render_plot(plot, WIDE)
        height = _height(drawing)
        parts.append(element("svg", drawing, x=0, y=top, width=WIDE, height=height))
        top += height + 30
    colours = dict(_CSS_COLOUR.findall(STYLE)[::-1])  # the first definition of each name is the light one
    rules = [rule for rule in STYLE.splitlines() if rule.startswith(("svg .", "svg text", ".line-"))]
    style = re.sub(r"var\((--[\w-]+)\)", lambda match: colours[match[1]], "\n".join(rules))
    background = element("rect", x=-20, y=-10, width="100%", height="100%", fill=colours["--paper"])
    return element(
        "svg",
        element("style", f"svg {{ font: 13px sans-serif; }}\nsvg .title {{ font-weight: 600; }}\n{style}"),
        background,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"-20 -10 {WIDE + 40} {top + 10:g}",
    )


def _height(drawing: str) -> float:
    match = re.match(r'<svg viewBox="0 0 \S+ (\S+)"', drawing)
    return float(match[1]) if match else _EMPTY_PLOT_HEIGHT
