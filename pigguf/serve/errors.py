"""What the server refuses, and every error as OpenAI's error JSON.

The form is OpenAI's: {"error": {"message", "type", "param", "code"}}, and beside these the token counts where
a prompt does not fit. Left out: the words of the engine's own errors, which are theirs.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigguf import errors


class RequestRefused(errors.PigError):
    """A request that the server does not take.

    Attributes:
        status: of HTTP.
        code: a word for programs, OpenAI's where it has one.
        param: the parameter at fault.
        counts: tokens, by name.
        retry_after: seconds after which it is worth to ask again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        counts: Mapping[str, int] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param
        self.token_counts = dict(counts or {})
        self.retry_after = retry_after


class ErrorResponse(NamedTuple):
    """An HTTP answer to an error: the body is JSON."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


# The nearest class in an error's ancestry decides; what is not here is the server's own fault.
_BY_ERROR: dict[type[BaseException], tuple[int, str | None]] = {
    errors.UsageError: (400, None),
    errors.TokenizerError: (400, None),  # a conversation that the model's template refuses
    errors.ContextOverflow: (400, "context_length_exceeded"),
    errors.Interrupted: (503, "interrupted"),
    errors.DoesNotFit: (503, "insufficient_memory"),
}
_RETRY_AFTER = 8  # seconds
_log = logging.getLogger("pigguf")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def model_unavailable(trouble: errors.PigError) -> RequestRefused:
    """That the model is not there for what befell it."""
    return RequestRefused(
        503,
        f"the model cannot answer now: {trouble.message}",
        "the server goes on by itself when that is over",
        code="unavailable",
        retry_after=_RETRY_AFTER,
    )


def internal_error(error: Exception) -> errors.EngineError:
    """A failure that nobody foresaw. Its message may quote a prompt: what is logged is its sort and place."""
    frames = traceback.extract_tb(error.__traceback__)
    _log.error("%s in %s", type(error).__name__, " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames)))
    return errors.EngineError(f"the server failed: {type(error).__name__}")


def shutting_down() -> RequestRefused:
    """That the server takes nothing more."""
    return RequestRefused(503, "the server is about to end", "ask again in a while", code="shutting_down")


def error_response(error: errors.PigError) -> ErrorResponse:
    """The HTTP answer to an error."""
    if isinstance(error, errors.WorkerLost | errors.GGUFError):
        error = model_unavailable(error)
    if isinstance(error, RequestRefused):
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return ErrorResponse(
            error.status, _body(error, error.status, error.code, error.param, error.token_counts), headers
        )
    kinds = (_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _BY_ERROR)
    status, code = next(kinds, (500, None))
    return ErrorResponse(status, _body(error, status, code, None, {}), {})


def _body(
    error: errors.PigError, status: int, code: str | None, param: str | None, counts: Mapping[str, int]
) -> dict[str, Any]:
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return {
        "error": {
            "message": _sendable(message),
            "type": kind,
            "param": param and _sendable(param),
            "code": code,
            **counts,
        }
    }


def _sendable(text: str) -> str:
    """A text whose half characters, which JSON may name and UTF-8 may not, are named again."""
    return text.encode("utf-8", "backslashreplace").decode()
