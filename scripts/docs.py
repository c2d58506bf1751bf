"""Writes docs/commands/: one page a command, from its own --help.

usage: python scripts/docs.py [--check]      (--check writes nothing, and fails where a page is not current)
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from pigguf.cli import COMMANDS, cli

PAGES = Path(__file__).resolve().parent.parent / "docs" / "commands"


def main(check: bool) -> None:
    wanted = {PAGES / f"{name}.md": page(name) for name in COMMANDS}
    stale = [
        path for path, text in wanted.items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    stray = sorted(set(PAGES.glob("*.md")) - set(wanted))
    if check and (stale or stray):
        names = ", ".join(path.name for path in [*stale, *stray])
        sys.exit(f"not current: {names}\nhint: run .venv/bin/python scripts/docs.py")
    if not check:
        PAGES.mkdir(exist_ok=True)
        for path in stale:
            path.write_text(wanted[path], encoding="utf-8")
        for path in stray:
            path.unlink()


def page(name: str) -> str:
    """A command's help; of a group of commands, each one's after it."""
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    sections = [section(f"# pigguf {name}", f"pigguf {name}", command)]
    if isinstance(command, click.Group):
        inside = click.Context(command, info_name=f"pigguf {name}")
        for child in command.list_commands(inside):
            of_group = command.get_command(inside, child)
            assert of_group is not None
            sections.append(section(f"## pigguf {name} {child}", f"pigguf {name} {child}", of_group))
    return "\n".join(sections)


def section(title: str, program: str, command: click.Command) -> str:
    context = click.Context(command, info_name=program, max_content_width=100, terminal_width=100)
    return f"{title}\n\n```\n{command.get_help(context)}\n```\n"


if __name__ == "__main__":
    main(check="--check" in sys.argv[1:])
