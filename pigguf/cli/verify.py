"""`pigguf verify`: compare a GGUF with the checkpoint that it was made from."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from pigguf.cli import exit_codes, render
from pigguf.cli.options import CHECKPOINT_SOURCE, FILE_PATH, json_option
from pigguf.cli.progress_bars import progress_bar
from pigguf.operations.lint import POSITION_KEYS
from pigguf.operations.verify import (
    DEFAULT_TOKENS,
    DepthComparison,
    Discrepancy,
    LogitsComparison,
    VerificationPart,
    VerificationResult,
    verify,
)

_POSITION_KEYS = tuple(f".{key}" for key in POSITION_KEYS)
_MAX_SHOWN = 20  # differences in the text output; --json has all of them


def _depths(ctx: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    if value is None:
        return None
    if not all(depth.strip().isdecimal() for depth in value.split(",")):
        raise click.BadParameter(f"{value!r} is not a list of tokens such as 512,2048", ctx, parameter)
    return [int(depth) for depth in value.split(",")]


@click.command()
@click.argument("path", metavar="FILE", type=FILE_PATH)
@click.option(
    "--against",
    "source",
    type=CHECKPOINT_SOURCE,
    required=True,
    metavar="SOURCE",
    help="The checkpoint: a directory, or OWNER/NAME on the Hugging Face hub.",
)
@click.option(
    "--text",
    type=FILE_PATH,
    metavar="PATH",
    help="UTF-8 text to compare on.  [default: samples in many languages, and code]",
)
@click.option(
    "--depths",
    callback=_depths,
    metavar="N,N,...",
    help="Depths at which predictions are compared, in tokens.  [default: a quarter, a half and all of the "
    "original window, and a half and all of the extended one]",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=DEFAULT_TOKENS,
    show_default=True,
    metavar="N",
    help="Maximum length of the text in tokens, without --depths.",
)
@json_option
@click.pass_context
def command(
    ctx: click.Context,
    path: Path,
    source: str,
    text: Path | None,
    depths: list[int] | None,
    tokens: int,
    as_json: bool,
) -> None:
    """Compare the GGUF file FILE, of any origin, with the checkpoint SOURCE, also at depth.

    Compares keys and tensors with the output of convert, tokens with those of the checkpoint's own tokenizer,
    weights with the checkpoint's up to the rounding of their types, and next-token predictions with those of
    transformers, which computes the checkpoint in float32 (4 bytes of memory for each weight). The limit of
    the KL divergence, in nats, depends on the types. transformers is part of the extra pigguf[verify].

    \b
    Exit codes, in addition to those of every command:
        0  the file equals the checkpoint, up to quantization
        3  no differences, but transformers cannot compute the checkpoint
       15  differences

    \b
    Examples:
      pigguf verify model-Q4_K_M.gguf --against ./longchat-7b-16k --text novel.txt
      pigguf verify model.gguf --against ./model --depths 512,4096,16384 --json | jq .predictions
    """
    found = verify(path, source, text=text, depths=depths, tokens=tokens, progress=progress_bar(keep=False))
    if as_json:
        render.json(_as_data(found))
    else:
        _show(found)
    if found.verdict == "different":
        ctx.exit(exit_codes.FOUND.code)
    if found.verdict == "not compared":
        ctx.exit(exit_codes.MODEL.code)


def _show(found: VerificationResult) -> None:
    render.key_values(
        [
            ("file", f"{found.file}, weights of {found.logits.type}"),
            ("source", found.source),
            ("structure", _part(found.structure)),
            ("tokenizer", _part(found.tokenizer)),
            ("weights", _part(found.weights, "tensors")),
            ("predictions", _predictions(found.logits, found.context_length)),
            ("verdict", found.verdict),
        ]
    )
    _list("differs", found.differences)
    _list("notes", found.notes)
    if any(difference.name.endswith(_POSITION_KEYS) for difference in found.structure.differences):
        render.note(f"hint: `pigguf repair {found.file}` shows how to fix its rope metadata")
    if found.logits.depths:
        click.echo()
        headers = ["depth", "tokens", "mean KL", "limit", "same top, %", "log p, file", "log p, source", ""]
        render.table(headers, map(_row, found.logits.depths), right=headers[:-1])


def _list(title: str, discrepancies: Iterable[Discrepancy]) -> None:
    rows = [(found.name, found.description) for found in discrepancies]
    if rows:
        click.echo()
        more = (
            [("...", f"{len(rows) - _MAX_SHOWN:,} more: --json has them all")]
            if len(rows) > _MAX_SHOWN
            else []
        )
        render.key_values(rows[:_MAX_SHOWN] + more, title)


def _part(part: VerificationPart, what: str = "facts") -> str:
    notes = f", notes: {len(part.notes):,}" if part.notes else ""
    if part.differences:
        return f"different: {len(part.differences):,} of {part.compared:,} {what}{notes}"
    return f"same: {part.compared:,} {what}{notes}"


def _predictions(found: LogitsComparison, window: int) -> str:
    if found.skipped_reason:
        return f"not compared: {found.skipped_reason}"
    deepest = found.depths[-1].depth
    scope = f"on {found.text}, up to {deepest:,} tokens of a window of {window:,}"
    if found.first_failing_depth is not None:
        return f"different from depth {found.first_failing_depth:,}, {scope}"
    return f"{found.verdict}, {scope}"


def _row(depth: DepthComparison) -> tuple[str, ...]:
    return (
        f"{depth.depth:,}",
        f"{depth.tokens}",
        f"{depth.kl_divergence:.3g}",
        f"{depth.kl_limit:.3g}",
        f"{100 * depth.same_top:.1f}",
        f"{depth.log_p:.3f}",
        f"{depth.source_log_p:.3f}",
        "" if depth.within_limit else "above the limit",
    )


def _as_data(found: VerificationResult) -> dict[str, Any]:
    predictions = found.logits
    return {
        "file": str(found.file),
        "source": found.source,
        "verdict": found.verdict,
        "context_length": found.context_length,
        "structure": _part_data(found.structure),
        "tokenizer": _part_data(found.tokenizer),
        "weights": _part_data(found.weights),
        "predictions": {
            "verdict": predictions.verdict,
            "refused": predictions.skipped_reason or None,
            "type": predictions.type,
            "text": predictions.text,
            "breaks_at": predictions.first_failing_depth,
            "depths": [
                {
                    "depth": depth.depth,
                    "tokens": depth.tokens,
                    "mean_kl": depth.kl_divergence,
                    "limit": depth.kl_limit,
                    "holds": depth.within_limit,
                    "same_top": depth.same_top,
                    "log_p": depth.log_p,
                    "source_log_p": depth.source_log_p,
                }
                for depth in predictions.depths
            ],
        },
    }


def _part_data(part: VerificationPart) -> dict[str, Any]:
    return {
        "verdict": part.verdict,
        "compared": part.compared,
        "differences": [{"what": found.name, "told": found.description} for found in part.differences],
        "notes": [{"what": found.name, "told": found.description} for found in part.notes],
    }
