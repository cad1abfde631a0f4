"""How high and how low a node's readings have been, back to any time: what answers `util<5 for 30m`.

For each reading a staircase: the highest value of the last minute, and before it only what was higher still, each with the minute
in which it was last seen; and the same of the lowest. It has a step for each such value: most often three or four, however long it
goes back.

It is kept as bytes, which travel as they are (NodeRow.extremes): in four bytes the minute of the last update, since 1970; then for
each column of the history, in two bytes how many minutes up to then it was observed without a gap, in one byte each the number of
its steps of high and of low values, and these steps: the value, and in two bytes how many minutes before the update. All numbers
are little-endian.
"""

from __future__ import annotations

import itertools
import math
import struct
from collections.abc import Sequence
from typing import NamedTuple

from edge.fleet.row import Row, State, state_of
from edge.history import COLUMNS, NOT_REPORTED

MINUTE_SECONDS = 60.0
MAX_GAP_MINUTES = 2  # from one update to the next: more, and what was seen before counts no more
MAX_MINUTES = 2**16 - 1  # 45 days
TURN_SECONDS = 45  # in which each node has its turn: before the minute is over, else one would be left out
STAMP, HEAD, STEP = struct.Struct("<I"), struct.Struct("<HBB"), struct.Struct("<BH")
Steps = tuple[tuple[int, int], ...]  # a value, and how many minutes before the update it was last seen; the newest first


class Seen(NamedTuple):
    """What is known of one reading."""

    observed_minutes: int = 0  # up to the update, without a gap
    highs: Steps = ()
    lows: Steps = ()

    def after(self, minutes: int, values: bytes) -> Seen:
        """With what has been seen in the minutes since; where something has not been reported, it begins anew."""
        if not values or NOT_REPORTED in values:
            return Seen()
        highest, lowest = max(values), min(values)
        highs = [(value, ago + minutes) for value, ago in self.highs if value > highest and ago + minutes <= MAX_MINUTES]
        lows = [(value, ago + minutes) for value, ago in self.lows if value < lowest and ago + minutes <= MAX_MINUTES]
        observed = min(self.observed_minutes + minutes, MAX_MINUTES) if self.highs else 0
        return Seen(observed, ((highest, 0), *highs), ((lowest, 0), *lows))

    def within(self, seconds: float) -> tuple[int, int] | None:
        """The lowest and the highest value of so long a time up to the update. None: it was not observed for that long, its first
        minute not counted: it may have been the end of one."""
        minutes = math.ceil(seconds / MINUTE_SECONDS)
        lows, highs = ([value for value, ago in steps if ago <= minutes] for steps in (self.lows, self.highs))
        return (min(lows), max(highs)) if lows and highs and self.observed_minutes > minutes else None


def read(extremes: bytes) -> tuple[int, list[Seen]]:
    """The minute of the update, and each reading. Of what can't be read nothing was seen: it may come from elsewhere."""
    try:
        (minute,), place, seen = STAMP.unpack_from(extremes), STAMP.size, []
        for _ in COLUMNS:
            observed, *counts = HEAD.unpack_from(extremes, place)
            place += HEAD.size
            parts = []
            for count in counts:
                parts.append(tuple((value, ago) for value, ago in STEP.iter_unpack(extremes[place : place + STEP.size * count])))
                place += STEP.size * count
            seen.append(Seen(observed, *parts))
    except struct.error:
        return 0, [Seen()] * len(COLUMNS)
    return minute, seen


def after(extremes: bytes, minute: int, frames: bytes, width: int) -> bytes:
    """With what these frames of `width` bytes say of the node: all those since the last update."""
    before, seen = read(extremes)
    passed = minute - before
    if not 0 < passed <= MAX_GAP_MINUTES:  # the wall clock was set, or nobody looked for a while
        seen = [Seen()] * len(COLUMNS)
    written = [STAMP.pack(minute)]
    for one in (one.after(passed, frames[column::width]) for column, one in enumerate(seen)):
        written.append(HEAD.pack(one.observed_minutes, len(one.highs), len(one.lows)))
        written += (STEP.pack(value, ago) for value, ago in (*one.highs, *one.lows))
    return b"".join(written)


def new_extremes(rows: Sequence[Row], now: float, wall: float) -> dict[str, bytes]:
    """By node, the new extremes of those whose turn it is; `now` by the rows' clock. To be called once a second: each node that is
    online and read has its turn once a minute."""
    minute = int(wall // MINUTE_SECONDS)
    stamp = STAMP.pack(minute)
    due = (row for row in rows if row.extremes[: STAMP.size] != stamp and is_read(row, now))
    return {row.node_id: updated(row, minute) for row in itertools.islice(due, len(rows) // TURN_SECONDS + 1)}


def is_read(row: Row, now: float) -> bool:
    """Whether its newest sample is one of this minute."""
    return row.sample_at is not None and now - row.sample_at < MINUTE_SECONDS and state_of(row, now) is State.ONLINE


def updated(row: Row, minute: int) -> bytes:
    """With the samples since the last update: a few more of them, which were seen before, are none too many."""
    (before, _), width = read(row.extremes), row.capacities.frame_bytes
    minutes = min(max(minute - before, 0), MAX_GAP_MINUTES) + 1
    samples = math.ceil(minutes * MINUTE_SECONDS / max(row.interval_seconds, row.capacities.sampling_seconds))
    return after(row.extremes, minute, row.history[-samples * width :], width)
