"""KL divergence: the same as computed with transformers and numpy; pairs that do not fit are errors."""

from __future__ import annotations

import html
import math
import tracemalloc
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.compare import log_softmax, transformers_logits
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint, save_tokenizer
from transformers import AutoModelForCausalLM

import pigguf
from pigguf import evaluate
from pigguf.common.softmax_and_kl import kl_divergence
from pigguf.errors import ContextOverflow, EngineError, GGUFError, TextError, UsageError
from pigguf.evals.html_report import render_page
from pigguf.evals.kl_evaluation import describe_verdict, kl, position_buckets, summarize_positions
from pigguf.evals.report import EvalReport
from pigguf.gguf_io import read_header
from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SilentProgress, Unit

EXACT = EngineConfig(cache_k="f32", cache_v="f32", flash_attention=False)
WINDOW = 2500  # three buckets: to 1023, to 2047, to 2499
SHAPE = {"max_position_embeddings": WINDOW, "hidden_size": 128, "intermediate_size": 64}  # heads of 32: q8_0


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with reference/ and reference.gguf, q8_0.gguf, and other/ with other weights."""
    path = tmp_path_factory.mktemp("models")
    pigguf.convert(make_checkpoint(path / "reference", **SHAPE), path / "reference.gguf", type="F32")
    pigguf.convert(path / "reference", path / "q8_0.gguf", type="Q8_0")
    pigguf.convert(near(path / "reference", path / "other"), path / "other.gguf", type="F32")
    return path


def near(checkpoint: Path, path: Path) -> Path:
    """Write a checkpoint whose weights are all slightly different."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.2 * torch.randn_like(parameter))
    copytree(checkpoint, path)
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def text(novel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text of two and a half windows."""
    path = tmp_path_factory.mktemp("text") / "novel.txt"
    path.write_text(novel[:7500], encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def short(novel: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a text of some 300 tokens."""
    path = tmp_path_factory.mktemp("text") / "short.txt"
    path.write_text(novel[:400], encoding="utf-8")
    return path


def tokens_of(gguf: Path, text: Path) -> list[int]:
    with Model.open(gguf, vocab_only=True) as model:
        return model.tokenize(text.read_text(encoding="utf-8"))


def windows_of(gguf: Path, text: Path, length: int) -> list[list[int]]:
    tokens = tokens_of(gguf, text)
    return [tokens[start : start + length] for start in range(0, len(tokens) - length + 1, length)]


def in_transformers(checkpoint: Path, window: list[int]) -> NDArray[np.float64]:
    return np.array([log_softmax(row) for row in transformers_logits(checkpoint, window)])


def in_engine(gguf: Path, window: list[int], options: ContextOptions) -> NDArray[np.float64]:
    with Model.open(gguf) as model, Context(model, options) as context:
        rows = context.sequence().evaluate(window, range(len(window)))
        return np.array([log_softmax(row) for _, row in rows])


def check(found: dict[str, Any], p: NDArray[np.float64], q: NDArray[np.float64], nexts: list[int]) -> None:
    """Check the statistics against log-probabilities of the reference (p) and of the model (q)."""
    each = (np.exp(p) * (p - q)).sum(axis=1)
    count = len(nexts)
    assert found["tokens"] == count
    error = each.std(ddof=1) / math.sqrt(count)
    close = {"rel": 1e-3}
    assert found["mean"] == pytest.approx(each.mean(), **close)
    assert found["low"] == pytest.approx(each.mean() - 1.959964 * error, **close)
    assert found["high"] == pytest.approx(each.mean() + 1.959964 * error, **close)
    assert found["median"] == pytest.approx(np.median(each), **close)
    assert found["percentile_99"] == pytest.approx(np.percentile(each, 99), rel=2e-3)
    assert found["most"] == pytest.approx(each.max(), rel=2e-3)
    assert found["same_top"] == pytest.approx((p.argmax(axis=1) == q.argmax(axis=1)).mean(), abs=1.5 / count)
    assert found["same_top_low"] < found["same_top"] < found["same_top_high"]
    ours, theirs = (rows[range(count), nexts] for rows in (q, p))
    assert found["perplexity"] == pytest.approx(math.exp(-ours.mean()), **close)
    assert found["reference_perplexity"] == pytest.approx(math.exp(-theirs.mean()), **close)
    lost = theirs - ours
    reach = 1.959964 * lost.std(ddof=1) / math.sqrt(count)
    assert found["ratio"] == pytest.approx(math.exp(lost.mean()), **close)
    assert found["ratio_high"] == pytest.approx(math.exp(lost.mean() + reach), **close)
    assert found["ratio_low"] == pytest.approx(math.exp(lost.mean() - reach), **close)


# ---- statistics -------------------------------------------------------------------------------------


def test_the_statistics_are_those_of_transformers_for_two_models(models: Path, short: Path) -> None:
    windows = windows_of(models / "other.gguf", short, 64)
    assert len(windows) >= 3
    p, q = (
        np.concatenate([in_transformers(models / name, window)[:-1] for window in windows])
        for name in ("reference", "other")
    )
    report = kl(models / "other.gguf", [short], reference=models / "reference.gguf", window=64, engine=EXACT)
    check(report.results["overall"], p, q, [token for window in windows for token in window[1:]])
    assert report.results["by_position"] == [report.results["overall"]]


def test_each_bucket_of_positions_has_its_own_statistics(models: Path, text: Path) -> None:
    windows = windows_of(models / "q8_0.gguf", text, WINDOW)
    assert len(windows) == 2
    options = ContextOptions(length=WINDOW)
    p, q = (
        [in_engine(models / name, window, options) for window in windows]
        for name in ("reference.gguf", "q8_0.gguf")
    )
    report = kl(models / "q8_0.gguf", [text], reference=models / "reference.gguf")
    assert report.settings["window"] == WINDOW
    found = report.results["by_position"]
    assert [(f["first"], f["last"]) for f in found] == [(1, 1023), (1024, 2047), (2048, 2499)]
    for bucket in found:
        rows = slice(bucket["first"] - 1, bucket["last"])
        nexts = [token for window in windows for token in window[bucket["first"] : bucket["last"] + 1]]
        check(bucket, *(np.concatenate([each[rows] for each in side]) for side in (p, q)), nexts)
    assert (
        report.results["overall"]["tokens"] == sum(bucket["tokens"] for bucket in found) == 2 * (WINDOW - 1)
    )


def test_a_checkpoint_as_reference_gives_the_same_as_its_f32_file_and_leaves_no_file(
    models: Path, short: Path, cache: Path
) -> None:
    from_file = kl(models / "q8_0.gguf", [short], reference=models / "reference.gguf", window=64)
    from_checkpoint = kl(models / "q8_0.gguf", [short], reference=models / "reference", window=64)
    assert from_checkpoint.results == from_file.results
    assert from_checkpoint.settings["reference"]["path"] == str(models / "reference")
    assert from_checkpoint.settings["reference"]["sha256"] == from_file.settings["reference"]["sha256"]
    assert not [path for path in cache.rglob("*") if path.is_dir() or path.suffix in (".gguf", ".jsonl")]


def test_the_same_file_has_no_divergence_and_a_quantized_cache_a_small_one(models: Path, short: Path) -> None:
    same, smaller, smallest = (
        kl(
            models / "reference.gguf",
            [short],
            reference=models / "reference.gguf",
            window=128,
            engine=EngineConfig(cache_k=cache_type, cache_v=cache_type),
        ).results["overall"]
        for cache_type in ("f16", "q8_0", "q4_0")
    )
    assert (same["mean"], same["most"], same["same_top"], same["ratio"]) == (0.0, 0.0, 1.0, 1.0)
    assert 0 < smaller["mean"] < smallest["mean"] < 0.5
    assert smaller["reference_perplexity"] == smallest["reference_perplexity"] == same["perplexity"]


def test_a_divergence_worked_out_by_hand() -> None:
    p, q = (np.log(np.array(row, np.float32)) for row in ([0.5, 0.25, 0.25], [0.25, 0.5, 0.25]))
    # 1/2 ln 2 - 1/4 ln 2, whatever constant the logits have on top
    distance, same, model, reference = kl_divergence(p + np.float32(30), q - np.float32(7), 1)
    assert distance == pytest.approx(math.log(2) / 4, rel=2e-5)
    assert (same, kl_divergence(p, p, 0)[:2]) == (0.0, (0.0, 1.0))
    assert (model, reference) == (
        pytest.approx(math.log(0.5), rel=1e-6),
        pytest.approx(math.log(0.25), rel=1e-6),
    )


def test_a_tiny_divergence_is_not_lost_in_rounding() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, 49152).astype(np.float32)
    near = logits + rng.normal(0, 1e-3, logits.size).astype(np.float32)
    p, q = log_softmax(logits), log_softmax(near)
    exact = float((np.exp(p) * (p - q)).sum())
    assert exact < 1e-6
    assert kl_divergence(logits, near, 0)[0] == pytest.approx(exact, rel=1e-6)


def test_buckets_double_and_end_with_the_window() -> None:
    assert position_buckets(8192) == [(1, 1024), (1024, 2048), (2048, 4096), (4096, 8192)]
    assert position_buckets(1500) == [(1, 1024), (1024, 1500)]
    assert position_buckets(1024) == [(1, 1024)]
    assert position_buckets(64) == [(1, 64)]


# ---- the report --------------------------------------------------------------------------------------


def test_the_report_has_a_verdict_tables_and_plots(models: Path, text: Path) -> None:
    report = kl(models / "q8_0.gguf", [text], reference=models / "reference.gguf", max_windows=1)
    overall, by_position = report.results["overall"], report.results["by_position"]
    assert f"{overall['mean']:.3g} nats" in report.results["verdict"]
    assert f"{overall['same_top']:.1%}" in report.results["verdict"]
    [table] = report.tables
    assert [row[0] for row in table.rows] == ["1–1,023", "1,024–2,047", "2,048–2,499", "all"]
    assert [row[2] for row in table.rows] == [each["mean"] for each in (*by_position, overall)]
    distances, same = report.plots
    assert [p.y for s in distances.series for p in s.points] == [b["mean"] for b in by_position]  # type: ignore[union-attr]
    assert [p.x for s in same.series for p in s.points] == [1024, 2048, 2500]  # type: ignore[union-attr]
    assert report.results["verdict"] in html.unescape(render_page(report))


@pytest.mark.parametrize(
    ("deep", "expected"),
    [(0.3, "further from the reference at depth"), (0.1, "nearer to"), (0.2, "as near to the reference")],
)
def test_a_difference_at_depth_is_reported_if_it_is_certain(deep: float, expected: str) -> None:
    rng = np.random.default_rng(0)
    distances = rng.exponential(1.0, (3, 2047)) * np.where(np.arange(1, 2048) < 1024, 0.2, deep)
    same = rng.random((3, 2047)) < 0.9
    measured = np.stack([distances, same, np.full_like(distances, -2.1), np.full_like(distances, -2.0)])
    overall, *by_position = (
        summarize_positions(measured, *ends) for ends in ((1, 2048), (1, 1024), (1024, 2048))
    )
    words = describe_verdict(overall, by_position)
    assert expected in words
    assert f"{distances[:, :1023].mean():.3g} nats up to position 1,023" in words
    assert f"{distances[:, 1023:].mean():.3g} from 1,024 on" in words
    assert "perplexity is 8.1662, the reference's 7.3891: 10.52% higher" in words  # e^2.1, e^2, e^0.1


def test_an_interrupted_run_resumes_to_the_same_report(models: Path, short: Path, cache: Path) -> None:
    class Stopped(SilentProgress):
        """Raises when some tokens are done; notes what a stage had to do."""

        def __init__(self, after: float) -> None:
            self.left, self.total = after, 0.0

        def begin(self, stage: str, total: float, unit: Unit) -> None:
            if stage.startswith("comparing"):
                self.total = total

        def advance(self, amount: float) -> None:
            if self.total:
                self.left -= amount
                if self.left < 0:
                    raise KeyboardInterrupt

    def run(progress: Stopped) -> EvalReport:
        arguments = {"reference": models / "reference.gguf", "window": 64}
        return kl(models / "q8_0.gguf", [short], **arguments, progress=progress)  # type: ignore[arg-type]

    whole = run(all_of_it := Stopped(math.inf))
    windows = int(all_of_it.total) // 63
    assert windows >= 3
    with pytest.raises(KeyboardInterrupt):
        run(Stopped(2.5 * 63))
    assert len(list(cache.glob("kl-*.jsonl"))) == 1
    resumed = run(second := Stopped(math.inf))
    assert second.total == (windows - 2) * 63
    assert resumed == whole
    assert not list(cache.glob("kl-*.jsonl"))


def test_only_the_logits_of_one_batch_are_in_memory(models: Path, text: Path) -> None:
    batch = 512 * VOCAB_SIZE * 4
    kl(models / "q8_0.gguf", [text], reference=models / "reference.gguf", window=64, max_windows=1)
    tracemalloc.start()
    try:
        kl(models / "q8_0.gguf", [text], reference=models / "reference.gguf", max_windows=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * batch < WINDOW * VOCAB_SIZE * 4


def test_it_can_be_run_by_name(models: Path, short: Path) -> None:
    report = evaluate(
        "kl", models / "q8_0.gguf", text=[short], reference=models / "reference.gguf", window=64
    )
    assert report.evaluation == "kl"


# ---- errors ------------------------------------------------------------------------------------------


def test_another_vocabulary_is_an_error(models: Path, short: Path, tmp_path: Path) -> None:
    larger = make_checkpoint(tmp_path / "larger", **SHAPE, vocab_size=VOCAB_SIZE + 8)
    save_tokenizer(larger, VOCAB_SIZE + 8)
    pigguf.convert(larger, tmp_path / "larger.gguf", type="F32")
    with pytest.raises(UsageError, match=r"different vocabularies: 320 tokens and 328"):
        kl(models / "reference.gguf", [short], reference=tmp_path / "larger.gguf", window=64)
    tokens = read_header(models / "reference.gguf").metadata["tokenizer.ggml.tokens"].value
    renamed = tokens[300].encode()
    data = (models / "reference.gguf").read_bytes()
    twin = bytes([renamed[0] ^ 1]) + renamed[1:]
    assert twin.decode() not in tokens
    length = len(renamed).to_bytes(8, "little")
    assert data.count(length + renamed) >= 1
    (tmp_path / "renamed.gguf").write_bytes(data.replace(length + renamed, length + twin, 1))
    with pytest.raises(UsageError, match=r"different vocabularies: token 300 is"):
        kl(models / "reference.gguf", [short], reference=tmp_path / "renamed.gguf", window=64)


def test_options_that_do_not_fit_are_errors(models: Path, short: Path, tmp_path: Path) -> None:
    small = make_checkpoint(tmp_path / "small", **{**SHAPE, "max_position_embeddings": 64})
    pigguf.convert(small, tmp_path / "small.gguf", type="F32")
    model, reference = models / "q8_0.gguf", models / "reference.gguf"
    with pytest.raises(ContextOverflow, match=r"128 tokens is beyond the 64 that .*small\.gguf"):
        kl(model, [short], reference=tmp_path / "small.gguf", window=128)
    with pytest.raises(TextError, match="a window of 2,500 needs as many"):
        kl(model, [short], reference=reference)
    with pytest.raises(UsageError, match="the window is 7"):
        kl(model, [short], reference=reference, window=7)
    with pytest.raises(UsageError, match="`max_windows` is 0"):
        kl(model, [short], reference=reference, window=64, max_windows=0)
    with pytest.raises(GGUFError, match=r"nowhere\.gguf"):
        kl(model, [short], reference=tmp_path / "nowhere.gguf", window=64)


def test_logits_that_are_not_numbers_are_an_error_that_names_the_file(
    models: Path, short: Path, tmp_path: Path
) -> None:
    whole = read_header(models / "reference.gguf")
    data = bytearray((models / "reference.gguf").read_bytes())
    norm = whole.tensors["output_norm.weight"]
    data[norm.offset : norm.offset + 4] = np.float32(np.nan).tobytes()
    (tmp_path / "damaged.gguf").write_bytes(data)
    for model, reference in (("damaged.gguf", "reference.gguf"), ("reference.gguf", "damaged.gguf")):
        directories = {"damaged.gguf": tmp_path, "reference.gguf": models}
        with pytest.raises(EngineError, match=r"damaged\.gguf computes logits that are not numbers"):
            kl(directories[model] / model, [short], reference=directories[reference] / reference, window=64)
