"""The loop: AdamW on the next-token loss, a warm-up, and measurements on what is not trained on.

Paper, Section 3.1: AdamW with beta 0.9 and 0.95, no weight decay, 20 warm-up steps from 10 % of the
peak. Every sequence weighs the same in a step: its loss is the mean over the tokens that count.
What a step trains on follows from the seed and the step alone, so that a run that was killed goes on
as if it had not been.
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
from pigguf.finetuning.training_state import TrainingState, TrainingDirectory
from pigguf.progress import Progress, stage

BETAS = (0.9, 0.95)
WARM_UP_STEPS = 20
WARM_UP_FROM = 0.1  # of the peak
COSINE_TO = 0.1  # of the peak
MAX_GRADIENT_NORM = 1.0  # the most that the gradient's norm may be

# What a generator of random numbers is drawn for, beside the seed and a number.
ORDER, POSITIONS, MEASUREMENT = range(3)


def split_held_out(
    sequences: Sequence[TrainingSequence], count: int
) -> tuple[list[TrainingSequence], list[TrainingSequence]]:
    """Sequences to train on, and `count` spread evenly over all of them, of every kind, to measure."""
    held = (
        {round((i + 0.5) * len(sequences) / count) for i in range(count)} if len(sequences) > count else set()
    )
    if not held:
        raise TextError(
            f"the text gives {len(sequences)} sequences, and {count} of them would be held out",
            "give more text, a shorter --sequence-length, or fewer --held-out",
        )
    return (
        [sequence for i, sequence in enumerate(sequences) if i not in held],
        [sequence for i, sequence in enumerate(sequences) if i in held],
    )


def learning_rate_at(settings: FinetuneSettings, step: int) -> float:
    """What step `step`, from 0, is taken with."""
    if step < WARM_UP_STEPS:
        return settings.peak_learning_rate * (WARM_UP_FROM + (1 - WARM_UP_FROM) * step / WARM_UP_STEPS)
    if settings.schedule == "constant":
        return settings.peak_learning_rate
    done = (step - WARM_UP_STEPS) / max(1, settings.steps - WARM_UP_STEPS)
    return settings.peak_learning_rate * (COSINE_TO + (1 - COSINE_TO) * (1 + math.cos(math.pi * min(1.0, done))) / 2)


def train(
    model: TrainedModel,
    sequences: Sequence[TrainingSequence],
    window: int,
    settings: FinetuneSettings,
    workplace: TrainingDirectory,
    state: TrainingState | None,
    progress: Progress,
    listen: StepCallback,
) -> None:
    """Train up to settings.steps, from `state` on, and leave the trained weights in the model.

    Raises:
        TrainingError: the loss is no number; the last good state is kept.
        DoesNotFit: the device's memory is exhausted.
        OutputError: the state cannot be written; the one before it is kept.
    """
    trained_on, held_out = split_held_out(sequences, settings.held_out)
    optimizer = torch.optim.AdamW(model.trained.values(), lr=settings.peak_learning_rate, betas=BETAS, weight_decay=0.0)
    saved = _restore(model, optimizer, state)
    _refuse_fewer_steps(saved, settings)
    log = workplace.truncate_log(saved + 1)
    tokens = log[-1]["tokens"] if saved else 0

    def tell(step: StepMetrics) -> None:
        workplace.append_log(step.as_data())
        listen(step)

    with (
        _within_memory(model, settings.sequence_length or window),
        stage(progress, "training", settings.steps, "steps"),
    ):
        progress.advance(saved)
        if not saved:
            tell(StepMetrics(0, held_out=evaluate_held_out(model, held_out, window, settings)))
        for step in range(saved + 1, settings.steps + 1):
            started = time.monotonic()
            rate = learning_rate_at(settings, step - 1)
            batch = list(iter_batch(trained_on, window, settings, step - 1))
            loss, norm = _step(model, optimizer, batch, rate)
            _refuse_divergence(step, loss, norm, saved, settings, workplace)
            tokens += sum(len(sequence.tokens) for sequence, _ in batch)
            is_due = step == settings.steps or step % settings.every == 0
            measured = evaluate_held_out(model, held_out, window, settings) if is_due else None
            tell(StepMetrics(step, loss, rate, norm, tokens, time.monotonic() - started, measured))
            if is_due:
                workplace.save_state(_state(step, model, optimizer))
                saved = step
            progress.advance(1)


def _refuse_fewer_steps(done: int, settings: FinetuneSettings) -> None:
    if done > settings.steps:
        raise UsageError(f"{done} steps are done already and {settings.steps} were asked for", "ask for more")


def _refuse_divergence(
    step: int, loss: float, norm: float, saved: int, settings: FinetuneSettings, workplace: TrainingDirectory
) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        kept = f"the state of step {saved} is kept in {workplace.path}" if saved else "nothing was saved"
        raise TrainingError(
            f"the loss of step {step} is {loss}, its gradient {norm}: training has diverged; {kept}",
            f"go on with a lower --learning-rate than {settings.peak_learning_rate:g}",
        )


@contextmanager
def _within_memory(model: TrainedModel, length: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DoesNotFit(
            f"a sequence of {length:,} tokens does not fit on {model.device}",
            "take --gradient-checkpointing, a shorter --sequence-length with --position-skipping, or LoRA",
        ) from error


def iter_batch(
    sequences: Sequence[TrainingSequence], window: int, settings: FinetuneSettings, step: int
) -> Iterator[tuple[TrainingSequence, NDArray[np.int64]]]:
    """A step's sequences, each with its positions: every sequence comes once before any comes again."""
    for number in range(step * settings.batch, (step + 1) * settings.batch):
        epoch, place = divmod(number, len(sequences))
        order = _random(settings, ORDER, epoch).permutation(len(sequences))
        sequence = sequences[order[place]]
        yield sequence, _positions(sequence, window, settings, _random(settings, POSITIONS, number))


@torch.no_grad()
def evaluate_held_out(
    model: TrainedModel, sequences: Sequence[TrainingSequence], window: int, settings: FinetuneSettings
) -> dict[str, float]:
    """Mean loss in nats a token by kind of sequence, at positions that are the same at every call."""
    sums: dict[str, tuple[float, int]] = {}
    for number, sequence in enumerate(sequences):
        positions = _positions(sequence, window, settings, _random(settings, MEASUREMENT, number))
        loss, count = float(_loss(model, sequence, positions)), int(sequence.loss_mask.sum())
        total, counted = sums.get(sequence.kind, (0.0, 0))
        sums[sequence.kind] = total + loss, counted + count
    return {kind: total / count for kind, (total, count) in sums.items()}


def _step(
    model: TrainedModel,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[tuple[TrainingSequence, NDArray[np.int64]]],
    rate: float,
) -> tuple[float, float]:
    """One update, taken only if it is finite; the mean loss, and the gradient's norm before clipping."""
    optimizer.zero_grad()
    total = 0.0
    for sequence, positions in batch:
        loss = _loss(model, sequence, positions) / (int(sequence.loss_mask.sum()) * len(batch))
        loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    norm = float(torch.nn.utils.clip_grad_norm_(model.trained.values(), MAX_GRADIENT_NORM))
    if math.isfinite(total) and math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return total, norm


def _loss(model: TrainedModel, sequence: TrainingSequence, positions: NDArray[np.int64]) -> torch.Tensor:
    return model.loss(
        torch.from_numpy(sequence.tokens.astype(np.int64)).to(model.device),
        torch.from_numpy(positions).to(model.device),
        torch.from_numpy(sequence.loss_mask).to(model.device),
    )


def _positions(
    sequence: TrainingSequence, window: int, settings: FinetuneSettings, random: np.random.Generator
) -> NDArray[np.int64]:
    length = len(sequence.tokens)
    return (
        pose_positions(length, window, random) if settings.position_skipping else contiguous_positions(length)
    )


def _random(settings: FinetuneSettings, purpose: int, number: int) -> np.random.Generator:
    return np.random.default_rng([settings.seed, purpose, number])


def _state(step: int, model: TrainedModel, optimizer: torch.optim.Optimizer) -> TrainingState:
    parameters = {name: value.detach().cpu() for name, value in model.trained.items()}
    return TrainingState(step, parameters, optimizer.state_dict())


def _restore(model: TrainedModel, optimizer: torch.optim.Optimizer, state: TrainingState | None) -> int:
    if state is None:
        return 0
    with torch.no_grad():
        for name, parameter in model.trained.items():
            parameter.copy_(state.parameters[name])
    optimizer.load_state_dict(state.optimizer)
    return state.step
