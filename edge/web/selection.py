"""Which nodes a filter chooses: the language of the screen's `/`, a little at a time, and for all who ask in turn."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import re
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from typing import NamedTuple

from edge.fleet.entry import EntryId, make_entries
from edge.fleet.filters import parse_filter
from edge.fleet.row import Row
from edge.text import visible
from edge.web.site import Fleet
from edge.web.slices import sliced

MAX_WORDS = 100  # of a filter, those between commas among them: each may be asked of each node
REST_TIMES = 20  # as long as one took, of the processor, no other is looked for: so filters take a twentieth of it
MOST_REST_SECONDS = 10.0  # for one; and those of so long are saved up, for some who come at once
MAX_WAITING, MAX_WAITING_OF_ONE = 12, 6  # for their turn, of all and of one network
NODES_A_LOOK = 10  # from one look at the clock to the next, which is a call of the system


class Busy(Exception):
    """There is no answer just now; the text says why."""


class Selection(NamedTuple):
    """The nodes that match, in the order of their names."""

    rows: Sequence[Row]
    not_understood: Sequence[str]  # terms of the filter, which restrict nothing; or why nothing was looked for
    rest_seconds: float = 0.0  # that it cost

    @property
    def why_not(self) -> str:
        """For who is not answered, since something was not understood."""
        told = ", ".join(map(visible, self.not_understood))
        return f"the filter can't be read at: {told}; the help of the screen, by ? after /, tells how it is written"


class Turns:
    """Filters are looked for one at a time, whoever asks and wherever."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._waiting: collections.Counter[str] = collections.Counter()  # by network
        self._free_at = 0.0

    @contextlib.asynccontextmanager
    async def take(self, network: str) -> AsyncIterator[None]:
        """Wait for it. Raises Busy."""
        if self._waiting.total() >= MAX_WAITING or self._waiting[network] >= MAX_WAITING_OF_ONE:
            raise Busy("too many filters are asked for at once")
        self._waiting[network] += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._free_at - time.monotonic())
                yield
        finally:
            self._waiting[network] -= 1
            self._waiting += collections.Counter()  # drops those that are zero

    def pay(self, rest_seconds: float) -> None:
        """For one that was looked for."""
        self._free_at = max(self._free_at, time.monotonic() - MOST_REST_SECONDS) + rest_seconds


TURNS: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Turns] = weakref.WeakKeyDictionary()


async def select(fleet: Fleet, text: str, network: str = "") -> Selection:
    """All of the fleet, where the filter is empty. `network`: of who asks. Raises Busy."""
    text = " ".join(text.split())
    if len(re.split(r"[\s|,]+", text)) > MAX_WORDS:
        return Selection((), (f"a filter of more than {MAX_WORDS} words",))
    turns = TURNS.setdefault(asyncio.get_running_loop(), Turns())
    async with turns.take(network):
        rows, now = fleet.snapshot(), fleet.clock()
        labels = {name.lower() for labels in {row.labels for row in rows} for name, _ in labels}  # boxes with equal ones share them
        tests, not_understood = parse_filter(text, labels)
        chosen, took = list[Row](), 0.0
        async for start in sliced(range(0, len(rows), NODES_A_LOOK)):
            began = time.thread_time()
            part = rows[start : start + NODES_A_LOOK]
            entries = make_entries([(EntryId(row.node_id), row) for row in part], now)
            chosen += [entry.row for entry in entries if all(test(entry) for test in tests)]
            took += time.thread_time() - began
        rest_seconds = min(REST_TIMES * took, MOST_REST_SECONDS)
        turns.pay(rest_seconds)
    return Selection(sorted(chosen, key=lambda row: row.node_id), not_understood, rest_seconds)
