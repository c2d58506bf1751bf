"""What a fine-tuning is asked to do, in one frozen value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pigguf.errors import UsageError

FinetuneMethod = Literal["full", "lora"]
ExtraModules = Literal["norms", "embeddings"]
LearningRateSchedule = Literal["constant", "cosine"]

# A run may be gone on with other values of these: they do not change what was done so far.
CHANGEABLE = ("steps", "learning_rate", "every")


@dataclass(frozen=True)
class FinetuneSettings:
    """How to fine-tune; the defaults are the paper's where it tells them (Section 3.1).

    Attributes:
        factor: positions are divided by it; the window grows by it. It counts from the original window.
        method: "lora" trains matrices of low rank beside the attention's, "full" every weight.
        rank, alpha: of LoRA; its product is scaled by alpha / rank.
        train: what LoRA trains besides, whole (LongLoRA, arXiv 2309.12307, Section 3.3).
        sequence_length: tokens of a training sequence; None is the whole extended window.
        position_skipping: cut each sequence in two and shift the parts, so that their positions spread
            over the extended window (PoSE, arXiv 2309.10400).
        steps: optimizer steps.
        batch: sequences a step.
        learning_rate: its peak; None is the paper's 2e-5 for "full", and 2e-4 for "lora".
        schedule: what follows the warm-up; the paper does not tell.
        held_out: sequences that are measured and never trained on.
        every: steps between measurements of them, after each of which the state is saved.
        gradient_checkpointing: compute activations twice instead of keeping them.
        dtype: what is computed in; trained weights and their updates are float32 always.
        device: "cpu", "cuda", or None for a GPU where there is one.
        seed: of everything that is drawn.

    Raises:
        UsageError: a number that makes no sense.
    """

    factor: float
    method: FinetuneMethod = "lora"
    rank: int = 32
    alpha: int = 64
    train: tuple[ExtraModules, ...] = ()
    sequence_length: int | None = None
    position_skipping: bool = False
    steps: int = 1000
    batch: int = 8
    learning_rate: float | None = None
    schedule: LearningRateSchedule = "cosine"
    held_out: int = 8
    every: int = 50
    gradient_checkpointing: bool = False
    dtype: Literal["bf16", "f32"] = "bf16"
    device: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.factor > 1 or self.factor == float("inf"):
            raise UsageError(
                f"a factor of {self.factor:g} does not extend the window", "give a number over 1, such as 4"
            )
        for name in ("rank", "alpha", "steps", "batch", "held_out", "every"):
            if getattr(self, name) <= 0:
                raise UsageError(f"{name} is {getattr(self, name)}", "give a number from 1")
        if self.sequence_length is not None and self.sequence_length < 2:
            raise UsageError(f"a sequence of {self.sequence_length} tokens has nothing to predict")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"the learning rate is {self.learning_rate}", "give a number such as 2e-5")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.method == "full" else 2e-4

    def as_data(self) -> dict[str, Any]:
        """The settings as JSON tells them."""
        return {**asdict(self), "train": list(self.train)}

    def difference(self, earlier: Mapping[str, Any]) -> str | None:
        """What forbids going on with a run of earlier settings, in words; None where nothing does."""
        for name, value in self.as_data().items():
            if name not in CHANGEABLE and earlier.get(name) != value:
                return f"{name} was {earlier.get(name)!r} and is {value!r}"
        return None
