"""`pigguf sessions`: the documents that stay read, listed and removed."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pigguf.cli import render
from pigguf.cli.formatting import size
from pigguf.cli.options import json_option
from pigguf.errors import UsageError
from pigguf.inference.prompt_cache import Kept, PromptCacheStore, sessions_directory
from pigguf.inference.prompt_cache.cache_directory import BUDGET_VARIABLE, stated_budget

EPILOG = f"""\b
Examples:
  pigguf sessions list
  pigguf sessions remove 5f0c9a3e
  pigguf sessions clear --yes

A prompt of a thousand tokens or more is kept once it was read, so that the next question about the same
document begins at once, in another process too. The files are readable by you alone; they hold the prompt's
tokens. The least recently used make room for new ones: {BUDGET_VARIABLE} says how much they may take (20G),
and 0 keeps none; without it that is 10 GB, and at most a quarter of what the disk has left.
"""


@click.group(epilog=EPILOG, invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List or remove the documents that stay read: KV states of long prompts, kept on disk."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


@command.command("list")
@json_option
def list_sessions(as_json: bool) -> None:
    """Print what is kept, the last used first.

    \b
    Example:
      pigguf sessions list --json | jq '.sessions[].tokens'
    """
    store = _store()
    kept = store.kept()
    if as_json:
        render.json(_as_data(store, kept))
        return
    if kept:
        render.table(
            ("id", "model", "tokens", "size", "made", "last used"),
            [_row(session) for session in kept],
            right=("tokens", "size"),
        )
    taken = size(sum(session.bytes for session in kept))
    render.note(f"{_counted(len(kept))}, {taken} of at most {size(store.budget())}, in {store.directory}")


@command.command()
@click.argument("ids", metavar="ID...", nargs=-1, required=True)
def remove(ids: tuple[str, ...]) -> None:
    """Remove sessions by the ids that `pigguf sessions list` prints.

    \b
    Example:
      pigguf sessions remove 5f0c9a3e 07be4d11
    """
    store = _store()
    kept = {session.id: session for session in store.kept()}
    for unknown in (id_ for id_ in ids if id_ not in kept):
        raise UsageError(f"no kept session is called {unknown!r}", "`pigguf sessions list` has their ids")
    chosen = [kept[id_] for id_ in dict.fromkeys(ids)]
    store.remove(chosen)
    render.note(_removed(len(chosen), sum(session.bytes for session in chosen)))


@command.command()
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def clear(yes: bool) -> None:
    """Remove all kept sessions.

    \b
    Example:
      pigguf sessions clear --yes
    """
    store = _store()
    taken = sum(session.bytes for session in store.kept())
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("nobody is there to be asked", "say --yes to remove all kept sessions")
        click.confirm(f"Remove all kept sessions ({size(taken)})?", abort=True, err=True)
    render.note(_removed(store.clear(), taken))


def _store() -> PromptCacheStore:
    return PromptCacheStore(sessions_directory(), stated_budget())


def _removed(count: int, freed: int) -> str:
    return f"{_counted(count)} removed, {size(freed)} freed."


def _counted(count: int) -> str:
    return f"{count} {'session' if count == 1 else 'sessions'}"


def _row(session: Kept) -> Sequence[object]:
    return (
        session.id,
        Path(session.model_path).name,
        f"{session.tokens:,}",
        size(session.bytes),
        _date(session.made),
        _date(session.used),
    )


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def _as_data(store: PromptCacheStore, kept: Sequence[Kept]) -> dict[str, Any]:
    return {
        "directory": str(store.directory),
        "budget_bytes": store.budget(),
        "sessions": [
            {
                "id": session.id,
                "model": session.model_path,
                "tokens": session.tokens,
                "bytes": session.bytes,
                "made": session.made,
                "used": session.used,
            }
            for session in kept
        ],
    }
