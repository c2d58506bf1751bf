"""Errors of the server, and every PigError as OpenAI's error JSON.

The form is {"error": {"message", "type", "param", "code"}}, with the token counts of a prompt that does not
fit.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Mapping
from typing import Any, NamedTuple

from pigguf import errors


class RequestRefused(errors.PigError):
    """A request that the server does not accept, or gives up.

    Attributes:
        status: the HTTP status.
        code: an identifier for programs; OpenAI's where it has one.
        param: the name of the parameter at fault.
        token_counts: counts to report in the error, by name.
        retry_after: seconds after which a retry may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        token_counts: Mapping[str, int] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param
        self.token_counts = dict(token_counts or {})
        self.retry_after = retry_after


class ErrorResponse(NamedTuple):
    """An HTTP response to an error.

    Attributes:
        body: JSON.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


# Error class -> HTTP status and code. The first match in an error's class hierarchy counts; others are 500.
_STATUS_BY_ERROR: dict[type[BaseException], tuple[int, str | None]] = {
    errors.UsageError: (400, None),
    errors.TokenizerError: (400, None),  # the chat template refuses the conversation
    errors.ContextOverflow: (400, "context_length_exceeded"),
    errors.Interrupted: (503, "interrupted"),
    errors.DoesNotFit: (503, "insufficient_memory"),
}
_ERROR_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_UNAVAILABLE_RETRY_AFTER = 8  # seconds
_log = logging.getLogger("pigguf")


def model_unavailable(failure: errors.PigError) -> RequestRefused:
    """Return the error for requests while the model is not loaded because of `failure`."""
    return RequestRefused(
        503,
        f"the model is unavailable: {failure.message}",
        "the server loads it again once that is over",
        code="unavailable",
        retry_after=_UNAVAILABLE_RETRY_AFTER,
    )


def internal_error(error: Exception) -> errors.EngineError:
    """Log an unexpected exception, and return the error to report instead.

    Its message may quote a prompt, so only its class and where it was raised are logged.
    """
    frames = traceback.extract_tb(error.__traceback__)
    _log.error("%s in %s", type(error).__name__, " < ".join(f"{f.name}:{f.lineno}" for f in reversed(frames)))
    return errors.EngineError(f"internal server error: {type(error).__name__}")


def shutting_down() -> RequestRefused:
    """Return the error for requests while the server shuts down."""
    return RequestRefused(503, "the server is shutting down", "try again later", code="shutting_down")


def error_response(error: errors.PigError) -> ErrorResponse:
    """Return the HTTP response to an error."""
    if isinstance(error, errors.WorkerLost | errors.GGUFError):
        error = model_unavailable(error)
    if isinstance(error, RequestRefused):
        headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
        if error.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        body = _error_body(error, error.status, error.code, error.param, error.token_counts)
        return ErrorResponse(error.status, body, headers)
    matches = (_STATUS_BY_ERROR[kind] for kind in type(error).__mro__ if kind in _STATUS_BY_ERROR)
    status, code = next(matches, (500, None))
    return ErrorResponse(status, _error_body(error, status, code, None, {}), {})


def _error_body(
    error: errors.PigError, status: int, code: str | None, param: str | None, token_counts: Mapping[str, int]
) -> dict[str, Any]:
    error_type = _ERROR_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    message = f"{error.message} ({error.hint})" if error.hint else error.message
    return {
        "error": {
            "message": _escape_surrogates(message),
            "type": error_type,
            "param": param and _escape_surrogates(param),
            "code": code,
            **token_counts,
        }
    }


def _escape_surrogates(text: str) -> str:
    r"""Return the text with lone surrogates as \udXXX: JSON input may contain them, UTF-8 output may not."""
    return text.encode("utf-8", "backslashreplace").decode()
