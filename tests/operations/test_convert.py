"""convert from end to end: what it writes, and every bad input's one line."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from support.tiny_checkpoints import (
    FAMILIES,
    VOCAB_SIZE,
    edit_config,
    make_checkpoint,
    save_tokenizer,
)

import pigguf
from pigguf.errors import (
    CheckpointError,
    InvalidTensor,
    MissingTensor,
    PigError,
    RopeConflict,
    TokenizerError,
    UnmappedTensor,
    UnsupportedModel,
    UsageError,
    VerificationFailed,
)
from pigguf.gguf_io import TensorData, read_header
from pigguf.gguf_io.metadata import f32, string, u32
from pigguf.quantization import RECIPES

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "piglet-4x", rope_parameters=LINEAR)


def convert(checkpoint: Path, **options: Any) -> Path:
    """Convert beside the checkpoint, to F32 by default."""
    target = checkpoint.parent / "model.gguf"
    pigguf.convert(checkpoint, target, **{"type": "F32", **options})
    return target


# ---- what is written -----------------------------------------------------------------------------


def test_the_file_states_type_factor_original_and_extended_context(checkpoint: Path) -> None:
    metadata = read_header(convert(checkpoint)).metadata
    assert metadata["llama.rope.scaling.type"] == string("linear")
    assert metadata["llama.rope.scaling.factor"] == f32(4.0)
    assert metadata["llama.rope.scaling.original_context_length"] == u32(64)
    assert metadata["llama.context_length"] == u32(256)
    assert metadata["general.name"] == string("piglet-4x")


def test_overrides_replace_the_checkpoints_numbers(checkpoint: Path) -> None:
    overrides = pigguf.RopeOverrides(factor=2.0, original_context=64, context=128)
    metadata = read_header(convert(checkpoint, rope=overrides)).metadata
    assert metadata["llama.rope.scaling.factor"] == f32(2.0)
    assert metadata["llama.context_length"] == u32(128)


@pytest.mark.parametrize("family", FAMILIES)
def test_shards_make_the_same_file_as_one(family: str, tmp_path: Path) -> None:
    one = make_checkpoint(tmp_path / "one" / "piglet", family)
    many = make_checkpoint(tmp_path / "many" / "piglet", family, max_shard_size="50KB")
    assert len(list(many.glob("*.safetensors"))) > 3
    assert convert(one).read_bytes() == convert(many).read_bytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_keep_their_values_whatever_they_are_stored_as(dtype: torch.dtype, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "piglet", dtype=dtype)
    source = load_file(path / "model.safetensors")["model.layers.1.mlp.down_proj.weight"]
    file = read_header(convert(path))
    with TensorData(file) as data:
        written = data.rows(file.tensors["blk.1.ffn_down.weight"], 0, 64).view(np.float32)
    np.testing.assert_array_equal(written, source.astype(np.float32))


@pytest.mark.parametrize("name", RECIPES)
def test_every_type_converts_in_one_pass_to_what_quantize_makes_of_the_float_file(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    floats = convert(checkpoint)
    pigguf.quantize(floats, tmp_path / "two-steps.gguf", type=name)
    pigguf.convert(checkpoint, tmp_path / "one-pass.gguf", type=name)
    assert (tmp_path / "one-pass.gguf").read_bytes() == (tmp_path / "two-steps.gguf").read_bytes()


def test_the_default_name_is_the_models_and_the_types(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.parent)
    result = pigguf.convert(checkpoint, type="q8_0")
    assert result.path == Path("piglet-4x-Q8_0.gguf")
    assert result.path.stat().st_size == result.plan.bytes


def test_a_dry_run_decides_and_writes_nothing(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = checkpoint.parent / "empty"
    empty.mkdir()
    monkeypatch.chdir(empty)
    result = pigguf.convert(checkpoint, dry_run=True)
    assert result.path is None
    assert result.plan.rope.factor == 4.0
    assert {found.key for found in result.plan.rope.evidence} >= {"rope_parameters.factor"}
    assert os.listdir(empty) == []


def test_a_tokenizer_smaller_than_the_embedding_is_padded_and_noted(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "piglet", vocab_size=VOCAB_SIZE + 8)
    result = pigguf.convert(path, dry_run=True)
    assert len(result.plan.vocab.tokens) == VOCAB_SIZE + 8
    assert any("8" in note for note in result.plan.vocab.notes)
    assert read_header(convert(path)).tensors["token_embd.weight"].shape[0] == VOCAB_SIZE + 8


# ---- bad input -----------------------------------------------------------------------------------


def edit_tensors(path: Path, edit: Callable[[dict[str, np.ndarray]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    edit(tensors)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})


def add_tensor(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.0.self_attn.sinks"] = np.zeros(4, np.float32)


def drop_tensor(tensors: dict[str, np.ndarray]) -> None:
    del tensors["model.layers.1.mlp.up_proj.weight"]


def wrong_shape(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] = np.zeros((96, 60), np.float32)


def not_a_number(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"][17, 5] = np.nan


def infinite(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"][3] = np.inf


def as_integers(tensors: dict[str, np.ndarray]) -> None:
    tensors["model.norm.weight"] = np.zeros(64, np.int32)


BAD_TENSORS = [
    (add_tensor, UnmappedTensor, ["model.layers.0.self_attn.sinks"]),
    (drop_tensor, MissingTensor, ["model.layers.1.mlp.up_proj.weight"]),
    (wrong_shape, InvalidTensor, ["model.layers.1.mlp.up_proj.weight", "96, 60", "96, 64"]),
    (not_a_number, InvalidTensor, ["blk.1.ffn_up.weight", "[17, 5]"]),
    (infinite, InvalidTensor, ["output_norm.weight", "[3]"]),
    (as_integers, InvalidTensor, ["norm.weight", "I32"]),
]


@pytest.mark.parametrize(
    ("edit", "error", "words"), BAD_TENSORS, ids=lambda value: getattr(value, "__name__", "")
)
@pytest.mark.parametrize("type_name", ["F32", "Q4_K_M"])
def test_bad_tensors_are_named_and_harm_nothing(
    edit: Callable[..., None], error: type[PigError], words: list[str], type_name: str, checkpoint: Path
) -> None:
    target = checkpoint.parent / "model.gguf"
    target.write_bytes(b"precious")
    edit_tensors(checkpoint, edit)
    refused(error, words, checkpoint, type=type_name)
    assert target.read_bytes() == b"precious"


def refused(error: type[PigError], words: list[str], checkpoint: Path, **options: Any) -> None:
    before = sorted(os.listdir(checkpoint.parent))
    with pytest.raises(error) as raised:
        convert(checkpoint, **options)
    for word in words:
        assert word in raised.value.message
    assert "\n" not in raised.value.message
    assert raised.value.hint
    assert sorted(os.listdir(checkpoint.parent)) == before


def test_a_value_too_large_for_f16_is_an_error_not_an_infinity(checkpoint: Path) -> None:
    def huge(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.layers.0.mlp.up_proj.weight"][0, 1] = 1e6

    edit_tensors(checkpoint, huge)
    refused(InvalidTensor, ["blk.0.ffn_up.weight", "[0, 1]"], checkpoint, type="F16")
    convert(checkpoint, type="BF16")


BAD_CONFIGS: list[tuple[dict[str, Any], type[PigError], list[str]]] = [
    ({"architectures": ["PigForCausalLM"], "model_type": "pig"}, UnsupportedModel, ["PigForCausalLM"]),
    ({"architectures": ..., "model_type": ...}, CheckpointError, ["architectures"]),
    ({"hidden_size": ...}, CheckpointError, ["hidden_size"]),
    ({"num_hidden_layers": "two"}, CheckpointError, ["num_hidden_layers", "two"]),
    ({"rms_norm_eps": -1e-5}, CheckpointError, ["rms_norm_eps"]),
    ({"hidden_act": "gelu"}, UnsupportedModel, ["hidden_act", "gelu"]),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "truncate": False}},
        UnsupportedModel,
        ["rope_parameters.truncate", "false"],
    ),
    ({"rope_parameters": {"rope_type": "wobbly", "factor": 4.0}}, UnsupportedModel, ["wobbly"]),
    (
        {"rope_scaling": {"type": "linear", "factor": 8.0}},
        RopeConflict,
        ["8.0", "4.0", "rope_scaling.factor"],
    ),
    ({"rope_condense_ratio": 8}, RopeConflict, ["rope_condense_ratio", "8", "rope_parameters.factor", "4.0"]),
    ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModel, ["quantization_config", "gptq"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), BAD_CONFIGS, ids=lambda value: str(value)[:40])
def test_bad_configs_are_named(
    changes: dict[str, Any], error: type[PigError], words: list[str], checkpoint: Path
) -> None:
    edit_config(checkpoint, **changes)
    refused(error, words, checkpoint)


def test_a_conflict_is_settled_by_the_flag_it_names(checkpoint: Path) -> None:
    edit_config(checkpoint, rope_condense_ratio=8)
    refused(RopeConflict, [], checkpoint)
    settled = pigguf.convert(
        checkpoint, rope=pigguf.RopeOverrides(factor=8.0, original_context=64), dry_run=True
    )
    assert settled.plan.rope.context_length == 512


def test_a_missing_or_damaged_checkpoint_is_named(checkpoint: Path) -> None:
    whole = (checkpoint / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    refused(CheckpointError, ["model.safetensors"], checkpoint)
    (checkpoint / "config.json").unlink()
    refused(CheckpointError, ["config.json is missing"], checkpoint)


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_git_lfs_pointer_instead_of_a_file_is_recognized(name: str, checkpoint: Path) -> None:
    (checkpoint / name).write_text(LFS_POINTER)
    with pytest.raises(PigError, match=name) as raised:
        convert(checkpoint)
    assert "git lfs pull" in (raised.value.hint or "")


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"hidden_size": %s}' % ("9" * 5000)], ids=["deep", "long"]
)
@pytest.mark.parametrize(
    ("name", "error"), [("config.json", CheckpointError), ("tokenizer.json", TokenizerError)]
)
def test_json_that_python_cannot_hold_is_refused(
    name: str, error: type[PigError], content: str, checkpoint: Path
) -> None:
    (checkpoint / name).write_text(content)
    refused(error, [name, "is not JSON"], checkpoint)


def test_a_tokenizer_larger_than_the_embedding_is_refused(checkpoint: Path) -> None:
    save_tokenizer(checkpoint, VOCAB_SIZE + 4)
    refused(TokenizerError, [str(VOCAB_SIZE), str(VOCAB_SIZE + 4)], checkpoint)


def test_a_missing_tokenizer_is_named(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    refused(TokenizerError, ["tokenizer"], checkpoint)


def test_a_rule_of_the_tokenizer_that_is_not_known_stops_the_work(checkpoint: Path) -> None:
    file = checkpoint / "tokenizer.json"
    content = json.loads(file.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    file.write_text(json.dumps(content))
    refused(TokenizerError, ["tokenizer.json", "normalizer", "Lowercase"], checkpoint)


def test_a_chat_template_that_is_not_jinja_stops_the_work(checkpoint: Path) -> None:
    (checkpoint / "chat_template.jinja").write_text("{% for message in messages %}{{ message.content }}")
    refused(TokenizerError, ["chat template", "not valid jinja"], checkpoint)


def test_tokens_that_differ_from_the_sources_fail_the_conversion(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The verifying step itself: a vocabulary with two tokens swapped must not pass."""
    import pigguf.operations.convert as module

    def swapped(*arguments: Any) -> Any:
        from dataclasses import replace

        vocab = original(*arguments)
        tokens = list(vocab.tokens)
        a, b = tokens.index("a"), tokens.index("b")
        tokens[a], tokens[b] = tokens[b], tokens[a]
        return replace(vocab, tokens=tuple(tokens))

    original = module.read_vocab
    monkeypatch.setattr(module, "read_vocab", swapped)
    with pytest.raises(VerificationFailed, match="tokenizer differs from the source's"):
        convert(checkpoint)
    assert not (checkpoint.parent / "model.gguf").exists()


def test_an_unknown_type_is_named(checkpoint: Path) -> None:
    refused(UsageError, ["Q9_Z"], checkpoint, type="Q9_Z")


def test_a_target_that_cannot_be_written_is_named(checkpoint: Path) -> None:
    with pytest.raises(PigError, match="is a directory"):
        pigguf.convert(checkpoint, checkpoint.parent)
    with pytest.raises(PigError, match="is not a directory"):
        pigguf.convert(checkpoint, checkpoint.parent / "absent" / "model.gguf")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
@pytest.mark.parametrize("linked", [False, True])
def test_no_file_of_the_checkpoint_is_overwritten(name: str, linked: bool, checkpoint: Path) -> None:
    (checkpoint / "README.md").write_text("precious")
    target = checkpoint / name
    before = target.read_bytes()
    if linked:
        target = checkpoint.parent / "link.gguf"
        target.symlink_to(checkpoint / name)
    with pytest.raises(UsageError, match="is a file of the checkpoint"):
        pigguf.convert(checkpoint, target)
    assert (checkpoint / name).read_bytes() == before


def test_a_gguf_may_lie_in_the_checkpoints_directory_and_be_made_again(checkpoint: Path) -> None:
    first = pigguf.convert(checkpoint, checkpoint / "model.gguf", type="F32").plan.bytes
    assert pigguf.convert(checkpoint, checkpoint / "model.gguf", type="F16").plan.bytes < first


def test_a_hubs_snapshot_is_named_by_its_repository(checkpoint: Path) -> None:
    snapshot = checkpoint.parent / "models--some-one--piglet-7b" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    for file in checkpoint.iterdir():
        (snapshot / file.name).symlink_to(file)
    assert pigguf.convert(snapshot, dry_run=True).plan.name == "piglet-7b"


def run_limited(checkpoint: Path, before: str) -> subprocess.CompletedProcess[str]:
    """Convert in a child process after running `before` in it."""
    code = f"import os, resource, signal, sys\n{before}\nfrom pigguf.cli import main\nmain(sys.argv[1:])"
    arguments = ["convert", str(checkpoint), "-o", str(checkpoint.parent / "model.gguf"), "--type", "F32"]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file size")
def test_a_disk_that_fills_up_midway_leaves_nothing(checkpoint: Path) -> None:
    (checkpoint.parent / "model.gguf").write_bytes(b"precious")
    ignore = "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
    finished = run_limited(checkpoint, f"{ignore}; resource.setrlimit(resource.RLIMIT_FSIZE, (99999, 99999))")
    assert finished.returncode == 6
    assert finished.stderr.count("\n") == 2
    assert finished.stderr.startswith("error: ")
    assert "\nhint: " in finished.stderr
    assert sorted(os.listdir(checkpoint.parent)) == ["model.gguf", "piglet-4x"]
    assert (checkpoint.parent / "model.gguf").read_bytes() == b"precious"


FULL_DISK = """
import os, pathlib, sys
import pigguf
from pigguf.progress import SilentProgress

disk = pathlib.Path(sys.argv[2])
(disk / "model.gguf").write_bytes(b"precious")
if sys.argv[3] == "later":
    class Filler(SilentProgress):  # somebody else takes the room that was there at the start
        def advance(self, amount):
            if not (disk / "other").exists():
                (disk / "other").write_bytes(bytes(700_000))
    progress = Filler()
else:
    (disk / "other").write_bytes(bytes(700_000))
    progress = SilentProgress()
try:
    pigguf.convert(sys.argv[1], disk / "model.gguf", type="F32", progress=progress)
except pigguf.PigError as error:
    print(type(error).__name__, "|", error.message, "|", error.hint)
print(sorted(os.listdir(disk)), (disk / "model.gguf").read_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a disk of its own (Linux)")
@pytest.mark.parametrize(
    ("when", "words"), [("before", "the disk has"), ("later", "No space left on device")]
)
def test_a_full_disk_is_an_error_that_harms_nothing(
    when: str, words: str, checkpoint: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs -o size=1000k none "$0" && exec "$@"',
        str(disk),
    ]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    command = [*mount, sys.executable, "-c", FULL_DISK, str(checkpoint), str(disk), when]
    finished = subprocess.run(command, check=True, capture_output=True, text=True)
    error, left = finished.stdout.splitlines()
    assert error.startswith("OutputError | ")
    assert words in error
    assert "free some space" in error
    assert left == "['model.gguf', 'other'] b'precious'"


@pytest.mark.skipif(not hasattr(os, "O_TMPFILE"), reason="needs files without a name (Linux)")
def test_kill_minus_nine_in_the_middle_leaves_nothing(checkpoint: Path) -> None:
    (checkpoint.parent / "model.gguf").write_bytes(b"precious")
    deadly = (
        "import pigguf.common.atomic_write as f; "
        "f.AtomicFile.prepare = lambda self: os.kill(os.getpid(), signal.SIGKILL)"
    )
    finished = run_limited(checkpoint, deadly)
    assert finished.returncode == -signal.SIGKILL
    assert sorted(os.listdir(checkpoint.parent)) == ["model.gguf", "piglet-4x"]
    assert (checkpoint.parent / "model.gguf").read_bytes() == b"precious"


WAITING = """
import sys
from pigguf.cli import main, progress_bars
from pigguf.progress import SilentProgress

class Waiting(SilentProgress):  # reports that the work has begun, and waits to be terminated
    def advance(self, amount):
        print("under way", flush=True)
        sys.stdin.read()

progress_bars.progress_bar = Waiting
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT], ids=lambda n: n.name)
@pytest.mark.parametrize("verb", ["convert", "export", "quantize"])
def test_a_signal_in_the_middle_ends_the_process_and_leaves_nothing(
    verb: str, number: signal.Signals, checkpoint: Path, tmp_path: Path
) -> None:
    output = tmp_path / "output"
    output.mkdir()
    arguments = {
        "convert": ["convert", checkpoint, "-o", output / "model.gguf"],
        "export": ["export", convert(checkpoint), output / "exported"],
        "quantize": ["quantize", convert(checkpoint), output / "model.gguf", "--type", "Q8_0"],
    }[verb]
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "under way\n"
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert "Traceback" not in stderr
    assert os.listdir(output) == []


@pytest.fixture
def reachable() -> Iterator[Path]:
    """Make a directory that every user can enter, unlike tmp_path."""
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.mark.skipif(sys.platform != "linux", reason="needs setpriv (Linux)")
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_file_without_read_permission_is_reported(name: str, checkpoint: Path, reachable: Path) -> None:
    """As another user where this is root, whom no permission stops."""
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if os.getuid() == 0 else []
    copy = Path(shutil.copytree(checkpoint, reachable / "piglet"))
    for path in (copy, *copy.iterdir()):
        path.chmod(0o755)
    (copy / name).chmod(0)
    finished = subprocess.run(
        [*other, sys.executable, "-m", "pigguf", "convert", str(copy), "--dry-run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.stderr.splitlines()[0] == f"error: {copy / name}: Permission denied"
    assert "chmod" in finished.stderr
    assert finished.returncode == 6


def test_converting_imports_no_torch(checkpoint: Path) -> None:
    code = "import sys, pigguf; pigguf.convert(*sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, str(checkpoint), str(checkpoint.parent / "model.gguf")]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "False"


# ---- quantize ------------------------------------------------------------------------------------


def test_quantizing_what_is_quantized_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    quantized = convert(checkpoint, type="Q8_0")
    with pytest.raises(UnsupportedModel, match="is Q8_0, and quantizing it again"):
        pigguf.quantize(quantized, tmp_path / "again.gguf", type="Q4_K_M")
    assert not (tmp_path / "again.gguf").exists()


def test_quantizing_a_file_onto_itself_is_refused(checkpoint: Path) -> None:
    floats = convert(checkpoint)
    before = floats.read_bytes()
    with pytest.raises(UsageError, match="both source and output"):
        pigguf.quantize(floats, floats, type="Q8_0")
    assert floats.read_bytes() == before


def test_a_bfloat16_checkpoint_is_copied_bit_for_bit(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path / "piglet", dtype=torch.bfloat16)
    source = load_file(path / "model.safetensors")["lm_head.weight"]
    file = read_header(convert(path, type="BF16"))
    with TensorData(file) as data:
        written = data.rows(file.tensors["output.weight"], 0, VOCAB_SIZE).view(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(written.view(np.uint16), source.view(np.uint16))
