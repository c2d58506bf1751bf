"""Requests to the scheduler: what a caller submits, and how the scheduler tracks it until it has a slot."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from pigguf.errors import PigError
from pigguf.inference.engine import SamplingParams
from pigguf.serve.errors import RequestRefused, internal_error
from pigguf.serve.events import QueuePosition, RequestEvent, RequestFailed


@dataclass(frozen=True)
class GenerationRequest:
    """One answer to generate.

    Attributes:
        prompt: token ids, at least one, and at most as many as the context window holds.
        sampling: how tokens are sampled.
        max_tokens: the most tokens to generate; None generates up to the end of the window.
        stop: the text ends before the first of these strings.
        logprobs: how many of the most likely tokens to report with each generated one; None reports none.
        strip_leading_space: remove the space that a sentencepiece vocabulary puts before the first word.
        report_progress: whether to deliver QueuePosition and PrefillProgress events.
        client: any string that identifies the client; clients take turns.
    """

    prompt: Sequence[int]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    logprobs: int | None = None
    strip_leading_space: bool = False
    report_progress: bool = False
    client: str = ""


class QueuedRequest:
    """A submitted request, with who receives its events.

    Attributes:
        request: what was submitted.
        client: the request's client.
        prompt: its prompt as an array (n_tokens,), int32, which is compared faster than a list.
        deliver: receives its events, called from the scheduler's thread.
        deadline: time.monotonic() after which it fails.
        is_cancelled: whether its client no longer waits for it.
        submitted_at: time.monotonic() of its submission.
    """

    def __init__(
        self, request: GenerationRequest, deliver: Callable[[RequestEvent], None], deadline: float
    ) -> None:
        self.request = request
        self.client = request.client
        self.prompt = np.array(request.prompt, np.int32)
        self.deliver = deliver
        self.deadline = deadline
        self.is_cancelled = False
        self.submitted_at = time.monotonic()
        self._reported_position: int | None = None

    def report_position(self, requests_ahead: int) -> None:
        """Deliver the position in the queue, if the client asked for progress and it has changed."""
        if self.request.report_progress and requests_ahead != self._reported_position:
            self._reported_position = requests_ahead
            self.deliver(QueuePosition(requests_ahead))

    def is_over(self, now: float) -> bool:
        """Return whether the request was cancelled, or is past its deadline at `now` (time.monotonic())."""
        return self.is_cancelled or now > self.deadline

    def fail_as_over(self) -> RequestFailed:
        """Return the event for a request that was cancelled or ran out of time."""
        if self.is_cancelled:
            return RequestFailed(RequestRefused(499, "the client went away", code="cancelled"))
        return RequestFailed(
            RequestRefused(
                504,
                "the request did not finish within its time limit",
                "ask for fewer tokens, or try again when the server is less busy",
                code="timeout",
            )
        )


class RequestHandle:
    """The requests of one submission, to cancel them."""

    def __init__(self, requests: Sequence[QueuedRequest]) -> None:
        self._requests = requests

    def cancel(self) -> None:
        """Cancel all of them: their slots are free after the current step."""
        for request in self._requests:
            request.is_cancelled = True


def request_failure(error: Exception) -> RequestFailed:
    """Return the event that ends a request by an error; an unexpected one is logged, without its message."""
    return RequestFailed(error if isinstance(error, PigError) else internal_error(error))
