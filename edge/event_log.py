"""What happened, in lines: the last ones, and how many there were. The server's events, and a node's own log."""

from __future__ import annotations

import collections
import heapq
import itertools
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple


class Event(NamedTuple):
    """One line."""

    time: float  # wall clock, seconds
    kind: str  # what the screens colour it by: "lost", "warning", …
    node_id: str  # whom it is about; a node's own log leaves it empty
    text: str


class EventLog:
    """The last `kept` events of each kind. Any thread adds, and several may follow, each at its own pace.

    Each kind has a room of its own: those that may come in masses, `plenty`, push out nothing but themselves.
    """

    def __init__(self, kept: int, wall: Callable[[], float] = time.time, plenty: Collection[str] = ()) -> None:
        self._wall = wall
        self._kept = kept
        self._plenty = plenty
        self._lock = threading.Lock()
        self._rooms: dict[str, collections.deque[tuple[int, Event]]] = {}  # by kind: events, numbered as they came
        self._count = 0  # of all that ever came

    def add(self, kind: str, text: str, node_id: str = "") -> None:
        """Note what happens now."""
        self.put(Event(self._wall(), kind, node_id, text))

    def put(self, event: Event) -> None:
        """Note what has happened elsewhere."""
        with self._lock:
            room = self._rooms.setdefault(event.kind, collections.deque(maxlen=self._kept))
            room.append((self._count, event))
            self._count += 1

    def recall(self, events: Sequence[Event]) -> None:
        """What happened before all that is here, the oldest first. To who follows it is no news."""
        with self._lock:
            for number, event in enumerate(reversed(events), 1):
                room = self._rooms.setdefault(event.kind, collections.deque(maxlen=self._kept))
                if len(room) < self._kept:
                    room.appendleft((-number, event))

    def miss(self) -> None:
        """One comes too fast to be kept. Who follows is told how many did."""
        with self._lock:
            self._count += 1

    def newest(self, count: int, end: float = math.inf) -> list[Event]:
        """The last `count` of the first `end` events, the newest last. What comes in masses leaves half to what does not."""
        with self._lock:
            rare = self._last(count, end, (room for kind, room in self._rooms.items() if kind not in self._plenty))
            plenty = self._last(count, end, (room for kind, room in self._rooms.items() if kind in self._plenty))
        least = min(len(rare), count // 2)
        rest = sorted([*rare[least:], *plenty], reverse=True)[: count - least]
        return [event for _, event in sorted([*rare[:least], *rest])]

    @staticmethod
    def _last(count: int, end: float, rooms: Iterable[collections.deque[tuple[int, Event]]]) -> list[tuple[int, Event]]:
        newest = heapq.merge(*map(reversed, rooms), reverse=True)
        return list(itertools.islice((numbered for numbered in newest if numbered[0] < end), count))

    def since(self, count: int, end: float = math.inf) -> tuple[int, list[Event]]:
        """The number of events so far, and those after the first `count` of the first `end`, as far as they are kept."""
        with self._lock:
            rooms = [itertools.takewhile(lambda numbered: numbered[0] >= count, reversed(room)) for room in self._rooms.values()]
            return self._count, [event for number, event in sorted(itertools.chain(*rooms)) if number < end]

    def follow(self) -> Follower:
        """A reader, from the first event that is kept."""
        return Follower(self)


class Follower:
    """One reader's place in a log."""

    def __init__(self, log: EventLog) -> None:
        self._log = log
        self._seen = 0

    def new(self) -> tuple[int, list[Event]]:
        """What came since the last call; and how many events before these came too fast to be kept."""
        count, events = self._log.since(self._seen)
        missed, self._seen = count - self._seen - len(events), count
        return missed, events
