"""The chat at a terminal: line editing, history, and the commands that begin with a slash.

Contract: Ctrl-C stops an answer and keeps the chat, at the prompt it clears the line; Ctrl-D ends.
Nothing that goes wrong in one message or command ends the chat. The history of what was typed is the
user's alone (mode 0600), in $XDG_STATE_HOME/pigguf.
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
from pigguf.cli.answer_stream import AnswerStream
from pigguf.cli.chat import remarks
from pigguf.cli.error_report import report
from pigguf.cli.formatting import shortened
from pigguf.errors import PigError, UsageError


class Shell:
    """A conversation at a terminal, until its user ends it."""

    def __init__(self, chat: Chat, verbose: bool) -> None:
        self._chat = chat
        self._verbose = verbose
        self._saved: set[Path] = set()
        self._input = _line_editor()

    def run(self) -> None:
        """Read lines and do what they say, until /exit or Ctrl-D."""
        render.note("/help lists the commands, Ctrl-D ends.\n")
        for document in self._chat.documents:
            self._tell_of(document.name, document.tokens)
        for line in self._lines():
            try:
                self._do(line)
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

    def _do(self, line: str) -> None:
        if not line.startswith("/"):
            return self._ask(line)
        name, _, argument = line.partition(" ")
        if name not in COMMANDS:
            raise UsageError(
                f"there is no command {name}",
                "/help lists them; a message may begin with a slash after a space",
            )
        return COMMANDS[name].run(self, argument.strip())

    def _ask(self, text: str) -> None:
        last = self._chat.messages[-1:]
        try:
            with AnswerStream() as out:
                for piece in self._chat.ask(text, render.progress(keep=False)):
                    out.write(piece)
            for line in remarks(self._chat, self._verbose):
                render.note(line)
            self._tell_what_a_full_window_allows()
        except KeyboardInterrupt:
            began = self._chat.messages[-1:] != last
            render.note(
                "(stopped)" if began else "(stopped before the answer began: the message is not kept)"
            )
        render.note("")

    def _tell_what_a_full_window_allows(self) -> None:
        turn = self._chat.last_turn
        if turn is not None and turn.stop_reason == "window":
            render.note("/save PATH keeps the conversation, /clear makes room for another.")

    # ---- commands --------------------------------------------------------------------------------

    def help(self, argument: str) -> None:
        """List what the chat can do."""
        width = max(len(f"{name} {command.argument}") for name, command in COMMANDS.items())
        for name, command in COMMANDS.items():
            render.note(f"  {f'{name} {command.argument}':<{width}}  {command.help}")
        render.note("Alt-Enter starts a new line; Ctrl-C stops an answer or clears the line; Ctrl-D ends.")

    def file(self, argument: str) -> None:
        """Put a document in front of the next message."""
        if not argument:
            raise UsageError("/file needs the path of a text file", "/file novel.txt")
        document = self._chat.add_document(_path(argument))
        self._tell_of(document.name, document.tokens)

    def _tell_of(self, name: str, tokens: int) -> None:
        render.note(f"{name}: {tokens:,} tokens, goes in with your next message.")

    def ctx(self, argument: str) -> None:
        """Show how full the window is."""
        chat = self._chat
        shares = chat.context_usage()
        total = sum(share.tokens for share in shares)
        render.note(
            f"{total:,} of {chat.context_length:,} tokens ({100 * total / chat.context_length:.0f} %)"
        )
        width = max(10, shutil.get_terminal_size().columns - 24)
        for share in filter(attrgetter("tokens"), shares):
            waiting = " (waits for your next message)" if share.kind == "document" else ""
            render.note(f"  {share.tokens:>7,}  {share.kind:<9}  {shortened(share.text + waiting, width)}")

    def clear(self, argument: str) -> None:
        """Forget the conversation and the documents."""
        self._chat.clear()
        render.note("The conversation is forgotten.")

    def save(self, argument: str) -> None:
        """Write the conversation to a JSON file."""
        if not argument:
            raise UsageError("/save needs the path of a file to write", "/save chat.json")
        path = _path(argument)
        if path.exists() and path.resolve() not in self._saved:
            raise UsageError(f"{path} is there already", "name a new file")
        self._chat.save(path)
        self._saved.add(path.resolve())
        render.note(f"Saved to {path}.")

    def exit(self, argument: str) -> None:
        """End the chat."""
        raise EOFError


class Command(NamedTuple):
    run: Callable[[Shell, str], None]
    argument: str
    help: str


COMMANDS: dict[str, Command] = {
    "/file": Command(Shell.file, "PATH", "put a text file in front of your next message"),
    "/ctx": Command(Shell.ctx, "", "show how full the window is, and with what"),
    "/clear": Command(Shell.clear, "", "forget the conversation and the documents, keep the system prompt"),
    "/save": Command(Shell.save, "PATH", "write the conversation to a JSON file"),
    "/help": Command(Shell.help, "", "list these commands"),
    "/exit": Command(Shell.exit, "", "end the chat"),
}


class _Completer(Completer):
    """Completes the commands, and paths after those that take one."""

    def __init__(self) -> None:
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, event: CompleteEvent) -> Iterable[Completion]:
        typed = document.text_before_cursor
        name, space, argument = typed.partition(" ")
        if not space and typed.startswith("/"):
            for command, (_, takes, _) in COMMANDS.items():
                if command.startswith(typed):
                    yield Completion(f"{command} " if takes else command, start_position=-len(typed))
        elif name in COMMANDS and COMMANDS[name].argument:
            yield from self._paths.get_completions(Document(argument), event)


def _line_editor() -> PromptSession[str]:
    return PromptSession(
        history=_history(),
        completer=_Completer(),
        complete_while_typing=False,
        key_bindings=_keys(),
        prompt_continuation="  ",
        output=create_output(always_prefer_tty=True),  # the answers may go to a file
    )


def _keys() -> KeyBindings:
    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _history() -> History:
    """The file of what was typed before, or memory where the file cannot be had."""
    try:
        state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        path = state / "pigguf" / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        return InMemoryHistory()
    return FileHistory(str(path))


def _path(argument: str) -> Path:
    """A path as typed, or as dropped on the terminal, which quotes it."""
    path = _at_home(argument)
    if path.exists():
        return path
    try:
        words = shlex.split(argument)
    except ValueError:  # a quote without its partner
        return path
    return _at_home(words[0]) if len(words) == 1 else path


def _at_home(path: str) -> Path:
    return Path(os.path.expanduser(path))
