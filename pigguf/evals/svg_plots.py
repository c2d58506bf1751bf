"""Plots as inline SVG: lines with their confidence intervals, and heat maps.

    svg = draw(plot, width=720)       one <svg> element, whose colours are variables of the page's style

Contract: every value is in the drawing, as the tooltip (<title>) of its mark, and the drawing has a title
and a description for those who do not see it. What is not finite cannot be drawn and is left to the
tables. The result is well-formed XML with no script and no reference to anything outside.

The colours of a heat map are viridis, by Nathaniel Smith and Stéfan van der Walt (CC0): equal steps look
equal, to colour-blind readers and in grey too. Left out: the page around it, its style and the legend of
lines (page.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pigguf.evals.html_markup import format_column, element, escape_text, format_cell
from pigguf.evals.report import HeatMap, LinePlot, Plot, PlotPoint, PlotSeries

COLOURS = 7  # --line-0 to --line-6 of the page's style; then they come again, with another mark
MARKS = ("circle", "square", "triangle", "diamond")

VIRIDIS = ("#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725")

_CHARACTER = 7.2  # width of one in the style's 13 px, at most
_LINE = 18  # height of one


def render_plot(plot: Plot, width: int) -> str:
    """The plot as an <svg> element of so many pixels' width, or narrower where the page is."""
    if isinstance(plot, HeatMap):
        return _heat_map(plot, width)
    return _lines(plot, width)


def marker(number: int, x: float, y: float, radius: float = 4.0) -> str:
    """The mark of series `number` at a place."""
    r = radius
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "triangle": ((0, -1.3 * r), (1.2 * r, r), (-1.2 * r, r)),
        "diamond": ((0, -1.4 * r), (1.4 * r, 0), (0, 1.4 * r), (-1.4 * r, 0)),
    }
    shape = MARKS[number % len(MARKS)]
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=r, class_=f"mark {colour_class(number)}")
    places = " ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners[shape])
    return element("polygon", points=places, class_=f"mark {colour_class(number)}")


def colour_class(number: int) -> str:
    """The style's class with the colour of series `number`."""
    return f"line-{number % COLOURS}"


# ---- axes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A stretch of values laid onto a stretch of pixels.

    Attributes:
        low, high: the values at its ends.
        start, end: their pixels.
        log: equal ratios are equal lengths.
        ticks: the values to label, in order.
        is_tokens: labels are counts of tokens (8k is 8192).
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]
    is_tokens: bool = False

    def to_pixel(self, value: float) -> float:
        """The pixel of a value."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def labels(self) -> list[str]:
        """The text of each tick."""
        return [format_token_count(tick) for tick in self.ticks] if self.is_tokens else format_ticks(self.ticks)


def format_token_count(value: float) -> str:
    """A number of tokens: 2048 -> "2k", 1000 -> "1,000"."""
    if value >= 1024 and value % 1024 == 0:
        return f"{value / 1024:g}k"
    return format_cell(value)


def format_ticks(ticks: Sequence[float]) -> list[str]:
    """Numbers on an axis; those over several powers of ten each as short as it can be."""
    if min(ticks) > 0 and max(ticks) / min(ticks) >= 100:
        return [f"{tick:,.6g}" if tick < 1e6 else f"{tick:.0e}".replace("e+0", "e") for tick in ticks]
    return format_column(ticks)


def fit_axis(values: Sequence[float], start: float, end: float, *, log: bool, pad: float, most: int) -> Axis:
    """An axis that shows all values.

    Args:
        values: finite, and above 0 where log.
        pad: how far it goes beyond them, as a share of its length.
        most: ticks, about.
    """
    low, high = _padded(min(values), max(values), log, pad)
    tokens = _are_tokens(values)
    if not log:
        ticks = _linear_ticks(low, high, most, tokens)
    elif tokens and high >= 2 * low:
        ticks = _few(_powers(low, high), most)
    else:
        ticks = _log_ticks(low, high, most)
    return Axis(low, high, start, end, log, tuple(ticks), tokens)


def _padded(low: float, high: float, log: bool, pad: float) -> tuple[float, float]:
    if log:
        ratio = (high / low) ** pad if high > low else 1.25
        return low / ratio, high * ratio
    room = (high - low) * pad if high > low else abs(high) * 0.1 or 1.0
    padded = low - room
    return (0.0 if low >= 0 > padded else padded), high + room


def _are_tokens(values: Sequence[float]) -> bool:
    """Whether these are places or lengths in a window of tokens, told by powers of two."""
    if min(values) < 1:
        return min(values) == 0 and max(values) >= 1024 and all(value % 64 == 0 for value in values)
    are_powers = all(math.log2(value).is_integer() for value in values)
    return are_powers or (max(values) >= 1024 and all(value % 64 == 0 for value in values))


def _powers(low: float, high: float) -> list[float]:
    return [2.0**n for n in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def _few(ticks: list[float], most: int) -> list[float]:
    """Every n-th of them, the last among them."""
    step = -(-len(ticks) // most) if ticks else 1
    return ticks[::-1][::step][::-1]


def _linear_ticks(low: float, high: float, most: int, tokens: bool) -> list[float]:
    """Round values at equal distances: 1, 2 or 5 times a power of ten; of tokens, powers of two."""
    room = (high - low) / most
    if tokens:
        step = 2.0 ** math.ceil(math.log2(room))
    else:
        ten = 10.0 ** math.floor(math.log10(room))
        step = next(times * ten for times in (1, 2, 5, 10) if times * ten >= room * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """1, 2 and 5 times powers of ten, or powers alone; values at equal distances where these are too few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for times in ((1, 2, 5), (1,)):
        ticks = [m * 10.0**n for n in powers for m in times if low <= m * 10.0**n <= high]
        if len(ticks) <= most:
            break
    if len(ticks) < 3:
        return [tick for tick in _linear_ticks(low, high, most, tokens=False) if tick > 0]
    return _few(ticks, most)


# ---- lines ---------------------------------------------------------------------------------------


def _lines(plot: LinePlot, width: int) -> str:
    drawn = [_drawable(series, plot) for series in plot.series]
    points = [point for series in drawn for point in series.points]
    if not points:
        return element("p", "No figure of this can be drawn.", class_="note")
    height = 380 if width > 500 else 300
    heights = [y for p in points for y in (p.low, p.y, p.high) if y is not None]
    bottom = height - 2 * _LINE - 14
    y = fit_axis(heights, bottom, _LINE + 12, log=plot.log_y, pad=0.06, most=7)
    left = 14 + _CHARACTER * max(map(len, y.labels()))
    widths = [p.x for p in points]
    x = fit_axis(widths, left, width - 14, log=plot.log_x, pad=0.03, most=width // 75)
    parts = [_title(plot, _described(plot)), _frame(plot, x, y)]
    parts += [_series(series, number, x, y) for number, series in enumerate(drawn)]
    return _svg(parts, width, height)


def _drawable(series: PlotSeries, plot: LinePlot) -> PlotSeries:
    """The series without the points that have no place on the axes."""

    def has_place(value: float | None, log: bool) -> bool:
        return value is not None and math.isfinite(value) and (value > 0 or not log)

    points = []
    for p in series.points:
        if has_place(p.x, plot.log_x) and has_place(p.y, plot.log_y):
            whole = has_place(p.low, plot.log_y) and has_place(p.high, plot.log_y)
            points.append(p if whole else PlotPoint(p.x, p.y))
    return PlotSeries(series.name, tuple(points))


def _frame(plot: LinePlot, x: Axis, y: Axis) -> str:
    """Grid, labels of ticks, and what the axes are."""
    parts = []
    for tick, label in zip(y.ticks, y.labels(), strict=True):
        at = y.to_pixel(tick)
        parts.append(element("line", x1=x.start, x2=x.end, y1=at, y2=at, class_="grid"))
        parts.append(_text(label, x.start - 7, at + 4, "end"))
    for tick, label in zip(x.ticks, x.labels(), strict=True):
        at = x.to_pixel(tick)
        parts.append(element("line", x1=at, x2=at, y1=y.start, y2=y.start + 5, class_="axis"))
        parts.append(_text(label, at, y.start + 20, "middle"))
    parts.append(element("line", x1=x.start, x2=x.end, y1=y.start, y2=y.start, class_="axis"))
    parts.append(_text(plot.y_label + _log_note(plot.log_y), 2, 14, "start", "name"))
    parts.append(
        _text(plot.x_label + _log_note(plot.log_x), (x.start + x.end) / 2, y.start + 41, "middle", "name")
    )
    return element("g", *parts, aria_hidden="true")


def _log_note(log: bool) -> str:
    return " (log scale)" if log else ""


def _series(series: PlotSeries, number: int, x: Axis, y: Axis) -> str:
    colour = colour_class(number)
    parts = []
    many = len(series.points) > 12
    if many and any(p.low is not None for p in series.points):
        parts.append(_band(series, colour, x, y))
    path = " ".join(f"{x.to_pixel(p.x):.1f},{y.to_pixel(p.y):.1f}" for p in series.points)
    parts.append(element("polyline", points=path, class_=f"line {colour}"))
    for p in series.points:
        parts.append(_point(series.name, number, p, x, y, bars=not many))
    return element("g", *parts)


def _band(series: PlotSeries, colour: str, x: Axis, y: Axis) -> str:
    """The confidence intervals of many points, as an area."""
    ends = [(x.to_pixel(p.x), p.low, p.high) for p in series.points if p.low is not None and p.high is not None]
    places = [(at, y.to_pixel(low)) for at, low, _ in ends] + [(at, y.to_pixel(high)) for at, _, high in reversed(ends)]
    return element("polygon", points=" ".join(f"{a:.1f},{b:.1f}" for a, b in places), class_=f"band {colour}")


def _point(name: str, number: int, p: PlotPoint, x: Axis, y: Axis, bars: bool) -> str:
    at_x, at_y = x.to_pixel(p.x), y.to_pixel(p.y)
    said = f"{name}: {format_cell(p.y)} at {format_cell(p.x)}"
    parts = []
    if p.low is not None and p.high is not None:
        said += f", 95 % interval {format_cell(p.low)} to {format_cell(p.high)}"
        if bars:
            parts += _error_bar(at_x, y.to_pixel(p.low), y.to_pixel(p.high), colour_class(number))
    parts.append(marker(number, at_x, at_y, 4.0 if bars else 2.5))
    parts.append(element("circle", cx=at_x, cy=at_y, r=11, class_="touch"))
    return element("g", element("title", escape_text(said)), *parts)


def _error_bar(x: float, low: float, high: float, colour: str) -> list[str]:
    return [
        element("line", x1=a, x2=b, y1=c, y2=d, class_=f"bar {colour}")
        for a, b, c, d in ((x, x, low, high), (x - 4, x + 4, low, low), (x - 4, x + 4, high, high))
    ]


def _described(plot: LinePlot) -> str:
    """The plot in words: where each line begins and ends."""
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
    """Cells in a grid, the first row at the bottom, as on an axis."""
    x_text, y_text = (_category_labels(values) for values in (plot.x, plot.y))
    left = 14 + _CHARACTER * max(len(text) for text in y_text)
    cell_width = (width - left - 4) / len(plot.x)
    cell_height = min(40.0, max(12.0, 380 / len(plot.y)))
    top = _LINE + 10
    bottom = top + cell_height * len(plot.y)
    parts = [_title(plot, f"{plot.y_label} by {plot.x_label}: {len(plot.y)} by {len(plot.x)} cells.")]
    for row, values in enumerate(plot.values):
        for column, value in enumerate(values):
            place = (left + column * cell_width, bottom - (row + 1) * cell_height, cell_width, cell_height)
            said = f"{plot.x_label} {x_text[column]}, {plot.y_label} {y_text[row]}"
            parts.append(_cell(value, said, place))
    labels = [_text(plot.y_label, 2, 14, "start", "name")]
    for row in _kept(len(y_text), _LINE / cell_height):
        labels.append(_text(y_text[row], left - 7, bottom - (row + 0.5) * cell_height + 4, "end"))
    room = _CHARACTER * (max(len(text) for text in x_text) + 1.5)
    for column in _kept(len(x_text), room / cell_width):
        labels.append(_text(x_text[column], left + (column + 0.5) * cell_width, bottom + 18, "middle"))
    labels.append(_text(plot.x_label, (left + width) / 2, bottom + 39, "middle", "name"))
    parts.append(element("g", *labels, aria_hidden="true"))
    return _svg(parts, width, bottom + 46)


def _category_labels(values: Sequence[float]) -> list[str]:
    return [format_token_count(value) for value in values] if _are_tokens(values) else format_column(values)


def _kept(count: int, cells: float) -> Iterator[int]:
    """The indices whose labels are shown where one takes up so many cells: every n-th."""
    return iter(range(0, count, max(1, math.ceil(cells))))


def _cell(value: float | None, said: str, place: tuple[float, float, float, float]) -> str:
    x, y, width, height = place
    shown = "–" if value is None else f"{100 * value:.0f}"
    whole = "not measured" if value is None else f"{100 * value:.4g} %"
    box = {"x": x + 0.5, "y": y + 0.5, "width": max(width - 1, 1), "height": max(height - 1, 1), "rx": 2}
    if value is None:
        rectangle = element("rect", class_="nothing", **box)
        dark = False
    else:
        colour = viridis_colour(value)
        rectangle = element("rect", fill=colour, **box)
        dark = _luminance(colour) < 0.2
    text = ""
    if width >= _CHARACTER * (len(shown) + 0.5) and height >= 15:
        kind = "in-nothing" if value is None else "on-dark" if dark else "on-light"
        text = _text(shown, x + width / 2, y + height / 2 + 4.5, "middle", kind)
    return element("g", element("title", escape_text(f"{said}: {whole}")), rectangle, text)


def viridis_colour(share: float) -> str:
    """The colour of a share between 0 and 1."""
    place = min(max(share, 0.0), 1.0) * (len(VIRIDIS) - 1)
    index = min(int(place), len(VIRIDIS) - 2)
    a, b = (_rgb(VIRIDIS[i]) for i in (index, index + 1))
    mixed = (round(p + (q - p) * (place - index)) for p, q in zip(a, b, strict=True))
    return "#" + "".join(f"{value:02x}" for value in mixed)


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2), on which the contrast with black or white depends."""
    red, green, blue = (math.pow((v / 255 + 0.055) / 1.055, 2.4) for v in _rgb(colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- pieces --------------------------------------------------------------------------------------


def _svg(parts: list[str], width: float, height: float) -> str:
    return element("svg", *parts, viewBox=f"0 0 {width:g} {height:g}", role="img")


def _title(plot: Plot, described: str) -> str:
    """Its name and description, by which `role="img"` is read out."""
    return element("title", escape_text(plot.title)) + element("desc", escape_text(described))


def _text(text: str, x: float, y: float, anchor: str, kind: str = "tick") -> str:
    return element("text", escape_text(text), x=x, y=y, text_anchor=anchor, class_=kind)
