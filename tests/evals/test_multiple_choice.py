"""Multiple choice: exact prompts, likelihoods and accuracies as by transformers, statistics by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from support.tiny_checkpoints import make_checkpoint
from transformers import AutoModelForCausalLM, AutoTokenizer

import pigguf
from pigguf.errors import TextError, UsageError
from pigguf.evals.jsonl_datasets import load_datasets
from pigguf.evals.multiple_choice import PairedComparison, accuracy_by_file, choice, compare_paired
from pigguf.evals.multiple_choice_formats import QUESTION_FORMATS, parse_question
from pigguf.evals.report import EvalReport
from pigguf.inference.engine import Context
from pigguf.inference.run_config import EngineConfig

DATA = Path(__file__).parent.parent / "data" / "evals"
SETS = [DATA / f"{name}.jsonl" for name in ("boolq", "piqa", "race", "winogrande", "choices")]
EXACT = EngineConfig(threads=1, cache_k="f32", cache_v="f32", flash_attention=False)
WINDOW = 1024


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("choice") / "checkpoint"
    return make_checkpoint(path, max_position_embeddings=WINDOW)


@pytest.fixture(scope="module")
def gguf(checkpoint: Path) -> Path:
    path = checkpoint.parent / "model.gguf"
    pigguf.convert(checkpoint, path, type="F32")
    return path


@pytest.fixture(scope="module")
def report(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> EvalReport:
    """All of our own questions, as shipped and with positions divided by 8."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return choice(gguf, SETS, compare=["linear:8"], engine=EXACT)


def write(path: Path, *lines: Any) -> Path:
    texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
    path.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return path


# ---- questions ---------------------------------------------------------------------------------------

BOOLQ = {"question": "is water wet", "passage": "Water is wet.", "answer": True}
RACE = {"article": "Tom ran.", "question": "Who ran?", "options": ["Ann", "Tom", "Bo"], "answer": "B"}
CHOICES = {"context": "One, two, ", "choices": ["three", "nine"], "label": 0}


def test_a_question_that_does_not_fit_is_refused_by_its_line(gguf: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", BOOLQ, {**BOOLQ, "passage": "water " * 900})
    with pytest.raises(TextError, match=r"jsonl, line 2: a question of [0-9,]+ tokens .*window of 1,024"):
        choice(gguf, [path])


def test_a_question_with_nothing_before_its_choices_is_refused(gguf: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "bare.jsonl", {**CHOICES, "context": ""})
    with pytest.raises(TextError, match="line 1: there is no text before the choices"):
        choice(gguf, [path])


# ---- likelihoods -------------------------------------------------------------------------------------


@lru_cache
def in_transformers(checkpoint: Path) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(checkpoint)


def log_likelihood(checkpoint: Path, context: str, continuation: str) -> float:
    """By transformers, of the tokens that the whole text has after those of the context."""
    model, tokenizer = in_transformers(checkpoint)
    alone = tokenizer(context, add_special_tokens=False).input_ids
    whole = tokenizer(f"{context} {continuation}", add_special_tokens=False).input_ids
    assert whole[: len(alone)] == alone
    with torch.no_grad():
        rows = model(torch.tensor([whole])).logits[0, len(alone) - 1 : -1].double().log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(rows, whole[len(alone) :], strict=True))


def test_likelihoods_and_accuracies_are_those_of_transformers(report: EvalReport, checkpoint: Path) -> None:
    questions = [question for each in load_datasets(SETS, parse_question) for question in each.items]
    found = report.results["readings"]["as shipped"]
    assert len(found["questions"]) == len(questions) == 46
    right = right_normalised = 0
    for question, answer in zip(questions, found["questions"], strict=True):
        sums = [log_likelihood(checkpoint, *texts) for texts in question.choices]
        assert answer["log_likelihoods"] == pytest.approx(sums, rel=1e-4, abs=1e-4)
        assert (answer["file"], answer["line"]) == (str(question.record.path), question.record.line)
        normalised = [
            each / len(text.encode()) for each, (_, text) in zip(sums, question.choices, strict=True)
        ]
        right += sums.index(max(sums)) == question.answer
        right_normalised += normalised.index(max(normalised)) == question.answer
    total = found["sets"][-1]
    assert (total["file"], total["form"], total["questions"]) == ("", "", 46)
    assert (total["right"], total["right_normalised"]) == (right, right_normalised)
    assert total["accuracy"] == right / 46
    assert [each["form"] for each in found["sets"][:-1]] == list(QUESTION_FORMATS)
    assert sum(each["right"] for each in found["sets"][:-1]) == right


def test_the_tables_agree_and_compare_the_variants(report: EvalReport) -> None:
    accuracy, against = report.tables
    assert [row[0] for row in accuracy.rows] == ["as shipped"] * 6 + ["linear:8"] * 6
    shipped, divided = (report.results["readings"][name]["questions"] for name in ("as shipped", "linear:8"))
    rights = [[one["chosen"] == one["answer"] for one in answers] for answers in (shipped, divided)]
    first_only = sum(one and not other for one, other in zip(*rights, strict=True))
    second_only = sum(other and not one for one, other in zip(*rights, strict=True))
    assert against.rows[0][:5] == ("as shipped", "linear:8", "accuracy", first_only, second_only)
    assert any(
        one["log_likelihoods"] != other["log_likelihoods"]
        for one, other in zip(shipped, divided, strict=True)
    )
    json.dumps(report.as_data())


def test_what_choices_share_is_computed_once(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = 0
    decode = Context.decode

    def counted(self: Context, sequence: int, tokens: list[int], *rest: Any, **more: Any) -> bool:
        nonlocal computed
        computed += len(tokens)
        return decode(self, sequence, tokens, *rest, **more)

    monkeypatch.setattr(Context, "decode", counted)
    path = write(tmp_path / "one.jsonl", RACE, {**RACE, "article": "Tom ran. " * 40})
    choice(gguf, [path], engine=EXACT)
    _, tokenizer = in_transformers(gguf.parent / "checkpoint")
    article = len(tokenizer(RACE["article"] * 40).input_ids)
    assert article < computed < 1.5 * article


def test_an_interrupted_run_resumes(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = choice(gguf, SETS[:1], engine=EXACT)
    decode, left = Context.decode, 7

    def interrupted(self: Context, *arguments: Any, **more: Any) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return decode(self, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Context, "decode", interrupted)
        choice(gguf, SETS[:1], engine=EXACT)
    (journal,) = cache.glob("choice-*.jsonl")
    assert len(journal.read_text().splitlines()) == 3  # two choices a question
    assert choice(gguf, SETS[:1], engine=EXACT) == whole
    assert not list(cache.glob("*.jsonl"))


def test_a_real_model_answers_common_knowledge(smollm2_gguf: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pigguf", "eval", "choice", str(smollm2_gguf), str(SETS[-1]), "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    data = json.loads(done.stdout)
    (score,) = data["results"]["readings"]["as shipped"]["sets"]
    assert (score["form"], score["questions"]) == ("choices", 8)
    assert score["right"] >= 7
    assert data["settings"]["data"][0]["items"] == 8


# ---- statistics --------------------------------------------------------------------------------------


def answer(line: int, chosen: int, right: int = 0, form: str = "PIQA") -> dict[str, Any]:
    return {
        "file": "a.jsonl",
        "line": line,
        "form": form,
        "answer": right,
        "log_likelihoods": [-1.0, -2.0],
        "chosen": chosen,
        "chosen_normalised": 0,
    }


def test_two_models_are_compared_question_by_question() -> None:
    one = [answer(line, chosen) for line, chosen in enumerate([0, 0, 0, 1, 1, 0])]
    other = [answer(line, chosen) for line, chosen in enumerate([0, 1, 1, 0, 1, 1])]
    assert compare_paired("a", one, "b", other, "accuracy") == PairedComparison(
        "a", "b", "accuracy", 3, 1, 2 * (1 + 4) / 16
    )
    assert compare_paired("a", one, "b", other, "accuracy_normalised").p == 1.0
    with pytest.raises(UsageError, match="different questions"):
        compare_paired("a", one, "b", other[:-1], "accuracy")


def test_scores_are_by_form_and_file() -> None:
    mixed = [answer(1, 0), answer(2, 1), answer(3, 1, right=1, form="RACE")]
    found = [
        (score.form, score.questions, score.right, score.right_normalised)
        for score in accuracy_by_file(mixed)
    ]
    assert found == [("PIQA", 2, 1, 2), ("RACE", 1, 1, 0), ("", 3, 2, 2)]
    assert len(accuracy_by_file(mixed[:2])) == 1
