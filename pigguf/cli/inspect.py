"""`pigguf inspect`: show the contents of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.metadata_values import brief, kind, plain
from pigguf.cli.options import FILE_PATH, json_option
from pigguf.common.format_bytes import format_bytes
from pigguf.operations.inspect import InspectionReport, inspect
from pigguf.rope import Positions, RopeScaling


@click.command()
@click.argument("path", metavar="FILE", type=FILE_PATH)
@click.option("--keys", is_flag=True, help="Print the raw metadata.")
@json_option
def command(path: Path, keys: bool, as_json: bool) -> None:
    """Show the contents of the GGUF file FILE: family, size, types, tokenizer, window, rope, KV cache.

    For a split model, FILE is any of its shards.

    \b
    Examples:
      pigguf inspect model.gguf
      pigguf inspect model.gguf --json | jq .rope.factor
    """
    report = inspect(path)
    if keys:
        _show_keys(report, as_json)
    elif as_json:
        render.json(_as_data(report))
    else:
        _show(report)


def _show(report: InspectionReport) -> None:
    rope = report.rope
    rows: list[tuple[str, object]] = [("file", f"{report.path}, {format_bytes(report.bytes)}")]
    if len(report.shards) > 1:
        rows.append(("shards", f"{len(report.shards)} files, with a total of this size"))
    if report.name:
        rows.append(("name", report.name))
    rows += [
        ("family", f"{report.architecture}, {report.parameters / 1e6:,.1f} million parameters"),
        ("shape", _shape(report)),
        ("types", ", ".join(f"{kind} {format_bytes(count)}" for kind, count in report.types.items())),
        ("tokenizer", _tokenizer(report)),
        ("context", "not stated" if rope is None else f"{rope.context_length:,} tokens"),
    ]
    if rope is not None:
        rows.append(("rope", _rope(rope)))
        rows.append(("positions", rope.explain()))
    rows += [("positions", note) for note in report.position_notes]
    rows += [
        (
            f"KV cache {cache.type}",
            f"{format_bytes(cache.bytes_per_token)} a token, "
            f"{format_bytes(cache.bytes_at_full_window)} at full context",
        )
        for cache in report.cache
    ]
    render.key_values(rows)


def _rope(rope: Positions) -> str:
    texts = [rope.rope_type]
    if rope.rope_type in ("none", "linear", "yarn", "llama3"):
        texts.append(f"factor {rope.factor:g}")
    if isinstance(rope, RopeScaling):
        texts.append(f"base {rope.rope_theta:g}")
    return ", ".join(texts)


def _shape(report: InspectionReport) -> str:
    return (
        f"{_known(report.layers)} layers of {_known(report.embedding_length)}, "
        f"{_known(report.heads)} heads, {_known(report.kv_heads)} KV heads"
    )


def _known(count: int | None) -> str:
    return "?" if count is None else f"{count:,}"


def _tokenizer(report: InspectionReport) -> str:
    if report.tokenizer is None:
        return "none"
    template = "with a chat template" if report.chat_template else "no chat template"
    return f"{report.tokenizer}, {_known(report.tokens)} tokens, {template}"


def _show_keys(report: InspectionReport, as_json: bool) -> None:
    if as_json:
        render.json({key: plain(typed.value) for key, typed in report.metadata.items()})
        return
    render.key_values((f"{key} ({kind(typed)})", brief(typed)) for key, typed in report.metadata.items())


def _as_data(report: InspectionReport) -> dict[str, Any]:
    return {
        "path": str(report.path),
        "bytes": report.bytes,
        "parts": [str(part) for part in report.shards],
        "name": report.name,
        "architecture": report.architecture,
        "parameters": report.parameters,
        "types": dict(report.types),
        "layers": report.layers,
        "embedding_length": report.embedding_length,
        "heads": report.heads,
        "kv_heads": report.kv_heads,
        "tokenizer": report.tokenizer,
        "tokens": report.tokens,
        "chat_template": report.chat_template,
        "context_length": None if report.rope is None else report.rope.context_length,
        "rope": None if report.rope is None else report.rope.as_data(),
        "position_notes": list(report.position_notes),
        "kv_cache": {
            cache.type: {
                "bytes_per_token": cache.bytes_per_token,
                "bytes_at_full_window": cache.bytes_at_full_window,
            }
            for cache in report.cache
        },
    }
