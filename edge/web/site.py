"""What the ways out have to tell, and to whom."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from edge.fleet import watch
from edge.fleet.counters import Counters
from edge.fleet.guard import Guard
from edge.fleet.source import Source


class Fleet(watch.Fleet, Source, Protocol):
    """The server's own fleet: a registry."""

    max_nodes: int

    def cadence_seconds(self) -> float: ...


def say_nothing(_kind: str, _node_id: str, _text: str, _stranger: str = "") -> None:
    """Where there is no log."""


class Site(NamedTuple):
    """All that the routes draw from."""

    fleet: Fleet
    feed: watch.Feed
    counters: Counters
    guard: Guard | None = None  # None: open to whoever reaches it
    agent: pathlib.Path | None = None  # where node.pyz lies, if it does: it may come and go
    is_ready: Callable[[], bool] = lambda: True  # False while the server goes away
    names: Sequence[str] = ()  # that this server may be called by, beside its addresses and what its machine is called
    complain: Callable[[str, str, str, str], object] = say_nothing  # writes into the log: Registry.complain
