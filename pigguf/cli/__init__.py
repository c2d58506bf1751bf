"""The command line: a lazy table of commands, and the one place where errors become messages.

A command is a module that exposes a click command named `command`, and a row in COMMANDS. Modules
are imported only when their command runs, so `pigguf --help` and shell completion stay quick.

Contract: data on stdout, everything else on stderr. A failure is `error: ...`, often `hint: ...`,
and an exit code from exit_codes.py. Left out: the wording of errors (report.py), bars, tables and
JSON (render.py), options that several commands share (options.py).
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, TextIO, cast

import click
from click.shell_completion import CompletionItem

from pigguf.cli import exit_codes, terminal
from pigguf.cli.error_report import report
from pigguf.cli.parameter_flags import parameters_as_flags

PROGRAM = "pigguf"

# name -> (module, what the list of commands says of it)
COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("pigguf.cli.convert", "Turn a Hugging Face checkpoint into a GGUF file."),
    "finetune": ("pigguf.cli.finetune", "Extend a checkpoint's window by Position Interpolation."),
    "quantize": ("pigguf.cli.quantize", "Make a smaller GGUF of a float one."),
    "imatrix": ("pigguf.cli.imatrix", "Measure which columns of a model's weights matter."),
    "inspect": ("pigguf.cli.inspect", "Say what a GGUF file holds: window, rope, types, memory."),
    "repair": ("pigguf.cli.repair", "Find what is wrong with a GGUF's positions, and mend its keys."),
    "diff": ("pigguf.cli.diff", "Compare two GGUF files, key by key and tensor by tensor."),
    "verify": ("pigguf.cli.verify", "Say whether a GGUF is the checkpoint it is said to be."),
    "export": ("pigguf.cli.export", "Turn a GGUF file back into a Hugging Face checkpoint."),
    "plan": ("pigguf.cli.plan", "Say what a model takes of the memory, and which windows fit."),
    "tune": ("pigguf.cli.tune", "Measure how a model runs fastest on this machine, and keep it."),
    "bench": ("pigguf.cli.bench", "Measure how fast a model reads and writes, by depth."),
    "chat": ("pigguf.cli.chat", "Talk to a model, or ask it one question about a document."),
    "ask": ("pigguf.cli.ask", "Ask a model about documents, and see where answers stand."),
    "summarize": ("pigguf.cli.summarize", "Let a model summarize a document of any length."),
    "serve": ("pigguf.cli.serve", "Answer many clients at once, as OpenAI's API does."),
    "prompt-cache": ("pigguf.cli.prompt_cache", "List or remove the prompts that are cached on disk."),
    "eval": ("pigguf.cli.eval", "Measure what a model makes of its window: perplexity and more."),
    "worker": ("pigguf.cli.worker", "Lend this machine's devices to models on another one."),
    "doctor": ("pigguf.cli.doctor", "Check the engine on this machine, and say what is missing."),
}


@dataclass
class Settings:
    """State of one run of the command line; click carries it as `ctx.obj`.

    Attributes:
        verbose: show the traceback of an error.
        command: the innermost command that was invoked, kept for errors that are reported after its end.
    """

    verbose: bool = field(default_factory=lambda: bool(os.environ.get("PIGGUF_DEBUG")))
    command: click.Command | None = None


class ReaderLeft(Exception):
    """Whoever read our output went away. click would make a failure of BrokenPipeError itself."""


class CommandGroup(click.Group):
    """A group that notes the command it invokes, so that messages can name that command's flags."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the arguments name, and note it in the settings of the run."""
        name, command, rest = super().resolve_command(ctx, args)
        settings = ctx.find_object(Settings)
        if settings is not None:
            settings.command = command
        return name, command, rest


class LazyGroup(CommandGroup):
    """A group that lists its commands from a table and imports only the one that runs."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.table = table

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderLeft from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self.table:
            return None
        module, _ = self.table[name]
        return cast(click.Command, importlib.import_module(module).command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        matching = (name for name in self.table if name.startswith(incomplete))
        commands = [CompletionItem(name, help=self.table[name][1]) for name in matching]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


EPILOG = f"""\b
Example:
  pigguf convert ./longchat-7b-16k -o longchat.gguf --type Q4_K_M
  pigguf chat longchat.gguf --file report.txt -p "What was decided?"

\b
Completion of commands, options and files, for good:
  bash  echo 'eval "$(_PIGGUF_COMPLETE=bash_source pigguf)"' >> ~/.bashrc
  zsh   echo 'eval "$(_PIGGUF_COMPLETE=zsh_source pigguf)"' >> ~/.zshrc
  fish  echo '_PIGGUF_COMPLETE=fish_source pigguf | source' > ~/.config/fish/completions/pigguf.fish

\b
Exit codes:
{exit_codes.table()}

\b
PIGGUF_DEBUG=1 shows the traceback of an error. NO_COLOR=1 turns colours off.
"""


@click.group(
    cls=LazyGroup,
    table=COMMANDS,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="pigguf", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Take language models with an interpolated context window to GGUF, and talk to them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; `arguments` default to the process's own."""
    terminal.open_missing_streams()
    # A terminal that cannot show a character gets its escape, not a crash in the middle of an answer.
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    settings = Settings()
    logging.getLogger("pigguf").addHandler(_WarningHandler(settings))
    try:
        result = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except (ReaderLeft, BrokenPipeError):  # nobody is there to be told
        _abandon(sys.stdout)
        sys.exit(exit_codes.CLOSED.code)
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(_fail(error, settings))
    # ctx.exit(code) arrives as the result; commands themselves return nothing.
    sys.exit(result if isinstance(result, int) else 0)


class _WarningHandler(logging.Handler):
    """Shows the library's warnings as notes on stderr."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self._settings = settings

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, with the running command's flags for the parameters that it names."""
        from pigguf.cli import render

        render.note(f"warning: {parameters_as_flags(record.getMessage(), self._settings.command)}")


def _fail(error: BaseException, settings: Settings) -> int:
    """Tell of a failure on stderr, with its traceback where wanted; return the exit code."""
    # click turns a KeyboardInterrupt into its Abort, after a line break that closes the `^C`.
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("interrupted", err=True)
        return exit_codes.INTERRUPTED.code
    if settings.verbose and not isinstance(error, click.ClickException):
        import traceback

        traceback.print_exception(error)
    report(error, settings.command)
    try:
        sys.stdout.flush()
    except OSError:
        _abandon(sys.stdout)
    return error.exit_code if isinstance(error, click.ClickException) else exit_codes.exit_code(error)


def _abandon(stream: TextIO) -> None:
    """Point a stream that cannot be written at nowhere: the interpreter's last flush would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
