"""Parameters that messages name in backticks are shown as the running command's flags."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import click
import pytest

from pigguf import cli
from pigguf.cli.parameter_flags import parameters_as_flags
from pigguf.errors import UsageError


@click.command()
@click.argument("path", metavar="MODEL")
@click.option("--ctx", type=int)
@click.option("--rope-base", "rope_theta", type=float)
@click.option("-o", "--output")
@click.option("--tensor-type", "tensor_types", multiple=True)
@click.option("-p", "--prompt")
@click.option("--dry-run", is_flag=True)
@click.option("--prompt-cache/--no-prompt-cache", default=True)
def example(**_: object) -> None:
    """Do nothing, with every sort of parameter."""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("use a smaller `ctx`", "use a smaller --ctx"),
        ("give `ctx=4096`", "give --ctx 4096"),
        ("`rope.theta=10000` or `ctx`", "--rope-base 10000 or --ctx"),
        ("use another `output`", "use another --output"),
        (
            "as in `tensor_types=blk\\.[0-3]\\.attn_v=q8_0`",
            "as in --tensor-type 'blk\\.[0-3]\\.attn_v=q8_0'",
        ),
        ("`prompt=Name a pig.`", "--prompt 'Name a pig.'"),
        ("add `dry_run`", "add --dry-run"),
        ("add `dry_run=True`", "add --dry-run"),
        ("use `prompt_cache=False`", "use --no-prompt-cache"),
        ("use `prompt_cache`", "use --prompt-cache"),
        ("`path` is empty", "MODEL is empty"),
        ("`threads=4` is not a parameter here", "`threads=4` is not a parameter here"),
        ("keep its `with` block open", "keep its `with` block open"),
        ("run `pigguf plan FILE`", "run `pigguf plan FILE`"),
        ("an unfinished `ctx", "an unfinished `ctx"),
        ("", ""),
    ],
)
def test_parameters_become_flags_of_the_command(text: str, expected: str) -> None:
    assert parameters_as_flags(text, example) == expected


def test_without_a_command_the_text_stays() -> None:
    assert parameters_as_flags("use a smaller `ctx`") == "use a smaller `ctx`"


def test_the_running_command_is_the_default() -> None:
    with click.Context(example):
        assert parameters_as_flags("use a smaller `ctx`") == "use a smaller --ctx"


@pytest.fixture
def nested(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add `pigguf outer inner`, which warns and fails with messages that name parameters of `inner`."""

    @click.command()
    @click.option("--max-tokens", type=int)
    def inner(max_tokens: int | None) -> None:
        logging.getLogger("pigguf.test").warning("`max_tokens=%d` is too small", 1)
        raise UsageError("`max_tokens` is missing", "give `max_tokens=64`; `ctx` is something else")

    @click.group(cls=cli.CommandGroup)
    @click.option("--ctx", type=int)
    def outer(ctx: int | None) -> None:
        pass

    outer.add_command(inner)
    module = ModuleType("pigguf_nested_command")
    module.command = outer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(cli.COMMANDS, "outer", (module.__name__, "Fail."))


def test_errors_and_warnings_name_the_innermost_commands_flags(nested: None, run) -> None:
    result = run("outer", "inner")
    assert result.returncode == 2
    assert result.stderr == (
        "warning: --max-tokens 1 is too small\n"
        "error: --max-tokens is missing\n"
        "hint: give --max-tokens 64; `ctx` is something else\n"
    )


def test_a_real_command_names_its_flags(run) -> None:
    result = run("chat", "model.gguf", "--prefill", "torch", "--workers", "10.0.0.2:50052", "-p", "Hello")
    assert result.returncode == 2
    assert result.stderr == (
        "error: --prefill torch computes prompts on this machine only, but the layers are on workers\n"
        "hint: use --prefill auto, or leave out --workers\n"
    )
