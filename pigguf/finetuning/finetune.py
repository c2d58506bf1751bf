"""Fine-tune a checkpoint to a longer context window: the checks, the training and the result.

The method is Position Interpolation (Chen et al. 2023, arXiv 2306.15595, Sections 2 and 3.1). The result is
a checkpoint or a PEFT adapter whose config.json states the extended positions, for `pigguf convert` and
`pigguf convert --adapter`. Not supported: several GPUs, other optimizers, and positions that are neither
rotary nor learned.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from pigguf.architectures import (
    config_with_positions,
    family_from_config,
    hparams_from_config,
    map_tensors_to_gguf,
    positions_from_config,
)
from pigguf.architectures.hparams import HParams
from pigguf.checkpoint import Checkpoint
from pigguf.checkpoint.adapter import ADAPTER_FILES, ADAPTER_WEIGHT_FILES
from pigguf.checkpoint.adapter_config import ADAPTER_CONFIG_FILE
from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.resolve_source import resolve_source
from pigguf.common.atomic_directory import atomic_directory, require_empty_directory
from pigguf.common.file_io import write_json
from pigguf.errors import MissingPackage, OutputError, RopeConflict, UnsupportedModel, UsageError
from pigguf.finetuning.dataset import TrainingSequence, load_training_sequences
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.training_log import StepCallback
from pigguf.progress import SILENT, Progress
from pigguf.rope import LinearScaling, Positions, RopeOverrides, UnscaledRope
from pigguf.tokenizer import read_vocab
from pigguf.tokenizer.tokenizer_files import TOKENIZER_FILE_NAMES

if TYPE_CHECKING:
    from pigguf.finetuning.trained_model import TrainedModel
    from pigguf.finetuning.training_state import TrainingDirectory, TrainingState

ADAPTER_WEIGHTS = ADAPTER_WEIGHT_FILES[0]  # what peft writes
PACKAGES = ("torch", "transformers", "peft")
TOKENIZER_FILES = (
    *TOKENIZER_FILE_NAMES,
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class FinetuneResult:
    """The result of a fine-tuning run.

    Attributes:
        path: the directory of a checkpoint (full) or of a PEFT adapter (LoRA).
        rope: the positions of the result.
        steps: the log, a dict of metrics for each step (training_log.StepMetrics).
        trained_parameters: the number of trained parameters.
        seconds: how long this call took.
    """

    path: Path
    rope: Positions
    steps: tuple[dict[str, Any], ...]
    trained_parameters: int
    seconds: float


def finetune(
    source: str | os.PathLike[str],
    text: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    settings: FinetuneSettings,
    *,
    adapter: str | os.PathLike[str] | None = None,
    progress: Progress = SILENT,
    on_step: StepCallback = lambda metrics: None,
) -> FinetuneResult:
    """Fine-tune a checkpoint at interpolated positions.

    If the process is killed, the same call resumes from the last saved step. It is in the directory
    `OUTPUT.training/` with the log (log.jsonl), which is removed when the result is complete.

    Args:
        source: a checkpoint of a supported family: a directory or a Hub name, as for `convert`.
        text: files of prose (*.txt) and of records (*.jsonl); dataset.py describes the formats.
        output: the directory of the result, which must not exist or be empty.
        settings: the hyperparameters.
        adapter: a LoRA adapter of an earlier run with the same rank, alpha and extra modules, to start from.
            The optimizer and the learning rate schedule start from the beginning.
        progress: receives the stages: bytes downloaded, bytes of text read, and steps.
        on_step: is called with the metrics of each step.

    Raises:
        MissingPackage: if the extra pigguf[finetune] is not installed.
        PigError: what `convert` raises for the checkpoint.
        TextError: if the text is not in a supported format, or too short.
        UsageError: if settings do not fit the model, or there is an unfinished run with other settings.
        TrainingError: if the loss is NaN or infinite; the last saved state is kept.
        DoesNotFit: if the memory is not sufficient.
        OutputError: if the result or the state cannot be written.
    """
    _require_packages()
    from pigguf.finetuning.training_state import TrainingDirectory

    started = time.monotonic()
    target = Path(output)
    paths = [Path(path) for path in text]
    require_empty_directory(target)  # before training, not after hours of it
    adapter_path = None if adapter is None else resolve_source(adapter, ADAPTER_FILES, progress)
    with Checkpoint.open(source, progress) as checkpoint:
        rope = extended_rope(checkpoint, settings.factor)
        hparams = _check_checkpoint(checkpoint, rope, settings)
        vocab = read_vocab(checkpoint.path, checkpoint.config, hparams.vocab_size)
    if adapter_path is not None:
        _check_adapter(adapter_path, rope, settings)
    length = _check_sequence_length(settings, rope)
    sequences = load_training_sequences(paths, checkpoint.path, vocab, length, progress)
    directory = TrainingDirectory(target)
    state = directory.open(settings, _fingerprints(checkpoint, paths, adapter_path))
    run = _Run(checkpoint, hparams, settings, adapter_path, directory)
    n_parameters = _train_and_write(run, target, sequences, state, progress, on_step)
    log = tuple(directory.read_log())
    shutil.rmtree(directory.path)
    return FinetuneResult(target, rope, log, n_parameters, time.monotonic() - started)


@dataclass(frozen=True)
class _Run:
    """What a run trains, after all checks."""

    checkpoint: Checkpoint
    hparams: HParams
    settings: FinetuneSettings
    adapter: Path | None
    directory: TrainingDirectory


def _train_and_write(
    run: _Run,
    target: Path,
    sequences: Sequence[TrainingSequence],
    state: TrainingState | None,
    progress: Progress,
    on_step: StepCallback,
) -> int:
    """Load the model, train it, write the result, and return the number of trained parameters."""
    from pigguf.finetuning.trained_model import load_model
    from pigguf.finetuning.training import train

    family = family_from_config(run.checkpoint.config)
    config = config_with_positions(family, run.checkpoint.config, run.hparams)
    model = load_model(run.checkpoint.path, config, family, run.hparams, run.settings, run.adapter)
    window = run.hparams.rope.context_length
    train(model, sequences, window, run.settings, run.directory, state, progress, on_step)
    _write_result(target, model, config, run)
    return sum(parameter.numel() for parameter in model.trained_parameters.values())


def _require_packages() -> None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(
                f"fine-tuning needs the package {name}, which is not installed",
                'install all that it needs: pip install -e ".[finetune]" in the clone',
            )


def extended_rope(checkpoint: Checkpoint, factor: float) -> Positions:
    """Return a checkpoint's positions with its window extended to `factor` times the original one.

    Raises:
        UnsupportedModel: if the positions are neither unscaled, nor linearly scaled, nor learned.
        RopeConflict: if the checkpoint contradicts itself, or is already extended by a larger factor.
    """
    family = family_from_config(checkpoint.config)
    rope = positions_from_config(family, checkpoint.config, checkpoint.tokenizer_config)
    if rope.rope_type == "learned":
        return positions_from_config(family, checkpoint.config, {}, RopeOverrides(factor))
    if not isinstance(rope, UnscaledRope | LinearScaling):
        raise UnsupportedModel(
            f"{checkpoint.path} has positions of type {rope.rope_type}",
            "Position Interpolation needs rotary positions that are unscaled or linearly scaled",
        )
    if rope.factor > factor:
        raise RopeConflict(
            f"{checkpoint.path} is already extended by {rope.factor:g}, more than `factor={factor:g}`",
            f"the factor is relative to the original window of {rope.original_context} tokens",
        )
    return LinearScaling(
        rope_theta=rope.rope_theta,
        original_context=rope.original_context,
        context_length=round(rope.original_context * factor),
        factor=factor,
        local_rope_theta=rope.local_rope_theta,
    )


def _check_checkpoint(checkpoint: Checkpoint, rope: Positions, settings: FinetuneSettings) -> HParams:
    """Return the hyperparameters with the extended positions; raise if the result could not be converted.

    The tensors are checked here, because transformers initializes missing ones with random values, and
    ignores those that it does not know.
    """
    if rope.rope_type == "learned" and settings.method == "lora":
        raise UsageError(
            f"{checkpoint.path} has learned positions, whose new rows must be trained in full",
            "use `method=full`: models with learned positions are small",
        )
    family = family_from_config(checkpoint.config)
    hparams = hparams_from_config(family, checkpoint.config, rope)
    map_tensors_to_gguf(family, hparams, checkpoint.tensors, str(checkpoint.path))
    return hparams


def _check_adapter(adapter: Path, rope: Positions, settings: FinetuneSettings) -> None:
    """Raise if training cannot start from an adapter."""
    if settings.method != "lora":
        raise UsageError(
            "training can start from an adapter with LoRA only", "leave `method=full` or `adapter` out"
        )
    for name in (ADAPTER_CONFIG_FILE, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise UsageError(f"{adapter / name} is missing", "give a directory that `pigguf finetune` wrote")
    rope_parameters = rope.to_config()["rope_parameters"]
    trained_with = read_json(adapter / "config.json", optional=True).get("rope_parameters")
    if trained_with != rope_parameters:
        raise RopeConflict(
            f"{adapter}/config.json: rope_parameters = {trained_with}, and here they are {rope_parameters}",
            "give the `factor` that the adapter was trained with",
        )


def _check_sequence_length(settings: FinetuneSettings, rope: Positions) -> int:
    """Return the tokens of a training sequence; raise a UsageError if they do not fit the window."""
    length = settings.sequence_length or rope.context_length
    if length > rope.context_length:
        raise UsageError(
            f"a sequence of {length:,} tokens is longer than the extended window of {rope.context_length:,}",
            "use a smaller `sequence_length`, or a larger `factor`",
        )
    if length < rope.context_length and not settings.position_skipping:
        raise UsageError(
            f"sequences of {length:,} tokens never reach the positions up to {rope.context_length:,}",
            "add `position_skipping`, or leave `sequence_length` out",
        )
    return length


def _fingerprints(checkpoint: Checkpoint, paths: Sequence[Path], adapter: Path | None) -> dict[str, Any]:
    """Return what identifies a run besides its settings: the hashes of its inputs."""
    return {
        "adapter": None if adapter is None else _sha256(adapter / ADAPTER_WEIGHTS),
        "source": str(checkpoint.path.resolve()),
        "config": hashlib.sha256(repr(sorted(checkpoint.config.items())).encode()).hexdigest(),
        "text": {str(path): _sha256(path) for path in paths},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write_result(target: Path, model: TrainedModel, config: dict[str, Any], run: _Run) -> None:
    """Write the adapter or the checkpoint with its config, the settings and the log.

    Weights are rounded to bfloat16, the dtype of the computation by default.
    """
    with atomic_directory(target) as directory:
        try:
            model.save(directory)
        except SafetensorError as error:
            raise OutputError(
                f"{target} cannot be written: {error}",
                f"free some disk space and run the same again: the trained state is in {run.directory.path}",
            ) from error
        write_json(directory / "config.json", config)
        write_json(directory / "training.json", run.settings.as_data())
        shutil.copyfile(run.directory.log_path, directory / run.directory.log_path.name)
        if run.settings.method == "full":
            for name in TOKENIZER_FILES:
                if (run.checkpoint.path / name).exists():
                    shutil.copyfile(run.checkpoint.path / name, directory / name)
