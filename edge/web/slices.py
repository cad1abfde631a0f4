"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import collections
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
PATIENCE_SECONDS = 0.02  # that a slice waits for its turn at most: where the loop is never idle, this work ends, too
IDLE_ROUNDS = 3.0  # a round of the loop that takes no longer than so many of the quickest had nothing to do
T = TypeVar("T")


class Turns:
    """One slice at a time, however many are at work; and before it all that has come: a heartbeat takes several rounds of the
    loop, and each would wait for another slice."""

    def __init__(self) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._giving: asyncio.Task[None] | None = None
        self._quickest_seconds = 1.0  # round of the loop

    async def take(self) -> None:
        """Wait for the next turn."""
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        if self._giving is None:
            self._giving = asyncio.create_task(self._give())
        await turn

    async def _give(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():  # else who waited for it is gone
                turn.set_result(None)
                await asyncio.sleep(0)  # its slice runs in this round
                await self._rest()
        self._giving = None

    async def _rest(self) -> None:
        """Until the loop has nothing else to do."""
        now = time.perf_counter()
        give_up_at = now + PATIENCE_SECONDS
        while now < give_up_at:
            began = now
            await asyncio.sleep(0)
            now = time.perf_counter()
            self._quickest_seconds = min(self._quickest_seconds, now - began)
            if now - began <= IDLE_ROUNDS * self._quickest_seconds:
                return


TURNS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


async def sliced(items: Iterable[T], seconds: float = SLICE_SECONDS) -> AsyncIterator[T]:
    """The same items. Whenever these, and what is done with them, have taken so long, heartbeats come first."""
    turns = TURNS.setdefault(asyncio.get_running_loop(), Turns())
    await turns.take()
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        if time.perf_counter() >= end:
            await turns.take()
            end = time.perf_counter() + seconds
