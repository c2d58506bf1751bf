"""The adapter that the project ships: whole, small, right in its facts, and longer in its window."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import pigguf
from pigguf.evals.passkey import passkey
from pigguf.evals.perplexity import perplexity

ADAPTER = Path(__file__).parents[2] / "models" / "SmolLM2-135M-Instruct-PI-32k"


@pytest.fixture(scope="module")
def shipped(smollm2_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shipped") / "model.gguf"
    pigguf.convert(smollm2_checkpoint, path, adapter=ADAPTER, type="Q8_0")
    return path


def test_it_is_small_and_has_a_card() -> None:
    assert sum(file.stat().st_size for file in ADAPTER.rglob("*")) < 15e6
    card = (ADAPTER / "README.md").read_text(encoding="utf-8")
    for word in ("license: apache-2.0", "SmolLM2-135M-Instruct", "32768", "passkey", "Persuasion"):
        assert word in card
    assert not re.search(r"[@{}]", card)  # placeholders of results


def phase(directory: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    settings = json.loads((directory / "training.json").read_text())
    log = [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(settings["steps"] + 1))
    return settings, log


def test_its_logs_are_those_of_its_settings_and_of_one_model() -> None:
    first, learning = phase(ADAPTER / "phase-1")
    second, going_on = phase(ADAPTER / "phase-2")
    third, longer = phase(ADAPTER)
    assert all(first[name] == second[name] == third[name] for name in ("factor", "rank", "alpha", "train"))
    assert learning[-1]["held_out"]["text"] < learning[0]["held_out"]["text"] - 1
    for kind in ("text", "answers"):
        assert going_on[-1]["held_out"][kind] < going_on[0]["held_out"][kind] - 0.04
    assert longer[-1]["held_out"]["text"] < longer[0]["held_out"]["text"]


def test_the_file_states_what_was_trained(shipped: Path) -> None:
    rope = pigguf.inspect(shipped).rope
    assert (rope.rope_type, rope.factor, rope.original_context, rope.context_length) == (
        "linear",
        4,
        8192,
        32768,
    )


def test_it_finds_a_number_in_words_that_it_was_never_trained_on(shipped: Path) -> None:
    report = passkey(shipped, max_length=2048, distances=4, trials=2, depths=1, wording="locker")
    found = report.results["readings"]["as shipped"]
    assert found["right"] == 8


@pytest.mark.slow
def test_beyond_the_base_s_window_it_finds_numbers_and_predicts_text_where_the_base_does_not(
    shipped: Path, smollm2_gguf: Path, novel: str, tmp_path: Path
) -> None:
    report = passkey(shipped, max_length=12288, distances=3, trials=2, depths=1, compare=["none"])
    ours, base = (report.results["readings"][name] for name in ("as shipped", "none"))
    assert ours["right"] == ours["trials"]
    assert base["k_max_tokens"] < ours["k_max_tokens"]
    text = tmp_path / "novel.txt"
    text.write_text(novel, encoding="utf-8")
    results = perplexity(shipped, [text], windows=[2048, 10240], method="whole").results["perplexity"]
    assert results[1]["perplexity"] < results[0]["perplexity"]
