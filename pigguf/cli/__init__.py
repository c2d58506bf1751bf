"""The command line: the table of commands, and `main`, which runs one and turns errors into exit codes.

A command is a module with a click command named `command`, and an entry in COMMANDS. Modules are imported
only when their command runs, so that `pigguf --help` and shell completion are fast.

Data goes to stdout, everything else to stderr. A failure prints `error: ...`, often `hint: ...`, and exits
with a code of exit_codes.py. Elsewhere: the text of errors (error_report.py, parameter_flags.py), tables,
JSON and progress (render.py), answers (answer_output.py), options that several commands share (options.py).
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

# name -> (module, help text in the list of commands)
COMMANDS: dict[str, tuple[str, str]] = {
    "convert": ("pigguf.cli.convert", "Convert a Hugging Face checkpoint to a GGUF file."),
    "finetune": ("pigguf.cli.finetune", "Extend a checkpoint's context by Position Interpolation."),
    "quantize": ("pigguf.cli.quantize", "Quantize a GGUF file with float weights."),
    "imatrix": ("pigguf.cli.imatrix", "Compute an importance matrix for quantization."),
    "inspect": ("pigguf.cli.inspect", "Show a GGUF file's context length, rope, types, memory use."),
    "repair": ("pigguf.cli.repair", "Find errors in a GGUF's position keys, and fix its keys."),
    "diff": ("pigguf.cli.diff", "Compare two GGUF files, key by key and tensor by tensor."),
    "verify": ("pigguf.cli.verify", "Check that a GGUF was converted from a certain checkpoint."),
    "export": ("pigguf.cli.export", "Convert a GGUF file to a Hugging Face checkpoint."),
    "plan": ("pigguf.cli.plan", "Estimate the memory use, and which context lengths fit."),
    "tune": ("pigguf.cli.tune", "Measure the fastest settings on this machine, and save them."),
    "bench": ("pigguf.cli.bench", "Measure prefill and decode speed by depth."),
    "chat": ("pigguf.cli.chat", "Chat with a model, or ask it one question."),
    "ask": ("pigguf.cli.ask", "Ask questions about documents, with citations."),
    "summarize": ("pigguf.cli.summarize", "Summarize a document of any length."),
    "serve": ("pigguf.cli.serve", "Serve a model to many clients, with OpenAI's API."),
    "prompt-cache": ("pigguf.cli.prompt_cache", "List or remove the prompts that are cached on disk."),
    "eval": ("pigguf.cli.eval", "Evaluate a model over its context: perplexity and more."),
    "worker": ("pigguf.cli.worker", "Compute layers for models on another machine (RPC)."),
    "doctor": ("pigguf.cli.doctor", "Check llama.cpp and the hardware of this machine."),
}


@dataclass
class CommandLineState:
    """State of one run of the command line; click carries it as `ctx.obj`.

    Attributes:
        verbose: show the traceback of an error.
        command: the innermost command that was invoked, kept for errors that are reported after its end.
    """

    verbose: bool = field(default_factory=lambda: bool(os.environ.get("PIGGUF_DEBUG")))
    command: click.Command | None = None


class OutputClosed(Exception):
    """The reader of our output closed it. Not BrokenPipeError, which click would report as a failure."""


class CommandGroup(click.Group):
    """A group that notes the command it invokes, so that messages can name that command's flags."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the subcommand that the arguments name, and note it in the state of the run."""
        name, command, rest = super().resolve_command(ctx, args)
        state = ctx.find_object(CommandLineState)
        if state is not None:
            state.command = command
        return name, command, rest


class LazyGroup(CommandGroup):
    """A group that lists its commands from a table and imports only the one that runs."""

    def __init__(self, *arguments: Any, table: Mapping[str, tuple[str, str]], **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.table = table

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputClosed from error

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, in the order of the table."""
        return list(self.table)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """Import the module of a command, and return the command."""
        if name not in self.table:
            return None
        module, _ = self.table[name]
        return cast(click.Command, importlib.import_module(module).command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the completions of a command name without importing the commands."""
        matching = (name for name in self.table if name.startswith(incomplete))
        commands = [CompletionItem(name, help=self.table[name][1]) for name in matching]
        return commands + click.Command.shell_complete(self, ctx, incomplete)


EPILOG = f"""\b
Example:
  pigguf convert ./longchat-7b-16k -o longchat.gguf --type Q4_K_M
  pigguf chat longchat.gguf --file report.txt -p "What was decided?"

\b
To enable completion of commands, options and files:
  bash  echo 'eval "$(_PIGGUF_COMPLETE=bash_source pigguf)"' >> ~/.bashrc
  zsh   echo 'eval "$(_PIGGUF_COMPLETE=zsh_source pigguf)"' >> ~/.zshrc
  fish  echo '_PIGGUF_COMPLETE=fish_source pigguf | source' > ~/.config/fish/completions/pigguf.fish

\b
Exit codes:
{exit_codes.table()}

\b
PIGGUF_DEBUG=1 shows the traceback of an error. NO_COLOR=1 disables colours.
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
    """Convert language models with extended context windows to GGUF, and run them."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; without `arguments`, with those of the process."""
    state = CommandLineState()
    warnings = _WarningHandler(state)
    logging.getLogger("pigguf").addHandler(warnings)
    try:
        sys.exit(_run(arguments, state))
    finally:
        logging.getLogger("pigguf").removeHandler(warnings)


def _run(arguments: Sequence[str] | None, state: CommandLineState) -> int:
    """Run the command line, and return its exit code."""
    terminal.open_missing_streams()
    # A character that the terminal cannot encode is escaped, instead of a crash in the middle of an answer.
    for stream in (sys.stdout, sys.stderr):
        cast(Any, stream).reconfigure(errors="backslashreplace")
    try:
        result = cli.main(arguments, prog_name=PROGRAM, standalone_mode=False, obj=state)
        sys.stdout.flush()
    except (OutputClosed, BrokenPipeError):  # no message: its reader may be gone, too
        _redirect_to_null(sys.stdout)
        return exit_codes.CLOSED.code
    except (Exception, KeyboardInterrupt) as error:
        return _fail(error, state)
    # ctx.exit(code) arrives as the result; commands themselves return nothing.
    return result if isinstance(result, int) else 0


class _WarningHandler(logging.Handler):
    """Shows the library's warnings as notes on stderr."""

    def __init__(self, state: CommandLineState) -> None:
        super().__init__()
        self._state = state

    def emit(self, record: logging.LogRecord) -> None:
        """Print a warning, with the running command's flags for the parameters that it names."""
        from pigguf.cli import render

        render.note(f"warning: {parameters_as_flags(record.getMessage(), self._state.command)}")


def _fail(error: BaseException, state: CommandLineState) -> int:
    """Report a failure on stderr, with its traceback if wanted, and return the exit code."""
    # click turns a KeyboardInterrupt into its Abort, after it printed a line break behind the `^C`.
    if isinstance(error, (click.Abort, KeyboardInterrupt)):
        click.echo("interrupted", err=True)
        return exit_codes.INTERRUPTED.code
    if state.verbose and not isinstance(error, click.ClickException):
        import traceback

        traceback.print_exception(error)
    report(error, state.command)
    try:
        sys.stdout.flush()
    except OSError:
        _redirect_to_null(sys.stdout)
    return error.exit_code if isinstance(error, click.ClickException) else exit_codes.exit_code(error)


def _redirect_to_null(stream: TextIO) -> None:
    """Redirect a broken stream to /dev/null, because the interpreter flushes it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
