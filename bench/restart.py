"""The section restart: a whole fleet comes back to a server that starts again."""

from __future__ import annotations

import argparse
import collections
import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence

from bench.figures import Figure, say
from bench.generator import Load, Plan, Report
from bench.processes import Program, free_port, headless


def restart(options: argparse.Namespace) -> Iterator[Figure]:
    """The server ends and starts again. Each node comes back in its own time, with the ten samples that it kept."""
    yield from come_back(options.nodes)


def come_back(nodes: int, *server_options: str, token: str = "") -> Iterator[Figure]:
    """How a fleet comes back to a server with these options."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        server_options += ("--state", stack.enter_context(tempfile.TemporaryDirectory()))
        first = stack.enter_context(Program(*headless(port, *server_options)))
        first.wait_until_listening(port)
        load = stack.enter_context(Load(Plan(port, nodes, backlog=10, reconnect=True, token=token)))
        say(f"restart: {nodes:,} nodes connect")
        load.connect()
        load.report()
        say("restart: the server is stopped, and started again")
        stopped = time.monotonic()
        first.stop()
        second = stack.enter_context(Program(*headless(port, *server_options)))
        started = second.wait_until_listening(port)
        reports = load.wait_until(nodes, 90)
        yield from restart_figures(reports, nodes, stopped, started)


def restart_figures(reports: Sequence[Report], nodes: int, stopped: float, started: float) -> Iterator[Figure]:
    """How a fleet came back."""
    joined = [moment for report in reports for moment in report.joined]
    seconds = collections.Counter(int(moment - started) for moment in joined)
    histogram = " ".join(f"{seconds[second]:,}" for second in range(max(seconds) + 1))
    ended = sum((collections.Counter(report.ended) for report in reports), collections.Counter())
    refused = sum(ended.values()) - nodes - ended["nobody there"]  # each session ended once with the old server
    steady = nodes / (max(joined) - started)
    highest = max((seconds[second] for second in seconds if second), default=0)
    yield Figure("restart", "all back, from the end of the old server's listening", max(joined) - stopped, "s", 15)
    since_start = max(joined) - started
    yield Figure("restart", "all back, from the new server's start", since_start, "s", note=f"after {started - stopped:.1f} s")
    yield Figure("restart", "refused or broken", refused, "", 0, note=str(dict(ended)))
    yield Figure("restart", "new sessions, mean", steady, "/s", note=f"in each second: {histogram}")
    yield Figure("restart", "most new sessions in a second after the first, of the mean", highest / steady, "x", 3)
