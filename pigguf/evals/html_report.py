"""A report as a page: one HTML file that opens anywhere, now and in ten years, without a network.

    path.write_text(page(report), encoding="utf-8")

Contract: what was measured, in plain words; the verdict, if the evaluation gives one
(`results["verdict"]`); plots, tables, and how to get the same figures again: the file's hash, settings,
versions, and all figures as JSON. No script, no font, no image: a content security policy forbids
whatever could be loaded. Light and dark, narrow and wide, printable; well-formed XML too. All text is
escaped. Left out: drawing (plots.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pigguf.evals.html_markup import format_column, element, escape_text, format_cell
from pigguf.evals.report import Cell, HeatMap, LinePlot, Plot, EvalReport, ReportTable
from pigguf.evals.svg_plots import VIRIDIS, colour_class, render_plot, marker

_COLOUR = re.compile(r"(--[\w-]+): (#\w+);")
_LINE = 20  # pixels
WIDE, NARROW = 760, 360  # pixels of the two drawings of each plot, of which the style shows one

# evaluation -> what it measures, in plain words
EVALUATION_DESCRIPTIONS: dict[str, str] = {
    "perplexity": (
        "How well the model foretells a real text. A perplexity of 20 means that, on average, it was as "
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
        "reference's. 0 means the same predictions. Top-1 agreement is how often both would say the same "
        "token. By position, it shows what quantization or a smaller KV cache costs at depth."
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
    """The report as one self-contained HTML document."""
    name = PurePath(str(report.subject.get("path", ""))).name
    title = f"{_capital(report.evaluation)} of {name}" if name else _capital(report.evaluation)
    body = [
        element("h1", escape_text(title)),
        *_what_was_measured(report),
        *(_plot(plot) for plot in report.plots),
        *(_table(table) for table in report.tables),
        _facts("The file", report.subject),
        _facts("Settings", report.settings),
        _facts("Versions", report.versions),
        _all_figures(report),
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


def _capital(name: str) -> str:
    return {"kl": "KL divergence", "rouge": "ROUGE"}.get(name, name.capitalize())


def _what_was_measured(report: EvalReport) -> list[str]:
    parts = []
    if report.evaluation in EVALUATION_DESCRIPTIONS:
        parts.append(element("p", escape_text(EVALUATION_DESCRIPTIONS[report.evaluation]), class_="lead"))
    if verdict := report.results.get("verdict"):
        parts.append(element("p", _with_options(escape_text(str(verdict))), class_="verdict"))
    return parts


def _with_options(markup: str) -> str:
    """Command line options are kept whole where lines break."""
    return re.sub(r"--[a-z][a-z-]*(?: \d[\d.]*\d|\b \d)?", r"<code>\g<0></code>", markup)


# ---- plots and tables ----------------------------------------------------------------------------


def _plot(plot: Plot) -> str:
    return element(
        "figure",
        element("figcaption", escape_text(plot.title)),
        _legend(plot),
        element("div", render_plot(plot, WIDE), class_="wide"),
        element("div", render_plot(plot, NARROW), class_="narrow"),
    )


def _legend(plot: Plot) -> str:
    if isinstance(plot, HeatMap):
        return _scale()
    return _names(plot) if len(plot.series) > 1 else ""


def _names(plot: LinePlot) -> str:
    def swatch(number: int) -> str:
        line = element("line", x1=0, x2=26, y1=8, y2=8, class_=f"line {colour_class(number)}")
        drawing = (line, marker(number, 13, 8))
        return element("svg", *drawing, viewBox="0 0 26 16", class_="swatch", aria_hidden="true")

    entries = (
        element("li", swatch(number), escape_text(series.name)) for number, series in enumerate(plot.series)
    )
    return element("ul", *entries, class_="legend")


def _scale() -> str:
    """The colours of a heat map from 0 to 100 %."""
    ramp = f"background: linear-gradient(90deg, {', '.join(VIRIDIS)})"
    return element(
        "p", "0 %", element("span", class_="ramp", style=ramp, aria_hidden="true"), "100 %", class_="legend"
    )


def _table(table: ReportTable) -> str:
    columns = [[row[i] for row in table.rows] for i in range(len(table.headers))]
    kinds = ["number" if _is_numeric(column) else "text" for column in columns]
    head = (
        element("th", escape_text(header).replace(" %", "\u00a0%"), scope="col", class_=kind)
        for header, kind in zip(table.headers, kinds, strict=True)
    )
    cells = [
        [_cell(cell, text, kind) for cell, text in zip(column, format_column(column), strict=True)]
        for column, kind in zip(columns, kinds, strict=True)
    ]
    rows = (element("tr", *row) for row in zip(*cells, strict=True))
    grid = element("table", element("thead", element("tr", *head)), element("tbody", *rows))
    return element(
        "section", element("h2", escape_text(table.title)), element("div", grid, class_="scroll", tabindex=0)
    )


def _is_numeric(column: Sequence[Cell]) -> bool:
    return not any(isinstance(cell, str) for cell in column)


def _cell(cell: Cell, text: str, kind: str) -> str:
    whole = {"title": repr(cell)} if isinstance(cell, float) else {}
    return element("td", escape_text(text), class_=kind, **whole)


# ---- plots without a page ------------------------------------------------------------------------


def render_svg_document(plots: Sequence[LinePlot]) -> str:
    """Plots one below the other as an SVG document of its own, in the light colours, with their titles."""
    parts, top = [], 0.0
    for plot in plots:
        parts.append(element("text", escape_text(plot.title), x=0, y=top + 18, class_="name title"))
        top += 30
        for number, series in enumerate(plot.series if len(plot.series) > 1 else ()):
            parts.append(marker(number, 8, top + 8))
            parts.append(element("text", escape_text(series.name), x=20, y=top + 13, class_="name"))
            top += 20
        drawn = render_plot(plot, WIDE)
        height = _height(drawn)
        parts.append(element("svg", drawn, x=0, y=top, width=WIDE, height=height))
        top += height + 30
    colours = dict(_COLOUR.findall(STYLE)[::-1])  # the first of each name is the light one
    rules = [rule for rule in STYLE.splitlines() if rule.startswith(("svg .", "svg text", ".line-"))]
    style = re.sub(r"var\((--[\w-]+)\)", lambda found: colours[found[1]], "\n".join(rules))
    paper = element("rect", x=-20, y=-10, width="100%", height="100%", fill=colours["--paper"])
    return element(
        "svg",
        element("style", f"svg {{ font: 13px sans-serif; }}\nsvg .title {{ font-weight: 600; }}\n{style}"),
        paper,
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"-20 -10 {WIDE + 40} {top + 10:g}",
    )


def _height(drawn: str) -> float:
    found = re.match(r'<svg viewBox="0 0 \S+ (\S+)"', drawn)
    return float(found[1]) if found else 2 * _LINE  # of the paragraph that says that nothing can be drawn


# ---- how to get the figures again ----------------------------------------------------------------


def _facts(title: str, facts: Mapping[str, Any]) -> str:
    rows = (
        element("div", element("dt", escape_text(_plain(name))), element("dd", escape_text(_words(value))))
        for name, value in facts.items()
    )
    return element("section", element("h2", title), element("dl", *rows))


def _plain(name: str) -> str:
    return name.replace("_", " ")


def _words(value: Any) -> str:
    """A value of a report as a person reads it."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(str(name))} {_words(inner)}" for name, inner in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_words, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return format_cell(value) if isinstance(value, (int, float, str)) else "–" if value is None else str(value)


def _all_figures(report: EvalReport) -> str:
    data = {name: part for name, part in report.as_data().items() if name not in ("tables", "plots")}
    text = json.dumps(data, ensure_ascii=False, indent=1)
    return element("details", element("summary", "All figures, as JSON"), element("pre", escape_text(text)))


# ---- the style -----------------------------------------------------------------------------------

# Lines: Okabe and Ito's colours for colour-blind readers, darkened or lightened for contrast.
STYLE = """
:root {
  color-scheme: light dark;
  --paper: #fff; --ink: #1c1e21; --quiet: #5b616b; --rule: #dfe2e7; --panel: #f5f6f8; --accent: #0b62a4;
  --line-0: #0067a8; --line-1: #c44e00; --line-2: #007d58; --line-3: #a8417f;
  --line-4: #8a6d00; --line-5: #2387b5; --line-6: #444a54;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14161a; --ink: #e8eaed; --quiet: #a0a7b3; --rule: #343943; --panel: #1e2127; --accent: #6cb8f0;
    --line-0: #5aaef0; --line-1: #ff9248; --line-2: #35c99a; --line-3: #e68ac0;
    --line-4: #e3c33c; --line-5: #8fd8ff; --line-6: #c3c9d3;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 50rem; margin: 0 auto; padding: 2rem 1rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .6rem; overflow-wrap: anywhere; }
h2, figcaption { font-size: 1.1rem; font-weight: 600; line-height: 1.35; margin: 0 0 .5rem; }
section, figure, details { margin: 2.2rem 0 0; }
.lead { color: var(--quiet); margin: 0; }
.verdict {
  margin: 1.2rem 0 0; padding: .7rem 1rem; background: var(--panel); border-left: 4px solid var(--accent);
}
.legend {
  display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; align-items: center;
  list-style: none; margin: 0 0 .5rem; padding: 0; font-size: .875rem; color: var(--quiet);
}
.legend li { display: flex; align-items: center; gap: .45rem; color: var(--ink); }
.legend.legend:is(p) { gap: .5rem; }
.swatch { width: 26px; height: 16px; flex: none; }
.ramp { width: 9rem; height: .8rem; border-radius: 3px; }
svg { display: block; width: 100%; height: auto; overflow: visible; font: 13px system-ui, sans-serif; }
svg text { fill: var(--quiet); font-variant-numeric: tabular-nums; }
svg .name { fill: var(--ink); }
svg .on-dark { fill: #fff; }
svg .on-light { fill: #101114; }
svg .grid { stroke: var(--rule); }
svg .axis { stroke: var(--quiet); }
svg .nothing { fill: var(--panel); stroke: var(--rule); }
svg .touch { fill: transparent; }
svg .line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
svg .mark { fill: currentColor; stroke: var(--paper); stroke-width: 1; }
svg .bar { stroke: currentColor; stroke-width: 1.5; opacity: .75; }
svg .band { fill: currentColor; opacity: .18; }
.line-0 { color: var(--line-0); } .line-1 { color: var(--line-1); } .line-2 { color: var(--line-2); }
.line-3 { color: var(--line-3); } .line-4 { color: var(--line-4); } .line-5 { color: var(--line-5); }
.line-6 { color: var(--line-6); }
.narrow { display: none; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
th { border-bottom: 1px solid var(--quiet); font-weight: 600; vertical-align: bottom; white-space: normal; }
td { border-bottom: 1px solid var(--rule); }
.number { text-align: right; }
.number + .text { padding-left: 1rem; }
code { white-space: nowrap; font-size: .92em; }
dl { margin: 0; font-size: .9rem; }
dl div { display: grid; grid-template-columns: 11rem 1fr; gap: .8rem; padding: .25rem 0; }
dl div + div { border-top: 1px solid var(--rule); }
dt { color: var(--quiet); }
dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; font-weight: 600; }
pre {
  overflow: auto; max-height: 30rem; padding: 1rem; background: var(--panel); font-size: .8rem;
  white-space: pre-wrap; overflow-wrap: anywhere;
}
@media (max-width: 36rem) {
  main { padding-top: 1.2rem; }
  h1 { font-size: 1.35rem; }
  .wide { display: none; }
  .narrow { display: block; }
  dl div { grid-template-columns: 1fr; gap: 0; }
}
@media print {
  :root {
    --paper: #fff; --ink: #000; --quiet: #444; --rule: #ccc; --panel: #f5f5f5; --accent: #444;
    --line-0: #0067a8; --line-1: #c44e00; --line-2: #007d58; --line-3: #a8417f;
    --line-4: #8a6d00; --line-5: #2387b5; --line-6: #444a54;
  }
  body { font-size: 11pt; }
  main { max-width: none; padding: 0; }
  .wide { display: block; max-width: 17cm; }
  .narrow, details { display: none; }
  figure, tr, dl div { break-inside: avoid; }
  h1, h2, figcaption { break-after: avoid; }
  .scroll { overflow: visible; }
  svg, .ramp { print-color-adjust: exact; }
}
"""
