"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
REST_SECONDS = 0.001  # after each, of the whole thread: gRPC's own must bring what has come meanwhile, where there is but one core
IDLE_SECONDS = 0.0025  # that such a rest takes where the loop has nothing else to do: it waits by whole milliseconds
PATIENCE_SECONDS = 0.02  # that the next slice is put off at most: where the loop is never idle, this work ends, too
T = TypeVar("T")


async def sliced(items: Iterable[T], seconds: float = SLICE_SECONDS) -> AsyncIterator[T]:
    """The same items. Whenever these, and what is done with them, have taken so long, heartbeats come first: all that have come
    meanwhile."""
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        if (now := time.perf_counter()) < end:
            continue
        give_up_at, rest = now + PATIENCE_SECONDS, IDLE_SECONDS
        while rest >= IDLE_SECONDS and now < give_up_at:
            began = now
            await asyncio.sleep(REST_SECONDS)
            now = time.perf_counter()
            rest = now - began
        end = now + seconds
