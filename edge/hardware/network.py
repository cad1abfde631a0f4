"""What the network carries: rates of the interfaces, no byte counted twice."""

from __future__ import annotations

import contextlib
import pathlib
import socket
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from edge.files import read_text

Key = tuple[str, int]  # an interface: its name, and its index, since another may come by the same name


class Rates(NamedTuple):
    """Bytes per second."""

    received: float
    sent: float


def rates_between(before: Mapping[Key, Any], now: Mapping[Key, Any], counted: Iterable[Key], seconds: float) -> Rates | None:
    """The differences of counters (psutil's snetio) with themselves; None where none can be told.

    A counter that was not there before, or has started again, has no difference yet.
    """
    pairs = [(before[key], now[key]) for key in counted if key in before]
    pairs = [(old, new) for old, new in pairs if new.bytes_recv >= old.bytes_recv and new.bytes_sent >= old.bytes_sent]
    if not pairs or seconds <= 0:
        return None
    received, sent = (sum(getattr(new, name) - getattr(old, name) for old, new in pairs) for name in ("bytes_recv", "bytes_sent"))
    return Rates(received / seconds, sent / seconds)


def with_indexes(counters: Mapping[str, Any]) -> dict[Key, Any]:
    """Counters by interface. Raises OSError."""
    indexes = {name: index for index, name in socket.if_nameindex()}
    return {(name, indexes.get(name, 0)): counter for name, counter in counters.items()}


def counted_once(keys: Iterable[Key], root: pathlib.Path) -> list[Key]:
    """The interfaces that count: those of the lowest rank, so that a byte which passes several is counted at one of them."""
    folder = root / "sys/class/net"
    ranks = {key: _rank(folder / key[0], key[1], folder) for key in keys if key[0] not in ("lo", "lo0")}
    lowest = min(ranks.values(), default=0)
    return [key for key, rank in ranks.items() if rank == lowest]


def _rank(interface: pathlib.Path, index: int, folder: pathlib.Path) -> int:
    """0: hardware. 1: a container's way out, or what can't be told. 2: a bridge. 3: what passes another interface as well."""
    through = _number(interface / "iflink") or index  # itself; of a port, its switch; of a pair, the other end
    if (interface / "device").exists():
        return 0 if through == index or not index else 3
    if (interface / "bridge").exists():
        return 2
    if (interface / "brport").exists() or any(interface.glob("lower_*")) or _number(interface / "type") not in (None, 1):
        return 3  # in a bridge; a bond, a VLAN; a tunnel, which is no Ethernet (ARPHRD_ETHER in linux/if_arp.h)
    return 3 if through < index and _is_pair(index, through, folder) else 1


def _is_pair(index: int, other: int, folder: pathlib.Path) -> bool:
    """Whether both ends of a pair are here: else the other index is of another namespace."""
    ends = [(_number(interface / "iflink"), _number(interface / "ifindex")) for interface in folder.iterdir()]
    return (index, other) in ends


def _number(path: pathlib.Path) -> int | None:
    with contextlib.suppress(OSError, ValueError):
        return int(read_text(path))
    return None
