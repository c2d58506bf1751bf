"""HTML reports: complete, self-contained, escaped, and displayed by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.sample_plots import HEAT, LINES, WINDOWS, shown

from pigguf.evals import EVALUATIONS
from pigguf.evals.html_report import EVALUATION_DESCRIPTIONS, render_page
from pigguf.evals.html_style import STYLE
from pigguf.evals.report import EvalReport, Plot, ReportTable
from pigguf.evals.svg_plots import WIDE, render_plot

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
            ("positions", "2,048", "32,768"),
            (("as shipped", 31.8125, 28.1875), ("none", 31.4, None)),
        ),
    ),
    plots=(LINES, HEAT),
)


def parsed(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text.removeprefix("<!DOCTYPE html>"))


def drawing(plot: Plot, width: int = WIDE) -> ElementTree.Element:
    return ElementTree.fromstring(render_plot(plot, width))


def tooltips(plot: Plot) -> list[str]:
    return [title.text or "" for title in drawing(plot).iterfind(".//g/title")]


# ---- the page ----------------------------------------------------------------------------------------


def test_all_values_of_the_report_are_on_the_page() -> None:
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
        ["positions", "2,048", "32,768"],
        ["as shipped", "31.81", "28.19"],
        ["none", "31.40", "–"],
    ]
    assert [cell.get("title") for cell in root.iter("td")] == [
        *(None, "31.8125", "28.1875", None, "31.4", None)
    ]
    for texts in (tooltips(LINES), [title.text for title in root.iterfind(".//svg/g/g/title")]):
        assert "as shipped: 31.812 at 2,048, 95 % interval 31.312 to 32.562" in texts
        assert "none: 1,434.5 at 32,768" in texts


def test_the_page_loads_nothing_and_has_no_scripts() -> None:
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


def test_a_hostile_name_is_escaped_and_its_hidden_characters_are_shown() -> None:
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


def test_every_evaluation_has_a_description() -> None:
    assert set(EVALUATIONS) <= set(EVALUATION_DESCRIPTIONS)


# ---- in a browser ------------------------------------------------------------------------------------

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.slow
@pytest.mark.skipif(_CHROMIUM is None, reason="needs Chromium")
def test_a_browser_shows_one_width_of_each_plot_without_overflow(
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
        [widths] = sizes.values()
        assert all(300 < int(size) < width for size in widths)
        assert found[3] == "0"
