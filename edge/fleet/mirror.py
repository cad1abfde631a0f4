"""A server's fleet as its updates tell it: WatchUpdates go in, rows come out. All that comes is checked, here and in wire.py."""

from __future__ import annotations

import collections
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import node_pb2 as pb
from edge.event_log import Event, EventLog
from edge.fleet.row import Refused, Row
from edge.fleet.source import EVENTS_KEPT
from edge.fleet.wire import event_of, row_of, row_with, rows_after, seconds_of
from edge.protocol import MAX_NODES_A_MESSAGE

MAX_NODES = 20_000  # of one server
MAX_BYTES = 512 * 2**20  # of what these keep
MAX_REMOVED = 2**17  # in one update: a server keeps the numbers of a hundred thousand
MAX_KINDS = 64  # of events: each has a room of its own
DRIFT = 1e-4  # by which two clocks may differ in a second; crystals stay below a tenth of that
TOLERANCE_SECONDS = 0.005  # of clocks that are told in milliseconds


class Offset:
    """How far this machine's clock is ahead of a server's, at least: ages that are told by it are never too young, and too old by
    a round trip at most.

    An update was made after the message that it echoes was sent, which tells the least that the offset can be; and before it
    arrived. Where both can't be, one of the clocks stood still or jumped: then what was known is forgotten.
    """

    def __init__(self) -> None:
        self._least = -math.inf
        self._as_of = 0.0

    def take(self, made: float, sent: float, arrived: float) -> float:
        """An update that was `made` (by the server's clock) after something was sent and before it arrived here. Returns by how
        much times that were told before must be changed, in seconds: 0, but where a clock stood still."""
        before = self._least - DRIFT * (arrived - self._as_of)
        self._least, self._as_of = max(before, sent - made), arrived
        if self._least <= arrived - made + TOLERANCE_SECONDS:
            return 0.0
        self._least = sent - made
        return self._least - before

    def here(self, made: float) -> float:
        """A moment of the server's clock by the one of this machine."""
        return made + self._least


class Rows:
    """Rows by the numbers that the server gives them, within bounds."""

    def __init__(self) -> None:
        self.known: dict[int, Row] = {}
        self.numbers: dict[str, int] = {}  # by the node's id
        self._bytes = 0

    def put(self, number: int, row: Row) -> None:
        """Raises Refused where there is no room."""
        self.remove(number)
        self.remove(self.numbers.get(row.node_id))
        self._grow(row.kept_bytes(), 1)
        self.known[number] = row
        self.numbers[row.node_id] = number

    def _grow(self, size_bytes: int, nodes: int = 0) -> None:
        self._bytes += size_bytes
        if len(self.known) + nodes > MAX_NODES or self._bytes > MAX_BYTES:
            raise Refused(f"its fleet is larger than what is taken from one server: {MAX_NODES} nodes, {MAX_BYTES >> 20} MiB")

    def remove(self, number: int | None) -> None:
        """One that is not there is no error."""
        if number is not None and (row := self.known.pop(number, None)):
            self._bytes -= row.kept_bytes()
            del self.numbers[row.node_id]

    def change(self, pairs: Iterable[tuple[int, Row]]) -> None:
        """Rows that have grown by readings alone. Raises Refused where there is no room."""
        for number, row in pairs:
            self._grow(len(row.history) - len(self.known[number].history))
            self.known[number] = row


class Mirror:
    """One server's fleet. Any thread may look.

    Its rows' times are by the clock of this machine. `name` stands in each row as its server; empty where there is but one.
    What happens comes into `log`, too.
    """

    def __init__(
        self,
        log: EventLog,
        name: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.clock = clock
        self._local_wall = wall
        self._log = log
        self._seen: collections.deque[Event] = collections.deque(maxlen=EVENTS_KEPT)
        self._kinds: set[str] = set()
        self.status = pb.ServerStatus()
        self.epoch = self.version = 0
        self.is_known = False  # a whole fleet has come
        self.made_at = self.heard_at = -math.inf  # the newest update: when it was made, and when it came
        self.made_at_wall = 0.0  # the same by the server's wall clock
        self._wall_ahead = 0.0  # the server's wall clock
        self._offset = Offset()
        self._sent = 0.0  # of what the server has echoed
        self._writing = threading.Lock()  # held while the rows are changed
        self._lock = threading.Lock()  # held while they are looked at, briefly
        self._rows = Rows()
        self._coming: Rows | None = None  # a snapshot, of which more follows
        self._told: dict[int, bytes] = {}  # by number: histories as of the last details
        self._known_until = math.inf

    # ---- What comes ----

    def begin(self) -> None:
        """A new stream: what the old one left half is void."""
        with self._writing:
            self._coming, self._sent = None, self.clock()
            self._told.clear()

    def take(self, update: pb.WatchUpdate) -> None:
        """Raises Refused for what no server of ours would send: then the stream must end, and what is known is as it was before
        the message, or partly as after it."""
        with self._writing:
            self._take(update)

    def _take(self, update: pb.WatchUpdate) -> None:
        arrived = self.clock()
        if update.epoch != self.epoch:  # the server has started anew: its clock, and the numbers of its nodes
            self.epoch, self.version, self._offset = update.epoch, 0, Offset()
        if update.is_snapshot:  # also where another was coming, which the server has given up
            self._coming = Rows()
        if not self.version and self._coming is None and (update.rows or update.beats.number_steps or update.details):
            raise Refused("an update builds on what was not told")
        for what, count, most in (
            ("rows", len(update.rows), MAX_NODES_A_MESSAGE),
            ("details", len(update.details), MAX_NODES_A_MESSAGE),
            ("removals", len(update.removed), MAX_REMOVED),
        ):
            if count > most:  # each becomes a row of some kilobytes before any is kept
                raise Refused(f"an update has {count} {what}: it may have {most}")
        seconds_of(update.server.past_unix_milliseconds)
        made_at = self._made_at(update, arrived)
        rows = self._rows if self._coming is None else self._coming
        changes = [(message.number, self._row_of(message, made_at, rows)) for message in update.rows]
        with self._lock:
            for number in update.removed:
                rows.remove(number)
                self._told.pop(number, None)
            for number, row in changes:
                rows.put(number, row)
        beaten = list(rows_after(update.beats, made_at, rows.known)) if update.HasField("beats") else []
        detailed = [self._detailed(details, rows) for details in update.details]
        with self._lock:
            rows.change(beaten)
            for number, row in detailed:
                rows.put(number, row)
            if update.version:
                self._rows, self._coming, self.version, self.is_known = rows, None, update.version, True
            if update.HasField("server"):
                self.status = update.server
        if len(self._told) > len(rows.known):  # a node that comes under another number leaves its old one
            self._told = {number: told for number, told in self._told.items() if number in rows.known}
        self._take_events(update.events)
        self.made_at, self.heard_at = made_at, arrived
        if self.version and self._coming is None:  # else a fleet is still coming, and what is known is that of before
            self._set_known_until(math.inf)

    def _made_at(self, update: pb.WatchUpdate, arrived: float) -> float:
        made, echoed = update.clock_milliseconds / 1000, update.echoed_clock_milliseconds / 1000
        if echoed > arrived + TOLERANCE_SECONDS:
            raise Refused("an update answers what was not asked yet")
        self._sent = echoed or self._sent
        shift = self._offset.take(made, self._sent, arrived)
        if shift:
            self._shift(shift)
        made_at = self._offset.here(made)
        self.made_at_wall = seconds_of(update.unix_milliseconds)
        self._wall_ahead = self.made_at_wall - (self._local_wall() - (arrived - made_at))
        return made_at

    def _row_of(self, message: pb.NodeRow, made_at: float, rows: Rows) -> Row:
        before = rows.known.get(message.number)
        if before and before.node_id != message.node_id:
            before = None
        row = row_of(message, made_at, before, self.name)
        if not before or message.readings or before.capacities != row.capacities:
            self._told.pop(message.number, None)
        return row

    def _detailed(self, details: pb.NodeDetails, rows: Rows) -> tuple[int, Row]:
        if (row := rows.known.get(details.number)) is None:
            raise Refused(f"details are of node {details.number}, which was not told")
        row = row_with(details, row, self._told.get(details.number, b""))
        if details.readings:
            self._told[details.number] = row.history
        return details.number, row

    def _take_events(self, messages: Sequence[pb.FleetEvent]) -> None:
        """What is known already comes again with a new snapshot."""
        if not messages:
            return
        seen = set(self._seen)
        for message in messages[-EVENTS_KEPT:]:
            event = event_of(message)
            if event in seen or (len(self._kinds) >= MAX_KINDS and event.kind not in self._kinds):
                continue
            self._seen.append(event)
            self._kinds.add(event.kind)
            self._log.put(event._replace(node_id=self.name) if self.name and event.node_id == "server" else event)

    # ---- What time and the network make of it ----

    def unheard(self, seconds: float = 0.0) -> None:
        """Where the server has not been heard for so long: what is known is as of its last update."""
        with self._writing:
            if self.clock() - self.heard_at >= seconds:
                self._set_known_until(self.made_at)

    def _set_known_until(self, moment: float) -> None:
        if moment != self._known_until:
            self._known_until = moment
            self._replace_all(lambda row: row._replace(known_until=moment))

    def _shift(self, seconds: float) -> None:
        """All times, where a clock stood still."""

        def shifted(row: Row) -> Row:
            sample_at = None if row.sample_at is None else row.sample_at + seconds
            return row._replace(
                heartbeat_at=row.heartbeat_at + seconds, sample_at=sample_at, known_until=row.known_until + seconds,
                awaited_until=row.awaited_until + seconds,
            )  # fmt: skip

        self._replace_all(shifted)

    def _replace_all(self, change: Callable[[Row], Row]) -> None:
        for rows in filter(None, (self._rows, self._coming)):
            changed = [(number, change(row)) for number, row in rows.known.items()]
            with self._lock:
                rows.known.update(changed)

    # ---- What is known ----

    def wall(self) -> float:
        """The server's wall clock."""
        return self._local_wall() + self._wall_ahead

    def snapshot(self) -> list[Row]:
        """All rows."""
        with self._lock:
            return list(self._rows.known.values())

    def row(self, node_id: str) -> Row | None:
        """One of them."""
        with self._lock:
            number = self._rows.numbers.get(node_id)
            return None if number is None else self._rows.known[number]
