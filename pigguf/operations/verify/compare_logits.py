"""Predictions: a text through a file in llama.cpp and through its checkpoint in transformers, side by side.

Both have float32 KV caches. At each depth the last 64 predictions before it are compared. How large the mean
of D(checkpoint || file) over them may be, in nats, depends on the type of the file's weights, the smallest
that holds at least a tenth of them:

    float types     FLOAT_LIMITS. In float32 only sums are rounded (1e-14 to 1e-7 in tests); in float16 and
                    bfloat16 so are the weights and, in ggml's kernels, the activations (1e-6 and 1e-4).
    quantized       QUANTIZED_LIMITS, by the bits per weight: about ten times what such types cost Llama 3 8B
                    (llama.cpp tools/perplexity/README.md: Q8_0 0.0014, Q6_K 0.0055, Q5_0 0.022, Q4_0 0.072,
                    Q3_K_M 0.10, Q2_K 0.45). Smaller models lose more (SmolLM2-135M: 0.0039, 0.0087, 0.073,
                    0.30, 0.15), and 64 predictions are a small sample.

Quantization costs about as much at any depth; wrong positions cost more with depth. So the divergence at a
deeper depth may not exceed GROWTH times that at the first one either, unless it is small for the type (a
fraction NEGLIGIBLE of the limit), where the ratio of two samples means nothing.

Not here: errors that cost no more than a coarse type does. At four bits that may be a rope theta ten times
too small (0.3 in SmolLM2-135M, whose Q4_0 costs as much) or a similar fine-tune: compare_structure.py and
compare_weights.py find these.
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
from pigguf.common.softmax_and_kl import kl_divergence
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

PREDICTIONS_PER_DEPTH = 64  # predictions compared before each depth
GROWTH = 5.0
NEGLIGIBLE = 0.2

_BATCH_TOKENS = 256  # computed at once; the logits of one batch are in memory
_MIN_SHARE = 0.1  # of the weights, for their type to count


class KLLimit(NamedTuple):
    """The largest mean divergence, in nats, for weights of at least `bits` bits."""

    bits: float
    divergence: float


FLOAT_LIMITS = {"F32": 1e-5, "F16": 2e-4, "BF16": 2e-3}
QUANTIZED_LIMITS = (
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
    """Compare a text's logits by the file and by the checkpoint at each depth.

    Args:
        file: The file's header.
        checkpoint: The checkpoint.
        family: The checkpoint's family.
        plan: What convert would make of the checkpoint.
        text: The text, at least as long as the last depth.
        depths: Ascending, in tokens.
        progress: Reports one stage, "comparing", in tokens.

    Raises:
        CheckpointError: transformers cannot load the checkpoint, or computes NaN with it.
        EngineError: llama.cpp cannot compute the file.
        DoesNotFit: Memory does not suffice for both models.
    """
    weight_type = _weight_type(file)
    skipped = LogitsComparison(weight_type.name, text.name)
    try:
        reference = _load_reference(checkpoint, family, plan, depths[-1])
    except UnsupportedModel as error:
        return replace(skipped, skipped_reason=error.message)
    # a file with too short a window is a difference of structure; predictions are compared all the same
    is_beyond_window = depths[-1] > rope_from_gguf(file).context_length
    rope = RuntimeRope(context_length=depths[-1]) if is_beyond_window else None
    with (
        Model.open(file.path, gpu_layers=0, rope=rope) as model,
        Context(model, _context_options(depths[-1])) as context,
        context.sequence() as session,
    ):
        if model.vocab_size != reference.vocab_size:
            sizes = f"{model.vocab_size:,} tokens in the file, {reference.vocab_size:,} in the checkpoint"
            return replace(skipped, skipped_reason=f"the vocabularies differ in size: {sizes}")
        tokens = text.tokens[: depths[-1]]
        compared = {index for span in _spans(depths) for index in span}
        predictions = dict(_compare_predictions(session, reference, tokens, compared, progress))
    return replace(skipped, depths=_by_depth(depths, predictions, weight_type))


def _load_reference(
    checkpoint: Checkpoint, family: Family, plan: ConversionPlan, length: int
) -> TransformersReference:
    from pigguf.operations.verify.transformers_reference import load_reference  # needs the extra

    return load_reference(checkpoint, family, plan.hparams, length)


def _context_options(length: int) -> ContextOptions:
    """Return options with as little rounding as possible: weights and positions are what is compared."""
    return ContextOptions(
        length=length, batch=_BATCH_TOKENS, cache_k="f32", cache_v="f32", flash_attention=False
    )


def _spans(depths: Sequence[int]) -> Iterator[range]:
    """Yield, for each depth, the indices of the tokens whose predictions count: the last before it."""
    start = 1  # nothing predicts the first token
    for depth in depths:
        yield range(max(start, depth - PREDICTIONS_PER_DEPTH), depth)
        start = depth


class _Prediction(NamedTuple):
    """The prediction of one token by both models.

    Attributes:
        kl_divergence: D(checkpoint || file), in nats.
        same_top: Whether the most likely token is the same.
        log_p, source_log_p: The token's log-probability by the file and by the checkpoint.
    """

    kl_divergence: float
    same_top: bool
    log_p: float
    source_log_p: float


def _compare_predictions(
    session: Session,
    reference: TransformersReference,
    tokens: list[int],
    compared: set[int],
    progress: Progress,
) -> Iterator[tuple[int, _Prediction]]:
    """Yield the index of each token in `compared`, with its prediction by both models."""
    with stage(progress, "comparing", len(tokens), "tokens"):
        for start in range(0, len(tokens), _BATCH_TOKENS):
            batch = tokens[start : start + _BATCH_TOKENS]
            reference_logits = reference.logits(batch)  # (n_batch, n_vocab)
            # the logits at a token predict the next one
            outputs = [i for i in range(len(batch)) if start + i + 1 in compared]
            for i, logits in session.evaluate(batch, outputs):
                if not np.isfinite(logits).all():
                    raise session.nonfinite_logits_error()
                token = tokens[start + i + 1]
                yield start + i + 1, _compare_prediction(logits, reference_logits[i], token)
            progress.advance(len(batch))


def _compare_prediction(
    logits: NDArray[np.float32], reference_logits: NDArray[np.float32], token: int
) -> _Prediction:
    divergence, same_top, log_p, source_log_p = kl_divergence(reference_logits, logits, token)
    if not math.isfinite(source_log_p):
        raise CheckpointError(
            "the checkpoint computes logits that are not finite",
            "the weights are damaged: download it again",
        )
    return _Prediction(divergence, bool(same_top), log_p, source_log_p)


def _by_depth(
    depths: Sequence[int], predictions: Mapping[int, _Prediction], weight_type: TensorType
) -> tuple[DepthComparison, ...]:
    """Return the means of the predictions before each depth, with their limits."""
    type_limit = _type_limit(weight_type)
    comparisons: list[DepthComparison] = []
    for depth, span in zip(depths, _spans(depths), strict=True):
        columns = np.array([predictions[token] for token in span], dtype=np.float64)
        divergence, same_top, log_p, source_log_p = map(float, columns.mean(axis=0))
        limit = type_limit
        if comparisons:
            growth_limit = max(GROWTH * comparisons[0].kl_divergence, NEGLIGIBLE * type_limit)
            limit = min(type_limit, growth_limit)
        comparisons.append(
            DepthComparison(depth, len(span), divergence, limit, same_top, log_p, source_log_p)
        )
    return tuple(comparisons)


def _type_limit(weight_type: TensorType) -> float:
    bits = _bits_per_weight(weight_type)
    return FLOAT_LIMITS.get(weight_type.name) or next(
        limit.divergence for limit in QUANTIZED_LIMITS if bits >= limit.bits
    )


def _weight_type(file: GGUFFile) -> TensorType:
    """Return the type with the fewest bits that holds at least _MIN_SHARE of the weights."""
    counts: dict[TensorType, int] = {}
    for tensor in file.tensors.values():
        if len(tensor.shape) > 1:
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.elements
    total = sum(counts.values())
    common = (kind for kind, count in counts.items() if count >= _MIN_SHARE * total)
    return min(common, key=_bits_per_weight, default=TensorType.F32)


def _bits_per_weight(kind: TensorType) -> float:
    block = block_elements(kind)
    return 8 * row_bytes(kind, block) / block
