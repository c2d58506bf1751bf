"""Training sequences from text files: tokenization and packing.

    *.txt     a document
    *.jsonl   a record a line, in the formats of TRL:
                {"text": ...}                         a document
                {"prompt": ..., "completion": ...}    the loss covers the completion only
                {"messages": [{"role", "content"}]}   by the chat template; the loss covers the assistant's
                                                      messages only

Documents are joined by the EOS token and cut into sequences of exactly `length` tokens. Records with a loss
mask are packed whole, as many into a sequence as fit. Text is never encoded as control tokens: "<|im_end|>"
in a document is encoded as those characters.
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

SequenceKind = Literal["text", "answers"]
RECORD_FORMATS = '{"text"}, {"prompt", "completion"} or {"messages"}'
CHUNK_CHARACTERS = 1 << 20  # documents are tokenized in chunks of about this size, for progress and memory


@dataclass(frozen=True)
class TrainingSequence:
    """A sequence of tokens to train on.

    Attributes:
        tokens: the token ids, (n_tokens,), int32.
        loss_mask: whether the loss covers the prediction of each token, (n_tokens,), bool; False for the
            first.
        kind: "text" if the loss covers all tokens, "answers" if it covers some.
    """

    tokens: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    kind: SequenceKind


@dataclass(frozen=True)
class TokenizedRecord:
    """A record whose loss covers only some tokens.

    Attributes:
        tokens: the token ids.
        loss_mask: whether the loss covers each token.
        location: the file and line, for error messages.
    """

    tokens: list[int]
    loss_mask: list[bool]
    location: str


def load_training_sequences(
    paths: Sequence[Path], directory: Path, vocab: Vocab, length: int, progress: Progress = SILENT
) -> list[TrainingSequence]:
    """Read text files and return their training sequences, documents first.

    Args:
        paths: the files; the suffix determines the format.
        directory: the checkpoint's directory, for its tokenizer.
        vocab: the checkpoint's vocabulary.
        length: the tokens of a sequence, and the most tokens of a record.
        progress: receives one stage, in bytes read.

    Raises:
        ReadError: if a file cannot be read.
        UsageError: if a file is not UTF-8 text.
        TextError: if a file is not in the format of its suffix, a record is longer than a sequence, or all
            documents together are shorter than one.
        TokenizerError: if the tokenizer or its chat template is not supported.
    """
    tokenizer = _RecordTokenizer(directory, vocab)
    documents: list[int] = []
    records: list[TokenizedRecord] = []
    with stage(progress, "reading text", sum(_file_size(path) for path in paths), "bytes"):
        for path in paths:
            if path.suffix != ".jsonl":
                documents += tokenizer.encode_document(path, progress)
                continue
            for item in tokenizer.encode_records(path):
                if isinstance(item, TokenizedRecord):
                    records.append(item)
                else:
                    documents += item
            progress.advance(_file_size(path))
    return [
        *_cut_documents(documents, length, vocab, paths, bool(records)),
        *_pack_records(records, length),
    ]


class _RecordTokenizer:
    """Encodes documents and records with the checkpoint's own tokenizer."""

    def __init__(self, directory: Path, vocab: Vocab) -> None:
        self._encode = load_reference_encoder(directory, parse_special=False)
        self._encode_rendered = load_reference_encoder(directory)
        self._end = vocab.special_ids["eos"] if "eos" in vocab.special_ids else vocab.eog_ids[0]
        self._control_tokens = [
            text for text, kind in zip(vocab.tokens, vocab.types, strict=True) if kind == TokenType.CONTROL
        ]
        self._template = vocab.chat_template and ChatTemplate(
            vocab.chat_template,
            bos_token=vocab.special_token("bos") or "",
            eos_token=vocab.special_token("eos") or "",
        )

    def encode_document(self, path: Path, progress: Progress) -> list[int]:
        """Return the token ids of a text file, with EOS at the end; none if it is empty."""
        tokens: list[int] = []
        text = _read_text(path)
        for start, stop in _chunk_ranges(text):
            tokens += self._encode(text[start:stop])
            progress.advance(len(text[start:stop].encode()))
        return [*tokens, self._end] if tokens else []

    def encode_records(self, path: Path) -> Iterator[TokenizedRecord | list[int]]:
        """Yield the records of a JSON lines file; documents as token ids with EOS at the end."""
        for number, record in parse_json_lines(_read_text(path), str(path), f"a line is {RECORD_FORMATS}"):
            yield self._encode_record(record, f"{path}, line {number}")

    def _encode_record(self, record: Mapping[str, Any], location: str) -> TokenizedRecord | list[int]:
        keys = set(record)
        if keys == {"text"}:
            return [*self._encode(_get_text(record, "text", location)), self._end]
        if keys == {"prompt", "completion"}:
            prompt = self._encode(_get_text(record, "prompt", location))
            completion = [*self._encode(_get_text(record, "completion", location)), self._end]
            loss_mask = [False] * len(prompt) + [True] * len(completion)
            return TokenizedRecord(prompt + completion, loss_mask, location)
        if keys == {"messages"}:
            return self._encode_conversation(record["messages"], location)
        raise TextError(f"{location}: the keys are {sorted(keys)}", f"a record is {RECORD_FORMATS}")

    def _encode_conversation(self, messages: Any, location: str) -> TokenizedRecord:
        """Render a conversation turn by turn, with the loss on what the template adds for an answer."""
        self._check_messages(messages, location)
        assert isinstance(self._template, ChatTemplate)
        tokens: list[int] = []
        loss_mask: list[bool] = []
        encoded = ""  # the rendered text that `tokens` are
        for index, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            prompt = self._template.render(messages[:index], add_generation_prompt=True)
            answered = self._template.render(messages[: index + 1], add_generation_prompt=False)
            if not (prompt.startswith(encoded) and answered.startswith(prompt)):
                raise TextError(
                    f"{location}: the chat template renders message {index + 1} differently "
                    "once it is answered",
                    "the loss cannot be limited to the answers: give the conversations as text",
                )
            for text, in_loss in ((prompt[len(encoded) :], False), (answered[len(prompt) :], True)):
                new_tokens = self._encode_rendered(text)
                tokens += new_tokens
                loss_mask += [in_loss] * len(new_tokens)
            encoded = answered
        return TokenizedRecord(tokens, loss_mask, location)

    def _check_messages(self, messages: Any, location: str) -> None:
        if not self._template:
            raise TextError(
                f"{location}: a record has messages, but the checkpoint has no chat template",
                "give plain text",
            )
        is_valid = isinstance(messages, list) and all(
            isinstance(m, dict)
            and set(m) == {"role", "content"}
            and all(isinstance(value, str) for value in m.values())
            for m in messages
        )
        if not is_valid or not any(message["role"] == "assistant" for message in messages):
            raise TextError(
                f"{location}: messages are not a list of roles and contents with an answer of the assistant",
                '"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]',
            )
        for message in messages:
            for text in self._control_tokens:
                if text in message["content"]:
                    raise TextError(
                        f"{location}: a message contains {text!r}, which would be encoded as a control token",
                        "remove it from the message",
                    )


def _cut_documents(
    tokens: list[int], length: int, vocab: Vocab, paths: Sequence[Path], has_records: bool
) -> list[TrainingSequence]:
    """Cut joined documents into sequences of exactly `length` tokens; the remainder is dropped."""
    bos = [vocab.special_ids["bos"]] if vocab.add_bos and "bos" in vocab.special_ids else []
    step = length - len(bos)
    if len(tokens) < step and (tokens or not has_records):
        names = ", ".join(str(path) for path in paths[:3])
        raise TextError(
            f"the text has {len(tokens):,} tokens and a sequence takes {length:,} ({names})",
            "give more text, or a smaller `sequence_length` with `position_skipping`",
        )
    loss_mask = np.ones(length, dtype=np.bool_)
    loss_mask[0] = False
    return [
        TrainingSequence(np.array(bos + tokens[start : start + step], dtype=np.int32), loss_mask, "text")
        for start in range(0, len(tokens) - step + 1, step)
    ]


def _pack_records(records: Iterable[TokenizedRecord], length: int) -> Iterator[TrainingSequence]:
    """Pack whole records into sequences of at most `length` tokens, in order."""
    tokens: list[int] = []
    loss_mask: list[bool] = []
    for record in records:
        if len(record.tokens) > length:
            raise TextError(
                f"{record.location}: {len(record.tokens):,} tokens, and a sequence takes {length:,}",
                "shorten the record, or use a larger `sequence_length`",
            )
        if tokens and len(tokens) + len(record.tokens) > length:
            yield _answer_sequence(tokens, loss_mask)
            tokens, loss_mask = [], []
        tokens = tokens + record.tokens
        loss_mask = loss_mask + record.loss_mask
    if tokens:
        yield _answer_sequence(tokens, loss_mask)


def _answer_sequence(tokens: list[int], loss_mask: list[bool]) -> TrainingSequence:
    return TrainingSequence(
        np.array(tokens, dtype=np.int32), np.array([False, *loss_mask[1:]], dtype=np.bool_), "answers"
    )


def _chunk_ranges(text: str) -> Iterator[tuple[int, int]]:
    """Yield ranges that cover a text, split at line ends, so that no word is split."""
    start = 0
    while start < len(text):
        stop = min(len(text), start + CHUNK_CHARACTERS)
        if stop < len(text):
            stop = text.rfind("\n", start + 1, stop) + 1 or stop
        yield start, stop
        start = stop


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise read_error(path, error) from error


def _read_text(path: Path) -> str:
    try:
        return decode_text(path.read_bytes(), str(path))
    except OSError as error:
        raise read_error(path, error) from error


def _get_text(record: Mapping[str, Any], key: str, location: str) -> str:
    value = record[key]
    if not isinstance(value, str) or not value:
        raise TextError(f"{location}: {key} is {value!r}, not text", f"a record is {RECORD_FORMATS}")
    return value
