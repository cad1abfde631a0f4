"""The section soak: whether memory grows while nodes come and go."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator

from bench.figures import Figure, say
from bench.generator import Load, Plan
from bench.processes import Program, free_port, headless


def soak(options: argparse.Namespace) -> Iterator[Figure]:
    """Nodes come and go, half of them without a goodbye: a tenth of the fleet alive, twice the fleet's names in turn. Each name has
    come once when memory is first taken, and comes once more until the end."""
    alive, ids, port = options.nodes // 10, 2 * options.nodes, free_port()
    end = 60 * options.minutes
    settled = min(300.0, end / 6)
    life = 0.8 * alive / ids  # of a node, for each second in which all names come once
    with Program(*headless(port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, alive, ids=ids, life_seconds=life * settled)) as load:
            started, early, sessions, since = time.monotonic(), 0.0, 0, 0
            while (elapsed := time.monotonic() - started) < end:
                time.sleep(5)
                sessions += sum(load.report().ended.values())
                if not early and elapsed >= settled:
                    early, since = program.megabytes(), sessions
                    load.ask("live", math.ceil(life * (end - settled)))
                say(f"    {elapsed / 60:.1f} of {options.minutes:g} minutes, {sessions:,} ended, {program.megabytes():.1f} MB")
            grown, since = program.megabytes() - early, sessions - since
            note = f"{alive:,} alive, {ids:,} names, {sessions:,} sessions"
            yield Figure("soak", f"memory after {settled / 60:.0f} minutes", early, "MB RSS", note=note)
            yield Figure("soak", f"growth until {options.minutes:g} minutes", 100 * grown / early, "%", 5)
            yield Figure("soak", "growth for each session since", 1e6 * grown / since, "bytes", note=f"{since:,} sessions")
