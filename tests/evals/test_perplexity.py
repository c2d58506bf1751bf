"""Perplexity: the same as by transformers to 1e-4 for each method; interrupted runs resume."""

from __future__ import annotations

import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from pigguf import evaluate
from pigguf.errors import ContextOverflow, PigError, ReadError, TextError, UsageError
from pigguf.evals.perplexity import perplexity
from pigguf.evals.report import EvalReport, LinePlot
from pigguf.inference.engine import Model
from pigguf.inference.run_config import EngineConfig

EXACT = EngineConfig(cache_k="f32", cache_v="f32", flash_attention=False)
WINDOW, STRIDE = 64, 16


@pytest.fixture(scope="session")
def text(novel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prose of some 300 of the tiny tokenizer's tokens, the last window of them not whole."""
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(novel[:400], encoding="utf-8")
    return path


@pytest.fixture
def with_bos(tiny, tmp_path: Path) -> Path:
    """Return a copy of the tiny model's file that adds BOS."""
    key = b"tokenizer.ggml.add_bos_token" + struct.pack("<I", 7)
    data = tiny.gguf.read_bytes()
    assert data.count(key + b"\0") == 1
    path = tmp_path / "with-bos.gguf"
    path.write_bytes(data.replace(key + b"\0", key + b"\1"))
    return path


def tokens_of(gguf: Path, text: Path) -> list[int]:
    with Model.open(gguf, vocab_only=True) as model:
        return model.tokenize(text.read_text(encoding="utf-8"))


def scores(checkpoint: Path, window: Sequence[int], first: int) -> list[float]:
    """Log p of a window's tokens from `first` on, by transformers."""
    with torch.no_grad():
        rows = in_transformers(checkpoint)(torch.tensor([list(window)])).logits[0].double().log_softmax(-1)
    return [float(rows[i - 1, window[i]]) for i in range(first, len(window))]


@lru_cache
def in_transformers(checkpoint: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def find_result(report: EvalReport, name: str = "as shipped", window: int = WINDOW) -> dict[str, Any]:
    (found,) = (f for f in report.results["perplexity"] if (f["name"], f["window"]) == (name, window))
    return found


def check(found: dict[str, Any], expected: Sequence[float]) -> None:
    """Check a result and its interval, mean -/+ 1.96 standard errors, against log-likelihoods."""
    mean, error = np.mean(expected), np.std(expected) / math.sqrt(len(expected) - 1)
    assert found["tokens_scored"] == len(expected)
    assert found["perplexity"] == pytest.approx(math.exp(-mean), rel=1e-4)
    assert found["standard_error"] == pytest.approx(error, rel=1e-3)
    assert found["low"] == pytest.approx(math.exp(-mean - 1.959964 * error), rel=1e-3)
    assert found["high"] == pytest.approx(math.exp(-mean + 1.959964 * error), rel=1e-3)


# ---- the methods -------------------------------------------------------------------------------------


def test_half_window_is_as_by_transformers(tiny, text: Path) -> None:
    tokens = tokens_of(tiny.gguf, text)
    chunks = [tokens[start : start + WINDOW] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    assert len(chunks) >= 4
    assert len(tokens) % WINDOW
    expected = [score for chunk in chunks for score in scores(tiny.checkpoint, chunk, WINDOW // 2 + 1)]
    found = find_result(perplexity(tiny.gguf, [text], windows=[WINDOW], engine=EXACT))
    check(found, expected)
    assert found["windows"] == len(chunks)
    assert found["tokens_computed"] == len(chunks) * (WINDOW - 1)


def test_whole_is_as_by_transformers_and_its_loss(tiny, text: Path) -> None:
    tokens = tokens_of(tiny.gguf, text)
    chunks = [tokens[start : start + WINDOW] for start in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    expected = [score for chunk in chunks for score in scores(tiny.checkpoint, chunk, 1)]
    check(
        find_result(perplexity(tiny.gguf, [text], windows=[WINDOW], method="whole", engine=EXACT)), expected
    )
    with torch.no_grad():
        ids = torch.tensor(chunks)
        assert float(in_transformers(tiny.checkpoint)(ids, labels=ids).loss) == pytest.approx(
            -float(np.mean(expected)), rel=1e-5
        )


def test_sliding_scores_every_token_once_with_the_most_context_a_stride_allows(tiny, text: Path) -> None:
    tokens = tokens_of(tiny.gguf, text)
    expected = scores(tiny.checkpoint, tokens[:WINDOW], 1)
    start = STRIDE
    while start + WINDOW <= len(tokens):
        expected += scores(tiny.checkpoint, tokens[start : start + WINDOW], WINDOW - STRIDE)
        start += STRIDE
    found = find_result(
        perplexity(tiny.gguf, [text], windows=[WINDOW], method="sliding", stride=STRIDE, engine=EXACT)
    )
    check(found, expected)
    assert found["tokens_scored"] == start - STRIDE + WINDOW - 1  # all up to the last window's end, but one


def test_a_sampled_slide_scores_the_last_stride_of_each_window_also_of_the_first(tiny, text: Path) -> None:
    tokens = tokens_of(tiny.gguf, text)
    last = (len(tokens) - WINDOW) // STRIDE
    expected = [
        score
        for number in (0, last // 2, last)
        for score in scores(
            tiny.checkpoint, tokens[number * STRIDE : number * STRIDE + WINDOW], WINDOW - STRIDE
        )
    ]
    report = perplexity(
        tiny.gguf, [text], windows=[WINDOW], method="sliding", stride=STRIDE, max_windows=3, engine=EXACT
    )
    check(find_result(report), expected)


def test_where_the_model_wants_bos_each_half_window_begins_with_it(tiny, with_bos: Path, text: Path) -> None:
    """As in llama-perplexity, BOS replaces the first token."""
    tokens = tokens_of(with_bos, text)
    assert tokens[:2] == [1, tokens_of(tiny.gguf, text)[0]]
    chunks = [[1, *tokens[i + 1 : i + WINDOW]] for i in range(0, len(tokens) - WINDOW + 1, WINDOW)]
    expected = [score for chunk in chunks for score in scores(tiny.checkpoint, chunk, WINDOW // 2 + 1)]
    check(find_result(perplexity(with_bos, [text], windows=[WINDOW], engine=EXACT)), expected)


@pytest.mark.parametrize("method", ["whole", "sliding"])
def test_other_methods_have_bos_where_the_text_begins(tiny, with_bos: Path, text: Path, method: Any) -> None:
    tokens = tokens_of(with_bos, text)
    expected = scores(tiny.checkpoint, tokens[:WINDOW], 1)
    if method == "whole":
        expected += scores(tiny.checkpoint, tokens[WINDOW : 2 * WINDOW], 1)
    else:
        expected += scores(tiny.checkpoint, tokens[32 : WINDOW + 32], WINDOW - 32)
        expected += scores(tiny.checkpoint, tokens[WINDOW : WINDOW + WINDOW], WINDOW - 32)
    stride = 32 if method == "sliding" else None
    report = perplexity(
        with_bos,
        [text],
        windows=[WINDOW],
        method=method,
        stride=stride,
        max_tokens=2 * WINDOW + 5,
        engine=EXACT,
    )
    check(find_result(report), expected)


def test_no_window_spans_two_texts(tiny, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("def answer(question): return 42  # 1234567890\n" * 6, encoding="utf-8")
    expected = []
    for file in (text, other):
        tokens = tokens_of(tiny.gguf, file)
        for start in range(0, len(tokens) - WINDOW + 1, WINDOW):
            expected += scores(tiny.checkpoint, tokens[start : start + WINDOW], 1)
    report = perplexity(tiny.gguf, [text, other], windows=[WINDOW], method="whole", engine=EXACT)
    check(find_result(report), expected)


# ---- the report --------------------------------------------------------------------------------------


def test_the_report_has_all_that_it_takes_to_reproduce_it(tiny, text: Path, cache: Path) -> None:
    report = evaluate("perplexity", tiny.gguf, text=[text])
    assert report.settings["windows"] == [128]  # all of a small window
    assert report.settings["text"][0]["tokens"] == len(tokens_of(tiny.gguf, text))
    assert report.subject["sha256"]
    assert set(report.versions) == {"pigguf", "llama-cpp-python", "python", "machine"}
    data = json.loads(json.dumps(report.as_data()))
    assert data["plots"][0]["kind"] == "lines"
    assert data["results"]["perplexity"][0]["window"] == 128
    assert [file.name for file in cache.iterdir() if file.suffix == ".jsonl"] == []


def test_variants_are_compared_with_the_model_as_shipped(tiny, text: Path) -> None:
    windows = [WINDOW, 128, 192]
    report = perplexity(tiny.gguf, [text], windows=windows, compare=["none", "linear:2"], engine=EXACT)
    by_window, details = report.tables
    assert by_window.headers == ("positions", "64", "128", "192")
    shipped, none, linear = by_window.rows
    assert (shipped[0], none[0], linear[0]) == ("as shipped", "none", "linear:2")
    assert shipped[1:] == (*none[1:3], None)  # an unscaled model, beyond its window not as shipped
    assert none[3] is not None
    assert all(abs(a - b) > 0.01 for a, b in zip(none[1:], linear[1:], strict=True))
    assert len(details.rows) == 8
    (plot,) = report.plots
    assert isinstance(plot, LinePlot)
    assert [(series.name, len(series.points)) for series in plot.series] == [
        *(("as shipped", 2), ("none", 3), ("linear:2", 3))
    ]
    point = plot.series[0].points[0]
    assert (point.x, point.y) == (64, shipped[1])
    assert point.low is not None
    assert point.high is not None
    assert point.low < point.y < point.high
    tokens = tokens_of(tiny.gguf, text)[:192]
    expected = scores(tiny.checkpoint, tokens, 192 // 2 + 1)
    check(find_result(report, "none", 192), expected)


# ---- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"windows": [64, 256]}, ContextOverflow, "256 tokens is beyond the 128"),
        ({"windows": []}, UsageError, r"the windows are \[\]"),
        ({"windows": [4]}, UsageError, r"the windows are \[4\]"),
        ({"windows": [-64]}, UsageError, "the windows are"),
        ({"windows": [64], "stride": 16}, UsageError, "half-window has no stride"),
        (
            {"windows": [64], "method": "sliding"},
            UsageError,
            "stride of 256 tokens does not fit a window of 64",
        ),
        ({"windows": [64], "method": "sliding", "stride": 0}, UsageError, "stride of 0"),
        ({"windows": [64], "method": "slding"}, UsageError, "unknown method 'slding'"),
        ({"windows": [64], "max_tokens": 63}, UsageError, "first 63 tokens of a text do not fill"),
        ({"windows": [64], "max_windows": 0}, UsageError, "`max_windows` is 0"),
        ({"windows": [64], "compare": ["nope"]}, UsageError, "unknown position variant 'nope'"),
        (
            {"windows": [4096], "compare": ["none"]},
            TextError,
            r"novel\.txt has \d+ tokens; a window of 4,096",
        ),
    ],
)
def test_options_that_do_not_fit_are_errors(
    tiny, text: Path, options: dict[str, Any], error: type[PigError], message: str, cache: Path
) -> None:
    with pytest.raises(error, match=message) as refusal:
        perplexity(tiny.gguf, [text], **options)
    assert refusal.value.hint
    assert not list(cache.glob("*.jsonl"))


def test_files_that_are_not_texts_are_errors(tiny, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 100)
    (tmp_path / "empty.txt").write_bytes(b"")
    for name, error, message in (
        ("latin.txt", UsageError, "not UTF-8"),
        ("empty.txt", TextError, r"empty\.txt has 0 tokens; a window of 64"),
        ("nothing.txt", ReadError, r"nothing\.txt"),
    ):
        with pytest.raises(error, match=message):
            perplexity(tiny.gguf, [tmp_path / name], windows=[64])
    with pytest.raises(UsageError, match="the texts are"):
        perplexity(tiny.gguf, [], windows=[64])
    with pytest.raises(UsageError, match="the texts are"):
        perplexity(tiny.gguf, str(tmp_path / "empty.txt"), windows=[64])
    with pytest.raises(UsageError, match="unknown evaluation 'perplex'"):
        evaluate("perplex", tiny.gguf)


# ---- resuming ----------------------------------------------------------------------------------------


class Totals:
    """The totals of the stages that count tokens."""

    def __init__(self) -> None:
        self.tokens: list[float] = []
        self.advanced = 0.0
        self.unit = ""

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.unit = unit
        if unit == "tokens":
            self.tokens.append(total)

    def advance(self, amount: float) -> None:
        self.advanced += amount if self.unit == "tokens" else 0

    def end(self) -> None:
        pass


def test_progress_counts_the_tokens_computed_in_one_stage_a_window(tiny, text: Path) -> None:
    totals = Totals()
    report = perplexity(tiny.gguf, [text], windows=[WINDOW], progress=totals)
    assert totals.tokens == [find_result(report)["tokens_computed"]]
    assert totals.advanced == totals.tokens[0]


def command(model: Path, text: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pigguf", "eval", "perplexity", str(model), "--text", str(text)),
        *("--windows", "64,128", "--method", "sliding", "--stride", "4", "--json"),
    ]


def stopped(running: list[str], cache: Path, number: int) -> subprocess.CompletedProcess[str]:
    """Run a command, and send it a signal when some of its windows are done."""
    process = subprocess.Popen(running, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        started = time.monotonic()
        while sum(path.read_bytes().count(b"\n") for path in cache.glob("*.jsonl")) < 10:
            assert process.poll() is None, process.communicate()
            assert time.monotonic() - started < 180
            time.sleep(0.002)
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=180)
    finally:
        process.kill()
    return subprocess.CompletedProcess(running, process.returncode, out, err)


def test_a_killed_run_resumes_to_the_same_results(tiny, novel: str, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(novel[:1000], encoding="utf-8")
    options: dict[str, Any] = {"windows": [64, 128], "method": "sliding", "stride": 4}
    straight = perplexity(tiny.gguf, [text], **options)
    assert stopped(command(tiny.gguf, text), cache, signal.SIGKILL).returncode == -signal.SIGKILL
    (journal,) = cache.glob("*.jsonl")
    done = journal.read_bytes().count(b"\n")
    assert 10 <= done < sum(f["windows"] for f in straight.results["perplexity"])
    totals = Totals()
    resumed = perplexity(tiny.gguf, [text], **options, progress=totals)
    left = sum(totals.tokens)
    everything = sum(f["tokens_computed"] for f in straight.results["perplexity"])
    assert everything - 128 * done <= left <= everything - 63 * done
    assert totals.advanced == left
    assert resumed == straight
    assert not journal.exists()


def test_ctrl_c_ends_it_with_a_note_on_how_to_resume(tiny, novel: str, tmp_path: Path, cache: Path) -> None:
    text = tmp_path / "long.txt"
    text.write_text(novel[:1000], encoding="utf-8")
    interrupted = stopped(command(tiny.gguf, text), cache, signal.SIGINT)
    assert interrupted.returncode == 130
    assert interrupted.stdout == ""
    assert "the same command resumes" in interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    assert list(cache.glob("*.jsonl"))
    finished = subprocess.run(
        command(tiny.gguf, text), capture_output=True, text=True, timeout=180, check=True
    )
    assert [f["window"] for f in json.loads(finished.stdout)["results"]["perplexity"]] == [64, 128]
    assert not list(cache.glob("*.jsonl"))
