"""Options that several commands share, each defined once, as decorators.

A group of options is passed to the command as one value. Options of a single command are defined in its
module.
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

# not checked by click, which would report a file without read permission as wrong usage
FILE_PATH = click.Path(path_type=Path, readable=False)
# a directory or a repository of a hub: a str, because Path would turn ./org/model into org/model
CHECKPOINT_SOURCE = click.Path(readable=False)


def _set_verbose(ctx: click.Context, parameter: click.Parameter, value: bool) -> bool:
    if value and ctx.obj is not None:
        ctx.obj.verbose = True
    return value


def verbose_option(command: Command) -> Command:
    """Add -v: show the engine's log lines, and the traceback of an error. Passed as `verbose`."""
    return click.option(
        "-v",
        "--verbose",
        is_flag=True,
        callback=_set_verbose,
        help="Show the engine's log lines, and the traceback of an error.",
    )(command)


def json_option(command: Command) -> Command:
    """Add --json: print the result as JSON. Passed as `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(command)


def type_option(default: str | None = None) -> Callable[[Command], Command]:
    """Add --type, one of the quantization recipes; required without a default. Passed as `type`."""
    from pigguf.quantization import RECIPES

    return click.option(
        "--type",
        type=click.Choice(list(RECIPES), case_sensitive=False),
        metavar="TYPE",
        default=default,
        show_default=True,
        required=default is None,
        help="Quantization type, see the table below.",
    )


def quantization_options(command: Command) -> Command:
    """Add --imatrix and --tensor-type. Passed as `imatrix`, a path or None, and `tensor_types`, a dict."""
    command = click.option(
        "--tensor-type",
        "tensor_types",
        multiple=True,
        metavar="PATTERN=TYPE",
        callback=_parse_tensor_types,
        help="Use another type for the tensors whose name matches a regular expression; can be repeated.",
    )(command)
    return click.option(
        "--imatrix",
        type=FILE_PATH,
        metavar="FILE",
        help="An importance matrix of this model; the table below shows which types need one.",
    )(command)


def _parse_tensor_types(
    ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str]:
    """Parse --tensor-type, as llama-quantize takes it."""
    types: dict[str, str] = {}
    for value in values:
        pattern, equals, name = value.rpartition("=")
        if not (pattern and equals and name):
            raise click.BadParameter(f"{value!r} is not PATTERN=TYPE, such as ffn_down=q6_k", ctx, parameter)
        if pattern in types:
            raise click.BadParameter(f"{pattern!r} is given twice", ctx, parameter)
        types[pattern] = name
    return types


def _parse_shard_size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a size as llama.cpp's tools/gguf-split does: an integer of M (10^6 bytes) or G (10^9)."""
    if value is None:
        return None
    number, unit = value[:-1], value[-1:]
    if unit not in ("M", "G") or not (number.isascii() and number.isdecimal()) or int(number) < 1:
        raise click.BadParameter(f"{value!r} is not a size such as 500M or 4G", ctx, parameter)
    return int(number) * (10**6 if unit == "M" else 10**9)


def shard_size_option(command: Command) -> Command:
    """Add --shard-size. Passed as `shard_size`, bytes or None."""
    return click.option(
        "--shard-size",
        metavar="N(M|G)",
        callback=_parse_shard_size,
        help="Split a larger model into OUT-00001-of-0000N.gguf and so on, as gguf-split does.",
    )(command)


def type_table() -> str:
    """Return the table of types of --type, as an epilog of --help."""
    from pigguf.quantization import RECIPES

    rows = (f"  {r.name:<7} {r.bits_per_weight:>5.2f}  {r.description}" for r in RECIPES.values())
    return "\b\nTypes, with bits per weight of Llama 3.1 8B:\n" + "\n".join(rows)


def _parse_gpu_layers(ctx: click.Context, parameter: click.Parameter, value: str) -> int | str:
    if value in ("all", "auto"):
        return value
    if value.isdecimal():
        return int(value)
    raise click.BadParameter(f"{value!r} is not a number of layers, 'all' or 'auto'", ctx, parameter)


def engine_options(command: Command) -> Command:
    """Add --gpu-layers and --threads. Passed as `gpu_layers` and `threads`."""
    command = click.option(
        "--threads", type=click.IntRange(min=1), metavar="N", help="CPU threads; default: all cores."
    )(command)
    return gpu_layers_option(command)


def gpu_layers_option(command: Command) -> Command:
    """Add --gpu-layers. Passed as `gpu_layers`."""
    return click.option(
        "--gpu-layers",
        metavar="N|all|auto",
        callback=_parse_gpu_layers,
        default="auto",
        show_default=True,
        help="Layers to offload to the GPU.",
    )(command)


def cache_options(command: Command) -> Command:
    """Add --cache-type-k and --cache-type-v. Passed as `cache_k` and `cache_v`."""
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


def context_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --ctx, --rope-factor and --rope-base. Passed as `ctx`, and `rope`: a RuntimeRope or None."""
    from pigguf.inference.engine import RuntimeRope

    @click.option(
        "--rope-factor",
        type=click.FloatRange(min=0, min_open=True),
        metavar="F",
        help="Linear rope scaling factor instead of the file's; allows any --ctx.",
    )
    @click.option(
        "--rope-base",
        "rope_theta",
        type=click.FloatRange(min=0, min_open=True),
        metavar="B",
        help="Rope frequency base (theta) instead of the file's; allows any --ctx.",
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
        help="Context length in tokens; default: the model's own, or as many tokens as fit in half of the "
        "free memory.",
    )(with_window_options)


def _parse_addresses(ctx: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(address for address in map(str.strip, value.split(",")) if address)


def _parse_shares(
    ctx: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[float, ...] | None:
    if value is None:
        return None
    try:
        return tuple(map(float, value.split(",")))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a list of shares such as 3,1", ctx, parameter) from error


def workers_options(command: Command) -> Command:
    """Add --workers and --split, named as the fields of RunConfig."""
    command = click.option(
        "--split",
        metavar="A,B,...",
        callback=_parse_shares,
        help="Share of the layers of each worker device; default: in proportion to their memory.",
    )(command)
    return click.option(
        "--workers",
        metavar="HOST:PORT,...",
        callback=_parse_addresses,
        default="",
        help="Machines that run `pigguf worker`; they compute the layers, instead of the GPUs of this one.",
    )(command)


_FLASH_ATTENTION = {"auto": None, "on": True, "off": False}


def performance_options(command: Command) -> Command:
    """Add the options that change speed and memory, named as the fields of RunConfig."""
    from pigguf.inference.run_config import PrefillBackend

    command = click.option(
        "--prefill",
        type=click.Choice(get_args(PrefillBackend)),
        default="auto",
        show_default=True,
        help="Backend for the prefill of long prompts; auto: PyTorch if it is installed and faster.",
    )(command)
    return kv_cache_options(command)


def kv_cache_options(command: Command) -> Command:
    """Add the options of the engine and its KV cache, named as the fields of RunConfig."""
    command = click.option(
        "--flash-attention",
        type=click.Choice(list(_FLASH_ATTENTION)),
        callback=lambda ctx, parameter, value: _FLASH_ATTENTION[value],
        default="auto",
        show_default=True,
        help="Flash attention; auto: as tuned, or by the built-in rule.",
    )(command)
    return engine_options(cache_options(workers_options(command)))


def prompt_cache_option(command: Command) -> Command:
    """Add --prompt-cache/--no-prompt-cache. Passed as `prompt_cache`."""
    return click.option(
        "--prompt-cache/--no-prompt-cache",
        default=True,
        show_default=True,
        help="Keep long prompts in the prompt cache on disk, and restore them from it the next time.",
    )(command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all options of how a model is run. Passed as `config`: a RunConfig."""
    from pigguf.inference.run_config import RunConfig

    names = [field.name for field in fields(RunConfig) if field.name != "ctx"]

    @context_options
    @performance_options
    @prompt_cache_option
    @functools.wraps(command)
    def with_run_options(*, ctx: int | None, **values: Any) -> Any:
        config = RunConfig(ctx, **{name: values.pop(name) for name in names})
        return command(config=config, **values)

    return with_run_options


# name of SamplingParams, type, metavar, help; SamplingParams checks the ranges
_SAMPLING: tuple[tuple[str, type, str, str], ...] = (
    ("temperature", float, "T", "Sampling temperature; 0 always takes the most likely token."),
    ("top_k", int, "K", "Sample from the K most likely tokens; 0: from all."),
    (
        "top_p",
        float,
        "P",
        "Sample from the most likely tokens that together reach probability P; 1: from all.",
    ),
    ("min_p", float, "P", "Drop tokens less likely than P times the most likely one; 0: off."),
    ("repeat_penalty", float, "R", "Make recent tokens less likely by this factor; 1: off."),
)


def sampling_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of sampling. Passed as `sampling`, a SamplingParams, and `max_tokens`."""
    from pigguf.inference.engine import SamplingParams

    names = [name for name, *_ in _SAMPLING] + ["seed"]

    @click.option("--seed", type=int, metavar="N", help="Random seed: the same seed gives the same answer.")
    @click.option(
        "--max-tokens",
        type=click.IntRange(min=1),
        metavar="N",
        help="Most tokens of an answer; default: until the context is full.",
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
    """Add --json-schema, below sampling_options: it puts the schema's grammar into `sampling`."""

    @click.option(
        "--json-schema",
        metavar="FILE|JSON",
        help="Constrain the answer to a JSON schema: a file, or the schema itself as {...}.",
    )
    @functools.wraps(command)
    def with_grammar(*, json_schema: str | None, sampling: Any, **rest: Any) -> Any:
        if json_schema is not None:
            from pigguf.grammar import json_schema_to_grammar, read_json_schema

            sampling = dataclasses.replace(
                sampling, grammar=json_schema_to_grammar(read_json_schema(json_schema))
            )
        return command(sampling=sampling, **rest)

    return with_grammar
