"""Hosts on this machine, and a wire between them with delay and loss: network namespaces and TUN devices.

    with Network(hosts=2, delay=0.010, loss=0.01) as network:
        subprocess.Popen([*network.on(0), "ping", network.address(1)])

The TCP at both ends is the kernel's own, so a lost packet is sent again when it says so. Packets go from one
TUN device to another through a thread of this process, which holds them back or drops them: what the kernel's
netem does, where it is built. Takes Linux, root and iproute2: `missing` says what is not there.
Left out: a rate, reordering, names.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import random
import selectors
import shutil
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from types import TracebackType

_TUNSETIFF, _TUN, _NO_PACKET_INFORMATION = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h
_NUMBERS = itertools.count()


def missing() -> str | None:
    """Why there can be no network here; None where there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if shutil.which("ip") is None:
        return "there is no `ip`: apt-get install iproute2"
    try:
        os.close(_open_tun("pigguf-try"))
    except OSError as error:
        return f"no TUN device can be made: {error}"
    name = f"pigguf-try-{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "no network namespace can be made"
    _ip("netns", "del", name)
    return None


class Network:
    """A context manager.

    Args:
        hosts: how many.
        delay: seconds that a packet takes, each way.
        loss: share of the packets that get lost, 0 to 1.
        mtu: bytes of the largest packet; large ones cost this process less.

    Attributes:
        delay, loss: may be changed at any time; a loss of 1 is a cable that was pulled.
    """

    def __init__(self, hosts: int, delay: float, loss: float = 0.0, mtu: int = 1500) -> None:
        self.delay, self.loss = delay, loss
        self._mtu = mtu
        self._random = random.Random(0)
        self._hosts: list[str] = []
        self._targets: dict[bytes, int] = {}  # by IPv4 address
        self._wake, self._closing = os.pipe()
        for _ in range(hosts):
            self._add()
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def address(self, host: int) -> str:
        """Its IPv4 address."""
        return f"10.77.0.{host + 1}"

    def on(self, host: int) -> tuple[str, ...]:
        """What to put in front of a command for it to run on that host."""
        return ("ip", "netns", "exec", self._hosts[host])

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._closing)
        self._carrier.join()
        for descriptor in (self._wake, *self._targets.values()):
            os.close(descriptor)
        for name in self._hosts:
            _ip("netns", "del", name)

    def _add(self) -> None:
        number = len(self._hosts)
        name = f"pigguf-{os.getpid()}-{next(_NUMBERS)}"
        _ip("netns", "add", name)
        self._hosts.append(name)
        device = f"pig{os.getpid()}-{number}"
        descriptor = _open_tun(device)  # stays open to this process when the device moves
        os.set_blocking(descriptor, False)
        packed = bytes(map(int, self.address(number).split(".")))
        self._targets[packed] = descriptor
        _ip("link", "set", device, "netns", name)
        _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", name, "link", "set", device, "mtu", str(self._mtu), "txqueuelen", "10000", "up")
        _ip("-n", name, "address", "add", f"{self.address(number)}/32", "dev", device)
        # the usual congestion control: another one may be this kernel's own default
        _ip("-n", name, "route", "add", "10.77.0.0/24", "dev", device, "congctl", "cubic")

    def _carry(self) -> None:
        """Take packets from all hosts and hand each on when it is due, until this is closed."""
        under_way: deque[tuple[float, int, bytes]] = deque()  # due, to whom
        selector = selectors.SelectSelector()  # epoll counts in whole milliseconds
        for descriptor in (self._wake, *self._targets.values()):
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            rest = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            for key, _ in selector.select(rest):
                if key.fd == self._wake:
                    selector.close()
                    return
                for packet in _packets(key.fd):
                    target = self._targets.get(packet[16:20])  # of an IPv4 header: the destination
                    if target is not None and self._random.random() >= self.loss:
                        under_way.append((time.monotonic() + self.delay, target, packet))
            while under_way and under_way[0][0] <= time.monotonic():
                _, target, packet = under_way.popleft()
                os.write(target, packet)


def _packets(descriptor: int) -> list[bytes]:
    """Those that wait, some dozens at most: others' are due meanwhile."""
    found: list[bytes] = []
    try:
        while len(found) < 64:
            found.append(os.read(descriptor, 1 << 16))
    except BlockingIOError:
        pass
    return found


def _open_tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    try:
        fcntl.ioctl(
            descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TUN | _NO_PACKET_INFORMATION)
        )
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
