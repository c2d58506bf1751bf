"""finetune: a checkpoint and text -> a checkpoint or an adapter with a window several times as long.

Source of the method: Position Interpolation (Chen et al. 2023, arXiv 2306.15595), Sections 2 and 3.1.
The result carries the rope facts in its config.json, and is what `pigguf convert` and
`pigguf convert --adapter` take.

Left out: several GPUs, other optimizers, models whose positions are not rotary.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
from pigguf.checkpoint.adapter_config import ADAPTER_CONFIG_FILE as ADAPTER_CONFIG
from pigguf.checkpoint.json_file import read_json
from pigguf.checkpoint.resolve_source import resolve_source
from pigguf.common.atomic_directory import atomic_directory, require_empty_directory
from pigguf.common.file_io import write_json
from pigguf.errors import MissingPackage, OutputError, RopeConflict, UnsupportedModel, UsageError
from pigguf.finetuning.dataset import load_training_sequences
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.training_log import StepCallback
from pigguf.progress import SILENT, Progress
from pigguf.rope import RopeOverrides, RopeScaling
from pigguf.tokenizer import read_vocab
from pigguf.tokenizer.tokenizer_files import TOKENIZER_FILE_NAMES

if TYPE_CHECKING:
    from pigguf.finetuning.trained_model import TrainedModel
    from pigguf.finetuning.training_state import TrainingDirectory

ADAPTER_WEIGHTS = ADAPTER_WEIGHT_FILES[0]  # what peft writes
PACKAGES = ("torch", "transformers", "peft")
TOKENIZER_FILES = (
    *TOKENIZER_FILE_NAMES,
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class FinetuneResult:
    """What was made.

    Attributes:
        path: a checkpoint directory (full), or a PEFT adapter directory (LoRA).
        rope: the positions of the result.
        steps: the log, a line a step.
        trained_parameters: how many numbers were trained.
        seconds: how long this call took.
    """

    path: Path
    rope: RopeScaling
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
    on_step: StepCallback = lambda step: None,
) -> FinetuneResult:
    """Fine-tune a checkpoint at divided positions.

    Killed at any time, the same call goes on from the last saved step: `OUTPUT.training/` holds it and
    the log (log.jsonl), and is removed when the result stands.

    Args:
        source: a checkpoint of a family that convert knows: a directory or a hub's name, as for convert.
        text: files of prose (*.txt) and of records (*.jsonl; finetuning/dataset.py tells their forms).
        output: the directory to make; it must not exist, or be empty.
        settings: how.
        adapter: a LoRA adapter that an earlier fine-tuning with the same rank, alpha and extras made: this
            one begins from it, with an optimizer and a schedule of its own.
        progress: told of the bytes fetched and of the steps.
        listen: told of each step's loss.

    Raises:
        MissingPackage: the extra pigguf[finetune] is not installed.
        CheckpointError, HubError, TokenizerError, UnsupportedModel, RopeConflict: as convert does.
        TextError: the text is not what it should be, or too short.
        UsageError: settings that do not fit the model, or an unfinished run of other settings.
        TrainingError: the loss is no number; the last good state is kept.
        DoesNotFit: not enough memory.
        OutputError: the result or the state cannot be written.
    """
    _require_packages()
    from pigguf.finetuning.trained_model import load_model
    from pigguf.finetuning.training import train
    from pigguf.finetuning.training_state import TrainingDirectory

    begun = time.monotonic()
    target = Path(output)
    paths = [Path(path) for path in text]
    require_empty_directory(target)  # at once, and not after hours
    begin_from = None if adapter is None else resolve_source(adapter, ADAPTER_FILES, progress)
    with Checkpoint.open(source, progress) as checkpoint:
        rope = extended_rope(checkpoint, settings.factor)
        _refuse_untrained_table(checkpoint, rope, settings)
        hparams = _refuse_what_convert_refuses(checkpoint, rope)
        vocab = read_vocab(checkpoint.path, checkpoint.config, hparams.vocab_size)
    if begin_from is not None:
        _refuse_another_adapter(begin_from, rope, settings)
    length = _sequence_length(settings, rope)
    sequences = load_training_sequences(paths, checkpoint.path, vocab, length, progress)
    workplace = TrainingDirectory(target)
    state = workplace.open(settings, _fingerprints(checkpoint, paths, begin_from))
    family = family_from_config(checkpoint.config)
    config = config_with_positions(family, checkpoint.config, hparams)
    model = load_model(checkpoint.path, config, family, hparams, settings, begin_from)
    train(model, sequences, rope.context_length, settings, workplace, state, progress, on_step)
    _write(target, model, checkpoint, config, settings, workplace)
    log = tuple(workplace.read_log())
    shutil.rmtree(workplace.path)
    trained = sum(parameter.numel() for parameter in model.trained.values())
    return FinetuneResult(target, rope, log, trained, time.monotonic() - begun)


def _require_packages() -> None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(
                f"fine-tuning needs the package {name}",
                'install them all: pip install -e ".[finetune]" in the clone',
            )


def extended_rope(checkpoint: Checkpoint, factor: float) -> RopeScaling:
    """The checkpoint's positions with the window `factor` times its original one.

    Raises:
        UnsupportedModel: they are scaled in a way that is not interpolation.
        RopeConflict: as convert does, or the checkpoint is extended further already.
    """
    family = family_from_config(checkpoint.config)
    rope = positions_from_config(family, checkpoint.config, checkpoint.tokenizer_config)
    if rope.rope_type == "learned":
        return positions_from_config(family, checkpoint.config, {}, RopeOverrides(factor))
    if rope.rope_type not in ("none", "linear"):
        raise UnsupportedModel(
            f"{checkpoint.path} has positions of kind {rope.rope_type}",
            "Position Interpolation starts from positions that are plain, or divided by a factor",
        )
    if rope.factor > factor:
        raise RopeConflict(
            f"{checkpoint.path} is extended by {rope.factor:g} already, more than --factor {factor:g}",
            f"the factor counts from the original {rope.original_context} tokens",
        )
    window = round(rope.original_context * factor)
    return replace(rope, rope_type="linear", factor=factor, context_length=window, evidence=(), decisions=())


def _refuse_what_convert_refuses(checkpoint: Checkpoint, rope: RopeScaling) -> HParams:
    """transformers would fill a missing tensor with random numbers, and leave out one it does not know."""
    family = family_from_config(checkpoint.config)
    hparams = hparams_from_config(family, checkpoint.config, rope)
    map_tensors_to_gguf(family, hparams, checkpoint.tensors, str(checkpoint.path))
    return hparams


def _refuse_untrained_table(checkpoint: Checkpoint, rope: RopeScaling, settings: FinetuneSettings) -> None:
    if rope.rope_type == "learned" and settings.method == "lora":
        raise UsageError(
            f"{checkpoint.path} has a table of learned positions, whose new rows must be trained as a whole",
            "give --method full: models with such tables are small",
        )


def _refuse_another_adapter(adapter: Path, rope: RopeScaling, settings: FinetuneSettings) -> None:
    if settings.method != "lora":
        raise UsageError("an adapter is begun from with LoRA alone", "leave --method full or --adapter out")
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise UsageError(f"{adapter / name} is missing", "give a directory that `pigguf finetune` made")
    trained = read_json(adapter / "config.json", optional=True).get("rope_parameters")
    if trained != rope.to_config()["rope_parameters"]:
        raise RopeConflict(
            f"{adapter}/config.json: rope_parameters = {trained}, and here they are "
            f"{rope.to_config()['rope_parameters']}",
            "give the --factor that the adapter was trained with",
        )


def _sequence_length(settings: FinetuneSettings, rope: RopeScaling) -> int:
    length = settings.sequence_length or rope.context_length
    if length > rope.context_length:
        raise UsageError(
            f"a sequence of {length:,} tokens is longer than the extended window of {rope.context_length:,}",
            "take a shorter --sequence-length, or a larger --factor",
        )
    if length < rope.context_length and not settings.position_skipping:
        raise UsageError(
            f"sequences of {length:,} tokens never reach the positions up to {rope.context_length:,}",
            "add --position-skipping, or leave --sequence-length out",
        )
    return length


def _fingerprints(checkpoint: Checkpoint, paths: Sequence[Path], adapter: Path | None) -> dict[str, Any]:
    """What a run was begun with, beside its settings."""
    return {
        "adapter": None if adapter is None else _sha256(adapter / ADAPTER_WEIGHTS),
        "source": str(checkpoint.path.resolve()),
        "config": hashlib.sha256(repr(sorted(checkpoint.config.items())).encode()).hexdigest(),
        "text": {str(path): _sha256(path) for path in paths},
    }


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _write(
    target: Path,
    model: TrainedModel,
    checkpoint: Checkpoint,
    config: dict[str, Any],
    settings: FinetuneSettings,
    workplace: TrainingDirectory,
) -> None:
    """The result: peft's adapter files or a checkpoint's, the rope facts, and how it was trained.

    Weights are rounded to bfloat16, in which they were computed with.
    """
    with atomic_directory(target) as directory:
        try:
            model.save(directory)
        except SafetensorError as error:
            raise OutputError(
                f"{target} cannot be written: {error}",
                f"make room and run the same again: the training is kept in {workplace.path}",
            ) from error
        write_json(directory / "config.json", config)
        write_json(directory / "training.json", settings.as_data())
        shutil.copyfile(workplace.log_path, directory / workplace.log_path.name)
        if settings.method == "full":
            for name in TOKENIZER_FILES:
                if (checkpoint.path / name).exists():
                    shutil.copyfile(checkpoint.path / name, directory / name)
