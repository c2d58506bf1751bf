"""The training loop: AdamW on the next-token loss, a learning rate schedule, and the held-out loss.

As in the paper (arXiv 2306.15595, Section 3.1): AdamW with betas 0.9 and 0.95, no weight decay, and 20
warm-up steps from 10 % of the peak learning rate. All sequences have the same weight in a step: the loss of
each is the mean over the tokens of its loss mask. The batch of a step depends only on the seed and the number
of the step, so a run that is resumed computes the same as one that was not interrupted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from pigguf.errors import DoesNotFit, TextError, TrainingError, UsageError
from pigguf.finetuning.dataset import TrainingSequence
from pigguf.finetuning.position_skipping import contiguous_positions, pose_positions
from pigguf.finetuning.settings import FinetuneSettings
from pigguf.finetuning.trained_model import TrainedModel
from pigguf.finetuning.training_log import StepCallback, StepMetrics
from pigguf.finetuning.training_state import TrainingDirectory, TrainingState
from pigguf.progress import Progress, stage

BETAS = (0.9, 0.95)
WARM_UP_STEPS = 20
WARM_UP_FROM = 0.1  # of the peak learning rate
COSINE_TO = 0.1  # of the peak learning rate
MAX_GRADIENT_NORM = 1.0

# Independent streams of random numbers, besides the seed and a number.
ORDER, POSITIONS, MEASUREMENT = range(3)

Batch = Sequence[tuple[TrainingSequence, NDArray[np.int64]]]  # sequences with their position ids, (n_tokens,)


def split_held_out(
    sequences: Sequence[TrainingSequence], count: int
) -> tuple[list[TrainingSequence], list[TrainingSequence]]:
    """Split sequences into those to train on, and held-out ones, evenly spaced over all of them.

    Args:
        sequences: all sequences.
        count: the number of held-out sequences.

    Raises:
        TextError: if no sequence would be left to train on.
    """
    if len(sequences) <= count:
        raise TextError(
            f"the text gives {len(sequences)} sequences, and {count} of them would be held out",
            "give more text, a smaller `sequence_length`, or a smaller `held_out`",
        )
    held_out = {round((i + 0.5) * len(sequences) / count) for i in range(count)}
    return (
        [sequence for i, sequence in enumerate(sequences) if i not in held_out],
        [sequence for i, sequence in enumerate(sequences) if i in held_out],
    )


def learning_rate_at(settings: FinetuneSettings, step: int) -> float:
    """Return the learning rate of a step, counted from 0: a linear warm-up, then the schedule."""
    peak = settings.peak_learning_rate
    if step < WARM_UP_STEPS:
        return peak * (WARM_UP_FROM + (1 - WARM_UP_FROM) * step / WARM_UP_STEPS)
    if settings.schedule == "constant":
        return peak
    done = (step - WARM_UP_STEPS) / max(1, settings.steps - WARM_UP_STEPS)
    return peak * (COSINE_TO + (1 - COSINE_TO) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def train(
    model: TrainedModel,
    sequences: Sequence[TrainingSequence],
    window: int,
    settings: FinetuneSettings,
    directory: TrainingDirectory,
    state: TrainingState | None,
    progress: Progress,
    on_step: StepCallback,
) -> None:
    """Train a model up to settings.steps; its parameters are updated in place.

    Args:
        model: the model.
        sequences: all training sequences; some of them are held out.
        window: the extended context window, in tokens.
        settings: the settings of the run.
        directory: where state and log are saved.
        state: the saved state to resume from, or None.
        progress: receives one stage, in steps.
        on_step: is called with the metrics of each step.

    Raises:
        TrainingError: if the loss is NaN or infinite; the last saved state is kept.
        DoesNotFit: if the memory of the device is not sufficient.
        OutputError: if the state cannot be written.
    """
    train_set, held_out = split_held_out(sequences, settings.held_out)
    optimizer = _create_optimizer(model, settings)
    saved_step = _restore_state(model, optimizer, state)
    _check_steps_left(saved_step, settings)
    log = directory.truncate_log(saved_step + 1)
    n_tokens = log[-1]["tokens"] if saved_step else 0

    def log_step(metrics: StepMetrics) -> None:
        directory.append_log(metrics.as_data())
        on_step(metrics)

    with (
        _raise_if_out_of_memory(model, settings.sequence_length or window),
        stage(progress, "training", settings.steps, "steps"),
    ):
        progress.advance(saved_step)
        if not saved_step:
            log_step(StepMetrics(0, held_out=evaluate_held_out(model, held_out, window, settings)))
        for step in range(saved_step + 1, settings.steps + 1):
            started = time.monotonic()
            rate = learning_rate_at(settings, step - 1)
            batch = list(iter_batch(train_set, window, settings, step - 1))
            loss, norm = _optimizer_step(model, optimizer, batch, rate)
            _check_finite(step, loss, norm, saved_step, settings, directory)
            n_tokens += sum(len(sequence.tokens) for sequence, _ in batch)
            is_due = step == settings.steps or step % settings.every == 0
            losses = evaluate_held_out(model, held_out, window, settings) if is_due else None
            log_step(StepMetrics(step, loss, rate, norm, n_tokens, time.monotonic() - started, losses))
            if is_due:
                directory.save_state(_current_state(step, model, optimizer))
                saved_step = step
            progress.advance(1)


def _create_optimizer(model: TrainedModel, settings: FinetuneSettings) -> torch.optim.Optimizer:
    parameters = model.trained_parameters.values()
    return torch.optim.AdamW(parameters, lr=settings.peak_learning_rate, betas=BETAS, weight_decay=0.0)


def _check_steps_left(done: int, settings: FinetuneSettings) -> None:
    if done > settings.steps:
        raise UsageError(
            f"the run has already done {done} steps, more than the {settings.steps} requested",
            "give a larger number of `steps`",
        )


def _check_finite(
    step: int,
    loss: float,
    norm: float,
    saved_step: int,
    settings: FinetuneSettings,
    directory: TrainingDirectory,
) -> None:
    """Raise a TrainingError if the loss or the gradient norm of a step is NaN or infinite."""
    if not (math.isfinite(loss) and math.isfinite(norm)):
        kept = (
            f"the state of step {saved_step} is kept in {directory.path}"
            if saved_step
            else "nothing was saved"
        )
        raise TrainingError(
            f"the loss of step {step} is {loss}, its gradient norm {norm}: training has diverged; {kept}",
            f"resume with a smaller `learning_rate` than {settings.peak_learning_rate:g}",
        )


@contextmanager
def _raise_if_out_of_memory(model: TrainedModel, length: int) -> Iterator[None]:
    """Raise DoesNotFit if PyTorch runs out of memory in the block."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"training on a sequence of {length:,} tokens does not fit into the memory of {model.device}",
            "use `gradient_checkpointing`, a smaller `sequence_length` with `position_skipping`, or "
            "`method=lora`",
        ) from error


def iter_batch(
    sequences: Sequence[TrainingSequence], window: int, settings: FinetuneSettings, step: int
) -> Iterator[tuple[TrainingSequence, NDArray[np.int64]]]:
    """Yield the sequences of a step with their position ids, (n_tokens,), int64.

    Sequences come in a new random order in each epoch.

    Args:
        sequences: the sequences to train on.
        window: the extended context window, in tokens.
        settings: the settings of the run.
        step: the number of the step, from 0.
    """
    for number in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, index = divmod(number, len(sequences))
        order = _rng(settings, ORDER, epoch).permutation(len(sequences))
        sequence = sequences[order[index]]
        yield sequence, _position_ids(sequence, window, settings, _rng(settings, POSITIONS, number))


@torch.no_grad()
def evaluate_held_out(
    model: TrainedModel, sequences: Sequence[TrainingSequence], window: int, settings: FinetuneSettings
) -> dict[str, float]:
    """Return the mean loss of held-out sequences by kind, in nats a token.

    The position ids are the same in every call.
    """
    sums: dict[str, tuple[float, int]] = {}  # kind -> summed loss, tokens in the loss mask
    for number, sequence in enumerate(sequences):
        positions = _position_ids(sequence, window, settings, _rng(settings, MEASUREMENT, number))
        loss, count = float(_sequence_loss(model, sequence, positions)), int(sequence.loss_mask.sum())
        total_loss, total_count = sums.get(sequence.kind, (0.0, 0))
        sums[sequence.kind] = total_loss + loss, total_count + count
    return {kind: loss / count for kind, (loss, count) in sums.items()}


def _optimizer_step(
    model: TrainedModel, optimizer: torch.optim.Optimizer, batch: Batch, learning_rate: float
) -> tuple[float, float]:
    """Accumulate the gradients of a batch and update the parameters, unless loss or gradient are not finite.

    Returns:
        The mean loss, in nats a token, and the norm of the gradient before clipping.
    """
    optimizer.zero_grad()
    mean_loss = 0.0
    for sequence, positions in batch:
        loss = _sequence_loss(model, sequence, positions) / (int(sequence.loss_mask.sum()) * len(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        mean_loss += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.trained_parameters.values(), MAX_GRADIENT_NORM))
    if math.isfinite(mean_loss) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        optimizer.step()
    return mean_loss, norm


def _sequence_loss(
    model: TrainedModel, sequence: TrainingSequence, positions: NDArray[np.int64]
) -> torch.Tensor:
    """Return the summed loss of a sequence, a scalar in nats."""
    return model.loss(
        torch.from_numpy(sequence.tokens.astype(np.int64)).to(model.device),
        torch.from_numpy(positions).to(model.device),
        torch.from_numpy(sequence.loss_mask).to(model.device),
    )


def _position_ids(
    sequence: TrainingSequence, window: int, settings: FinetuneSettings, rng: np.random.Generator
) -> NDArray[np.int64]:
    length = len(sequence.tokens)
    return pose_positions(length, window, rng) if settings.position_skipping else contiguous_positions(length)


def _rng(settings: FinetuneSettings, stream: int, number: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, stream, number])


def _current_state(step: int, model: TrainedModel, optimizer: torch.optim.Optimizer) -> TrainingState:
    parameters = {name: value.detach().cpu() for name, value in model.trained_parameters.items()}
    return TrainingState(step, parameters, optimizer.state_dict())


def _restore_state(model: TrainedModel, optimizer: torch.optim.Optimizer, state: TrainingState | None) -> int:
    """Load a saved state into model and optimizer, and return its step; 0 if there is none."""
    if state is None:
        return 0
    with torch.no_grad():
        for name, parameter in model.trained_parameters.items():
            parameter.copy_(state.parameters[name])
    optimizer.load_state_dict(state.optimizer)
    return state.step
