"""Downloads from a hub on loopback: which files are downloaded, what is resumed, verified and refused.

huggingface_hub reads its settings when it is imported: in this process they are patched for one test, and
child processes get them in their environment.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from support.adapters import make_adapter
from support.hub_server import TOKEN, FakeHub, Fault, Repository, commit_of, repository_files
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint.adapter import ADAPTER_FILES
from pigguf.checkpoint.checkpoint import CHECKPOINT_FILES
from pigguf.checkpoint.resolve_source import HubRepo, SourceFiles, parse_hub_repo, resolve_source
from pigguf.errors import CheckpointError, HubError, OutputError, PigError

CONFIG_FILES = [
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
]
WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def hub(tiny: Path) -> Iterator[FakeHub]:
    """Serve the tiny checkpoint as org/tiny."""
    with FakeHub({"org/tiny": Repository.of(tiny)}) as hub:
        yield hub
        huggingface_hub.close_session()


class RecordedProgress:
    """A Progress that records of each stage its name, its total, how much was done, and the unit."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.stages.append([stage, total, 0, unit])

    def advance(self, amount: float) -> None:
        self.stages[-1][2] += amount

    def end(self) -> None:
        pass


class HubClient:
    """A working directory with a cache, whose hub is the fake one."""

    def __init__(self, hub: FakeHub, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.directory, self.home = hub, directory, directory / "huggingface"
        self._monkeypatch = monkeypatch
        monkeypatch.chdir(directory)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        self.set_constants(
            ENDPOINT=hub.url,
            HUGGINGFACE_CO_URL_TEMPLATE=f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            HF_HOME=str(self.home),
            HF_HUB_CACHE=str(self.home / "hub"),
            HF_TOKEN_PATH=str(self.home / "token"),
            HF_HUB_OFFLINE=False,
        )

    def set_constants(self, **values: Any) -> None:
        """Patch huggingface_hub.constants."""
        for name, value in values.items():
            self._monkeypatch.setattr(constants, name, value)

    def set_token(self, token: str) -> None:
        self._monkeypatch.setenv("HF_TOKEN", token)

    def download(
        self, source: str = "org/tiny", files: SourceFiles = CHECKPOINT_FILES
    ) -> tuple[Path, RecordedProgress]:
        progress = RecordedProgress()
        return resolve_source(source, files, progress), progress

    def convert(self, source: str | Path = "org/tiny", adapter: str | Path | None = None) -> bytes:
        pigguf.convert(source, "out.gguf", adapter=adapter, type="F32")
        return Path("out.gguf").read_bytes()

    def assert_error(self, error: type[PigError], *words: str, source: str = "org/tiny") -> None:
        """Check that a download fails with exactly this error, and these words in its message or hint."""
        with pytest.raises(error) as raised:
            self.download(source)
        assert type(raised.value) is error
        assert raised.value.hint
        for word in words:
            assert word in f"{raised.value.message} {raised.value.hint}"

    def pigguf_command(self, *arguments: str, before: str = "") -> list[str]:
        """Return a child process's command; `before` is Python that runs in it first."""
        code = f"import sys\n{before}\nfrom pigguf.cli import main\nmain(sys.argv[1:])"
        return [sys.executable, *(["-c", code] if before else ["-m", "pigguf"]), *arguments]

    def run_pigguf(
        self, *arguments: str, before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.pigguf_command(*arguments, before=before),
            cwd=self.directory,
            env=self.hub.environment(self.home, **environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def incomplete_files(self) -> list[Path]:
        """Return huggingface_hub's temporary files of downloads that have not ended."""
        return list(self.home.rglob("*.incomplete"))


@pytest.fixture
def client(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    return HubClient(hub, tmp_path, monkeypatch)


def test_a_hub_name_converts_to_the_same_gguf_as_its_directory(
    client: HubClient, hub: FakeHub, tiny: Path
) -> None:
    other_files = distinct_files(
        "pytorch_model.bin", "consolidated.00.pth", "training_args.bin", "onnx/model.safetensors"
    )
    hub.repositories["org/tiny"].files |= other_files
    arguments = ["convert", "org/tiny", "-o", "downloaded.gguf", "--type", "F32"]
    finished = client.run_pigguf(*arguments, HF_TOKEN=TOKEN)
    assert (finished.returncode, finished.stderr) == (0, "")
    downloaded = Path("downloaded.gguf").read_bytes()
    assert downloaded == client.convert(tiny)
    assert hub.downloads() == [*CONFIG_FILES, WEIGHTS]
    assert {request.token for request in hub.requests if request.file} == {TOKEN}
    assert len(hub.cdn_requests) == 2  # the large ones
    assert {request.token for request in hub.cdn_requests} == {None}  # and no token goes there

    hub.clear_requests()
    assert client.convert() == downloaded
    assert hub.downloads() == []
    hub.clear_requests()
    Path("downloaded.gguf").unlink()
    assert client.run_pigguf(*arguments, HF_HUB_OFFLINE="1").returncode == 0
    assert Path("downloaded.gguf").read_bytes() == downloaded
    assert hub.requests == []


def test_huggingface_hub_finds_the_files_in_its_cache(client: HubClient, hub: FakeHub) -> None:
    snapshot, _ = client.download()
    assert snapshot.name == commit_of(hub.repositories["org/tiny"].files)
    hub.clear_requests()
    for name in (*CONFIG_FILES, WEIGHTS):
        assert huggingface_hub.hf_hub_download("org/tiny", name) == str(snapshot / name)
    assert {request.method for request in hub.requests if request.file} == {"HEAD"}  # nothing is downloaded
    assert hub.cdn_requests == []
    client.set_constants(HF_HUB_OFFLINE=True)
    assert huggingface_hub.hf_hub_download("org/tiny", WEIGHTS) == str(snapshot / WEIGHTS)
    scan = huggingface_hub.scan_cache_dir(client.home / "hub")
    assert not scan.warnings
    assert [repository.repo_id for repository in scan.repos] == ["org/tiny"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(
    client: HubClient, hub: FakeHub, tiny: Path, tmp_path: Path
) -> None:
    longer = shutil.copytree(tiny, tmp_path / "longer")
    edit_config(longer, max_position_embeddings=256)
    repository = hub.repositories["org/tiny"]
    repository.revisions = {"v2": repository_files(longer), "refs/pr/1": repository_files(longer)}
    windows = {"v2": 256, "refs/pr/1": 256, commit_of(repository.files): 64, "main": 64}
    for offline in (False, True):
        client.set_constants(HF_HUB_OFFLINE=offline)
        for revision, window in windows.items():
            result = pigguf.convert(f"org/tiny@{revision}", dry_run=True)
            assert result.plan.rope.context_length == window
    weights = [request for request in hub.cdn_requests if WEIGHTS in request.path]
    assert len(weights) == 1  # the revisions share them


def test_only_the_new_files_of_a_revision_are_downloaded(
    client: HubClient, hub: FakeHub, tiny: Path, tmp_path: Path
) -> None:
    longer = shutil.copytree(tiny, tmp_path / "longer")
    edit_config(longer, max_position_embeddings=256)
    hub.repositories["org/tiny"].revisions = {"v2": repository_files(longer)}
    client.download()
    hub.clear_requests()
    size = (longer / "config.json").stat().st_size
    path, progress = client.download("org/tiny@v2")
    assert hub.downloads() == ["config.json"]
    assert progress.stages == [["downloading config.json", size, size, "bytes"]]
    assert {file.name for file in path.iterdir()} == {*CONFIG_FILES, WEIGHTS}


# ---- which files ---------------------------------------------------------------------------------


def index(*shards: str) -> bytes:
    weight_map = {f"tensor {number}": shard for number, shard in enumerate(shards)}
    return json.dumps({"weight_map": weight_map}).encode()


def distinct_files(*names: str) -> dict[str, bytes]:
    """Return files whose contents differ."""
    return {name: name.encode() for name in names}


SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
SHARDS_INDEX = {"model.safetensors.index.json": index(*SHARDS)}
BIN = ["pytorch_model-1.bin", "pytorch_model-2.bin"]
BIN_INDEX = {"pytorch_model.bin.index.json": index(*BIN)}
META = ["consolidated.00.pth", "consolidated.01.pth"]
ADAPTER_BIN = ["adapter_config.json", "adapter_model.bin"]

# kind, files beside config.json, which of them are downloaded
LAYOUTS: dict[str, tuple[str, dict[str, bytes], list[str]]] = {
    "shards, and files that are not in the index": (
        "checkpoint",
        distinct_files(*SHARDS, "consolidated.safetensors", *BIN, *META, "params.json")
        | SHARDS_INDEX
        | BIN_INDEX,
        [*SHARDS_INDEX, *SHARDS],
    ),
    "one file beside shards": ("checkpoint", distinct_files(*SHARDS, WEIGHTS) | SHARDS_INDEX, [WEIGHTS]),
    "torch's one file": (
        "checkpoint",
        distinct_files("pytorch_model.bin", "training_args.bin", *META),
        ["pytorch_model.bin"],
    ),
    "torch's shards": (
        "checkpoint",
        distinct_files(*BIN, "tf_model.h5", *META) | BIN_INDEX,
        [*BIN_INDEX, *BIN],
    ),
    "Meta's shards": (
        "checkpoint",
        distinct_files("params.json", "checklist.chk", *META),
        ["params.json", *META],
    ),
    "an adapter": (
        "adapter",
        distinct_files("adapter_model.safetensors", *ADAPTER_BIN, "optimizer.pt"),
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
    "LongLoRA's": (
        "adapter",
        distinct_files(*ADAPTER_BIN, "trainable_params.bin", "tokenizer.model"),
        [*ADAPTER_BIN, "trainable_params.bin"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_the_needed_files_are_downloaded(layout: str, client: HubClient, hub: FakeHub) -> None:
    kind, files, expected = LAYOUTS[layout]
    hub.repositories["org/other"] = Repository({"config.json": b"{}", "README.md": b"read", **files})
    path, progress = client.download(
        "org/other", {"checkpoint": CHECKPOINT_FILES, "adapter": ADAPTER_FILES}[kind]
    )
    assert {file.name for file in path.iterdir()} == {"config.json", *expected} == set(hub.downloads())
    assert all(total == done and unit == "bytes" for _, total, done, unit in progress.stages)
    size = sum(len(files[name]) for name in expected) + len(b"{}")
    assert sum(total for _, total, *_ in progress.stages) == size


def test_equal_files_are_downloaded_once(client: HubClient, hub: FakeHub) -> None:
    hub.repositories["org/equal"] = Repository(dict.fromkeys(["params.json", *META], b"w"))
    path, progress = client.download("org/equal")
    assert [(path / name).read_bytes() for name in META] == [b"w", b"w"]
    assert len(hub.downloads()) == 1
    assert [stage[1:3] for stage in progress.stages] == [[3, 3]]


def test_pytorch_weights_are_downloaded(client: HubClient, hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    older = shutil.copytree(tiny, tmp_path / "older")
    torch.save(load_file(older / WEIGHTS), older / "pytorch_model.bin")
    (older / WEIGHTS).unlink()
    hub.repositories["org/older"] = Repository.of(older)
    assert client.convert("org/older") == client.convert(older)
    assert hub.downloads() == [*CONFIG_FILES, "pytorch_model.bin"]


def test_an_adapter_is_downloaded(client: HubClient, hub: FakeHub, tiny: Path, tmp_path: Path) -> None:
    rope = {
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    }
    adapter = make_adapter(tiny, tmp_path / "tiny-4x", rope=rope)
    hub.repositories["someone/tiny-4x"] = Repository.of(adapter)
    assert client.convert("org/tiny", "someone/tiny-4x") == client.convert(tiny, adapter)
    adapter_files = ["adapter_config.json", "config.json", "adapter_model.safetensors"]
    assert hub.file_gets == [*CONFIG_FILES, WEIGHTS, *adapter_files]


@pytest.mark.slow
def test_finetune_accepts_hub_names(client: HubClient, hub: FakeHub, novel: str) -> None:
    Path("prose.txt").write_text(novel, encoding="utf-8")
    options = ["--factor", "2", "--text", "prose.txt", "-o", "longer", "--steps", "1", "--rank", "2"]
    finished = client.run_pigguf("finetune", "org/tiny", *options)
    assert finished.returncode == 0, finished.stderr
    assert hub.downloads() == [*CONFIG_FILES, WEIGHTS]
    assert Path("longer", "adapter_model.safetensors").exists()


# ---- names ---------------------------------------------------------------------------------------


def test_which_sources_are_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse_hub_repo("org/tiny") == HubRepo("org/tiny", "main")
    assert parse_hub_repo("org/tiny@refs/pr/1") == HubRepo("org/tiny", "refs/pr/1")
    paths = ["tiny", "./org/tiny", "../org/tiny", "/org/tiny", "~/tiny", "org/", "a/b/c", Path("org/tiny")]
    assert [path for path in paths if parse_hub_repo(path) is not None] == []
    for bad in ("org/tiny@", "org/tiny@..", "org/tiny@/etc", "org/tiny@a/../../b"):
        with pytest.raises(CheckpointError, match="is not a revision") as raised:
            parse_hub_repo(bad)
        assert raised.value.hint
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert parse_hub_repo("org/tiny") is None


def test_a_local_directory_comes_first(client: HubClient, hub: FakeHub, tiny: Path) -> None:
    finished = client.run_pigguf("convert", "./org/tiny")
    assert finished.returncode == 3
    assert "no such directory" in finished.stderr
    assert "hint: " in finished.stderr
    shutil.copytree(tiny, "org/tiny")
    client.convert()
    assert hub.requests == []


# ---- broken downloads ----------------------------------------------------------------------------


def test_a_broken_connection_is_resumed(client: HubClient, hub: FakeHub, tiny: Path) -> None:
    client.set_constants(DOWNLOAD_CHUNK_SIZE=10_000)
    hub.faults[WEIGHTS] = [Fault(cut=70_000), Fault(cut=0), Fault(cut=50_000)]
    assert client.convert() == client.convert(tiny)
    ranges = [request.range for request in hub.cdn_requests if WEIGHTS in request.path]
    assert ranges == [None, "bytes=70000-", "bytes=70000-", "bytes=120000-"]


def test_a_resumed_download_reports_its_progress(client: HubClient, hub: FakeHub, tiny: Path) -> None:
    client.set_constants(DOWNLOAD_CHUNK_SIZE=10_000)
    hub.faults[WEIGHTS] = [Fault(cut=70_000)]
    _, progress = client.download()
    size = (tiny / WEIGHTS).stat().st_size
    assert progress.stages[-1] == [f"downloading {WEIGHTS}", size, size, "bytes"]


def test_a_short_answer_is_refused_and_completed_by_the_next_run(
    client: HubClient, hub: FakeHub, tiny: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(shorten=1000)]
    client.assert_error(HubError, WEIGHTS, "does not have the", "bytes that the hub lists", "run the command")
    assert not client.incomplete_files()
    assert client.convert() == client.convert(tiny)


def test_a_server_without_ranges_sends_the_whole_file_again(
    client: HubClient, hub: FakeHub, tiny: Path
) -> None:
    client.set_constants(DOWNLOAD_CHUNK_SIZE=10_000)
    hub.faults[WEIGHTS] = [Fault(cut=70_000), Fault(ignore_range=True)]
    _, progress = client.download()
    size = (tiny / WEIGHTS).stat().st_size
    assert progress.stages[-1] == [f"downloading {WEIGHTS}", size, size, "bytes"]
    assert client.convert() == client.convert(tiny)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_stopped_download_is_completed_by_the_next_run(
    number: signal.Signals, code: int, client: HubClient, hub: FakeHub, tiny: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000, stall=True)]
    command, environment = client.pigguf_command("convert", "org/tiny"), hub.environment(client.home)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        assert hub.stalled.wait(60)
        assert child.poll() is None
        child.send_signal(number)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == code
    assert "Traceback" not in stderr
    if number is signal.SIGINT:
        assert not client.incomplete_files()
    size = (tiny / WEIGHTS).stat().st_size
    hub.clear_requests()
    _, progress = client.download()
    assert progress.stages == [[f"downloading {WEIGHTS}", size, size, "bytes"]]
    assert hub.downloads() == [WEIGHTS]  # the completed files are kept
    assert client.convert() == client.convert(tiny)


def test_two_processes_download_once(client: HubClient, hub: FakeHub) -> None:
    command, environment = (
        client.pigguf_command("convert", "org/tiny", "--dry-run"),
        hub.environment(client.home),
    )
    children = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(60) for child in children] == [0, 0]
    assert sorted(hub.file_gets) == sorted([*CONFIG_FILES, WEIGHTS])


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])  # checked by git's sha1, and by sha256
def test_a_damaged_file_is_deleted_and_downloaded_again(
    file: str, client: HubClient, hub: FakeHub, tiny: Path
) -> None:
    hub.faults[file] = [Fault(corrupt=True)]
    client.assert_error(
        HubError, f"org/tiny: {file} was downloaded with the digest", "the hub lists", "run the"
    )
    assert not [path for path in client.home.rglob("*") if path.name == file]
    assert not client.incomplete_files()
    assert client.convert() == client.convert(tiny)
    assert {request.range for request in hub.cdn_requests} == {None}


def test_a_file_that_was_truncated_in_the_cache_is_downloaded_again(client: HubClient, hub: FakeHub) -> None:
    snapshot, _ = client.download()
    whole = (snapshot / WEIGHTS).read_bytes()
    (snapshot / WEIGHTS).resolve().write_bytes(whole[:1000])
    hub.clear_requests()
    client.download()
    assert hub.downloads() == [WEIGHTS]
    assert (snapshot / WEIGHTS).read_bytes() == whole


def test_a_file_of_an_unfinished_snapshot_is_verified(client: HubClient, hub: FakeHub) -> None:
    snapshot, _ = client.download()
    (client.home / "hub" / "models--org--tiny" / "refs" / "main").unlink()  # as if stopped before the end
    expected = (snapshot / WEIGHTS).read_bytes()
    (snapshot / WEIGHTS).resolve().write_bytes(bytes(len(expected)))
    hub.clear_requests()
    client.download()
    assert hub.downloads() == [WEIGHTS]
    assert (snapshot / WEIGHTS).read_bytes() == expected


def test_completed_files_are_kept_when_the_connection_breaks_for_good(
    client: HubClient, hub: FakeHub, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set_constants(DOWNLOAD_CHUNK_SIZE=10_000)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # between the retries
    hub.faults[WEIGHTS] = [Fault(cut=70_000), *[Fault(cut=0)] * 5]
    client.assert_error(HubError, "broke at byte 70,000 of", WEIGHTS, "completed files are kept")
    assert not client.incomplete_files()
    hub.clear_requests()
    assert client.convert() == client.convert(tiny)
    assert hub.downloads() == [WEIGHTS]


# ---- errors ---------------------------------------------------------------------------------------


def test_a_missing_repository_or_revision_is_named(client: HubClient, hub: FakeHub) -> None:
    finished = client.run_pigguf("convert", "org/none")
    assert (finished.returncode, finished.stdout) == (14, "")
    error, hint = finished.stderr.splitlines()
    assert error.startswith(
        f"error: there is no local directory org/none, and no repository org/none on {hub.url}"
    )
    assert hint.startswith("hint: check the name; a private repository needs a token in HF_TOKEN")
    client.assert_error(HubError, "org/tiny has no revision 'v9'", "branch", source="org/tiny@v9")
    client.assert_error(
        CheckpointError, "org/ti ny", "nor a valid name of a hub repository", source="org/ti ny"
    )
    hub.repositories["org/tiny"].private = True
    client.assert_error(HubError, "no repository org/tiny", "(401)", "HF_TOKEN")
    client.set_token(TOKEN)
    client.assert_error(HubError, "no repository org/none", "(404)", source="org/none")
    assert hub.downloads() == []
    client.download()


def test_a_gated_repository_needs_a_token(client: HubClient, hub: FakeHub) -> None:
    hub.repositories["org/tiny"].gated = True
    client.assert_error(
        HubError, "config.json of org/tiny", "its conditions", f"{hub.url}/org/tiny", "HF_TOKEN"
    )
    client.set_token("hf_wrong")
    client.assert_error(HubError, "refuses access to org/tiny with this token", "(401)", "HF_TOKEN")
    client.set_token("")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # where `hf auth login` keeps it
    client.download()


def test_errors_name_the_file(client: HubClient, hub: FakeHub) -> None:
    hub.faults[WEIGHTS] = [Fault(status=403)]
    client.assert_error(HubError, f"refuses access to {WEIGHTS} of org/tiny", "(403)")
    hub.faults[WEIGHTS] = [Fault(status=404, error_code="EntryNotFound")]
    client.assert_error(HubError, f"lists {WEIGHTS} of org/tiny but does not have it")
    hub.faults[WEIGHTS] = [Fault(lengthen=1)]
    client.assert_error(HubError, WEIGHTS, "does not have the", "bytes that the hub lists")
    hub.faults[WEIGHTS] = [Fault(status=503)]
    client.assert_error(HubError, f"answers 503 for {WEIGHTS} of org/tiny", "completed files are kept")
    hub.faults["api"] = [Fault(status=500)]
    client.assert_error(HubError, "answers 500 for org/tiny", "later")


@pytest.mark.parametrize("wrong", [{"blobId": "../../../../escaped"}, {"blobId": None}, {"size": None}])
def test_unusable_metadata_is_refused(wrong: dict[str, Any], client: HubClient, hub: FakeHub) -> None:
    hub.repositories["org/tiny"].wrong_metadata = {"config.json": wrong}
    client.assert_error(HubError, "lists config.json with", str(next(iter(wrong.values()))), "HF_ENDPOINT")
    assert not list(client.directory.rglob("escaped*"))


def test_a_repository_without_weights_is_named(client: HubClient, hub: FakeHub) -> None:
    hub.repositories["org/gguf"] = Repository({"config.json": b"{}", "x.Q4_K_M.gguf": b"GGUF"})
    client.assert_error(
        HubError, "org/gguf", "has no weights of a checkpoint", "x.Q4_K_M.gguf", source="org/gguf"
    )
    hub.repositories["org/lora"] = Repository(distinct_files(*ADAPTER_BIN))
    client.assert_error(HubError, "org/lora", "BASE --adapter org/lora", source="org/lora")
    assert hub.downloads() == []
    incomplete = {"model.safetensors.index.json": index(SHARDS[0], "absent.safetensors")}
    hub.repositories["org/incomplete"] = Repository(distinct_files("config.json", SHARDS[0]) | incomplete)
    client.assert_error(
        HubError, "org/incomplete", "no absent.safetensors", *incomplete, source="org/incomplete"
    )
    assert hub.downloads() == ["config.json", *incomplete]


def test_without_a_network_or_a_hub(client: HubClient, hub: FakeHub) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # but does not listen
        unused = f"http://127.0.0.1:{listener.getsockname()[1]}"
        client.set_constants(ENDPOINT=unused)
        client.assert_error(HubError, f"{unused} cannot be reached", "HF_ENDPOINT", "HF_HUB_OFFLINE=1")
    client.set_constants(ENDPOINT=hub.cdn)
    client.assert_error(HubError, f"{hub.cdn} does not answer for org/tiny as a hub does", "HF_ENDPOINT")
    client.set_constants(HF_HUB_OFFLINE=True)
    client.assert_error(HubError, "org/tiny", "not in the cache", str(client.home), "HF_HUB_OFFLINE")


def test_an_invalid_setting_of_huggingface_hub_is_reported(client: HubClient) -> None:
    finished = client.run_pigguf("convert", "org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert finished.returncode == 14
    assert "org/tiny cannot be downloaded" in finished.stderr
    assert "'soon'" in finished.stderr
    assert "hint: check HF_ENDPOINT" in finished.stderr


def test_a_cache_that_cannot_be_written(client: HubClient) -> None:
    client.home.write_text("no directory")
    client.assert_error(OutputError, str(client.home), "Not a directory", "HF_HOME")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file size")
def test_completed_files_are_kept_when_the_disk_fills_up(client: HubClient, hub: FakeHub, tiny: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))"
    finished = client.run_pigguf("convert", "org/tiny", before=limit)
    assert finished.returncode == 6
    assert "File too large" in finished.stderr
    assert "completed files are kept" in finished.stderr
    assert not client.incomplete_files()
    hub.clear_requests()
    assert client.convert() == client.convert(tiny)
    assert hub.downloads() == [WEIGHTS]


def test_a_model_larger_than_the_disk_is_refused_at_once(client: HubClient, hub: FakeHub) -> None:
    huge = {"size": 10**18, "lfs": {"sha256": "0" * 64, "size": 10**18, "pointerSize": 134}}
    hub.repositories["org/tiny"].wrong_metadata = {WEIGHTS: huge}
    client.assert_error(OutputError, "org/tiny needs 1000000000.00 GB more", "GB free", "HF_HOME")
    assert WEIGHTS not in hub.downloads()


def test_the_package_that_is_missing_is_named(client: HubClient) -> None:
    finished = client.run_pigguf("convert", "org/tiny", before="sys.modules['huggingface_hub'] = None")
    assert finished.returncode == 13
    assert "org/tiny is not a local directory" in finished.stderr
    assert 'hint: pip install -e ".[hub]" in the clone' in finished.stderr
