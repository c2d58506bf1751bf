"""Load generator: locust users in a separate process, which record when each token arrived.

    python load.py < plan.json > results.json         PYTHONPATH=peers.install_locust()

A plan is {"url", "groups": [{"clients", "after", "decides", "requests": [body, ...]}]}: a group's clients
start `after` seconds after the beginning, and each sends the group's next request when its answer is
complete. The run ends when all groups with `decides` have their answers; other answers are cut off.
The results are {"cpu": CPU seconds of this process, "answers": [{"group", "client", "max_tokens", "begun",
"ended", "times", "lines", "error"}]}, in seconds from the beginning; `ended` is null if the answer was cut
off.

While an answer runs, its lines are only given a timestamp; they are parsed at the end, because the server's
two threads need both cores. Locust's own clients wait for a full block before they return data, so the users
read lines from geventhttpclient, which locust's clients are built on. Each answer has a connection of its
own, because llama.cpp's server occasionally closes connections that were used before.
"""

import json
import resource
import sys
import time
from collections import deque
from itertools import count
from typing import Any

import gevent
from geventhttpclient import HTTPClient
from locust import User, task
from locust.env import Environment
from locust.exception import StopUser

PATIENCE = 600  # seconds without a word from the server


class Group:
    """A group of clients that share a list of requests."""

    def __init__(self, number: int, plan: dict[str, Any]) -> None:
        self.number = number
        self.clients: int = plan["clients"]
        self.after: float = plan["after"]
        self.decides: bool = plan["decides"]
        self.requests = deque(plan["requests"])
        self.running = 0
        self.numbers = count()

    @property
    def is_done(self) -> bool:
        return not self.requests and not self.running


def user_class(group: Group, url: str, begun: float, answers: list[dict[str, Any]]) -> type[User]:
    """Locust's users of a group."""

    class Client(User):
        fixed_count = group.clients
        host = url

        def on_start(self) -> None:
            self.number = next(group.numbers)
            gevent.sleep(max(0.0, begun + group.after - time.monotonic()))

        @task
        def ask(self) -> None:
            if not group.requests:
                raise StopUser
            request = group.requests.popleft()
            body = json.dumps({**request, "user": f"client {self.number}"}).encode()
            seen: list[tuple[float, bytes]] = []
            answer = {"group": group.number, "client": self.number, "seen": seen, "error": None}
            answer["max_tokens"] = request["max_tokens"]
            answer |= {"begun": time.monotonic() - begun, "ended": None}
            answers.append(answer)
            group.running += 1
            http = HTTPClient.from_url(url, connection_timeout=PATIENCE, network_timeout=PATIENCE)
            try:
                response = http.post("/v1/completions", body, {"Content-Type": "application/json"})
                while line := response.readline(b"\n"):
                    if line.startswith(b"data:"):
                        seen.append((time.monotonic() - begun, line))
                if response.status_code != 200:
                    answer["error"] = f"status {response.status_code}"
                answer["ended"] = time.monotonic() - begun
            except Exception as error:
                answer["error"] = repr(error)
            finally:
                http.close()
                group.running -= 1

    return type(f"Group{group.number}", (Client,), {})


def main() -> None:
    plan = json.load(sys.stdin)
    groups = [Group(number, one) for number, one in enumerate(plan["groups"])]
    begun, answers = time.monotonic() + 1, []  # type: ignore[var-annotated]
    classes = [user_class(group, plan["url"], begun, answers) for group in groups]
    runner = Environment(user_classes=classes, stop_timeout=0).create_local_runner()
    clients = sum(group.clients for group in groups)
    runner.start(clients, spawn_rate=clients)
    while not all(group.is_done for group in groups if group.decides):
        gevent.sleep(0.1)
    runner.quit()
    for answer in answers:
        seen = answer.pop("seen")
        answer["times"] = [time_ for time_, _ in seen]
        answer["lines"] = [line[5:].decode().strip() for _, line in seen]
    used = resource.getrusage(resource.RUSAGE_SELF)
    json.dump({"cpu": used.ru_utime + used.ru_stime, "answers": answers}, sys.stdout)


if __name__ == "__main__":
    main()
