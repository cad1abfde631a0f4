"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
PATIENCE_SECONDS = 0.02  # that a slice waits for its turn at most: where the loop is never idle, this work ends, too
IDLE_TURNS = 3.0  # a turn of the loop that takes no longer than so many of the quickest had nothing to do
T = TypeVar("T")


async def sliced(items: Iterable[T], seconds: float = SLICE_SECONDS) -> AsyncIterator[T]:
    """The same items. Whenever these, and what is done with them, have taken so long, heartbeats come first: all that have come
    meanwhile. A heartbeat takes several turns of the loop, and each would wait for another slice."""
    quickest = math.inf
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        if (now := time.perf_counter()) < end:
            continue
        give_up_at, took = now + PATIENCE_SECONDS, math.inf
        while took > IDLE_TURNS * quickest and now < give_up_at:
            began = now
            await asyncio.sleep(0)
            now = time.perf_counter()
            took = now - began
            quickest = min(quickest, took)
        end = now + seconds
