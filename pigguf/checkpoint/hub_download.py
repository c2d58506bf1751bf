"""Download a model or an adapter from the Hugging Face hub into huggingface_hub's own cache.

huggingface_hub does the transfer (hf_hub_download): its settings (HF_ENDPOINT, HF_TOKEN, HF_HOME,
HF_HUB_OFFLINE, proxies), retries, resuming a broken connection, locks, Xet and the layout of the cache.
This module decides which files are needed, checks the free disk space before the first byte, verifies
every file against the digest that the hub lists (huggingface_hub compares sizes only), reports progress,
and turns the library's errors into messages with a hint. It is the only importer of huggingface_hub.

Config files are downloaded before weights, and refs/REVISION is written last: a snapshot that has its ref
is complete and verified, so it can be used offline, and later runs compare sizes only. After an
interruption the completed files are kept and verified, and the interrupted one is downloaded again.

Source: huggingface_hub 2.4's file_download.py and docs "Understand caching".
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # base class of the HTTP client's errors
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import logging, tqdm, validate_repo_id

from pigguf import __version__
from pigguf.checkpoint.resolve_source import HubRepo, SourceFiles
from pigguf.errors import CheckpointError, HubError, OutputError
from pigguf.progress import SILENT, Progress, stage

if tuple(map(int, huggingface_hub.__version__.split(".")[:2])) < (1, 3):  # hf_hub_download(tqdm_class=)
    raise ImportError(f"huggingface_hub {huggingface_hub.__version__} is installed, and 1.3 is required")

RUN_AGAIN = "run the command again: completed files are kept"
TOKEN_HINT = "a token in HF_TOKEN, or one saved by `hf auth login`"


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        name: its name in the repository.
        size: bytes.
        digest: sha256 of a large file (git-lfs, Xet), git blob id (sha1) of another; the blob's name in the
            cache.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class RepoListing:
    """The files of a repository at one commit.

    Attributes:
        commit: the commit's full hash.
        siblings: file name -> huggingface_hub's RepoSibling.
    """

    commit: str
    siblings: dict[str, Any]

    def file(self, name: str) -> HubFile:
        """Return one file's size and digest.

        Raises:
            HubError: the hub lists neither a size nor a digest that can be used.
        """
        sibling = self.siblings[name]
        digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not isinstance(sibling.size, int) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
            raise HubError(
                f"{_endpoint()} lists {name} with size {sibling.size!r} and digest {digest!r}",
                "check that HF_ENDPOINT is the address of a hub",
            )
        return HubFile(name, sibling.size, digest)


def download_snapshot(repo: HubRepo, files: SourceFiles, progress: Progress) -> Path:
    """Download the needed files that are not in the cache yet, and return the snapshot directory.

    Args:
        repo: the repository and the revision.
        files: which of its files are needed.
        progress: gets one stage, in bytes, for config files, weights and shards each.

    Raises:
        CheckpointError: the name is not a valid repository id.
        HubError: the repository or a file does not exist, access is refused, the hub cannot be reached,
            or a file is damaged.
        OutputError: the cache cannot be written, or its disk is full.
    """
    _validate_repo_id(repo)
    cache = _RepoCache(repo)
    with _silence_huggingface_hub(), cache.report_os_errors():
        try:
            listing = _list_files(repo)
        except OfflineModeIsEnabled:
            return cache.offline_snapshot()
        weights = _select_weights(repo, files, list(listing.siblings))
        snapshot = cache.snapshot(listing.commit)
        configs = [name for name in files.config_files if name in listing.siblings]
        for names in (configs, weights):
            _download_files(cache, listing, names, progress)
        shards = [shard for name in weights for shard in _shards_of_index(repo, listing, snapshot / name)]
        _download_files(cache, listing, shards, progress)
        cache.write_ref(listing.commit)
    return snapshot


# ---- which files ---------------------------------------------------------------------------------


def _validate_repo_id(repo: HubRepo) -> None:
    try:
        validate_repo_id(repo.repo_id)
    except HFValidationError as error:
        raise CheckpointError(
            f"{repo} is neither a local directory nor a valid name of a hub repository: {error}",
            "give a directory, or OWNER/NAME or OWNER/NAME@REVISION",
        ) from error


def _list_files(repo: HubRepo) -> RepoListing:
    try:
        info = _api().model_info(
            repo.repo_id,
            revision=repo.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except HfHubHTTPError as error:
        raise _http_error(repo, error) from error
    except HTTPError as error:
        raise HubError(
            f"{repo} is not a local directory, and {_endpoint()} cannot be reached: "
            f"{error or type(error).__name__}",
            "check the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 uses what was downloaded before",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _not_a_hub(repo) from error
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise _not_a_hub(repo)
    return RepoListing(str(info.sha), {sibling.rfilename: sibling for sibling in info.siblings or ()})


def _select_weights(repo: HubRepo, files: SourceFiles, names: list[str]) -> list[str]:
    """Return the files of the first weight layout that the repository has."""
    for required, *optional in files.weight_layouts:
        if weights := [name for name in names if re.fullmatch(required, name)]:
            return weights + [
                name for name in names if any(re.fullmatch(pattern, name) for pattern in optional)
            ]
    hint = "give a repository that has safetensors"
    if "adapter_config.json" in names:
        hint = f"it has an adapter: give its base model, and the adapter with it: BASE --adapter {repo}"
    elif gguf := next((name for name in names if name.endswith(".gguf")), None):
        hint = f"it has {gguf}, which needs no conversion: download that"
    raise HubError(f"{repo} on {_endpoint()} has no weights of {files.description}", hint)


def _shards_of_index(repo: HubRepo, listing: RepoListing, index: Path) -> list[str]:
    """Return the shards that a downloaded index names; none if the file is not an index."""
    if not index.name.endswith(".index.json"):
        return []
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # opening the checkpoint reports what is wrong with its index
    for shard in shards:
        if shard not in listing.siblings or "/" in shard:
            raise HubError(
                f"{repo} on {_endpoint()} has no {shard}, which its {index.name} names",
                "its weights are incomplete: take another revision with @, or ask the owner to fix it",
            )
    return shards


# ---- the cache -----------------------------------------------------------------------------------


class _RepoCache:
    """A repository's folder in huggingface_hub's cache: blobs, snapshots/COMMIT, refs/REVISION."""

    def __init__(self, repo: HubRepo) -> None:
        self.repo = repo
        self.root = Path(constants.HF_HUB_CACHE) / f"models--{repo.repo_id.replace('/', '--')}"

    def snapshot(self, commit: str) -> Path:
        return self.root / "snapshots" / commit

    def blob(self, file: HubFile) -> Path:
        return self.root / "blobs" / file.digest

    def has_verified(self, commit: str) -> bool:
        """Return whether every file in a commit's snapshot was verified when it was downloaded."""
        return commit in (self.repo.revision, self.read_ref())

    def read_ref(self) -> str | None:
        ref = self.root / "refs" / self.repo.revision
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None

    def write_ref(self, commit: str) -> None:
        """Record which commit the revision is, for the next run without a network."""
        if commit not in (self.repo.revision, self.read_ref()):
            ref = self.root / "refs" / self.repo.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")

    def offline_snapshot(self) -> Path:
        """Return the snapshot of the revision as the last run with a network left it."""
        snapshot = self.snapshot(self.read_ref() or self.repo.revision)
        if not snapshot.is_dir():
            raise HubError(
                f"{self.repo} is not a local directory and not in the cache {self.root.parent}, and "
                "HF_HUB_OFFLINE is set, so it cannot be downloaded",
                "unset HF_HUB_OFFLINE to download it",
            )
        return snapshot

    def check_disk_space(self, size: int) -> None:
        """Raise OutputError if the cache's disk has fewer than `size` bytes free."""
        self.root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.root).free
        if size > free:
            raise OutputError(
                f"{self.root}: {self.repo} needs {size / 1e9:.2f} GB more and the disk has "
                f"{free / 1e9:.2f} GB free",
                "free disk space, or put the cache on another disk with HF_HOME",
            )

    @contextmanager
    def report_os_errors(self) -> Iterator[None]:
        """Turn an OSError inside the block into an OutputError that names the path."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{error.filename or self.root}: {error.strerror or error}",
                f"check the disk space and the permissions there, or set HF_HOME; then {RUN_AGAIN}",
            ) from error


def _is_complete(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _digest(path: Path, file: HubFile) -> str:
    """Return the file's sha256 or git blob id, whichever the hub lists for it."""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _delete_cached(path: Path) -> None:
    """Delete a file of the cache with everything its symbolic links lead to."""
    while path.is_symlink():
        target = path.parent / path.readlink()
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


# ---- the download --------------------------------------------------------------------------------


def _download_files(cache: _RepoCache, listing: RepoListing, names: list[str], progress: Progress) -> None:
    """Download the files that the snapshot does not have yet, and verify each."""
    snapshot, verified = cache.snapshot(listing.commit), cache.has_verified(listing.commit)
    missing = []
    for file in map(listing.file, names):
        path = snapshot / file.name
        if _is_complete(path, file) and (verified or _digest(path, file) == file.digest):
            continue
        _delete_cached(path)  # huggingface_hub would use a damaged file as it is
        if not _is_complete(cache.blob(file), file):
            _delete_cached(cache.blob(file))
        missing.append(file)
    if not missing:
        return
    pending = [0 if _is_complete(cache.blob(file), file) else file.size for file in missing]
    cache.check_disk_space(sum(pending))
    pending_names = [file.name for file, size in zip(missing, pending, strict=True) if size]
    label = pending_names[0] if len(pending_names) == 1 else f"{len(pending_names)} files"
    progress = progress if pending_names else SILENT  # every blob is cached, and only linked
    with stage(progress, f"downloading {label}", sum(pending), "bytes"):
        for file, size in zip(missing, pending, strict=True):
            counter = _ByteCounter(progress.advance)
            path = _download_file(cache.repo, file, listing.commit, counter)
            counter.add(size - counter.total)  # linked, or downloaded by another process
            digest = _digest(path, file)
            if digest != file.digest:
                _delete_cached(path)
                raise HubError(
                    f"{cache.repo}: {file.name} was downloaded with the digest {digest}, but the hub lists "
                    f"{file.digest}",
                    "the file was damaged on its way and deleted: run the command again to download it again",
                )


class _ByteCounter:
    """Counts the bytes that were downloaded of one file, and passes them on to a Progress."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self.total = 0
        self._advance = advance

    def add(self, count: int) -> None:
        self.total += count
        self._advance(count)

    def tqdm_class(self) -> type[tqdm]:
        """Return a progress bar class for huggingface_hub that shows nothing and counts here."""
        counter = self

        class CountingBar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> bool | None:
                counter.add(int(n or 0))
                return None

            def update_transfer(self, n: float) -> None:
                """Ignore Xet's second count, of bytes before they are decompressed."""

        return CountingBar


def _download_file(repo: HubRepo, file: HubFile, commit: str, counter: _ByteCounter) -> Path:
    """Let huggingface_hub download one file into the cache, and return its path in the snapshot.

    Raises:
        HubError: the hub refuses the file, or the connection breaks more often than it is retried.
        OSError: the cache cannot be written.
    """
    try:
        path = _api().hf_hub_download(
            repo.repo_id,
            file.name,
            revision=commit,
            etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
            tqdm_class=counter.tqdm_class(),
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, HTTPError) as error:
        cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
        if isinstance(cause, FileMetadataError):
            raise _not_a_hub(repo) from error
        if isinstance(cause, HfHubHTTPError):
            raise _http_error(repo, cause, file.name) from error
        raise HubError(
            f"{repo}: the connection broke at byte {counter.total:,} of {file.size:,} of {file.name}: "
            f"{cause or type(cause).__name__}",
            RUN_AGAIN,
        ) from error
    except (XetDownloadError, ValueError, RuntimeError) as error:
        raise HubError(f"{repo}: {file.name} cannot be downloaded: {error}", RUN_AGAIN) from error
    except OSError as error:
        if error.errno is not None:
            raise
        reason = str(error).partition("\n")[0]  # no error of the system: too few or too many bytes came
        raise HubError(
            f"{repo}: {file.name} does not have the {file.size:,} bytes that the hub lists: {reason}",
            f"{RUN_AGAIN}; if it happens again, take another revision with @",
        ) from error
    return Path(path)


# ---- huggingface_hub -----------------------------------------------------------------------------


def _api() -> HfApi:
    return HfApi(library_name="pigguf", library_version=__version__)


def _endpoint() -> str:
    return str(_api().endpoint)


@contextmanager
def _silence_huggingface_hub() -> Iterator[None]:
    """Suppress the library's log lines and warnings; its errors say the same."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _not_a_hub(repo: HubRepo) -> HubError:
    return HubError(
        f"{_endpoint()} does not answer for {repo} as a hub does",
        "check that HF_ENDPOINT is the address of a hub",
    )


def _http_error(repo: HubRepo, error: HfHubHTTPError, file: str | None = None) -> HubError:
    """Return the error to raise for an HTTP status that the hub answered."""
    hub, status, repo_id = _endpoint(), error.response.status_code, repo.repo_id
    requested = f"{file} of {repo}" if file else str(repo)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{hub} gives {requested} only to users who accepted its conditions ({status})",
            f"accept them at {hub}/{repo_id}, and give {TOKEN_HINT}",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repo_id} has no revision {repo.revision!r} on {hub}",
            "give a branch, a tag or a commit after @, or leave it out for main",
        )
    if isinstance(error, EntryNotFoundError):
        return HubError(f"{hub} lists {requested} but does not have it", "take another revision with @")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"there is no local directory {repo_id}, and no repository {repo_id} on {hub} that you can "
            f"access ({status})",
            f"check the name; a private repository needs {TOKEN_HINT}",
        )
    if status in (401, 403):
        return HubError(
            f"{hub} refuses access to {requested} with this token, or without one ({status})",
            f"give {TOKEN_HINT}",
        )
    if status == 404:
        return _not_a_hub(repo)
    return HubError(f"{hub} answers {status} for {requested}", f"try later: {RUN_AGAIN}")
