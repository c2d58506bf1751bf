"""Hub names against a real server on loopback: what is asked for, what is resumed, what is refused and how.

The library reads its settings when it is imported: here they are set for one test, and child
processes, as a person has them, get them in their environment.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from support.adapters import make_adapter
from support.hub_server import TOKEN, Fault, Hub, Repository, commit_of, read
from support.tiny_checkpoints import edit_config, make_checkpoint

import pigguf
from pigguf.checkpoint.adapter import ADAPTER
from pigguf.checkpoint.checkpoint import CHECKPOINT
from pigguf.checkpoint.source import HubName, Kind, directory_of, hub_name
from pigguf.errors import CheckpointError, HubError, OutputError, PigError

SETTINGS = [
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
def hub(tiny: Path) -> Iterator[Hub]:
    """A hub with the tiny checkpoint as org/tiny."""
    with Hub({"org/tiny": Repository.of(tiny)}) as hub:
        yield hub
        huggingface_hub.close_session()


class Heard:
    """A Progress that remembers: stage, its total, what was done of it, and the unit."""

    def __init__(self) -> None:
        self.stages: list[list[Any]] = []

    def begin(self, stage: str, total: float, unit: str) -> None:
        self.stages.append([stage, total, 0, unit])

    def advance(self, amount: float) -> None:
        self.stages[-1][2] += amount

    def end(self) -> None:
        pass


class Desk:
    """Where somebody works: a directory, a cache, and the hub."""

    def __init__(self, hub: Hub, place: Path, settings: pytest.MonkeyPatch) -> None:
        self.hub, self.place, self.home = hub, place, place / "huggingface"
        self._settings = settings
        settings.chdir(place)
        settings.delenv("HF_TOKEN", raising=False)
        self.set(
            ENDPOINT=hub.url,
            HUGGINGFACE_CO_URL_TEMPLATE=f"{hub.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            HF_HOME=str(self.home),
            HF_HUB_CACHE=str(self.home / "hub"),
            HF_TOKEN_PATH=str(self.home / "token"),
            HF_HUB_OFFLINE=False,
        )

    def set(self, **settings: Any) -> None:
        """Settings of the library, by their names there."""
        for name, value in settings.items():
            self._settings.setattr(constants, name, value)

    def token(self, token: str) -> None:
        self._settings.setenv("HF_TOKEN", token)

    def fetch(self, source: str = "org/tiny", kind: Kind = CHECKPOINT) -> tuple[Path, Heard]:
        heard = Heard()
        return directory_of(source, kind, heard), heard

    def convert(self, source: str | Path = "org/tiny", adapter: str | Path | None = None) -> bytes:
        pigguf.convert(source, "out.gguf", adapter=adapter, type="F32")
        return Path("out.gguf").read_bytes()

    def refused(self, kind: type[PigError], *words: str, source: str = "org/tiny") -> None:
        """A fetch that fails with the words in its message or its hint, and with nothing but itself."""
        with pytest.raises(kind) as raised:
            self.fetch(source)
        assert type(raised.value) is kind
        assert raised.value.hint
        for word in words:
            assert word in f"{raised.value.message} {raised.value.hint}"

    def command(self, *arguments: str, before: str = "") -> list[str]:
        """A child's command; `before` is Python that runs in it first."""
        code = f"import sys\n{before}\nfrom pigguf.cli import main\nmain(sys.argv[1:])"
        return [sys.executable, *(["-c", code] if before else ["-m", "pigguf"]), *arguments]

    def pigguf(
        self, *arguments: str, before: str = "", **environment: str
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*arguments, before=before),
            cwd=self.place,
            env=self.hub.environment(self.home, **environment),
            capture_output=True,
            text=True,
            check=False,
        )

    def partial(self) -> Path:
        """The one file that was begun."""
        [path] = self.home.rglob("*.incomplete")
        return path


@pytest.fixture
def desk(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(hub, tmp_path, monkeypatch)


def test_a_hub_name_becomes_the_gguf_that_its_directory_becomes(desk: Desk, hub: Hub, tiny: Path) -> None:
    beside = some("pytorch_model.bin", "consolidated.00.pth", "training_args.bin", "onnx/model.safetensors")
    hub.repositories["org/tiny"].files |= beside
    arguments = ["convert", "org/tiny", "-o", "fetched.gguf", "--type", "F32"]
    finished = desk.pigguf(*arguments, HF_TOKEN=TOKEN)
    assert (finished.returncode, finished.stderr) == (0, "")
    fetched = Path("fetched.gguf").read_bytes()
    assert fetched == desk.convert(tiny)
    assert hub.asked() == [*SETTINGS, WEIGHTS]
    assert {request.token for request in hub.requests if request.file} == {TOKEN}
    assert len(hub.cdn_requests) == 2  # the large ones
    assert {request.token for request in hub.cdn_requests} == {None}  # and no token goes there

    hub.forget()
    assert desk.convert() == fetched
    assert hub.asked() == []
    hub.forget()
    Path("fetched.gguf").unlink()
    assert desk.pigguf(*arguments, HF_HUB_OFFLINE="1").returncode == 0
    assert Path("fetched.gguf").read_bytes() == fetched
    assert hub.requests == []


def test_the_cache_is_as_the_library_keeps_it(desk: Desk, hub: Hub) -> None:
    snapshot, _ = desk.fetch()
    assert snapshot.name == commit_of(hub.repositories["org/tiny"].files)
    hub.forget()
    for name in (*SETTINGS, WEIGHTS):
        assert huggingface_hub.hf_hub_download("org/tiny", name) == str(snapshot / name)
    assert {request.method for request in hub.requests if request.file} == {"HEAD"}  # nothing is fetched
    assert hub.cdn_requests == []
    desk.set(HF_HUB_OFFLINE=True)
    assert huggingface_hub.hf_hub_download("org/tiny", WEIGHTS) == str(snapshot / WEIGHTS)
    scan = huggingface_hub.scan_cache_dir(desk.home / "hub")
    assert not scan.warnings
    assert [repository.repo_id for repository in scan.repos] == ["org/tiny"]


def test_a_revision_is_a_branch_a_tag_or_a_commit(desk: Desk, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(tiny, tmp_path / "longer")
    edit_config(longer, max_position_embeddings=256)
    repository = hub.repositories["org/tiny"]
    repository.revisions = {"v2": read(longer), "refs/pr/1": read(longer)}
    windows = {"v2": 256, "refs/pr/1": 256, commit_of(repository.files): 64, "main": 64}
    for offline in (False, True):
        desk.set(HF_HUB_OFFLINE=offline)
        for revision, window in windows.items():
            result = pigguf.convert(f"org/tiny@{revision}", dry_run=True)
            assert result.plan.rope.context_length == window
    weights = [request for request in hub.cdn_requests if WEIGHTS in request.path]
    assert len(weights) == 1  # the revisions share them


def test_a_revision_fetches_what_is_new_in_it(desk: Desk, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    longer = shutil.copytree(tiny, tmp_path / "longer")
    edit_config(longer, max_position_embeddings=256)
    hub.repositories["org/tiny"].revisions = {"v2": read(longer)}
    desk.fetch()
    hub.forget()
    size = (longer / "config.json").stat().st_size
    path, heard = desk.fetch("org/tiny@v2")
    assert hub.asked() == ["config.json"]
    assert heard.stages == [["fetching config.json", size, size, "bytes"]]
    assert {file.name for file in path.iterdir()} == {*SETTINGS, WEIGHTS}


# ---- which files ---------------------------------------------------------------------------------


def index(*shards: str) -> bytes:
    weight_map = {f"tensor {number}": shard for number, shard in enumerate(shards)}
    return json.dumps({"weight_map": weight_map}).encode()


def some(*names: str) -> dict[str, bytes]:
    """Files that only differ."""
    return {name: name.encode() for name in names}


SHARDS = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
SHARDS_INDEX = {"model.safetensors.index.json": index(*SHARDS)}
BIN = ["pytorch_model-1.bin", "pytorch_model-2.bin"]
BIN_INDEX = {"pytorch_model.bin.index.json": index(*BIN)}
META = ["consolidated.00.pth", "consolidated.01.pth"]
ADAPTER_BIN = ["adapter_config.json", "adapter_model.bin"]

# kind, what there is beside config.json, what of that is fetched
LAYOUTS: dict[str, tuple[str, dict[str, bytes], list[str]]] = {
    "shards, and others that no index names": (
        "checkpoint",
        some(*SHARDS, "consolidated.safetensors", *BIN, *META, "params.json") | SHARDS_INDEX | BIN_INDEX,
        [*SHARDS_INDEX, *SHARDS],
    ),
    "one file beside shards": ("checkpoint", some(*SHARDS, WEIGHTS) | SHARDS_INDEX, [WEIGHTS]),
    "torch's one file": (
        "checkpoint",
        some("pytorch_model.bin", "training_args.bin", *META),
        ["pytorch_model.bin"],
    ),
    "torch's shards": ("checkpoint", some(*BIN, "tf_model.h5", *META) | BIN_INDEX, [*BIN_INDEX, *BIN]),
    "Meta's pieces": ("checkpoint", some("params.json", "checklist.chk", *META), ["params.json", *META]),
    "an adapter": (
        "adapter",
        some("adapter_model.safetensors", *ADAPTER_BIN, "optimizer.pt"),
        ["adapter_config.json", "adapter_model.safetensors"],
    ),
    "LongLoRA's": (
        "adapter",
        some(*ADAPTER_BIN, "trainable_params.bin", "tokenizer.model"),
        [*ADAPTER_BIN, "trainable_params.bin"],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_what_is_read_is_fetched(layout: str, desk: Desk, hub: Hub) -> None:
    kind, files, wanted = LAYOUTS[layout]
    hub.repositories["org/other"] = Repository({"config.json": b"{}", "README.md": b"read", **files})
    path, heard = desk.fetch("org/other", {"checkpoint": CHECKPOINT, "adapter": ADAPTER}[kind])
    assert {file.name for file in path.iterdir()} == {"config.json", *wanted} == set(hub.asked())
    assert all(total == done and unit == "bytes" for _, total, done, unit in heard.stages)
    size = sum(len(files[name]) for name in wanted) + len(b"{}")
    assert sum(total for _, total, *_ in heard.stages) == size


def test_equal_files_are_fetched_once(desk: Desk, hub: Hub) -> None:
    hub.repositories["org/twins"] = Repository(dict.fromkeys(["params.json", *META], b"w"))
    path, heard = desk.fetch("org/twins")
    assert [(path / name).read_bytes() for name in META] == [b"w", b"w"]
    assert len(hub.asked()) == 1
    assert [stage[1:3] for stage in heard.stages] == [[3, 3]]


def test_torch_files_come_from_the_hub_too(desk: Desk, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    older = shutil.copytree(tiny, tmp_path / "older")
    torch.save(load_file(older / WEIGHTS), older / "pytorch_model.bin")
    (older / WEIGHTS).unlink()
    hub.repositories["org/older"] = Repository.of(older)
    assert desk.convert("org/older") == desk.convert(older)
    assert hub.asked() == [*SETTINGS, "pytorch_model.bin"]


def test_an_adapter_comes_from_the_hub_too(desk: Desk, hub: Hub, tiny: Path, tmp_path: Path) -> None:
    rope = {
        "max_position_embeddings": 256,
        "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    }
    adapter = make_adapter(tiny, tmp_path / "tiny-4x", rope=rope)
    hub.repositories["someone/tiny-4x"] = Repository.of(adapter)
    assert desk.convert("org/tiny", "someone/tiny-4x") == desk.convert(tiny, adapter)
    asked = [request.path for request in hub.requests if "/someone/tiny-4x/resolve/" in request.path]
    wanted = ["adapter_config.json", "config.json", "adapter_model.safetensors"]
    assert [path.rpartition("/")[2] for path in asked] == wanted


@pytest.mark.slow
def test_fine_tuning_takes_hub_names(desk: Desk, hub: Hub, novel: str) -> None:
    Path("prose.txt").write_text(novel, encoding="utf-8")
    options = ["--factor", "2", "--text", "prose.txt", "-o", "longer", "--steps", "1", "--rank", "2"]
    finished = desk.pigguf("finetune", "org/tiny", *options)
    assert finished.returncode == 0, finished.stderr
    assert hub.asked() == [*SETTINGS, WEIGHTS]
    assert Path("longer", "adapter_model.safetensors").exists()


# ---- names ---------------------------------------------------------------------------------------


def test_what_is_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_name("org/tiny") == HubName("org/tiny", "main")
    assert hub_name("org/tiny@refs/pr/1") == HubName("org/tiny", "refs/pr/1")
    paths = ["tiny", "./org/tiny", "../org/tiny", "/org/tiny", "~/tiny", "org/", "a/b/c", Path("org/tiny")]
    assert [path for path in paths if hub_name(path) is not None] == []
    for bad in ("org/tiny@", "org/tiny@..", "org/tiny@/etc", "org/tiny@a/../../b"):
        with pytest.raises(CheckpointError, match="is no revision") as raised:
            hub_name(bad)
        assert raised.value.hint
    (tmp_path / "org" / "tiny").mkdir(parents=True)
    assert hub_name("org/tiny") is None


def test_what_is_here_wins(desk: Desk, hub: Hub, tiny: Path) -> None:
    finished = desk.pigguf("convert", "./org/tiny")
    assert finished.returncode == 3
    assert "no such directory" in finished.stderr
    assert "hint: " in finished.stderr
    shutil.copytree(tiny, "org/tiny")
    desk.convert()
    assert hub.requests == []


# ---- what breaks, and goes on --------------------------------------------------------------------


def test_a_broken_connection_is_taken_up_where_it_ended(desk: Desk, hub: Hub, tiny: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000), Fault(status=503), Fault(cut=50_000)]
    assert desk.convert() == desk.convert(tiny)
    ranges = [request.range for request in hub.cdn_requests if WEIGHTS in request.path]
    assert ranges == [None, "bytes=70000-", "bytes=70000-", "bytes=120000-"]


def test_a_short_answer_is_completed(desk: Desk, hub: Hub, tiny: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(shorten=1000)]
    assert desk.convert() == desk.convert(tiny)
    assert hub.cdn_requests[-1].range == f"bytes={(tiny / WEIGHTS).stat().st_size - 1000}-"


def test_a_server_without_ranges_sends_it_anew(desk: Desk, hub: Hub, tiny: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000), Fault(whole=True)]
    _, heard = desk.fetch()
    size = (tiny / WEIGHTS).stat().st_size
    assert heard.stages[-1] == [f"fetching {WEIGHTS}", size, size, "bytes"]
    assert desk.convert() == desk.convert(tiny)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGKILL, -signal.SIGKILL)],
)
def test_what_was_stopped_goes_on_in_the_next_run(
    number: signal.Signals, code: int, desk: Desk, hub: Hub, tiny: Path
) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000, stall=True)]
    command, environment = desk.command("convert", "org/tiny"), hub.environment(desk.home)
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as child:
        assert hub.stalled.wait(60)
        while not list(desk.home.rglob("*.incomplete")) or desk.partial().stat().st_size < 60_000:
            assert child.poll() is None
        child.send_signal(number)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == code
    assert "Traceback" not in stderr
    begun, size = desk.partial().stat().st_size, (tiny / WEIGHTS).stat().st_size
    hub.forget()
    _, heard = desk.fetch()
    assert heard.stages == [[f"fetching {WEIGHTS}", size - begun, size - begun, "bytes"]]
    assert hub.asked() == [WEIGHTS]  # the rest is here
    assert [request.range for request in hub.cdn_requests] == [f"bytes={begun}-"]
    assert desk.convert() == desk.convert(tiny)


def test_two_at_a_time_fetch_once(desk: Desk, hub: Hub) -> None:
    command, environment = desk.command("convert", "org/tiny", "--dry-run"), hub.environment(desk.home)
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [child.wait(60) for child in both] == [0, 0]
    files = [request.file for request in hub.requests if request.file]
    assert sorted(files) == sorted([*SETTINGS, WEIGHTS])


@pytest.mark.parametrize("file", ["config.json", WEIGHTS])  # checked by git's sha1, and by sha256
def test_a_damaged_file_is_refused_and_fetched_anew(file: str, desk: Desk, hub: Hub, tiny: Path) -> None:
    hub.faults[file] = [Fault(damage=True)]
    desk.refused(HubError, f"org/tiny: {file} came with the digest", "the hub lists", "run the same again")
    assert not list(desk.home.rglob("*.incomplete"))
    assert desk.convert() == desk.convert(tiny)
    assert {request.range for request in hub.cdn_requests} == {None}


def test_a_file_that_was_cut_in_the_cache_is_fetched_anew(desk: Desk, hub: Hub) -> None:
    snapshot, _ = desk.fetch()
    whole = (snapshot / WEIGHTS).read_bytes()
    (snapshot / WEIGHTS).resolve().write_bytes(whole[:1000])
    hub.forget()
    desk.fetch()
    assert hub.asked() == [WEIGHTS]
    assert (snapshot / WEIGHTS).read_bytes() == whole


def test_a_connection_that_breaks_for_good_keeps_what_came(desk: Desk, hub: Hub, tiny: Path) -> None:
    hub.faults[WEIGHTS] = [Fault(cut=70_000), *[Fault(cut=0)] * 4]
    desk.refused(HubError, "broke at byte 70,000 of", WEIGHTS, "what was fetched stays")
    assert desk.partial().stat().st_size == 70_000
    assert desk.convert() == desk.convert(tiny)
    assert hub.cdn_requests[-1].range == "bytes=70000-"


# ---- what is refused -----------------------------------------------------------------------------


def test_what_the_hub_does_not_have_is_named(desk: Desk, hub: Hub) -> None:
    finished = desk.pigguf("convert", "org/none")
    assert (finished.returncode, finished.stdout) == (14, "")
    error, hint = finished.stderr.splitlines()
    assert error.startswith(
        f"error: there is no directory org/none here, and no repository org/none on {hub.url}"
    )
    assert hint.startswith("hint: see to the name; a private repository needs a token in HF_TOKEN")
    desk.refused(HubError, "org/tiny has no revision 'v9'", "branch", source="org/tiny@v9")
    desk.refused(CheckpointError, "org/ti ny", "no name that a hub can have", source="org/ti ny")
    hub.repositories["org/tiny"].private = True
    desk.refused(HubError, "no repository org/tiny", "(401)", "HF_TOKEN")
    desk.token(TOKEN)
    desk.refused(HubError, "no repository org/none", "(404)", source="org/none")
    assert hub.asked() == []
    desk.fetch()


def test_a_gated_repository_needs_a_token(desk: Desk, hub: Hub) -> None:
    hub.repositories["org/tiny"].gated = True
    desk.refused(HubError, "config.json of org/tiny", "its conditions", f"{hub.url}/org/tiny", "HF_TOKEN")
    desk.token("hf_wrong")
    desk.refused(HubError, "refuses org/tiny to this token", "(401)", "HF_TOKEN")
    desk.token("")
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)  # where `hf auth login` keeps it
    desk.fetch()


def test_what_goes_wrong_with_a_file_is_told(desk: Desk, hub: Hub) -> None:
    hub.faults[WEIGHTS] = [Fault(status=403)]
    desk.refused(HubError, f"refuses {WEIGHTS} of org/tiny", "(403)")
    hub.faults[WEIGHTS] = [Fault(status=404, code="EntryNotFound")]
    desk.refused(HubError, f"lists {WEIGHTS} of org/tiny and does not have it")
    hub.faults[WEIGHTS] = [Fault(lengthen=1)]
    desk.refused(HubError, WEIGHTS, "is longer than the", "bytes that the hub lists")
    hub.faults["api"] = [Fault(status=500)]
    desk.refused(HubError, "answers 500 for org/tiny", "later")


@pytest.mark.parametrize("lie", [{"blobId": "../../../../escaped"}, {"blobId": None}, {"size": None}])
def test_a_hub_that_lies_is_refused(lie: dict[str, Any], desk: Desk, hub: Hub) -> None:
    hub.repositories["org/tiny"].lies = {"config.json": lie}
    desk.refused(HubError, "lists config.json with", str(next(iter(lie.values()))), "HF_ENDPOINT")
    assert not list(desk.place.rglob("escaped*"))


def test_what_holds_no_weights_is_named(desk: Desk, hub: Hub) -> None:
    hub.repositories["org/gguf"] = Repository({"config.json": b"{}", "x.Q4_K_M.gguf": b"GGUF"})
    desk.refused(HubError, "org/gguf", "no weights of a checkpoint", "x.Q4_K_M.gguf", source="org/gguf")
    hub.repositories["org/lora"] = Repository(some(*ADAPTER_BIN))
    desk.refused(HubError, "org/lora", "BASE --adapter org/lora", source="org/lora")
    assert hub.asked() == []
    torn = {"model.safetensors.index.json": index(SHARDS[0], "absent.safetensors")}
    hub.repositories["org/torn"] = Repository(some("config.json", SHARDS[0]) | torn)
    desk.refused(HubError, "org/torn", "no absent.safetensors", *torn, source="org/torn")
    assert hub.asked() == ["config.json", *torn]


def test_without_a_network_or_a_hub(desk: Desk, hub: Hub) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))  # and listens not
        nobody = f"http://127.0.0.1:{listener.getsockname()[1]}"
        desk.set(ENDPOINT=nobody)
        desk.refused(HubError, f"{nobody} cannot be reached", "HF_ENDPOINT", "HF_HUB_OFFLINE=1")
    desk.set(ENDPOINT=hub.cdn)
    desk.refused(HubError, f"{hub.cdn} answers for org/tiny as no hub does", "HF_ENDPOINT")
    desk.set(HF_HUB_OFFLINE=True)
    desk.refused(HubError, "org/tiny", "not in the cache", str(desk.home), "HF_HUB_OFFLINE")


def test_settings_that_are_none(desk: Desk) -> None:
    finished = desk.pigguf("convert", "org/tiny", HF_HUB_DOWNLOAD_TIMEOUT="soon")
    assert finished.returncode == 14
    assert "org/tiny cannot be fetched" in finished.stderr
    assert "'soon'" in finished.stderr
    assert "hint: see to HF_ENDPOINT" in finished.stderr


def test_a_cache_that_cannot_be_written(desk: Desk) -> None:
    desk.home.write_text("no directory")
    desk.refused(OutputError, str(desk.home), "Not a directory", "HF_HOME")


@pytest.mark.skipif(not hasattr(resource, "RLIMIT_FSIZE"), reason="needs limits on file size")
def test_a_disk_that_fills_up_keeps_what_came(desk: Desk, hub: Hub, tiny: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (80_000, 80_000))"
    finished = desk.pigguf("convert", "org/tiny", before=limit)
    assert finished.returncode == 6
    assert "File too large" in finished.stderr
    assert "what was fetched stays" in finished.stderr
    begun = desk.partial().stat().st_size
    assert 0 < begun <= 80_000
    assert desk.convert() == desk.convert(tiny)
    assert hub.cdn_requests[-1].range == f"bytes={begun}-"


def test_a_model_larger_than_the_disk_is_refused_at_once(desk: Desk, hub: Hub) -> None:
    huge = {"size": 10**18, "lfs": {"sha256": "0" * 64, "size": 10**18, "pointerSize": 134}}
    hub.repositories["org/tiny"].lies = {WEIGHTS: huge}
    desk.refused(OutputError, "org/tiny takes 1000000000.00 GB more", "GB free", "HF_HOME")
    assert WEIGHTS not in hub.asked()


def test_the_package_that_is_missing_is_named(desk: Desk) -> None:
    finished = desk.pigguf("convert", "org/tiny", before="sys.modules['huggingface_hub'] = None")
    assert finished.returncode == 13
    assert "org/tiny is no directory here" in finished.stderr
    assert 'hint: pip install -e ".[hub]" in the clone' in finished.stderr
