"""Perplexity of the demo model on real prose: llama-perplexity's to 0.1 %, transformers' to 0.5 %."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import pigguf
from pigguf.evals.perplexity import perplexity

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
CHAPTERS = Path(__file__).resolve().parent.parent / "data" / "persuasion-chapters-3-5.txt"
WINDOW, WINDOWS = 1024, 3

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_half_windows_are_as_by_llama_perplexity(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Build the peer first if it does not exist, which takes minutes."""

    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import llama_perplexity

    command = [str(part) for part in llama_perplexity.command(smollm2_gguf, CHAPTERS, WINDOW, WINDOWS)]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
    )
    theirs = llama_perplexity.estimate(finished.stdout)
    report = perplexity(smollm2_gguf, [CHAPTERS], windows=[WINDOW], max_tokens=WINDOW * WINDOWS)
    (ours,) = report.results["perplexity"]
    assert ours["windows"] == WINDOWS
    assert ours["perplexity"] == pytest.approx(theirs.perplexity, rel=1e-3)
    assert ours["standard_error"] * ours["perplexity"] == pytest.approx(theirs.error, rel=1e-2)


def test_whole_windows_are_as_by_transformers(smollm2_checkpoint: Path, novel: str, tmp_path: Path) -> None:
    pigguf.convert(smollm2_checkpoint, tmp_path / "model.gguf", type="BF16")
    report = perplexity(
        tmp_path / "model.gguf", [CHAPTERS], windows=[WINDOW], method="whole", max_tokens=WINDOW * WINDOWS
    )
    tokens = AutoTokenizer.from_pretrained(smollm2_checkpoint)(novel)["input_ids"][: WINDOW * WINDOWS]
    model = AutoModelForCausalLM.from_pretrained(smollm2_checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = torch.tensor(tokens).reshape(WINDOWS, WINDOW)
        losses = [float(model(row[None], labels=row[None]).loss) for row in ids]
    expected = torch.tensor(losses).mean().exp().item()
    (ours,) = report.results["perplexity"]
    assert ours["tokens_scored"] == WINDOWS * (WINDOW - 1)
    assert ours["perplexity"] == pytest.approx(expected, rel=5e-3)
