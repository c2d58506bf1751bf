"""Text -> training sequences.

    *.txt     one document of prose
    *.jsonl   a record a line, in the forms that TRL reads:
                {"text": ...}                         as a document of prose
                {"prompt": ..., "completion": ...}    only the completion counts
                {"messages": [{"role", "content"}]}   by the chat template; only the assistant's words count

Documents are packed: joined by the end token and cut every `length` tokens. Records whose words count
only in part are packed whole, one behind the other as long as they fit. No text acts as control tokens:
"<|im_end|>" in a document is read as those characters.
Left out: downloading, cleaning, other formats.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text, parse_json_lines
from pigguf.errors import TextError
from pigguf.progress import SILENT, Progress, stage
from pigguf.tokenizer import ChatTemplate, TokenType, Vocab, load_reference_encoder

Kind = Literal["text", "answers"]
RECORD_FORMATS = '{"text"}, {"prompt", "completion"} or {"messages"}'
CHUNK_CHARACTERS = 1 << 20  # a document is tokenized in pieces of about so much, for progress and memory


@dataclass(frozen=True)
class TrainingSequence:
    """Tokens that are trained on together.

    Attributes:
        tokens: (n,) int32.
        counts: (n,) bool: whether the loss counts how well the token was predicted; never the first.
        kind: "text" where all tokens count, "answers" where only some do.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    kind: Kind


@dataclass(frozen=True)
class _Record:
    tokens: list[int]
    counts: list[bool]
    where: str


def load_training_sequences(
    paths: Sequence[Path], directory: Path, vocab: Vocab, length: int, progress: Progress = SILENT
) -> list[TrainingSequence]:
    """All sequences that the files give, in the files' order.

    Args:
        paths: files; their endings say what they hold.
        directory: the checkpoint's, for its tokenizer.
        length: tokens of a sequence, the most a record may have.
        progress: told of the bytes read, one stage.

    Raises:
        ReadError: a file cannot be read.
        UsageError: a file is no UTF-8 text.
        TextError: a file is not what its ending says, holds a record that is longer than a sequence, or all
            prose together is shorter than one.
        TokenizerError: the tokenizer or its chat template is not understood.
    """
    reader = _Reader(directory, vocab)
    prose: list[int] = []
    records: list[_Record] = []
    with stage(progress, "reading text", sum(_size(path) for path in paths), "bytes"):
        for path in paths:
            if path.suffix == ".jsonl":
                for item in reader.records(path):
                    if isinstance(item, list):
                        prose += item
                    else:
                        records.append(item)
            else:
                prose += reader.document(path, progress)
                continue
            progress.advance(_size(path))
    return [*_cut(prose, length, vocab, paths, bool(records)), *_packed(records, length)]


class _Reader:
    """Tokenizes documents and records as the checkpoint's tokenizer does."""

    def __init__(self, directory: Path, vocab: Vocab) -> None:
        self._encode = load_reference_encoder(directory, parse_special=False)
        self._encode_rendered = load_reference_encoder(directory)
        self._end = vocab.special_ids["eos"] if "eos" in vocab.special_ids else vocab.eog_ids[0]
        self._control = [
            text for text, kind in zip(vocab.tokens, vocab.types, strict=True) if kind == TokenType.CONTROL
        ]
        self._template = vocab.chat_template and ChatTemplate(
            vocab.chat_template, bos_token=vocab.special_token("bos") or "", eos_token=vocab.special_token("eos") or ""
        )

    def document(self, path: Path, progress: Progress) -> list[int]:
        tokens: list[int] = []
        text = _read(path)
        for start, stop in _pieces(text):
            tokens += self._encode(text[start:stop])
            progress.advance(len(text[start:stop].encode()))
        return [*tokens, self._end] if tokens else []

    def records(self, path: Path) -> Iterator[_Record | list[int]]:
        for number, record in parse_json_lines(_read(path), str(path), f"a line is {RECORD_FORMATS}"):
            yield self._record(record, f"{path}, line {number}")

    def _record(self, record: Mapping[str, Any], where: str) -> _Record | list[int]:
        keys = set(record)
        if keys == {"text"}:
            return [*self._encode(_text(record, "text", where)), self._end]
        if keys == {"prompt", "completion"}:
            prompt = self._encode(_text(record, "prompt", where))
            completion = [*self._encode(_text(record, "completion", where)), self._end]
            return _Record(prompt + completion, [False] * len(prompt) + [True] * len(completion), where)
        if keys == {"messages"}:
            return self._conversation(record["messages"], where)
        raise TextError(f"{where}: the keys are {sorted(keys)}", f"a record is {RECORD_FORMATS}")

    def _conversation(self, messages: Any, where: str) -> _Record:
        self._check_messages(messages, where)
        assert isinstance(self._template, ChatTemplate)
        tokens: list[int] = []
        counts: list[bool] = []
        done = ""
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            asked = self._template.render(messages[:index], add_generation_prompt=True)
            answered = self._template.render(messages[: index + 1], add_generation_prompt=False)
            if not (asked.startswith(done) and answered.startswith(asked)):
                raise TextError(
                    f"{where}: the chat template writes message {index + 1} differently once it is answered",
                    "the loss cannot be laid on the answers alone: give the conversations as text",
                )
            for text, counted in ((asked[len(done) :], False), (answered[len(asked) :], True)):
                piece = self._encode_rendered(text)
                tokens += piece
                counts += [counted] * len(piece)
            done = answered
        return _Record(tokens, counts, where)

    def _check_messages(self, messages: Any, where: str) -> None:
        if not self._template:
            raise TextError(f"{where}: messages, and the checkpoint has no chat template", "give plain text")
        sound = isinstance(messages, list) and all(
            isinstance(m, dict)
            and set(m) == {"role", "content"}
            and all(isinstance(value, str) for value in m.values())
            for m in messages
        )
        if not sound or not any(message["role"] == "assistant" for message in messages):
            raise TextError(
                f"{where}: messages are not a list of roles and contents with an answer of the assistant",
                '"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
            )
        for message in messages:
            for text in self._control:
                if text in message["content"]:
                    raise TextError(
                        f"{where}: a message holds {text!r}, which the model reads as a control token",
                        "take it out of the message",
                    )


def _cut(
    prose: list[int], length: int, vocab: Vocab, paths: Sequence[Path], has_records: bool
) -> list[TrainingSequence]:
    """Sequences of exactly `length` tokens; what is left over at the end is too short to be one."""
    begin = [vocab.special_ids["bos"]] if vocab.add_bos and "bos" in vocab.special_ids else []
    step = length - len(begin)
    if len(prose) < step and (prose or not has_records):
        names = ", ".join(str(path) for path in paths[:3])
        raise TextError(
            f"the text has {len(prose):,} tokens and a sequence takes {length:,} ({names})",
            "give more text, or a shorter --sequence-length with --position-skipping",
        )
    counts = np.ones(length, dtype=np.bool_)
    counts[0] = False
    return [
        TrainingSequence(np.array(begin + prose[start : start + step], dtype=np.int32), counts, "text")
        for start in range(0, len(prose) - step + 1, step)
    ]


def _packed(records: Iterable[_Record], length: int) -> Iterator[TrainingSequence]:
    """Records one behind the other, each whole, in sequences of at most `length` tokens."""
    tokens: list[int] = []
    counts: list[bool] = []
    for record in records:
        if len(record.tokens) > length:
            raise TextError(
                f"{record.where}: {len(record.tokens):,} tokens, and a sequence takes {length:,}",
                "shorten the record, or take a longer --sequence-length",
            )
        if tokens and len(tokens) + len(record.tokens) > length:
            yield _answers(tokens, counts)
            tokens, counts = [], []
        tokens = tokens + record.tokens
        counts = counts + record.counts
    if tokens:
        yield _answers(tokens, counts)


def _answers(tokens: list[int], counts: list[bool]) -> TrainingSequence:
    return TrainingSequence(
        np.array(tokens, dtype=np.int32), np.array([False, *counts[1:]], dtype=np.bool_), "answers"
    )


def _pieces(text: str) -> Iterator[tuple[int, int]]:
    """Ranges that cover a text, cut at line ends so that no word is cut."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + CHUNK_CHARACTERS)
        if stop < len(text):
            stop = text.rfind("\n", start + 1, stop) + 1 or stop
        yield start, stop
        start = stop


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise read_error(path, error) from error


def _read(path: Path) -> str:
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise read_error(path, error) from error


def _text(record: Mapping[str, Any], key: str, where: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value:
        raise TextError(f"{where}: {key} is {value!r}, not text", f"a record is {RECORD_FORMATS}")
    return value
