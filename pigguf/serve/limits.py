"""Limits of sizes and times that protect a server from its clients."""

from __future__ import annotations

from dataclasses import dataclass

MAX_DETOKENIZED_TOKENS = 1 << 20
"""Token ids in one request to /detokenize; each may be hundreds of characters of text."""


@dataclass(frozen=True)
class ServerLimits:
    """What clients may take of a server.

    Attributes:
        max_connections: open connections.
        headers_seconds: time for the headers of a request to arrive.
        max_body_bytes: size of a request body.
        body_seconds: time for a request body to arrive.
        max_grammar_characters: size of the grammar that a JSON schema is turned into, repetitions expanded;
            the engine takes minutes and gigabytes for long ones.
        document_seconds: time to extract the text of a document.
        send_seconds: time for which a client may not read a chunk that was sent.
        request_seconds: time until a request is finished, including its time in the queue.
        drain_seconds: time that running requests get when the server shuts down.
    """

    max_connections: int = 512
    headers_seconds: float = 10.0
    max_body_bytes: int = 8 << 20
    body_seconds: float = 30.0
    max_grammar_characters: int = 128 << 10
    document_seconds: float = 60.0
    send_seconds: float = 60.0
    request_seconds: float = 600.0
    drain_seconds: float = 30.0
