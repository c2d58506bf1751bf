"""`pigguf worker`: provide this machine's devices to a model that runs on another machine."""

from __future__ import annotations

import ipaddress
import os
import re
import sys

import click

from pigguf.cli import render
from pigguf.cli.options import verbose_option
from pigguf.common.cache_directory import cache_directory
from pigguf.common.format_bytes import format_memory
from pigguf.errors import UsageError
from pigguf.inference.engine import log_to
from pigguf.inference.engine.devices import Device
from pigguf.inference.rpc.weight_cache import WeightCache
from pigguf.inference.rpc.worker import Worker
from pigguf.llama_cpp_internals.rpc_protocol import parse_host_port

_UNITS = {"M": 20, "G": 30}


def _size(ctx: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([MG])", value, re.ASCII)
    if not found or not float(found[1]):
        raise click.BadParameter(f"{value!r} is not a size such as 500M or 8G", ctx, parameter)
    return int(float(found[1]) * 2 ** _UNITS[found[2]])


@click.command()
@click.option(
    "--listen",
    metavar="HOST:PORT",
    default="127.0.0.1:50052",
    show_default=True,
    help="Address to listen on; port 0 is any free port.",
)
@click.option(
    "--device",
    "names",
    metavar="NAME,...",
    help="Devices to provide, by their names in `pigguf doctor`; default: all GPUs, else the CPU.",
)
@click.option(
    "--memory",
    metavar="N(M|G)",
    callback=_size,
    help="Memory limit for each device, in MiB or GiB; default: the free memory.",
)
@click.option(
    "--cache",
    "cache_bytes",
    metavar="N(M|G)",
    callback=_size,
    help="Store up to this size of weights on disk, so that clients do not send them again.",
)
@click.option(
    "--trust-network",
    is_flag=True,
    help="Listen on an address that other machines can reach, without authentication or encryption.",
)
@verbose_option
def command(
    listen: str,
    names: str | None,
    memory: int | None,
    cache_bytes: int | None,
    trust_network: bool,
    verbose: bool,
) -> None:
    """Provide this machine's devices to a model that runs on another machine, until Ctrl-C.

    The other machine connects with --workers. One client is served at a time. There is no authentication and
    no encryption: anyone who can reach the port can use the worker, and read or change what it computes. So
    it listens on loopback by default, as the end of an SSH tunnel; docs/workers.md describes that, and
    WireGuard.

    \b
    Examples:
      pigguf worker
      pigguf worker --listen 10.8.0.2:50052 --memory 8G --cache 20G --trust-network
    """
    host, port = parse_host_port(listen)
    if not (trust_network or _is_loopback(host)):
        raise UsageError(
            f"other machines can reach {host}, and llama.cpp's RPC has no authentication",
            "listen on 127.0.0.1 behind an SSH tunnel, or give --trust-network to allow it",
        )
    if verbose:
        log_to(render.note)
    _move_stdout()
    chosen = None if names is None else [name.strip() for name in names.split(",")]
    cache = None if cache_bytes is None else WeightCache(cache_directory("weights"), cache_bytes)
    with Worker(host, port, names=chosen, memory=memory, cache=cache) as worker:
        if not _is_loopback(host):
            render.note(
                f"warning: anyone who can reach {worker.address} can use this worker and see its data: "
                "there is no authentication and no encryption"
            )
        rows = [("address", worker.address), *(("device", _describe(device)) for device in worker.devices)]
        if cache is not None:
            rows.append(("weight cache", f"up to {format_memory(cache.max_bytes)} in {cache.directory}"))
        render.key_values(rows)
        sys.stdout.flush()
        worker.serve()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _describe(device: Device) -> str:
    return f"{device.name}: {device.description}, {format_memory(device.memory_free)}"


def _move_stdout() -> None:
    """Move stdout to a new file descriptor, because llama.cpp's RPC server prints to descriptor 1."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 1)
    os.close(devnull)
