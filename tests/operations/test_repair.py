"""Lint and repair: every fault is found with its evidence, and the suggested fix restores the logits."""

from __future__ import annotations

import json
import os
import random
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from support.compare import engine_logits
from support.tiny_checkpoints import VOCAB_SIZE, make_checkpoint

import pigguf
from pigguf.cli import exit_codes
from pigguf.cli.repair import command
from pigguf.errors import GGUFError, PigError, RopeConflict, UsageError
from pigguf.gguf_io import (
    PlannedTensor,
    TensorType,
    read_header,
    read_shard,
    serialize_header,
    write_gguf,
)
from pigguf.gguf_io.metadata import TypedValue, array, f32, string, u32
from pigguf.operations.lint import SuggestedFix, certain_fixes, lint
from pigguf.operations.repair import apply_fixes
from pigguf.rope import RopeOverrides

ORIGINAL, FACTOR, EXTENDED, BASE = 2048, 4.0, 8192, 1e6
PREFIX = "llama"
CONTEXT, SCALING = f"{PREFIX}.context_length", f"{PREFIX}.rope.scaling"
TOKENS = random.Random(0).choices(range(VOCAB_SIZE), k=96)

Changes = Mapping[str, TypedValue | None]


@pytest.fixture(scope="module")
def right(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert a tiny Llama: trained at 2048 tokens, interpolated to 8192, rope theta 1e6."""
    path = tmp_path_factory.mktemp("right")
    linear = {"rope_type": "linear", "factor": FACTOR, "rope_theta": BASE}
    checkpoint = make_checkpoint(path / "piglet", rope_parameters=linear, max_position_embeddings=ORIGINAL)
    pigguf.convert(checkpoint, path / "right.gguf", type="F32")
    return path / "right.gguf"


@pytest.fixture(scope="module")
def yarn(right: Path) -> Path:
    return changed(right, right.with_name("yarn.gguf"), {f"{SCALING}.type": string("yarn")})


def changed(source: Path, target: Path, changes: Changes) -> Path:
    """Write the file with other keys, without the code that is tested."""
    file = read_shard(source)
    metadata = {**file.metadata, **{key: typed for key, typed in changes.items() if typed is not None}}
    metadata = {key: typed for key, typed in metadata.items() if changes.get(key, typed) is not None}
    header = serialize_header(metadata, tuple(file.tensors.values()))
    target.write_bytes(header + source.read_bytes()[file.data_offset :])
    return target


@pytest.fixture(scope="module")
def right_logits(right: Path) -> np.ndarray:
    return logits(right)


def logits(path: Path) -> np.ndarray:
    return np.stack(list(engine_logits(path, TOKENS)))


def problems(path: Path) -> list[str]:
    return [finding.problem for finding in lint(read_header(path))]


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


def suggested_command(output: str, condition: str = "") -> list[str]:
    """Return the last command with a condition that `pigguf repair FILE` prints."""
    commands = re.findall(r"^fix +(pigguf repair .*?)(?:   \((.*)\))?$", output, re.MULTILINE)
    return shlex.split([line for line, stated in commands if condition in stated][-1])


# ---- faults and their fixes -----------------------------------------------------------------------

UNSCALED: Changes = {f"{SCALING}.type": None, f"{SCALING}.factor": None}

BROKEN: dict[str, tuple[list[str], Changes]] = {
    "window not multiplied": (["window-not-multiplied"], {CONTEXT: u32(ORIGINAL)}),
    "window not multiplied, original missing": (
        ["window-not-multiplied"],
        {CONTEXT: u32(ORIGINAL), f"{SCALING}.original_context_length": None},
    ),
    "factor missing": (["factor-missing"], UNSCALED),
    "factor missing, type left": (["factor-missing"], {f"{SCALING}.factor": None}),
    "factor missing, only the name states it": (
        ["factor-missing"],
        {
            **UNSCALED,
            f"{SCALING}.original_context_length": None,
            CONTEXT: u32(ORIGINAL),
            "general.name": string("Piglet 1B 8k"),
        },
    ),
    "factor inverted": (["factor-inverted"], {f"{SCALING}.factor": f32(1 / FACTOR)}),
    "type missing": (["no-type"], {f"{SCALING}.type": None}),
    "type none": (["type-none"], {f"{SCALING}.type": string("none")}),
    "type in another case": (["unknown-type"], {f"{SCALING}.type": string("Linear")}),
    "type unknown": (["unknown-type"], {f"{SCALING}.type": string("wobbly")}),
    "two factors": (["contradiction"], {f"{PREFIX}.rope.scale_linear": f32(2.0)}),
    "base missing": (
        ["base-missing"],
        {f"{PREFIX}.rope.freq_base": None, "general.name": string("CodeLlama-7b-piglet")},
    ),
    "base lost": (
        ["base-missing"],
        {f"{PREFIX}.rope.freq_base": f32(1e4), "general.name": string("Phind-CodeLlama-34B")},
    ),
    "factor in double precision": (["wrong-type"], {f"{SCALING}.factor": TypedValue("f64", 4.0)}),
    "factor as text": (["wrong-type"], {f"{SCALING}.factor": string("4.0")}),
    "window signed": (["wrong-type"], {CONTEXT: TypedValue("i32", EXTENDED)}),
    "base whole": (["wrong-type"], {f"{PREFIX}.rope.freq_base": u32(1_000_000)}),
    "window missing": (["no-window"], {CONTEXT: None}),
    "half a head rotated": (["dimension-count"], {f"{PREFIX}.rope.dimension_count": u32(8)}),
    "more than a head rotated": (["dimension-count"], {f"{PREFIX}.rope.dimension_count": u32(32)}),
    "three at once": (
        ["wrong-type", "factor-inverted", "window-not-multiplied"],
        {CONTEXT: TypedValue("i32", ORIGINAL), f"{SCALING}.factor": f32(1 / FACTOR)},
    ),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_the_suggested_fix_restores_the_logits(
    fault: str, right: Path, right_logits: np.ndarray, tmp_path: Path
) -> None:
    found, changes = BROKEN[fault]
    path = changed(right, tmp_path / "a model.gguf", changes)
    result = invoke(path)
    assert result.exit_code == exit_codes.FOUND.code
    assert problems(path) == found
    for problem in found:
        assert f"\n{problem}\n" in result.stdout
    program, verb, *arguments = suggested_command(result.stdout)
    assert (program, verb) == ("pigguf", "repair")
    before = path.read_bytes()
    assert invoke(*arguments, "--dry-run").exit_code == 0
    assert path.read_bytes() == before
    fixed = invoke(*arguments)
    assert fixed.exit_code == 0, fixed.output
    assert problems(path) == []
    assert invoke(path).exit_code == 0
    assert os.listdir(tmp_path) == ["a model.gguf"]
    np.testing.assert_array_equal(logits(path), right_logits)
    names = ("general.name", "general.base_model.0.name")
    expected, got = read_header(right).metadata, read_header(path).metadata
    assert {k: v for k, v in got.items() if k not in names} == {
        k: v for k, v in expected.items() if k not in names
    }


def test_a_fault_that_can_be_run_gives_other_logits(
    right: Path, right_logits: np.ndarray, tmp_path: Path
) -> None:
    """Show that the comparison above would notice an unfixed file."""
    for fault in ("factor missing", "factor inverted", "type none", "base lost"):
        broken = changed(right, tmp_path / "broken.gguf", BROKEN[fault][1])
        assert np.abs(logits(broken) - right_logits).max() > 1e-3


@pytest.mark.parametrize(
    ("fault", "changes", "condition"),
    [
        ("window-not-multiplied", {CONTEXT: u32(ORIGINAL)}, ""),
        ("original-window-missing", {f"{SCALING}.original_context_length": None}, "extended to 8192"),
        ("factor-missing", {f"{SCALING}.factor": None}, ""),
        ("factor-inverted", {f"{SCALING}.factor": f32(0.25)}, ""),
    ],
)
def test_yarn_is_fixed_too(fault: str, changes: Changes, condition: str, yarn: Path, tmp_path: Path) -> None:
    path = changed(yarn, tmp_path / "yarn.gguf", changes)
    result = invoke(path)
    assert problems(path) == [fault]
    assert invoke(*suggested_command(result.stdout, condition)[2:]).exit_code == 0
    assert read_header(path).metadata == read_header(yarn).metadata
    np.testing.assert_array_equal(logits(path), logits(yarn))


@pytest.mark.parametrize(
    ("name", "key", "window", "options"),
    [
        ("llama-13b-superhot-8k", "general.name", 8192, "--rope-factor 4"),
        ("llama-13b-SuperHOT-8K", "general.base_model.0.name", 2048, "--rope-factor 4"),
        ("vicuna-13b-v1.5-16k", "general.name", 16384, "--rope-factor 4"),
        ("longchat-7b-16k", "general.basename", 16384, "--rope-factor 8"),
        ("Llama-2-7b-longlora-32k", "general.name", 4096, "--rope-factor 8"),
    ],
)
def test_a_known_name_gives_the_factor_that_was_lost(
    name: str, key: str, window: int, options: str, right: Path, tmp_path: Path
) -> None:
    lost: Changes = {
        **UNSCALED,
        f"{SCALING}.original_context_length": None,
        f"{PREFIX}.rope.freq_base": f32(1e4),
        CONTEXT: u32(window),
        key: string(name),
    }
    path = changed(right, tmp_path / "model.gguf", lost)
    result = invoke(path)
    assert problems(path) == ["factor-missing"]
    words = suggested_command(result.stdout)
    assert shlex.join(words[3:]).startswith(options)
    assert name in result.stdout
    assert invoke(*words[2:]).exit_code == 0
    assert problems(path) == []


def test_a_choice_is_left_to_the_user_and_each_command_fixes_it(right: Path, tmp_path: Path) -> None:
    """A window of 20000 and a factor of 4: nothing says whether the window is the extended one."""
    changes: Changes = {
        f"{SCALING}.original_context_length": None,
        f"{SCALING}.factor": f32(4.0),
        CONTEXT: u32(20000),
    }
    path = changed(right, tmp_path / "model.gguf", changes)
    result = invoke(path)
    assert problems(path) == ["windows-contradict"]
    for condition, context in (("trained at 20000", 80000), ("extended to 20000", 20000)):
        copy = tmp_path / "copy.gguf"
        assert invoke(*suggested_command(result.stdout, condition)[2:], "-o", copy).exit_code == 0
        assert problems(copy) == []
        assert read_header(copy).metadata[CONTEXT] == u32(context)
    assert problems(path) == ["windows-contradict"]


SOUND: dict[str, Changes] = {
    "unscaled": {**UNSCALED, f"{SCALING}.original_context_length": None},
    "unscaled, with a type": {
        f"{SCALING}.type": string("none"),
        f"{SCALING}.factor": None,
        f"{SCALING}.original_context_length": None,
    },
    "a factor of 1": {f"{SCALING}.factor": f32(1.0), CONTEXT: u32(ORIGINAL)},
    "an older file: the legacy key, and LLaMA's context length times the factor": {
        **UNSCALED,
        f"{SCALING}.original_context_length": None,
        f"{PREFIX}.rope.scale_linear": f32(4.0),
    },
    "a data set's size in the name": {
        **UNSCALED,
        f"{SCALING}.original_context_length": None,
        "general.name": string("guanaco-52k"),
    },
    "a name with the context length": {"general.name": string("piglet-8k")},
    "CodeLlama-70B was trained with 10000": {
        f"{PREFIX}.rope.freq_base": None,
        "general.name": string("CodeLlama-70b-Instruct"),
    },
}


@pytest.mark.parametrize("case", SOUND)
def test_a_sound_file_has_no_findings(case: str, right: Path, tmp_path: Path) -> None:
    path = changed(right, tmp_path / "model.gguf", SOUND[case])
    result = invoke(path)
    assert result.exit_code == 0, result.stdout
    assert "no faults found" in result.stdout


def test_the_demo_model_and_a_file_without_positions_have_no_findings(
    smollm2_gguf: Path, tmp_path: Path
) -> None:
    assert problems(smollm2_gguf) == []
    path = tmp_path / "adapter.gguf"
    path.write_bytes(serialize_header({"general.architecture": string("llama")}, ()))
    assert problems(path) == []


def test_frequencies_divided_by_a_tensor_need_no_factor(right: Path, tmp_path: Path) -> None:
    """Llama 3.1 and Phi-3: two windows, no factor, and the numbers in rope_freqs or rope_factors_*."""
    for name, found in (("rope_freqs.weight", []), ("other.weight", ["factor-missing"])):
        file = read_shard(changed(right, tmp_path / "plain.gguf", UNSCALED))
        tensor = PlannedTensor(name, (8,), TensorType.F32, ((0, 8),), lambda start, stop: np.ones(8, "f4"))
        path = tmp_path / "model.gguf"
        write_gguf(path, file.metadata, [tensor])
        assert problems(path) == found


@pytest.mark.parametrize("fault", ["window not multiplied", "factor as text", "three at once"])
def test_certain_fixes_applied_directly_give_the_file_of_the_command(
    fault: str, right: Path, tmp_path: Path
) -> None:
    by_command = changed(right, tmp_path / "command.gguf", BROKEN[fault][1])
    directly = changed(right, tmp_path / "direct.gguf", BROKEN[fault][1])
    assert invoke(*suggested_command(invoke(by_command).stdout)[2:]).exit_code == 0
    result = apply_fixes(directly, certain_fixes(lint(read_header(directly))))
    assert (result.path, result.findings) == (directly, ())
    assert directly.read_bytes() == by_command.read_bytes()


def test_fixes_are_the_numbers_and_keys_that_repair_takes(right: Path, tmp_path: Path) -> None:
    path = changed(right, tmp_path / "model.gguf", BROKEN["three at once"][1])
    wrong_type, inverted, not_multiplied = lint(read_header(path))
    assert wrong_type.fixes == (SuggestedFix(set={CONTEXT: u32(ORIGINAL)}),)
    assert inverted.fixes == not_multiplied.fixes == (SuggestedFix(RopeOverrides(factor=FACTOR)),)
    # the factor writes the context length itself
    assert certain_fixes([wrong_type, inverted, not_multiplied]) == inverted.fixes
    assert certain_fixes([wrong_type]) == wrong_type.fixes


def test_findings_are_json_with_commands_as_words(right: Path, tmp_path: Path) -> None:
    path = changed(right, tmp_path / "model.gguf", BROKEN["window not multiplied"][1])
    result = json.loads(invoke(path, "--json").stdout)
    (finding,) = result["findings"]
    assert finding["problem"] == "window-not-multiplied"
    assert {"source": "GGUF", "key": CONTEXT, "value": ORIGINAL} in finding["evidence"]
    assert finding["advice"] == [{"command": result["command"], "condition": None}]
    assert result["command"] == ["pigguf", "repair", str(path), "--rope-factor", "4"]
    done = json.loads(invoke(*result["command"][2:], "--json").stdout)
    assert done["changes"] == [
        {
            "key": CONTEXT,
            "old": {"type": "u32", "value": ORIGINAL},
            "new": {"type": "u32", "value": EXTENDED},
        }
    ]
    assert (done["path"], done["findings"]) == (str(path), [])


# ---- keys ----------------------------------------------------------------------------------------


def test_keys_of_every_type_are_set_and_removed_and_the_tensors_stay(right: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    result = pigguf.repair(
        right,
        copy,
        set={
            "general.name": "str:u32:5",
            "general.description": "Ein Ferkel \u2014 und mehr",
            "tokenizer.ggml.bos_token_id": "2",
            "my.count": "u64:18446744073709551615",
            "my.scale": "f32:0.1",
            "my.fact": "bool:true",
            "my.words": 'str[]:["a", "\u00fc"]',
            "my.numbers": "i8[]:[-128, 127]",
            "my.none": "f64[]:[]",
        },
        remove=["general.file_type"],
    )
    got, old = read_header(copy), read_header(right)
    assert got.metadata["general.name"] == string("u32:5")
    assert got.metadata["general.description"] == string("Ein Ferkel \u2014 und mehr")
    assert got.metadata["tokenizer.ggml.bos_token_id"] == u32(2)
    assert got.metadata["my.count"] == TypedValue("u64", 2**64 - 1)
    assert got.metadata["my.scale"] == f32(0.1)
    assert got.metadata["my.fact"] == TypedValue("bool", True)
    assert got.metadata["my.words"] == array("str", ("a", "\u00fc"))
    assert got.metadata["my.numbers"] == array("i8", (-128, 127))
    assert got.metadata["my.none"] == array("f64", ())
    assert "general.file_type" not in got.metadata
    assert {change.key for change in result.changes} >= {"general.name", "general.file_type", "my.none"}
    assert list(got.tensors) == list(old.tensors)
    assert copy.read_bytes()[got.data_offset :] == right.read_bytes()[old.data_offset :]
    np.testing.assert_array_equal(logits(copy), logits(right))


def test_a_list_already_there_keeps_its_type(right: Path, tmp_path: Path) -> None:
    path = changed(right, tmp_path / "model.gguf", {"my.list": array("i16", (1, 2))})
    pigguf.repair(path, set={"my.list": "[3, -4, 5]"})
    assert read_header(path).metadata["my.list"] == array("i16", (3, -4, 5))


@pytest.mark.parametrize("alignment", [32, 64, 4096])
@pytest.mark.parametrize("text", ["x", "x" * 5000])
def test_any_alignment_and_length_of_header_keeps_the_data(
    alignment: int, text: str, right: Path, tmp_path: Path
) -> None:
    file, path = read_shard(right), tmp_path / "model.gguf"
    metadata = {**file.metadata, "general.alignment": u32(alignment)}
    tensors = tuple(file.tensors.values())
    body = b"".join(
        (raw := right.read_bytes()[t.offset : t.offset + t.nbytes]) + bytes(-len(raw) % alignment)
        for t in tensors
    )
    path.write_bytes(serialize_header(metadata, tensors) + body)
    pigguf.repair(path, set={"general.name": text})
    written = read_shard(path)
    assert written.data_offset % alignment == 0
    assert path.read_bytes()[written.data_offset :] == body
    assert written.metadata["general.name"] == string(text)


def test_a_repair_in_place_keeps_links_and_permissions(right: Path, tmp_path: Path) -> None:
    path, link = tmp_path / "model.gguf", tmp_path / "link.gguf"
    path.write_bytes(right.read_bytes())
    path.chmod(0o640)
    link.symlink_to(path.name)
    pigguf.repair(link, set={"general.name": "other"})
    assert link.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o640
    assert read_header(path).metadata["general.name"] == string("other")


def test_nothing_to_change_writes_nothing(right: Path, tmp_path: Path) -> None:
    before = right.stat()
    result = pigguf.repair(right, rope=RopeOverrides(factor=FACTOR))
    assert (result.changes, result.path) == ((), None)
    assert (right.stat().st_ino, right.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    copy = tmp_path / "copy.gguf"
    assert pigguf.repair(right, copy).path == copy
    assert copy.read_bytes() == right.read_bytes()


def test_the_first_part_of_a_split_model_is_repaired_whichever_is_named(right: Path, tmp_path: Path) -> None:
    checkpoint = right.parent / "piglet"
    pigguf.convert(checkpoint, tmp_path / "model.gguf", type="F32", shard_size=100_000)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    later = [part.read_bytes() for part in parts[1:]]
    result = pigguf.repair(parts[1], rope_theta=5e5)
    assert result.path == parts[0]
    assert [part.read_bytes() for part in parts[1:]] == later
    assert read_header(parts[1]).metadata[f"{PREFIX}.rope.freq_base"] == f32(5e5)
    refused(UsageError, ["shards", parts[0].name], parts[0], output=tmp_path / "copy.gguf", rope_theta=1e4)


# ---- refusals --------------------------------------------------------------------------------------


def refused(error: type[PigError], words: list[str], path: Path, **options: Any) -> None:
    before = (path.read_bytes(), sorted(os.listdir(path.parent)))
    with pytest.raises(error) as raised:
        pigguf.repair(path, **options)
    for word in words:
        assert word in raised.value.message
    assert raised.value.hint
    assert "\n" not in raised.value.message
    assert (path.read_bytes(), sorted(os.listdir(path.parent))) == before


REFUSED: list[tuple[type[PigError], list[str], dict[str, Any]]] = [
    (UsageError, ["general.architecture"], {"set": {"general.architecture": "qwen2"}}),
    (UsageError, ["general.alignment"], {"remove": ["general.alignment"]}),
    (UsageError, ["general.alignment"], {"set": {"general.alignment": "u32:64"}}),
    (UsageError, ["tokenizer.ggml.tokens", str(VOCAB_SIZE)], {"set": {"tokenizer.ggml.tokens": '["a"]'}}),
    (UsageError, ["tokenizer.ggml.tokens"], {"remove": ["tokenizer.ggml.tokens"]}),
    (UsageError, ["no.such.key"], {"remove": ["no.such.key"]}),
    (UsageError, ["my.key", "unknown type"], {"set": {"my.key": "5"}}),
    (UsageError, ["my.key", "'256'", "u8"], {"set": {"my.key": "u8:256"}}),
    (UsageError, ["my.key", "f32"], {"set": {"my.key": "f32:1e39"}}),
    (UsageError, ["my.key", "f32"], {"set": {"my.key": "f32:NaN"}}),
    (UsageError, ["my.key", "true or false"], {"set": {"my.key": "bool:yes"}}),
    (UsageError, ["my.key", "array of i32"], {"set": {"my.key": "i32[]:[1, 2.5]"}}),
    (UsageError, ["my.key", "array of str"], {"set": {"my.key": 'str[]:{"a": 1}'}}),
    (UsageError, [CONTEXT, "u32"], {"set": {CONTEXT: "i32:8192"}}),
    (UsageError, [CONTEXT, "both"], {"set": {CONTEXT: "8192"}, "remove": [CONTEXT]}),
    (
        UsageError,
        [CONTEXT, "`set`"],
        {"set": {CONTEXT: "4096"}, "rope": RopeOverrides(factor=8.0, original_context=2048)},
    ),
    (GGUFError, ["wobbly", "aborts"], {"set": {f"{SCALING}.type": "wobbly"}}),
    (GGUFError, [f"{PREFIX}.block_count"], {"remove": [f"{PREFIX}.block_count"]}),
    (GGUFError, [f"{PREFIX}.attention.head_count_kv"], {"set": {f"{PREFIX}.attention.head_count_kv": "3"}}),
    (RopeConflict, [CONTEXT, "8192", "2048", "3"], {"rope": RopeOverrides(factor=3.0)}),
    (RopeConflict, ["`rope.context=5000`"], {"rope": RopeOverrides(context=5000)}),
    (RopeConflict, ["`rope.factor=0.25`"], {"rope": RopeOverrides(factor=0.25)}),
    (RopeConflict, ["`rope_theta=nan`"], {"rope_theta": float("nan")}),
]


@pytest.mark.parametrize(("error", "words", "options"), REFUSED, ids=lambda value: str(value)[:50])
def test_what_would_make_it_worse_is_refused(
    error: type[PigError], words: list[str], options: dict[str, Any], right: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(right.read_bytes())
    refused(error, words, path, **options)


def test_a_source_cut_short_while_it_is_copied_harms_nothing(
    right: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(right.read_bytes())
    whole, write = path.stat().st_size, pigguf.common.atomic_write.AtomicFile.write

    def cut_then_write(self: Any, data: Any) -> None:
        os.truncate(path, whole - 1000)
        write(self, data)

    monkeypatch.setattr("pigguf.common.atomic_write.AtomicFile.write", cut_then_write)
    with pytest.raises(PigError, match="became shorter") as raised:
        pigguf.repair(path, set={"general.name": "other"})
    assert raised.value.hint
    assert os.listdir(tmp_path) == ["model.gguf"]
    assert path.stat().st_size == whole - 1000
