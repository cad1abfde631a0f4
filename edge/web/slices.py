"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
REST_SECONDS = 0.001  # between two, of the whole thread: where there is but one core, gRPC's own brings what has come only then
IDLE_SECONDS = 0.0025  # that such a rest takes where the loop has nothing else to do: it waits by whole milliseconds
PATIENCE_SECONDS = 0.05  # that a slice is put off at most: where the loop is never idle, this work ends, too
T = TypeVar("T")

# One slice at a time in each loop, however many are at work.
TURNS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock] = weakref.WeakKeyDictionary()


async def sliced(items: Iterable[T], seconds: float = SLICE_SECONDS) -> AsyncIterator[T]:
    """The same items. Whenever these, and what is done with them, have taken so long, heartbeats come first: all that have come
    meanwhile."""
    turn = TURNS.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    async with turn:
        await asyncio.sleep(0)
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        if time.perf_counter() >= end:
            async with turn:
                await rest()
            end = time.perf_counter() + seconds


async def rest() -> None:
    """Until the loop has nothing else to do; where it has, at least as long as a slice: gRPC's own thread needs that time, too, to
    bring what has come."""
    give_up_at = time.perf_counter() + PATIENCE_SECONDS
    if not await is_idle():
        await asyncio.sleep(SLICE_SECONDS)
        while not await is_idle() and time.perf_counter() < give_up_at:
            pass


async def is_idle() -> bool:
    """Whether a rest is no longer than it should be."""
    began = time.perf_counter()
    await asyncio.sleep(REST_SECONDS)
    return time.perf_counter() - began < IDLE_SECONDS
