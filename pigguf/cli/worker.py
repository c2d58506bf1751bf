"""`pigguf worker`: this machine's devices for a model that runs on another one."""

from __future__ import annotations

import ipaddress
import os
import re
import sys

import click

from pigguf.cli import render
from pigguf.cli.options import verbose_option
from pigguf.common.files import cache_directory
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
    help="Where to listen; port 0 is any that is free.",
)
@click.option(
    "--device",
    "names",
    metavar="NAME,...",
    help="Devices to lend, by the names of `pigguf doctor`; default: all GPUs, or the CPU without one.",
)
@click.option(
    "--memory",
    metavar="N(M|G)",
    callback=_size,
    help="Most memory to lend of each device, in MiB or GiB; default: what is free now.",
)
@click.option(
    "--cache",
    "most_kept",
    metavar="N(M|G)",
    callback=_size,
    help="Keep up to so much of clients' weights on disk, so that they need not be sent again.",
)
@click.option(
    "--trust-network",
    is_flag=True,
    help="Listen where other machines reach it, without authentication or encryption.",
)
@verbose_option
def command(
    listen: str,
    names: str | None,
    memory: int | None,
    most_kept: int | None,
    trust_network: bool,
    verbose: bool,
) -> None:
    """Lend this machine's devices to a model that runs on another one, until Ctrl-C.

    The other machine names it with --workers. One client is served at a time. There is no authentication and
    no encryption: anyone who reaches the port may use it, and read or change what is computed. So it listens
    on this machine alone, for an SSH tunnel to end at; docs/workers.md shows that, and WireGuard.

    \b
    Examples:
      pigguf worker
      pigguf worker --listen 10.8.0.2:50052 --memory 8G --cache 20G --trust-network
    """
    host, port = parse_host_port(listen)
    if not (trust_network or _is_loopback(host)):
        raise UsageError(
            f"{host} is reached from other machines, and llama.cpp's RPC knows no authentication",
            "listen on 127.0.0.1 behind an SSH tunnel, or say --trust-network if all of it may use it",
        )
    if verbose:
        log_to(render.note)
    _keep_stdout()
    chosen = None if names is None else [name.strip() for name in names.split(",")]
    cache = None if most_kept is None else WeightCache(cache_directory("weights"), most_kept)
    with Worker(host, port, names=chosen, memory=memory, cache=cache) as worker:
        if not _is_loopback(host):
            render.note(
                f"warning: whoever reaches {worker.address} can use this worker and see what it computes: "
                "there is no authentication and no encryption"
            )
        rows = [("listens on", worker.address), *(("lends", _lent(one)) for one in worker.devices)]
        if cache is not None:
            rows.append(("keeps", f"up to {format_memory(cache.max_bytes)} of weights in {cache.directory}"))
        render.facts(rows)
        sys.stdout.flush()
        worker.serve()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _lent(device: Device) -> str:
    return f"{device.name}: {device.description}, {format_memory(device.memory_free)}"


def _keep_stdout() -> None:
    """The library's server writes there by itself, whenever a client comes or goes: leave it another one."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors="backslashreplace")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
