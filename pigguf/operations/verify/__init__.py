"""verify: is a GGUF, whoever made it, the checkpoint that it is said to be, at depth too?

    found = verify("model-Q4_K_M.gguf", "path/to/checkpoint", text="novel.txt", depths=[512, 8192])

    header.py       structure: what convert decides about the checkpoint against the file's keys and tensors;
                    tokenizer: special tokens, rules, chat template, and the tokens of many texts
    weights.py      the numbers themselves, but for what their types round
    predictions.py  a text through the file in the engine and through the checkpoint in transformers
                    (pigguf/operations/verify/transformers_reference.py), compared at depths
    inference/detokenizer.py         which text, and which depths
    result.py       what comes out

Left out: adapters, which are merged into a checkpoint first.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from pigguf.architectures import family_from_config
from pigguf.checkpoint import Checkpoint
from pigguf.errors import MissingPackage
from pigguf.gguf_io import read_header
from pigguf.operations.convert import plan_conversion, read_scheme
from pigguf.operations.verify.compare_header import compare_structure, compare_tokenizer
from pigguf.operations.verify.compare_logits import compare_logits
from pigguf.operations.verify.compare_weights import compare_weights
from pigguf.operations.verify.evaluation_text import (
    MIN_DEPTH,
    max_depth,
    default_depths,
    read_evaluation_text,
    check_long_enough,
)
from pigguf.operations.verify.verification_result import (
    DepthComparison,
    Discrepancy,
    VerificationPart,
    LogitsComparison,
    Verdict,
    VerificationResult,
)
from pigguf.progress import SILENT, Progress
from pigguf.rope import RopeOverrides
from pigguf.tokenizer import source_encoder

__all__ = [
    "DepthComparison",
    "Discrepancy",
    "VerificationPart",
    "LogitsComparison",
    "Verdict",
    "VerificationResult",
    "verify",
]

PACKAGES = ("torch", "transformers")
TOKENS = 2048  # read by default: a 7B in float32 takes a laptop some minutes for them


def verify(
    file: str | os.PathLike[str],
    source: str | os.PathLike[str],
    *,
    text: str | os.PathLike[str] | None = None,
    depths: Sequence[int] | None = None,
    tokens: int = TOKENS,
    progress: Progress = SILENT,
) -> VerificationResult:
    """Compare a GGUF file with the checkpoint it is said to be.

    Args:
        file: a GGUF; any part stands for a split one.
        source: a checkpoint: a directory or a hub's name, as for convert.
        text: a file of UTF-8 text to read; by default short texts in many languages, and code, in an order
            that does not repeat. Text of the sort that the model is for says more.
        depths: where to compare, in tokens; by default at a quarter, a half and the end of the original
            window, and a half and the end of the extended one.
        tokens: most to read where no depths are given: windows count as no longer than that.
        progress: told of bytes fetched, then one stage, "comparing", in tokens.

    Raises:
        MissingPackage: the extra pigguf[verify] is not installed.
        GGUFError: the file is damaged, or none.
        CheckpointError, TokenizerError, UnsupportedModel, RopeConflict, HubError: as convert does.
        UsageError: a depth that is too small. ContextOverflow: one beyond the checkpoint's window.
        TextError: a text that is too short for the depths.
        DoesNotFit: not enough memory for both models.
    """
    _require_packages()
    gguf = read_header(file)
    with Checkpoint.open(source, progress) as checkpoint:
        family = family_from_config(checkpoint.config)
        plan = plan_conversion(checkpoint, read_scheme("F32", None, None), RopeOverrides())
        count = max_depth(depths, tokens, plan.rope.context_length)
        encode = source_encoder(checkpoint.path)
        read = read_evaluation_text(text, count, plan.vocab, encode)
        check_long_enough(read, MIN_DEPTH if depths is None else count)
        places = default_depths(plan.rope, len(read.tokens)) if depths is None else sorted(set(depths))
        return VerificationResult(
            file=gguf.path,
            source=str(source),
            context_length=plan.rope.context_length,
            structure=compare_structure(gguf, family, plan),
            tokenizer=compare_tokenizer(gguf, plan.vocab, encode, read.text),
            weights=compare_weights(gguf, plan, progress),
            logits=compare_logits(gguf, checkpoint, family, plan, read, places, progress),
        )


def _require_packages() -> None:
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(
                f"verifying against a checkpoint needs the package {name}",
                'install it: pip install -e ".[verify]" in the clone',
            )
