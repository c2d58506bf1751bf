"""Line plots with confidence intervals, and heat maps, as inline SVG.

    svg = render_plot(plot, width=WIDE)       one <svg> element, with the CSS variables of html_style.py

Every value is in the drawing as the tooltip (<title>) of its marker or cell, and the drawing has a title and
a description for screen readers. Values that are not finite are left out; they are in the tables. The result
is well-formed XML without scripts or references.

The colours of heat maps are viridis, by Nathaniel Smith and Stéfan van der Walt (CC0): perceptually uniform,
for colour-blind readers and in greyscale, too. Not here: the axes (svg_axis.py), the page and the legend
(html_report.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pigguf.evals.html_markup import element, escape_text, format_cell, format_column
from pigguf.evals.report import HeatMap, LinePlot, Plot, PlotPoint, PlotSeries
from pigguf.evals.svg_axis import Axis, are_token_counts, fit_axis, format_token_count

WIDE, NARROW = 760, 360  # pixels of the two widths in which a page has each plot

N_COLOURS = 7  # --line-0 to --line-6 of the style; further series repeat them with another marker
MARKERS = ("circle", "square", "triangle", "diamond")

VIRIDIS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")

_CHARACTER_WIDTH = 7.2  # pixels, at most, in the style's 13 px font
_LINE_HEIGHT = 18  # pixels
_MAX_ERROR_BARS = 12  # points of a series; with more, the confidence intervals become a band


def render_plot(plot: Plot, width: int) -> str:
    """Return a plot as an <svg> element.

    Args:
        plot: the plot.
        width: the width in pixels; the drawing scales down on narrower pages.
    """
    if isinstance(plot, HeatMap):
        return _heat_map(plot, width)
    return _line_plot(plot, width)


def marker(index: int, x: float, y: float, radius: float = 4.0) -> str:
    """Return the marker of the series with this index, centered at (x, y)."""
    r = radius
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
        "diamond": ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
    }
    shape = MARKERS[index % len(MARKERS)]
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=r, class_=f"mark {colour_class(index)}")
    points = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
    return element("polygon", points=points, class_=f"mark {colour_class(index)}")


def colour_class(index: int) -> str:
    """Return the CSS class with the colour of the series with this index."""
    return f"line-{index % N_COLOURS}"


# ---- line plots ----------------------------------------------------------------------------------


def _line_plot(plot: LinePlot, width: int) -> str:
    drawable = [_drawable_series(series, plot) for series in plot.series]
    points = [point for series in drawable for point in series.points]
    if not points:
        return element("p", "This plot has no finite values.", class_="note")
    height = 380 if width > 500 else 300
    y_values = [y for p in points for y in (p.low, p.y, p.high) if y is not None]
    bottom = height - 2 * _LINE_HEIGHT - 14
    y = fit_axis(y_values, bottom, _LINE_HEIGHT + 12, log=plot.log_y, padding=0.06, max_ticks=7)
    left = 14 + _CHARACTER_WIDTH * max(map(len, y.labels()))
    x_values = [p.x for p in points]
    x = fit_axis(x_values, left, width - 14, log=plot.log_x, padding=0.03, max_ticks=width // 75)
    parts = [_title(plot, _description(plot)), _frame(plot, x, y)]
    parts += [_series(series, index, x, y) for index, series in enumerate(drawable)]
    return _svg(parts, width, height)


def _drawable_series(series: PlotSeries, plot: LinePlot) -> PlotSeries:
    """Return the series without the points and intervals that the axes cannot show."""

    def is_drawable(value: float | None, log: bool) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not log)

    points = []
    for p in series.points:
        if is_drawable(p.x, plot.log_x) and is_drawable(p.y, plot.log_y):
            has_interval = is_drawable(p.low, plot.log_y) and is_drawable(p.high, plot.log_y)
            points.append(p if has_interval else PlotPoint(p.x, p.y))
    return PlotSeries(series.name, tuple(points))


def _frame(plot: LinePlot, x: Axis, y: Axis) -> str:
    """Return the grid, the tick labels and the axis labels."""
    parts = []
    for tick, label in zip(y.ticks, y.labels(), strict=True):
        pixel = y.to_pixel(tick)
        parts.append(element("line", x1=x.start, x2=x.end, y1=pixel, y2=pixel, class_="grid"))
        parts.append(_text(label, x.start - 7, pixel + 4, "end"))
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        pixel = x.to_pixel(tick)
        parts.append(element("line", x1=pixel, x2=pixel, y1=y.start, y2=y.start + 5, class_="axis"))
        parts.append(_text(label, pixel, y.start + 20, "middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(_text(_axis_label(plot.y_label, plot.log_y), 2, 14, "start", "name"))
    center = (x.start + x.end) / 2
    parts.append(_text(_axis_label(plot.x_label, plot.log_x), center, y.start + 41, "middle", "name"))
    return element("g", *parts, aria_hidden="true")


def _axis_label(label: str, log: bool) -> str:
    return f"{label} (log scale)" if log else label


def _series(series: PlotSeries, index: int, x: Axis, y: Axis) -> str:
    colour = colour_class(index)
    parts = []
    is_dense = len(series.points) > _MAX_ERROR_BARS
    if is_dense and any(p.low is not None for p in series.points):
        parts.append(_interval_band(series, colour, x, y))
    path = " ".join(f"{x.to_pixel(p.x):.1f},{y.to_pixel(p.y):.1f}" for p in series.points)
    parts.append(element("polyline", points=path, class_=f"line {colour}"))
    for p in series.points:
        parts.append(_point(series.name, index, p, x, y, error_bars=not is_dense))
    return element("g", *parts)


def _interval_band(series: PlotSeries, colour: str, x: Axis, y: Axis) -> str:
    """Return the confidence intervals of a series as an area."""
    ends = [
        (x.to_pixel(p.x), p.low, p.high) for p in series.points if p.low is not None and p.high is not None
    ]
    corners = [(pixel, y.to_pixel(low)) for pixel, low, _ in ends]
    corners += [(pixel, y.to_pixel(high)) for pixel, _, high in reversed(ends)]
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in corners)
    return element("polygon", points=points, class_=f"band {colour}")


def _point(name: str, index: int, p: PlotPoint, x: Axis, y: Axis, error_bars: bool) -> str:
    """Return the marker of a point with its tooltip and, with `error_bars`, its confidence interval."""
    pixel_x, pixel_y = x.to_pixel(p.x), y.to_pixel(p.y)
    tooltip = f"{name}: {format_cell(p.y)} at {format_cell(p.x)}"
    parts = []
    if p.low is not None and p.high is not None:
        tooltip += f", 95 % interval {format_cell(p.low)} to {format_cell(p.high)}"
        if error_bars:
            parts += _error_bar(pixel_x, y.to_pixel(p.low), y.to_pixel(p.high), colour_class(index))
    parts.append(marker(index, pixel_x, pixel_y, 4.0 if error_bars else 2.5))
    parts.append(element("circle", cx=pixel_x, cy=pixel_y, r=11, class_="touch"))  # an easier target
    return element("g", element("title", escape_text(tooltip)), *parts)


def _error_bar(x: float, low: float, high: float, colour: str) -> list[str]:
    return [
        element("line", x1=a, x2=b, y1=c, y2=d, class_=f"bar {colour}")
        for a, b, c, d in ((x, x, low, high), (x - 4, x + 4, low, low), (x - 4, x + 4, high, high))
    ]


def _description(plot: LinePlot) -> str:
    """Return the plot in words: the first and the last point of each line."""
    lines = []
    for series in plot.series:
        if series.points:
            first, last = series.points[0], series.points[-1]
            lines.append(
                f"{series.name}: {format_cell(first.y)} at {format_cell(first.x)}, "
                f"{format_cell(last.y)} at {format_cell(last.x)}, {len(series.points)} points."
            )
    return f"{plot.y_label} by {plot.x_label}. " + " ".join(lines)


# ---- heat maps -----------------------------------------------------------------------------------


def _heat_map(plot: HeatMap, width: int) -> str:
    """Return a grid of cells, with the first row at the bottom, as on an axis."""
    x_labels, y_labels = (_category_labels(values) for values in (plot.x, plot.y))
    left = 14 + _CHARACTER_WIDTH * max(map(len, y_labels))
    cell_width = (width - left - 4) / len(plot.x)
    cell_height = min(40.0, max(12.0, 380 / len(plot.y)))
    top = _LINE_HEIGHT + 10
    bottom = top + cell_height * len(plot.y)
    parts = [_title(plot, f"{plot.y_label} by {plot.x_label}: {len(plot.y)} by {len(plot.x)} cells.")]
    for row, values in enumerate(plot.values):
        for column, value in enumerate(values):
            box = (left + column * cell_width, bottom - (row + 1) * cell_height, cell_width, cell_height)
            name = f"{plot.x_label} {x_labels[column]}, {plot.y_label} {y_labels[row]}"
            parts.append(_cell(value, name, box))
    labels = [_text(plot.y_label, 2, 14, "start", "name")]
    for row in _visible_labels(len(y_labels), _LINE_HEIGHT / cell_height):
        labels.append(_text(y_labels[row], left - 7, bottom - (row + 0.5) * cell_height + 4, "end"))
    label_width = _CHARACTER_WIDTH * (max(map(len, x_labels)) + 1.5)
    for column in _visible_labels(len(x_labels), label_width / cell_width):
        labels.append(_text(x_labels[column], left + (column + 0.5) * cell_width, bottom + 18, "middle"))
    labels.append(_text(plot.x_label, (left + width) / 2, bottom + 39, "middle", "name"))
    parts.append(element("g", *labels, aria_hidden="true"))
    return _svg(parts, width, bottom + 46)


def _category_labels(values: Sequence[float]) -> list[str]:
    if are_token_counts(values):
        return [format_token_count(value) for value in values]
    return format_column(values)


def _visible_labels(count: int, cells_per_label: float) -> Iterator[int]:
    """Return the indices of the labels to show, every n-th, so that they do not overlap."""
    return iter(range(0, count, max(1, math.ceil(cells_per_label))))


def _cell(value: float | None, name: str, box: tuple[float, float, float, float]) -> str:
    """Return a cell of a heat map with its tooltip.

    Args:
        value: the share, between 0 and 1; None if nothing was measured.
        name: the column and row, for the tooltip.
        box: x, y, width and height, in pixels.
    """
    x, y, width, height = box
    label = "–" if value is None else f"{100 * value:.0f}"
    exact = "not measured" if value is None else f"{100 * value:.4g} %"
    shape = {"x": x + 0.5, "y": y + 0.5, "width": max(width - 1, 1), "height": max(height - 1, 1), "rx": 2}
    if value is None:
        rectangle, label_class = element("rect", class_="nothing", **shape), "in-nothing"
    else:
        colour = viridis_colour(value)
        rectangle = element("rect", fill=colour, **shape)
        label_class = "on-dark" if _luminance(colour) < 0.2 else "on-light"
    text = ""
    if width >= _CHARACTER_WIDTH * (len(label) + 0.5) and height >= 15:
        text = _text(label, x + width / 2, y + height / 2 + 4.5, "middle", label_class)
    return element("g", element("title", escape_text(f"{name}: {exact}")), rectangle, text)


def viridis_colour(share: float) -> str:
    """Return the viridis colour of a share as #rrggbb; shares are clamped to 0 and 1."""
    position = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(position), len(VIRIDIS) - 2)
    a, b = (_rgb(VIRIDIS[i]) for i in (index, index + 1))
    mixed = (round(p + (q - p) * (position - index)) for p, q in zip(a, b, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    """Return the relative luminance (WCAG 2.2), which determines the contrast with black or white text."""
    red, green, blue = (math.pow((v / 255 + 0.055) / 1.055, 2.4) for v in _rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- SVG elements --------------------------------------------------------------------------------


def _svg(parts: list[str], width: float, height: float) -> str:
    return element("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img")


def _title(plot: Plot, description: str) -> str:
    """Return the title and description, which screen readers read for `role="img"`."""
    return element("title", escape_text(plot.title)) + element("desc", escape_text(description))


def _text(text: str, x: float, y: float, anchor: str, css_class: str = "tick") -> str:
    return element("text", escape_text(text), x=x, y=y, text_anchor=anchor, class_=css_class)
