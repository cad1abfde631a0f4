"""The section journal: what it costs to keep a fleet's moments, and to look back."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator

import node_pb2 as pb
import server
from bench.figures import Figure, say
from bench.messages import BOXES, course
from edge.fleet.journal import FILE, MOMENT_SECONDS, SEGMENT_SECONDS, Store
from edge.fleet.moments import Kept
from edge.fleet.row import Row

SAMPLES = 120
MOMENTS = 31  # five minutes: a trend is among them
BARE_LOOPS = 10**7  # what they take is what a processor takes for little: a measure that goes with the machine


def journal(options: argparse.Namespace) -> Iterator[Figure]:
    """The moments of a fleet of 8 GPUs each, kept and read again; in memory, without its connections."""
    for nodes, step_milliseconds in ((options.nodes // 10, 100), (options.nodes, 500)):
        yield from keep_and_read(nodes, step_milliseconds)


def keep_and_read(nodes: int, step_milliseconds: float) -> Iterator[Figure]:
    """Write moments as fast as it goes, then read them."""
    say(f"journal: {nodes:,} nodes")
    gc.set_threshold(10_000, 50, 10_000)  # as the server does
    rows, began, name = fleet(nodes), time.time(), f"{nodes:,} nodes"
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / FILE
        with contextlib.closing(Store(path, None)) as store:
            spent = []
            for number in range(MOMENTS):
                at = number * MOMENT_SECONDS
                rows = [later(row) for row in rows]
                cpu = time.thread_time()
                store.write(at, began + at, MOMENT_SECONDS, rows, (), lambda: None)
                spent.append(time.thread_time() - cpu)
            first, *others = spent  # the first has all infos, as one in each segment has
            seconds = (first * len(others) / (SEGMENT_SECONDS / MOMENT_SECONDS) + sum(others)) / len(others)
            most = 3.0 if nodes >= 10_000 else None
            yield Figure("journal", f"{name}: writing", 100 * seconds / MOMENT_SECONDS, "% of a core", most)
            note = f"in loops of `pass`: {seconds / bare_loop_seconds() / 1e6 * BARE_LOOPS:.1f} million"
            yield Figure("journal", f"{name}: a moment", 1000 * seconds, "ms of processor", note=note)
        yield Figure("journal", f"{name}: on disk", path.stat().st_size / MOMENTS / 1e6, "MB a moment")
        past = Kept(path, is_own=True)
        yield Figure("journal", f"{name}: read at a restart", timed(past.newest), "s", 2)
        steps = [timed(functools.partial(past.moment, began + number * MOMENT_SECONDS)) for number in range(10, 20)]
        yield Figure("journal", f"{name}: a step back", 1000 * max(steps), "ms", step_milliseconds)
        graph = timed(lambda: past.graph(rows[0].node_id, began + MOMENTS * MOMENT_SECONDS, 3600, 120))
        yield Figure("journal", f"{name}: a node's graph", 1000 * graph, "ms")


def fleet(nodes: int) -> list[Row]:
    """Rows with their histories, as a registry has them."""
    registry, boxes = server.Registry(1.0, nodes, clock=lambda: 0.0), [course(8, seed) for seed in range(BOXES)]
    for number in range(nodes):
        first, *beats = boxes[number % BOXES]
        info = pb.NodeInfo()
        info.CopyFrom(first.info)
        info.hostname, info.instance_id = f"bench-{number:05}", str(number)
        session = registry.open(pb.HeartbeatRequest(node_id=f"bench-{number:05}", info=info), "10.0.0.1")
        for beat in beats:
            registry.heartbeat(session, beat)
    return [row._replace(history=(row.history * SAMPLES)[: SAMPLES * row.capacities.frame_bytes]) for row in registry.snapshot()]


def later(row: Row) -> Row:
    """A row after ten more samples."""
    turned = int(MOMENT_SECONDS) * row.capacities.frame_bytes
    at = (row.sample_at or 0.0) + MOMENT_SECONDS
    return row._replace(sample_at=at, heartbeat_at=at, history=row.history[turned:] + row.history[:turned])


def bare_loop_seconds() -> float:
    """Of BARE_LOOPS."""
    cpu = time.thread_time()
    for _ in range(BARE_LOOPS):
        pass
    return time.thread_time() - cpu


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
