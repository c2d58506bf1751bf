"""Tuning profiles on disk: loaded for the same machine and shape, and no other; damaged ones are ignored."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.tiny_gguf import linear, write_tiny

from pigguf.errors import OutputError
from pigguf.gguf_io import GGUFFile, TensorType, read_header
from pigguf.gguf_io.metadata import string
from pigguf.inference.engine import FlashAttentionSwitch, Model
from pigguf.inference.tuning import (
    Measurement,
    SpeedAtDepth,
    TuningProfile,
    default_profiles,
    load_tuning_profile,
    profile_store,
)
from pigguf.inference.tuning.machine_key import machine_key, shape_key
from pigguf.inference.tuning.profile_store import save_tuning_profile

PROFILE = TuningProfile(
    threads=3,
    prefill_threads=4,
    batch=256,
    flash_attention_switch=FlashAttentionSwitch(1024, 4096, 384),
    torch_min_prompt=2048,
    speeds=(SpeedAtDepth(0, 900.5, 45.25), SpeedAtDepth(4096, None, 20.0)),
    source="measured",
)
MEASURED = (Measurement("threads", "3 threads", PROFILE.speeds[0], 3),)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> GGUFFile:
    return read_header(write_tiny(tmp_path / "tiny.gguf"))


def test_a_saved_profile_is_loaded_for_a_header_and_a_model(file: GGUFFile, cache: Path) -> None:
    path = save_tuning_profile(file, "auto", PROFILE, MEASURED)
    assert path.parent == cache / "pigguf" / "tuning"
    assert load_tuning_profile(file) == PROFILE
    with Model.open(file.path, vocab_only=True) as model:
        assert load_tuning_profile(model) == PROFILE
    assert json.loads(path.read_text())["measurements"][0]["setting"] == "3 threads"


def test_a_later_profile_replaces_an_earlier_one(file: GGUFFile) -> None:
    path = save_tuning_profile(file, "auto", PROFILE, MEASURED)
    assert (
        save_tuning_profile(
            file, "auto", replace(PROFILE, flash_attention_switch=None, flash_attention=False), ()
        )
        == path
    )
    assert load_tuning_profile(file) == replace(PROFILE, flash_attention_switch=None, flash_attention=False)


def test_only_what_decides_speed_is_in_the_key(file: GGUFFile, tmp_path: Path) -> None:
    save_tuning_profile(file, "auto", PROFILE, MEASURED)
    (tmp_path / "elsewhere").mkdir()
    like = write_tiny(tmp_path / "elsewhere" / "other.gguf", {"general.name": string("another")})
    assert load_tuning_profile(read_header(like)) == PROFILE
    for name, keys, types in (
        ("window", linear(2.0, 2048), None),
        ("types", None, {"output.weight": TensorType.F16}),
    ):
        other = read_header(write_tiny(tmp_path / f"{name}.gguf", keys, types))
        assert load_tuning_profile(other).source == "rule", name


@pytest.mark.parametrize("part", ["cpu", "cores", "engine", "engine_features", "gpus"])
def test_another_machine_has_another_profile(
    file: GGUFFile, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tuning_profile(file, "auto", PROFILE, MEASURED)
    other = {**machine_key(), part: ["another"]}
    monkeypatch.setattr(profile_store, "machine_key", lambda gpu_layers: other)
    assert load_tuning_profile(file).source == "rule"


def _edited(**changes: Any) -> Callable[[bytes], bytes]:
    """Return a function that changes parts of the profile in a file."""

    def edit(data: bytes) -> bytes:
        content = json.loads(data)
        content["tuning"] |= changes
        return json.dumps(content).encode()

    return edit


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "no text": lambda data: b"\xff\xfe" + data,
    "deep": lambda data: b"[" * 100_000,
    "a list": lambda data: b"[]",
    "a number": lambda data: b"1",
    "another format": lambda data: data.replace(b'"format": 1', b'"format": 2'),
    "of another machine": lambda data: data.replace(b'"cores": ', b'"cores": 1'),
    "without a tuning": lambda data: data.replace(b'"tuning"', b'"tunings"'),
    "unknown setting": _edited(colour="red"),
    "no threads": _edited(threads=0),
    "threads in words": _edited(threads="three"),
    "too many threads": _edited(threads=100_000),
    "batch is true": _edited(batch=True),
    "half a switch": _edited(handoff={"prefill": 1}),
    "switch below 0": _edited(handoff={"decode": -1, "prefill": None, "prompt": 512}),
    "both settings": _edited(flash_attention=True),
    "a word for flash": _edited(flash_attention="on"),
    "no speed": _edited(speeds=[{"depth": 0, "prefill": -1.0, "decode": None}]),
    "speeds in words": _edited(speeds="fast"),
    "unknown source": _edited(source="hearsay"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_ignored_with_a_warning(
    file: GGUFFile, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_tuning_profile(file, "auto", PROFILE, MEASURED)
    before = path.read_bytes()
    path.write_bytes(DAMAGES[damage](before))
    assert path.read_bytes() != before
    with caplog.at_level(logging.WARNING, "pigguf"):
        assert load_tuning_profile(file) == default_profiles.default_profile(machine_key())
    (record,) = caplog.records
    assert str(path) in record.getMessage()
    save_tuning_profile(file, "auto", PROFILE, MEASURED)
    assert load_tuning_profile(file) == PROFILE


def test_a_directory_in_its_place_is_ignored_too(file: GGUFFile, caplog: pytest.LogCaptureFixture) -> None:
    path = save_tuning_profile(file, "auto", PROFILE, MEASURED)
    path.unlink()
    path.mkdir()
    assert load_tuning_profile(file).source == "rule"
    assert "is ignored" in caplog.text


def test_a_directory_that_cannot_be_written_is_an_error_that_names_it(file: GGUFFile, cache: Path) -> None:
    cache.write_text("in the way")
    with pytest.raises(OutputError, match="cache") as raised:
        save_tuning_profile(file, "auto", PROFILE, MEASURED)
    assert "XDG_CACHE_HOME" in str(raised.value.hint)
    assert load_tuning_profile(file).source == "rule"


# ---- default profiles --------------------------------------------------------------------------------


def test_a_gpu_is_left_to_llama_cpp_and_a_cpu_switches_by_depth(file: GGUFFile) -> None:
    machine = machine_key()
    gpu = default_profiles.default_profile({**machine, "gpus": [["NVIDIA H100", "CUDA", 80 << 30]]})
    assert (gpu.flash_attention, gpu.flash_attention_switch, gpu.torch_min_prompt) == (None, None, None)
    cpu = default_profiles.default_profile({**machine, "gpus": []})
    assert cpu.flash_attention_switch is not None
    assert cpu.flash_attention_switch.decode == 4096
    assert cpu.torch_min_prompt == (
        default_profiles.TORCH_MIN_PROMPT if default_profiles.has_fast_torch() else None
    )
    assert cpu.source == gpu.source == "rule"


def test_keys_are_json_as_they_are(file: GGUFFile) -> None:
    for key in (machine_key(), machine_key(0), shape_key(file)):
        assert json.loads(json.dumps(key)) == key
