"""What the server counts of itself, for who watches it. In the network thread alone."""

from __future__ import annotations

import collections


class Counters:
    """Since the start."""

    def __init__(self) -> None:
        self.heartbeats = 0
        self.sessions = 0  # that were opened
        self.refusals: collections.Counter[str] = collections.Counter()  # by gRPC's name of the code
        self.lag_seconds = 0.0  # that the last tick came too late
