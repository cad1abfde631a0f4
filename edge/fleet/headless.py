"""A server without a screen: its events as plain lines, or its fleet as JSON."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from edge.event_log import Follower
from edge.fleet.export import snapshot_json
from edge.fleet.source import Source
from edge.program import put, time_stamp
from edge.terminal import Inputs

PRINT_SECONDS = 0.2  # from one look into the log to the next


def run_headless(
    source: Source,
    events: Follower | None,
    is_alive: Callable[[], bool],
    inputs: Inputs,
    first: Sequence[str],
    as_json: bool,
    is_known: Callable[[], bool] = lambda: True,
) -> None:
    """The main thread without a terminal: a line an event, and with --json a snapshot of the fleet each second, and all else on
    stderr. `first`: its first lines; `is_known`: whether there is a fleet, since one that is not known yet is not an empty one."""
    said = sys.stderr if as_json else sys.stdout
    put("\n".join(first), said)
    snapshot_due = time.monotonic()
    while not inputs.received and is_alive():
        now = time.monotonic()
        if events:
            print_events(events, said)
        if as_json and now >= snapshot_due and is_known():
            put(snapshot_json(source))
            snapshot_due = max(snapshot_due + 1, time.monotonic())
        inputs.wait(PRINT_SECONDS)
    if events:
        print_events(events, said)  # what came since the last look
    if inputs.received:
        put(f"{time_stamp(time.time())} stopped by {signal.Signals(inputs.received).name}", said)


def print_events(events: Follower, said: TextIO) -> None:
    """Print what came since the last call."""
    missed, new = events.new()
    if missed:
        put(f"{time_stamp(time.time())} warning server: {missed} events came too fast to be kept", said)
    for event in new:
        put(f"{time_stamp(event.time)} {event.kind} {event.node_id}: {event.text}", said)
