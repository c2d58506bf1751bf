"""The queue of requests that wait for a slot: its limits, and the order in which clients take turns.

A free slot goes to the client that has the fewest slots; among these to the one that waited longest since it
last got one. Requests of one client keep their order.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Iterable, Sequence

from pigguf.errors import PigError
from pigguf.serve.errors import RequestRefused, shutting_down
from pigguf.serve.generation_request import QueuedRequest

_FULL_QUEUES = 4  # clients whose own queues may be full at the same time
_MAX_RETRY_AFTER = 120  # seconds
_AVERAGING_RATE = 0.2  # weight of a new measurement in the moving average


class RequestQueue:
    """Requests that wait for a slot. Every method may be called from any thread.

    Args:
        max_waiting: the most waiting requests of one client; all clients together may have four times as
            many.
        slot_count: how many requests run at once, to estimate the waiting time.

    Attributes:
        changed: the condition that guards the queue; notified when requests arrive or the queue is closed.
        shutdown_reason: the error that new requests are refused with; None while they are accepted.
        is_closed: whether the scheduler is to stop.
    """

    def __init__(self, max_waiting: int, slot_count: int) -> None:
        self.changed = threading.Condition()
        self.shutdown_reason: PigError | None = None
        self.is_closed = False
        self._max_waiting = max_waiting
        self._slot_count = slot_count
        self._waiting: list[QueuedRequest] = []
        self._admissions: dict[str, int] = {}  # each present client -> number of its latest admission
        self._request_seconds = 1.0  # moving average

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, requests: Sequence[QueuedRequest]) -> None:
        """Queue requests of one client, all of them or none.

        Raises:
            RequestRefused: the queue is full (429), or the server is shutting down (503).
            PigError: `shutdown_reason`, if it is another error.
        """
        with self.changed:
            if self.shutdown_reason is not None:
                raise self.shutdown_reason
            self._check_limits(requests)
            self._waiting += requests
            self.changed.notify()

    def _check_limits(self, new: Sequence[QueuedRequest]) -> None:
        """Raise if the queue has no room for more requests of this client, or of any client.

        Raises:
            RequestRefused: with status 429 and the seconds after which to retry.
        """
        own = [request for request in self._waiting if new and request.client == new[0].client]
        limits = ((own, self._max_waiting), (self._waiting, _FULL_QUEUES * self._max_waiting))
        for waiting, limit in limits:
            if len(waiting) + len(new) > limit:
                seconds = math.ceil(self._request_seconds * (len(waiting) + 1) / self._slot_count)
                raise RequestRefused(
                    429,
                    f"the queue is full: {len(waiting):,} requests are waiting, and the limit is {limit:,}",
                    "try again later",
                    code="queue_full",
                    retry_after=min(max(seconds, 1), _MAX_RETRY_AFTER),
                )

    def stop_accepting(self, reason: PigError | None = None) -> tuple[list[QueuedRequest], PigError]:
        """Refuse new requests from now on, and empty the queue.

        Args:
            reason: the error for refused requests; None keeps the current one, or says that the server is
                shutting down.

        Returns:
            The requests that were waiting, and the error to fail them with.
        """
        with self.changed:
            self.shutdown_reason = reason = reason or self.shutdown_reason or shutting_down()
            removed, self._waiting = self._waiting, []
        return removed, reason

    def close(self) -> None:
        """Wake the scheduler's thread so that it stops."""
        with self.changed:
            self.is_closed = True
            self.changed.notify()

    def remove(self, request: QueuedRequest) -> bool:
        """Take a request out of the queue. Return False if it is not there: it was refused meanwhile."""
        with self.changed:
            if request not in self._waiting:
                return False
            self._waiting.remove(request)
            return True

    def remove_over(self, now: float) -> list[QueuedRequest]:
        """Take out and return the requests that were cancelled or are past their deadline at `now`."""
        with self.changed:
            over = [request for request in self._waiting if request.is_over(now)]
            self._waiting = [request for request in self._waiting if not request.is_over(now)]
        return over

    def in_turn(self, running_clients: Iterable[str]) -> list[QueuedRequest]:
        """Return the waiting requests in the order in which they get slots, if no other request arrives.

        Args:
            running_clients: the client of each running request.
        """
        slots_of = Counter(running_clients)

        def turn(request: QueuedRequest) -> tuple[int, int]:
            slots_of[request.client] += 1
            return slots_of[request.client], self._admissions.get(request.client, 0)

        with self.changed:
            return sorted(self._waiting, key=turn)

    def note_admission(self, client: str, running_clients: Iterable[str]) -> None:
        """Record that a client got a slot, and forget clients that have no request any more."""
        latest = max(self._admissions.values(), default=0)
        present = set(running_clients)
        with self.changed:
            present |= {request.client for request in self._waiting}
        self._admissions = {name: number for name, number in self._admissions.items() if name in present}
        self._admissions[client] = latest + 1

    def note_duration(self, seconds: float) -> None:
        """Record how long a finished request took from its submission, for Retry-After estimates."""
        self._request_seconds += (seconds - self._request_seconds) * _AVERAGING_RATE
