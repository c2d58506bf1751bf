"""A line plot and a heat map with known values, and the text of a document that shows them."""

from __future__ import annotations

from xml.etree import ElementTree

from pigguf.evals.report import HeatMap, LinePlot, PlotPoint, PlotSeries

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


def shown(root: ElementTree.Element) -> str:
    """Return the text of an XML document, a line for each piece."""
    return "\n".join(text.strip() for text in root.itertext())
