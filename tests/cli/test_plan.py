"""`pigguf plan` as a person and as a program read it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from support.command_line import CommandResult

from pigguf.inference.engine import Context, ContextOptions, Model
from pigguf.inference.memory_planning import free_memory

Run = Callable[..., CommandResult]


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many MiB of memory are free."""
    return lambda mib: monkeypatch.setattr(free_memory, "available_memory", lambda: mib << 20)


def test_a_table_says_what_is_taken_and_what_fits(run: Run, smollm2_gguf: Path) -> None:
    done = run("plan", smollm2_gguf, "--ctx", "4096")
    assert (done.returncode, done.stderr) == (0, "")
    for line in (
        r"window  +4,096 of 8,192 tokens",
        r"fits  +yes",
        r"memory +computer",
        r"KV cache, K +45\.0 MiB",
        r"KV cache, V +45\.0 MiB",
        r"available +[\d.,]+ GiB",
        r"q8_0 +8,192 +[\d.]+ MiB",
    ):
        assert re.search(line, done.stdout), line


def test_json_is_what_the_engine_takes(run: Run, smollm2_gguf: Path) -> None:
    done = run("plan", smollm2_gguf, "--cache-type-k", "q8_0", "--cache-type-v", "q4_0", "--json")
    assert done.returncode == 0
    told = json.loads(done.stdout)
    assert (told["context_length"], told["cache_k"], told["cache_v"]) == (8192, "q8_0", "q4_0")
    assert told["fits"] is True
    assert [(w["cache_k"], w["cache_v"]) for w in told["windows"]][-1] == ("q8_0", "q4_0")
    [host] = told["devices"]
    assert told["total_bytes"] == host["total"] == sum(host[part] for part in PARTS)
    with (
        Model.open(smollm2_gguf, gpu_layers=0) as model,
        Context(model, ContextOptions(length=8192, cache_k="q8_0", cache_v="q4_0")) as context,
    ):
        assert host["cache_k"] + host["cache_v"] == context.cache_bytes


PARTS = ("mapped", "weights", "cache_k", "cache_v", "compute", "output")


def test_what_does_not_fit_is_shown_and_refused_with_what_does(
    run: Run, smollm2_gguf: Path, free: Callable[[int], None]
) -> None:
    free(400)
    done = run("plan", smollm2_gguf, "--ctx", "8192")
    assert done.returncode == 9
    assert "fits             no" in done.stdout
    assert "error: " in done.stderr
    assert "272.0 MiB are available" in done.stderr
    hint = next(line for line in done.stderr.splitlines() if line.startswith("hint: "))
    told = json.loads(run("plan", smollm2_gguf, "--ctx", "8192", "--json").stdout)
    assert not told["fits"]
    assert len(told["nearest"]) == 2
    for settings in told["nearest"]:
        length, kind = settings["context_length"], settings["cache_k"]
        assert (f"{length:,} tokens" if length < 8192 else f"KV cache of {kind}") in hint
        arguments = ("--ctx", str(length), "--cache-type-k", kind, "--cache-type-v", settings["cache_v"])
        assert run("plan", smollm2_gguf, *arguments).returncode == 0


def test_a_longer_window_takes_an_override(run: Run, smollm2_gguf: Path) -> None:
    assert run("plan", smollm2_gguf, "--ctx", "16384").returncode == 10
    done = run("plan", smollm2_gguf, "--ctx", "16384", "--rope-factor", "2", "--json")
    assert json.loads(done.stdout)["model_window"] == 16384


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--gpu-layers", "few"), 2, "'few' is not a number of layers"),
        (("--cache-type-k", "q9_9"), 2, "'q9_9' is not one of"),
        (("--ctx", "0"), 2, "0 is not in the range"),
    ],
)
def test_wrong_usage(run: Run, smollm2_gguf: Path, arguments: tuple[str, ...], code: int, said: str) -> None:
    done = run("plan", smollm2_gguf, *arguments)
    assert done.returncode == code
    assert said in done.stderr


def test_a_file_that_is_none_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is no model, only a text of some length." * 10)
    done = run("plan", tmp_path / "text.gguf")
    assert done.returncode == 7
    assert "text.gguf" in done.stderr
    assert "Traceback" not in done.stderr
