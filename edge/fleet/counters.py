"""What the server counts of itself, for who watches it. In the network thread alone."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable
from typing import NamedTuple

import grpc

LAGS = 60  # ticks, one a second


class JournalState(NamedTuple):
    """The journal, as of its last look at the disk; None is not known yet."""

    is_up: bool  # it is written
    limit_bytes: int | None
    size_bytes: int | None = None
    first: float | None = None  # moment that is kept, by the wall clock


class Counters:
    """Since the start."""

    def __init__(self) -> None:
        self.started = time.time()
        self.heartbeats = 0
        self.sessions = 0  # that were opened
        self.refusals: collections.Counter[str] = collections.Counter()  # by why, in lower case
        self.journal: Callable[[], JournalState | None] = lambda: None  # None: there is none
        self._lags: collections.deque[float] = collections.deque(maxlen=LAGS)

    def refuse(self, code: grpc.StatusCode) -> None:
        """A call, or a request over HTTP: for a reason as gRPC calls it."""
        self.refusals[code.name.lower()] += 1

    def tick(self, late_seconds: float) -> None:
        """Once a second: so much too late."""
        self._lags.append(max(late_seconds, 0.0))

    def lag_seconds(self) -> float:
        """The worst of the last minute."""
        return max(self._lags, default=0.0)
