"""Texts that would overflow the stack inside llama.cpp's tokenizer."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.tiny_gguf import write_tiny

from pigguf.errors import UsageError
from pigguf.gguf_io.metadata import array, string
from pigguf.inference.engine import Model
from pigguf.inference.engine.large_stack import MAX_RUN, longest_run, run_with_large_stack


def test_runs_are_measured() -> None:
    assert longest_run("") == 0
    assert longest_run("words and words " * 1000) == 0
    assert longest_run("a" * 5000 + " " + "b" * 300) == 5000
    assert longest_run("x" + " " * 700 + "x") == 700


def test_a_harmless_text_stays_on_its_thread_and_a_long_run_does_not() -> None:
    here = threading.get_ident()
    usual = threading.stack_size()
    assert run_with_large_stack("words", threading.get_ident) == here
    assert run_with_large_stack("a" * 1000, threading.get_ident) != here
    assert threading.stack_size() == usual
    with pytest.raises(ZeroDivisionError):
        run_with_large_stack("a" * 1000, lambda: 1 // 0)
    with pytest.raises(UsageError, match="characters in a row"):
        run_with_large_stack("a" * (MAX_RUN + 1), threading.get_ident)


@pytest.mark.parametrize("pre", ["default", "deepseek-coder", "tekken", "llama-bpe", "qwen2"])
def test_a_word_of_a_hundred_thousand_characters_is_tokenized(tmp_path: Path, pre: str) -> None:
    """In a child: where it fails it ends the process."""
    path = write_tiny(
        tmp_path / "m.gguf",
        {
            "tokenizer.ggml.model": string("gpt2"),
            "tokenizer.ggml.merges": array("str", ("a n",)),
            "tokenizer.ggml.pre": string(pre),
        },
    )
    code = (
        "import sys; from pigguf.inference.engine import Model\n"
        "with Model.open(sys.argv[1], vocab_only=True) as model:\n"
        "    for text in ('a', '!', '\\u00e9', ' ', '\\n'): model.tokenize(100_000 * text)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 0


def test_a_long_run_gives_the_tokens_it_always_gives(smollm2_gguf: Path) -> None:
    with Model.open(smollm2_gguf, vocab_only=True) as model:
        word = "aGVsbG8gd29ybGQh" * 100
        assert model._tokenize(word.encode(), False, False) == model.tokenize(word, add_special=False)
        assert model.detokenize(model.tokenize(word)) == word
