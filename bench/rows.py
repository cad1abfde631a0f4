"""The section rows: a screen over many nodes, none of which is there."""

from __future__ import annotations

import argparse
import functools
import itertools
import random
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import node_pb2 as pb
import server
from bench.figures import WINDOW_SECONDS, Figure, say
from bench.messages import BOXES, course
from bench.processes import SCREEN_SIZE, Program, Terminal, free_port, role
from edge.fleet.row import Session


def rows(options: argparse.Namespace) -> Iterator[Figure]:
    """Synthetic rows, scrolled. Five times the fleet at 30 keys a second: what is known must not cost, what is shown may."""
    yield from scroll(options.nodes, 60)
    yield from scroll(5 * options.nodes, 30)


def scroll(count: int, keys_per_second: int) -> Iterator[Figure]:
    """Page down, down, page up and up in turn, a second each; a frame for each key."""
    keys = itertools.cycle(key for key in (b"\x1b[6~", b"\x1b[B", b"\x1b[5~", b"\x1b[A") for _ in range(keys_per_second))
    say(f"rows: {count:,} in the registry, {keys_per_second} keys/s")
    port, terminal, name = free_port(), Terminal(*SCREEN_SIZE), f"{count:,} rows, {keys_per_second} keys/s"
    with Program(*role(serve_rows, count, port), terminal=terminal) as program:
        program.wait_until_listening(port, 90)
        time.sleep(2)
        frames, cpu, drawing, started = terminal.counts()[0], program.cpu_seconds(), program.main_thread_seconds(), time.monotonic()
        due = started
        while (due := due + 1 / keys_per_second) < started + WINDOW_SECONDS:
            terminal.type(next(keys))
            time.sleep(max(due - time.monotonic(), 0))
        elapsed = time.monotonic() - started
        frames, cpu = terminal.counts()[0] - frames, program.cpu_seconds() - cpu
        drawing = program.main_thread_seconds() - drawing
        yield Figure("rows", f"{name}: frames", frames / elapsed, "/s", at_least=0.96 * keys_per_second)
        most = 30 if keys_per_second <= 30 else None
        yield Figure("rows", f"{name}: the screen's thread", 100 * drawing / elapsed, "% of a core", most)
        yield Figure("rows", f"{name}: all", 100 * cpu / elapsed, "% of a core", note="with 1,000 heartbeats/s")
        yield Figure("rows", f"{name}: memory", program.megabytes(), "MB RSS")


def serve_rows(count: int, port: int) -> None:
    """server.py, whose registry knows so many synthetic nodes from the start; each second a thousand of them, drawn, beat."""
    make_registry = functools.partial(FullRegistry, count)
    argv = ["--listen", f"127.0.0.1:{port}", "--max-nodes", str(2 * count), "--interval", "3600"]
    sys.exit(server.main(argv, make_registry))


class FullRegistry(server.Registry):
    """So many nodes, without their connections."""

    def __init__(self, count: int, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._boxes = [course(8, seed) for seed in range(BOXES)]
        self._known = [self._start(number) for number in range(count)]
        threading.Thread(target=self._feed, daemon=True).start()

    def _start(self, number: int) -> Session:
        requests = self._boxes[number % BOXES]
        info = pb.NodeInfo()
        info.CopyFrom(requests[0].info)
        info.hostname, info.instance_id = f"bench-{number:05}", str(number)
        session = self.open(pb.HeartbeatRequest(node_id=f"bench-{number:05}", info=info), "10.0.0.1")
        self._beat(session)
        return session

    def _beat(self, session: Session) -> None:
        drawn = random.choice(random.choice(self._boxes))
        clock = drawn.sample.taken_milliseconds
        self.heartbeat(session, pb.HeartbeatRequest(sample=drawn.sample, summary=drawn.summary, clock_milliseconds=clock))

    def _feed(self) -> None:
        while True:
            for _ in range(10):
                self._beat(random.choice(self._known))
            time.sleep(0.01)
