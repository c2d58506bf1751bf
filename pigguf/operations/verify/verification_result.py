"""The result of `pigguf verify`: parts, each with its verdict and its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pigguf.operations.verify.discrepancy import Discrepancy

Verdict = Literal["same", "same except for quantization", "different", "not compared"]

UNQUANTIZED_TYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class VerificationPart:
    """The comparison of structure, tokenizer or weights.

    Attributes:
        compared: How many facts, tokens or tensors were compared.
        differences: Those that make the file another model.
        notes: Those that do not.
    """

    compared: int
    differences: tuple[Discrepancy, ...]
    notes: tuple[Discrepancy, ...] = ()

    @property
    def verdict(self) -> Verdict:
        """Different if there is any difference; notes do not count."""
        return "different" if self.differences else "same"


@dataclass(frozen=True)
class DepthComparison:
    """The predictions of the last tokens before a depth.

    Attributes:
        depth: The depth in tokens.
        tokens: How many predictions were compared.
        kl_divergence: The mean of D(checkpoint || file), in nats.
        kl_limit: How large it may be, in nats.
        same_top: The share of predictions whose most likely token is the checkpoint's.
        log_p: The mean log-probability of the text's tokens, by the file.
        source_log_p: The same by the checkpoint.
    """

    depth: int
    tokens: int
    kl_divergence: float
    kl_limit: float
    same_top: float
    log_p: float
    source_log_p: float

    @property
    def within_limit(self) -> bool:
        """Whether the divergence is no larger than it may be."""
        return self.kl_divergence <= self.kl_limit


@dataclass(frozen=True)
class LogitsComparison:
    """The predictions of a text by the file and by the checkpoint.

    Attributes:
        type: The type of the file's weights: the smallest that holds at least a tenth of them.
        text: The name of the text.
        depths: The comparisons, from the least depth to the greatest.
        skipped_reason: Why nothing was compared, or "".
    """

    type: str
    text: str
    depths: tuple[DepthComparison, ...] = ()
    skipped_reason: str = ""

    @property
    def first_failing_depth(self) -> int | None:
        """The first depth at which the divergence is over its limit, or None."""
        return next((depth.depth for depth in self.depths if not depth.within_limit), None)

    @property
    def verdict(self) -> Verdict:
        """Whether the predictions are those of the checkpoint, up to what the type rounds."""
        if self.skipped_reason:
            return "not compared"
        if self.first_failing_depth is not None:
            return "different"
        return "same" if self.type in UNQUANTIZED_TYPES else "same except for quantization"


@dataclass(frozen=True)
class VerificationResult:
    """How a file compares with a checkpoint.

    Attributes:
        file: The GGUF file.
        source: The checkpoint.
        context_length: The checkpoint's context length, in tokens.
        structure: Keys and tensor shapes.
        tokenizer: Vocabulary and rules.
        weights: The tensors' values.
        logits: The predictions of a text.
    """

    file: Path
    source: str
    context_length: int
    structure: VerificationPart
    tokenizer: VerificationPart
    weights: VerificationPart
    logits: LogitsComparison

    @property
    def verdict(self) -> Verdict:
        """Different if any part is, else the verdict of the predictions."""
        return "different" if self.differences else self.logits.verdict

    @property
    def differences(self) -> tuple[Discrepancy, ...]:
        """Everything that makes the file another model, except predictions."""
        return (*self.structure.differences, *self.tokenizer.differences, *self.weights.differences)

    @property
    def notes(self) -> tuple[Discrepancy, ...]:
        """Everything that differs without making the file another model."""
        return (*self.structure.notes, *self.tokenizer.notes, *self.weights.notes)
