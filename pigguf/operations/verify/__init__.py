"""Verify: whether a GGUF file, by any converter, is the same model as a checkpoint, at depth too.

    result = verify("model-Q4_K_M.gguf", "path/to/checkpoint", text="novel.txt", depths=[512, 8192])

    compare_structure.py       keys and tensor shapes against what convert would write
    compare_tokenizer.py       vocabulary, special tokens, chat template, and the tokens of many texts
    compare_weights.py         the values, up to what their types round
    compare_logits.py          a text through the file in llama.cpp and through the checkpoint in transformers
    transformers_reference.py  the checkpoint in transformers
    evaluation_text.py         which text, and at which depths
    verification_result.py     VerificationResult and its parts
    discrepancy.py             how one thing differs

Not here: adapters (merge them into a checkpoint first), and convert's check of what it wrote
(operations/readback.py).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from pigguf.architectures import family_from_config
from pigguf.checkpoint import Checkpoint
from pigguf.errors import MissingPackage
from pigguf.gguf_io import read_header
from pigguf.operations.convert import plan_conversion, read_quantization_params
from pigguf.operations.verify.compare_logits import compare_logits
from pigguf.operations.verify.compare_structure import compare_structure
from pigguf.operations.verify.compare_tokenizer import compare_tokenizer
from pigguf.operations.verify.compare_weights import compare_weights
from pigguf.operations.verify.discrepancy import Discrepancy
from pigguf.operations.verify.evaluation_text import (
    MIN_DEPTH,
    check_long_enough,
    default_depths,
    max_depth,
    read_evaluation_text,
)
from pigguf.operations.verify.verification_result import (
    DepthComparison,
    LogitsComparison,
    Verdict,
    VerificationPart,
    VerificationResult,
)
from pigguf.progress import SILENT, Progress
from pigguf.rope import RopeOverrides
from pigguf.tokenizer import load_reference_encoder

__all__ = [
    "DepthComparison",
    "Discrepancy",
    "LogitsComparison",
    "Verdict",
    "VerificationPart",
    "VerificationResult",
    "verify",
]

PACKAGES = ("torch", "transformers")
DEFAULT_TOKENS = 2048  # a 7B in float32 takes a laptop some minutes for them


def verify(
    file: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    depths: Sequence[int] | None = None,
    tokens: int = DEFAULT_TOKENS,
    progress: Progress = SILENT,
) -> VerificationResult:
    """Compare a GGUF file with a checkpoint.

    Args:
        file: The GGUF; of a split model any file.
        source: The checkpoint: a directory or a name on the hub, as for convert.
        text: A file of UTF-8 text; by default short texts in many languages and code, in an order that does
            not repeat. Text like what the model is used for is more telling.
        depths: Where to compare predictions, in tokens; by default at a quarter, half and end of the original
            window, and half and end of the extended one.
        tokens: The most tokens to evaluate without `depths`: longer windows count as this long.
        progress: Reports the bytes fetched, then "comparing weights" in bytes and "comparing" in tokens.

    Raises:
        MissingPackage: The extra pigguf[verify] is not installed.
        GGUFError: The file is damaged, or not a GGUF.
        CheckpointError, TokenizerError, UnsupportedModel, RopeConflict, HubError: As `convert` does.
        UsageError: A depth is too small.
        ContextOverflow: A depth is beyond the checkpoint's context length.
        TextError: The text is too short for the depths.
        DoesNotFit: Memory does not suffice for both models.
    """
    _require_packages()
    gguf = read_header(file)
    with Checkpoint.open(source, progress) as checkpoint:
        family = family_from_config(checkpoint.config)
        plan = plan_conversion(checkpoint, read_quantization_params("F32", None, None), RopeOverrides())
        count = max_depth(depths, tokens, plan.rope.context_length)
        encode = load_reference_encoder(checkpoint.path)
        evaluated = read_evaluation_text(text, count, plan.vocab, encode)
        check_long_enough(evaluated, MIN_DEPTH if depths is None else count)
        at = default_depths(plan.rope, len(evaluated.tokens)) if depths is None else sorted(set(depths))
        return VerificationResult(
            file=gguf.path,
            source=str(source),
            context_length=plan.rope.context_length,
            structure=compare_structure(gguf, family, plan),
            tokenizer=compare_tokenizer(gguf, plan.vocab, encode, evaluated.text),
            weights=compare_weights(gguf, plan, progress),
            logits=compare_logits(gguf, checkpoint, family, plan, evaluated, at, progress),
        )


def _require_packages() -> None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(
                f"verifying against a checkpoint needs the package {name}",
                'install it: pip install -e ".[verify]" in the clone',
            )
