"""Split GGUFs: written as llama.cpp's gguf-split does, read by any shard, loaded by the engine."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from support.compare import engine_logits
from support.tiny_checkpoints import make_checkpoint
from support.tiny_gguf import METADATA, text_tokens, write_tiny

import pigguf
from pigguf.cli.convert import command as convert_command
from pigguf.cli.inspect import command as inspect_command
from pigguf.errors import GGUFError, OutputError, UsageError, VerificationFailed
from pigguf.evals.model_under_test import ModelUnderTest
from pigguf.gguf_io import (
    GGUFFile,
    PlannedTensor,
    TensorData,
    TensorType,
    plan_files,
    read_header,
    read_shard,
    serialize_header,
    write_gguf_files,
)
from pigguf.gguf_io.metadata import TypedValue, string, u32
from pigguf.inference.engine import Model

# Made by llama-gguf-split of the vendored llama.cpp: whole.gguf (by gguf-py's writer) --split
# --split-max-tensors 2, and its shards --merge.
DATA = Path(__file__).parent.parent / "data" / "gguf_split"
SHARDS = [f"part-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def copied_tensors(file: GGUFFile, data: TensorData) -> list[PlannedTensor]:
    """Return a file's tensors, to write them unchanged."""
    return [
        PlannedTensor(t.name, t.shape, t.type, [(0, t.shape[0])], lambda a, b, t=t: data.rows(t, 0, t.rows))
        for t in file.tensors.values()
    ]


def split(source: Path, target: Path, shard_size: int | None) -> list[Path]:
    """Write a copy of a GGUF, in shards."""
    file = read_header(source)
    with TensorData(file) as data:
        files = plan_files(target, file.metadata, copied_tensors(file, data), shard_size)
        write_gguf_files(files)
    return [planned.path for planned in files]


def contents(path: Path) -> dict[str, bytes]:
    file = read_header(path)
    with TensorData(file) as data:
        return {t.name: data.rows(t, 0, t.rows).tobytes() for t in file.tensors.values()}


@pytest.fixture
def shard_paths(tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(DATA / name, tmp_path)) for name in SHARDS]


# ---- writing -------------------------------------------------------------------------------------


def test_shards_equal_those_of_gguf_split(tmp_path: Path) -> None:
    ours = split(DATA / "whole.gguf", tmp_path / "part.gguf", 2 * 3 * 32 * 4)
    assert [path.name for path in ours] == SHARDS == sorted(os.listdir(tmp_path))
    for path in ours:
        assert path.read_bytes() == (DATA / path.name).read_bytes()


def test_a_tensor_larger_than_the_limit_is_a_shard_by_itself(tmp_path: Path) -> None:
    ours = split(DATA / "whole.gguf", tmp_path / "part.gguf", 100)
    assert [list(read_shard(path).tensors) for path in ours] == [
        [name] for name in read_header(DATA / "whole.gguf").tensors
    ]


@pytest.mark.parametrize("shard_size", [None, 10**6])
def test_what_fits_into_one_file_is_the_whole_file(shard_size: int | None, tmp_path: Path) -> None:
    assert split(DATA / "whole.gguf", tmp_path / "model.gguf", shard_size) == [tmp_path / "model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == (DATA / "whole.gguf").read_bytes()


def test_a_name_without_an_ending_is_kept(tmp_path: Path) -> None:
    ours = split(DATA / "whole.gguf", tmp_path / "v1.5", 1000)
    assert ours[0].name == "v1.5-00001-of-00003.gguf"


def test_more_shards_than_can_be_numbered_are_refused() -> None:
    tensors = [
        PlannedTensor(f"{i}", (1,), TensorType.F32, [(0, 1)], lambda a, b: np.zeros(1)) for i in range(2**16)
    ]
    with pytest.raises(UsageError, match="65536 shards, more than 65535") as refusal:
        plan_files(Path("model.gguf"), {}, tensors, 1)
    assert "`shard_size`" in str(refusal.value.hint)


# ---- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SHARDS, "merged.gguf"])
def test_any_shard_reads_as_the_whole_model(name: str) -> None:
    whole, file = read_header(DATA / "whole.gguf"), read_header(DATA / name)
    assert file.metadata == whole.metadata
    assert list(file.tensors) == list(whole.tensors)
    assert contents(DATA / name) == contents(DATA / "whole.gguf")
    if name in SHARDS:
        assert file.path == DATA / SHARDS[0]
        assert file.shards == tuple(DATA / name for name in SHARDS)
        assert file.size == sum((DATA / name).stat().st_size for name in SHARDS)


def test_a_shard_alone_has_its_own_keys_and_tensors() -> None:
    shard = read_shard(DATA / SHARDS[1])
    assert list(shard.metadata) == ["split.no", "split.tensors.count", "split.count"]
    assert list(shard.tensors) == ["blk.2.weight", "blk.3.weight"]


def rewrite_keys(path: Path, **changes: TypedValue | None) -> None:
    """Replace, add or remove keys of a file; a double underscore stands for a dot."""
    shard = read_shard(path)
    changed = {name.replace("__", "."): typed for name, typed in changes.items()}
    keys = {key: typed for key, typed in {**shard.metadata, **changed}.items() if typed is not None}
    data = path.read_bytes()[shard.data_offset :]
    path.write_bytes(serialize_header(keys, list(shard.tensors.values())) + data)


def u16(value: int) -> TypedValue:
    return TypedValue("u16", value)


NOT_ONE_MODEL: dict[str, tuple[Callable[[list[Path]], object], int, str]] = {
    "a missing shard": (lambda p: p[1].unlink(), 1, "this shard of the model is missing"),
    "a missing first shard": (lambda p: p[0].unlink(), 0, "this shard of the model is missing"),
    "another count": (lambda p: rewrite_keys(p[1], split__count=u16(4)), 1, "split.count is 4, and 3 in"),
    "another number": (lambda p: shutil.copy(p[2], p[1]), 1, "split.no is 2, not 1"),
    "no number": (lambda p: rewrite_keys(p[1], split__no=None), 1, "split.no is None, not 1"),
    "no keys at all": (
        lambda p: rewrite_keys(p[1], split__no=None, split__count=None, split__tensors__count=None),
        1,
        "split.no is None, not 1",
    ),
    "another total": (
        lambda p: rewrite_keys(p[2], split__tensors__count=TypedValue("i32", 7)),
        2,
        "split.tensors.count is 7, and 6 in",
    ),
    "too few tensors": (
        lambda p: [rewrite_keys(path, split__tensors__count=TypedValue("i32", 7)) for path in p],
        0,
        "its 3 shards have 6 tensors, and split.tensors.count is 7",
    ),
    "another model": (
        lambda p: rewrite_keys(p[2], general__architecture=string("qwen2")),
        2,
        "metadata key general.architecture differs from",
    ),
    "keys that llama.cpp would not read": (
        lambda p: rewrite_keys(p[1], llama__rope__scaling__factor=u32(4)),
        1,
        "metadata key llama.rope.scaling.factor differs from",
    ),
    "a tensor twice": (
        lambda p: p[2].write_bytes(
            p[1].read_bytes().replace(b"split.no\x02\0\0\0\x01", b"split.no\x02\0\0\0\x02")
        ),
        2,
        "tensor blk.2.weight is in .*part-00002-of-00003.gguf too",
    ),
    "a number that llama.cpp would abort on": (
        lambda p: rewrite_keys(p[2], split__no=u32(2)),
        2,
        "split.no is u32, not u16",
    ),
    "a truncated shard": (
        lambda p: p[1].write_bytes(p[1].read_bytes()[:-100]),
        1,
        "tensor blk.3.weight ends at",
    ),
    "a shard that is not a GGUF": (lambda p: p[1].write_bytes(b"hello"), 1, "not a GGUF file"),
}


@pytest.mark.parametrize("case", NOT_ONE_MODEL)
def test_shards_that_are_not_of_one_model_are_named(case: str, shard_paths: list[Path]) -> None:
    corrupt, named, words = NOT_ONE_MODEL[case]
    corrupt(shard_paths)
    given = next(path for path in shard_paths if path.exists())
    with pytest.raises(GGUFError, match=words) as refusal:
        read_header(given)
    assert refusal.value.message.startswith(f"{shard_paths[named]}: ")
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["model.gguf", "part-00002-of-00003.gguf", "part-00001-of-00004.gguf"])
def test_a_shard_under_another_name_is_refused_with_a_hint_to_its_name(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(DATA / SHARDS[0], tmp_path / name))
    with pytest.raises(GGUFError, match="this is shard 1 of 3 by its keys") as refusal:
        read_header(path)
    assert str(path) in refusal.value.message
    assert "NAME-00001-of-00003.gguf" in str(refusal.value.hint)


def test_a_number_beyond_the_count_is_named(shard_paths: list[Path]) -> None:
    rewrite_keys(shard_paths[0], split__no=u16(3))
    with pytest.raises(GGUFError, match=r"split\.no is 3, and split\.count is 3") as refusal:
        read_header(shard_paths[0])
    assert str(shard_paths[0]) in refusal.value.message
    assert refusal.value.hint


def test_a_shard_that_vanishes_after_its_header_was_read_is_named(shard_paths: list[Path]) -> None:
    file = read_header(shard_paths[0])
    shard_paths[2].unlink()
    with pytest.raises(pigguf.PigError, match=SHARDS[2]):
        TensorData(file)


# ---- atomicity -----------------------------------------------------------------------------------


def tensors_with(second: Callable[[int, int], np.ndarray]) -> list[PlannedTensor]:
    plain = PlannedTensor("a", (4, 32), TensorType.F32, [(0, 4)], lambda a, b: np.ones((4, 32), np.float32))
    return [plain, PlannedTensor("b", (4, 32), TensorType.F32, [(0, 4)], second)]


def test_a_failure_in_a_later_shard_leaves_nothing(tmp_path: Path) -> None:
    def broken(start: int, stop: int) -> np.ndarray:
        raise ValueError("no rows today")

    with pytest.raises(ValueError, match="no rows today"):
        write_gguf_files(plan_files(tmp_path / "m.gguf", METADATA, tensors_with(broken), 512))
    assert os.listdir(tmp_path) == []


def test_shards_that_do_not_verify_leave_nothing(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert len(read_header(path).shards) == 2
        assert os.listdir(tmp_path) == []
        raise VerificationFailed("not today")

    good = tensors_with(lambda a, b: np.ones((4, 32), np.float32))
    with pytest.raises(VerificationFailed):
        write_gguf_files(plan_files(tmp_path / "m.gguf", METADATA, good, 512), verify=refuse)
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_taken_removes_the_other_shards(tmp_path: Path) -> None:
    """Rename the last shard first; by then the first shard's name is a directory."""
    first = tmp_path / "m-00001-of-00002.gguf"
    good = tensors_with(lambda a, b: np.ones((4, 32), np.float32))
    with pytest.raises(OutputError):
        write_gguf_files(
            plan_files(tmp_path / "m.gguf", METADATA, good, 512), verify=lambda path: first.mkdir()
        )
    assert os.listdir(tmp_path) == [first.name]


KILLED = """
import os, signal
from pathlib import Path
import numpy as np
from pigguf.gguf_io import PlannedTensor, TensorType, plan_files, write_gguf_files
def encode(start, stop):
    return np.ones((4, 32), np.float32)
def die(start, stop):
    os.kill(os.getpid(), signal.SIGKILL)
tensors = [PlannedTensor(e.__name__, (4, 32), TensorType.F32, [(0, 4)], e) for e in (encode, die)]
write_gguf_files(plan_files(Path({target!r}), {{}}, tensors, 512))
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name (Linux)")
def test_kill_minus_nine_in_a_later_shard_leaves_nothing(tmp_path: Path) -> None:
    code = KILLED.format(target=str(tmp_path / "m.gguf"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


# ---- in use --------------------------------------------------------------------------------------


def test_the_engine_computes_the_same_logits_from_shards(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "whole.gguf")
    shards = split(whole, tmp_path / "tiny.gguf", 50_000)
    assert len(shards) > 3
    tokens = text_tokens(40)
    expected = np.array(list(engine_logits(whole, tokens)))
    whole.unlink()
    for given in (shards[0], shards[-1]):
        np.testing.assert_array_equal(np.array(list(engine_logits(given, tokens))), expected)


def test_the_engine_names_the_missing_shard(tmp_path: Path) -> None:
    shards = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    shards[2].unlink()
    with pytest.raises(GGUFError, match=shards[2].name):
        Model.open(shards[0])


def test_a_checkpoint_becomes_shards_that_quantize_and_export_read(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "piglet")
    whole = pigguf.convert(source, tmp_path / "whole.gguf", type="F32")
    result = pigguf.convert(source, tmp_path / "out.gguf", type="F32", shard_size=100_000)
    assert len(result.shards) > 2
    assert result.path == result.shards[0]
    assert all(part.exists() for part in result.shards)
    assert result.plan.bytes == sum(part.stat().st_size for part in result.shards)
    assert contents(result.shards[0]) == contents(whole.shards[0])
    planned = pigguf.convert(source, tmp_path / "out.gguf", type="F32", shard_size=100_000, dry_run=True)
    assert (planned.path, planned.shards) == (None, result.shards)

    pigguf.quantize(result.shards[-1], tmp_path / "small.gguf", type="Q8_0")
    pigguf.quantize(whole.shards[0], tmp_path / "same.gguf", type="Q8_0")
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    small = pigguf.quantize(whole.shards[0], tmp_path / "cut.gguf", type="Q8_0", shard_size=40_000)
    assert len(small.shards) > 2
    assert contents(small.path) == contents(tmp_path / "small.gguf")

    pigguf.export(result.shards[1], tmp_path / "from-parts")
    pigguf.export(tmp_path / "whole.gguf", tmp_path / "from-whole")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "from-parts" / name).read_bytes() == (tmp_path / "from-whole" / name).read_bytes()


def test_quantize_never_overwrites_a_shard_of_its_source(tmp_path: Path) -> None:
    shards = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    with pytest.raises(UsageError, match=f"{shards[1].name} is both source and output"):
        pigguf.quantize(shards[0], shards[1], type="F16")


def test_inspect_lists_the_shards(shard_paths: list[Path]) -> None:
    runner = CliRunner()
    assert "3 files" in runner.invoke(inspect_command, [str(shard_paths[1])]).stdout
    data = json.loads(runner.invoke(inspect_command, [str(shard_paths[1]), "--json"]).stdout)
    assert data["parts"] == [str(path) for path in shard_paths]
    assert data["bytes"] == sum(path.stat().st_size for path in shard_paths)
    assert "split" not in runner.invoke(inspect_command, [str(shard_paths[1]), "--keys"]).stdout


@pytest.mark.parametrize("given", ["4", "4K", "4GB", "0M", "-1G", "1.5G", "G", "", "٣M", "4g"])
def test_sizes_that_gguf_split_does_not_read_are_refused(given: str, tmp_path: Path) -> None:
    finished = CliRunner().invoke(convert_command, [str(tmp_path), f"--shard-size={given}"])
    assert finished.exit_code == 2
    assert "is not a size such as 500M or 4G" in finished.output


def test_a_size_is_a_number_of_millions_or_billions_of_bytes(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "piglet", vocab_size=5000)
    arguments = [str(source), "-o", str(tmp_path / "m.gguf"), "--type", "F32", "--json", "--shard-size"]
    many = json.loads(CliRunner().invoke(convert_command, [*arguments, "1M"]).stdout)
    assert len(many["parts"]) == 3  # 1.28 MB of embedding, as much of output, and the rest
    assert all(os.path.exists(part) for part in many["parts"])
    one = json.loads(CliRunner().invoke(convert_command, [*arguments, "1G"]).stdout)
    assert one["parts"] == [one["path"]] == [str(tmp_path / "m.gguf")]


def test_an_evaluation_hashes_every_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shards = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    before = ModelUnderTest.from_file(shards[0]).sha256
    assert ModelUnderTest.from_file(shards[2]).sha256 == before
    changed = bytearray(shards[1].read_bytes())
    changed[-1] ^= 1
    shards[1].write_bytes(changed)
    assert ModelUnderTest.from_file(shards[0]).sha256 != before
