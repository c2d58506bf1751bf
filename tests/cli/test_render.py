"""Bars, tables and text, on a pipe and on a real terminal."""

from __future__ import annotations

import json
import sys

import pexpect
import pytest

from pigguf.cli import progress_bars, render
from pigguf.cli.formatting import format_duration, printable, truncate_line
from pigguf.cli.progress_bars import LogProgress, ProgressMeter
from pigguf.common.format_bytes import format_bytes
from pigguf.progress import stage


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch):
    """Return a clock that the test sets."""

    class Clock:
        now = 1000.0

    monkeypatch.setattr(progress_bars.time, "monotonic", lambda: Clock.now)
    return Clock


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (23_040, "23 kB"), (2.34e9, "2.34 GB"), (4e13, "40 TB")],
)
def test_size(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (59.6, "1:00"), (95, "1:35"), (5025, "1:23:45")]
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_printable_shows_control_characters_and_keeps_the_rest() -> None:
    assert printable("a\tb\nc é 漢 🐷") == "a\tb\nc é 漢 🐷"
    assert printable("\x1b[31mred\x07\r\x7f\x9b") == "␛[31mred␇␍␡�"


def test_shortened_is_one_line() -> None:
    assert truncate_line("one\ntwo  three", 40) == "one two three"
    assert truncate_line("x" * 50, 10) == "x" * 9 + "…"


def test_meter_shows_amount_rate_and_time_left(clock) -> None:
    meter = ProgressMeter(3e9, "bytes")
    assert meter.text() == "0 bytes of 3 GB"
    clock.now += 2
    meter.advance(1e9)
    assert meter.text() == "1 GB of 3 GB, 500 MB/s, 4 s left"
    clock.now += 4
    meter.advance(2e9)
    assert meter.text() == "3 GB of 3 GB, 500 MB/s, 6 s"


def test_meter_goes_by_recent_speed(clock) -> None:
    meter = ProgressMeter(10_000, "tokens")
    for _ in range(10):  # 500 tokens a second
        clock.now += 1
        meter.advance(500)
    for _ in range(20):  # then 100
        clock.now += 1
        meter.advance(100)
    assert meter.text() == "7,000 of 10,000 tokens, 100 tokens/s, 30 s left"


def test_a_log_has_no_lines_for_short_work(clock, capsys) -> None:
    progress = LogProgress()
    with stage(progress, "prefill", 100, "tokens"):
        for _ in range(100):
            clock.now += 0.04
            progress.advance(1)
    assert capsys.readouterr().err == ""


def test_a_log_has_a_line_every_few_seconds_of_long_work(clock, capsys) -> None:
    progress = LogProgress()
    with stage(progress, "prefill", 120, "tokens"):
        for _ in range(120):
            clock.now += 0.1
            progress.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "prefill: 50 of 120 tokens, 10 tokens/s, 7 s left",
        "prefill: 100 of 120 tokens, 10 tokens/s, 2 s left",
        "prefill: 120 of 120 tokens, 10 tokens/s, 12 s",
    ]


def test_a_log_repeats_no_line(clock, capsys) -> None:
    progress = LogProgress()
    with stage(progress, "prefill", 100, "tokens"):
        for _ in range(100):
            clock.now += 0.1
            progress.advance(1)
    assert capsys.readouterr().err.splitlines() == [
        "prefill: 50 of 100 tokens, 10 tokens/s, 5 s left",
        "prefill: 100 of 100 tokens, 10 tokens/s, 10 s",
    ]


def test_results_on_a_pipe_are_plain_and_never_wrapped(capsys) -> None:
    render.key_values([("path", "/a/" * 60), ("rope factor", 4.0)], title="model.gguf")
    render.table(["type", "tensors"], [("Q4_K", 12), ("x" * 200, 3)], right=["tensors"])
    render.json({"name": "Bücher", "window": 8192})
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[:3] == ["model.gguf", f"path         {'/a/' * 60}", "rope factor  4.0"]
    assert lines[4].split() == ["Q4_K", "12"]
    assert lines[5].split() == ["x" * 200, "3"]
    assert json.loads("\n".join(lines[6:])) == {"name": "Bücher", "window": 8192}
    assert "\x1b" not in out
    assert err == ""


BAR = """
from pigguf.cli import render
from pigguf.cli.progress_bars import progress_bar
from pigguf.progress import stage
progress = progress_bar()
try:
    with stage(progress, "writing", 3e9, "bytes"):
        progress.advance(3e9)
    with stage(progress, "checking", 100, "percent"):
        progress.advance(50)
        raise KeyError("broken off")
except KeyError:
    render.note("after")
"""


@pytest.mark.parametrize("color", [True, False])
def test_a_terminal_gets_a_bar_and_its_cursor_back(color: bool, monkeypatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    child = pexpect.spawn(sys.executable, ["-c", BAR], encoding="utf-8", dimensions=(24, 100), timeout=60)
    child.expect(pexpect.EOF)
    output = child.before
    assert "writing" in output
    assert "3 GB of 3 GB" in output
    assert "checking" in output
    assert "50 %" in output
    assert output.rstrip().endswith("after")
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l"), "the cursor stays hidden"
    assert bool("\x1b[9" in output or "\x1b[3" in output) is color
