"""FinetuneSettings: the hyperparameters of a fine-tuning run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pigguf.errors import UsageError

FinetuneMethod = Literal["full", "lora"]
ExtraModules = Literal["norms", "embeddings"]
LearningRateSchedule = Literal["constant", "cosine"]

# A run may be resumed with other values of these, because they do not change the steps already done.
RESUMABLE_CHANGES = ("steps", "learning_rate", "every")


@dataclass(frozen=True)
class FinetuneSettings:
    """The hyperparameters of a fine-tuning run. Defaults are the paper's where it states them (Section 3.1).

    Attributes:
        factor: the linear rope scaling factor, over 1; the context window becomes `factor` times the original
            one.
        method: "lora" trains low-rank adapters of the attention projections, "full" all weights.
        rank: the rank of the LoRA matrices.
        alpha: the LoRA scaling: the product of the matrices is multiplied by alpha / rank.
        train: modules that are trained in full besides LoRA (LongLoRA, arXiv 2309.12307, Section 3.3).
        sequence_length: the tokens of a training sequence; None is the extended context window.
        position_skipping: whether to skip positions in each sequence, so that the positions of sequences that
            are shorter than the extended window spread over it (PoSE, arXiv 2309.10400).
        steps: the number of optimizer steps.
        batch: the number of sequences a step; gradients are accumulated over them.
        learning_rate: the peak learning rate; None is 2e-5 for "full", as in the paper, and 2e-4 for "lora".
        schedule: the learning rate after the warm-up; the paper does not state it.
        held_out: the number of sequences that are not trained on, to measure the loss on.
        every: the number of steps between measurements, after each of which the state is saved.
        gradient_checkpointing: whether to recompute activations in the backward pass, to save memory.
        dtype: the dtype of the computation; trained weights and optimizer states are always float32.
        device: a PyTorch device such as "cpu" or "cuda:1"; None is a GPU if there is one.
        seed: of the order of sequences, the skipped positions and the LoRA initialization.

    Raises:
        UsageError: if a value is out of range.
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
                raise UsageError(f"`{name}` is {getattr(self, name)}", "give a number of 1 or more")
        if self.sequence_length is not None and self.sequence_length < 2:
            raise UsageError(f"a sequence of {self.sequence_length} tokens has no next token to predict")
        if self.learning_rate is not None and not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"the learning rate is {self.learning_rate}", "give a number such as 2e-5")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate at the end of the warm-up."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 2e-5 if self.method == "full" else 2e-4

    def as_data(self) -> dict[str, Any]:
        """Return the settings for JSON: those of training.json."""
        return {**asdict(self), "train": list(self.train)}

    def difference(self, earlier: Mapping[str, Any]) -> str | None:
        """Return the first setting that prevents resuming a run, in words; None if the run can be resumed.

        Args:
            earlier: the settings of that run, from `as_data`.
        """
        for name, value in self.as_data().items():
            if name not in RESUMABLE_CHANGES and earlier.get(name) != value:
                return f"{name} was {earlier.get(name)!r} and is {value!r}"
        return None
