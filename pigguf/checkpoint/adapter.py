"""An adapter directory as PEFT saves it: what it makes of which tensor of its base.

    with Adapter.open("path/to/adapter") as adapter:
        adapter.changes["model.layers.0.self_attn.q_proj.weight"].update.scale

It holds adapter_config.json and adapter_model.safetensors or .bin: pairs of low-rank matrices, and
whole tensors that were trained beside them (modules_to_save, biases). LongLoRA keeps whole tensors in
trainable_params.bin, to be loaded into the base before the pairs are added. A config.json of the
extended model may lie there too.

Source: peft 0.21's utils/save_and_load.py and tuners/lora/ for names and forms; LongLoRA's
get_trainable_weights.py. Every tensor has one use; one that has none stops the work.
Left out: the base (merge.py), the tokenizer's files that trainers save beside an adapter.
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
from pigguf.checkpoint.safetensors_file import SafetensorsFile
from pigguf.checkpoint.torch_file import TorchFile
from pigguf.common.json_config import JsonConfig
from pigguf.common.lazy_tensor import Array, LazyTensor
from pigguf.errors import CheckpointError, InvalidTensor, MissingTensor, UnmappedTensor, UnsupportedModel
from pigguf.progress import SILENT, Progress

ADAPTER_WEIGHT_FILES = (
    "adapter_model.safetensors",
    "adapter_model.bin",
)  # peft takes the first where both are there
LONGLORA_WEIGHTS = "trainable_params.bin"
ADAPTER_FILES = SourceFiles(
    "an adapter",
    config_files=(ADAPTER_CONFIG_FILE, "config.json"),
    weight_layouts=tuple((re.escape(name), re.escape(LONGLORA_WEIGHTS)) for name in ADAPTER_WEIGHT_FILES),
)
PEFT_PREFIX = "base_model.model."

# What a tensor is, by its name without the prefix. An adapter's own name ("default") may stand in it,
# as in a state dict that peft did not clean.
_ROLES = {
    "lora_A": r"(?P<module>.+)\.lora_A(\.[^.]+)?\.(?P<kind>weight)",
    "lora_B": r"(?P<module>.+)\.lora_B(\.[^.]+)?\.(?P<kind>weight)",
    "lora_embedding_A": r"(?P<module>.+)\.lora_embedding_A(\.[^.]+)?",
    "lora_embedding_B": r"(?P<module>.+)\.lora_embedding_B(\.[^.]+)?",
    "lora_magnitude_vector": r"(?P<module>.+)\.lora_magnitude_vector(\.(?!weight$)[^.]+)?(\.weight)?",
    "base": r"(?P<module>.+)\.base_layer\.(?P<kind>weight|bias)",
    "whole": r"(?P<module>.+?)(\.modules_to_save(\.[^.]+)?)?\.(?P<kind>weight|bias)",
}


@dataclass(frozen=True)
class LoraUpdate:
    """scale * left @ right, to be added to a matrix of shape (n_out, n_in).

    Attributes:
        left: (n_out, rank); PEFT's B, of an embedding A transposed.
        right: (rank, n_in); PEFT's A, of an embedding B transposed.
        scale: alpha / rank, or alpha / sqrt(rank).
        magnitude: (n_out,), the length that each row has after the addition (DoRA), or None.
    """

    lora_b: LazyTensor
    lora_a: LazyTensor
    scaling: float
    dora_magnitude: LazyTensor | None = None

    def add_to_rows(self, rows: Array, start: int, stop: int) -> Array:
        """Rows [start, stop) of the merged matrix, from those of the base; float32."""
        left, right = _float32(self.lora_b.read(start, stop)), _float32(self.lora_a.load())
        with np.errstate(all="ignore"):  # a sum that is no number is refused where it is encoded
            merged: Array = rows + np.float32(self.scaling) * (left @ right)
            if self.dora_magnitude is not None:
                lengths = np.linalg.norm(merged, axis=1)
                merged *= (_float32(self.dora_magnitude.read(start, stop)) / lengths)[:, None]
        return merged


@dataclass(frozen=True)
class TensorChange:
    """What an adapter makes of one tensor.

    Attributes:
        base: takes the base's place before anything is added; where the base ties its output matrix to
            the embedding, both follow, for peft loads it into the one tensor.
        whole: takes the tensor's place; nothing else follows it.
        update: is added.
    """

    base_replacement: LazyTensor | None = None
    replacement: LazyTensor | None = None
    lora: LoraUpdate | None = None


@dataclass(frozen=True)
class AdapterSummary:
    """What an adapter is, to be told.

    Attributes:
        path: its directory.
        name: the directory's name.
        base: what it says it was trained on; "" where it does not.
        ranks: the ranks that occur, ascending.
        matrices: how many matrices get something added.
        replaced: the tensors that are replaced whole.
    """

    path: Path
    name: str
    base_model: str
    ranks: tuple[int, ...]
    lora_matrices: int
    replaced_tensors: tuple[str, ...]

    def describe(self) -> str:
        """As in "rank 16 in 210 matrices, 61 tensors replaced"."""
        parts = []
        if self.lora_matrices:
            ranks = " and ".join(map(str, self.ranks))
            parts.append(
                f"rank {ranks} in {self.lora_matrices} {'matrix' if self.lora_matrices == 1 else 'matrices'}"
            )
        if self.replaced_tensors:
            count = len(self.replaced_tensors)
            parts.append(f"{count} {'tensor' if count == 1 else 'tensors'} replaced")
        return ", ".join(parts)


class Adapter:
    """An open adapter directory; a context manager that closes its files.

    Attributes:
        path: the directory.
        settings: adapter_config.json.
        extended: config.json of the model with the adapter, where the directory has one.
        changes: tensor of the base -> what becomes of it.
    """

    def __init__(self, path: Path, settings: LoraConfig, files: list[SafetensorsFile | TorchFile]) -> None:
        self.path = path
        self.lora_config = settings
        self.model_config = _extended_config(path)
        self.changes: Mapping[str, TensorChange] = {
            target: _change(target, parts, settings, files[0].path)
            for target, parts in _by_target(files).items()
        }
        self._files = files

    @classmethod
    def open(cls, source: str | os.PathLike[str], progress: Progress = SILENT) -> Adapter:
        """Open an adapter, a directory or a hub's by name (source.py).

        Its parts are all there and fit each other.

        Raises:
            CheckpointError: no such directory, or a file is missing, damaged or not what it says.
            UnsupportedModel: a kind of adapter that cannot be merged here.
            ConversionError: a tensor without its counterpart, without a use, or of the wrong shape.
            ReadError: the system refuses to read a file.
            HubError, MissingPackage, OutputError: it cannot be fetched.
        """
        path = resolve_source(source, ADAPTER_FILES, progress)
        if not (path / ADAPTER_CONFIG_FILE).exists():
            what = (
                f"holds no {ADAPTER_CONFIG_FILE}"
                if path.is_dir()
                else "is no directory that could hold an adapter"
            )
            raise CheckpointError(f"{path} {what}", "give a directory as peft saves it (save_pretrained)")
        settings = read_adapter_config(path)
        with ExitStack() as closing:
            files: list[SafetensorsFile | TorchFile] = []
            for file in _weight_files(path):
                files.append((SafetensorsFile if file.suffix == ".safetensors" else TorchFile).open(file))
                closing.callback(files[-1].close)
            adapter = cls(path, settings, files)
            closing.pop_all()
        return adapter

    @property
    def summary(self) -> AdapterSummary:
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
        for file in self._files:
            file.close()

    def __enter__(self) -> Adapter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _extended_config(path: Path) -> JsonConfig | None:
    file = path / "config.json"
    return JsonConfig(read_json(file), f"{model_name_from_path(path)}/{file.name}") if file.exists() else None


def _weight_files(path: Path) -> list[Path]:
    found = [path / name for name in ADAPTER_WEIGHT_FILES if (path / name).exists()]
    if not found:
        raise CheckpointError(
            f"{path} holds neither {' nor '.join(ADAPTER_WEIGHT_FILES)}", "download the weights too"
        )
    beside = path / LONGLORA_WEIGHTS
    return [found[0], beside] if beside.exists() else found[:1]


def _by_target(files: list[SafetensorsFile | TorchFile]) -> dict[str, dict[str, LazyTensor]]:
    """target -> role -> tensor: every tensor of the files, in the one place where it is used."""
    targets: dict[str, dict[str, LazyTensor]] = {}
    for file in files:
        for name, tensor in file.tensors.items():
            target, role = _place(file.path, name)
            parts = targets.setdefault(target, {})
            if role in parts:
                raise CheckpointError(
                    f"{file.path}: {name} and {parts[role].name} have the same place in {target}",
                    "save each adapter by itself",
                )
            parts[role] = _finite(file.path, tensor)
    if not targets:
        raise CheckpointError(
            f"{files[0].path} holds no tensors", "the adapter was saved without its weights"
        )
    return targets


def _place(file: Path, name: str) -> tuple[str, str]:
    """The tensor of the base that a tensor belongs to, and its role there."""
    bare = name.removeprefix(PEFT_PREFIX)
    longlora = file.name == LONGLORA_WEIGHTS
    for role, pattern in _ROLES.items():
        match = re.fullmatch(pattern, bare)
        if match and (longlora or bare != name):
            target = f"{match['module']}.{match.groupdict().get('kind') or 'weight'}"
            return target, "base" if longlora and role == "whole" else role
    raise UnmappedTensor(f"{file}: the tensor {name} is none that peft's LoRA has", MERGE_WITH_PEFT)


def _change(target: str, parts: dict[str, LazyTensor], settings: LoraConfig, file: Path) -> TensorChange:
    base, whole = parts.pop("base", None), parts.pop("whole", None)
    if whole is not None and (parts or base):
        other = next(iter([*parts.values(), base]))
        assert other is not None
        raise CheckpointError(
            f"{file}: {whole.name} replaces {target}, which {other.name} changes too",
            "save the adapter with peft's save_pretrained",
        )
    return TensorChange(base, whole, _update(target, parts, settings, file) if parts else None)


def _update(target: str, parts: dict[str, LazyTensor], settings: LoraConfig, file: Path) -> LoraUpdate:
    module = target.removesuffix(".weight")
    magnitude = parts.pop("lora_magnitude_vector", None)
    embedding = any("embedding" in role for role in parts)
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    if embedding and settings.use_dora:
        raise UnsupportedModel(f"{file}: DoRA of an embedding ({module}) is not merged here", MERGE_WITH_PEFT)
    wanted = {*names, "lora_magnitude_vector"} if settings.use_dora else set(names)
    held = {*parts, "lora_magnitude_vector"} if magnitude is not None else set(parts)
    for role in sorted(wanted - held):
        beside = ", ".join(sorted(held))
        raise MissingTensor(
            f"{file} lacks {role} of {module}, but holds its {beside}", "save the adapter again"
        )
    for role in sorted(held - wanted):
        raise UnmappedTensor(
            f"{file}: {role} of {module} has no use beside {', '.join(sorted(wanted))}",
            f"does {ADAPTER_CONFIG_FILE} belong to these weights?",
        )
    a, b = (parts[name] for name in names)
    _refuse_shapes(a, b, settings.rank_of(module), file)
    left, right = (_transposed(a), _transposed(b)) if embedding else (b, a)
    return LoraUpdate(left, right, settings.scaling_of(module), magnitude)


def _refuse_shapes(a: LazyTensor, b: LazyTensor, rank: int, file: Path) -> None:
    if len(a.shape) != 2 or len(b.shape) != 2 or a.shape[0] != b.shape[1]:
        raise InvalidTensor(
            f"{file}: {a.name} {list(a.shape)} and {b.name} {list(b.shape)} cannot be multiplied",
            "the shards of a parallel training were not gathered, or the file is damaged: save it again",
        )
    if a.shape[0] != rank:
        raise InvalidTensor(
            f"{file}: {a.name} has rank {a.shape[0]}, but {ADAPTER_CONFIG_FILE} gives it {rank} (r, rank_pattern)",
            f"does {ADAPTER_CONFIG_FILE} belong to these weights?",
        )


def _transposed(tensor: LazyTensor) -> LazyTensor:
    """A low-rank matrix with rows and columns exchanged; it is small, and read whole."""

    def read(start: int, stop: int) -> Array:
        return tensor.load()[:, start:stop].T

    return replace(tensor, shape=tensor.shape[::-1], read=read)


def _finite(file: Path, tensor: LazyTensor) -> LazyTensor:
    """The tensor, refusing values that are none while it is read."""
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
