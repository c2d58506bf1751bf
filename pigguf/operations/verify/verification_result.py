"""What a verification found: parts, each with its verdict and its evidence."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Verdict = Literal["same", "same but for its quantization", "different", "not compared"]

UNQUANTIZED = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Discrepancy:
    """Something that is not as in the checkpoint: a key, a tensor or a rule, and how it is in both."""

    name: str
    description: str


@dataclass(frozen=True)
class VerificationPart:
    """What was compared beside predictions.

    Attributes:
        compared: how many facts.
        differences: those that make the file another model.
        notes: those that do not.
    """

    compared: int
    differences: tuple[Discrepancy, ...]
    notes: tuple[Discrepancy, ...] = ()

    @property
    def verdict(self) -> Verdict:
        return "different" if self.differences else "same"


@dataclass(frozen=True)
class DepthComparison:
    """The predictions of the last tokens before a depth.

    Attributes:
        depth: in tokens; tokens: how many predictions.
        divergence: mean of D(checkpoint || file), in nats; limit: how large it may be.
        same_top: the share of predictions whose likeliest token is the checkpoint's.
        log_p, source_log_p: mean log-probability of the text's tokens, the file's and the checkpoint's.
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
        return self.kl_divergence <= self.kl_limit


@dataclass(frozen=True)
class LogitsComparison:
    """What both make of a text.

    Attributes:
        type: of the file's weights: the coarsest that a tenth of them is kept in.
        text: what was read.
        depths: from the least to the deepest.
        refused: why they were not compared; "" where they were.
    """

    type: str
    text: str
    depths: tuple[DepthComparison, ...] = ()
    skipped_reason: str = ""

    @property
    def first_failing_depth(self) -> int | None:
        """The first depth at which the file is further from the checkpoint than it may be."""
        return next((depth.depth for depth in self.depths if not depth.within_limit), None)

    @property
    def verdict(self) -> Verdict:
        if self.skipped_reason:
            return "not compared"
        if self.first_failing_depth is not None:
            return "different"
        return "same" if self.type in UNQUANTIZED else "same but for its quantization"


@dataclass(frozen=True)
class VerificationResult:
    """How a file compares with a checkpoint.

    Attributes:
        file, source: the two.
        context_length: the checkpoint's window, in tokens.
        structure, tokenizer, weights, predictions: the parts.
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
        """Different where any part is; else the predictions' own."""
        parts = (self.structure, self.tokenizer, self.weights)
        return "different" if any(part.differences for part in parts) else self.logits.verdict

    @property
    def differences(self) -> tuple[Discrepancy, ...]:
        """All that make the file another model, the predictions apart."""
        return (*self.structure.differences, *self.tokenizer.differences, *self.weights.differences)

    @property
    def notes(self) -> tuple[Discrepancy, ...]:
        """All that do not."""
        return (*self.structure.notes, *self.tokenizer.notes, *self.weights.notes)
