"""The section http: what it costs to be read by Prometheus, and that no heartbeat waits for it."""

from __future__ import annotations

import argparse
import functools
import pathlib
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

import server
from bench.figures import Figure, percentile, say
from bench.generator import Load, Plan
from bench.processes import Program, free_port, role
from bench.rows import FullRegistry
from bench.scale import LATE_SECONDS, latencies_while, serve_timed
from edge.web.scrape import KEPT_SECONDS

SCRAPES = 5
SCRAPE_SECONDS = 0.3  # that one may take of a thousand nodes
BEATING = 5_000  # nodes, at most, beside whose heartbeats it is measured: with more, a core has no time left for it; then a tenth


class Scrape(NamedTuple):
    """One answer."""

    seconds: float
    bytes: int


def http(options: argparse.Namespace) -> Iterator[Figure]:
    """/metrics of a tenth and of the whole fleet, 8 GPUs a node; of a tenth beside its heartbeats at 1 Hz: none may wait."""
    for nodes in (options.nodes // 10, options.nodes):
        yield from idle(nodes)
    yield from beside_heartbeats(options.nodes if options.nodes <= BEATING else options.nodes // 10)


def seconds_of(nodes: int) -> float:
    """That an answer may take."""
    return SCRAPE_SECONDS * max(nodes / 1000, 1)


def idle(nodes: int) -> Iterator[Figure]:
    """Nodes that are known and do not beat: the answer alone."""
    say(f"http: {nodes:,} nodes that do not beat")
    port, web = free_port(), free_port()
    with Program(*role(serve_still, nodes, port, web)) as program:
        program.wait_until_listening(web, 90)
        before = program.megabytes()
        for name, encoding in (("gzip", "gzip"), ("plain", "identity")):
            scrapes = scrape(web, encoding)
            worst, size = max(one.seconds for one in scrapes), scrapes[-1].bytes / 1e6
            yield Figure("http", f"{nodes:,} nodes, idle: /metrics, {name}", worst, "s", seconds_of(nodes), note=f"{size:.1f} MB")
            yield Figure("http", f"{nodes:,} nodes, idle: memory more, {name}", program.megabytes() - before, "MB RSS")


def beside_heartbeats(nodes: int) -> Iterator[Figure]:
    """The same beside a fleet that beats; the longest that a heartbeat takes into the registry, without scrapes and with."""
    say(f"http: {nodes:,} nodes at 1 Hz")
    port, web = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "latencies")
        options = ("--headless", "--no-journal", "--http", str(web))
        with Program(*role(serve_timed, str(path), port, *options)) as program:
            program.wait_until_listening(port)
            with Load(Plan(port, nodes, reconnect=True)) as load:
                lost = sum(report.lost() for report in load.connect())
                name = f"{nodes:,} nodes at 1 Hz"
                quiet = latencies_while(program, path, lambda: time.sleep(SCRAPES * 2))
                scrapes: list[Scrape] = []
                busy = latencies_while(program, path, lambda: scrapes.extend(scrape(web, "gzip")))
                warning = load.report().warning()
                times = [one.seconds for one in scrapes]
                note = f"median {percentile(times, 50):.2f} s {warning}".strip()
                yield Figure("http", f"{name}: /metrics, gzip", max(times), "s", seconds_of(nodes), note=note)
                for words, found in (("without", quiet), ("meanwhile", busy)):
                    for percent, which in (("50", "median"), ("99", "p99")):
                        yield Figure("http", f"{name}: a heartbeat {words}, {which}", 1000 * found[percent], "ms")
                    most = 1000 * LATE_SECONDS if found is busy else None
                    yield Figure("http", f"{name}: a heartbeat {words}, longest", 1000 * found["100"], "ms", most)
                    part = 100 * found["late"]
                    yield Figure("http", f"{name}: heartbeats {words} over {1000 * LATE_SECONDS:g} ms", part, "%")
                yield Figure("http", f"{name}: lost or refused", lost + load.leave().lost(), "", 0)


def scrape(port: int, encoding: str) -> list[Scrape]:
    """Some answers, each made anew; the first of them makes the text that does not change, too."""
    scrapes = []
    for _ in range(SCRAPES):
        request = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers={"Accept-Encoding": encoding})
        started, size = time.monotonic(), 0
        with urllib.request.urlopen(request, timeout=60) as answer:
            while chunk := answer.read(2**16):
                size += len(chunk)
        scrapes.append(Scrape(time.monotonic() - started, size))
        time.sleep(1.2 * KEPT_SECONDS)
    return scrapes


def serve_still(count: int, port: int, web: int) -> None:
    """server.py, whose registry knows so many synthetic nodes from the start; none of them beats."""
    make_registry = functools.partial(StillRegistry, count)
    options = ["--listen", f"127.0.0.1:{port}", "--max-nodes", str(2 * count), "--interval", "3600"]
    sys.exit(server.main([*options, "--headless", "--no-journal", "--http", str(web)], make_registry))


class StillRegistry(FullRegistry):
    """Its nodes do not beat."""

    def _feed(self) -> None:
        pass
