"""How much one peer may take of what all share: calls, rows, memory, lines of the log. One network never takes all of it."""

from __future__ import annotations

import asyncio
import collections
import functools
import ipaddress
import time
from collections.abc import Callable, Hashable, Iterable

import grpc

from edge.event_log import EventLog
from edge.fleet.row import End, Refused, Row, hanging_seconds
from edge.text import show_bytes, show_seconds, visible

COMPLAINTS_PER_SECOND = 10  # lines of refusals in the log, as many of warnings, and of errors
STRANGERS_PER_MINUTE = 60  # lines of who shows no token that is valid, of each network one
PLENTY = ("joined", "back", "left", "disconnected")  # what any sender can make come in masses
PLENTY_PER_SECOND, PLENTY_OF_ONE = 200, 3  # lines of these, and of each kind of one node
SILENT = ("late", "lost", "hung", "failed")
SILENT_PER_MINUTE = 5000  # lines of each kind, a twentieth of it of one network

OWN_BYTES = 8 * 1024  # that each node may keep here whatever the others do: a box of 8 GPUs needs 6 KiB with its history
MIN_POOL_BYTES = 16 * 2**20  # of all that nodes keep beyond it
POOL_BYTES_A_NODE = 2 * 1024  # of the pool of a large fleet


@functools.lru_cache(maxsize=10_000)
def network_of(address: str) -> str:
    """What one owner has for certain: an IPv4 address, or the 64 bits of an IPv6 network."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    return address if ip.version == 4 else str(ipaddress.ip_network((ip, 64), strict=False))


class RateLimit:
    """How many of something there may be in each window of so many seconds by the registry's clock: of all, and of each key."""

    def __init__(self, seconds: float, most: int, of_each: int) -> None:
        self._seconds, self._most, self._of_each = seconds, most, of_each
        self._window = 0
        self._counts: collections.Counter[Hashable] = collections.Counter()
        self._all = 0

    def takes(self, key: Hashable, now: float) -> bool:
        """Whether there may be one more; then it counts."""
        window = int(now / self._seconds)
        if window != self._window:
            self._window, self._all = window, 0
            self._counts.clear()
        if self._all >= self._most or self._counts[key] >= self._of_each:
            return False
        self._all += 1
        self._counts[key] += 1
        return True


class WaitingRoom:
    """Calls whose first message has not come, by number. One that waits too long is ended, by `end`; and where too many wait, the
    one that has waited longest: a fleet that comes back at once has sent its messages along.
    """

    def __init__(self, most: int, seconds: float, end: Callable[[int, str, End], object]) -> None:
        self._most, self._seconds, self._end = most, seconds, end
        self._calls: dict[int, tuple[float, str]] = {}  # since when, and whose; the longest waiting first
        self._has_timer = False

    def enter(self, call: int, address: str) -> None:
        """A call comes. In the event loop."""
        if not self._has_timer:
            self._has_timer = True
            asyncio.get_running_loop().call_later(self._seconds, self._look)
        self._calls[call] = time.monotonic(), address
        if len(self._calls) > self._most:
            self._end_first(End("too many calls wait for their first message", grpc.StatusCode.RESOURCE_EXHAUSTED))

    def leave(self, call: int) -> None:
        """Its message has come, or it is over."""
        self._calls.pop(call, None)

    def _look(self) -> None:
        """One timer for all of them, however many come and go."""
        while self._calls:
            since, _ = next(iter(self._calls.values()))
            if (left := since + self._seconds - time.monotonic()) > 0:
                asyncio.get_running_loop().call_later(left, self._look)
                return
            self._end_first(End(f"no message within {self._seconds:g} s", grpc.StatusCode.DEADLINE_EXCEEDED))
        self._has_timer = False

    def _end_first(self, end: End) -> None:
        call, (_, address) = next(iter(self._calls.items()))
        del self._calls[call]
        self._end(call, address, end)


class Lines:
    """Writes the server's log. Of what comes in masses it keeps some lines in a time, and counts the others."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._plenty = RateLimit(1, PLENTY_PER_SECOND, PLENTY_OF_ONE)
        self._silent = RateLimit(60, 2 * SILENT_PER_MINUTE, SILENT_PER_MINUTE // 20)
        self._strangers = RateLimit(60, STRANGERS_PER_MINUTE, 1)
        self._untold = 0  # of strangers, since the last line of one
        self._complaints = RateLimit(1, 3 * COMPLAINTS_PER_SECOND, COMPLAINTS_PER_SECOND)

    def add(self, kind: str, text: str, node_id: str, now: float, address: str = "") -> None:
        """A line, at `now` by the registry's clock. Of a silent node and of a stranger, the address as well."""
        if kind in PLENTY:
            is_kept = self._plenty.takes((kind, node_id), now)
        elif kind in SILENT:
            is_kept = self._silent.takes((kind, network_of(address)), now)
        elif address:
            if not self._strangers.takes(network_of(address), now):
                self._untold += 1  # no line is missed: the next one says how many there were
                return
            text += f"; {self._untold:,} more were refused since the last such line" * bool(self._untold)
            is_kept, self._untold = True, 0
        else:
            is_kept = self._complaints.takes(kind, now)
        if is_kept:
            self._log.add(kind, text, node_id)
        else:
            self._log.miss()

    def tell_devices(self, before: Row | None, row: Row) -> None:
        """A line where more or fewer devices than before can't be read."""
        failed = row.vitals.errors
        if failed == (before.vitals.errors if before else 0):
            return
        kind, text = "back", "all its GPUs are read again"
        if failed:
            why = next((device.error for device in row.sample.devices if device.error), "it does not say why")
            kind, text = "failed", f"{failed} of {len(row.capacities.devices)} GPUs can't be read: {visible(why)}"
        self.add(kind, text, row.node_id, row.heartbeat_at, row.address)

    def tell_sensors(self, row: Row, now: float) -> None:
        """A line where readings come no longer, though heartbeats do; or again."""
        hanging = hanging_seconds(row, now)
        kind, text = "back", "its readings come again"
        if hanging is not None:
            kind, text = "hung", f"no readings for {show_seconds(hanging)}"
        self.add(kind, text, row.node_id, now, row.address)


class Memory:
    """What rows keep beyond OWN_BYTES each. So some may be large, but not all; and who is small is never refused for others."""

    def __init__(self, max_nodes: int) -> None:
        self._most = max(MIN_POOL_BYTES, POOL_BYTES_A_NODE * max_nodes)
        self._all = 0
        self._of_network: collections.Counter[str] = collections.Counter()

    def swap(self, before: Row | None, after: Row | None) -> None:
        """One row takes the place of another; None is no row. Raises Refused where there is no room, and nothing changes."""
        old, new = before.kept_bytes() if before else 0, after.kept_bytes() if after else 0
        if old <= OWN_BYTES and new <= OWN_BYTES:  # so it is nearly always
            return
        less, more = max(old - OWN_BYTES, 0), max(new - OWN_BYTES, 0)
        if after and more > less:
            network, growth = network_of(after.address), more - less
            if self._all + growth > self._most or self._of_network[network] + growth > self._most // 2:
                reason = (
                    f"{show_bytes(new)} are too much to keep of one node: {show_bytes(self._most)} are there "
                    f"for all large ones, half of it for those of one network; start the server with a larger --max-nodes"
                )
                raise Refused(reason, grpc.StatusCode.RESOURCE_EXHAUSTED)
        for row, size in ((before, -less), (after, more)):
            if row and size:
                self._all += size
                self._of_network[network_of(row.address)] += size
        if before and not self._of_network[network_of(before.address)]:
            del self._of_network[network_of(before.address)]


class Places:
    """Who has a place, by network, and who gives way where all are taken.

    First who is gone, of the network that has most; who lives, only where one network has more than half of all places. A network
    never pushes out one that has fewer, so that cheap ids of one address cost their own kind alone.
    """

    def __init__(self, max_nodes: int) -> None:
        self._max_nodes = max_nodes
        self._ids: dict[str, dict[str, None]] = {}  # in the order of their coming
        self._gone: dict[str, collections.deque[Row]] = {}  # who gives way first is first
        self._crowded: collections.deque[str] = collections.deque()  # networks with someone gone, the largest first
        self._greedy = ""  # the network that was the last to have more than half

    def add(self, row: Row) -> None:
        """A row has come."""
        network = network_of(row.address)
        ids = self._ids.setdefault(network, {})
        ids[row.node_id] = None
        if len(ids) > self._max_nodes // 2:
            self._greedy = network

    def remove(self, row: Row) -> None:
        """And has gone out."""
        network = network_of(row.address)
        if ids := self._ids.get(network):
            ids.pop(row.node_id, None)
            if not ids:
                del self._ids[network]

    def count(self, network: str) -> int:
        """Rows of a network."""
        return len(self._ids.get(network, ()))

    def set_gone(self, rows: Iterable[Row]) -> None:
        """Who is lost or has left, as of now, who gives way first in front."""
        self._gone = {}
        for row in rows:
            self._gone.setdefault(network_of(row.address), collections.deque()).append(row)
        self._crowded = collections.deque(sorted(self._gone, key=self.count, reverse=True))

    def leave(self, row: Row) -> None:
        """One has said goodbye: it gives way before who is lost."""
        network = network_of(row.address)
        if network not in self._gone:
            self._gone[network] = collections.deque()
            self._crowded.append(network)
        self._gone[network].appendleft(row)

    def next_gone(self, network: str) -> Row | None:
        """Who gives way to a newcomer of this network: it is not offered again. It may have come back since."""
        while self._crowded and not self._gone[self._crowded[0]]:
            del self._gone[self._crowded.popleft()]
        if not self._crowded:
            return None
        largest = self._crowded[0]
        mine, most = self.count(network), self.count(largest)
        if mine >= most and self._gone.get(network):
            return self._gone[network].popleft()
        return self._gone[largest].popleft() if most >= mine else None

    def newest_of_the_greedy(self, network: str) -> str | None:
        """The newest id of another network that has more than half of all places."""
        ids = self._ids.get(self._greedy, {})
        return next(reversed(ids)) if len(ids) > self._max_nodes // 2 and network != self._greedy else None
