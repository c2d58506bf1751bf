"""The command line: help, errors, exit codes, completion."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import click
import pytest

from pigguf import cli, errors
from pigguf.cli import exit_codes

PIGGUF = [sys.executable, "-m", "pigguf"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PIGGUF, *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **environment}
    )


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs a command which raises an error, and returns its exit code."""

    def run_with(error: BaseException, *arguments: str) -> int:
        @click.command()
        @click.option("-v", "verbose", is_flag=True)
        def command(verbose: bool) -> None:
            raise error

        module = ModuleType("pigguf_failing_command")
        module.command = command  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, "fail", (module.__name__, "Fail."))
        with pytest.raises(SystemExit) as exit_:
            cli.main(["fail", *arguments])
        return exit_.value.code  # type: ignore[return-value]

    return run_with


def test_help_lists_every_command_and_exit_code() -> None:
    result = run("--help")
    assert result.returncode == 0
    assert result.stderr == ""
    for name, (_, text) in cli.COMMANDS.items():
        assert f"  {name} " in result.stdout
        assert text in result.stdout
    for code, meaning in exit_codes.ALL:
        assert f"{code}  {meaning}" in result.stdout


def test_no_arguments_is_help() -> None:
    assert run().stdout == run("--help").stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from pigguf.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print('HEAVY', [m for m in ('rich', 'numpy', 'gguf', 'llama_cpp', 'jinja2', 'prompt_toolkit') "
        "if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.splitlines()[-1] == "HEAVY []"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_every_command_has_help_with_an_example(name: str) -> None:
    result = run(name, "--help")
    assert result.returncode == 0, result.stderr
    assert f"pigguf {name}" in result.stdout.split("\n", 1)[1], "no example"


def test_version() -> None:
    result = run("--version")
    assert result.stdout.startswith("pigguf 0.")


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["nope"], "No such command 'nope'", "pigguf --help"),
        (["chat"], "Missing argument 'MODEL'", "pigguf chat --help"),
        (["chat", "m.gguf", "--nope"], "No such option", "pigguf chat --help"),
    ],
)
def test_wrong_usage_is_one_line_a_hint_and_2(arguments: list[str], message: str, hint: str) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    first, second = result.stderr.splitlines()
    assert first.startswith(f"error: {message}")
    assert second == f"hint: try '{hint}'"


def every_error() -> list[type[errors.PigError]]:
    found, todo = [], [errors.PigError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += [child for child in kind.__subclasses__() if child.__module__ == errors.__name__]
    return found


@pytest.mark.parametrize("kind", every_error())
def test_pigguf_errors_are_a_message_a_hint_and_a_code(kind, failing, capsys) -> None:
    code = failing(kind("config.json: rope_scaling.factor is -1", "give a factor above 0"))
    assert capsys.readouterr().err == (
        "error: config.json: rope_scaling.factor is -1\nhint: give a factor above 0\n"
    )
    expected = exit_codes.UNEXPECTED.code if kind is errors.PigError else exit_codes.exit_code(kind(""))
    assert code == expected
    assert kind is errors.PigError or code > 2 or kind is errors.UsageError


def test_the_nearest_class_decides_the_code() -> None:
    assert exit_codes.exit_code(errors.ContextOverflow("")) == 10
    assert exit_codes.exit_code(errors.BackendUnavailable("")) == exit_codes.exit_code(errors.EngineError(""))
    assert exit_codes.exit_code(errors.OutputError("")) == exit_codes.exit_code(PermissionError())


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(28, "No space left on device", "/d/out.gguf"),
            "error: /d/out.gguf: No space left on device",
        ),
        (PermissionError(13, "Permission denied", "/d"), "error: /d: Permission denied"),
        (FileNotFoundError(2, "No such file or directory", "x"), "error: x: No such file or directory"),
    ],
)
def test_system_errors_are_one_line(error: OSError, line: str, failing, capsys) -> None:
    assert failing(error) == 6
    assert capsys.readouterr().err.splitlines() == [line]


def test_interrupt_is_130(failing, capsys) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err.strip() == "interrupted"


def test_a_missing_package_is_named(failing, capsys) -> None:
    assert failing(ModuleNotFoundError("No module named 'numpy'", name="numpy")) == 1
    assert capsys.readouterr().err.startswith("error: the package numpy is missing\nhint: install")


def test_a_bug_is_one_line_and_a_hint_to_its_traceback(failing, capsys, monkeypatch) -> None:
    monkeypatch.delenv("PIGGUF_DEBUG", raising=False)
    assert failing(KeyError("lost")) == 1
    output = capsys.readouterr().err
    assert output.startswith("error: unexpected KeyError: 'lost'\n")
    assert "Traceback" not in output
    assert "PIGGUF_DEBUG=1" in output

    monkeypatch.setenv("PIGGUF_DEBUG", "1")
    assert failing(KeyError("lost")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_escape_sequences_in_a_message_do_not_reach_the_terminal(failing, capsys) -> None:
    failing(errors.GGUFError("bad\x1b]0;title\x07.gguf: damaged"))
    assert "\x1b" not in capsys.readouterr().err


def test_a_reader_that_closes_the_pipe_is_not_an_error() -> None:
    code = (
        "import sys, click\n"
        "from pigguf import cli\n"
        "@cli.cli.command('flood')\n"
        "def flood():\n"
        "    for i in range(100000): click.echo('line')\n"
        "cli.LazyGroup.get_command = lambda self, ctx, name: flood\n"
        "cli.main(['flood'])"
    )
    result = subprocess.run(
        ["bash", "-c", '"$0" -c "$1" | head -1; exit ${PIPESTATUS[0]}', sys.executable, code],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout == "line\n"
    assert result.stderr == ""
    assert result.returncode == 141  # as the shell reports a program that SIGPIPE ended


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_act_like_dev_null(closed: str, tmp_path: Path) -> None:
    code = (
        "import sys, os, click\n"
        "from pigguf import cli\n"
        "@cli.cli.command('try')\n"
        "def command():\n"
        "    assert sys.stdin.read() == ''\n"
        "    click.echo('data'); click.echo('words', err=True)\n"
        "    with open(sys.argv[1], 'x') as file:\n"
        "        file.write(f'mine {file.fileno() > 2}')\n"
        "        os.write(2, b'of C code')\n"
        "cli.LazyGroup.get_command = lambda self, ctx, name: command\n"
        "cli.main(['try'])"
    )
    result = subprocess.run(
        ["bash", "-c", f'"$0" -c "$1" "$2" {closed}', sys.executable, code, str(tmp_path / "file")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (tmp_path / "file").read_text() == "mine True", result.stderr
    assert result.returncode == 0
    assert result.stdout == ("" if ">&-" in closed.split() else "data\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_exist(shell: str) -> None:
    result = run(_PIGGUF_COMPLETE=f"{shell}_source")
    assert result.returncode == 0
    assert "_PIGGUF_COMPLETE" in result.stdout


def complete(*words: str) -> list[str]:
    """Return the completions that bash gets for the last word."""
    result = run(
        _PIGGUF_COMPLETE="bash_complete",
        COMP_WORDS=" ".join(["pigguf", *words]),
        COMP_CWORD=str(len(words)),
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_completes_commands_options_and_files() -> None:
    assert [word.split(",")[1] for word in complete("c")] == ["convert", "chat"]
    assert "plain,--temperature" in complete("chat", "--te")
    assert complete("chat", "mod") == ["file,mod"]
