"""Split GGUFs: as llama.cpp's gguf-split writes them, read by any part, loaded by the engine, all or none."""

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
from pigguf.evals.model_under_test import Subject
from pigguf.gguf_io import (
    GGUFFile,
    PlannedTensor,
    TensorData,
    TensorType,
    header_bytes,
    planned_files,
    read_header,
    read_part,
    write_files,
)
from pigguf.gguf_io.metadata import Typed, string, u32
from pigguf.inference.engine import Model

# Made by llama-gguf-split of the vendored llama.cpp: whole.gguf (by gguf-py's writer) --split
# --split-max-tensors 2, and its parts --merge.
MADE = Path(__file__).parent.parent / "data" / "gguf_split"
PARTS = [f"part-0000{number}-of-00003.gguf" for number in (1, 2, 3)]


def again(file: GGUFFile, data: TensorData) -> list[PlannedTensor]:
    """A file's tensors, to be written as they are."""
    return [
        PlannedTensor(t.name, t.shape, t.type, [(0, t.shape[0])], lambda a, b, t=t: data.rows(t, 0, t.rows))
        for t in file.tensors.values()
    ]


def split(source: Path, target: Path, shard_size: int | None) -> list[Path]:
    """Write a GGUF again, in parts."""
    file = read_header(source)
    with TensorData(file) as data:
        files = planned_files(target, file.metadata, again(file, data), shard_size)
        write_files(files)
    return [planned.path for planned in files]


def contents(path: Path) -> dict[str, bytes]:
    file = read_header(path)
    with TensorData(file) as data:
        return {t.name: data.rows(t, 0, t.rows).tobytes() for t in file.tensors.values()}


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(MADE / name, tmp_path)) for name in PARTS]


# ---- what is written -----------------------------------------------------------------------------


def test_parts_are_gguf_splits_byte_for_byte(tmp_path: Path) -> None:
    ours = split(MADE / "whole.gguf", tmp_path / "part.gguf", 2 * 3 * 32 * 4)
    assert [path.name for path in ours] == PARTS == sorted(os.listdir(tmp_path))
    for path in ours:
        assert path.read_bytes() == (MADE / path.name).read_bytes()


def test_a_tensor_larger_than_the_limit_is_a_part_by_itself(tmp_path: Path) -> None:
    ours = split(MADE / "whole.gguf", tmp_path / "part.gguf", 100)
    assert [list(read_part(path).tensors) for path in ours] == [
        [name] for name in read_header(MADE / "whole.gguf").tensors
    ]


@pytest.mark.parametrize("shard_size", [None, 10**6])
def test_what_fits_into_one_file_is_the_whole_file(shard_size: int | None, tmp_path: Path) -> None:
    assert split(MADE / "whole.gguf", tmp_path / "model.gguf", shard_size) == [tmp_path / "model.gguf"]
    assert (tmp_path / "model.gguf").read_bytes() == (MADE / "whole.gguf").read_bytes()


def test_a_name_without_an_ending_is_kept(tmp_path: Path) -> None:
    ours = split(MADE / "whole.gguf", tmp_path / "v1.5", 1000)
    assert ours[0].name == "v1.5-00001-of-00003.gguf"


def test_more_parts_than_there_are_numbers_are_refused() -> None:
    tensors = [
        PlannedTensor(f"{i}", (1,), TensorType.F32, [(0, 1)], lambda a, b: np.zeros(1)) for i in range(2**16)
    ]
    with pytest.raises(UsageError, match="65536 parts, more than 65535") as refusal:
        planned_files(Path("model.gguf"), {}, tensors, 1)
    assert "--shard-size" in str(refusal.value.hint)


# ---- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*PARTS, "merged.gguf"])
def test_any_part_is_the_whole_model(name: str) -> None:
    whole, file = read_header(MADE / "whole.gguf"), read_header(MADE / name)
    assert file.metadata == whole.metadata
    assert list(file.tensors) == list(whole.tensors)
    assert contents(MADE / name) == contents(MADE / "whole.gguf")
    if name in PARTS:
        assert file.path == MADE / PARTS[0]
        assert file.parts == tuple(MADE / part for part in PARTS)
        assert file.size == sum((MADE / part).stat().st_size for part in PARTS)


def test_a_part_alone_has_its_own_keys_and_tensors() -> None:
    part = read_part(MADE / PARTS[1])
    assert list(part.metadata) == ["split.no", "split.tensors.count", "split.count"]
    assert list(part.tensors) == ["blk.2.weight", "blk.3.weight"]


def rewritten(path: Path, **changes: Typed | None) -> None:
    """Keys of a file replaced, added or taken away; a double underscore stands for a dot."""
    part = read_part(path)
    changed = {name.replace("__", "."): typed for name, typed in changes.items()}
    keys = {key: typed for key, typed in {**part.metadata, **changed}.items() if typed is not None}
    data = path.read_bytes()[part.data_offset :]
    path.write_bytes(header_bytes(keys, list(part.tensors.values())) + data)


def u16(value: int) -> Typed:
    return Typed("u16", value)


STRANGERS: dict[str, tuple[Callable[[list[Path]], object], int, str]] = {
    "a missing part": (lambda p: p[1].unlink(), 1, "this part of the model is missing"),
    "a missing first part": (lambda p: p[0].unlink(), 0, "this part of the model is missing"),
    "another count": (lambda p: rewritten(p[1], split__count=u16(4)), 1, "split.count is 4, and 3 in"),
    "another number": (lambda p: shutil.copy(p[2], p[1]), 1, "split.no is 2, not 1"),
    "no number": (lambda p: rewritten(p[1], split__no=None), 1, "split.no is None, not 1"),
    "no keys at all": (
        lambda p: rewritten(p[1], split__no=None, split__count=None, split__tensors__count=None),
        1,
        "split.no is None, not 1",
    ),
    "another total": (
        lambda p: rewritten(p[2], split__tensors__count=Typed("i32", 7)),
        2,
        "split.tensors.count is 7, and 6 in",
    ),
    "too few tensors": (
        lambda p: [rewritten(part, split__tensors__count=Typed("i32", 7)) for part in p],
        0,
        "its 3 parts hold 6 tensors, and split.tensors.count is 7",
    ),
    "another model": (
        lambda p: rewritten(p[2], general__architecture=string("qwen2")),
        2,
        "metadata key general.architecture is not as in",
    ),
    "keys that llama.cpp would not read": (
        lambda p: rewritten(p[1], llama__rope__scaling__factor=u32(4)),
        1,
        "metadata key llama.rope.scaling.factor is not as in",
    ),
    "a tensor twice": (
        lambda p: p[2].write_bytes(
            p[1].read_bytes().replace(b"split.no\x02\0\0\0\x01", b"split.no\x02\0\0\0\x02")
        ),
        2,
        "tensor blk.2.weight stands in .*part-00002-of-00003.gguf too",
    ),
    "a number that llama.cpp would abort on": (
        lambda p: rewritten(p[2], split__no=u32(2)),
        2,
        "split.no is u32, not u16",
    ),
    "a part cut short": (
        lambda p: p[1].write_bytes(p[1].read_bytes()[:-100]),
        1,
        "tensor blk.3.weight ends at",
    ),
    "a part that is none": (lambda p: p[1].write_bytes(b"hello"), 1, "not a GGUF file"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_parts_that_do_not_make_a_model_are_named(case: str, parts: list[Path]) -> None:
    spoil, named, words = STRANGERS[case]
    spoil(parts)
    given = next(path for path in parts if path.exists())
    with pytest.raises(GGUFError, match=words) as refusal:
        read_header(given)
    assert refusal.value.message.startswith(f"{parts[named]}: ")
    assert refusal.value.hint


@pytest.mark.parametrize("name", ["model.gguf", "part-00002-of-00003.gguf", "part-00001-of-00004.gguf"])
def test_a_part_under_another_name_is_told_its_name(name: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(MADE / PARTS[0], tmp_path / name))
    with pytest.raises(GGUFError, match="this is part 1 of 3 by its keys") as refusal:
        read_header(path)
    assert str(path) in refusal.value.message
    assert "NAME-00001-of-00003.gguf" in str(refusal.value.hint)


def test_a_number_beyond_the_count_is_named(parts: list[Path]) -> None:
    rewritten(parts[0], split__no=u16(3))
    with pytest.raises(GGUFError, match=r"split\.no is 3, and split\.count is 3") as refusal:
        read_header(parts[0])
    assert str(parts[0]) in refusal.value.message
    assert refusal.value.hint


def test_a_part_that_vanishes_after_its_header_was_read_is_named(parts: list[Path]) -> None:
    file = read_header(parts[0])
    parts[2].unlink()
    with pytest.raises(pigguf.PigError, match=PARTS[2]):
        TensorData(file)


# ---- all or none ---------------------------------------------------------------------------------


def tensors_with(second: Callable[[int, int], np.ndarray]) -> list[PlannedTensor]:
    plain = PlannedTensor("a", (4, 32), TensorType.F32, [(0, 4)], lambda a, b: np.ones((4, 32), np.float32))
    return [plain, PlannedTensor("b", (4, 32), TensorType.F32, [(0, 4)], second)]


def test_a_failure_in_a_later_part_leaves_nothing(tmp_path: Path) -> None:
    def broken(start: int, stop: int) -> np.ndarray:
        raise ValueError("no rows today")

    with pytest.raises(ValueError, match="no rows today"):
        write_files(planned_files(tmp_path / "m.gguf", METADATA, tensors_with(broken), 512))
    assert os.listdir(tmp_path) == []


def test_parts_that_do_not_verify_leave_nothing(tmp_path: Path) -> None:
    def refuse(path: Path) -> None:
        assert len(read_header(path).parts) == 2
        assert os.listdir(tmp_path) == []
        raise VerificationFailed("not today")

    good = tensors_with(lambda a, b: np.ones((4, 32), np.float32))
    with pytest.raises(VerificationFailed):
        write_files(planned_files(tmp_path / "m.gguf", METADATA, good, 512), verify=refuse)
    assert os.listdir(tmp_path) == []


def test_a_name_that_cannot_be_had_takes_the_others_back(tmp_path: Path) -> None:
    """The last part takes its name first; then the first part's has become a directory."""
    first = tmp_path / "m-00001-of-00002.gguf"
    good = tensors_with(lambda a, b: np.ones((4, 32), np.float32))
    with pytest.raises(OutputError):
        write_files(
            planned_files(tmp_path / "m.gguf", METADATA, good, 512), verify=lambda path: first.mkdir()
        )
    assert os.listdir(tmp_path) == [first.name]


KILLED = """
import os, signal
from pathlib import Path
import numpy as np
from pigguf.gguf_io import PlannedTensor, TensorType, planned_files, write_files
def encode(start, stop):
    return np.ones((4, 32), np.float32)
def die(start, stop):
    os.kill(os.getpid(), signal.SIGKILL)
tensors = [PlannedTensor(e.__name__, (4, 32), TensorType.F32, [(0, 4)], e) for e in (encode, die)]
write_files(planned_files(Path({target!r}), {{}}, tensors, 512))
"""


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name (Linux)")
def test_kill_minus_nine_in_a_later_part_leaves_nothing(tmp_path: Path) -> None:
    code = KILLED.format(target=str(tmp_path / "m.gguf"))
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert os.listdir(tmp_path) == []


# ---- in use --------------------------------------------------------------------------------------


def test_the_engine_computes_the_same_logits_from_parts(tmp_path: Path) -> None:
    whole = write_tiny(tmp_path / "whole.gguf")
    made = split(whole, tmp_path / "tiny.gguf", 50_000)
    assert len(made) > 3
    tokens = text_tokens(40)
    expected = np.array(list(engine_logits(whole, tokens)))
    whole.unlink()
    for given in (made[0], made[-1]):
        np.testing.assert_array_equal(np.array(list(engine_logits(given, tokens))), expected)


def test_the_engine_says_which_part_is_missing(tmp_path: Path) -> None:
    made = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    made[2].unlink()
    with pytest.raises(GGUFError, match=made[2].name):
        Model.open(made[0])


def test_a_checkpoint_becomes_parts_that_quantize_and_export_take(tmp_path: Path) -> None:
    source = make_checkpoint(tmp_path / "piglet")
    whole = pigguf.convert(source, tmp_path / "whole.gguf", type="F32")
    result = pigguf.convert(source, tmp_path / "out.gguf", type="F32", shard_size=100_000)
    assert len(result.parts) > 2
    assert result.path == result.parts[0]
    assert all(part.exists() for part in result.parts)
    assert result.plan.bytes == sum(part.stat().st_size for part in result.parts)
    assert contents(result.parts[0]) == contents(whole.parts[0])
    planned = pigguf.convert(source, tmp_path / "out.gguf", type="F32", shard_size=100_000, dry_run=True)
    assert (planned.path, planned.parts) == (None, result.parts)

    pigguf.quantize(result.parts[-1], tmp_path / "small.gguf", type="Q8_0")
    pigguf.quantize(whole.parts[0], tmp_path / "same.gguf", type="Q8_0")
    assert (tmp_path / "small.gguf").read_bytes() == (tmp_path / "same.gguf").read_bytes()
    small = pigguf.quantize(whole.parts[0], tmp_path / "cut.gguf", type="Q8_0", shard_size=40_000)
    assert len(small.parts) > 2
    assert contents(small.path) == contents(tmp_path / "small.gguf")

    pigguf.export(result.parts[1], tmp_path / "from-parts")
    pigguf.export(tmp_path / "whole.gguf", tmp_path / "from-whole")
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "from-parts" / name).read_bytes() == (tmp_path / "from-whole" / name).read_bytes()


def test_quantize_never_overwrites_a_part_of_its_source(tmp_path: Path) -> None:
    parts = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    with pytest.raises(UsageError, match=f"{parts[1].name} is both source and output"):
        pigguf.quantize(parts[0], parts[1], type="F16")


def test_inspect_tells_of_the_parts(parts: list[Path]) -> None:
    runner = CliRunner()
    assert "3 files" in runner.invoke(inspect_command, [str(parts[1])]).stdout
    told = json.loads(runner.invoke(inspect_command, [str(parts[1]), "--json"]).stdout)
    assert told["parts"] == [str(part) for part in parts]
    assert told["bytes"] == sum(part.stat().st_size for part in parts)
    assert "split" not in runner.invoke(inspect_command, [str(parts[1]), "--keys"]).stdout


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


def test_an_evaluation_knows_every_part_by_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    parts = split(write_tiny(tmp_path / "whole.gguf"), tmp_path / "tiny.gguf", 50_000)
    before = Subject.of(parts[0]).sha256
    assert Subject.of(parts[2]).sha256 == before
    changed = bytearray(parts[1].read_bytes())
    changed[-1] ^= 1
    parts[1].write_bytes(changed)
    assert Subject.of(parts[0]).sha256 != before
