"""Open an adapter directory as PEFT saves it (LoRA), and map its tensors to the base model's tensors.

    with Adapter.open("path/to/adapter") as adapter:
        adapter.changes["model.layers.0.self_attn.q_proj.weight"].lora.scaling

The directory has adapter_config.json and adapter_model.safetensors or .bin: pairs of low-rank matrices, and
whole tensors that were trained too (modules_to_save, biases). LongLoRA saves whole tensors in
trainable_params.bin; they are loaded into the base model before the low-rank matrices are added. A
config.json of the model with a longer context may be there too.

Every tensor must have exactly one use; a tensor without one is an error.
Not here: merging with the base model (adapter_merge.py), and tokenizer files next to an adapter.
Source: peft 0.21's utils/save_and_load.py and tuners/lora/ for names and layouts; LongLoRA's
get_trainable_weights.py.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import numpy as np

from pigguf.checkpoint.adapter_config import (
    ADAPTER_CONFIG_FILE,
    MERGE_WITH_PEFT,
    LoraConfig,
    read_adapter_config,
)
from pigguf.checkpoint.checkpoint import model_name_from_path
from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.resolve_source import SourceFiles, resolve_source
from pigguf.checkpoint.weight_files import WeightFile, open_files
from pigguf.common.json_config import JsonConfig
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import CheckpointError, InvalidTensor, MissingTensor, UnmappedTensor, UnsupportedModel
from pigguf.progress import SILENT, Progress

ADAPTER_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")  # peft prefers the first
LONGLORA_WEIGHTS = "trainable_params.bin"
ADAPTER_FILES = SourceFiles(
    "an adapter",
    config_files=(ADAPTER_CONFIG_FILE, "config.json"),
    weight_layouts=tuple((re.escape(name), re.escape(LONGLORA_WEIGHTS)) for name in ADAPTER_WEIGHT_FILES),
)
PEFT_PREFIX = "base_model.model."

# Role of a tensor -> pattern of its name without the prefix. The name of the adapter ("default") may be part
# of it, as in a state dict that was not saved with peft.
_ROLE_PATTERNS = {
    "lora_A": r"(?P<module>.+)\.lora_A(\.[^.]+)?\.(?P<param>weight)",
    "lora_B": r"(?P<module>.+)\.lora_B(\.[^.]+)?\.(?P<param>weight)",
    "lora_embedding_A": r"(?P<module>.+)\.lora_embedding_A(\.[^.]+)?",
    "lora_embedding_B": r"(?P<module>.+)\.lora_embedding_B(\.[^.]+)?",
    "lora_magnitude_vector": r"(?P<module>.+)\.lora_magnitude_vector(\.(?!weight$)[^.]+)?(\.weight)?",
    "base_replacement": r"(?P<module>.+)\.base_layer\.(?P<param>weight|bias)",
    "replacement": r"(?P<module>.+?)(\.modules_to_save(\.[^.]+)?)?\.(?P<param>weight|bias)",
}


@dataclass(frozen=True)
class LoraUpdate:
    """A low-rank update, scaling * lora_b @ lora_a, of a matrix of shape (n_out, n_in).

    Attributes:
        lora_b: (n_out, rank); for an embedding PEFT's lora_embedding_A, transposed.
        lora_a: (rank, n_in); for an embedding PEFT's lora_embedding_B, transposed.
        scaling: alpha / rank, or alpha / sqrt(rank) with rsLoRA.
        dora_magnitude: (n_out,), the norm of each row after the update (DoRA), or None.
    """

    lora_b: LazyTensor
    lora_a: LazyTensor
    scaling: float
    dora_magnitude: LazyTensor | None = None

    def add_to_rows(self, rows: Array, start: int, stop: int) -> Array:
        """Return rows [start, stop) of the merged matrix.

        Args:
            rows: the base model's rows, (stop - start, n_in), float32.
            start, stop: which rows they are.

        Returns:
            (stop - start, n_in), float32.
        """
        lora_b, lora_a = _float32(self.lora_b.read(start, stop)), _float32(self.lora_a.load())
        with np.errstate(all="ignore"):  # values that are not finite are refused when they are encoded
            merged: Array = rows + np.float32(self.scaling) * (lora_b @ lora_a)
            if self.dora_magnitude is not None:
                norms = np.linalg.norm(merged, axis=1)
                merged *= (_float32(self.dora_magnitude.read(start, stop)) / norms)[:, None]
        return merged


@dataclass(frozen=True)
class TensorChange:
    """How an adapter changes one tensor of the base model.

    Attributes:
        base_replacement: replaces the base model's tensor before the update is added; where the base ties
            lm_head to the embedding it replaces both, because peft loads it into the one tensor.
        replacement: replaces the tensor; nothing is added to it.
        lora: is added to the tensor.
    """

    base_replacement: LazyTensor | None = None
    replacement: LazyTensor | None = None
    lora: LoraUpdate | None = None


@dataclass(frozen=True)
class AdapterSummary:
    """The facts about an adapter that a user wants to see.

    Attributes:
        path: its directory.
        name: the directory's name.
        base_model: base_model_name_or_path of adapter_config.json; "" where it is missing.
        ranks: the ranks that occur, ascending.
        lora_matrices: how many matrices get a low-rank update.
        replaced_tensors: names of the tensors that are replaced whole.
    """

    path: Path
    name: str
    base_model: str
    ranks: tuple[int, ...]
    lora_matrices: int
    replaced_tensors: tuple[str, ...]

    def describe(self) -> str:
        """Return one phrase, as in "rank 16 in 210 matrices, 61 tensors replaced"."""
        phrases = []
        if self.lora_matrices:
            ranks = " and ".join(map(str, self.ranks))
            noun = "matrix" if self.lora_matrices == 1 else "matrices"
            phrases.append(f"rank {ranks} in {self.lora_matrices} {noun}")
        if self.replaced_tensors:
            count = len(self.replaced_tensors)
            phrases.append(f"{count} {'tensor' if count == 1 else 'tensors'} replaced")
        return ", ".join(phrases)


class Adapter:
    """An open adapter directory; a context manager that closes its files.

    Attributes:
        path: the directory.
        lora_config: adapter_config.json.
        model_config: config.json of the model with the adapter, where the directory has one.
        changes: name of a base model's tensor -> how it is changed.
    """

    def __init__(self, path: Path, lora_config: LoraConfig, files: list[WeightFile]) -> None:
        self.path = path
        self.lora_config = lora_config
        self.model_config = _read_model_config(path)
        self.changes: Mapping[str, TensorChange] = {
            target: _tensor_change(target, by_role, lora_config, files[0].path)
            for target, by_role in _group_by_target(files).items()
        }
        self._files = files

    @classmethod
    def open(cls, source: str | os.PathLike[str], progress: Progress = SILENT) -> Adapter:
        """Open an adapter and check that its tensors are complete and fit each other.

        Args:
            source: a directory, or OWNER/NAME[@REVISION] on the hub.
            progress: reports the download.

        Raises:
            CheckpointError: the directory or a file is missing, or a file is damaged.
            UnsupportedModel: an adapter of a kind that cannot be merged here.
            ConversionError: a tensor without its counterpart, without a use, or of the wrong shape.
            ReadError: the system refuses to read a file.
            HubError, MissingPackage, OutputError: the adapter cannot be downloaded.
        """
        path = resolve_source(source, ADAPTER_FILES, progress)
        if not (path / ADAPTER_CONFIG_FILE).exists():
            problem = f"has no {ADAPTER_CONFIG_FILE}" if path.is_dir() else "is not a directory"
            raise CheckpointError(f"{path} {problem}", "give a directory as peft saves it (save_pretrained)")
        lora_config = read_adapter_config(path)
        with ExitStack() as on_error:
            files = open_files(_weight_paths(path))
            for file in files:
                on_error.callback(file.close)
            adapter = cls(path, lora_config, files)
            on_error.pop_all()
        return adapter

    @property
    def summary(self) -> AdapterSummary:
        """What a user wants to know of the adapter."""
        updates = [change.lora for change in self.changes.values() if change.lora is not None]
        return AdapterSummary(
            path=self.path,
            name=model_name_from_path(self.path),
            base_model=self.lora_config.base_model,
            ranks=tuple(sorted({update.lora_a.rows for update in updates})),
            lora_matrices=len(updates),
            replaced_tensors=tuple(
                target
                for target, change in self.changes.items()
                if change.base_replacement or change.replacement
            ),
        )

    def close(self) -> None:
        """Close the files; tensors that were not read cannot be read any more."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_model_config(path: Path) -> JsonConfig | None:
    file = path / "config.json"
    return JsonConfig(read_json(file), f"{model_name_from_path(path)}/{file.name}") if file.exists() else None


def _weight_paths(path: Path) -> list[Path]:
    weights = next((path / name for name in ADAPTER_WEIGHT_FILES if (path / name).exists()), None)
    if weights is None:
        raise CheckpointError(
            f"{path} has neither {' nor '.join(ADAPTER_WEIGHT_FILES)}", "download the weights too"
        )
    longlora = path / LONGLORA_WEIGHTS
    return [weights, longlora] if longlora.exists() else [weights]


def _group_by_target(files: list[WeightFile]) -> dict[str, dict[str, LazyTensor]]:
    """Return target -> role -> tensor for every tensor of the files.

    Raises:
        CheckpointError: two tensors have one role, or there are no tensors.
        UnmappedTensor: a tensor has no role.
    """
    targets: dict[str, dict[str, LazyTensor]] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            target, role = _target_and_role(file.path, name)
            by_role = targets.setdefault(target, {})
            if role in by_role:
                raise CheckpointError(
                    f"{file.path}: {name} and {by_role[role].name} are both for {target}",
                    "save each adapter separately",
                )
            by_role[role] = _check_finite_on_read(file.path, tensor)
    if not targets:
        raise CheckpointError(f"{files[0].path} has no tensors", "the adapter was saved without its weights")
    return targets


def _target_and_role(file: Path, name: str) -> tuple[str, str]:
    """Return which tensor of the base model a tensor is for, and its role there."""
    unprefixed = name.removeprefix(PEFT_PREFIX)
    is_longlora = file.name == LONGLORA_WEIGHTS
    for role, pattern in _ROLE_PATTERNS.items():
        match = re.fullmatch(pattern, unprefixed)
        if match and (is_longlora or unprefixed != name):
            target = f"{match['module']}.{match.groupdict().get('param') or 'weight'}"
            return target, "base_replacement" if is_longlora and role == "replacement" else role
    raise UnmappedTensor(f"{file}: the tensor {name} is not one of peft's LoRA", MERGE_WITH_PEFT)


def _tensor_change(
    target: str, by_role: dict[str, LazyTensor], lora_config: LoraConfig, file: Path
) -> TensorChange:
    base_replacement, replacement = by_role.pop("base_replacement", None), by_role.pop("replacement", None)
    if replacement is not None and (by_role or base_replacement):
        other = next(iter([*by_role.values(), base_replacement]))
        assert other is not None
        raise CheckpointError(
            f"{file}: {replacement.name} replaces {target}, which {other.name} changes too",
            "save the adapter with peft's save_pretrained",
        )
    update = _lora_update(target, by_role, lora_config, file) if by_role else None
    return TensorChange(base_replacement, replacement, update)


def _lora_update(
    target: str, by_role: dict[str, LazyTensor], lora_config: LoraConfig, file: Path
) -> LoraUpdate:
    module = target.removesuffix(".weight")
    magnitude = by_role.pop("lora_magnitude_vector", None)
    is_embedding = any("embedding" in role for role in by_role)
    names = ("lora_embedding_A", "lora_embedding_B") if is_embedding else ("lora_A", "lora_B")
    if is_embedding and lora_config.use_dora:
        raise UnsupportedModel(
            f"{file}: DoRA of an embedding ({module}) cannot be merged here", MERGE_WITH_PEFT
        )
    expected = {*names, "lora_magnitude_vector"} if lora_config.use_dora else set(names)
    actual = {*by_role, "lora_magnitude_vector"} if magnitude is not None else set(by_role)
    for role in sorted(expected - actual):
        raise MissingTensor(
            f"{file} has no {role} of {module}, but its {', '.join(sorted(actual))}", "save the adapter again"
        )
    for role in sorted(actual - expected):
        raise UnmappedTensor(
            f"{file}: {role} of {module} has no use beside {', '.join(sorted(expected))}",
            f"check that {ADAPTER_CONFIG_FILE} belongs to these weights",
        )
    a, b = (by_role[name] for name in names)
    _check_shapes(a, b, lora_config.rank_of(module), file)
    lora_b, lora_a = (_transpose(a), _transpose(b)) if is_embedding else (b, a)
    return LoraUpdate(lora_b, lora_a, lora_config.scaling_of(module), magnitude)


def _check_shapes(a: LazyTensor, b: LazyTensor, rank: int, file: Path) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InvalidTensor(
            f"{file}: {a.name} {list(a.shape)} and {b.name} {list(b.shape)} cannot be multiplied",
            "the shards of a parallel training were not gathered, or the file is damaged: save it again",
        )
    if a.shape[0] != rank:
        raise InvalidTensor(
            f"{file}: {a.name} has rank {a.shape[0]}, but {ADAPTER_CONFIG_FILE} gives it {rank} "
            "(r, rank_pattern)",
            f"check that {ADAPTER_CONFIG_FILE} belongs to these weights",
        )


def _transpose(tensor: LazyTensor) -> LazyTensor:
    """Return a low-rank matrix transposed; it is small, so each read loads it whole."""

    def read(start: int, stop: int) -> Array:
        return tensor.load()[:, start:stop].T

    return replace(tensor, shape=tensor.shape[::-1], read=read)


def _check_finite_on_read(file: Path, tensor: LazyTensor) -> LazyTensor:
    """Return the tensor with a `read` that raises InvalidTensor for values that are not finite."""
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise InvalidTensor(
            f"{file}: {tensor.name} is stored as {tensor.dtype}, not as F32, F16 or BF16",
            "save the adapter before it is quantized",
        )

    def read(start: int, stop: int) -> Array:
        rows = tensor.read(start, stop)
        finite = np.isfinite(_float32(rows))
        if not finite.all():
            first = np.argwhere(~finite)[0]
            value = float(rows[tuple(first)])
            first[0] += start
            raise InvalidTensor(
                f"{file}: {tensor.name}: element {first.tolist()} is {value}, not a finite number",
                "the adapter is damaged, or its training diverged",
            )
        return rows

    return replace(tensor, read=read)


def _float32(values: Array) -> Array:
    return values.astype(np.float32, copy=False)
