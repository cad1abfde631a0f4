"""The fleet as a stream: what those who look are sent.

Once a tick the fleet is compared with what it was, and each node notes the version in which it changed. A viewer is sent the sum of
all that changed since the version it has. Those that keep up share one such sum, made and serialized once. For one that lags,
nothing is kept but the number of its version: its next sum is larger, that is all.

A message is made when the one before it has been taken. So a fleet that is sent whole, in pieces, is not held while that lasts:
each piece has its own time, and what changed meanwhile comes in the sum that ends it.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import grpc

import node_pb2 as pb
from edge.event_log import Event, EventLog
from edge.fleet.row import Refused, Row
from edge.fleet.source import EVENTS_KEPT, Wants
from edge.fleet.wire import beats_of, is_only_a_beat, node_row
from edge.history import SAMPLES
from edge.program import VERSION
from edge.protocol import MAX_NODES_A_MESSAGE, MAX_VIEWERS, MAX_VIEWERS_ELSEWHERE

TICK_SECONDS = 1.0  # from one version to the next
IDLE_SECONDS = 60.0  # without a viewer, until nothing is kept for those that come back
VERSIONS_KEPT = 3600  # that a viewer may lag behind: beyond, it gets the fleet anew
REMOVALS_KEPT = 100_000  # in all of them
ROWS_A_MESSAGE, CHANGES_A_MESSAGE = 200, 2000  # nodes, whole and their changes: more take so long that heartbeats would wait
NODES_A_SLICE = 1000  # that are compared at once: heartbeats come in between
MESSAGE_BYTES = 2**20  # or so, of nodes in a message
MILLISECONDS = 1000
M = TypeVar("M", pb.NodeRow, pb.NodeDetails)


class Fleet(Protocol):
    """What is shown: a registry."""

    clock: Callable[[], float]
    wall: Callable[[], float]
    log: EventLog

    def snapshot(self) -> list[Row]: ...
    def notices(self) -> Sequence[str]: ...


class Seen:
    """A node as it was published last, and the versions in which that came about; each is the newest of its kind."""

    __slots__ = ("changed_at", "info_at", "new_at", "number", "processes_at", "row", "whole_at")

    def __init__(self, number: int, row: Row, version: int) -> None:
        self.number, self.row = number, row
        self.new_at = self.info_at = self.processes_at = self.whole_at = self.changed_at = version

    def take(self, row: Row, version: int) -> None:
        """The row as it is now."""
        before, self.row = self.row, row
        self.changed_at = version
        if not is_only_a_beat(before, row):
            self.whole_at = version
            if before.packed_info is not row.packed_info:
                self.info_at = version
        if before.packed_processes is not row.packed_processes:
            self.processes_at = version

    def message(self, base: int, now: float) -> pb.NodeRow:
        """All that a viewer which knows version `base` does not know."""
        if self.new_at > base:
            return node_row(self.number, self.row, now)
        return node_row(self.number, self.row, now, self.row if self.info_at <= base else self.row._replace(packed_info=b""))


class Published(NamedTuple):
    """A version, beside its rows."""

    events: int  # in the log, that ever came
    removed: tuple[int, ...]  # numbers of nodes


class Viewer:
    """One who looks: what it knows, and what it wants. `version`: up to which it knows the fleet; 0: nothing."""

    def __init__(self, is_local: bool, version: int = 0) -> None:
        self.is_local, self.version = is_local, version
        self.wake = asyncio.Event()  # there is something new, or it wants something else
        self.wants = Wants()
        self.echo_milliseconds = 0  # its own clock, to be said back; 0: it has been
        self.status = b""  # as it was told
        self.details_at = self.processes_at = 0  # the versions up to which it has those of all nodes
        self.open: dict[str, tuple[Seen, Row] | None] = {}  # by node: as its details were sent

    def want(self, request: pb.WatchRequest) -> None:
        """What it asks for from now on."""
        self.wants = Wants(frozenset(request.open), request.details, request.processes)
        self.open = {node_id: self.open.get(node_id) for node_id in request.open}
        self.echo_milliseconds = request.clock_milliseconds
        self.wake.set()

    def forget_details(self) -> None:
        """It is to be told all anew."""
        self.details_at = self.processes_at = 0
        self.open = dict.fromkeys(self.open)


class Feed:
    """The versions of a fleet, for all who look. In the network thread alone."""

    def __init__(self, fleet: Fleet, past_status: Callable[[], pb.ServerStatus] = pb.ServerStatus) -> None:
        """`past_status`: what there is of the past."""
        self._fleet, self._past_status = fleet, past_status
        self.is_secure = False
        self.addresses: Sequence[str] = ()  # that nodes report to
        self._viewers: set[Viewer] = set()
        self._publishing = asyncio.Lock()
        self._left_at = fleet.clock()  # when the last viewer left
        self._start()

    def _start(self) -> None:
        """Nothing is known to any viewer."""
        self.epoch = secrets.randbits(63) | 1
        self.version = 0
        self._published_at = -1e9
        self._seen: dict[str, Seen] = {}
        self._slots: list[Seen | None] = []  # by number
        self._free: list[int] = []  # numbers
        self._versions: collections.deque[Published] = collections.deque()  # the last ones, self.version being the last of all
        self._removals = 0  # in these
        self._shared: dict[tuple[int, int], Sequence[Callable[[], bytes]]] = {}  # sums of this version, by what they start from

    def viewers(self) -> int:
        """How many there are."""
        return len(self._viewers)

    def row(self, number: int) -> Row | None:
        """The node of this number, as it was published last. None: it is gone."""
        seen = self._slots[number] if number < len(self._slots) else None
        return seen.row if seen else None

    def join(self, request: pb.WatchRequest, is_local: bool) -> Viewer:
        """One more viewer, by its first message. Raises Refused where there are as many as there may be; some places are kept for
        this machine's own user, since on an open server whoever comes could take the others."""
        if len(self._viewers) >= (MAX_VIEWERS if is_local else MAX_VIEWERS_ELSEWHERE):
            raise Refused(f"{len(self._viewers)} look already: that is all there may be", grpc.StatusCode.RESOURCE_EXHAUSTED)
        viewer = Viewer(is_local, request.version if request.epoch == self.epoch else 0)
        viewer.want(request)
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """It looks no more."""
        self._viewers.discard(viewer)
        self._left_at = self._fleet.clock()

    async def run(self) -> None:
        """Publish once a tick, while there is a viewer."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            if self._viewers:
                try:
                    await self.publish()
                except Exception:  # those who look see that nothing comes; the next one may be better
                    logging.getLogger(__name__).exception("what changed was not published")
            elif self.version and self._fleet.clock() - self._left_at > IDLE_SECONDS:
                self._start()

    async def follow(self, viewer: Viewer, write: Callable[[bytes], Awaitable[object]]) -> None:
        """Tell a viewer all, and then what is new, until this is cancelled. One message at a time is under way."""
        if self._fleet.clock() - self._published_at > TICK_SECONDS:
            await self.publish()
        while True:
            viewer.wake.clear()
            for message in self._news(viewer):
                await write(message)
            await viewer.wake.wait()

    async def publish(self) -> None:
        """See what has changed, as the next version."""
        async with self._publishing:
            version, self._published_at = self.version + 1, self._fleet.clock()
            rows = self._fleet.snapshot()
            events, _ = self._fleet.log.since(2**62)
            for start in range(0, len(rows), NODES_A_SLICE):
                self._compare(rows[start : start + NODES_A_SLICE], version)
                await asyncio.sleep(0)
            removed = self._remove_all_but(rows) if len(rows) < len(self._seen) else ()
            self._versions.append(Published(events, removed))
            self._removals += len(removed)
            while len(self._versions) > VERSIONS_KEPT or (self._removals > REMOVALS_KEPT and len(self._versions) > 1):
                forgotten = self._versions.popleft().removed  # no viewer that lags so far is told of them any more
                self._free += forgotten
                self._removals -= len(forgotten)
            self.version = version
            self._shared.clear()
        for viewer in self._viewers:
            viewer.wake.set()

    def _compare(self, rows: Iterable[Row], version: int) -> None:
        known = self._seen
        for row in rows:
            seen = known.get(row.node_id)
            if seen is None:
                known[row.node_id] = self._number(row, version)
            elif seen.row is not row:
                seen.take(row, version)

    def _number(self, row: Row, version: int) -> Seen:
        """A node that is new."""
        if not self._free:
            self._free.append(len(self._slots))
            self._slots.append(None)
        number = self._free.pop()
        seen = self._slots[number] = Seen(number, row, version)
        return seen

    def _remove_all_but(self, rows: Iterable[Row]) -> tuple[int, ...]:
        gone = self._seen.keys() - {row.node_id for row in rows}
        numbers = tuple(self._seen.pop(node_id).number for node_id in gone)
        for number in numbers:
            self._slots[number] = None
        return numbers

    # ---- What a viewer is told ----

    def _news(self, viewer: Viewer) -> Iterator[bytes]:
        """All that a viewer does not know yet, a message at a time: each is made when the one before has been taken."""
        status = self._status(viewer)
        if (told := status.SerializeToString(deterministic=True)) != viewer.status:
            viewer.status = told
            yield self._update(self._fleet.clock(), version=viewer.version, server=status)
        if viewer.version != self.version:
            yield from self._changes(viewer)
        yield from self._details(viewer)

    def _status(self, viewer: Viewer) -> pb.ServerStatus:
        status = pb.ServerStatus(
            version=VERSION,
            is_secure=self.is_secure,
            may_forget=viewer.is_local,
            journal="; ".join(self._fleet.notices()),
            addresses=self.addresses,
        )
        status.MergeFrom(self._past_status())
        return status

    def _changes(self, viewer: Viewer) -> Iterator[bytes]:
        """The fleet whole, or what changed since the version of a viewer; then it has this one. What is much comes in pieces, and
        what changed while they were sent, in others; until the rest fits the sum that ends it."""
        base = known = viewer.version
        if not self._remembers(base):
            base, known = self.version, 0
            viewer.forget_details()
            yield self._update(self._fleet.clock(), is_snapshot=True, events=messages_of(self._events(0, base)))
        while not known or ((base, known) not in self._shared and self._is_much(known)):
            since, known = known, self.version
            yield from self._rows(since)
        if self._remembers(base):
            version = self.version
            if (base, known) not in self._shared:
                self._shared[base, known] = self._sum(base, known)
            for piece in self._shared[base, known]:
                yield piece()
            viewer.version = version
        else:  # it took too long: all anew
            viewer.version = 0
            viewer.wake.set()

    def _is_much(self, known: int) -> bool:
        return sum(seen.whole_at > known for seen in self._seen.values()) > MAX_NODES_A_MESSAGE

    def _remembers(self, version: int) -> bool:
        """Whether it is known what changed since then."""
        return self.version - len(self._versions) < version <= self.version

    def _rows(self, base: int) -> Iterator[bytes]:
        """The nodes of which more than readings have changed since a version."""
        waiting = (seen for seen in self._slots_as_they_are() if seen.whole_at > base)
        while True:
            now = self._fleet.clock()
            rows = piece_of(seen.message(base, now) for seen in waiting)
            if not rows:
                return
            yield self._update(now, rows=rows)

    def _slots_as_they_are(self) -> Iterator[Seen]:
        number = 0
        while number < len(self._slots):  # it may grow meanwhile
            if seen := self._slots[number]:
                yield seen
            number += 1

    def _sum(self, base: int, known: int) -> Sequence[Callable[[], bytes]]:
        """What changed since version `base`; of nodes that were sent whole since, up to version `known`, their readings alone. In
        pieces where it is much, so that heartbeats come in between: whoever is the first to take one has it made for all. One that
        could not be made is made anew for the next who takes it."""
        version, changed = self.version, [seen for seen in self._slots if seen and seen.changed_at > base]
        versions = [self._versions[at - version - 1] for at in range(base + 1, version + 1)]
        first = {"removed": [number for one in versions for number in one.removed]}
        last = {"version": version, "events": messages_of(self._events(base, version))}  # with the version: so none comes twice

        def piece(start: int) -> bytes:
            part, now = changed[start : start + CHANGES_A_MESSAGE], self._fleet.clock()
            beats = [(seen.number, seen.row) for seen in part if seen.whole_at <= known and seen.row.sample_at is not None]
            return self._update(
                now,
                rows=[seen.message(known, now) for seen in part if seen.whole_at > known],
                beats=beats_of(beats, now) if beats else None,
                **(first if not start else {}),
                **(last if start + CHANGES_A_MESSAGE >= len(changed) else {}),
            )

        starts = range(0, max(len(changed), 1), CHANGES_A_MESSAGE)
        return [functools.cache(functools.partial(piece, start)) for start in starts]

    def _events(self, base: int, version: int) -> list[Event]:
        """Those of the versions after `base`; 0: those before any others."""
        end = self._versions[version - self.version - 1].events
        if not base:
            return self._fleet.log.newest(EVENTS_KEPT, end)
        return self._fleet.log.since(self._versions[base - self.version - 1].events, end)[1][-EVENTS_KEPT:]

    def _update(self, now: float, **parts: Any) -> bytes:
        return update_of(self.epoch, now, self._fleet.wall(), **parts)

    # ---- What it alone is told ----

    def _details(self, viewer: Viewer) -> Iterator[bytes]:
        """What it has asked for, and its clock."""
        waiting = self._wanted(viewer)
        while (details := piece_of(waiting)) or viewer.echo_milliseconds:
            echo, viewer.echo_milliseconds = viewer.echo_milliseconds, 0
            parts = {"details": details, "echoed_clock_milliseconds": echo}
            yield self._update(self._fleet.clock(), version=viewer.version, **parts)

    def _wanted(self, viewer: Viewer) -> Iterator[pb.NodeDetails]:
        """What has changed since the last time, of the nodes that the viewer knows by now."""
        wants, version = viewer.wants, viewer.version  # what is newer than that comes with the next one
        samples_at = viewer.details_at if wants.details else version
        processes_at = viewer.processes_at if wants.processes else version
        viewer.details_at, viewer.processes_at = version if wants.details else 0, version if wants.processes else 0
        for seen in self._slots_as_they_are() if wants.details or wants.processes else ():
            sample, processes = wants.details and seen.changed_at > samples_at, wants.processes and seen.processes_at > processes_at
            if (sample or processes) and seen.new_at <= viewer.version:
                yield pb.NodeDetails(
                    number=seen.number,
                    sample=seen.row.packed_sample if sample else b"",
                    processes=seen.row.packed_processes if processes else None,
                )
        for node_id, told in list(viewer.open.items()):
            opened = self._seen.get(node_id)
            if opened and opened.new_at <= viewer.version and (told is None or told[0] is not opened or told[1] is not opened.row):
                viewer.open[node_id] = opened, opened.row
                yield details_of(opened, told[1] if told and told[0] is opened else None)


def update_of(epoch: int, now: float, wall: float, **parts: Any) -> bytes:
    """A message. `now`: when it was made, by the server's clock; all ages in it are as of then."""
    clock, unix = int(MILLISECONDS * now), round(MILLISECONDS * wall)
    packed: bytes = pb.WatchUpdate(epoch=epoch, clock_milliseconds=clock, unix_milliseconds=unix, **parts).SerializeToString()
    return packed


def piece_of(messages: Iterator[M]) -> list[M]:
    """The next of these, as many as are sent at once."""
    taken: list[M] = []
    size = 0
    while len(taken) < ROWS_A_MESSAGE and size < MESSAGE_BYTES and (one := next(messages, None)) is not None:
        taken.append(one)
        size += one.ByteSize()
    return taken


def details_of(seen: Seen, before: Row | None) -> pb.NodeDetails:
    """A node's details, as far as they have changed since `before`."""
    row = seen.row
    return pb.NodeDetails(
        number=seen.number,
        sample=row.packed_sample,
        processes=None if before and before.packed_processes is row.packed_processes else row.packed_processes,
        readings=frames_since(before.history, row.history, row.capacities.frame_bytes) if before else row.history,
    )


def frames_since(before: bytes, after: bytes, width: int) -> bytes:
    """The frames, each of so many bytes, by which a history was extended; all, where it was not."""
    for start in range(len(after), 0, -width):  # of what is new
        if start == min(len(before), SAMPLES * width - len(after) + start) and before.endswith(after[:start]):
            return after[start:]
    return after


def messages_of(events: Iterable[Event]) -> list[pb.FleetEvent]:
    """Events as they are sent."""
    return [
        pb.FleetEvent(unix_milliseconds=round(MILLISECONDS * one.time), kind=one.kind, node_id=one.node_id, text=one.text)
        for one in events
    ]
