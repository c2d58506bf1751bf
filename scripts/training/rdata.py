"""Read character vectors from an R package's data: lazy-load databases (Rdata.rdx + Rdata.rdb), no R needed.

An .rdx is a gzipped serialised list whose `variables` map a name to (offset, length) in the .rdb; there
each object is its size (4 bytes, big-endian) and a zlib stream. Both hold R's XDR serialisation, version 2
or 3 (R Internals, "Serialization Formats"). Only what data of texts needs is read; other types are refused.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

SYMBOL, PAIRLIST, CHARS, LOGICALS, INTEGERS, REALS, STRINGS, LIST = 1, 2, 9, 10, 13, 14, 16, 19
NIL, REFERENCE = 254, 255
HAS_ATTRIBUTES, HAS_TAG = 1 << 9, 1 << 10


def texts(database: Path) -> dict[str, list[str]]:
    """Read every character vector of a lazy-load database (path without suffix): name -> lines."""
    index = _Reader(zlib.decompress(database.with_suffix(".rdx").read_bytes(), wbits=47)).document()
    data = database.with_suffix(".rdb").read_bytes()
    found = {}
    for name, (offset, length) in index["variables"].items():
        value = _Reader(zlib.decompress(data[offset + 4 : offset + length])).document()
        if isinstance(value, list) and all(isinstance(line, str) for line in value):
            found[name] = value
    return found


class _Reader:
    """Decode one serialized object: vectors become lists, named vectors and pairlists dictionaries."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.symbols: list[str] = []

    def document(self) -> Any:
        magic, version, _, _ = self._unpack(">2siii")
        if magic != b"X\n" or version not in (2, 3):
            raise ValueError(f"not R's XDR serialisation, version 2 or 3: {magic!r}, version {version}")
        if version == 3:
            self._take(self._int())  # the native encoding's name
        return self._item()

    def _item(self) -> Any:
        flags = self._int()
        kind = flags & 0xFF
        if kind == NIL:
            return None
        if kind == REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == SYMBOL:
            self.symbols.append(self._item())
            return self.symbols[-1]
        if kind == PAIRLIST:
            return self._pairlist(flags)
        if kind == CHARS:
            length = self._int()
            return None if length == -1 else self._take(length).decode("utf-8")
        values = self._vector(kind)
        names = (self._item() or {}).get("names") if flags & HAS_ATTRIBUTES else None
        return dict(zip(names, values, strict=True)) if names else values

    def _pairlist(self, flags: int) -> dict[str, Any]:
        pairs: dict[str, Any] = {}
        while flags & 0xFF == PAIRLIST:
            if flags & HAS_ATTRIBUTES:
                self._item()
            tag = self._item() if flags & HAS_TAG else ""
            pairs[tag] = self._item()
            flags = self._int()
        return pairs

    def _vector(self, kind: int) -> list[Any]:
        length = self._int()
        if kind in (STRINGS, LIST):
            return [self._item() for _ in range(length)]
        if kind in (LOGICALS, INTEGERS):
            return list(self._unpack(f">{length}i"))
        if kind == REALS:
            return list(self._unpack(f">{length}d"))
        raise ValueError(f"an R object of type {kind} at byte {self.at}, which this does not read")

    def _int(self) -> int:
        return int(self._unpack(">i")[0])

    def _unpack(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(form, self._take(struct.calcsize(form)))

    def _take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise ValueError("the R object ends early")
        self.at += count
        return piece
