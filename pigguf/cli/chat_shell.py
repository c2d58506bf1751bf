"""The chat at a terminal: line editing, history, and commands that begin with a slash.

Ctrl-C stops an answer and keeps the chat; at the prompt it clears the line. Ctrl-D ends the chat. An error in
one message or command does not end it. The history of typed lines is readable by the user alone (mode 0600),
in $XDG_STATE_HOME/pigguf.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import HTML
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import create_output

from pigguf.chat.conversation import Chat
from pigguf.cli import render
from pigguf.cli.answer_output import note_status, print_answer
from pigguf.cli.error_report import report
from pigguf.cli.formatting import truncate_line
from pigguf.cli.progress_bars import progress_bar
from pigguf.errors import PigError, UsageError


class ChatShell:
    """A conversation at a terminal."""

    def __init__(self, chat: Chat, verbose: bool) -> None:
        self._chat = chat
        self._verbose = verbose
        self._saved: set[Path] = set()
        self._input = _line_editor()

    def run(self) -> None:
        """Read messages and commands, until /exit or Ctrl-D."""
        render.note("/help lists the commands, Ctrl-D ends.\n")
        for document in self._chat.documents:
            self._note_attached(document.name, document.tokens)
        for line in self._lines():
            try:
                self._handle_line(line)
            except BrokenPipeError:
                raise
            except (PigError, OSError) as error:
                report(error)
            except KeyboardInterrupt:
                render.note("(stopped)\n")
            except EOFError:
                return

    def _lines(self) -> Iterator[str]:
        while True:
            try:
                line = self._input.prompt(HTML("<b>&gt; </b>"))
            except KeyboardInterrupt:
                continue
            except EOFError:
                return
            if line.strip():
                yield line

    def _handle_line(self, line: str) -> None:
        if not line.startswith("/"):
            return self._ask(line)
        name, _, argument = line.partition(" ")
        if name not in SHELL_COMMANDS:
            raise UsageError(
                f"there is no command {name}",
                "/help lists the commands; put a space before a message that begins with a slash",
            )
        return SHELL_COMMANDS[name].run(self, argument.strip())

    def _ask(self, text: str) -> None:
        last = self._chat.messages[-1:]
        try:
            print_answer(self._chat.ask(text, progress_bar(keep=False)))
            note_status(self._chat, self._verbose)
            turn = self._chat.last_turn
            if turn is not None and turn.stop_reason == "window":
                render.note("/save PATH saves the conversation, /clear starts a new one.")
        except KeyboardInterrupt:
            started = self._chat.messages[-1:] != last
            render.note(
                "(stopped)"
                if started
                else "(stopped before the answer started: the message is not part of the conversation)"
            )
        render.note("")

    # ---- commands --------------------------------------------------------------------------------

    def help(self, argument: str) -> None:
        """Print the commands."""
        width = max(len(f"{name} {command.argument}") for name, command in SHELL_COMMANDS.items())
        for name, command in SHELL_COMMANDS.items():
            render.note(f"  {f'{name} {command.argument}':<{width}}  {command.help}")
        render.note("Alt-Enter starts a new line; Ctrl-C stops an answer or clears the line; Ctrl-D ends.")

    def file(self, argument: str) -> None:
        """Attach a document to the next message."""
        if not argument:
            raise UsageError("/file needs the path of a text file", "/file novel.txt")
        document = self._chat.add_document(_path(argument))
        self._note_attached(document.name, document.tokens)

    def _note_attached(self, name: str, tokens: int) -> None:
        render.note(f"{name}: {tokens:,} tokens, attached to your next message.")

    def ctx(self, argument: str) -> None:
        """Print how much of the context window is used, and by what."""
        chat = self._chat
        shares = chat.context_usage()
        total = sum(share.tokens for share in shares)
        render.note(
            f"{total:,} of {chat.context_length:,} tokens ({100 * total / chat.context_length:.0f} %)"
        )
        width = max(10, shutil.get_terminal_size().columns - 24)
        for share in filter(attrgetter("tokens"), shares):
            attached = " (attached to your next message)" if share.kind == "document" else ""
            render.note(
                f"  {share.tokens:>7,}  {share.kind:<9}  {truncate_line(share.text + attached, width)}"
            )

    def clear(self, argument: str) -> None:
        """Remove the conversation and the documents."""
        self._chat.clear()
        render.note("The conversation was cleared.")

    def save(self, argument: str) -> None:
        """Save the conversation to a JSON file."""
        if not argument:
            raise UsageError("/save needs the path of a file to write", "/save chat.json")
        path = _path(argument)
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError(f"{path} already exists", "give the path of a new file")
        self._chat.save(path)
        self._saved.add(path.resolve())
        render.note(f"Saved to {path}.")

    def exit(self, argument: str) -> None:
        """End the chat."""
        raise EOFError


class ShellCommand(NamedTuple):
    """A command of the shell, with the name of its argument and its help text."""

    run: Callable[[ChatShell, str], None]
    argument: str
    help: str


SHELL_COMMANDS: dict[str, ShellCommand] = {
    "/file": ShellCommand(ChatShell.file, "PATH", "attach a text file to your next message"),
    "/ctx": ShellCommand(ChatShell.ctx, "", "show how much of the context window is used, and by what"),
    "/clear": ShellCommand(
        ChatShell.clear, "", "remove the conversation and the documents, not the system prompt"
    ),
    "/save": ShellCommand(ChatShell.save, "PATH", "save the conversation to a JSON file"),
    "/help": ShellCommand(ChatShell.help, "", "list these commands"),
    "/exit": ShellCommand(ChatShell.exit, "", "end the chat"),
}


class CommandCompleter(Completer):
    """Completes commands, and paths after commands that take one."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        """Yield the completions of what was typed."""
        typed = document.text_before_cursor
        name, space, argument = typed.partition(" ")
        if not space and typed.startswith("/"):
            for command, (_, argument_name, _) in SHELL_COMMANDS.items():
                if command.startswith(typed):
                    yield Completion(f"{command} " if argument_name else command, start_position=-len(typed))
        elif name in SHELL_COMMANDS and SHELL_COMMANDS[name].argument:
            yield from self._paths.get_completions(Document(argument), event)


def _line_editor() -> PromptSession[str]:
    return PromptSession(
        history=_history(),
        completer=CommandCompleter(),
        complete_while_typing=False,
        key_bindings=_key_bindings(),
        prompt_continuation="  ",
        output=create_output(always_prefer_tty=True),  # stdout may be a file
    )


def _key_bindings() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """Return the history file, or an in-memory history if the file cannot be written."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "pigguf" / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: the user has no home directory
        return InMemoryHistory()
    return FileHistory(str(path))


def _path(argument: str) -> Path:
    """Return a path as typed, or as dropped on the terminal, which quotes it."""
    path = _expand_user(argument)
    if path.exists():
        return path
    try:
        words = shlex.split(argument)
    except ValueError:  # an unbalanced quote
        return path
    return _expand_user(words[0]) if len(words) == 1 else path


def _expand_user(path: str) -> Path:
    return Path(os.path.expanduser(path))
