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
from bench.scale import latencies_while, serve_timed
from edge.web.scrape import KEPT_SECONDS

SCRAPES = 5
SCRAPE_SECONDS = {True: 3.0, False: 0.3}  # that one may take: of a whole fleet, and of a tenth
WAIT_MILLISECONDS = 20  # that a heartbeat may be kept waiting by it


class Scrape(NamedTuple):
    """One answer."""

    seconds: float
    bytes: int


def http(options: argparse.Namespace) -> Iterator[Figure]:
    """/metrics of a tenth and of the whole fleet, 8 GPUs a node: idle, and beside heartbeats at 1 Hz, none of which may wait."""
    for nodes, at_most in ((options.nodes // 10, SCRAPE_SECONDS[False]), (options.nodes, SCRAPE_SECONDS[True])):
        yield from idle(nodes, at_most)
        yield from beside_heartbeats(nodes, at_most)


def idle(nodes: int, at_most: float) -> Iterator[Figure]:
    """Nodes that are known and do not beat: the answer alone."""
    say(f"http: {nodes:,} nodes that do not beat")
    port, web = free_port(), free_port()
    with Program(*role(serve_still, nodes, port, web)) as program:
        program.wait_until_listening(web, 90)
        before = program.megabytes()
        for name, encoding in (("gzip", "gzip"), ("plain", "identity")):
            scrapes = scrape(web, encoding)
            worst, size = max(one.seconds for one in scrapes), scrapes[-1].bytes / 1e6
            yield Figure("http", f"{nodes:,} nodes, idle: /metrics, {name}", worst, "s", at_most, note=f"{size:.1f} MB")
            yield Figure("http", f"{nodes:,} nodes, idle: memory more, {name}", program.megabytes() - before, "MB RSS")


def beside_heartbeats(nodes: int, at_most: float) -> Iterator[Figure]:
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
                yield Figure("http", f"{name}: /metrics, gzip", max(times), "s", at_most, note=note)
                for percent, words in (("50", "median"), ("99", "p99"), ("100", "longest")):
                    note = f"without: {1000 * quiet[percent]:.1f} ms"
                    yield Figure("http", f"{name}: a heartbeat meanwhile, {words}", 1000 * busy[percent], "ms", note=note)
                longer = max(1000 * (busy["100"] - quiet["100"]), 0.0)  # the server has other things to do once a second
                yield Figure("http", f"{name}: longer than without", longer, "ms", WAIT_MILLISECONDS)
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
