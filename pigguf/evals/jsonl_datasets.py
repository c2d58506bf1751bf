"""Data sets as JSON lines: an object a line, each with the place it came from, so that an error can name it.

Empty lines are left out. Left out: what the keys mean.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pigguf.common.file_io import read_error
from pigguf.common.text_decoding import decode_text, parse_json_lines, format_json_value
from pigguf.errors import TextError, UsageError

T = TypeVar("T")
_FORM = "give a file of JSON lines: an object a line"
_NAMES: dict[type, str] = {str: "a text", bool: "true or false", list: "a list"}


@dataclass(frozen=True)
class JsonlRecord:
    """The object of one line."""

    path: Path
    line: int
    values: Mapping[str, Any]

    @property
    def location(self) -> str:
        return f"{self.path}, line {self.line}"

    def get(self, key: str, kind: type[T]) -> T:
        """The value of a key, as str, bool or list.

        Raises:
            TextError: the key is missing or holds something else.
        """
        value = self.values.get(key)
        if type(value) is not kind:
            raise self.value_error(key, _NAMES[kind])
        return value

    def get_text(self, key: str) -> str:
        """The text of a key, which is not empty.

        Raises:
            TextError: it is missing, no text, or blank.
        """
        text = self.get(key, str)
        if not text.strip():
            raise self.value_error(key, "a text that is not blank")
        return text

    def value_error(self, key: str, expected: str) -> TextError:
        """What to raise where a key does not hold what it should."""
        if key not in self.values:
            return TextError(f"{self.location} lacks {key!r}", f"it should hold {expected}")
        return TextError(f"{self.location}: {key!r} is {format_json_value(self.values[key])}", f"it should hold {expected}")


@dataclass(frozen=True)
class JsonlDataset(Generic[T]):
    """A file's items in its order, and the file as a report names it."""

    path: Path
    sha256: str
    items: tuple[T, ...]

    def as_data(self) -> dict[str, Any]:
        return {"name": str(self.path), "sha256": self.sha256, "items": len(self.items)}


def load_datasets(files: Sequence[str | Path], item: Callable[[JsonlRecord], T]) -> list[JsonlDataset[T]]:
    """What `item` makes of each record of each file.

    Raises:
        UsageError: no file, or one that is no UTF-8 text.
        ReadError: a file that cannot be read.
        TextError: a line that is no JSON object, a file without any, and what `item` raises.
    """
    if isinstance(files, (str, os.PathLike)) or not files:
        raise UsageError(f"the data sets are {files!r}", "give a sequence of one or more files")
    return [_read(Path(file), item) for file in files]


def _read(path: Path, item: Callable[[JsonlRecord], T]) -> JsonlDataset[T]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise read_error(path, error) from error
    lines = parse_json_lines(decode_text(data, str(path)), str(path), _FORM)
    items = tuple(item(JsonlRecord(path, number, values)) for number, values in lines)
    if not items:
        raise TextError(f"{path} holds no records", _FORM)
    return JsonlDataset(path, hashlib.sha256(data).hexdigest(), items)
