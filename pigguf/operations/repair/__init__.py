"""Repair: change the keys of a GGUF file, and keep its tensors.

    repair("model.gguf").findings                                     faults and their fixes; changes nothing
    repair("model.gguf", rope=RopeOverrides(factor=4.0))              changes the file
    apply_fixes("model.gguf", certain_fixes(lint(header)))

Nothing is converted again: a new header is written, and the tensor data is copied behind it in one range, at
the speed of the disk. Even in place the file is replaced in one step, or stays as it was.

    key_edits.py   keys that are set or removed, values as text
    rope_edits.py  rope numbers, and the keys that follow from them

Keys that describe the tensors or the split stay as they are, and so does any key without which the engine
would crash on the file (inference/engine/file_checks.py).

Not here: finding faults (operations/lint), and changing tensors.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from pigguf.common.atomic_write import atomic_write
from pigguf.errors import GGUFError, PigError, UsageError, VerificationFailed
from pigguf.gguf_io import GGUFFile, read_header, read_shard, serialize_header
from pigguf.gguf_io.metadata import TypedValue
from pigguf.inference.engine import file_checks
from pigguf.operations.lint import LintFinding, SuggestedFix, lint
from pigguf.operations.lint.position_keys import CONTEXT_LENGTH
from pigguf.operations.repair.key_edits import KeyChange, edit_keys, key_changes, with_changes
from pigguf.operations.repair.rope_edits import edit_rope
from pigguf.progress import SILENT, Progress, stage
from pigguf.rope import RopeOverrides, rope_from_metadata
from pigguf.rope.overrides import NO_OVERRIDES

__all__ = ["KeyChange", "RepairResult", "apply_fixes", "repair"]

_BUG = "this is a bug in pigguf: please report it"


@dataclass(frozen=True)
class RepairResult:
    """What was found and what was changed.

    Attributes:
        source: The file; the first one of a split model.
        path: The file that was written, or None.
        changes: The keys that are changed, or would be in a dry run.
        findings: The faults in the position keys; after the changes, those that remain.
        decisions: How the rope numbers were derived, one sentence each.
        seconds: How long it took.
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
    rope_theta: float | None = None,
    set: Mapping[str, str | TypedValue] | None = None,
    remove: Iterable[str] = (),
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> RepairResult:
    """Find faults in a GGUF file's position keys, or change its keys.

    Args:
        source: The file; of a split model any file, and the first one is changed.
        output: A copy to write; by default the file itself is replaced.
        rope: Rope numbers to set; the others are derived, and written as a conversion would.
        rope_theta: The rope theta to set.
        set: Keys with their values as text: "8192", "[1, 2]", with a type if the key is new: "u32:5".
        remove: Keys to remove.
        dry_run: Decide everything and write nothing.
        progress: Reports the bytes written.

    Raises:
        ReadError: The system refuses to read the source.
        GGUFError: The source is damaged, or the engine would refuse it after the change.
        RopeConflict: The rope numbers contradict each other.
        UsageError: A key must stay or is not present, or a value does not fit its type.
        ConversionError: The target cannot be written, or does not verify.
    """
    begun = time.monotonic()
    file = read_header(source)
    removed = tuple(remove)
    metadata = edit_keys(file, set or {}, removed)
    decisions: tuple[str, ...] = ()
    if rope is not None or rope_theta is not None:
        edited = replace(file, metadata=metadata)
        scaling, metadata = edit_rope(edited, rope or NO_OVERRIDES, rope_theta)
        decisions = scaling.decisions
        _check_edited_once(key_changes(edited.metadata, metadata), (*(set or {}), *removed))
    changes = key_changes(file.metadata, metadata)
    changed = replace(file, metadata=metadata)
    _check_still_usable(file, changed)
    _check_other_files(file, changes)
    path = None
    if not dry_run and (changes or output is not None):
        path = _output_path(file, output)
        _write(path, read_shard(file.path), changes, progress)
    return RepairResult(
        source=file.path,
        path=path,
        changes=changes,
        findings=lint(changed),
        decisions=decisions,
        seconds=time.monotonic() - begun,
    )


def apply_fixes(
    source: str | os.PathLike[str],
    fixes: Iterable[SuggestedFix],
    output: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    progress: Progress = SILENT,
) -> RepairResult:
    """Apply fixes that `lint` suggests, together, as `repair` with the same numbers and keys would.

    Of two fixes that set the same number or key the later one counts.

    Args:
        source: The file, as for `repair`.
        fixes: The fixes; their conditions must be true.
        output: A copy to write; by default the file itself is replaced.
        dry_run: Decide everything and write nothing.
        progress: Reports the bytes written.

    Raises:
        PigError: As `repair` does.
    """
    rope, rope_theta, edits = NO_OVERRIDES, None, dict[str, TypedValue]()
    for fix in fixes:
        rope = RopeOverrides(
            factor=fix.rope.factor or rope.factor,
            original_context=fix.rope.original_context or rope.original_context,
            context=fix.rope.context or rope.context,
        )
        rope_theta = fix.rope_theta or rope_theta
        edits |= fix.set
    return repair(
        source,
        output,
        rope=None if rope == NO_OVERRIDES else rope,
        rope_theta=rope_theta,
        set=edits,
        dry_run=dry_run,
        progress=progress,
    )


# ---- checks --------------------------------------------------------------------------------------------


def _check_edited_once(from_rope: Iterable[KeyChange], edited: Collection[str]) -> None:
    """Raise UsageError if a key that is set or removed by name also follows from the rope numbers."""
    for change in from_rope:
        if change.key in edited:
            raise UsageError(
                f"{change.key} is given by `set` or `remove`, and follows from the rope numbers too",
                "leave one of them out",
            )


def _check_still_usable(file: GGUFFile, changed: GGUFFile) -> None:
    """Raise GGUFError if a file that can be used could not be after the change, as far as headers show."""
    for check in (_check_rope_keys, file_checks.check_loadable):
        error = _error_of(check, changed)
        if error is not None and _error_of(check, file) is None:
            raise GGUFError(f"{error.message}: no program could use the file after this change", error.hint)


def _check_rope_keys(file: GGUFFile) -> None:
    if f"{file.architecture}.{CONTEXT_LENGTH}" in file.metadata:
        rope_from_metadata(file.metadata, file.architecture)


def _error_of(check: Callable[[GGUFFile], object], file: GGUFFile) -> PigError | None:
    try:
        check(file)
    except PigError as error:
        return error
    return None


def _check_other_files(file: GGUFFile, changes: Iterable[KeyChange]) -> None:
    """Raise UsageError if a later file of a split model has a changed key too: only the first is written."""
    for shard in file.shards[1:]:
        metadata = read_shard(shard).metadata
        for change in changes:
            if change.key in metadata:
                raise UsageError(
                    f"{shard} has the key {change.key} too, and all files of a model must agree",
                    "join the shards first: llama-gguf-split --merge",
                )


# ---- writing -------------------------------------------------------------------------------------------


def _output_path(file: GGUFFile, output: str | os.PathLike[str] | None) -> Path:
    if output is None:
        return file.path
    if len(file.shards) > 1:
        raise UsageError(
            f"{file.path} is one of {len(file.shards)} shards, and a copy of it alone would not be a model",
            "copy all shards and repair the copy in place, or join them: llama-gguf-split --merge",
        )
    return Path(output)


def _write(target: Path, source: GGUFFile, changes: Iterable[KeyChange], progress: Progress) -> None:
    """Write the new header, and the old tensor data behind it as one range."""
    header = serialize_header(with_changes(source.metadata, changes), tuple(source.tensors.values()))
    data_bytes = max(0, source.size - source.data_offset)
    total = len(header) + data_bytes
    with atomic_write(target, total) as file:
        with stage(progress, f"writing {target.name}", total, "bytes"):
            file.write(header)
            progress.advance(len(header))
            file.copy(source.path, source.data_offset, data_bytes, progress.advance)
        _check_written(file.path, source, header)


def _check_written(path: Path, source: GGUFFile, header: bytes) -> None:
    """Raise VerificationFailed unless the header reads back, with every tensor at its offset in the data."""
    written = read_shard(path)
    is_complete = written.size - len(header) == max(0, source.size - source.data_offset)
    if serialize_header(written.metadata, tuple(written.tensors.values())) != header or not is_complete:
        raise VerificationFailed(f"{source.path}: the header that was written reads back differently", _BUG)
    if _data_offsets(written) != _data_offsets(source):
        raise VerificationFailed(f"{source.path}: the tensors are at other offsets in the written file", _BUG)


def _data_offsets(file: GGUFFile) -> list[tuple[str, int]]:
    """Return each tensor's offset within the tensor data, in bytes."""
    return [(name, tensor.offset - file.data_offset) for name, tensor in file.tensors.items()]
