"""The section cadence: a fleet that is too large is told to beat more slowly."""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Iterator

import node_pb2 as pb
import server
from bench.figures import Figure, say
from bench.generator import Load, Plan
from bench.processes import Program, free_port, headless, role


def cadence(options: argparse.Namespace) -> Iterator[Figure]:
    """A fleet of twice the budget is told to slow down, and told again when half of it leaves."""
    yield from cadence_of_registry()
    nodes = max(options.nodes // 5, 100)
    say(f"cadence: {nodes:,} nodes, a budget of {nodes // 2:,} heartbeats/s")
    port = free_port()
    with Program(*role(serve_budget, nodes // 2, port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, nodes)) as load:
            load.connect()
            yield from watch_cadence(load, "all", 2.0, nodes)
            load.ask("leave", 2)
            time.sleep(1)
            yield from watch_cadence(load, "half of them left", 1.0, nodes - nodes // 2)


def serve_budget(heartbeats_per_second: int, port: int) -> None:
    """server.py with another budget."""
    make_registry = functools.partial(server.Registry, heartbeats_per_second=heartbeats_per_second)
    sys.exit(server.main(list(headless(port)[1:]), make_registry))


def watch_cadence(load: Load, name: str, expected: float, nodes: int) -> Iterator[Figure]:
    """Until all keep the cadence, and then how much they send."""
    started, told = time.monotonic(), 0.0
    while told < nodes and time.monotonic() < started + 25:
        time.sleep(0.5)
        told = sum(count for interval, count in load.report().intervals.items() if abs(interval / expected - 1) < 0.02)
    took = time.monotonic() - started
    load.report()
    time.sleep(4)
    sent = load.report().sent / 4
    yield Figure("cadence", f"{name}: told {expected:g} s", 100 * told / nodes, "%", at_least=99.9, note=f"after {took:.0f} s")
    yield Figure("cadence", f"{name}: heartbeats", sent, "/s", 1.05 * nodes / expected)


def cadence_of_registry() -> Iterator[Figure]:
    """At full scale, without its 20,000 sockets: the registry alone decides."""
    now, half = 0.0, server.HEARTBEATS_PER_SECOND
    registry = server.Registry(1.0, 3 * half, clock=lambda: now)
    sessions = [registry.open(pb.HeartbeatRequest(node_id=f"bench-{number}"), "10.0.0.1") for number in range(2 * half)]

    def told() -> float:
        nonlocal now
        now += 1
        for session in sessions:
            registry.heartbeat(session, pb.HeartbeatRequest())
        registry.tick()
        return registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds / 1000

    name = f"{2 * half:,} nodes, a budget of {half:,} heartbeats/s"
    slow = told()
    yield Figure("cadence", f"{name}: told", slow, "s", 2, 2)
    for session in sessions[half:]:
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    del sessions[half:]
    yield Figure("cadence", f"{name}, half left: told", told(), "s", 1, 1)
