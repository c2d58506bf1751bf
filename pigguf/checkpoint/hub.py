"""A repository of the Hugging Face hub -> its snapshot in the cache. The only importer of huggingface_hub.

The library knows the settings (HF_ENDPOINT, HF_TOKEN and the token's file, HF_HOME, HF_HUB_OFFLINE,
proxies), the requests, and what the answers mean. Its cache's layout is kept: blobs by their digest,
snapshots/COMMIT/NAME that link to them, refs/REVISION. The transfer is done here, for the library's
begins a file anew in every run, and compares no digest: BLOB.incomplete grows, a broken connection
is taken up where it ended, now or in a later run, and what has the listed sha256 (of small files
git's sha1) becomes the blob.

Settings are fetched before weights, and the revision's ref is written last: what is found offline
is whole, if it was fetched here.

Source: huggingface_hub 2.4's file_download.py and docs "Understand caching".
Left out: Xet's own protocol (its files are served over HTTP too), several connections at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

import huggingface_hub
from huggingface_hub import HfApi, constants, get_session
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # the root of the HTTP client's errors, whichever client it is
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import (
    WeakFileLock,
    build_hf_headers,
    hf_raise_for_status,
    logging,
    validate_repo_id,
)

from pigguf import __version__
from pigguf.checkpoint.source import HubName, Kind
from pigguf.errors import CheckpointError, HubError, OutputError
from pigguf.progress import SILENT, Progress, stage

if int(huggingface_hub.__version__.partition(".")[0]) < 1:
    raise ImportError(f"{huggingface_hub.__version__} is installed, and 1.0 is the oldest that will do")

RETRIES = 3  # without a byte between them
RESUMES = "run the same again: what was fetched stays, and it goes on from there"
TOKEN = "a token in HF_TOKEN, or one kept by `hf auth login`"


@dataclass(frozen=True)
class HubFile:
    """A file as the hub lists it.

    Attributes:
        name: its name in the repository.
        size: bytes.
        digest: sha256 of a large file (git-lfs, Xet), git's sha1 of another; its blob's name in the cache.
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class Listing:
    """A repository at one commit: the names of its files, and what the hub says of each."""

    commit: str
    siblings: dict[str, Any]

    def file(self, name: str) -> HubFile:
        """Raises HubError where the hub does not say what a fetch needs."""
        sibling = self.siblings[name]
        digest = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if not isinstance(sibling.size, int) or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
            raise HubError(
                f"{_endpoint()} lists {name} with size {sibling.size!r} and digest {digest!r}",
                "see that HF_ENDPOINT is a hub",
            )
        return HubFile(name, sibling.size, digest)


def fetch(name: HubName, kind: Kind, progress: Progress) -> Path:
    """Fetch what is not in the cache yet; returns the snapshot's directory.

    Raises:
        CheckpointError: a name that no hub can have.
        HubError: the hub has no such thing, gives it to others only, or cannot be reached.
        OutputError: the cache cannot be written, or its disk is full.
    """
    _check(name)
    cache = _Cache(name)
    with _quiet(), cache.refusing():
        try:
            listing = _list(name)
        except OfflineModeIsEnabled:
            return cache.found_offline()
        form = _form(name, kind, list(listing.siblings))
        snapshot = cache.snapshot(listing.commit)
        settings = [file for file in kind.settings if file in listing.siblings]

        def bring(files: Iterable[str]) -> None:
            _bring(cache, snapshot, [listing.file(file) for file in files], progress)

        bring(settings)
        bring(form)
        bring(shard for file in form for shard in _shards(name, listing, snapshot / file))
        cache.remember(listing.commit)
    return snapshot


# ---- what there is -------------------------------------------------------------------------------


def _check(name: HubName) -> None:
    try:
        validate_repo_id(name.repository)
    except HFValidationError as error:
        raise CheckpointError(
            f"{name} is no directory here, and no name that a hub can have: {error}",
            "give a directory, or OWNER/NAME or OWNER/NAME@REVISION",
        ) from error


def _list(name: HubName) -> Listing:
    try:
        found = HfApi(library_name="pigguf", library_version=__version__).model_info(
            name.repository,
            revision=name.revision,
            files_metadata=True,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
        )
    except HfHubHTTPError as error:
        raise _refusal(name, error) from error
    except HTTPError as error:
        raise HubError(
            f"{name} is no directory here, and {_endpoint()} cannot be reached: "
            f"{error or type(error).__name__}",
            "see to the network and HF_ENDPOINT; HF_HUB_OFFLINE=1 takes what was fetched before",
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise _no_hub(name) from error
    siblings = {sibling.rfilename: sibling for sibling in found.siblings or ()}
    if not re.fullmatch(r"[0-9a-f]{40}", found.sha or ""):
        raise _no_hub(name)
    return Listing(str(found.sha), siblings)


def _form(name: HubName, kind: Kind, names: list[str]) -> list[str]:
    """The files of the first form of weights that the repository has."""
    for first, *others in kind.weights:
        if found := [file for file in names if re.fullmatch(first, file)]:
            return found + [file for file in names if any(re.fullmatch(other, file) for other in others)]
    hint = "give a repository that holds safetensors"
    if "adapter_config.json" in names:
        hint = f"it holds an adapter: give its base, and the adapter with it: BASE --adapter {name}"
    elif gguf := next((file for file in names if file.endswith(".gguf")), None):
        hint = f"it holds {gguf}, which needs no conversion: download that"
    raise HubError(f"{name} on {_endpoint()} holds no weights of a {kind.name}", hint)


def _shards(name: HubName, listing: Listing, index: Path) -> list[str]:
    """The files that an index names; none of any other file."""
    if not index.name.endswith(".index.json"):
        return []
    try:
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # whoever reads the directory says what is wrong with its index
    for shard in shards:
        if shard not in listing.siblings or "/" in shard:
            raise HubError(
                f"{name} on {_endpoint()} has no {shard}, which its {index.name} names",
                "its weights are not whole there: take another revision with @, or tell its owner",
            )
    return shards


# ---- where it goes -------------------------------------------------------------------------------


class _Cache:
    """A repository's place in the library's cache."""

    def __init__(self, name: HubName) -> None:
        home, folder = Path(constants.HF_HUB_CACHE), f"models--{name.repository.replace('/', '--')}"
        self.name = name
        self._root = home / folder
        self._locks = home / ".locks" / folder

    def snapshot(self, commit: str) -> Path:
        return self._root / "snapshots" / commit

    def blob(self, file: HubFile) -> Path:
        return self._root / "blobs" / file.digest

    @contextmanager
    def held(self, file: HubFile) -> Iterator[None]:
        """One process at a time, the library's own included, fetches a file."""
        self._locks.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._locks / f"{file.digest}.lock"):
            yield

    def refuse_full_disk(self, size: int) -> None:
        self._root.joinpath("blobs").mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self._root).free
        if size > free:
            raise OutputError(
                f"{self._root}: {self.name} takes {size / 1e9:.2f} GB more and the disk has "
                f"{free / 1e9:.2f} GB free",
                "free some room, or keep the cache on another disk with HF_HOME",
            )

    def remember(self, commit: str) -> None:
        """Which commit the revision is, for the next time without a network."""
        if self.name.revision != commit:
            ref = self._root / "refs" / self.name.revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit, encoding="utf-8")

    def found_offline(self) -> Path:
        ref = self._root / "refs" / self.name.revision
        commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else self.name.revision
        if not self.snapshot(commit).is_dir():
            raise HubError(
                f"{self.name} is no directory here and not in the cache {self._root.parent}, and "
                "HF_HUB_OFFLINE forbids to fetch it",
                "unset HF_HUB_OFFLINE for once",
            )
        return self.snapshot(commit)

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Say where the system refuses to write."""
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"{error.filename or self._root}: {error.strerror or error}",
                "see to the room and the rights there, or keep the cache elsewhere with HF_HOME; " + RESUMES,
            ) from error


# ---- the fetching --------------------------------------------------------------------------------


def _bring(cache: _Cache, snapshot: Path, files: list[HubFile], progress: Progress) -> None:
    """Put files into the snapshot that are not in it yet."""
    missing = [file for file in files if not _is_whole(snapshot / file.name, file)]
    if not missing:
        return
    waiting = [file.size - _begun(cache.blob(file), file) for file in missing]
    cache.refuse_full_disk(sum(waiting))
    names = [file.name for file, size in zip(missing, waiting, strict=True) if size]
    what = names[0] if len(names) == 1 else f"{len(names)} files"
    progress = progress if names else SILENT  # all here, and only to be linked
    with stage(progress, f"fetching {what}", sum(waiting), "bytes"):
        for file, size in zip(missing, waiting, strict=True):
            with cache.held(file):
                blob = cache.blob(file)
                if _is_whole(blob, file):  # another file's, or another process's by now
                    progress.advance(size)
                else:
                    _fetch(cache.name, file, snapshot.name, blob, progress.advance)
                _link(blob, snapshot / file.name)


def _is_whole(path: Path, file: HubFile) -> bool:
    return path.is_file() and path.stat().st_size == file.size


def _incomplete(blob: Path) -> Path:
    return blob.with_name(f"{blob.name}.incomplete")


def _begun(blob: Path, file: HubFile) -> int:
    """How many bytes of a file are here."""
    if _is_whole(blob, file):
        return file.size
    partial = _incomplete(blob)
    return min(partial.stat().st_size, file.size) if partial.is_file() else 0


def _fetch(name: HubName, file: HubFile, commit: str, blob: Path, tell: Callable[[float], None]) -> None:
    partial = _incomplete(blob)
    with partial.open("ab") as out:
        _transfer(name, file, commit, out, tell)
        out.flush()
        os.fsync(out.fileno())
    found = _digest(partial, file)
    if found != file.digest:
        partial.unlink()
        raise HubError(
            f"{name}: {file.name} came with the digest {found}, and the hub lists {file.digest}",
            "it was damaged on its way: run the same again, which fetches this file anew",
        )
    partial.replace(blob)


def _transfer(
    name: HubName, file: HubFile, commit: str, out: BinaryIO, tell: Callable[[float], None]
) -> None:
    """Append what is missing; a connection that breaks is taken up where it ended."""
    url = f"{_endpoint()}/{name.repository}/resolve/{commit}/{quote(file.name)}"
    failures = 0
    while (begun := out.tell()) < file.size:
        trouble: Exception | None = None
        try:
            _append(url, file, out, tell)
        except HTTPError as error:
            trouble = error
        failures = 0 if out.tell() > begun else failures + 1
        if failures > RETRIES or _is_final(trouble):
            raise _broken(name, file, out.tell(), trouble) from trouble
        time.sleep(2.0 ** (failures - 2) if failures else 0)


def _append(url: str, file: HubFile, out: BinaryIO, tell: Callable[[float], None]) -> None:
    """One request for what is missing, as far as it comes."""
    begun = out.tell()
    headers = build_hf_headers(library_name="pigguf", library_version=__version__)
    headers |= {"Accept-Encoding": "identity", **({"Range": f"bytes={begun}-"} if begun else {})}
    request = get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    with request as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        if begun and response.status_code != 206:  # a server without ranges sends it from the beginning
            out.seek(0)
            out.truncate()
            tell(-begun)
        for chunk in response.iter_bytes():
            if out.tell() + len(chunk) > file.size:
                raise HubError(
                    f"{url} is longer than the {file.size:,} bytes that the hub lists",
                    "take another revision with @, or tell its owner",
                )
            out.write(chunk)
            tell(len(chunk))


def _is_final(trouble: Exception | None) -> bool:
    """Whether to ask again is of no use: the hub understood, and does not want to."""
    if not isinstance(trouble, HfHubHTTPError):
        return False
    status = trouble.response.status_code
    return status < 500 and status not in (408, 429)


def _broken(name: HubName, file: HubFile, reached: int, trouble: Exception | None) -> HubError:
    if isinstance(trouble, HfHubHTTPError):
        return _refusal(name, trouble, file.name)
    return HubError(
        f"{name}: the connection broke at byte {reached:,} of {file.size:,} of {file.name}: "
        f"{trouble or 'nothing more comes'}",
        RESUMES,
    )


def _digest(path: Path, file: HubFile) -> str:
    """The file's digest, of the kind that the hub lists."""
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        while part := content.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def _link(blob: Path, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.unlink(missing_ok=True)
    try:
        place.symlink_to(os.path.relpath(blob, place.parent))
    except OSError:  # a system without symbolic links: the library moves the blob there too
        blob.replace(place)


# ---- what the hub says ---------------------------------------------------------------------------


def _endpoint() -> str:
    return str(HfApi().endpoint)


@contextmanager
def _quiet() -> Iterator[None]:
    """The library says what it has to say in its errors, and nothing on stderr."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def _no_hub(name: HubName) -> HubError:
    return HubError(
        f"{_endpoint()} answers for {name} as no hub does", "see that HF_ENDPOINT is a hub's address"
    )


def _refusal(name: HubName, error: HfHubHTTPError, file: str | None = None) -> HubError:
    """What an answer means."""
    hub, status, repository = _endpoint(), error.response.status_code, name.repository
    what = f"{file} of {name}" if file else str(name)
    if isinstance(error, GatedRepoError):
        return HubError(
            f"{hub} gives {what} only to those who accepted its conditions ({status})",
            f"accept them at {hub}/{repository}, and give {TOKEN}",
        )
    if isinstance(error, RevisionNotFoundError):
        return HubError(
            f"{repository} has no revision {name.revision!r} on {hub}",
            "give a branch, a tag or a commit after @, or leave it out for main",
        )
    if isinstance(error, EntryNotFoundError):
        return HubError(f"{hub} lists {what} and does not have it", "take another revision with @")
    if isinstance(error, RepositoryNotFoundError):
        return HubError(
            f"there is no directory {repository} here, and no repository {repository} on {hub} that one can "
            f"see ({status})",
            f"see to the name; a private repository needs {TOKEN}",
        )
    if status in (401, 403):
        return HubError(f"{hub} refuses {what} to this token, or without one ({status})", f"give {TOKEN}")
    if status == 404:
        return _no_hub(name)
    return HubError(f"{hub} answers {status} for {what}", f"the hub's trouble: later, {RESUMES}")
