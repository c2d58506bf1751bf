"""`pigguf convert`: a checkpoint -> one GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pigguf.checkpoint import AdapterSummary
from pigguf.cli import render
from pigguf.cli.options import (
    CHECKPOINT_SOURCE,
    FILE_PATH,
    json_option,
    quantization_options,
    shard_size_option,
    type_option,
    type_table,
    verbose_option,
)
from pigguf.cli.parameter_flags import parameters_as_flags
from pigguf.cli.progress_bars import progress_bar
from pigguf.cli.signals import cleanup_on_termination
from pigguf.common.format_bytes import format_bytes
from pigguf.operations.convert import DEFAULT_TYPE, ConversionResult, convert
from pigguf.rope import INTERPOLATIONS, Positions, RopeOverrides
from pigguf.rope.evidence import COMMAND_LINE, Evidence


@click.command(epilog=type_table())
@click.argument("source", metavar="SOURCE", type=CHECKPOINT_SOURCE)
@click.option(
    "-o",
    "--output",
    metavar="OUT",
    type=FILE_PATH,
    help="Output file.  [default: NAME-TYPE.gguf in the current directory]",
)
@click.option(
    "--adapter",
    metavar="DIR",
    type=CHECKPOINT_SOURCE,
    help="A LoRA adapter in PEFT's format, to merge into SOURCE.",
)
@type_option(default=DEFAULT_TYPE)
@quantization_options
@click.option(
    "--rope-factor",
    type=float,
    metavar="F",
    help="Rope scaling factor, instead of the checkpoint's; 1: no scaling.",
)
@click.option(
    "--original-context",
    "rope_original_context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Context length that the model was trained at, in tokens.",
)
@click.option(
    "--context",
    "rope_context",
    type=click.IntRange(min=1),
    metavar="N",
    help="Context length to write, in tokens.",
)
@click.option(
    "--interpolation",
    "rope_interpolation",
    type=click.Choice(INTERPOLATIONS),
    help="How --context resamples a table of learned positions (GPT-2, StarCoder, OPT).  [default: linear]",
)
@shard_size_option
@click.option("--dry-run", is_flag=True, help="Print the decisions and their reasons, and write nothing.")
@json_option
@verbose_option
def command(
    source: str,
    output: Path | None,
    adapter: str | None,
    type: str,
    imatrix: Path | None,
    tensor_types: dict[str, str],
    rope_factor: float | None,
    rope_original_context: int | None,
    rope_context: int | None,
    rope_interpolation: str | None,
    shard_size: int | None,
    dry_run: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Convert the Hugging Face checkpoint SOURCE to a GGUF file.

    SOURCE is a directory, or OWNER/NAME or OWNER/NAME@REVISION on the Hugging Face Hub if there is no such
    directory: the files that are needed are downloaded to the hub's cache, even with --dry-run, and after an
    interruption the same command downloads only what is missing. The same holds for --adapter. HF_TOKEN,
    HF_ENDPOINT, HF_HOME and HF_HUB_OFFLINE are honoured.

    The rope scaling factor and the context length are decided from everything that the checkpoint states.
    If that is contradictory, the conversion stops, and the error names the option that decides. The file is
    verified before it gets its name.

    With --adapter, the merged model is written. A config.json in DIR is the extended model's: its rope
    parameters are written, and must agree with SOURCE's.

    \b
    Examples:
      pigguf convert ./longchat-7b-16k --dry-run
      pigguf convert lmsys/longchat-7b-16k --type Q4_K_M
      pigguf convert ./longchat-7b-16k -o longchat.gguf --type Q4_K_M
      pigguf convert ./superhot-13b-8k --rope-factor 4 --original-context 2048
      pigguf convert ./gpt2 --context 4096 --interpolation linear -o gpt2-4k.gguf
      pigguf convert ./SmolLM2-135M-Instruct --adapter ./smollm2-32k-adapter -o smollm2-32k.gguf
    """
    overrides = RopeOverrides(rope_factor, rope_original_context, rope_context, rope_interpolation)
    with cleanup_on_termination():
        result = convert(
            source,
            output,
            adapter=adapter,
            type=type,
            imatrix=imatrix,
            tensor_types=tensor_types,
            rope=overrides,
            shard_size=shard_size,
            dry_run=dry_run,
            progress=progress_bar(),
        )
    if as_json:
        render.json(_as_data(result))
        return
    render.key_values(_rows(result))
    if dry_run:
        _show_evidence(result.plan.rope)


def _rows(result: ConversionResult) -> list[tuple[str, object]]:
    plan, rope = result.plan, result.plan.rope
    rows: list[tuple[str, object]] = []
    if result.path is not None:
        rows.append(("file", result.path))
    if len(result.shards) > 1:
        rows.append(("parts", f"{len(result.shards)} files, to {result.shards[-1]}"))
    rows += [
        ("size", format_bytes(plan.bytes)),
        ("model", f"{plan.hparams.architecture}, {plan.hparams.layers} layers, {plan.recipe.name}"),
        ("context", f"{rope.context_length:,} tokens, {rope.explain()}"),
        ("tokenizer", f"{plan.vocab.model} ({plan.vocab.pre}), {len(plan.vocab.tokens):,} tokens"),
    ]
    if plan.adapter is not None:
        rows.append(("adapter", f"{plan.adapter.name}: {plan.adapter.describe()}"))
    if plan.quantization.imatrix is not None:
        imatrix = plan.quantization.imatrix
        rows.append(("imatrix", f"{imatrix.path}: {len(imatrix.weights)} tensors"))
    rows += [("decided", parameters_as_flags(decision)) for decision in rope.decisions]
    rows += [("note", note) for note in plan.notes]
    if plan.fallbacks:
        count = len(plan.fallbacks)
        rows.append(
            ("fallback", f"{count} tensors whose rows are not whole blocks, for example {plan.fallbacks[0]}")
        )
    if result.path is not None:
        rows.append(("verified", f"shapes, types, rope keys and tokens, in {result.seconds:.1f} s"))
    return rows


def _show_evidence(rope: Positions) -> None:
    render.table(
        ("evidence", "value", "meaning"),
        [(f"{found.source}: {_key(found)}", found.value, found.meaning) for found in rope.evidence],
    )


def _key(evidence: Evidence) -> str:
    """Return the key of a piece of evidence, of an override its flag."""
    return parameters_as_flags(f"`{evidence.key}`") if evidence.source == COMMAND_LINE else evidence.key


def _as_data(result: ConversionResult) -> dict[str, Any]:
    plan = result.plan
    return {
        "path": None if result.path is None else str(result.path),
        "parts": [str(part) for part in result.shards],
        "bytes": plan.bytes,
        "type": plan.recipe.name,
        "imatrix": None if plan.quantization.imatrix is None else str(plan.quantization.imatrix.path),
        "architecture": plan.hparams.architecture,
        "adapter": None if plan.adapter is None else _adapter_data(plan.adapter),
        "rope": plan.rope.as_data(),
        "evidence": [
            {"source": found.source, "key": _key(found), "value": found.value, "meaning": found.meaning}
            for found in plan.rope.evidence
        ],
        "decisions": [parameters_as_flags(decision) for decision in plan.rope.decisions],
        "notes": list(plan.notes),
        "fallbacks": list(plan.fallbacks),
        "seconds": round(result.seconds, 3),
    }


def _adapter_data(adapter: AdapterSummary) -> dict[str, Any]:
    return {
        "path": str(adapter.path),
        "name": adapter.name,
        "base": adapter.base_model,
        "ranks": list(adapter.ranks),
        "matrices": adapter.lora_matrices,
        "replaced": list(adapter.replaced_tensors),
    }
