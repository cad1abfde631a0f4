"""What a screen looks at: a fleet now, here or on other servers; or as it was, at a moment that was frozen or kept."""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from edge.event_log import Event
from edge.fleet.row import Row, State, state_of

EVENTS_KEPT = 1000
NOT_IN_THE_PAST = "nothing can be forgotten in the past"
WRONG = ("lost", "unheard", "disconnected", "late")  # what a node should not be, the most important first
CHANGES = (*WRONG, "left", "joined")  # since a picture was frozen


class MayNot(Exception):
    """What the user may not do here; the text says why, for people."""


class Wants(NamedTuple):
    """What is looked at beside the sums of all nodes."""

    open: frozenset[str] = frozenset()  # nodes whose details are on the screen
    details: bool = False  # those of all nodes
    processes: bool = False  # what runs on all nodes


class Source(Protocol):
    """What a lens looks at: a fleet now, or as it was at one moment. A snapshot is a list of rows that never change."""

    def clock(self) -> float:
        """The moment that is shown, by the clock that the rows' times are of, in seconds."""

    def wall(self) -> float:
        """The same by the wall clock, in seconds."""

    def snapshot(self) -> list[Row]:
        """All rows."""

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These rows; None for one that is not there."""

    def newest_events(self, count: int) -> Sequence[Event]:
        """The last `count` events, the newest last."""

    def forget(self, node_id: str) -> bool:
        """Remove a node that is lost or left; any other stays. Tells whether it is gone, or goes. Raises MayNot."""

    def why_not_forget(self) -> str:
        """Why no node of it can be forgotten; empty where one can."""

    def want(self, wants: Wants) -> None:
        """What is looked at from now on. Where all is at hand, nothing has to be fetched."""

    def notices(self) -> Sequence[str]:
        """What is wrong with the source itself, a short sentence each, for the header: a server that is gone, a full disk."""


def wrong_in(source: Source) -> list[tuple[str, int]]:
    """How many nodes are not as they should be, by what they are, the worst first."""
    now = source.clock()
    counts = collections.Counter(state_of(row, now).value.lower() for row in source.snapshot())
    return [(word, counts[word]) for word in WRONG if counts[word]]


class NoPast(Exception):
    """What was asked of the past is not kept; the text says why, for people."""


class Readings(NamedTuple):
    """One node's readings over a time, in equal steps, the oldest first; each in history's frames, a frame a step."""

    devices: int
    lowest: bytes
    highest: bytes


class Past(Protocol):
    """What is kept of a fleet: in a journal here, in a recording, or on a server elsewhere. Each verb may take half a second."""

    def span(self) -> tuple[float, float]:
        """The first and the last moment that are kept, in seconds by the wall clock. Raises NoPast."""

    def moment(self, wall: float, after: bool = False) -> Source:
        """The fleet as it was then: the last moment that was kept up to that time, or the first one. `after`: the first moment
        after that time, or the last one. Raises NoPast."""

    def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
        """Readings of the `seconds` before `end` (by the wall clock), NOT_REPORTED where nothing is kept. Raises NoPast."""


class Moment:
    """A fleet as it was: rows and events of one time. Nothing can be forgotten in it."""

    def __init__(self, now: float, wall: float, rows: Iterable[Row], events: Sequence[Event]) -> None:
        """`now`: that time by the clock of the rows' times; `wall`: by the wall clock."""
        self._now, self._wall, self._events = now, wall, events
        self._rows = {row.node_id: row for row in rows}

    def clock(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._wall

    def snapshot(self) -> list[Row]:
        return list(self._rows.values())

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        return [self._rows.get(node_id) for node_id in node_ids]

    def newest_events(self, count: int) -> Sequence[Event]:
        return self._events[-count:] if count else ()

    def forget(self, node_id: str) -> bool:
        return False

    def why_not_forget(self) -> str:
        return NOT_IN_THE_PAST

    def want(self, wants: Wants) -> None:
        pass

    def notices(self) -> Sequence[str]:
        return ()


class Frozen(Moment):
    """A fleet as it is now, and stays so to whoever looks. What is forgotten goes from the fleet itself."""

    def __init__(self, source: Source) -> None:
        super().__init__(source.clock(), source.wall(), source.snapshot(), source.newest_events(EVENTS_KEPT))
        self._source = source
        self._states = {row.node_id: state_of(row, self._now) for row in self._rows.values()}

    def forget(self, node_id: str) -> bool:
        return self._source.forget(node_id)

    def why_not_forget(self) -> str:
        return self._source.why_not_forget()

    def notices(self) -> Sequence[str]:
        return self._source.notices()

    def since(self) -> list[tuple[str, int]]:
        """How many nodes are worse off by now than in this picture, by what they are, the worst first; and how many have joined."""
        now, order = self._source.clock(), list(State)
        counts: collections.Counter[str] = collections.Counter()
        for row in self._source.snapshot():
            before, state = self._states.get(row.node_id), state_of(row, now)
            if before is None:
                counts["joined"] += 1
            elif state is not before and order.index(state) > order.index(before):
                counts[state.value.lower()] += 1
        return [(word, counts[word]) for word in CHANGES if counts[word]]
