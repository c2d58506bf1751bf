"""The llm plugin: through llm's Python API, its command, and in a real terminal."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import llm
import pexpect
import pytest
from support.tiny_chat import write_chat_model

import pigguf
from pigguf.plugins.llm_plugin import GGUFModel

LLM = str(Path(sys.executable).parent / "llm")
QUESTION = "Name the capital of France."
EXACT = {"temperature": 0, "ctx": 512, "max_tokens": 24, "prompt_cache": False}


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[GGUFModel]:
    model = GGUFModel(smollm2_gguf)
    yield model
    model.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return llm's own folder, for this test."""
    monkeypatch.setenv("LLM_USER_PATH", str(tmp_path / "llm"))
    return tmp_path / "llm"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_chat_model(tmp_path / "tiny.gguf", 8192)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [LLM, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=60
    )


# ---- answers -------------------------------------------------------------------------------------


def test_an_answer_equals_the_library_s(model: GGUFModel, smollm2_gguf: Path) -> None:
    with pigguf.open_model(smollm2_gguf, ctx=512) as library:
        expected = "".join(
            library.chat(
                [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
                pigguf.SamplingParams(temperature=0),
                max_tokens=24,
            )
        )
        counts = (library.prompt_tokens, library.answer_tokens)
    response = model.prompt(QUESTION, system="Be brief.", **EXACT)
    pieces = list(response)
    assert "".join(pieces) == expected
    assert len(pieces) > 3
    assert (response.usage().input, response.usage().output) == counts
    assert response.response_json == {"finish_reason": "end"}


def test_a_conversation_goes_on_from_the_cache(model: GGUFModel) -> None:
    conversation = model.conversation()
    first = conversation.prompt(QUESTION, system="You know geography.", **EXACT)
    assert "Paris" in first.text()
    second = conversation.prompt("And of Spain?", **EXACT)
    assert "Madrid" in second.text()
    assert second.usage().input > first.usage().input
    assert second.usage().details["cached_tokens"] >= first.usage().input
    loaded = model._loaded
    conversation.prompt("And of Italy?", **{**EXACT, "ctx": 256}).text()
    assert model._loaded is not loaded
    assert model._loaded is not None
    assert model._loaded.context_length == 256


def test_an_answer_follows_a_schema(model: GGUFModel) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
    }
    assert set(json.loads(model.prompt("Invent a pig.", schema=schema, **EXACT).text())) == {"name", "age"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1}, "temperature is -1.0\nhint: temperature must be 0 or more"),
        ({"ctx": 99_999}, "longer than the 8,192"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_errors_have_hints(model: GGUFModel, options: dict[str, float], message: str) -> None:
    with pytest.raises(llm.ModelError, match="\nhint: ") as error:
        model.prompt(QUESTION, **{**EXACT, **options}).text()
    assert message in str(error.value)


def test_a_prompt_that_does_not_fit_is_refused_with_counts(model: GGUFModel) -> None:
    with pytest.raises(llm.ModelError, match=r"6\d\d tokens do not fit: the window is 512 tokens\nhint: "):
        model.prompt("word " * 600, **EXACT).text()


def test_messages_that_are_not_text_are_refused(model: GGUFModel) -> None:
    result = llm.parts.ToolResultPart(name="weather", output="rain")
    messages = [
        llm.parts.Message("user", [llm.parts.TextPart(QUESTION)]),
        llm.parts.Message("tool", [result]),
    ]
    with pytest.raises(llm.ModelError, match="ToolResultPart, and pigguf supports only text"):
        model.prompt(messages=messages, **EXACT).text()


# ---- the command ---------------------------------------------------------------------------------


def test_models_are_added_and_removed(home: Path, tiny: Path, tmp_path: Path) -> None:
    added = command("pigguf", "add", str(tiny), "--name", "pig")
    assert (added.stdout, added.stderr, added.returncode) == ("pigguf/pig\n", "", 0)
    assert command("pigguf", "add", str(tiny), "--name", "pig").returncode == 0
    assert "pigguf/pig" in command("models").stdout
    answered = command("-m", "pigguf/pig", "Hello", "-o", "max_tokens", "8", "-o", "seed", "1", "--usage")
    assert answered.returncode == 0, answered.stderr
    assert answered.stdout.strip()
    assert "input, 8 output" in answered.stderr
    other = write_chat_model(tmp_path / "other.gguf", 512)
    clash = command("pigguf", "add", str(other), "--name", "pig")
    assert clash.returncode == 1
    assert f"pigguf/pig already is {tiny}" in clash.stderr
    assert "llm pigguf remove pig" in clash.stderr
    assert command("pigguf", "remove", "pigguf/pig").returncode == 0
    assert "pigguf/pig" not in command("models").stdout
    assert tiny.is_file()


@pytest.mark.parametrize("name", ["../out", "a/b", ".."])
def test_a_name_stays_in_the_folder(home: Path, tiny: Path, name: str) -> None:
    refused = command("pigguf", "add", str(tiny), "--name", name)
    assert refused.returncode == 1
    assert "cannot be a model's name" in refused.stderr
    assert not list(home.rglob("*.gguf"))


def test_other_files_and_names_are_refused(home: Path, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("a text")
    assert "not a GGUF file" in command("pigguf", "add", str(tmp_path / "text.gguf")).stderr
    assert "made no model 'text'" in command("pigguf", "remove", "text").stderr


def test_a_missing_file_is_named(home: Path, tiny: Path) -> None:
    command("pigguf", "add", str(tiny))
    tiny.unlink()
    gone = command("-m", "pigguf/tiny", "Hello")
    assert gone.returncode == 1
    assert f"Error: {tiny}" in gone.stderr
    assert "Traceback" not in gone.stderr


def test_ctrl_c_stops_an_answer(home: Path, tiny: Path) -> None:
    command("pigguf", "add", str(tiny))
    terminal = pexpect.spawn(
        LLM,
        ["-m", "pigguf/tiny", "Hello", "-o", "seed", "1"],
        env={**os.environ, "TERM": "xterm"},
        timeout=30,
    )
    terminal.expect(r"[^\r\n]{20}")
    terminal.sendintr()
    terminal.expect("Aborted!")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 1
    assert b"Traceback" not in terminal.before
