"""A network in user space: two ends, each a network namespace, and between them a wire that loses what a rule says.

Neither netem nor `ip netns` is needed. An end is a thread with namespaces of its own: what it starts inherits them, and the kernel
removes them with the last of these processes, so that nothing is left behind however a run ends. The wire is a TUN device at each
end: whole IP packets with their checksums, as large as they would be on a cable, since nothing is left to a network card.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import ctypes
import fcntl
import os
import pathlib
import random
import select
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
Rule = Callable[[bytes, bool], bool]  # whether a packet arrives; True: from the node's end to the server's

NODE_ADDRESS = "10.0.0.1"
SERVER_ADDRESSES = ("10.0.0.2", "10.0.0.3")
SERVER_NAME = "orchestrator"  # in /etc/hosts of the node's end

CLONE_NEWNS, CLONE_NEWNET = 0x0002_0000, 0x4000_0000  # sched.h
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x4004_54CA, 0x0001, 0x1000  # linux/if_tun.h
MTU = 1500
SYN, ACK = 0x02, 0x10


# ---- Rules ----


def all_arrive(_packet: bytes, _up: bool) -> bool:
    """A wire as it should be."""
    return True


def none_arrive(_packet: bytes, _up: bool) -> bool:
    """A cable that is cut."""
    return False


def only_down(_packet: bytes, up: bool) -> bool:
    """The server is heard, the node is not."""
    return not up


def only_up(_packet: bytes, up: bool) -> bool:
    """The node is heard, the server is not."""
    return up


def at_most_300_bytes(packet: bytes, _up: bool) -> bool:
    """A tunnel that is narrower than it says, and says nothing of what it drops."""
    return len(packet) <= 300


class Lossy:
    """Each packet is lost by chance."""

    def __init__(self, share: float, seed: int) -> None:
        self._share = share
        self._random = random.Random(seed)

    def __call__(self, _packet: bytes, _up: bool) -> bool:
        return self._random.random() >= self._share


class Nat:
    """A box that carries the connections it has seen begin, and drops in silence what belongs to none. To the two ends it makes no
    difference that this one leaves the addresses as they are."""

    def __init__(self) -> None:
        self._ports: set[int] = set()  # the node's

    def __call__(self, packet: bytes, up: bool) -> bool:
        header = 4 * (packet[0] & 0x0F)
        source, destination = struct.unpack_from("!HH", packet, header)
        if up and packet[header + 13] & (SYN | ACK) == SYN:
            self._ports.add(source)
        return (source if up else destination) in self._ports


# ---- The ends, and the wire ----


class End:
    """A thread in a network and a mount namespace of its own, with a device `wire`, which this process has open as `device`."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._hosts = tempfile.NamedTemporaryFile("w", suffix=".hosts")  # noqa: SIM115  closed with this object
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self.device = self.call(self._enter, addresses)

    def call(self, function: Callable[..., T], *arguments: object) -> T:
        """Call a function in the namespaces, and with it what it starts."""
        return self._thread.submit(function, *arguments).result()

    def name(self, address: str) -> None:
        """Have SERVER_NAME mean this address from now on."""
        pathlib.Path(self._hosts.name).write_text(f"127.0.0.1 localhost\n{address} {SERVER_NAME}\n", encoding="ascii")

    def close(self) -> None:
        self._thread.shutdown()
        os.close(self.device)
        self._hosts.close()

    def _enter(self, addresses: Sequence[str]) -> int:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"no namespace: {os.strerror(ctypes.get_errno())} (it takes root)")
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
        fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"wire", IFF_TUN | IFF_NO_PI))
        commands = ["mount --make-rprivate /", f"mount --bind {self._hosts.name} /etc/hosts", "ip link set lo up"]
        commands += [f"ip address add {address}/24 dev wire" for address in addresses]
        for command in [*commands, f"ip link set wire mtu {MTU} up"]:
            subprocess.run(command.split(), check=True)
        return device


class Wire:
    """Two ends, and what carries packets from one to the other while `rule` lets them through: it may be changed at any time."""

    def __init__(self) -> None:
        self.rule: Rule = all_arrive
        self.node, self.server = End([NODE_ADDRESS]), End(SERVER_ADDRESSES)
        self.node.name(SERVER_ADDRESSES[0])
        self._wake, self._woken = os.pipe()
        self._carrier = threading.Thread(target=self._carry, daemon=True)
        self._carrier.start()

    def close(self) -> None:
        """What runs at its ends must have ended before."""
        os.close(self._woken)
        self._carrier.join()
        os.close(self._wake)
        self.node.close()
        self.server.close()

    def _carry(self) -> None:
        up = {self.node.device: self.server.device}
        ways = {**up, self.server.device: self.node.device}
        while True:
            ready, _, _ = select.select([*ways, self._wake], [], [])
            if self._wake in ready:
                return
            for device in ready:
                packet = os.read(device, MTU)
                if packet[0] >> 4 == 4 and self.rule(packet, device in up):  # IPv6 would only look for neighbours
                    with contextlib.suppress(OSError):  # what the kernel does not take is lost, as on a cable
                        os.write(ways[device], packet)
