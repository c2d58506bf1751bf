"""The sweep finds the factor that a model was trained with, and `convert` can write what it found.

The model is made by hand: one head that looks exactly BACK positions back when they are divided by its
factor, and predicts the token there. The text repeats itself at that distance, nine times in ten.
"""

from __future__ import annotations

import math
import random
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_checkpoints import FAMILIES, VOCAB_SIZE, save_tokenizer
from transformers import AutoTokenizer

import pigguf
from pigguf import evaluate
from pigguf.errors import TextError, UsageError
from pigguf.evals.html_report import render_page
from pigguf.evals.report import EvalReport, HeatMap, LinePlot
from pigguf.evals.rope_factor_sweep import FACTORS, sweep
from pigguf.gguf_io import (
    PlannedTensor,
    TensorData,
    TensorType,
    read_header,
    write_gguf,
)
from pigguf.gguf_io.metadata import f32
from pigguf.inference.run_config import EngineConfig

PERIOD, WINDOW = 12, 256
BACK = PERIOD - 1  # from a letter to the one that the next will be like
LETTERS = "ABCDEFGHJKLMNOPQ"  # of which the tokenizer makes one token each
WIDTH, THETA = 64, 10.0
EXACT = EngineConfig(cache_k="f32", cache_v="f32", flash_attention=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3,000 letters, each the one PERIOD before it nine times in ten, else any."""
    rng = random.Random(4)
    letters = [rng.choice(LETTERS) for _ in range(PERIOD)]
    while len(letters) < 3000:
        letters.append(letters[-PERIOD] if rng.random() < 0.9 else rng.choice(LETTERS))
    path = tmp_path_factory.mktemp("text") / "letters.txt"
    path.write_text("".join(letters), encoding="utf-8")
    return path


def looking_back(path: Path, factor: float) -> Path:
    """Write a checkpoint for positions divided by `factor`, whose config does not state it."""
    config = FAMILIES["llama"].config_class(
        vocab_size=VOCAB_SIZE,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    save_tokenizer(path)
    model = FAMILIES["llama"](config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.fill_(1.0 if name.endswith("norm.weight") else 0.0)
        _set_weights(model, letter_ids(path), factor)
    model.save_pretrained(path)
    return path


def letter_ids(checkpoint: Path) -> list[int]:
    ids = AutoTokenizer.from_pretrained(checkpoint)(LETTERS, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(LETTERS)
    return list(ids)


def _set_weights(model: Any, ids: list[int], factor: float) -> None:
    """Set weights: hidden state 0 is constant, 1 to 16 the input letter, 17 to 32 the output letter."""
    attention = model.model.layers[0].self_attn
    model.model.embed_tokens.weight[:, 0] = 1.0
    half = WIDTH // 2
    for index, token in enumerate(ids, start=1):
        model.model.embed_tokens.weight[token, index] = 1.0
        attention.v_proj.weight[index, index] = 1.0
        attention.o_proj.weight[index + len(ids), index] = 1.0
    # a query rotated by m/F and a key by n/F + BACK/F match where m - n is BACK
    angles = torch.tensor([THETA ** (-j / half) * BACK / factor for j in range(half)])
    attention.q_proj.weight[:half, 0] = 3.0
    attention.k_proj.weight[:half, 0] = 3.0 * angles.cos()
    attention.k_proj.weight[half:, 0] = 3.0 * angles.sin()
    model.lm_head.weight[:, 0] = -10.0
    for index, token in enumerate(ids, start=1):
        model.lm_head.weight[token, 0] = 0.0
        model.lm_head.weight[token, index + len(ids)] = 0.7


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with checkpoint/, for factor 4 without stating it, and model.gguf made of it."""
    path = tmp_path_factory.mktemp("lost")
    pigguf.convert(looking_back(path / "checkpoint", 4.0), path / "model.gguf", type="F32")
    return path


@pytest.fixture(scope="module")
def found(lost: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalReport:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return sweep(lost / "model.gguf", [text], windows=[64, 128, 256, 512], engine=EXACT)


# ---- a model that lost its factor --------------------------------------------------------------------


def test_a_lost_factor_is_found_at_every_window(found: EvalReport) -> None:
    results = found.results
    assert (results["factor"], results["clear"]) == (4.0, True)
    assert [(fit["window"], fit["factor"], fit["clear"]) for fit in results["fits"]] == [
        (window, 4.0, True) for window in (64, 128, 256, 512)
    ]
    assert (results["reach"], results["breaks_at"]) == (512, None)
    best = {f["window"]: f["perplexity"] for f in results["perplexity"] if f["factor"] == 4.0}
    unscaled = {f["window"]: f["perplexity"] for f in results["perplexity"] if f["factor"] == 1.0}
    assert all(1.5 < best[window] < 4 and unscaled[window] > 2 * best[window] for window in best)


def test_the_verdict_states_the_factor_and_what_to_do(found: EvalReport) -> None:
    words = found.results["verdict"]
    assert words.startswith(
        "Factor 4 fits best, clearly, at 64, 128, 256 and 512: at 64 tokens its perplexity is"
    )
    assert "Without scaling, perplexity at 512 is" in words
    assert "holds up to 512 tokens" in words
    assert "the longest window measured." in words
    options = "--rope-factor 4 --original-context 128 --context 512"
    assert found.results["convert"] == options
    assert f"The file states no scaling: convert the checkpoint again with {options} (" in words


def test_convert_writes_the_factor_and_the_file_is_then_right(
    found: EvalReport, lost: Path, text: Path, tmp_path: Path
) -> None:
    options = dict(zip(*[iter(shlex.split(found.results["convert"]))] * 2, strict=True))
    rope = pigguf.RopeOverrides(
        float(options["--rope-factor"]), int(options["--original-context"]), int(options["--context"])
    )
    pigguf.convert(lost / "checkpoint", tmp_path / "again.gguf", type="F32", rope=rope)
    again = sweep(tmp_path / "again.gguf", [text], factors=[2], windows=[64, 512], engine=EXACT)
    assert again.settings["factors"] == [1.0, 2.0, 4.0]  # the file's own is among them
    assert again.results["verdict"].endswith("That is the factor the file states.")
    # and shipped so, it is as good as under the override
    shipped = evaluate(
        "perplexity", tmp_path / "again.gguf", text=[text], windows=[512], max_windows=4, engine=EXACT
    )
    [figure] = shipped.results["perplexity"]
    [same] = [f for f in found.results["perplexity"] if (f["factor"], f["window"]) == (4.0, 512)]
    assert figure["perplexity"] == pytest.approx(same["perplexity"], rel=1e-6)


def test_a_model_without_a_factor_is_recognized(text: Path, tmp_path: Path) -> None:
    pigguf.convert(looking_back(tmp_path / "plain", 1.0), tmp_path / "plain.gguf", type="F32")
    report = sweep(tmp_path / "plain.gguf", [text], factors=[1, 2, 4], windows=[64, 256], engine=EXACT)
    assert report.results["factor"] == 1.0
    assert report.results["convert"] == "--rope-factor 1 --context 256"
    assert "Factor 1 fits best, clearly, at 64 and 256" in report.results["verdict"]
    assert "Without scaling" not in report.results["verdict"]
    assert report.results["verdict"].endswith("That is the factor the file states.")


def test_too_little_text_is_not_clear(lost: Path, text: Path) -> None:
    """Eight scored tokens cannot distinguish factors that are close to each other."""
    report = sweep(lost / "model.gguf", [text], factors=[4, 4.05], windows=[16], max_windows=1, engine=EXACT)
    assert report.results["clear"] is False
    assert "but not clearly: at 16 tokens the intervals of factor" in report.results["verdict"]
    assert report.results["verdict"].endswith("Measure more windows, or a longer text, before relying on it.")


def test_the_default_windows_reach_twice_the_files_where_the_text_does(lost: Path, text: Path) -> None:
    report = sweep(lost / "model.gguf", [text], factors=[4], max_windows=1)
    assert report.settings["windows"] == [256, 512]
    short = text.parent / "short.txt"
    short.write_text(text.read_text()[:400])
    assert sweep(lost / "model.gguf", [short], factors=[4], max_windows=1).settings["windows"] == [256]
    assert FACTORS == (1.0, 2.0, 4.0, 8.0)


def test_the_tables_and_plots_have_all_results(found: EvalReport) -> None:
    by_factor, best = found.tables
    figures = {(f["factor"], f["window"]): f["perplexity"] for f in found.results["perplexity"]}
    assert by_factor.headers == ("factor", "64", "128", "256", "512")
    for row in by_factor.rows:
        assert row[1:] == tuple(figures[row[0], window] for window in (64, 128, 256, 512))
    assert [(row[0], row[1], row[-1]) for row in best.rows] == [(w, 4.0, "yes") for w in (64, 128, 256, 512)]
    heat, lines = found.plots
    assert isinstance(heat, HeatMap)
    assert isinstance(lines, LinePlot)
    assert (heat.x, heat.y) == ((64.0, 128.0, 256.0, 512.0), (1.0, 2.0, 4.0, 8.0))
    assert heat.values[2] == (1.0,) * 4
    assert heat.values[0][0] == pytest.approx(figures[4.0, 64] / figures[1.0, 64])
    assert [series.name for series in lines.series] == ["factor 1", "factor 2", "factor 4", "factor 8"]
    assert "factor 4, as" not in render_page(found)
    assert found.results["verdict"].split(":")[0] in render_page(found)
    assert "<code>--original-context 128</code>" in render_page(found)


# The trial's base model (perplexity by window, PI without tuning at factor 4), rounded.


# ---- errors ----------------------------------------------------------------------------------------


def test_options_that_do_not_fit_are_errors(lost: Path, text: Path) -> None:
    model = lost / "model.gguf"
    for factors in ([0.5], [0.0], [math.nan], [math.inf]):
        with pytest.raises(UsageError, match="does not extend a window"):
            sweep(model, [text], factors=factors)
    with pytest.raises(UsageError, match="factor 1 alone is not a sweep"):
        sweep(model, [text], factors=[1])
    with pytest.raises(UsageError, match=r"the windows are \[4\]"):
        sweep(model, [text], windows=[4])
    with pytest.raises(UsageError, match="`max_windows` is 0"):
        sweep(model, [text], max_windows=0)
    with pytest.raises(TextError, match="a window of 8,192 needs as many"):
        sweep(model, [text], windows=[64, 8192])


def test_a_file_whose_frequencies_no_override_can_undo_is_an_error(
    lost: Path, text: Path, tmp_path: Path
) -> None:
    file = read_header(lost / "model.gguf")
    with TensorData(file) as data:
        planned = [
            PlannedTensor(
                t.name, t.shape, t.type, [(0, t.shape[0])], lambda a, b, t=t: data.rows(t, 0, t.rows)
            )
            for t in file.tensors.values()
        ]
        ones = np.ones(WIDTH // 2, np.float32)
        planned.append(
            PlannedTensor(
                "rope_freqs.weight", ones.shape, TensorType.F32, [(0, ones.size)], lambda a, b: ones[a:b]
            )
        )
        write_gguf(tmp_path / "llama3.gguf", file.metadata, planned)
        odd = {**file.metadata, "llama.rope.scaling.attn_factor": f32(0.7)}
        write_gguf(tmp_path / "odd.gguf", odd, planned[:-1])
    with pytest.raises(UsageError, match=r"rope_freqs\.weight, which no override"):
        sweep(tmp_path / "llama3.gguf", [text], windows=[64])
    with pytest.raises(UsageError, match=r"attn_factor.*cannot be replaced"):
        sweep(tmp_path / "odd.gguf", [text], windows=[64])


# ---- a real model --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_was_made_without_a_factor(smollm2_gguf: Path, novel: str, tmp_path: Path) -> None:
    """Its own positions fit best inside its window, and clearly."""
    (tmp_path / "novel.txt").write_text(novel, encoding="utf-8")
    report = sweep(
        smollm2_gguf, [tmp_path / "novel.txt"], factors=[1, 2, 4], windows=[512, 1024], max_windows=2
    )
    assert [fit["factor"] for fit in report.results["fits"]] == [1.0, 1.0]
    assert report.results["clear"]
    assert report.results["verdict"].endswith("That is the factor the file states.")
