"""Long work in the loop that takes the heartbeats: a little at a time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

SLICE_SECONDS = 0.004
T = TypeVar("T")


async def sliced(items: Iterable[T], seconds: float = SLICE_SECONDS) -> AsyncIterator[T]:
    """The same items. Whenever these, and what is done with them, have taken so long, heartbeats come first."""
    end = time.perf_counter() + seconds
    for item in items:
        yield item
        if time.perf_counter() >= end:
            await asyncio.sleep(0)
            end = time.perf_counter() + seconds
