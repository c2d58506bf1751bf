"""`pigguf worker`, and the commands that name workers, as a person meets them."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.command_line import CommandResult
from support.tiny_chat import write_chat_model
from support.worker_process import WorkerProcess, started_workers

import pigguf

Run = Callable[..., CommandResult]
Start = Callable[..., WorkerProcess]

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(pigguf.__file__).parent.parent)}


@pytest.fixture
def start() -> Iterator[Start]:
    yield from started_workers()


def finished(*arguments: str | Path) -> CommandResult:
    child = program(*arguments)
    out, err = child.communicate(timeout=120)
    return CommandResult(child.returncode, out, err)


def program(*arguments: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pigguf", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )


# ---- the worker --------------------------------------------------------------------------------------


def test_output_has_the_address_and_the_devices(start: Start) -> None:
    worker = start("--memory", "1.5G", "--device", "CPU")
    assert re.fullmatch(r"127\.0\.0\.1:\d+", worker.address)
    assert re.match(r"device +CPU: .+, 1\.5 GiB$", worker.device_line)


def test_ctrl_c_ends_it_quietly_and_its_port_is_free_again(start: Start) -> None:
    worker = start()
    worker.signal(signal.SIGINT)
    out, err = worker.child.communicate(timeout=10)
    assert worker.child.returncode == 130
    assert (out, err) == ("", "\ninterrupted\n")
    start(address=worker.address)


def test_the_librarys_log_lines_are_not_on_stdout(start: Start, smollm2_gguf: Path, run: Run) -> None:
    worker = start()
    assert run("plan", smollm2_gguf, "--workers", worker.address).returncode == 0
    worker.signal(signal.SIGINT)
    out, _ = worker.child.communicate(timeout=10)
    assert out == ""


def test_other_networks_need_trust_network(run: Run) -> None:
    result = run("worker", "--listen", "0.0.0.0:0")
    assert result.returncode == 2
    assert "no authentication" in result.stderr
    assert "--trust-network" in result.stderr


def test_a_trusted_network_gets_a_warning(start: Start) -> None:
    worker = start("--trust-network", address="0.0.0.0:0")
    worker.signal(signal.SIGINT)
    _, err = worker.child.communicate(timeout=10)
    assert "there is no authentication and no encryption" in err


def test_a_port_that_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        child = program("worker", "--listen", f"127.0.0.1:{port}")
        _, err = child.communicate(timeout=60)
    assert child.returncode == 2
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--memory", "8"), "'8' is not a size such as 500M or 8G"),
        (("--memory", "0G"), "not a size"),
        (("--cache", "all"), "'all' is not a size"),
        (("--listen", "50052"), "'50052' is not HOST:PORT"),
    ],
)
def test_wrong_usage(run: Run, arguments: tuple[str, ...], message: str) -> None:
    result = run("worker", *arguments)
    assert result.returncode == 2
    assert message in result.stderr


def test_an_unknown_device_is_refused() -> None:
    child = program("worker", "--listen", "127.0.0.1:0", "--device", "CUDA7")
    _, err = child.communicate(timeout=60)
    assert child.returncode == 2
    assert "there is no device 'CUDA7'" in err
    assert "CPU" in err


# ---- the commands that name them ---------------------------------------------------------------------


def test_chat_answers_the_same_as_on_one_machine(start: Start, smollm2_gguf: Path) -> None:
    asked = (
        "chat", smollm2_gguf, "-p", "Name three colours.", "--ctx", "1024", "--temperature", "0",
        "--max-tokens", "24", "--no-prompt-cache", "--flash-attention", "on", "--prefill", "llama.cpp",
    )  # fmt: skip
    alone = finished(*asked)
    named = ",".join(start().address for _ in range(2))
    result = finished(*asked, "--workers", named)
    assert (result.returncode, result.stdout) == (0, alone.stdout)
    assert alone.stdout.strip()


def test_plan_shows_the_memory_of_each_worker(start: Start, run: Run, smollm2_gguf: Path) -> None:
    two = [start("--memory", "1G") for _ in range(2)]
    arguments = ("plan", smollm2_gguf, "--ctx", "4096", "--workers", ",".join(one.address for one in two))
    result = run(*arguments, "--split", "2,1")
    assert result.returncode == 0
    assert re.search(r"layers on workers +31 of 31", result.stdout)
    assert re.search(rf"memory +computer +{two[0].address} +{two[1].address}", result.stdout)
    data = json.loads(run(*arguments, "--split", "2,1", "--json").stdout)
    host, first, second = data["devices"]
    assert first["cache_k"] / second["cache_k"] == 21 / 9  # of 30 layers; the output is the 31st
    assert re.search(r"layers +none +0-20 +21-29, output", result.stdout)
    assert (host["layers"], first["layers"], second["layers"]) == ([], [*range(21)], [*range(21, 31)])


def test_plan_shows_local_memory_and_a_worker_without_layers(
    start: Start, run: Run, smollm2_gguf: Path
) -> None:
    two = [start("--memory", "1G") for _ in range(2)]
    result = run(
        "plan", smollm2_gguf, "--ctx", "1024", "--workers", ",".join(one.address for one in two),
        "--gpu-layers", "12", "--split", "1,0",
    )  # fmt: skip
    assert re.search(rf"memory +computer +{two[0].address} +{two[1].address}", result.stdout)
    assert re.search(r"layers +0-18 +19-29, output +none", result.stdout)


def test_layers_that_do_not_fit_on_workers_are_reported_with_what_fits(
    start: Start, smollm2_gguf: Path
) -> None:
    worker = start("--memory", "250M")
    asked = ("chat", smollm2_gguf, "-p", "hello", "--workers", worker.address, "--ctx", "8192")
    result = finished(*asked, "--gpu-layers", "all")
    assert result.returncode == 9
    assert f"of {worker.address}'s memory" in result.stderr
    assert re.search(r"hint: these fit: .*; \d+ layers on the workers", result.stderr)


def test_layers_that_do_not_fit_on_workers_stay_local_with_a_warning(start: Start, tmp_path: Path) -> None:
    tiny = write_chat_model(tmp_path / "tiny.gguf", 1024)
    asked = (
        "chat",
        tiny,
        "-p",
        "hello",
        "--ctx",
        "512",
        "--max-tokens",
        "4",
        "--no-prompt-cache",
        "--workers",
    )
    small = start("--memory", "0.1M").address
    result = finished(*asked, small)
    assert result.returncode == 0
    assert "warning: 0 of 3 layers fit on the workers" in result.stderr
    result = finished(*asked, small, "--gpu-layers", "all")
    assert result.returncode == 9
    assert "hint: these fit: 0 layers on the workers" in result.stderr
    result = finished(*asked, start("--memory", "1G").address)
    assert result.returncode == 0
    assert "warning" not in result.stderr


def test_torch_prefill_with_workers_is_refused(smollm2_gguf: Path) -> None:
    result = finished("chat", smollm2_gguf, "-p", "hello", "--workers", "127.0.0.1:1", "--prefill", "torch")
    assert result.returncode == 2
    assert "--prefill torch computes prompts on this machine only" in result.stderr
    assert "hint: use --prefill auto" in result.stderr


def test_bench_compares_workers_with_one_machine(start: Start, run: Run, tmp_path: Path) -> None:
    tiny = write_chat_model(tmp_path / "tiny.gguf", 1024)
    one, two = start().address, start().address
    vs = f"workers={one},{two},split=2,1,flash-attention=on"
    result = run("bench", tiny, "--depths", "0", "--vs", vs, "--json")
    assert result.returncode == 0, result.stderr
    settings = json.loads(result.stdout)["settings"]
    assert settings["without --vs"]["workers"] == []
    assert settings[vs]["workers"] == [one, two]
    assert (settings[vs]["gpu_layers"], settings[vs]["flash_attention"]) == (3, True)
    result = run("bench", tiny, "--depths", "0", "--workers", one, "--vs", "workers=")
    assert result.returncode == 0, result.stderr
    assert "workers= against without --vs" in result.stdout


def test_a_worker_that_dies_in_an_answer_is_an_error(start: Start, smollm2_gguf: Path) -> None:
    worker = start()
    child = program(
        "chat", smollm2_gguf, "-p", "Tell me a long story.", "--ctx", "2048", "--workers", worker.address,
        "--no-prompt-cache", "--max-tokens", "1500",
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stdout.read(1)
    worker.signal(signal.SIGKILL)
    begun = time.monotonic()
    _, err = child.communicate(timeout=30)
    assert time.monotonic() - begun < 10
    assert child.returncode == 8
    assert f"error: the worker {worker.address} disconnected" in err
    assert "hint: " in err


def test_an_unreachable_worker_is_an_error(smollm2_gguf: Path) -> None:
    result = finished("chat", smollm2_gguf, "-p", "hello", "--workers", "127.0.0.1:1")
    assert result.returncode == 8
    assert "the worker 127.0.0.1:1 cannot be reached" in result.stderr


def test_invalid_shares_are_refused(run: Run, smollm2_gguf: Path) -> None:
    result = run("plan", smollm2_gguf, "--workers", "127.0.0.1:1", "--split", "a,b")
    assert result.returncode == 2
    assert "not a list of shares" in result.stderr


def test_an_evaluation_has_the_same_result_as_on_one_machine(
    start: Start, run: Run, smollm2_gguf: Path, novel: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(novel[:4000])
    asked = ("eval", "perplexity", smollm2_gguf, "--text", text, "--windows", "256", "--max-windows", "2")
    values = []
    for more in ((), ("--workers", start().address)):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / f"cache{len(more)}"))  # nothing is known before
        result = run(*asked, "--json", *more)
        assert result.returncode == 0, result.stderr
        values.append(json.loads(result.stdout))
    assert values[0] == values[1]
