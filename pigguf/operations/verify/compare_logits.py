"""Predictions: a text through a file in the engine and through its checkpoint in transformers, side by side.

Both have float32 caches, and at each depth the last STRETCH predictions before it are compared. How far they
may be apart, as the mean of D(checkpoint || file) over a stretch in nats, is a matter of the type that the
file's weights have, the coarsest that a tenth of them is kept in:

    float types     FLOATS. In float32 nothing is rounded but sums (1e-14 to 1e-7 in tests); in float16 and
                    bfloat16 the weights are and, in ggml's kernels, what they are multiplied with
                    (1e-6 and 1e-4).
    quantized       QUANTIZED, by the bits of a weight: about ten times what such types cost Llama 3 8B
                    (llama.cpp tools/perplexity/README.md: Q8_0 0.0014, Q6_K 0.0055, Q5_0 0.022, Q4_0 0.072,
                    Q3_K_M 0.10, Q2_K 0.45). Smaller models lose more (SmolLM2-135M: 0.0039, 0.0087, 0.073,
                    0.30, 0.15), and a stretch is a small sample.

Quantization costs about as much at any depth; wrong positions cost more the deeper a token stands. So a
deeper stretch may not be further off than GROWTH times the first one either, but for what is small for the
type (a QUIET part of the limit), where the ratio of two samples says nothing.

Left out: what costs no more than a coarse type does. At four bits that may be a base ten times too small
(0.3 in SmolLM2-135M, whose Q4_0 costs as much) or a near fine-tune: header.py and weights.py tell these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pigguf.architectures import Family
from pigguf.checkpoint import Checkpoint
from pigguf.common.numerics import kl_divergence
from pigguf.errors import CheckpointError, UnsupportedModel
from pigguf.gguf_io import GGUFFile, TensorType, block_elements, row_bytes
from pigguf.inference.engine import Context, ContextOptions, Model, RuntimeRope, Session
from pigguf.operations.convert import ConversionPlan
from pigguf.operations.rope_from_gguf import rope_from_gguf
from pigguf.operations.verify.evaluation_text import EvaluationText
from pigguf.operations.verify.verification_result import DepthComparison, LogitsComparison
from pigguf.progress import Progress, stage

if TYPE_CHECKING:
    from pigguf.operations.verify.transformers_reference import TransformersReference

STRETCH = 64  # predictions compared at a depth
GROWTH = 5.0
QUIET = 0.2

_CHUNK = 256  # tokens computed at once; the logits of so many are held
_TENTH = 0.1


class KLLimit(NamedTuple):
    """How far predictions may be apart where a weight has so many bits, or more."""

    bits: float
    divergence: float


FLOATS = {"F32": 1e-5, "F16": 2e-4, "BF16": 2e-3}
QUANTIZED = (
    KLLimit(8, 0.02),
    KLLimit(6, 0.06),
    KLLimit(5.25, 0.2),
    KLLimit(4, 0.5),
    KLLimit(3, 1.0),
    KLLimit(2, 3.0),
    KLLimit(0, 6.0),
)


def compare_logits(
    file: GGUFFile,
    checkpoint: Checkpoint,
    family: Family,
    plan: ConversionPlan,
    text: EvaluationText,
    depths: list[int],
    progress: Progress,
) -> LogitsComparison:
    """Both through the text up to the deepest depth, side by side."""
    kind = _coarsest(file)
    said = LogitsComparison(kind.name, text.name)
    try:
        reference = _reference(checkpoint, family, plan, depths[-1])
    except UnsupportedModel as error:
        return replace(said, skipped_reason=error.message)
    longer = depths[-1] > _window(
        file
    )  # what the structure tells of; the predictions are compared all the same
    with (
        Model.open(
            file.path, gpu_layers=0, rope=RuntimeRope(context_length=depths[-1]) if longer else None
        ) as model,
        Context(model, _options(depths[-1])) as context,
        context.sequence() as session,
    ):
        if model.vocab_size != reference.vocab_size:
            sizes = f"{model.vocab_size:,} tokens in the file, {reference.vocab_size:,} in the checkpoint"
            return replace(said, skipped_reason=f"the vocabularies are not of one size: {sizes}")
        tokens = text.tokens[: depths[-1]]
        compared = dict(_compared(session, reference, tokens, set(_wanted(depths)), progress))
    return replace(said, depths=_by_depth(depths, compared, kind))


def _reference(
    checkpoint: Checkpoint, family: Family, plan: ConversionPlan, length: int
) -> TransformersReference:
    from pigguf.operations.verify.transformers_reference import load_reference

    return load_reference(checkpoint, family, plan.hparams, length)


def _window(file: GGUFFile) -> int:
    return rope_from_gguf(file).context_length


def _options(length: int) -> ContextOptions:
    """Nothing rounded that need not be: what is compared is the weights and the positions."""
    return ContextOptions(length=length, batch=_CHUNK, cache_k="f32", cache_v="f32", flash_attention=False)


def _stretches(depths: Sequence[int]) -> Iterator[range]:
    """For each depth the tokens that are foretold: the last before it, and none of them twice."""
    before = 1  # nothing foretells the first
    for depth in depths:
        yield range(max(before, depth - STRETCH), depth)
        before = depth


def _wanted(depths: Sequence[int]) -> Iterator[int]:
    """Every token that is foretold."""
    for stretch in _stretches(depths):
        yield from stretch


class _Prediction(NamedTuple):
    """What both make of one token: nats, whether both would have said the same, and how likely it was."""

    divergence: float
    same_top: bool
    log_p: float
    source_log_p: float


def _compared(
    session: Session,
    reference: TransformersReference,
    tokens: list[int],
    wanted: set[int],
    progress: Progress,
) -> Iterator[tuple[int, _Prediction]]:
    """Each wanted token's index with what both made of it; the logits of one chunk are held."""
    with stage(progress, "comparing", len(tokens), "tokens"):
        for start in range(0, len(tokens), _CHUNK):
            chunk = tokens[start : start + _CHUNK]
            theirs = reference.logits(chunk)
            here = [i for i in range(len(chunk)) if start + i + 1 in wanted]  # logits speak of the next token
            for i, ours in session.evaluate(chunk, here):
                if not np.isfinite(ours).all():
                    raise session.nonfinite_logits_error()
                yield start + i + 1, _predicted(ours, theirs[i], tokens[start + i + 1])
            progress.advance(len(chunk))


def _predicted(ours: NDArray[np.float32], theirs: NDArray[np.float32], token: int) -> _Prediction:
    distance, same_top, log_p, source_log_p = kl_divergence(theirs, ours, token)
    if not math.isfinite(source_log_p):
        raise CheckpointError(
            "the checkpoint computes logits that are not numbers",
            "the weights are damaged: download it again",
        )
    return _Prediction(distance, bool(same_top), log_p, source_log_p)


def _by_depth(
    depths: Sequence[int], compared: Mapping[int, _Prediction], kind: TensorType
) -> tuple[DepthComparison, ...]:
    most = FLOATS.get(kind.name) or next(limit.divergence for limit in QUANTIZED if _bits(kind) >= limit.bits)
    made: list[DepthComparison] = []
    for depth, stretch in zip(depths, _stretches(depths), strict=True):
        columns = np.array([compared[token] for token in stretch], dtype=np.float64)
        divergence, same_top, log_p, source_log_p = map(float, columns.mean(axis=0))
        limit = min(most, max(GROWTH * made[0].kl_divergence, QUIET * most)) if made else most
        made.append(DepthComparison(depth, len(stretch), divergence, limit, same_top, log_p, source_log_p))
    return tuple(made)


def _coarsest(file: GGUFFile) -> TensorType:
    """The type of the fewest bits that a tenth of the weights is kept in."""
    counts: dict[TensorType, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.elements
    much = (kind for kind, count in counts.items() if count >= _TENTH * sum(counts.values()))
    return min(much, key=_bits, default=TensorType.F32)


def _bits(kind: TensorType) -> float:
    """Bits that a weight of a type takes."""
    block = block_elements(kind)
    return 8 * row_bytes(kind, block) / block
