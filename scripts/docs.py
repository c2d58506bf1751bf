"""Write docs/commands/: one page for each command, from its --help.

usage: python scripts/docs.py [--check]      (--check writes nothing, and fails if a page is out of date)
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pigguf.cli import COMMANDS, cli

PAGES = Path(__file__).resolve().parent.parent / "docs" / "commands"


def main(check: bool) -> None:
    pages = {PAGES / f"{name}.md": page(name) for name in COMMANDS}
    stale = [
        path for path, text in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    stray = sorted(set(PAGES.glob("*.md")) - set(pages))
    if check and (stale or stray):
        names = ", ".join(path.name for path in [*stale, *stray])
        sys.exit(f"out of date: {names}\nhint: run .venv/bin/python scripts/docs.py")
    if not check:
        PAGES.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(pages[path], encoding="utf-8")
        for path in stray:
            path.unlink()


def page(name: str) -> str:
    """Return a command's help; for a group, followed by the help of each of its commands."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    sections = [section(f"# pigguf {name}", f"pigguf {name}", command)]
    if isinstance(command, click.Group):
        inside = click.Context(command, info_name=f"pigguf {name}")
        for child in command.list_commands(inside):
            subcommand = command.get_command(inside, child)
            assert subcommand is not None
            sections.append(section(f"## pigguf {name} {child}", f"pigguf {name} {child}", subcommand))

    return "\n".join(sections)


def section(title: str, program: str, command: click.Command) -> str:
    context = click.Context(command, info_name=program, max_content_width=100, terminal_width=100)
    return f"{title}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
