"""Options that several commands share, each defined once.

A command takes them as decorators; a group of them arrives as the one value they make together.
Left out: options of one command alone, which live with it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

Command = TypeVar("Command", bound=Callable[..., Any])

# click would call a file without read permission wrong usage; whoever reads it says it better
PATH = click.Path(path_type=Path, readable=False)
# A directory or a hub's name: a str, for ./org/model is none, and Path would make org/model of it
SOURCE = click.Path(readable=False)


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and ctx.obj is not None:
        ctx.obj.verbose = True
    return value


def verbose_option(command: Command) -> Command:
    """-v: the engine's own log lines, and the traceback of an error. Passed as `verbose`."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        callback=_set_verbose,
        help="Show the engine's own log lines, and the traceback of an error.",
    )(command)


def json_option(command: Command) -> Command:
    """--json: the result for a program to read. Passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def type_option(default: str | None = None) -> Callable[[Command], Command]:
    """--type, one of the recipes; required where there is no default. Passed as `type`."""
    from pigguf.quantization import RECIPES

    return click.option(
        "--type",
        type=click.Choice(list(RECIPES), case_sensitive=False),
        metavar="TYPE",
        default=default,
        show_default=True,
        required=default is None,
        help="Type of the weights; the table below has them all.",
    )


def weights_options(command: Command) -> Command:
    """--imatrix and --tensor-type. Passed as `imatrix`: a path or None, and `tensor_types`: a dict."""
    command = click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        callback=_tensor_types,
        help="A type of their own for tensors in whose names the regular expression is found; may be given "
        "several times.",
    )(command)
    return click.option(
        "--imatrix",
        type=PATH,
        metavar="FILE",
        help="An importance matrix of this model; the table below says which types need one.",
    )(command)


def _tensor_types(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """llama-quantize's --tensor-type."""
    types: dict[str, str] = {}
    for value in values:
        pattern, equals, name = value.rpartition("=")
        if not (pattern and equals and name):
            raise click.BadParameter(f"{value!r} is not PATTERN=TYPE, as ffn_down=q6_k", ctx, parameter)
        if pattern in types:
            raise click.BadParameter(f"{pattern!r} is given twice", ctx, parameter)
        types[pattern] = name
    return types


def _shard_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """llama.cpp's tools/gguf-split: a whole number of M (10^6 bytes) or G (10^9)."""
    if value is None:
        return None
    number, unit = value[:-1], value[-1:]
    if unit not in ("M", "G") or not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise click.BadParameter(f"{value!r} is not a size such as 500M or 4G", ctx, parameter)
    return int(number) * (10**6 if unit == "M" else 10**9)


def shard_size_option(command: Command) -> Command:
    """--shard-size, as llama.cpp's gguf-split reads sizes. Passed as `shard_size`: bytes, or None."""
    return click.option(
        "--shard-size",
        metavar="N(M|G)",
        callback=_shard_size,
        help="Split what is larger into OUT-00001-of-0000N.gguf and so on, as gguf-split does.",
    )(command)


def type_table() -> str:
    """The types that --type takes, as an epilog of --help."""
    from pigguf.quantization import RECIPES

    rows = (f"  {r.name:<7} {r.bits_per_weight:>5.2f}  {r.description}" for r in RECIPES.values())
    return "\b\nTypes, with bits a weight of Llama 3.1 8B:\n" + "\n".join(rows)


def _gpu_layers(ctx: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value in ("all", "auto"):
        return value
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is not a number of layers, 'all' or 'auto'", ctx, parameter)


def engine_options(command: Command) -> Command:
    """On what the engine computes. Passed as `gpu_layers` and `threads`."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; default: all cores."
    )(command)
    return gpu_layers_option(command)


def gpu_layers_option(command: Command) -> Command:
    """--gpu-layers. Passed as `gpu_layers`."""
    return click.option(
        "--gpu-layers",
        metavar="N|all|auto",
        callback=_gpu_layers,
        default="auto",
        show_default=True,
        help="Layers to put on the GPU.",
    )(command)


def cache_options(command: Command) -> Command:
    """Types of the KV cache. Passed as `cache_k` and `cache_v`."""
    from pigguf.inference.engine import CacheType

    for letter, what in (("v", "values"), ("k", "keys")):
        command = click.option(
            f"--cache-type-{letter}",
            f"cache_{letter}",
            type=click.Choice(get_args(CacheType)),
            metavar="TYPE",
            default="f16",
            show_default=True,
            help=f"Type of the KV cache's {what}: {', '.join(get_args(CacheType))}.",
        )(command)
    return command


def window_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The window, and how positions are read. Passed as `ctx`, and `rope`: RuntimeRope or None."""
    from pigguf.inference.engine import RuntimeRope

    @click.option(
        "--rope-factor",
        type=click.FloatRange(min=0, min_open=True),
        metavar="F",
        help="Linear rope scaling factor to use in place of the file's; permits any --ctx.",
    )
    @click.option(
        "--rope-base",
        "rope_theta",
        type=click.FloatRange(min=0, min_open=True),
        metavar="B",
        help="Rope frequency base to use in place of the file's; permits any --ctx.",
    )
    @functools.wraps(command)
    def with_window_options(
        *, ctx: int | None, rope_factor: float | None, rope_theta: float | None, **rest: Any
    ) -> Any:
        overridden = rope_factor is not None or rope_theta is not None
        rope = RuntimeRope(rope_factor, rope_theta, ctx) if overridden else None
        return command(ctx=ctx, rope=rope, **rest)

    return click.option(
        "--ctx",
        type=click.IntRange(min=1),
        metavar="N",
        help="Context window in tokens; default: the file's, or what half of the free memory holds.",
    )(with_window_options)


def _addresses(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(address for address in map(str.strip, value.split(",")) if address)


def _shares(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(map(float, value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not shares such as 3,1", ctx, parameter) from error


def workers_options(command: Command) -> Command:
    """--workers and --split, named as RunConfig has them."""
    command = click.option(
        "--split",
        metavar="A,B,...",
        callback=_shares,
        help="Share of the layers of each of the workers' devices; default: in proportion to their memory.",
    )(command)
    return click.option(
        "--workers",
        metavar="HOST:PORT,...",
        callback=_addresses,
        default="",
        help="Machines that run `pigguf worker`; they take the layers, in place of this one's GPUs.",
    )(command)


_FLASH_ATTENTION = {"auto": None, "on": True, "off": False}


def setting_options(command: Command) -> Command:
    """How fast and how small a model runs, each option named as RunConfig has it."""
    from pigguf.inference.run_config import PrefillBackend

    command = click.option(
        "--prefill",
        type=click.Choice(get_args(PrefillBackend)),
        default="auto",
        show_default=True,
        help="What reads long prompts; auto is PyTorch where it is installed and faster.",
    )(command)
    return cached_options(command)


def cached_options(command: Command) -> Command:
    """Flash attention, the KV cache, and on what the engine computes, each named as RunConfig has it."""
    command = click.option(
        "--flash-attention",
        type=click.Choice(list(_FLASH_ATTENTION)),
        callback=lambda ctx, parameter, value: _FLASH_ATTENTION[value],
        default="auto",
        show_default=True,
        help="Flash attention; auto is what was tuned, or the built-in rule.",
    )(command)
    return engine_options(cache_options(workers_options(command)))


def prompt_cache_option(command: Command) -> Command:
    """--prompt-cache/--no-prompt-cache. Passed as `prompt_cache`."""
    return click.option(
        "--prompt-cache/--no-prompt-cache",
        default=True,
        show_default=True,
        help="Keep long prompts in the prompt cache on disk, and restore them from it the next time.",
    )(command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How a model is run, and what for. Passed as `settings`: RunConfig."""
    from pigguf.inference.run_config import RunConfig

    own = [field.name for field in fields(RunConfig) if field.name != "ctx"]

    @window_options
    @setting_options
    @prompt_cache_option
    @functools.wraps(command)
    def with_run_options(*, ctx: int | None, **values: Any) -> Any:
        settings = RunConfig(ctx, **{name: values.pop(name) for name in own})
        return command(settings=settings, **values)

    return with_run_options


# Sampling's name, type, letter, what it does; Sampling itself checks the ranges
_SAMPLING: tuple[tuple[str, type, str, str], ...] = (
    ("temperature", float, "T", "How freely words are drawn; 0 always takes the likeliest."),
    ("top_k", int, "K", "Draw from the K likeliest tokens; 0 is all."),
    ("top_p", float, "P", "Draw from the likeliest that together reach P; 1 is all."),
    ("min_p", float, "P", "Leave out what is less likely than P times the likeliest; 0 is off."),
    ("repeat_penalty", float, "R", "Make tokens of late less likely by this factor; 1 is off."),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """How an answer is drawn. Passed as `sampling`: Sampling, and `max_tokens`."""
    from pigguf.inference.engine import SamplingParams

    names = [name for name, *_ in _SAMPLING] + ["seed"]

    @click.option("--seed", type=int, metavar="N", help="Draw the same words again.")
    @click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most tokens of an answer; default: up to the window's end.",
    )
    @functools.wraps(command)
    def with_sampling_options(**values: Any) -> Any:
        sampling = SamplingParams(**{name: values.pop(name) for name in names})
        return command(sampling=sampling, **values)

    decorated: Callable[..., Any] = with_sampling_options
    for name, kind, letter, text in reversed(_SAMPLING):
        decorated = click.option(
            f"--{name.replace('_', '-')}",
            type=kind,
            metavar=letter,
            default=getattr(SamplingParams(), name),
            show_default=True,
            help=text,
        )(decorated)
    return decorated


def json_schema_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """--json-schema, below sampling_options: it gives their `sampling` the schema's grammar."""

    @click.option(
        "--json-schema",
        metavar="FILE|JSON",
        help="Answer in JSON that this JSON schema accepts, which is a file or given as {...}.",
    )
    @functools.wraps(command)
    def with_grammar(*, json_schema: str | None, sampling: Any, **rest: Any) -> Any:
        if json_schema is not None:
            from pigguf.grammar import json_schema_to_grammar, read_json_schema

            sampling = dataclasses.replace(sampling, grammar=json_schema_to_grammar(read_json_schema(json_schema)))
        return command(sampling=sampling, **rest)

    return with_grammar
