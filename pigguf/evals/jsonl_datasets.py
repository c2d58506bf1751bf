"""Data sets in JSON lines: one object a line, with its file and line number for error messages.

Empty lines are skipped. What the keys mean is up to the evaluation (multiple_choice_formats.py, rouge.py).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text, parse_json_lines, preview_json_value
from pigguf.errors import TextError, UsageError

T = TypeVar("T")
_FORMAT_HINT = "give a file of JSON lines: an object a line"
_TYPE_NAMES: dict[type, str] = {str: "a text", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class JsonlRecord:
    """The JSON object of one line.

    Attributes:
        path: the file.
        line: the line number, from 1.
        values: the object's keys and values.
    """

    path: Path
    line: int
    values: Mapping[str, Any]

    @property
    def location(self) -> str:
        """The file and line number, as error messages name them."""
        return f"{self.path}, line {self.line}"

    def get(self, key: str, kind: type[T]) -> T:
        """Return the value of a key, which must be of type `kind`: str, bool or list.

        Raises:
            TextError: if the key is missing or its value has another type.
        """
        value = self.values.get(key)
        if type(value) is not kind:
            raise self.value_error(key, _TYPE_NAMES[kind])
        return value

    def get_text(self, key: str) -> str:
        """Return the value of a key, which must be a non-blank string.

        Raises:
            TextError: if the key is missing, or its value is not a string or is blank.
        """
        text = self.get(key, str)
        if not text.strip():
            raise self.value_error(key, "a text that is not blank")
        return text

    def value_error(self, key: str, expected: str) -> TextError:
        """Return the error to raise if a key is missing or its value is not what is expected."""
        if key not in self.values:
            return TextError(f"{self.location} lacks {key!r}", f"it should hold {expected}")
        value = preview_json_value(self.values[key])
        return TextError(f"{self.location}: {key!r} is {value}", f"it should hold {expected}")


@dataclass(frozen=True)
class JsonlDataset(Generic[T]):
    """The parsed items of one file, in its order.

    Attributes:
        path: the file.
        sha256: the hash of its bytes.
        items: what the records were parsed into.
    """

    path: Path
    sha256: str
    items: tuple[T, ...]

    def as_data(self) -> dict[str, Any]:
        """Return how a report's settings name the data set."""
        return {"name": str(self.path), "sha256": self.sha256, "items": len(self.items)}


def load_datasets(files: Sequence[str | Path], parse: Callable[[JsonlRecord], T]) -> list[JsonlDataset[T]]:
    """Read files of JSON lines and parse each record.

    Args:
        files: the paths.
        parse: turns a record into an item, or raises a TextError.

    Raises:
        UsageError: if there is no file, or a file is not UTF-8 text.
        ReadError: if a file cannot be read.
        TextError: if a line is not a JSON object, or a file has no records; and what `parse` raises.
    """
    if isinstance(files, (str, os.PathLike)) or not files:
        raise UsageError(f"the data sets are {files!r}", "give a sequence of one or more files")
    return [_load_dataset(Path(file), parse) for file in files]


def _load_dataset(path: Path, parse: Callable[[JsonlRecord], T]) -> JsonlDataset[T]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    lines = parse_json_lines(decode_text(data, str(path)), str(path), _FORMAT_HINT)
    items = tuple(parse(JsonlRecord(path, number, values)) for number, values in lines)
    if not items:
        raise TextError(f"{path} holds no records", _FORMAT_HINT)
    return JsonlDataset(path, hashlib.sha256(data).hexdigest(), items)
