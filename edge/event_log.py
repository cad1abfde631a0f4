"""What happened, in lines: the last ones, and how many there were. The server's events, and a node's own log."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from collections.abc import Callable
from typing import NamedTuple


class Event(NamedTuple):
    """One line."""

    time: float  # wall clock, seconds
    kind: str  # what the screens colour it by: "lost", "warning", …
    node_id: str  # whom it is about; a node's own log leaves it empty
    text: str


class EventLog:
    """The last `kept` events. Any thread adds, and several may follow, each at its own pace."""

    def __init__(self, kept: int, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._lock = threading.Lock()
        self._events: collections.deque[Event] = collections.deque(maxlen=kept)
        self._count = 0  # of all that ever came

    def add(self, kind: str, text: str, node_id: str = "") -> None:
        """Note what happens now."""
        with self._lock:
            self._events.append(Event(self._wall(), kind, node_id, text))
            self._count += 1

    def newest(self, count: int) -> list[Event]:
        """The last `count` events, the newest last."""
        with self._lock:
            return list(itertools.islice(reversed(self._events), count))[::-1]

    def since(self, count: int) -> tuple[int, list[Event]]:
        """The number of events so far, and those after the first `count`, as far as they are kept."""
        with self._lock:
            new = min(self._count - count, len(self._events))
            return self._count, list(itertools.islice(self._events, len(self._events) - new, None))

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
