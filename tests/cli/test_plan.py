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
    """Return a function that sets the free memory, in MiB."""
    return lambda mib: monkeypatch.setattr(free_memory, "available_memory", lambda: mib << 20)


def test_tables_show_memory_use_and_what_fits(run: Run, smollm2_gguf: Path) -> None:
    result = run("plan", smollm2_gguf, "--ctx", "4096")
    assert (result.returncode, result.stderr) == (0, "")
    for line in (
        r"context  +4,096 of 8,192 tokens",
        r"fits  +yes",
        r"memory +computer",
        r"KV cache, K +45\.0 MiB",
        r"KV cache, V +45\.0 MiB",
        r"available +[\d.,]+ GiB",
        r"q8_0 +8,192 +[\d.]+ MiB",
    ):
        assert re.search(line, result.stdout), line


def test_json_is_what_the_engine_takes(run: Run, smollm2_gguf: Path) -> None:
    result = run("plan", smollm2_gguf, "--cache-type-k", "q8_0", "--cache-type-v", "q4_0", "--json")
    assert result.returncode == 0
    data = json.loads(result.stdout)
    assert (data["context_length"], data["cache_k"], data["cache_v"]) == (8192, "q8_0", "q4_0")
    assert data["fits"] is True
    assert [(w["cache_k"], w["cache_v"]) for w in data["windows"]][-1] == ("q8_0", "q4_0")
    [host] = data["devices"]
    assert data["total_bytes"] == host["total"] == sum(host[part] for part in PARTS)
    with (
        Model.open(smollm2_gguf, gpu_layers=0) as model,
        Context(model, ContextOptions(length=8192, cache_k="q8_0", cache_v="q4_0")) as context,
    ):
        assert host["cache_k"] + host["cache_v"] == context.cache_bytes


PARTS = ("mapped", "weights", "cache_k", "cache_v", "compute", "output")


def test_a_model_that_does_not_fit_is_shown_with_what_does(
    run: Run, smollm2_gguf: Path, free: Callable[[int], None]
) -> None:
    free(400)
    result = run("plan", smollm2_gguf, "--ctx", "8192")
    assert result.returncode == 9
    assert "fits             no" in result.stdout
    assert "error: " in result.stderr
    assert "272.0 MiB are available" in result.stderr
    hint = next(line for line in result.stderr.splitlines() if line.startswith("hint: "))
    data = json.loads(run("plan", smollm2_gguf, "--ctx", "8192", "--json").stdout)
    assert not data["fits"]
    assert len(data["nearest"]) == 2
    for settings in data["nearest"]:
        length, kind = settings["context_length"], settings["cache_k"]
        assert (f"{length:,} tokens" if length < 8192 else f"KV cache of {kind}") in hint
        arguments = ("--ctx", str(length), "--cache-type-k", kind, "--cache-type-v", settings["cache_v"])
        assert run("plan", smollm2_gguf, *arguments).returncode == 0


def test_a_longer_window_takes_an_override(run: Run, smollm2_gguf: Path) -> None:
    assert run("plan", smollm2_gguf, "--ctx", "16384").returncode == 10
    result = run("plan", smollm2_gguf, "--ctx", "16384", "--rope-factor", "2", "--json")
    assert json.loads(result.stdout)["model_window"] == 16384


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--gpu-layers", "few"), 2, "'few' is not a number of layers"),
        (("--cache-type-k", "q9_9"), 2, "'q9_9' is not one of"),
        (("--ctx", "0"), 2, "0 is not in the range"),
    ],
)
def test_wrong_usage(
    run: Run, smollm2_gguf: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = run("plan", smollm2_gguf, *arguments)
    assert result.returncode == code
    assert message in result.stderr


def test_a_file_that_is_not_a_gguf_is_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("This is not a model, only some text." * 10)
    result = run("plan", tmp_path / "text.gguf")
    assert result.returncode == 7
    assert "text.gguf" in result.stderr
    assert "Traceback" not in result.stderr
