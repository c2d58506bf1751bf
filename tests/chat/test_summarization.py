"""Summaries: the prompt of each pass, that the whole document is read, and that map-reduce ends."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.tiny_chat import write_chat_model

import pigguf
from pigguf.chat.summarization import SUMMARY_WORDS, Summarizer, Summary
from pigguf.documents import MAX_CHARACTERS, Document, load_document
from pigguf.errors import ContextOverflow, TextError, UsageError
from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.run_config import RunConfig
from pigguf.progress import Unit

WINDOW = 2048  # bytes, for the tiny model
CONFIG = RunConfig(WINDOW, prompt_cache=False)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_chat_model(tmp_path_factory.mktemp("models") / "tiny.gguf", 1 << 16)


class RecordingSummarizer(Summarizer):
    """Records the prompt of each pass."""

    prompts: list[str]

    def _generate(self, prompt, max_tokens, progress):  # type: ignore[no-untyped-def]
        self.prompts.append(prompt)
        return super()._generate(prompt, max_tokens, progress)


class RecordingProgress:
    """Records the stages, and how much of each was done."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, float]] = []
        self.done: list[float] = []

    def begin(self, stage: str, total: float, unit: Unit) -> None:
        assert unit == "tokens"
        self.stages.append((stage, total))
        self.done.append(0)

    def advance(self, amount: float) -> None:
        self.done[-1] += amount

    def end(self) -> None:
        pass


@pytest.fixture
def model(tiny: Path) -> Iterator[Model]:
    with Model.open(tiny) as model:
        yield model


def summarize(
    model: Model,
    document: Document,
    window: int = WINDOW,
    progress: RecordingProgress | None = None,
    **options: object,
) -> tuple[Summary, list[str]]:
    with Context(model, ContextOptions(length=window, batch=256)) as context, context.sequence() as session:
        summarizer = RecordingSummarizer(session, **options)  # type: ignore[arg-type]
        summarizer.prompts = []
        text = "".join(summarizer.stream(document, progress or RecordingProgress()))
    assert summarizer.summary is not None
    assert summarizer.summary.text == text
    return summarizer.summary, summarizer.prompts


def write_document(path: Path, text: str) -> Document:
    path.write_text(text)
    return load_document(path, MAX_CHARACTERS)


def test_what_fits_is_read_in_one_pass(model: Model, tmp_path: Path) -> None:
    document = write_document(tmp_path / "a.txt", "First paragraph.\n\nSecond one.\n")
    summary, prompts = summarize(model, document, length="short")
    assert prompts == ["First paragraph.\n\nSecond one.\n\nSummarize the text above in about 60 words."]
    assert summary.passes == 1
    assert [(str(part.location), part.summary) for part in summary.parts] == [
        (f"{document.path}:1-3", summary.text)
    ]


def test_a_longer_document_is_read_whole_by_map_reduce(
    model: Model, novel: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = write_document(tmp_path / "novel.txt", novel)
    progress = RecordingProgress()
    with caplog.at_level(logging.WARNING, "pigguf"):
        summary, prompts = summarize(model, document, progress=progress, length=50)
    parts = len(summary.parts)
    assert parts > 20
    read = "".join(prompt.split("\n\nSummarize the text above")[0] for prompt in prompts[:parts])
    assert "".join(read.split()) == "".join(novel.split()), "a part of the document was not read"
    lines = [(part.location.first, part.location.last) for part in summary.parts]
    assert all(before[1] < after[0] for before, after in itertools.pairwise(lines))
    for part in summary.parts:
        assert any(part.summary.strip() in prompt for prompt in prompts[parts:])
    assert summary.passes == len(prompts) > parts + 1
    assert "summarizes the parts of one document" in prompts[-1]
    assert caplog.messages == [
        f"{document.path} does not fit into the context window of 2,048 tokens: it is summarized in "
        f"{parts} parts, and the whole from their summaries."
    ]
    assert progress.stages[0][0] == f"summarizing {parts} parts"
    assert [total for _, total in progress.stages] == progress.done


def test_parts_fill_the_window_and_end_where_paragraphs_do(model: Model, novel: str, tmp_path: Path) -> None:
    document = write_document(tmp_path / "novel.txt", novel[:20_000])
    summary, prompts = summarize(model, document, 4096, length=50)
    lengths = [len(prompt) for prompt in prompts[: len(summary.parts) - 1]]
    assert all(4096 * 0.35 < length < 4096 - 256 for length in lengths)
    lines = novel.split("\n")
    assert [lines[part.location.last] for part in summary.parts[:-1]] == [""] * (len(summary.parts) - 1)


def test_a_text_without_borders_is_cut_all_the_same(model: Model, tmp_path: Path) -> None:
    text = "漢" * 1500  # three tokens each, to the tiny model
    summary, prompts = summarize(model, write_document(tmp_path / "a.txt", text), 1024, length=20)
    assert "".join(prompt.split("\n")[0] for prompt in prompts[: len(summary.parts)]) == text


def test_length_and_style_are_asked_for_and_bound_the_answer(model: Model, tmp_path: Path) -> None:
    document = write_document(tmp_path / "a.txt", "Some text.")
    summary, prompts = summarize(model, document, length=7, style="bullets", max_tokens=9)
    assert prompts[0].endswith("Summarize the text above as a list of bullet points, in about 7 words.")
    assert summary.stop_reason == "length"
    assert len(summary.text.encode("utf-8", "replace")) <= 9 * 3
    assert SUMMARY_WORDS["short"] < SUMMARY_WORDS["medium"] < SUMMARY_WORDS["long"]


def test_refusals(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("Some text.")
    with pytest.raises(UsageError, match="length of a summary is 'huge'"):
        pigguf.summarize(tiny, path, length="huge", config=CONFIG)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="length of a summary is 0"):
        pigguf.summarize(tiny, path, length=0, config=CONFIG)
    with pytest.raises(UsageError, match="style of a summary is 'verse'"):
        pigguf.summarize(tiny, path, style="verse", config=CONFIG)  # type: ignore[arg-type]
    with pytest.raises(ContextOverflow, match="128 tokens is too small"):
        pigguf.summarize(tiny, path, config=RunConfig(128, prompt_cache=False))
    path.write_bytes(b"\x89PNG\0")
    with pytest.raises(TextError, match="PNG"):
        pigguf.summarize("missing.gguf", path)


@pytest.mark.slow
def test_the_real_model_keeps_what_a_text_is_about(smollm2_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(
        "The lighthouse of Skomer was built in 1821. Its keeper, Ada Brandt, lives there with an otter.\n\n"
        "In the storm of May the lamp of the lighthouse broke, and three ships were lost. Ada Brandt mended "
        "the lamp with her own hands, and the lighthouse has shone ever since.\n"
    )
    summary = pigguf.summarize(smollm2_gguf, path, length="short", config=CONFIG)
    assert "lighthouse" in summary.text
    assert summary.passes == 1
