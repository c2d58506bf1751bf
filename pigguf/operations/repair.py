"""repair: a GGUF whose keys say the wrong thing -> the same tensors under keys that say the right one.

Nothing is converted again: a new header is written, and the tensor data is copied behind it in one range,
at the speed of the disk. Even in place the file is replaced in one step, or not harmed.

Numbers for positions are reasoned with as in a conversion (rope/decision.py): factor x original window is
the extended window, and what else the file says must fit. For YaRN and LongRoPE the numbers are set as
given, if they fit each other. Keys that say what the tensors are, or how files are cut, stay as they are,
and so does any key without which the engine would not survive the file (inference/engine/load_checks.py).

Left out: tensors, and guessing: what is wrong is lint.py's to say, what holds is the user's.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from pigguf.common.files import atomic_write
from pigguf.errors import CheckpointError, GGUFError, PigError, RopeConflict, UsageError, VerificationFailed
from pigguf.gguf_io import GGUFFile, header_bytes, read_header, read_part
from pigguf.gguf_io.metadata import Kind, Metadata, Typed, f32, u32
from pigguf.inference.engine import load_checks
from pigguf.operations.lint import (
    BASE,
    CONTEXT,
    FACTOR,
    LEGACY,
    ORIGINAL,
    POSITION_KEYS,
    TYPE,
    LintFinding,
    Positions,
    lint,
    position_claims,
)
from pigguf.progress import SILENT, Progress, stage
from pigguf.rope import RopeOverrides, RopeScaling, rope_from_metadata
from pigguf.rope.decision import decide
from pigguf.rope.evidence import LARGEST_BASE
from pigguf.rope.scaling import same

# Keys that a file may lack and whose type is known (gguf-py constants.py); any other new key states its own.
_KNOWN_KINDS: dict[str, Kind] = {
    **dict.fromkeys(
        (
            *("general.name", "general.author", "general.version", "general.organization"),
            *("general.basename", "general.finetune", "general.description", "general.quantized_by"),
            *("general.size_label", "general.license", "general.license.name", "general.license.link"),
            *("general.url", "general.repo_url", "general.source.url", "general.source.repo_url"),
            *("tokenizer.chat_template", "tokenizer.ggml.pre"),
        ),
        "str",
    ),
    **dict.fromkeys((f"tokenizer.ggml.{name}_token_id" for name in ("bos", "eos", "eot", "padding")), "u32"),
    **dict.fromkeys((f"tokenizer.ggml.add_{name}" for name in ("bos_token", "eos_token")), "bool"),
}

_STRUCTURE = {
    "general.architecture": "it says what the tensors are",
    "general.alignment": "the data of the file lies as it says",
    **dict.fromkeys(
        ("split.no", "split.count", "split.tensors.count"), "it says how the model is cut into files"
    ),
}
_PER_TOKEN = tuple(f"tokenizer.ggml.{name}" for name in ("tokens", "scores", "token_type"))
_LONGEST_KEY = 65535  # ggml docs/gguf.md

_TYPE_PREFIX = re.compile(r"(?P<kind>[ui](8|16|32|64)|f32|f64|bool|str)(?P<array>\[\])?:")
_NAMES = {"f32": "a number that f32 holds", "f64": "a number that f64 holds", "bool": "true or false"}
_LARGEST_SINGLE = float(np.finfo(np.float32).max)
_BUG = "this is a bug in pigguf: please report it"
_SET_HINT = (
    "as in --set general.name=Piglet, or with a type: --set my.key=u32:5, --set 'my.list=i32[]:[1, 2]'"
)


@dataclass(frozen=True)
class KeyChange:
    """A key that is changed; `old` is None where it is new, `new` where it goes."""

    key: str
    old: Typed | None
    new: Typed | None


@dataclass(frozen=True)
class RepairResult:
    """What was found, and what was done.

    Attributes:
        source: the file; the first part of a split one.
        path: the file that was written; None where nothing was.
        changes: keys that are, or would be, changed.
        findings: what is wrong with the positions; with changes, what would still be.
        decisions: how the numbers for positions were concluded, a sentence each.
        seconds: how long it took.
    """

    source: Path
    path: Path | None
    changes: tuple[KeyChange, ...]
    findings: tuple[LintFinding, ...]
    decisions: tuple[str, ...]
    seconds: float


def repair(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    rope: RopeOverrides | None = None,
    rope_base: float | None = None,
    set: Mapping[str, str] | None = None,
    remove: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> RepairResult:
    """Say what is wrong with a GGUF's positions, or change its keys.

    Args:
        source: the file; any part of a split one, whose first part is changed.
        output: a copy to write; by default the file itself is replaced.
        rope: numbers for positions; the others are concluded, and written as a conversion would.
        rope_base: the base of the frequencies.
        set: keys with values as text: "8192", "[1, 2]", with a type where the key has none yet: "u32:5".
        remove: keys to take away.
        dry_run: decide everything and write nothing.
        progress: told of the bytes written.

    Raises:
        ReadError: the system refuses to read the source.
        GGUFError: the source is damaged, or would be refused after the change.
        RopeConflict: numbers for positions that contradict each other.
        UsageError: a key that must stay, one that is not there, a value that its type cannot hold.
        ConversionError: the target cannot be written, or does not verify.
    """
    begun = time.monotonic()
    file = read_header(source)
    metadata = _edited(file, set or {}, tuple(remove))
    scaling = None
    if rope is not None or rope_base is not None:
        edited, before = replace(file, metadata=metadata), metadata
        scaling, metadata = _with_positions(edited, rope or RopeOverrides(), rope_base)
        _refuse_said_twice(_changes(before, metadata), {*(set or {}), *remove})
    changes = _changes(file.metadata, metadata)
    wanted = replace(file, metadata=metadata)
    _refuse_unusable(file, wanted, changes)
    target = None
    if not dry_run and (changes or output is not None):
        target = _target(file, output)
        _write(target, read_part(file.path), changes, progress)
    return RepairResult(
        source=file.path,
        path=target,
        changes=changes,
        findings=lint(wanted),
        decisions=scaling.decisions if scaling is not None else (),
        seconds=time.monotonic() - begun,
    )


def _changes(old: Metadata, new: Metadata) -> tuple[KeyChange, ...]:
    keys = dict.fromkeys((*old, *new))
    return tuple(
        KeyChange(key, old.get(key), new.get(key)) for key in keys if not _equal(old.get(key), new.get(key))
    )


def _equal(old: Typed | None, new: Typed | None) -> bool:
    return old is new or old == new  # the same object even where it is not a number, and so unequal to itself


def _applied(metadata: Metadata, changes: Iterable[KeyChange]) -> dict[str, Typed]:
    """The keys with the changes made; a new key stands last."""
    changed = dict(metadata)
    for change in changes:
        if change.new is None:
            del changed[change.key]
        else:
            changed[change.key] = change.new
    return changed


# ---- keys as given -----------------------------------------------------------------------------------


def _edited(file: GGUFFile, edits: Mapping[str, str], removed: tuple[str, ...]) -> dict[str, Typed]:
    metadata = dict(file.metadata)
    for key in (*edits, *removed):
        if key in _STRUCTURE:
            raise UsageError(f"{key} cannot be changed: {_STRUCTURE[key]}", "convert the model again")
    for key in removed:
        if key in edits:
            raise UsageError(f"{key} is both set and removed", "say one of them")
        if key not in metadata:
            raise UsageError(f"{file.path} has no key {key}", _keys_hint(file))
        metadata.pop(key)
    for key, text in edits.items():
        if not key or len(key.encode("utf-8", "replace")) > _LONGEST_KEY:
            raise UsageError(f"{key[:80]!r} cannot be a key", _SET_HINT)
        metadata[key] = _typed(file, key, text)
    for key in _PER_TOKEN:
        old, new = file.metadata.get(key), metadata.get(key)
        if old is not None and (new is None or not new.is_array or len(new.value) != len(old.value)):
            raise UsageError(
                f"{key} must stay, of length {len(old.value)}: the weights have a row a token",
                "convert the checkpoint again with the tokenizer that it should have",
            )
    return metadata


def _keys_hint(file: GGUFFile) -> str:
    return f"pigguf inspect --keys {file.path} lists them"


def _typed(file: GGUFFile, key: str, text: str) -> Typed:
    """A value given as text, in the type that the key must have, has, or is given."""
    known, present = _known_kind(file, key), file.metadata.get(key)
    explicit = _TYPE_PREFIX.match(text)
    if explicit is not None:
        kind, is_array = cast(Kind, explicit["kind"]), explicit["array"] is not None
        text = text[explicit.end() :]
        required = POSITION_KEYS.get(key.removeprefix(f"{file.architecture}."))
        if required is not None and (kind, is_array) != (required, False):
            raise UsageError(
                f"{key} cannot be {kind}{'[]' if is_array else ''}: llama.cpp takes it as {required} alone",
                f"--set {key}={required}:VALUE",
            )
    elif known is not None:
        kind, is_array = known, False
    elif present is not None:
        kind, is_array = present.kind, present.is_array
    else:
        raise UsageError(f"{key} is a new key of an unknown type", _SET_HINT)
    try:
        if is_array:
            listed = json.loads(text)
            if not isinstance(listed, list):
                raise ValueError
            return Typed(kind, tuple(_element(kind, value) for value in listed), is_array=True)
        return Typed(kind, _element(kind, text if kind == "str" else json.loads(text)))
    except (ValueError, RecursionError):
        wanted = (
            f"a JSON array of {kind}" if is_array else _NAMES.get(kind, f"a whole number that {kind} holds")
        )
        raise UsageError(f"{key}: {text[:80]!r} is not {wanted}", _SET_HINT) from None


def _known_kind(file: GGUFFile, key: str) -> Kind | None:
    position = POSITION_KEYS.get(key.removeprefix(f"{file.architecture}."))
    return position or (None if key in file.metadata else _KNOWN_KINDS.get(key))


def _element(kind: Kind, value: Any) -> Any:
    """A value as JSON gives it, checked.

    Raises:
        ValueError: the type does not hold it.
    """
    if kind == "str":
        if isinstance(value, str):
            return value
    elif kind == "bool":
        if isinstance(value, bool):
            return value
    elif isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError
    elif kind in ("f32", "f64"):
        number = _single(float(value)) if kind == "f32" else float(value)
        if math.isfinite(number):
            return number
    elif isinstance(value, int):
        bits, signed = int(kind[1:]), kind[0] == "i"
        if (-(1 << (bits - 1)) if signed else 0) <= value < 1 << (bits - signed):
            return value
    raise ValueError


def _single(number: float) -> float:
    """The value in single precision; infinity where it is too large for it."""
    return f32(number).value if abs(number) <= _LARGEST_SINGLE else math.inf


# ---- positions -----------------------------------------------------------------------------------------


def _with_positions(
    file: GGUFFile, overrides: RopeOverrides, base: float | None
) -> tuple[RopeScaling, dict[str, Typed]]:
    """What the numbers given mean together with the file's own, and the keys that say so."""
    if base is not None and not (1.0 < base < LARGEST_BASE):
        raise RopeConflict(
            f"--rope-base {base:g} is not between 1 and {LARGEST_BASE:g}", "as in --rope-base 10000"
        )
    positions = Positions(file)
    if positions.kind in ("yarn", "longrope") or (positions.by_tensor and overrides.factor is None):
        return _with_given(positions, overrides, base)
    if positions.kind not in (None, "none", "linear") and overrides.factor is None:
        raise RopeConflict(
            f"{file.path}: {positions.full(TYPE)} is {positions.kind!r}, which llama.cpp does not know",
            "--rope-factor F says that it is linear scaling, --rope-factor 1 that there is none",
        )
    try:
        scaling = decide(position_claims(file, overrides, base))
    except CheckpointError:
        raise _no_window(positions) from None
    return scaling, _as_decided(positions, scaling, base)


def _no_window(positions: Positions) -> RopeConflict:
    return RopeConflict(
        f"{positions.file.path}: {positions.full(CONTEXT)} is missing or no length",
        "give the window with --context N",
    )


def _as_decided(positions: Positions, scaling: RopeScaling, base: float | None) -> dict[str, Typed]:
    """The file's keys with those of linear or unscaled positions; what says the same already stays."""
    metadata = dict(positions.file.metadata)
    keys = scaling.to_gguf(positions.architecture)
    if base is None and not positions.has(BASE):
        keys.pop(positions.full(BASE), None)  # llama.cpp's default is not for us to assert
    stale = [LEGACY, *(key for key in POSITION_KEYS if ".yarn_" in key)]
    if scaling.rope_type == "none":
        one = positions.typed(FACTOR) == f32(1.0)
        said = positions.kind == "none" or (positions.kind == "linear" and one)
        stale += [] if one else [FACTOR]
        stale += [] if said else [TYPE]
        stale += [] if positions.typed(ORIGINAL) == u32(scaling.context_length) else [ORIGINAL]
    for key in stale:
        metadata.pop(positions.full(key), None)
    return metadata | keys


def _with_given(
    positions: Positions, overrides: RopeOverrides, base: float | None
) -> tuple[RopeScaling, dict[str, Typed]]:
    """YaRN, LongRoPE and frequencies by tensor: the numbers as given, which must fit each other."""
    factor = overrides.factor or positions.factor
    original = overrides.original_context or positions.whole(ORIGINAL)
    context = overrides.context or positions.whole(CONTEXT)
    if positions.kind == "yarn" and factor is not None and original is not None:
        if overrides.context is None and (overrides.factor or overrides.original_context):
            context = round(original * factor)
        if context is not None and not same(original * factor, context):
            raise RopeConflict(
                f"factor {factor:g}, original window {original} and window {context} contradict each other: "
                f"{original} x {factor:g} is {original * factor:g}",
                f"--rope-factor, --original-context and --context together settle it; "
                f"--set {positions.full(CONTEXT)}={context} sets the window by itself",
            )
    given: dict[str, Typed | None] = {
        CONTEXT: None if context is None else u32(context),
        ORIGINAL: None if original is None else u32(original),
        FACTOR: None if factor is None else f32(factor),
        BASE: None if base is None else f32(base),
    }
    metadata = dict(positions.file.metadata)
    metadata |= {positions.full(key): typed for key, typed in given.items() if typed is not None}
    if overrides.factor is not None:
        metadata.pop(positions.full(LEGACY), None)
    return rope_from_metadata(metadata, positions.architecture), metadata


def _refuse_said_twice(concluded: tuple[KeyChange, ...], said: Collection[str]) -> None:
    for change in concluded:
        if change.key in said:
            raise UsageError(
                f"{change.key} is set by --set or --remove, and by the numbers for positions",
                "leave one of them out",
            )


# ---- refusals and writing ----------------------------------------------------------------------------------


def _refuse_unusable(file: GGUFFile, wanted: GGUFFile, changes: tuple[KeyChange, ...]) -> None:
    """A file that could be used must not become one that cannot, as far as headers tell."""
    for check in (_check_positions, load_checks.check_loadable):
        after = _error(check, wanted)
        if after is not None and _error(check, file) is None:
            raise GGUFError(f"{after.message}: nothing could use the file after this change", after.hint)
    for part in file.parts[1:]:
        there = read_part(part).metadata
        for change in changes:
            if change.key in there:
                raise UsageError(
                    f"{part} holds {change.key} too, and the parts of a model must agree",
                    "join the parts first: llama-gguf-split --merge",
                )


def _check_positions(file: GGUFFile) -> None:
    if f"{file.architecture}.{CONTEXT}" in file.metadata:
        rope_from_metadata(file.metadata, file.architecture)


def _error(check: Callable[[GGUFFile], object], file: GGUFFile) -> PigError | None:
    try:
        check(file)
    except PigError as error:
        return error
    return None


def _target(file: GGUFFile, output: str | os.PathLike[str] | None) -> Path:
    if output is None:
        return file.path
    if len(file.parts) > 1:
        raise UsageError(
            f"{file.path} is one of {len(file.parts)} parts, and a copy of it alone would be no model",
            "copy all parts and repair the copy in place, or join them: llama-gguf-split --merge",
        )
    return Path(output)


def _write(target: Path, part: GGUFFile, changes: tuple[KeyChange, ...], progress: Progress) -> None:
    """The new header, and the old data behind it as one range."""
    header = header_bytes(_applied(part.metadata, changes), tuple(part.tensors.values()))
    data = max(0, part.size - part.data_offset)
    total = len(header) + data
    with atomic_write(target, total) as file:
        with stage(progress, f"writing {target.name}", total, "bytes"):
            file.write(header)
            progress.advance(len(header))
            file.copy(part.path, part.data_offset, data, progress.advance)
        _verify(file.path, part, header)


def _verify(path: Path, part: GGUFFile, header: bytes) -> None:
    """What was written reads back: the same header, and every tensor where it lay in the data."""
    written = read_part(path)
    places = [
        [(tensor, found.offset - file.data_offset) for tensor, found in file.tensors.items()]
        for file in (written, part)
    ]
    whole = written.size - len(header) == max(0, part.size - part.data_offset)
    if header_bytes(written.metadata, tuple(written.tensors.values())) != header or not whole:
        raise VerificationFailed(f"{part.path}: the header reads back as another one", _BUG)
    if places[0] != places[1]:
        raise VerificationFailed(f"{part.path}: the tensors lie elsewhere in the written file", _BUG)
