"""The model that an evaluation measures: a GGUF file, a position variant, and how the engine runs it.

    model = ModelUnderTest.from_file("model.gguf", EngineConfig(cache_k="q8_0", cache_v="q8_0"))
    with model.open_session(8192) as session:
        ...
    model.variants(["linear:4"], window=8192)      the file as shipped, and under other rope settings

Not here: what is measured (perplexity.py, passkey.py and so on), and the syntax of variants
(position_variants.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pigguf.errors import ContextOverflow
from pigguf.evals.file_hash import sha256_of_shards
from pigguf.evals.position_variants import PositionVariant, parse_variants
from pigguf.gguf_io import GGUFFile, read_header
from pigguf.gguf_io.metadata import get_value
from pigguf.inference.engine import Context, ContextOptions, Model, Session
from pigguf.inference.rpc.client import connect_or_none
from pigguf.inference.run_config import EngineConfig
from pigguf.progress import SILENT, Progress
from pigguf.quantization import RECIPES
from pigguf.rope import Positions, rope_from_metadata


@dataclass(frozen=True)
class ModelUnderTest:
    """A GGUF file under one position variant.

    Attributes:
        file: its header.
        sha256: the hash of the file in hex; that of a split file is the hash of its shards' hashes.
        engine: how the engine runs the model.
        variant: the rope settings; by default the file's own.
    """

    file: GGUFFile
    sha256: str
    engine: EngineConfig = field(default_factory=EngineConfig)
    variant: PositionVariant = field(default_factory=PositionVariant)

    @classmethod
    def from_file(
        cls, path: str | Path, engine: EngineConfig | None = None, progress: Progress = SILENT
    ) -> ModelUnderTest:
        """Read a file's header and hash it, unless its hash is cached.

        Args:
            path: a GGUF file, or the first shard of a split one.
            engine: how the engine is to run it; None is the default configuration.
            progress: receives a stage "hashing", in bytes, for each file whose hash is not cached.

        Raises:
            ReadError: if the file cannot be read.
            GGUFError: if it is not a GGUF file.
            OutputError: if the cache directory cannot be written.
        """
        file = read_header(path)
        return cls(file, sha256_of_shards(file.shards, progress), engine or EngineConfig())

    def with_variant(self, variant: PositionVariant) -> ModelUnderTest:
        """Return the same file under another variant."""
        return replace(self, variant=variant)

    def variants(self, names: Sequence[str], window: int) -> list[ModelUnderTest]:
        """Return the file as shipped, followed by the named variants (see `parse_variants`).

        Raises:
            UsageError: if a name is not valid, or no override can replace the file's rope settings.
        """
        return [self.with_variant(variant) for variant in parse_variants(names, self.file, window)]

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.file.path

    @property
    def context_length(self) -> int:
        """The context window that the file states, in tokens."""
        return self.file_rope.context_length

    @property
    def file_rope(self) -> Positions:
        """The rope settings that the file states, whatever the variant is."""
        return rope_from_metadata(self.file.metadata, self.file.architecture)

    def supports_window(self, n_tokens: int) -> bool:
        """Return whether a window fits: the file's own, the override's, or any if the override has none."""
        return n_tokens <= self._max_window(n_tokens)

    def check_window(self, n_tokens: int) -> None:
        """Raise if a window is longer than the model supports.

        Raises:
            ContextOverflow: if it is.
        """
        if not self.supports_window(n_tokens):
            raise ContextOverflow(
                f"a window of {n_tokens:,} tokens is beyond the {self._max_window(n_tokens):,} that "
                f"{self.path} is made for",
                "use smaller windows, or evaluate it beyond its window with `compare=none` or "
                "`compare=linear:F`",
            )

    @contextmanager
    def open(
        self, n_tokens: int, *, sequences: int = 1, batch: int = 512, progress: Progress = SILENT
    ) -> Iterator[Context]:
        """Load the model and create a context; the model is its attribute `model`.

        Args:
            n_tokens: the context size of each sequence.
            sequences: how many sequences the context has.
            batch: the most tokens that are decoded at once.
            progress: receives one stage, "loading".

        Raises:
            ContextOverflow: if the window is longer than the model supports.
            PigError: whatever loading the model and creating a context raise.
        """
        self.check_window(n_tokens)
        rope = self.variant.rope and replace(self.variant.rope, context_length=self._max_window(n_tokens))
        options = ContextOptions(
            length=n_tokens,
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

    @contextmanager
    def open_session(self, n_tokens: int, *, progress: Progress = SILENT) -> Iterator[Session]:
        """Load the model and create a context with one sequence of `n_tokens`; see `open`."""
        with self.open(n_tokens, progress=progress) as context, context.sequence() as session:
            yield session

    def engine_settings(self) -> dict[str, Any]:
        """Return the parts of the engine configuration that change results, for a report's settings."""
        k, v = self.engine.cache_k, self.engine.cache_v
        return {
            "cache_type": k if k == v else f"{k}/{v}",
            "flash_attention": self.engine.flash_attention,
            "gpu_layers": self.engine.gpu_layers,
        }

    def as_data(self) -> dict[str, Any]:
        """Return the facts of the file for a report."""
        return {
            "path": str(self.path),
            "sha256": self.sha256,
            "bytes": self.file.size,
            "architecture": self.file.architecture,
            "type": _quantization_name(self.file),
            "rope": self.file_rope.as_data(),
        }

    def _max_window(self, n_tokens: int) -> int:
        """Return the longest window in tokens if `n_tokens` are requested."""
        if self.variant.rope is None:
            return self.context_length
        return self.variant.rope.context_length or max(n_tokens, self.context_length)


def _quantization_name(file: GGUFFile) -> str:
    """Return the recipe that `general.file_type` states, or the tensor type that most bytes have."""
    number = get_value(file.metadata, "general.file_type", int)
    recipe_name = next((recipe.name for recipe in RECIPES.values() if recipe.file_type == number), None)
    if recipe_name:
        return recipe_name
    sizes: dict[str, int] = {}
    for tensor in file.tensors.values():
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.nbytes
    return max(sizes, key=lambda name: sizes[name])
