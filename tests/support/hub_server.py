"""A model hub on loopback that speaks the Hugging Face hub's protocol, as far as fetching a model goes.

    with Hub({"org/tiny": Repository(files)}) as hub:
        ...                       # a child process with hub.environment(home)
        hub.requests              # what it was asked, in order

Large files are answered with a redirect to a second server, which has no business with a token, as the
real one does with its CDN. Faults are injected by a file's name, and used up one by one.

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

LARGE = 2_000  # bytes; larger files are kept in git-lfs, as it were
TOKEN = "hf_the_right_token"


Files = dict[str, bytes]


@dataclass
class Repository:
    """What a repository holds, and who may see it.

    Attributes:
        files: name -> content, on main.
        revisions: the same for other branches and tags.
        gated: listed for all, given with the token alone.
        private: does not exist for whoever has no token.
        lies: file -> what its entry in the listing says otherwise.
    """

    files: Files
    revisions: dict[str, Files] = field(default_factory=dict)
    gated: bool = False
    private: bool = False
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path, **settings: Any) -> Repository:
        return cls(read(directory), **settings)

    def at(self, revision: str) -> tuple[str, Files] | None:
        """The commit and the files of a branch, a tag or a commit."""
        for name, files in {"main": self.files, **self.revisions}.items():
            if revision in (name, commit_of(files)):
                return commit_of(files), files
        return None


def read(directory: Path) -> Files:
    """A directory's files, and what every repository has beside them."""
    files = {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    return {"README.md": b"# read me", ".gitattributes": b"*.bin", **files}


def commit_of(files: Files) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Request:
    """One request: what the tests look at."""

    method: str
    path: str
    range: str | None
    token: str | None

    @property
    def file(self) -> str | None:
        """The file it asks for, or None for another thing."""
        found = re.search(r"/resolve/[^/]+/(.+)$", self.path)
        return unquote(found[1]) if found else None


@dataclass
class Fault:
    """Something that goes wrong once with a file.

    Attributes:
        status: answer with this status in place of the file.
        code: the hub's X-Error-Code with it.
        cut: break the connection after so many bytes of the answer.
        stall: after `cut` bytes send nothing, and keep the connection, until `Hub.release`.
        damage: send other bytes of the same length.
        shorten: send so many bytes less, and say so in Content-Length.
        lengthen: send so many bytes more, and say so.
        whole: know nothing of ranges.
    """

    status: int = 0
    code: str = ""
    cut: int | None = None
    stall: bool = False
    damage: bool = False
    shorten: int = 0
    lengthen: int = 0
    whole: bool = False


class Hub:
    """The two servers, and what they were asked; a context manager."""

    def __init__(self, repositories: dict[str, Repository]) -> None:
        self.repositories = repositories
        self.requests: list[Request] = []
        self.cdn_requests: list[Request] = []
        self.faults: dict[str, list[Fault]] = {}  # file, or "api" -> what goes wrong, in order
        self.released = threading.Event()
        self.stalled = threading.Event()  # set when a stall has begun
        self._servers = [_server(self, _HubHandler), _server(self, _CDNHandler)]
        self.url, self.cdn = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """A child's environment in which this is the hub, and `home` its whole memory."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        return {**kept, "HF_ENDPOINT": self.url, "HF_HOME": str(home), **more}

    def asked(self) -> list[str]:
        """The files that were asked for, each once, in order."""
        return list(dict.fromkeys(request.file for request in self.requests if request.file))

    def forget(self) -> None:
        self.requests.clear()
        self.cdn_requests.clear()

    def fault(self, file: str) -> Fault:
        waiting = self.faults.get(file)
        return waiting.pop(0) if waiting else Fault()

    def __enter__(self) -> Hub:
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
    hub: Hub

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
        fault = self.hub.fault(name)
        if fault.status:
            self.refuse(fault.status, fault.code)
            return
        if fault.damage:
            content = bytes(byte ^ 1 for byte in content)
        content = content[: len(content) - fault.shorten] + bytes(fault.lengthen)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if not asked or fault.whole:
            self.answer(200, content, headers, fault)
            return
        start = int(asked[1])
        if start >= len(content):
            self.answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
            return
        place = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[start:], {**headers, "Content-Range": place}, fault)


class _HubHandler(_Handler):
    def do_GET(self) -> None:
        request = self._request()
        self.hub.requests.append(request)
        path = urlsplit(self.path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/([^/]+)", path.path):
            fault = self.hub.fault("api")
            if fault.status:
                self.refuse(fault.status, fault.code)
            elif (visible := self._visible(found[1], unquote(found[2]), request.token)) is not None:
                self._describe(found[1], *visible, "blobs" in parse_qs(path.query))
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path.path):
            if (visible := self._visible(found[1], unquote(found[2]), request.token)) is not None:
                self._give(*visible, unquote(found[3]), request.token)
        else:
            self.refuse(404, message="Sorry, we can't find the page you are looking for.")

    def _visible(self, name: str, revision: str, token: str | None) -> tuple[Repository, str, Files] | None:
        """The repository, the commit and its files; the rest is answered as the real hub answers it."""
        if token not in (None, TOKEN):
            self.refuse(401, message="Invalid credentials in Authorization header")
            return None
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and token is None):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
            return None
        found = repository.at(revision)
        if found is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, *found

    def _describe(self, name: str, repository: Repository, commit: str, files: Files, blobs: bool) -> None:
        siblings = [
            _sibling(file, content, blobs) | repository.lies.get(file, {}) for file, content in files.items()
        ]
        answer = {
            "_id": "1", "id": name, "modelId": name, "sha": commit, "private": repository.private,
            "gated": "auto" if repository.gated else False, "disabled": False, "downloads": 1,
            "likes": 1, "tags": [], "siblings": siblings, "spaces": [],
            "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
        }  # fmt: skip
        self.answer(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _give(self, repository: Repository, commit: str, files: Files, file: str, token: str | None) -> None:
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


def _server(hub: Hub, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": hub}))
    server.daemon_threads = True
    return server


def _contents(hub: Hub) -> Iterator[bytes]:
    for repository in hub.repositories.values():
        for files in (repository.files, *repository.revisions.values()):
            yield from files.values()


def _sibling(file: str, content: bytes, blobs: bool) -> dict[str, Any]:
    """A file as model_info lists it."""
    if not blobs:
        return {"rfilename": file}
    described: dict[str, Any] = {"rfilename": file, "size": len(content), "blobId": _git_sha1(content)}
    if len(content) > LARGE:
        digest = hashlib.sha256(content).hexdigest()
        described["lfs"] = {"sha256": digest, "size": len(content), "pointerSize": 134}
    return described


def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
