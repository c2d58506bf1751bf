"""A fake Hugging Face hub on loopback, with the part of the protocol that downloading a model needs.

    with FakeHub({"org/tiny": Repository(files)}) as hub:
        ...                       # a child process with hub.environment(home)
        hub.requests              # the requests it got, in order

Large files are answered with a redirect to a second server, which must not get the token, as the real
hub does with its CDN. Faults are injected by file name; each is used for one GET.

Source: huggingface_hub 2.4 (hf_api.py model_info, file_download.py
get_hf_file_metadata, utils/_http.py hf_raise_for_status) for paths, headers and X-Error-Code.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 2_000  # bytes; larger files are in git-lfs
TOKEN = "hf_the_right_token"


Files = dict[str, bytes]


@dataclass
class Repository:
    """A repository's files, and who may read it.

    Attributes:
        files: name -> content, on main.
        revisions: the same for other branches and tags.
        gated: listed for everyone, downloaded with the token only.
        private: does not exist without the token.
        wrong_metadata: file -> wrong values in its entry of the listing.
    """

    files: Files
    revisions: dict[str, Files] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    wrong_metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, **options: Any) -> Repository:
        return cls(repository_files(directory), **options)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """Return the commit and the files of a branch, a tag or a commit; None if there is none."""
        for name, files in {"main": self.files, **self.revisions}.items():
            if revision in (name, commit_of(files)):
                return commit_of(files), files
        return None


def repository_files(directory: Path) -> Files:
    """Read a directory's files, and add the two that every repository has."""
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    return {"README.md": b"# read me", ".gitattributes": b"*.bin", **files}


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request, as far as the tests look at it."""

    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def file(self) -> str | None:
        """Name of the requested file; None if the request is not for a file."""
        match = re.search(r"/resolve/[^/]+/(.+)$", self.path)
        return unquote(match[1]) if match else None


@dataclass
class Fault:
    """Something that goes wrong in one GET of a file.

    Attributes:
        status: answer with this status instead of the file.
        error_code: the hub's X-Error-Code with it.
        cut: break the connection after this many bytes of the answer.
        stall: after `cut` bytes send nothing, and keep the connection open until the hub closes.
        corrupt: send other bytes of the same length.
        shorten: send this many bytes fewer, with that Content-Length.
        lengthen: send this many bytes more, with that Content-Length.
        ignore_range: answer as a server without range requests does.
    """

    status: int = 0
    error_code: str = ""
    cut: int | None = None
    stall: bool = False
    corrupt: bool = False
    shorten: int = 0
    lengthen: int = 0
    ignore_range: bool = False


class FakeHub:
    """The two servers, and the requests they got; a context manager."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.requests: list[Request] = []
        self.cdn_requests: list[Request] = []
        self.file_gets: list[str] = []  # file names of both servers' GETs, in order
        self.faults: dict[str, list[Fault]] = {}  # file name, or "api" -> faults, in order
        self.released = threading.Event()
        self.stalled = threading.Event()  # set when a stall has begun
        self._servers = [_server(self, _HubHandler), _server(self, _CDNHandler)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """Return a child process's environment with this hub, and `home` as its only cache."""
        inherited = {
            key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))
        }
        return {**inherited, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **more}

    def downloads(self) -> list[str]:
        """Return the files that were downloaded (GET), each once, in order."""
        return list(dict.fromkeys(self.file_gets))

    def clear_requests(self) -> None:
        self.requests.clear()
        self.cdn_requests.clear()
        self.file_gets.clear()

    def next_fault(self, file: str) -> Fault:
        faults = self.faults.get(file)
        return faults.pop(0) if faults else Fault()

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        raise NotImplementedError

    def _request(self) -> Request:
        authorization = self.headers.get("Authorization")
        token = authorization.removeprefix("Bearer ") if authorization else None
        return Request(self.command, self.path, self.headers.get("Range"), token)

    def answer(self, status: int, body: bytes, headers: dict[str, str], fault: Fault | None = None) -> None:
        fault = fault or Fault()
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        with suppress(ConnectionError):
            self.wfile.write(body if fault.cut is None else body[: fault.cut])
            self.wfile.flush()
        if fault.stall:
            self.hub.stalled.set()
            self.hub.released.wait()
        if fault.cut is not None:
            self.close_connection = True

    def refuse(self, status: int, code: str = "", message: str = "") -> None:
        body = json.dumps({"error": message}).encode()
        headers = {"Content-Type": "application/json"}
        if code:
            headers["X-Error-Code"] = code
        if message:
            headers["X-Error-Message"] = message
        self.answer(status, body, headers)

    def send_file(self, content: bytes, name: str, headers: dict[str, str]) -> None:
        if self.command == "HEAD":
            fault = Fault()
        else:
            self.hub.file_gets.append(name)
            fault = self.hub.next_fault(name)
        if fault.status:
            self.refuse(fault.status, fault.error_code)
            return
        if fault.corrupt:
            content = bytes(byte ^ 1 for byte in content)
        content = content[: len(content) - fault.shorten] + bytes(fault.lengthen)
        range_match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not range_match or fault.ignore_range:
            self.answer(200, content, headers, fault)
            return
        start = int(range_match[1])
        if start >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        content_range = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[start:], {**headers, "Content-Range": content_range}, fault)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        request = self._request()
        self.hub.requests.append(request)
        path = urlsplit(self.path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path.path):
            fault = self.hub.next_fault("api")
            if fault.status:
                self.refuse(fault.status, fault.error_code)
            elif (visible := self._visible_revision(match[1], unquote(match[2]), request.token)) is not None:
                self._send_listing(match[1], *visible, "blobs" in parse_qs(path.query))
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path):
            if (visible := self._visible_revision(match[1], unquote(match[2]), request.token)) is not None:
                self._send_revision_file(*visible, unquote(match[3]), request.token)
        else:
            self.refuse(404, message="Sorry, we can't find the page you are looking for.")

    def _visible_revision(
        self, name: str, revision: str, token: str | None
    ) -> tuple[Repository, str, Files] | None:
        """Return the repository, the commit and its files, or answer with the real hub's error."""
        if token not in (None, TOKEN):
            self.refuse(401, message="Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token is None):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.at(revision)
        if commit is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, *commit

    def _send_listing(
        self, name: str, repository: Repository, commit: str, files: Files, blobs: bool
    ) -> None:
        siblings = [
            _sibling(file, content, blobs) | repository.wrong_metadata.get(file, {})
            for file, content in files.items()
        ]
        listing = {
            "_id": "1", "id": name, "modelId": name, "sha": commit, "private": repository.private,
            "gated": "auto" if repository.gated else False, "disabled": False, "downloads": 1,
            "likes": 1, "tags": [], "siblings": siblings, "spaces": [],
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        self.answer(200, json.dumps(listing).encode(), {"Content-Type": "application/json"})

    def _send_revision_file(
        self, repository: Repository, commit: str, files: Files, file: str, token: str | None
    ) -> None:
        if repository.gated and token is None:
            self.refuse(401, "GatedRepo", "Access to model is restricted.")
            return
        if file not in files:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        content = files[file]
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes", "ETag": f'"{_git_sha1(content)}"'}
        if len(content) <= LARGE:
            self.send_file(content, file, headers)
            return
        digest = hashlib.sha256(content).hexdigest()
        headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{digest}"'}
        self.answer(302, b"", {**headers, "Location": f"{self.hub.cdn}/{digest}/{file}?signature=1"})


class _CDNHandler(_Handler):
    def do_GET(self) -> None:
        self.hub.cdn_requests.append(self._request())
        digest, _, name = urlsplit(self.path).path[1:].partition("/")
        for content in _contents(self.hub):
            if hashlib.sha256(content).hexdigest() == digest:
                self.send_file(content, name, {"ETag": f'"{digest}"'})
                return
        self.refuse(404)


def _server(hub: FakeHub, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    return server


def _contents(hub: FakeHub) -> Iterator[bytes]:
    for repository in hub.repositories.values():
        for files in (repository.files, *repository.revisions.values()):
            yield from files.values()


def _sibling(file: str, content: bytes, blobs: bool) -> dict[str, Any]:
    """Return a file's entry in the listing of model_info."""
    if not blobs:
        return {"rfilename": file}
    entry: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git_sha1(content)}
    if len(content) > LARGE:
        digest = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return entry


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
