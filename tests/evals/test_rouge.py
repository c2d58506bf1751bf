"""ROUGE: scores by hand, exact prompts, truncation, and sampling as in the paper."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tiny_checkpoints import make_checkpoint

import pigguf
from pigguf.chat.prompt_format import ChatFormat
from pigguf.errors import MissingPackage, TextError, UsageError
from pigguf.evals.jsonl_datasets import JsonlRecord
from pigguf.evals.rouge import ROUGE_MEASURES, SummaryPrompts, load_rouge_scorer, parse_example, rouge
from pigguf.inference.engine import Context, ContextOptions, Model, SamplingParams
from pigguf.inference.run_config import EngineConfig

DATA = Path(__file__).parent.parent / "data" / "evals" / "summaries.jsonl"
WINDOW = 1024
HEAD, TAIL = (
    "Read the following article and then summarize it.\n",
    "\nNow summarize the above article.\nSummary:",
)
SMALL: dict[str, Any] = {"max_output": 24, "engine": EngineConfig(threads=1)}


@pytest.fixture(scope="module")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rouge")
    checkpoint = make_checkpoint(path / "checkpoint", max_position_embeddings=WINDOW)
    pigguf.convert(checkpoint, path / "model.gguf", type="F32")
    return path / "model.gguf"


@pytest.fixture(scope="module")
def vocabulary(gguf: Path) -> Iterator[Model]:
    with Model.open(gguf, vocab_only=True) as model:
        yield model


def documents() -> list[str]:
    records = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [record.get("document") or record["report"] for record in records]


# ---- scores ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reference", "text", "expected"),
    [
        # 3 of 4 words and of 3 words, "dogs" being "dog" to the stemmer; 2 of 3 pairs and of 2
        ("The dogs ran home.", "the dog ran", (6 / 7, 4 / 5, 6 / 7)),
        # all 4 words, no pair, and of words in order 1
        ("a b c d", "d c b a", (1.0, 0.0, 1 / 4)),
        ("one two three", "four five", (0.0, 0.0, 0.0)),
        ("one two three", "", (0.0, 0.0, 0.0)),
    ],
)
def test_scores_by_hand(reference: str, text: str, expected: tuple[float, float, float]) -> None:
    found = load_rouge_scorer()(reference, text)
    assert [found[name] for name in ROUGE_MEASURES] == pytest.approx([100 * share for share in expected])


def test_a_missing_package_is_an_error(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rouge_score.rouge_scorer", None)
    with pytest.raises(MissingPackage, match="rouge-score") as refusal:
        rouge(gguf, [DATA])
    assert refusal.value.hint == 'pip install -e ".[evals]" in the clone'


# ---- prompts -----------------------------------------------------------------------------------------


def test_the_prompt_is_the_papers(vocabulary: Model) -> None:
    tokens = SummaryPrompts(vocabulary, False, 15_000, WINDOW).encode("A mill turned again.")
    assert vocabulary.detokenize(tokens) == f"{HEAD}A mill turned again.{TAIL}"


def test_a_chat_model_is_asked_as_the_user(vocabulary: Model) -> None:
    tokens = SummaryPrompts(vocabulary, True, 15_000, WINDOW).encode("A mill turned again.")
    message = {"role": "user", "content": f"{HEAD}A mill turned again.{TAIL}"}
    assert tokens == ChatFormat(vocabulary).tokenize([message])


@pytest.mark.parametrize("most", [1, 10, 100])
def test_a_long_document_is_cut_to_its_first_tokens(vocabulary: Model, most: int) -> None:
    document = documents()[0]
    text = vocabulary.detokenize(SummaryPrompts(vocabulary, False, most, WINDOW).encode(document))
    beginning = vocabulary.detokenize(vocabulary.tokenize(document)[:most])
    assert text == f"{HEAD}{beginning}{TAIL}"


@pytest.mark.parametrize("room", [80, 81, 95, 300])
def test_no_prompt_goes_beyond_the_room_it_has(vocabulary: Model, room: int) -> None:
    bare = len(vocabulary.tokenize(HEAD + TAIL))
    tokens = SummaryPrompts(vocabulary, False, 15_000, room).encode(documents()[0])
    assert bare < len(tokens) <= room
    assert len(tokens) > room - 4  # the cut may make the last word other tokens
    assert vocabulary.detokenize(tokens).endswith(TAIL)


def test_a_cut_inside_a_character_leaves_it_out(vocabulary: Model) -> None:
    document = "☃" * 20  # three bytes, a token each in this vocabulary
    for most in (7, 8, 9):
        text = vocabulary.detokenize(SummaryPrompts(vocabulary, False, most, WINDOW).encode(document))
        assert text == f"{HEAD}{'☃' * (most // 3)}{TAIL}"


def test_a_window_without_room_is_refused(gguf: Path) -> None:
    with pytest.raises(UsageError, match="window of 1,024 tokens has no room") as refusal:
        rouge(gguf, [DATA], max_output=WINDOW - 60)
    assert "`max_output`" in str(refusal.value.hint)


@pytest.mark.parametrize("options", [{"max_input": 0}, {"max_output": 0}])
def test_counts_out_of_range_are_refused(gguf: Path, options: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="is 0"):
        rouge(gguf, [DATA], **options)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"document": "a"}, "line 7 lacks 'summary'"),
        ({"summary": "a"}, "line 7 lacks 'document'"),
        ({"report": 3, "summary": "a"}, "line 7: 'report' is 3"),
        ({"report": "a", "summary": " "}, "line 7: 'summary' is \" \""),
    ],
)
def test_a_record_that_is_no_article_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(TextError, match=message):
        parse_example(JsonlRecord(Path("a.jsonl"), 7, values))


# ---- summaries ---------------------------------------------------------------------------------------


def test_summaries_are_sampled_as_in_the_paper_and_scored(gguf: Path) -> None:
    report = rouge(gguf, [DATA], **SMALL, seed=5)
    found = report.results["readings"]["as shipped"]
    score = load_rouge_scorer()
    with (
        Model.open(gguf) as model,
        Context(model, ContextOptions(length=WINDOW, threads=1)) as context,
        context.sequence() as session,
    ):
        for number, summary in enumerate(found["summaries"]):
            prompt = model.tokenize(f"{HEAD}{documents()[number]}{TAIL}")
            session.truncate(0)
            session.prefill(prompt)
            sampling = SamplingParams(temperature=0.5, top_k=0, top_p=0.95, min_p=0, seed=5 + number)
            generated = list(session.generate(sampling, 24))
            assert (summary["prompt_tokens"], summary["tokens"]) == (len(prompt), len(generated))
            assert summary["text"] == model.detokenize(generated).strip()
            assert summary["line"] == number + 1
            reference = json.loads(DATA.read_text(encoding="utf-8").splitlines()[number])["summary"]
            assert {name: summary[name] for name in ROUGE_MEASURES} == score(reference, summary["text"])
    for name in ROUGE_MEASURES:
        values = [summary[name] for summary in found["summaries"]]
        mean = found["mean"][name]
        assert mean["mean"] == pytest.approx(statistics.fmean(values))
        assert min(values) <= mean["low"] <= mean["mean"] <= mean["high"] <= max(values)
    (row,) = report.tables[0].rows
    assert row[:3] == ("as shipped", 3, found["mean"]["rouge1"]["mean"])
    assert (report.settings["temperature"], report.settings["top_p"]) == (0.5, 0.95)
    assert report.settings["seed"] == 5
    json.dumps(report.as_data())


def test_one_seed_gives_one_report_and_another_other_summaries(gguf: Path) -> None:
    first, again, other = (rouge(gguf, [DATA], **SMALL, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first.results != other.results


def test_an_interrupted_run_resumes(gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = rouge(gguf, [DATA], **SMALL)
    decode, left = Context.decode, 30

    def interrupted(self: Context, *arguments: Any, **more: Any) -> bool:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return decode(self, *arguments, **more)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Context, "decode", interrupted)
        rouge(gguf, [DATA], **SMALL)
    (journal,) = cache.glob("rouge-*.jsonl")
    assert len(journal.read_text().splitlines()) == 1  # a prompt and 23 more tokens are a document
    assert rouge(gguf, [DATA], **SMALL) == whole


def test_the_command(gguf: Path) -> None:
    options = ["--max-output", "4", "--max-input", "50", "--chat", "--compare", "linear:2", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "pigguf", "eval", "rouge", str(gguf), str(DATA), *options],
        capture_output=True,
        text=True,
        check=True,
    )
    data = json.loads(done.stdout)
    assert list(data["results"]["readings"]) == ["as shipped", "linear:2"]
    assert data["settings"]["chat"] is True
    assert data["settings"]["prompt"] == f"{HEAD}{{document}}{TAIL}"
    assert {len(each["summaries"]) for each in data["results"]["readings"].values()} == {3}
