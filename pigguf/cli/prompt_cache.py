"""`pigguf prompt-cache`: list and remove the prompts that are cached on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pigguf.cli import CommandGroup, render
from pigguf.cli.options import json_option
from pigguf.common.format_bytes import format_bytes
from pigguf.errors import UsageError
from pigguf.inference.prompt_cache import CachedPrompt, PromptCacheStore, prompt_cache_directory
from pigguf.inference.prompt_cache.location_and_budget import BUDGET_VARIABLE, budget_from_environment

EPILOG = f"""\b
Examples:
  pigguf prompt-cache list
  pigguf prompt-cache remove 5f0c9a3e
  pigguf prompt-cache clear --yes

The KV state of a prompt of 1,000 tokens or more is saved after prefill, so that the next question about the
same document starts at once, in another process too. Only you can read the files; they contain the prompt's
tokens. The least recently used ones are removed when new ones need the space. {BUDGET_VARIABLE} sets how much
they may take (for example 20G; 0 caches nothing); by default 10 GB, and at most a quarter of the free disk
space.
"""


@click.group(cls=CommandGroup, epilog=EPILOG, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List or remove the prompts that are cached on disk (KV states of long prompts)."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("list")
@json_option
def list_prompts(as_json: bool) -> None:
    """List the cached prompts, the last used first.

    \b
    Example:
      pigguf prompt-cache list --json | jq '.entries[].tokens'
    """
    store = _store()
    entries = store.entries()
    if as_json:
        render.json(_as_data(store, entries))
        return
    if entries:
        render.table(
            ("id", "model", "tokens", "size", "made", "last used"),
            [_row(entry) for entry in entries],
            right=("tokens", "size"),
        )
    taken = format_bytes(sum(entry.bytes for entry in entries))
    render.note(
        f"{_count(len(entries))}, {taken} of at most {format_bytes(store.budget())}, in {store.directory}"
    )


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def remove(ids: tuple[str, ...]) -> None:
    """Remove cached prompts by the ids that `pigguf prompt-cache list` prints.

    \b
    Example:
      pigguf prompt-cache remove 5f0c9a3e 07be4d11
    """
    store = _store()
    entries = {entry.id: entry for entry in store.entries()}
    for unknown in (id_ for id_ in ids if id_ not in entries):
        raise UsageError(
            f"no cached prompt has the id {unknown!r}", "`pigguf prompt-cache list` prints the ids"
        )
    chosen = [entries[id_] for id_ in dict.fromkeys(ids)]
    store.remove(chosen)
    render.note(_removed(len(chosen), sum(entry.bytes for entry in chosen)))


@command.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask for confirmation.")
def clear(yes: bool) -> None:
    """Remove all cached prompts.

    \b
    Example:
      pigguf prompt-cache clear --yes
    """
    store = _store()
    taken = sum(entry.bytes for entry in store.entries())
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError(
                "cannot ask for confirmation: stdin is not a terminal",
                "add --yes to remove all cached prompts",
            )
        click.confirm(f"Remove all cached prompts ({format_bytes(taken)})?", abort=True, err=True)
    render.note(_removed(store.clear(), taken))


def _store() -> PromptCacheStore:
    return PromptCacheStore(prompt_cache_directory(), budget_from_environment())


def _removed(count: int, freed: int) -> str:
    return f"{_count(count)} removed, {format_bytes(freed)} freed."


def _count(count: int) -> str:
    return f"{count} cached {'prompt' if count == 1 else 'prompts'}"


def _row(entry: CachedPrompt) -> Sequence[object]:
    return (
        entry.id,
        Path(entry.model_path).name,
        f"{entry.tokens:,}",
        format_bytes(entry.bytes),
        _date(entry.made),
        _date(entry.used),
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _as_data(store: PromptCacheStore, entries: Sequence[CachedPrompt]) -> dict[str, Any]:
    return {
        "directory": str(store.directory),
        "budget_bytes": store.budget(),
        "entries": [
            {
                "id": entry.id,
                "model": entry.model_path,
                "tokens": entry.tokens,
                "bytes": entry.bytes,
                "made": entry.made,
                "used": entry.used,
            }
            for entry in entries
        ],
    }
