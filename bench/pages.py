"""The section pages: what those cost who look at the fleet in a browser."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
import zlib
from collections.abc import Iterator
from http.client import HTTPException
from urllib.request import Request, urlopen

from bench.figures import WINDOW_SECONDS, Figure, say
from bench.generator import Load, Plan
from bench.processes import Program, free_port, headless
from bench.scale import Cost, measure
from bench.watch import SETTLE_SECONDS, Looker

PAGES = 5
READ_BYTES = 2**16


class Reader(Looker):
    """A page that counts what comes, packed as browsers have it, and does nothing with it."""

    def __init__(self, port: int) -> None:
        super().__init__()
        request = Request(f"http://127.0.0.1:{port}/api/events", headers={"accept-encoding": "gzip"})
        self._answer, self._unpack = urlopen(request), zlib.decompressobj(16 + zlib.MAX_WBITS)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        tail = b""
        with contextlib.suppress(OSError, ValueError, HTTPException):
            while data := self._answer.read1(READ_BYTES):
                self.bytes += len(data)
                if self.whole_at:
                    continue
                text = tail + self._unpack.decompress(data)
                if b'"beats"' in text:
                    self.whole_at, self.whole_bytes = time.monotonic(), self.bytes
                tail = text[-10:]


def pages(options: argparse.Namespace) -> Iterator[Figure]:
    """Pages of the whole fleet, 8 GPUs a node at 1 Hz: what each costs the server, and that no heartbeat is lost."""
    port, web, readers, costs = free_port(), free_port(), list[Reader](), dict[int, Cost]()
    with Program(*headless(port, "--no-journal", "--http", str(web))) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, options.nodes, reconnect=True)) as load:
            lost = sum(report.lost() for report in load.connect())
            for count in (0, 1, PAGES):
                while len(readers) < count:
                    readers.append(Reader(web))
                    readers[-1].wait_until_whole()
                say(f"pages: {options.nodes:,} nodes, {count} pages")
                time.sleep(SETTLE_SECONDS)
                came, between = sum(one.bytes for one in readers), load.report()
                costs[count] = cost = measure(program, load)
                lost += cost.sent.lost() + between.lost()
                yield Figure("pages", f"{count} pages: a heartbeat", cost.microseconds, "µs", note=cost.sent.warning())
                if count:
                    came = sum(one.bytes for one in readers) - came
                    yield Figure("pages", f"{count} pages: to each", came / count / WINDOW_SECONDS / 1000, "kB/s", 200)
            first = max(costs[1].cpu_percent - costs[0].cpu_percent, 0.0)
            each = max(costs[PAGES].cpu_percent - costs[1].cpu_percent, 0.0) / (PAGES - 1)
            yield Figure("pages", "the first page: processor", first, "% of a core")
            yield Figure("pages", "each page more: processor", each, "% of a core", 3)
            took = readers[0].whole_at - readers[0].started
            yield Figure("pages", "the whole fleet", took, "s", note=f"{readers[0].whole_bytes / 1e6:.1f} MB")
            yield Figure("pages", "lost or refused", lost + load.leave().lost(), "", 0)
