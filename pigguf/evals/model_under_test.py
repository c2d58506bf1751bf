"""What is measured: a GGUF file, how its positions are read, and the engine's options for it.

    subject = Subject.of("model.gguf", EngineConfig(cache_k="q8_0", cache_v="q8_0"))
    with subject.open(8192) as context, context.sequence() as session:
        ...
    subject.under("linear:4", RuntimeRope(factor=4))      the same file, its positions read in another way

The file's hash is kept in the cache directory by path, size and time of change, for hashing tens of
gigabytes takes a minute. Left out: what is measured (perplexity.py and its neighbours), and which
readings of positions have names (baselines.py).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pigguf.common.atomic_write import atomic_write
from pigguf.common.file_io import read_error
from pigguf.errors import ContextOverflow
from pigguf.evals.journal import evals_cache_directory
from pigguf.evals.position_variants import AS_SHIPPED
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.gguf_io.metadata import get
from pigguf.inference.engine import (
    Context,
    ContextOptions,
    Model,
    RuntimeRope,
)
from pigguf.inference.rpc.client import connect_or_none
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress, stage
from pigguf.quantization import RECIPES
from pigguf.rope import RopeScaling, rope_from_metadata

_HASHED_AT_ONCE = 16 << 20


@dataclass(frozen=True)
class ModelUnderTest:
    """A GGUF file under one reading of its positions.

    Attributes:
        file: its header.
        sha256: of all its bytes; of a split one, of its parts' hashes.
        engine: how it is run.
        name: of the reading; "as shipped" is the file's own.
        rope: what the reading says against the file, or None.
    """

    file: GGUFFile
    sha256: str
    engine: EngineConfig = EngineConfig()
    name: str = AS_SHIPPED
    rope: RuntimeRope | None = None

    @classmethod
    def from_file(
        cls, path: str | Path, engine: EngineConfig | None = None, progress: Progress = SILENT
    ) -> ModelUnderTest:
        """The file as it is. Progress is one stage, "hashing", in bytes, where the hash is not known yet.

        Raises:
            ReadError, GGUFError: a file that cannot be read, or is no GGUF.
            OutputError: the cache directory cannot be written.
        """
        file = read_header(path)
        return cls(file, _sha256_of_all(file.parts, progress), engine or EngineConfig())

    def with_variant(self, name: str, rope: RuntimeRope | None) -> ModelUnderTest:
        """The same file, its positions read in another way."""
        return replace(self, name=name, rope=rope)

    @property
    def path(self) -> Path:
        return self.file.path

    @property
    def context_length(self) -> int:
        """The window in tokens that the file itself states."""
        return self.file_rope.context_length

    @property
    def file_rope(self) -> RopeScaling:
        """How the file itself says that positions are read."""
        return rope_from_metadata(self.file.metadata, self.file.architecture)

    def supports_window(self, length: int) -> bool:
        """Whether the model has a window of so many tokens; an override that names none takes any."""
        return length <= self._window_for(length)

    def check_window(self, length: int) -> None:
        """
        Raises:
            ContextOverflow: a window of so many tokens is beyond the model's.
        """
        if not self.supports_window(length):
            raise ContextOverflow(
                f"a window of {length:,} tokens is beyond the {self._window_for(length):,} that "
                f"{self.path} is made for",
                "take smaller windows; --compare none or linear:F measures beyond it",
            )

    @contextmanager
    def open(
        self, length: int, *, sequences: int = 1, batch: int = 512, progress: Progress = SILENT
    ) -> Iterator[Context]:
        """A context for so many tokens in each sequence; its model is `context.model`.

        Args:
            batch: most tokens computed at once.
            progress: one stage, "loading".

        Raises:
            ContextOverflow: a window beyond the model's.
            As Model.open and Context do.
        """
        self.check_window(length)
        rope = self.rope and replace(self.rope, context_length=self._window_for(length))
        options = ContextOptions(
            length=length,
            threads=self.engine.threads,
            batch=batch,
            cache_k=self.engine.cache_k,
            cache_v=self.engine.cache_v,
            flash_attention=self.engine.flash_attention,
            sequences=sequences,
        )
        with (
            connect_or_none(self.engine.workers, self.engine.split) as workers,
            Model.open(
                self.path,
                gpu_layers=self.engine.gpu_layers,
                rope=rope,
                workers=workers,
                progress=progress,
            ) as model,
            Context(model, options) as context,
        ):
            yield context

    def engine_settings(self) -> dict[str, Any]:
        """Return what of the engine's configuration changes results, for a report's settings."""
        k, v = self.engine.cache_k, self.engine.cache_v
        return {
            "cache_type": k if k == v else f"{k}/{v}",
            "flash_attention": self.engine.flash_attention,
            "gpu_layers": self.engine.gpu_layers,
        }

    def as_data(self) -> dict[str, Any]:
        """The file, for a report."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.file.size,
            "architecture": self.file.architecture,
            "type": _type_name(self.file),
            "rope": self.file_rope.as_data(),
        }

    def _window_for(self, length: int) -> int:
        if self.rope is None:
            return self.context_length
        return self.rope.context_length or max(length, self.context_length)


def _type_name(file: GGUFFile) -> str:
    """The recipe that the file says it was made by, or else the type that most of its bytes are in."""
    number = get(file.metadata, "general.file_type", int)
    by_recipe = next((recipe.name for recipe in RECIPES.values() if recipe.file_type == number), None)
    if by_recipe:
        return by_recipe
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])


# ---- the hash ------------------------------------------------------------------------------------


def _sha256_of_all(parts: tuple[Path, ...], progress: Progress) -> str:
    hashes = [_sha256(path, progress) for path in parts]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def _sha256(path: Path, progress: Progress) -> str:
    """The file's hash: computed, or known from before."""
    real = path.resolve()
    try:
        facts = os.stat(real)
        stamp = {"path": str(real), "size": facts.st_size, "mtime_ns": facts.st_mtime_ns}
        note = evals_cache_directory() / f"sha256-{hashlib.sha256(str(real).encode()).hexdigest()[:24]}.json"
        known = _read_note(note)
        if known.get("file") == stamp:
            return str(known["sha256"])
        digest = _digest(real, facts.st_size, progress)
    except OSError as error:
        raise read_error(path, error) from error
    with atomic_write(note) as file:
        file.write(json.dumps({"file": stamp, "sha256": digest}).encode())
    return digest


def _read_note(note: Path) -> dict[str, Any]:
    """What was noted of a file; nothing where the note is missing or damaged."""
    try:
        read = json.loads(note.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return read if isinstance(read, dict) and "sha256" in read else {}


def _digest(path: Path, size: int, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file, stage(progress, "hashing", size, "bytes"):
        while block := file.read(_HASHED_AT_ONCE):
            digest.update(block)
            progress.advance(len(block))
    return digest.hexdigest()
