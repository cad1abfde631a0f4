"""When to try again: for nodes, and for screens elsewhere."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

MAX_BACKOFF_SECONDS = 30.0


def backoff(
    random_between: Callable[[float, float], float] = random.uniform, most_seconds: float = MAX_BACKOFF_SECONDS
) -> Iterator[float]:
    """Delays before the next try, in seconds: exponential (1 s, x1.6, at most 30 s) with full jitter. Never sleeps.

    Full jitter: a fleet that lost its server must not come back in step.
    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    ceiling = 1.0
    while True:
        yield random_between(0, ceiling)
        ceiling = min(ceiling * 1.6, most_seconds)
