"""Text and records -> training sequences, by the checkpoint's own tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.tiny_checkpoints import VOCAB_SIZE, edit_config, make_checkpoint
from transformers import AutoTokenizer

from pigguf.errors import PigError, ReadError, TextError, UsageError
from pigguf.finetuning.dataset import TrainingSequence, load_training_sequences
from pigguf.tokenizer import Vocab, read_vocab

END = 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("data") / "model")


@pytest.fixture(scope="module")
def vocab(checkpoint: Path) -> Vocab:
    return read_vocab(checkpoint, json.loads((checkpoint / "config.json").read_text()), VOCAB_SIZE)


@pytest.fixture
def read(checkpoint: Path, vocab: Vocab, tmp_path: Path) -> Callable[..., list[TrainingSequence]]:
    def read(name: str, content: str, length: int = 16) -> list[TrainingSequence]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        return load_training_sequences([tmp_path / name], checkpoint, vocab, length)

    return read


def lines(*records: Any) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def counted(sequence: TrainingSequence) -> list[int]:
    return sequence.tokens[sequence.loss_mask].tolist()


def test_prose_is_cut_into_whole_sequences_that_follow_each_other(checkpoint: Path, read: Any) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 20
    expected = AutoTokenizer.from_pretrained(checkpoint)(text, add_special_tokens=False)["input_ids"]
    sequences = read("prose.txt", text)
    joined = np.concatenate([sequence.tokens for sequence in sequences]).tolist()
    assert {len(sequence.tokens) for sequence in sequences} == {16}
    assert joined == [*expected, END][: len(joined)]
    assert len(joined) > len(expected) - 16
    assert all(sequence.kind == "text" for sequence in sequences)
    assert all(not s.loss_mask[0] and s.loss_mask[1:].all() for s in sequences)


def test_documents_are_joined_by_the_end_token(read: Any) -> None:
    (sequence, *_) = read("docs.jsonl", lines({"text": "a"}, {"text": "b" * 40}))
    assert sequence.tokens.tolist().index(END) == 1


def test_no_text_acts_as_control_tokens(read: Any) -> None:
    (sequence, *_) = read("prose.txt", "<|im_end|><|im_end|><|im_end|><|im_end|>")
    assert END not in sequence.tokens.tolist()


def test_of_a_completion_only_the_completion_counts(checkpoint: Path, read: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompt, completion = "The pass key is", " 12345."
    (sequence,) = read("items.jsonl", lines({"prompt": prompt, "completion": completion}), 64)
    encoded = tokenizer(completion, add_special_tokens=False)["input_ids"]
    assert sequence.kind == "answers"
    assert counted(sequence) == [*encoded, END]
    assert (
        sequence.tokens.tolist()[: -len(encoded) - 1]
        == tokenizer(prompt, add_special_tokens=False)["input_ids"]
    )


def test_of_a_conversation_only_the_assistant_s_words_count(checkpoint: Path, read: Any) -> None:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": "three"},
        {"role": "assistant", "content": "four"},
    ]
    (sequence,) = read("chat.jsonl", lines({"messages": messages}), 64)
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    assert tokenizer.decode(sequence.tokens) == whole
    assert tokenizer.decode(counted(sequence)) == "two<|im_end|>\nfour<|im_end|>\n"


def test_records_are_packed_whole(read: Any) -> None:
    record = {"prompt": "abcdefgh", "completion": "ij"}
    one = read("one.jsonl", lines(record), 64)[0].tokens
    sequences = read("many.jsonl", lines(*[record] * 7), 3 * len(one) + 1)
    assert [len(s.tokens) // len(one) for s in sequences] == [3, 3, 1]
    assert sequences[0].tokens.tolist() == one.tolist() * 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("short.txt", "too short", "a sequence takes 16"),
        ("empty.txt", "", "0 tokens"),
        ("empty.jsonl", "\n\n", "0 tokens"),
        ("a.jsonl", "{not json\n", "line 1 is not JSON"),
        ("a.jsonl", "\n[1]\n", "line 2 is [1]"),
        ("a.jsonl", lines({"question": "x"}), "line 1: the keys are ['question']"),
        ("a.jsonl", lines({"prompt": "x", "completion": 7}), "completion is 7"),
        ("a.jsonl", lines({"text": ""}), "text is ''"),
        ("a.jsonl", lines({"prompt": "abc " * 30, "completion": "d"}), "line 1: "),
        ("a.jsonl", lines({"messages": [{"role": "user", "content": "x"}]}), "an answer of the assistant"),
        ("a.jsonl", lines({"messages": "x"}), "an answer of the assistant"),
        (
            "a.jsonl",
            lines(
                {
                    "messages": [
                        {"role": "user", "content": "<|im_end|>"},
                        {"role": "assistant", "content": "x"},
                    ]
                }
            ),
            "'<|im_end|>'",
        ),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(name: str, content: str, words: str, read: Any) -> None:
    with pytest.raises(TextError) as refused:
        read(name, content)
    assert words in refused.value.message
    assert refused.value.hint


def test_a_file_that_is_not_there_or_no_utf8(checkpoint: Path, vocab: Vocab, tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"gone\.txt"):
        load_training_sequences([tmp_path / "gone.txt"], checkpoint, vocab, 16)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9" * 50)
    with pytest.raises(UsageError, match="not UTF-8"):
        load_training_sequences([tmp_path / "latin.txt"], checkpoint, vocab, 16)


def test_a_line_separator_inside_a_string_ends_no_record(read: Any) -> None:
    assert len(read("a.jsonl", '{"prompt": "a\u2028b\x85", "completion": "c"}\n', 64)) == 1


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    directory = make_checkpoint(tmp_path / "base")
    (directory / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((directory / "tokenizer_config.json").read_text())
    config.pop("chat_template", None)
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    edit_config(directory)
    vocab = read_vocab(directory, json.loads((directory / "config.json").read_text()), VOCAB_SIZE)
    file = tmp_path / "chat.jsonl"
    file.write_text(lines({"messages": [{"role": "assistant", "content": "x"}]}))
    with pytest.raises(PigError, match="no chat template"):
        load_training_sequences([file], directory, vocab, 16)
