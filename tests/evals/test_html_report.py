"""The page of a report: every figure on it, nothing loaded, nothing obeyed, and a real browser shows it."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from pigguf.evals import EVALUATIONS
from pigguf.evals.html_markup import escape_text, format_cell, format_column
from pigguf.evals.html_report import EVALUATION_DESCRIPTIONS, render_page
from pigguf.evals.html_style import STYLE
from pigguf.evals.report import EvalReport, HeatMap, LinePlot, Plot, PlotPoint, PlotSeries, ReportTable
from pigguf.evals.svg_axis import fit_axis, format_token_count
from pigguf.evals.svg_plots import NARROW, VIRIDIS, WIDE, render_plot, viridis_colour

WINDOWS = (2048, 8192, 32768)
SHIPPED = (31.8125, 30.0625, 28.1875)
LINES = LinePlot(
    "Perplexity by window",
    "window, tokens",
    "perplexity",
    (
        PlotSeries(
            "as shipped",
            tuple(PlotPoint(w, y, y - 0.5, y + 0.75) for w, y in zip(WINDOWS, SHIPPED, strict=True)),
        ),
        PlotSeries(
            "none", tuple(PlotPoint(w, y) for w, y in zip(WINDOWS, (31.4, 29.6, 1434.5), strict=True))
        ),
    ),
    log_x=True,
    log_y=True,
)
HEAT = HeatMap(
    "Passkey",
    "length, tokens",
    "depth",
    (2048.0, 4096.0),
    (0.0, 0.5, 1.0),
    ((1.0, 0.9), (0.35, None), (0.0, 0.2)),
)
REPORT = EvalReport(
    evaluation="perplexity",
    subject={
        "path": "/models/a model.gguf",
        "sha256": "0123456789abcdef" * 4,
        "bytes": 105454432,
        "architecture": "llama",
        "rope": {"kind": "linear", "factor": 4.0, "context_length": 32768, "parameters": {}},
    },
    settings={"text": ["persuasion.txt"], "windows": list(WINDOWS), "stride": 256, "bos": True, "seed": 1234},
    versions={"pigguf": "0.1.0", "machine": "a CPU"},
    results={"verdict": "It uses its window.", "mean": 29.12345678901234},
    tables=(
        ReportTable(
            "By window",
            ("reading", "2,048", "32,768"),
            (("as shipped", 31.8125, 28.1875), ("none", 31.4, None)),
        ),
    ),
    plots=(LINES, HEAT),
)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def shown(root: ElementTree.Element) -> str:
    return "\n".join(text.strip() for text in root.itertext())


def drawing(plot: Plot, width: int = WIDE) -> ElementTree.Element:
    return ElementTree.fromstring(render_plot(plot, width))


def tooltips(plot: Plot) -> list[str]:
    return [title.text or "" for title in drawing(plot).iterfind(".//g/title")]


# ---- the page ----------------------------------------------------------------------------------------


def test_every_figure_of_the_report_is_on_the_page() -> None:
    root = parsed(render_page(REPORT))
    text = shown(root)
    for found in (
        *("a model.gguf", "0123456789abcdef" * 4, "105,454,432", "persuasion.txt", "1,234", "a CPU", "yes"),
        *("2,048, 8,192, 32,768", "kind linear, factor 4, context length 32,768", "29.12345678901234"),
        *("It uses its window.", EVALUATION_DESCRIPTIONS["perplexity"]),
    ):
        assert found in text, found
    cells = [[cell.text for cell in row] for row in root.iter("tr")]
    assert cells == [
        ["reading", "2,048", "32,768"],
        ["as shipped", "31.81", "28.19"],
        ["none", "31.40", "–"],
    ]
    assert [cell.get("title") for cell in root.iter("td")] == [
        *(None, "31.8125", "28.1875", None, "31.4", None)
    ]
    for drawn in (tooltips(LINES), [title.text for title in root.iterfind(".//svg/g/g/title")]):
        assert "as shipped: 31.812 at 2,048, 95 % interval 31.312 to 32.562" in drawn
        assert "none: 1,434.5 at 32,768" in drawn


def test_nothing_is_loaded_and_nothing_runs() -> None:
    text = render_page(REPORT)
    root = parsed(text)
    policy = root.find(".//meta[@http-equiv='Content-Security-Policy']")
    assert policy is not None
    assert "default-src 'none'" in policy.get("content", "")
    tags = {node.tag for node in root.iter()}
    assert not tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    attributes = {name for node in root.iter() for name in node.attrib}
    assert not {name for name in attributes if name.startswith("on")} | (attributes & {"src", "href"})
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in STYLE
    assert "url(" not in text


HOSTILE = "</title><script>alert('1')</script>&\"\x1b[2J\u202egguf.\udcff"


def test_a_hostile_name_is_text_and_shows_what_it_hides() -> None:
    hostile = replace(
        REPORT,
        subject={"path": HOSTILE},
        settings={HOSTILE: HOSTILE},
        tables=(ReportTable(HOSTILE, (HOSTILE,), ((HOSTILE,),)),),
        plots=(
            replace(
                LINES, title=HOSTILE, y_label=HOSTILE, series=(replace(LINES.series[0], name=HOSTILE),) * 2
            ),
        ),
    )
    text = render_page(hostile)
    text.encode("utf-8")
    root = parsed(text)
    assert root.find(".//script") is None
    visible = "</title><script>alert('1')</script>&\"\\x1b[2J\\u202egguf.\\udcff"
    assert shown(root).count(visible) >= 8


def test_every_evaluation_says_what_it_measures() -> None:
    assert set(EVALUATIONS) <= set(EVALUATION_DESCRIPTIONS)


# ---- figures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (None, "–"),
        (1234567, "1,234,567"),
        (31.8125, "31.812"),
        (0.000123456, "0.00012346"),
        (0.0000123456, "1.23e-05"),
        (1434.5, "1,434.5"),
        (100000.0, "100,000"),
        (3.2e9, "3.2e+09"),
        (0.0, "0"),
        (math.inf, "inf"),
        ("as shipped", "as shipped"),
    ],
)
def test_a_figure_has_five_significant_digits(cell: str | float | None, text: str) -> None:
    assert format_cell(cell) == text


def test_figures_of_one_column_have_equally_many_decimals() -> None:
    assert format_column([31.5, 30.25, None, 4]) == ["31.50", "30.25", "–", "4"]
    assert format_column([1.0, 2.0]) == ["1", "2"]
    assert format_column([0.5, 1e-7]) == ["0.5", "1e-07"]
    assert format_column([]) == []
    assert format_column([137.92726, 1.72533, None]) == ["137.927", "1.725", "–"]
    assert format_column([0.0, 0.25]) == ["0.00", "0.25"]


def test_text_that_is_shown_as_it_is() -> None:
    assert escape_text("naïve 日本 – 1 < 2\n") == "naïve 日本 – 1 &lt; 2\n"


# ---- plots -------------------------------------------------------------------------------------------


def test_ticks_of_windows_are_powers_of_two_and_of_other_values_round() -> None:
    windows = fit_axis([2048, 4096, 8192, 16384, 32768], 0, 100, log=True, padding=0.03, max_ticks=8)
    assert windows.labels() == ["2k", "4k", "8k", "16k", "32k"]
    assert windows.to_pixel(8192) == pytest.approx(50)
    positions = fit_axis([512, 16384, 32256], 0, 100, log=False, padding=0.0, max_ticks=8)
    assert positions.labels() == ["4k", "8k", "12k", "16k", "20k", "24k", "28k"]
    assert fit_axis([0.002, 0.0149], 0, 1, log=False, padding=0, max_ticks=4).labels() == ["0.005", "0.010"]
    assert fit_axis([7.2, 1400], 0, 1, log=True, padding=0, max_ticks=8).labels() == [
        *("10", "20", "50", "100", "200", "500", "1,000")
    ]
    assert fit_axis([28.1, 31.8], 0, 1, log=True, padding=0, max_ticks=5).labels() == ["29", "30", "31"]
    assert fit_axis([64, 128, 512], 0, 1, log=True, padding=0.03, max_ticks=8).labels() == [
        "64",
        "128",
        "256",
        "512",
    ]
    assert [format_token_count(1000), format_token_count(1536), format_token_count(131072)] == [
        "1,000",
        "1,536",
        "128k",
    ]


@pytest.mark.parametrize("values", [[5.0], [0.0], [3.0, 3.0], [1e-9, 1e9], [-2.0, 2.0], [1024.0]])
def test_an_axis_holds_its_values_whatever_they_are(values: list[float]) -> None:
    for log in {False, min(values) > 0}:
        made = fit_axis(values, 0, 100, log=log, padding=0.05, max_ticks=6)
        assert all(0 <= made.to_pixel(value) <= 100 for value in values)
        assert made.ticks
        assert all(0 <= made.to_pixel(tick) <= 100 for tick in made.ticks)
        assert len(set(made.labels())) == len(made.ticks) <= 8


def test_a_line_goes_up_where_its_values_do_and_stays_inside() -> None:
    root = drawing(LINES)
    width, height = (float(v) for v in root.get("viewBox", "").split()[2:])
    first, second = (line.get("points", "").split() for line in root.iter("polyline"))
    places = [[float(v) for v in place.split(",")] for place in (*first, *second)]
    assert all(0 <= x <= width and 0 <= y <= height for x, y in places)
    assert places[0][1] < places[1][1] < places[2][1]  # 31.8, 30.1, 28.2: down the page
    assert places[5][1] < places[4][1]
    # equal distances on the logarithmic axis
    assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)


def test_what_cannot_be_drawn_is_left_out_and_the_rest_is_drawn() -> None:
    points = (
        PlotPoint(0, 5.0),
        PlotPoint(1024, math.inf),
        PlotPoint(2048, 3.0, 0.0, 4.0),
        PlotPoint(4096, 2.0),
    )
    odd = replace(LINES, series=(PlotSeries("odd", points), PlotSeries("empty", ())))
    assert tooltips(odd) == ["odd: 3 at 2,048", "odd: 2 at 4,096"]
    nothing = replace(LINES, series=(PlotSeries("odd", (PlotPoint(1, math.nan),)),))
    assert shown(ElementTree.fromstring(render_plot(nothing, WIDE))) == "No figure of this can be drawn."


def test_many_points_have_a_band_and_few_have_bars() -> None:
    def count(points: int) -> tuple[int, int]:
        series = PlotSeries("s", tuple(PlotPoint(x, x, x - 1, x + 1) for x in range(2, points + 2)))
        root = drawing(replace(LINES, series=(series,), log_x=False, log_y=False))
        return len(root.findall(".//*[@class='band line-0']")), len(root.findall(".//*[@class='bar line-0']"))

    assert count(12) == (0, 36)
    assert count(13) == (1, 0)


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_a_heat_map_has_its_first_row_at_the_bottom_and_tells_every_cell(width: int) -> None:
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


# ---- in a browser ------------------------------------------------------------------------------------

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.slow
@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_one_drawing_of_each_plot_by_the_width_and_nothing_beside_the_page(
    tmp_path: Path,
) -> None:
    (tmp_path / "page.html").write_text(render_page(REPORT), encoding="utf-8")
    for width, hidden in ((1200, "narrow"), (400, "wide")):
        # a frame of its own page measures; the report's own policy forbids scripts
        probe = (
            f"<iframe id=f width={width} height=800 src=page.html></iframe><pre id=out></pre><script>"
            "f.onload=()=>{const d=f.contentDocument,r=d.documentElement;"
            "out.textContent=JSON.stringify(['wide','narrow'].map(c=>[...d.querySelectorAll('.'+c)]"
            ".map(e=>e.offsetWidth))).concat(' overflow ',r.scrollWidth-r.clientWidth)}</script>"
        )
        (tmp_path / "probe.html").write_text(probe)
        command = [
            str(_CHROMIUM),
            *_FLAGS,
            f"--user-data-dir={tmp_path / str(width)}",
            "--virtual-time-budget=5000",
        ]
        local = ["--allow-file-access-from-files", "--dump-dom", (tmp_path / "probe.html").as_uri()]
        out = subprocess.run(
            [*command, *local], capture_output=True, text=True, timeout=120, check=True
        ).stdout
        found = re.search(r'<pre id="out">\[\[(.*?)\],\[(.*?)\]\] overflow (\d+)</pre>', out)
        assert found, out
        sizes = {"wide": found[1].split(","), "narrow": found[2].split(",")}
        assert sizes.pop(hidden) == ["0", "0"]
        [drawn] = sizes.values()
        assert all(300 < int(size) < width for size in drawn)
        assert found[3] == "0"
