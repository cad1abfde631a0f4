"""When a node tries which of its servers: in their order, and an earlier one as soon as that is there again."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import grpc

from edge.errors import SessionEnded
from edge.protocol import HEALTH
from edge.trust import Trust

# gRPC's health protocol (doc/health-checking.md): a server without it has no such method, and that is an answer as well. The call
# names no node and has no token, so that nothing is recorded, and nothing given away.
SERVING = b"\x08\x01"
THERE = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


class Pace(NamedTuple):
    """How soon an earlier server is gone back to: within a minute of its return, and never by the whole fleet in step."""

    settled_seconds: float = 60.0  # that the session in hand lasts before the first look
    spread_seconds: float = 10.0  # at most, that the first look waits beside
    pause_seconds: tuple[float, float] = (20.0, 40.0)  # from one look to the next
    answer_seconds: float = 5.0  # that each of the earlier servers has to answer
    refused_seconds: float = 600.0  # that a server is not gone back to where it is there, and refuses this node


PACE = Pace()


class Turns:
    """The servers, and whose turn it is."""

    def __init__(
        self,
        servers: Sequence[str],
        clock: Callable[[], float] = time.monotonic,
        pace: Pace = PACE,
        random_between: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.servers = servers
        self.pace = pace
        self._clock = clock
        self._random_between = random_between
        self._index = 0
        self._was_there = False  # when it was looked for, just now
        self._held_until: dict[str, float] = {}  # those that were there, and would not have the node, or did not answer it

    @property
    def server(self) -> str:
        """Whose turn it is."""
        return self.servers[self._index]

    @property
    def has_earlier(self) -> bool:
        """Whether there are any before it."""
        return self._index > 0

    @property
    def place(self) -> str:
        """Which of several that is, in words; empty where there is one alone."""
        if len(self.servers) == 1:
            return ""
        return f"{ordinal(self._index + 1)} of {len(self.servers)}" + (f"; first: {self.servers[0]}" if self._index else "")

    def failed(self, code: grpc.StatusCode | None, acknowledged: bool) -> None:
        """A session with it ended so, and the next one has its turn."""
        answered = code not in (None, grpc.StatusCode.UNAVAILABLE) or (code is None and self._was_there)
        held_seconds = self.pace.refused_seconds if answered and not acknowledged else 0.0
        self._held_until[self.server] = self._clock() + held_seconds
        self._index, self._was_there = (self._index + 1) % len(self.servers), False

    def back_to(self, server: str) -> None:
        """The turn of one that is there again."""
        self._index, self._was_there = self.servers.index(server), True

    def earlier(self) -> list[str]:
        """Those before the one whose turn it is, without those that would not have this node lately."""
        now = self._clock()
        return [server for server in self.servers[: self._index] if self._held_until.get(server, now) <= now]

    def looks(self) -> Iterator[float]:
        """Seconds before each look for an earlier one, from the beginning of a session. Never sleeps; endless."""
        yield self.pace.settled_seconds + self._random_between(0, self.pace.spread_seconds)
        while True:
            yield self._random_between(*self.pace.pause_seconds)


def ordinal(number: int) -> str:
    """ "1st", "2nd", "11th"."""
    return f"{number}{'th' if number // 10 % 10 == 1 else {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th')}"


def is_there(
    server: str, trust: Trust, wait: Callable[[Callable[[], object], float], None], notify: Callable[[], None], seconds: float
) -> bool:
    """Whether this server proves itself to the node, and answers, within so many seconds. No where `wait` is over before.

    `wait` waits for a condition, which it asks again at each `notify`.
    """
    while True:
        try:
            with trust.channel(server) as (channel, metadata):
                check: Any = channel.unary_unary(HEALTH)
                call = check.future(b"", timeout=seconds)
                call.add_done_callback(lambda _: notify())
                wait(call.done, seconds + 1)  # the call's deadline comes first
                if not call.done():
                    return False
                if call.code() in THERE or (call.code() is grpc.StatusCode.OK and call.result() == SERVING):
                    return True
                if not metadata:  # no token that another could take the place of
                    return False
                ended = trust.explain(call, server)
        except SessionEnded as error:
            ended = error
        if not trust.tries_another(server, ended):
            return False
