"""A report as one self-contained HTML page.

    path.write_text(render_page(report), encoding="utf-8")

The page describes what was measured, and shows the verdict, if the evaluation has one (`results["verdict"]`),
plots, tables, and what it takes to reproduce the results: the file's hash, settings, versions, and all
results as JSON. It has no scripts, fonts or images, and its content security policy forbids loading any. It
is well-formed XML, and all text is escaped. Not here: the plots (svg_plots.py) and the style sheet
(html_style.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pigguf.evals.html_markup import element, escape_text, format_cell, format_column
from pigguf.evals.html_style import STYLE
from pigguf.evals.report import Cell, EvalReport, HeatMap, LinePlot, Plot, ReportTable
from pigguf.evals.svg_plots import NARROW, VIRIDIS, WIDE, colour_class, marker, render_plot

# evaluation -> what it measures, in plain words
EVALUATION_DESCRIPTIONS: dict[str, str] = {
    "perplexity": (
        "How well the model predicts a real text. A perplexity of 20 means that, on average, it was as "
        "unsure of the next token as if it had to choose among 20 that are equally likely; lower is "
        "better. A model that uses its whole window has a lower perplexity in a longer window, because "
        "it has read more of the text before each token."
    ),
    "passkey": (
        "Whether the model finds a number that was hidden far back in its window. A short sentence with a "
        "random five-digit number stands somewhere in a long irrelevant text, and the model is asked for "
        "it at the end. The effective window is the distance up to which the number is found."
    ),
    "kl": (
        "How far the model's predictions are from a reference's, at every token of a text: the "
        "Kullback-Leibler divergence, in nats, of its distribution over the next token from the "
        "reference's. 0 means the same predictions. Top-1 agreement is how often both predict the same most "
        "likely token. By position, it shows what quantization or a smaller KV cache costs at depth."
    ),
    "choice": (
        "Whether the model gives the right one of several answers the highest likelihood, without examples "
        "and without having been trained for it: what it still knows at short lengths after its window was "
        "extended."
    ),
    "rouge": (
        "How much a summary written by the model has in common with one written by a person: shared words "
        "(ROUGE-1), pairs of words (ROUGE-2), and longest common subsequences (ROUGE-L), as F-scores."
    ),
    "sweep": (
        "Which rope scaling factor suits the model: its perplexity on a text with positions divided by "
        "each factor, by window. Under the factor that it was trained with, a model has the lowest "
        "perplexity in short windows and long ones; one that was trained without scaling is best at factor "
        "1, and fails beyond its original window."
    ),
    "speed": (
        "How fast the model reads and writes with a document in its cache, and how long the first token of "
        "an answer takes: cold, where the document has never been read, and warm, where it is in the cache "
        "and another question is asked. The documents are random tokens, and each was really read."
    ),
}


def render_page(report: EvalReport) -> str:
    """Return the report as an HTML document."""
    name = PurePath(str(report.subject.get("path", ""))).name
    title = (
        f"{_evaluation_title(report.evaluation)} of {name}" if name else _evaluation_title(report.evaluation)
    )
    body = [
        element("h1", escape_text(title)),
        *_introduction(report),
        *(_plot(plot) for plot in report.plots),
        *(_table(table) for table in report.tables),
        _definition_list("The file", report.subject),
        _definition_list("Settings", report.settings),
        _definition_list("Versions", report.versions),
        _results_as_json(report),
    ]
    head = [
        '<meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        '<meta name="color-scheme" content="light dark"/>',
        '<meta http-equiv="Content-Security-Policy" '
        "content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\"/>",
        element("title", escape_text(title)),
        element("style", STYLE),
    ]
    document = element("html", element("head", *head), element("body", element("main", *body)), lang="en")
    return f"<!DOCTYPE html>\n{document}\n"


def _evaluation_title(name: str) -> str:
    return {"kl": "KL divergence", "rouge": "ROUGE"}.get(name, name.capitalize())


def _introduction(report: EvalReport) -> list[str]:
    """Return the description of the evaluation, and its verdict."""
    paragraphs = []
    if description := EVALUATION_DESCRIPTIONS.get(report.evaluation):
        paragraphs.append(element("p", escape_text(description), class_="lead"))
    if verdict := report.results.get("verdict"):
        paragraphs.append(element("p", _mark_options(escape_text(str(verdict))), class_="verdict"))
    return paragraphs


def _mark_options(markup: str) -> str:
    """Mark command-line options as code, so that lines do not break inside them."""
    return re.sub(r"--[a-z][a-z-]*(?: \d[\d.]*\d|\b \d)?", r"<code>\g<0></code>", markup)


# ---- plots and tables ----------------------------------------------------------------------------


def _plot(plot: Plot) -> str:
    """Return a plot in two widths, of which the style shows one."""
    return element(
        "figure",
        element("figcaption", escape_text(plot.title)),
        _legend(plot),
        element("div", render_plot(plot, WIDE), class_="wide"),
        element("div", render_plot(plot, NARROW), class_="narrow"),
    )


def _legend(plot: Plot) -> str:
    if isinstance(plot, HeatMap):
        return _heat_map_legend()
    return _line_legend(plot) if len(plot.series) > 1 else ""


def _line_legend(plot: LinePlot) -> str:
    def swatch(index: int) -> str:
        line = element("line", x1=0, x2=26, y1=8, y2=8, class_=f"line {colour_class(index)}")
        return element(
            "svg", line, marker(index, 13, 8), viewBox="0 0 26 16", class_="swatch", aria_hidden="true"
        )

    entries = (
        element("li", swatch(index), escape_text(series.name)) for index, series in enumerate(plot.series)
    )
    return element("ul", *entries, class_="legend")


def _heat_map_legend() -> str:
    """Return the colour scale from 0 to 100 %."""
    gradient = f"background: linear-gradient(90deg, {', '.join(VIRIDIS)})"
    ramp = element("span", class_="ramp", style=gradient, aria_hidden="true")
    return element("p", "0 %", ramp, "100 %", class_="legend")


def _table(table: ReportTable) -> str:
    columns = [[row[i] for row in table.rows] for i in range(len(table.headers))]
    classes = ["number" if _is_numeric(column) else "text" for column in columns]
    head = (
        element("th", escape_text(header).replace(" %", "\u00a0%"), scope="col", class_=css_class)
        for header, css_class in zip(table.headers, classes, strict=True)
    )
    cells = [
        [_cell(cell, text, css_class) for cell, text in zip(column, format_column(column), strict=True)]
        for column, css_class in zip(columns, classes, strict=True)
    ]
    rows = (element("tr", *row) for row in zip(*cells, strict=True))
    grid = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    return element(
        "section", element("h2", escape_text(table.title)), element("div", grid, class_="scroll", tabindex=0)
    )


def _is_numeric(column: Sequence[Cell]) -> bool:
    return not any(isinstance(cell, str) for cell in column)


def _cell(cell: Cell, text: str, css_class: str) -> str:
    unrounded = {"title": repr(cell)} if isinstance(cell, float) else {}
    return element("td", escape_text(text), class_=css_class, **unrounded)


# ---- how to reproduce the results ----------------------------------------------------------------


def _definition_list(title: str, values: Mapping[str, Any]) -> str:
    rows = (
        element(
            "div", element("dt", escape_text(_label(name))), element("dd", escape_text(_value_text(value)))
        )
        for name, value in values.items()
    )
    return element("section", element("h2", title), element("dl", *rows))


def _label(name: str) -> str:
    return name.replace("_", " ")


def _value_text(value: Any) -> str:
    """Return a value of the subject, the settings or the versions as text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_label(str(name))} {_value_text(inner)}" for name, inner in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value_text, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, float, str)):
        return format_cell(value)
    return "–" if value is None else str(value)


def _results_as_json(report: EvalReport) -> str:
    data = {name: value for name, value in report.as_data().items() if name not in ("tables", "plots")}
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return element("details", element("summary", "All figures, as JSON"), element("pre", escape_text(text)))
