"""Hosts on this machine with a network that has delay and loss: network namespaces and TUN devices.

    with Network(hosts=2, delay=0.010, loss=0.01) as network:
        subprocess.Popen([*network.on(0), "ping", network.address(1)])

TCP at both ends is the kernel's own, so lost packets are sent again as usual. Packets go from one TUN device
to another through a thread of this process, which delays or drops them, as the kernel's netem does where it
is built. This needs Linux, root and iproute2: `missing` returns what is missing. Bandwidth, reordering and
host names are not simulated.
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
    """Return why no network can be made here; None if it can."""
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
    """Hosts that are connected by a network. A context manager.

    Args:
        hosts: how many.
        delay: seconds that a packet takes, each way.
        loss: the share of packets that are lost, 0 to 1.
        mtu: bytes of the largest packet; large ones cost this process less.

    Attributes:
        delay, loss: may be changed at any time; a loss of 1 is a disconnected cable.
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
        self._forwarder = threading.Thread(target=self._forward_packets, daemon=True)
        self._forwarder.start()

    def address(self, host: int) -> str:
        """Return the IPv4 address of a host."""
        return f"10.77.0.{host + 1}"

    def on(self, host: int) -> tuple[str, ...]:
        """Return the prefix that makes a command run on a host."""
        return ("ip", "netns", "exec", self._hosts[host])

    def __enter__(self) -> Network:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._closing)
        self._forwarder.join()
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

    def _forward_packets(self) -> None:
        """Read packets from all hosts and write each when it is due, until the network is closed."""
        in_flight: deque[tuple[float, int, bytes]] = deque()  # due, to whom
        selector = selectors.SelectSelector()  # epoll counts in whole milliseconds
        for descriptor in (self._wake, *self._targets.values()):
            selector.register(descriptor, selectors.EVENT_READ)
        while True:
            rest = max(0.0, in_flight[0][0] - time.monotonic()) if in_flight else None
            for key, _ in selector.select(rest):
                if key.fd == self._wake:
                    selector.close()
                    return
                for packet in _packets(key.fd):
                    target = self._targets.get(packet[16:20])  # of an IPv4 header: the destination
                    if target is not None and self._random.random() >= self.loss:
                        in_flight.append((time.monotonic() + self.delay, target, packet))
            while in_flight and in_flight[0][0] <= time.monotonic():
                _, target, packet = in_flight.popleft()
                os.write(target, packet)


def _packets(descriptor: int) -> list[bytes]:
    """Return the packets that wait, at most 64, because others become due meanwhile."""
    packets: list[bytes] = []
    try:
        while len(packets) < 64:
            packets.append(os.read(descriptor, 1 << 16))
    except BlockingIOError:
        pass
    return packets


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
