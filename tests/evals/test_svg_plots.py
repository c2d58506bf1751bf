"""Line plots and heat maps as SVG: values, tooltips, intervals and colours."""

from __future__ import annotations

import math
from dataclasses import replace
from xml.etree import ElementTree

import pytest
from support.sample_plots import HEAT, LINES, shown

from pigguf.evals.report import Plot, PlotPoint, PlotSeries
from pigguf.evals.svg_plots import NARROW, VIRIDIS, WIDE, render_plot, viridis_colour


def drawing(plot: Plot, width: int = WIDE) -> ElementTree.Element:
    return ElementTree.fromstring(render_plot(plot, width))


def tooltips(plot: Plot) -> list[str]:
    return [title.text or "" for title in drawing(plot).iterfind(".//g/title")]


def test_a_line_follows_its_values_and_stays_inside() -> None:
    root = drawing(LINES)
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    first, second = (line.get("points", "").split() for line in root.iter("polyline"))
    points = [[float(v) for v in point.split(",")] for point in (*first, *second)]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
    assert points[0][1] < points[1][1] < points[2][1]  # 31.8, 30.1, 28.2: down the page
    assert points[5][1] < points[4][1]
    # equal distances on the logarithmic axis
    assert points[1][0] - points[0][0] == pytest.approx(points[2][0] - points[1][0], abs=0.2)


def test_points_that_are_not_finite_are_left_out() -> None:
    points = (
        PlotPoint(0, 5.0),
        PlotPoint(1024, math.inf),
        PlotPoint(2048, 3.0, 0.0, 4.0),
        PlotPoint(4096, 2.0),
    )
    odd = replace(LINES, series=(PlotSeries("odd", points), PlotSeries("empty", ())))
    assert tooltips(odd) == ["odd: 3 at 2,048", "odd: 2 at 4,096"]
    nothing = replace(LINES, series=(PlotSeries("odd", (PlotPoint(1, math.nan),)),))
    assert shown(ElementTree.fromstring(render_plot(nothing, WIDE))) == "This plot has no finite values."


def test_many_points_have_a_band_and_few_have_bars() -> None:
    def count(points: int) -> tuple[int, int]:
        series = PlotSeries("s", tuple(PlotPoint(x, x, x - 1, x + 1) for x in range(2, points + 2)))
        root = drawing(replace(LINES, series=(series,), log_x=False, log_y=False))
        return len(root.findall(".//*[@class='band line-0']")), len(root.findall(".//*[@class='bar line-0']"))

    assert count(12) == (0, 36)
    assert count(13) == (1, 0)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_heat_map_has_its_first_row_at_the_bottom_and_a_tooltip_for_each_cell(width: int) -> None:
    root = drawing(HEAT, width)
    cells = {
        (group.findtext("title") or ""): group.find("rect")
        for group in root.iter("g")
        if group.find("rect") is not None
    }
    assert list(cells) == [
        "length, tokens 2k, depth 0.0: 100 %",
        "length, tokens 4k, depth 0.0: 90 %",
        "length, tokens 2k, depth 0.5: 35 %",
        "length, tokens 4k, depth 0.5: not measured",
        "length, tokens 2k, depth 1.0: 0 %",
        "length, tokens 4k, depth 1.0: 20 %",
    ]
    rectangles = [rectangle for rectangle in cells.values() if rectangle is not None]
    fills = [rectangle.get("fill") for rectangle in rectangles]
    assert (fills[0], fills[3], fills[4]) == (VIRIDIS[-1], None, VIRIDIS[0])
    assert (
        float(rectangles[0].get("y", ""))
        > float(rectangles[2].get("y", ""))
        > float(rectangles[4].get("y", ""))
    )
    assert [
        text.text for text in root.iterfind("g/text") if text.get("class", "").startswith(("on", "in"))
    ] == [*("100", "90", "35", "–", "0", "20")]


def test_colours_run_through_viridis_and_stay_at_its_ends() -> None:
    assert [viridis_colour(i / 7) for i in range(8)] == list(VIRIDIS)
    assert viridis_colour(-1.0) == VIRIDIS[0]
    assert viridis_colour(2.0) == VIRIDIS[-1]
    # between #277f8e and #1fa187, by hand: (39 + 31) / 2, (127 + 161) / 2, (142 + 135) / 2
    assert viridis_colour(0.5) == "#23908a"
