"""`pigguf bench`: speeds by depth as table, JSON and plot, and a second setting in turn."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.command_line import CommandResult
from support.tiny_gguf import linear, write_tiny

from pigguf.cli import exit_codes

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny(tmp_path / "tiny.gguf", linear(4.0, 4096))


def test_a_table_of_the_depths(run: Callable[..., CommandResult], tiny: Path, cache: Path) -> None:
    result = run("bench", tiny, "--depths", "0,600")
    assert (result.returncode, result.stderr) == (0, "")
    title, headers, *rows = result.stdout.splitlines()
    assert title == "speed"
    assert headers.split()[0] == "depth"
    assert [row.split()[0] for row in rows] == ["0", "600"]
    assert not (cache / "pigguf" / "prompt-cache").exists()  # nothing is restored, and nothing saved


def test_json_has_both_settings_and_their_ratios(run: Callable[..., CommandResult], tiny: Path) -> None:
    vs = "flash-attention=off, cache-type-k=f32"
    data = json.loads(run("bench", tiny, "--depths", "600,0", "--rounds", "2", "--vs", vs, "--json").stdout)
    first, second = data["results"]["settings"]
    assert [first["name"], second["name"]] == ["without --vs", vs]
    for setting in (first, second):
        assert [timing["depth"] for timing in setting["timings"]] == [0, 600]
        assert set(setting["timings"][0]) == {"depth", "prefill", "more", "decode", "cold", "warm"}
        assert setting["timings"][0]["prefill"] is None
        assert all(setting["timings"][1][name] > 0 for name in ("prefill", "more", "cold", "warm"))
    deep = data["results"]["ratios"][1]
    assert deep["more"] == pytest.approx(second["timings"][1]["more"] / first["timings"][1]["more"])
    assert deep["cold"] == pytest.approx(first["timings"][1]["cold"] / second["timings"][1]["cold"])
    assert data["settings"]["without --vs"]["cache_k"] == "f16"
    assert data["settings"][vs]["cache_k"] == "f32"
    assert data["settings"][vs]["flash_attention"] is False
    assert data["settings"][vs]["handoff"] is None
    assert data["settings"]["rounds"] == 2


def test_the_second_setting_is_the_first_with_the_changes_of_vs(
    run: Callable[..., CommandResult], tiny: Path
) -> None:
    options = ("--threads", "1", "--cache-type-k", "f32", "--flash-attention", "off")
    result = run("bench", tiny, "--depths", "0", *options, "--vs", "flash-attention=auto", "--json")
    settings = json.loads(result.stdout)["settings"]
    first, second = settings["without --vs"], settings["flash-attention=auto"]
    assert (first["threads"], first["cache_k"], first["flash_attention"]) == (1, "f32", False)
    assert (second["threads"], second["cache_k"], second["flash_attention"]) == (1, "f32", None)


def test_plots_are_complete_documents_with_every_line(
    run: Callable[..., CommandResult], tiny: Path, tmp_path: Path
) -> None:
    svg, html = tmp_path / "speed.svg", tmp_path / "speed.html"
    for plot in (svg, html):
        vs = ("--vs", "flash-attention=off")
        assert run("bench", tiny, "--depths", "0,64", *vs, "--plot", plot).returncode == 0
    root = ElementTree.parse(svg).getroot()
    assert root.tag == f"{SVG}svg"
    assert len(root.findall(f".//{SVG}polyline")) == 4 * 2  # a line of each setting in each plot
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert texts.count("flash-attention=off") == texts.count("without --vs") == 4
    assert "var(" not in svg.read_text()  # which not every program that shows SVG knows
    page = html.read_text()
    ElementTree.fromstring(page.partition("\n")[2])
    assert "Speed of tiny.gguf" in page


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (
            ("--depths", "0,4096"),
            exit_codes.OVERFLOW,
            "need a context of 4,624 tokens, and this one has 4,096",
        ),
        (("--depths", "3569"), exit_codes.OVERFLOW, "hint: use depths up to 3,568"),
        (("--depths", "0,x"), exit_codes.USAGE, "depths"),
        (("--depths", "-5"), exit_codes.USAGE, "depths"),
        (("--vs", "fast"), exit_codes.USAGE, "--vs 'fast' is not OPTION=VALUE"),
        (("--vs", "colour=red"), exit_codes.USAGE, "--colour"),
        (("--vs", "flash-attention=perhaps"), exit_codes.USAGE, "perhaps"),
        (("--vs", "cache-type-v=q8_0,flash-attention=off"), exit_codes.USAGE, "V cache"),
        (("--plot", "speed.png"), exit_codes.USAGE, "speed.png"),
        (("--plot", "nowhere/speed.svg"), exit_codes.FILE, "nowhere"),
    ],
)
def test_invalid_options_are_refused(
    run: Callable[..., CommandResult],
    tiny: Path,
    arguments: tuple[str, ...],
    code: exit_codes.ExitCode,
    message: str,
) -> None:
    result = run("bench", tiny, *arguments)
    assert result.returncode == code.code
    assert message in result.stderr
    assert result.stdout == ""
