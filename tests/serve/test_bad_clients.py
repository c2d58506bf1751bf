"""Malicious and broken clients: each gets an error, and the others still get their answers."""

from __future__ import annotations

import json
import os
import resource
import socket
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from support.running_server import RunningServer, get, post, running_server, server_with_limits, wait_until

LIMITS = "ServerLimits(max_connections=40, headers_seconds=1.0, body_seconds=1.0, send_seconds=1.0)"


@pytest.fixture(scope="module")
def strict(tiny_path: Path) -> Iterator[RunningServer]:
    """Run a server with limits that a test can wait for."""
    with server_with_limits(tiny_path, LIMITS) as served:
        yield served


def connect(served: RunningServer, sent: bytes = b"", buffer: int | None = None) -> socket.socket:
    host, port = served.url.removeprefix("http://").split(":")
    connection = socket.socket()
    if buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.settimeout(30)
    connection.connect((host, int(port)))
    connection.sendall(sent)
    return connection


def request_of(path: str, body: Any) -> bytes:
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head.encode() + b"Content-Length: %d\r\n\r\n%s" % (len(data), data)


def receive_all(connection: socket.socket) -> bytes:
    """Return everything that is received until the server closes the connection."""
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def health(served: RunningServer) -> dict[str, Any]:
    health: dict[str, Any] = json.loads(get(f"{served.url}/health"))
    return health


def metric(served: RunningServer, name: str) -> float:
    lines = get(f"{served.url}/metrics").splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


def still_answers(served: RunningServer) -> bool:
    body = {"prompt": "Once", "max_tokens": 2, "temperature": 0}
    return post(f"{served.url}/v1/completions", body)[0] == 200


# ---- slow clients --------------------------------------------------------------------------------


def test_a_client_that_never_reads_is_disconnected(strict: RunningServer) -> None:
    body = {"prompt": "x", "max_tokens": 8000, "n": 1, "logprobs": 20, "stream": True, "temperature": 0}
    with connect(strict, request_of("/v1/completions", body), buffer=4096):
        wait_until(lambda: health(strict)["running"] == 1)
        before = metric(strict, "pigguf_generated_tokens_total")
        wait_until(lambda: health(strict)["running"] == 0)
        assert metric(strict, "pigguf_generated_tokens_total") - before < 8000
    assert still_answers(strict)


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: local", b"POST"], ids=str)
def test_headers_that_do_not_arrive(strict: RunningServer, sent: bytes) -> None:
    started = time.monotonic()
    with connect(strict, sent) as connection:
        assert receive_all(connection) == b""
    assert 0.5 < time.monotonic() - started < 10


def test_headers_of_a_second_request_that_do_not_arrive(strict: RunningServer) -> None:
    with connect(strict, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /hea") as connection:
        started = time.monotonic()
        assert receive_all(connection).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - started < 10


def test_a_body_that_arrives_a_byte_at_a_time(strict: RunningServer) -> None:
    whole = request_of("/tokenize", {"content": "x" * 1000})
    end = whole.index(b"\r\n\r\n") + 4
    with connect(strict, whole[:end]) as connection:
        connection.settimeout(0.05)
        answer = b""
        started = time.monotonic()
        for at in range(end, len(whole)):
            connection.sendall(whole[at : at + 1])
            try:
                answer = connection.recv(1000)
                break
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - started < 10


def test_too_many_connections(strict: RunningServer) -> None:
    with ExitStack() as opened:
        idle = [opened.enter_context(connect(strict)) for _ in range(40)]
        wait_until(lambda: b"too_many_connections" in receive_all(opened.enter_context(connect(strict))))
        for connection in idle:  # they send nothing, so they are closed
            assert receive_all(connection) == b""
    assert still_answers(strict)


def test_thousands_of_connections(tiny: RunningServer) -> None:
    """Far more than a server has descriptors for; clients after them are answered."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 4096)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    try:
        with ExitStack() as opened:
            many = [opened.enter_context(connect(tiny)) for _ in range(min(2000, wanted - 200))]
            assert b"too_many_connections" in receive_all(many[-1])
        wait_until(lambda: still_answers(tiny))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Traceback" not in "".join(tiny.stderr_lines)


# ---- clients that leave --------------------------------------------------------------------------


def test_a_client_that_leaves_during_a_long_prefill(smollm2_gguf: Path, novel: str) -> None:
    body = {"prompt": novel[:14000], "max_tokens": 1, "stream": True, "return_progress": True}
    with running_server(smollm2_gguf, "--ctx", "4096", "--slots", "1", "--no-prompt-cache") as served:
        with connect(served, request_of("/v1/completions", body)) as connection:
            while b"prompt_progress" not in connection.recv(1 << 16):
                pass
        steps = metric(served, "pigguf_steps_total")
        wait_until(lambda: health(served)["running"] == 0)
        assert metric(served, "pigguf_steps_total") <= steps + 2
        assert metric(served, "pigguf_prompt_tokens_total") < 2500


# ---- invalid HTTP -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /health HTTP/1.1\r\n no: colon\r\n\r\n",
        b"POST /tokenize HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\nTransfer-Encoding: zip\r\n\r\n{}",
        b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n",
    ],
    ids=["TLS", "length", "header", "encoding", "chunk"],
)
def test_invalid_http(tiny: RunningServer, sent: bytes) -> None:
    with connect(tiny, sent) as connection:
        assert receive_all(connection)[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 501")
    assert still_answers(tiny)


def test_an_endless_path(tiny: RunningServer) -> None:
    with connect(tiny) as connection, suppress(ConnectionError):  # the server closes the connection
        for _ in range(1000):
            connection.sendall(b"GET /" + b"x" * 100_000)
        assert not receive_all(connection)
    assert still_answers(tiny)


def test_pipelined_requests_with_junk_after_them(tiny: RunningServer) -> None:
    one = request_of("/tokenize", {"content": "ab"})
    with connect(tiny, one + one + b"\x00junk\r\n\r\n") as connection:
        answered = receive_all(connection)
    assert answered.count(b"HTTP/1.1 200") == 2
    assert answered.count(b"HTTP/1.1 400") == 1


# ---- bodies --------------------------------------------------------------------------------------


def nested_schema(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (nested_schema(300), "nested too deeply"),
        ({"$ref": "#"}, "refers to itself"),
        (
            {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}},
            "characters of JSON",
        ),
        ({"enum": ["x" * 100_000] * 50}, "characters of JSON"),
        ({"enum": [f"x{n}" for n in range(11_000)]}, "characters of grammar"),
        (
            {"type": "object", "properties": {f"p{n}": {"maxLength": 2000} for n in range(400)}},
            "each repetition counted",
        ),
        ({"oneOf": [{"const": n} for n in range(5000)]}, "can be compared"),
        ({"pattern": r"^(.*a.{30})*$"}, "more than 8,192 states"),
    ],
    ids=["deep", "loop", "wide", "long", "long as a grammar", "repeated", "one of many", "pattern"],
)
def test_schemas_that_would_take_forever(tiny: RunningServer, schema: dict[str, Any], message: str) -> None:
    started = time.monotonic()
    described = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    body = {"prompt": "x", "max_tokens": 2, "response_format": described}
    status, answer, _ = post(f"{tiny.url}/v1/completions", body)
    assert (status, message in answer["error"]["message"]) == (400, True), answer
    assert time.monotonic() - started < 10


def test_more_messages_than_the_window_has_tokens(tiny: RunningServer) -> None:
    started = time.monotonic()
    body = {"messages": [{"role": "user", "content": "x"}] * 100_000}
    status, answer, _ = post(f"{tiny.url}/v1/chat/completions", body)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"prompt": "x", "\ud800": 1}, 400),
        ({"prompt": "x", "model": "\ud800"}, 404),
        ({"prompt": "\ud800"}, 400),
        ({"prompt": "x", "max_tokens": 1, "stop": "\ud800", "user": "\ud800"}, 200),
        ({"prompt": "a\0b", "max_tokens": 1}, 200),
        ({"prompt": [2**70]}, 400),
        ({"prompt": "x", "seed": -(10**300), "max_tokens": 1}, 200),
        ({"prompt": "x", "temperature": 3e38, "repeat_penalty": 1e-45, "max_tokens": 1}, 200),
        ({"prompt": "x" * 7_000_000}, 400),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unusual_values(tiny: RunningServer, body: dict[str, Any], status: int) -> None:
    found, answer, _ = post(f"{tiny.url}/v1/completions", body)
    assert found == status, answer
    assert "choices" in answer or answer["error"]["message"]


def test_too_many_tokens_to_detokenize(tiny: RunningServer) -> None:
    status, answer, _ = post(f"{tiny.url}/detokenize", {"tokens": [5] * (2**20 + 1)})
    assert (status, answer["error"]["param"]) == (400, "tokens")


def test_a_document_that_takes_forever(tiny_path: Path, tmp_path: Path) -> None:
    """A book with a hundred times the same empty chapter, which unpacks to many megabytes."""
    book, types = tmp_path / "a.epub", "application/xhtml+xml"
    with zipfile.ZipFile(book, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("META-INF/container.xml", '<a><rootfile full-path="x.opf"/></a>')
        item = f'<item id="a" href="a.html" media-type="{types}"/>'
        archive.writestr("x.opf", "<a>" + item + '<itemref idref="a"/>' * 100 + "</a>")
        archive.writestr("a.html", "<p></p>" * 2_000_000)
    with server_with_limits(tiny_path, "ServerLimits(document_seconds=3.0)") as served:
        started = time.monotonic()
        document = {"Content-Type": "application/octet-stream"}
        status, answer, _ = post(f"{served.url}/documents?name=a.epub", book.read_bytes(), **document)
        assert (status, answer["error"]["code"]) == (400, "document_unreadable")
        assert answer["error"]["message"].startswith("a.epub was not read within 3 s")
        assert time.monotonic() - started < 10
        assert post(f"{served.url}/documents?name=a.txt", b"A pig.", **document)[0] == 200
        assert still_answers(served)


def test_a_key_that_is_not_ascii(tiny_path: Path) -> None:
    key = "schl\u00fcssel"
    with running_server(tiny_path, "--api-key", key, "--no-prompt-cache") as served:
        for given, status in ((key, b"200"), ("schlussel", b"401"), ("schl\u00fcssel\u00e9", b"401")):
            head = f"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\nAuthorization: Bearer {given}"
            with connect(served, os.fsencode(head) + b"\r\n\r\n") as connection:
                assert receive_all(connection).startswith(b"HTTP/1.1 " + status)
