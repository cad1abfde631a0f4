"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import collections
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
T = TypeVar("T")


class Turns:
    """One slice in each round of a loop, however many are at work: what else there is to do comes in between."""

    def __init__(self) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()

    async def take(self) -> None:
        """Wait for the next turn."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._next)
        self._waiting.append(turn)
        await turn

    def _next(self) -> None:
        turn = self._waiting.popleft()
        if not turn.done():  # else who waited for it is gone
            turn.set_result(None)
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)


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
