"""What Prometheus reads: `/metrics`, made a little at a time beside the heartbeats, and kept for a second."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import functools
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge.fleet.admission import network_of
from edge.fleet.lens import counting
from edge.fleet.listening import open_files
from edge.fleet.row import Row
from edge.web.exposition import CONTENT_TYPE, NODES_A_BLOCK, Block, Faces, Single, fleet_families, node_lines, server_families
from edge.web.gate import address_of, own_task, sentence
from edge.web.packing import LEVEL, Packing
from edge.web.selection import Busy, select
from edge.web.site import Site
from edge.web.slices import sliced
from edge.web.stream import Put, Stream, later

KEPT_SECONDS = 1.0  # a body, for who asks again
MAX_BODIES = 4  # at once, those that are still being sent among them
BODIES_OF_ONE = 2  # of a network, without a filter: /metrics and /metrics/fleet never give way to who asks with one
GZIP = 16 + zlib.MAX_WBITS  # as zlib calls the format
CHUNK_BYTES = 2**17  # of what is unpacked at once


class Question(NamedTuple):
    """What is asked for."""

    match: str  # the screen's filter; empty: all
    with_nodes: bool


class NotUnderstood(Exception):
    """A filter that can't be read; the text says what to do."""


TOO_MANY, GOING_AWAY = "too many ask for figures at once", "this server is going away"


class Body:
    """An answer, packed, in pieces."""

    def __init__(self, question: Question, network: str, packed: Sequence[bytes]) -> None:
        self.question, self.packed = question, packed
        self.network = network  # of who asked first
        self.readers: set[asyncio.Task[Any]] = set()  # that send it
        self.is_kept = True  # for who asks again


class Scrapes:
    """The answers of the last second, and those in the making: each made once for all who ask, one at a time."""

    def __init__(self, site: Site, kept_seconds: float = KEPT_SECONDS) -> None:
        self._site, self._kept_seconds = site, kept_seconds
        self._faces = Faces()
        self._tasks: dict[Question, asyncio.Task[Body]] = {}
        self._bodies: dict[Body, None] = {}  # that are kept or being sent, the oldest first
        self._turn, self._turn_of_filters = asyncio.Lock(), asyncio.Lock()

    async def body(self, question: Question, network: str = "") -> Body:
        """`network`: of who asks. Raises NotUnderstood or Busy. One who goes away meanwhile stops nothing for the others."""
        task = self._tasks.get(question) or self._begin(question, network)
        await asyncio.wait([task])
        return task.result()

    def _begin(self, question: Question, network: str) -> asyncio.Task[Body]:
        task = self._tasks[question] = asyncio.create_task(self._make(question, network))
        task.add_done_callback(functools.partial(self._made, question))
        return task

    def _made(self, question: Question, task: asyncio.Task[Body]) -> None:
        """Keep it for a while; an error is told to those who wait for it, and not kept."""
        if task.cancelled() or task.exception():
            del self._tasks[question]
        else:
            asyncio.get_running_loop().call_later(self._kept_seconds, self._forget, task.result())

    def _forget(self, body: Body) -> None:
        if body.is_kept:
            del self._tasks[body.question]
            body.is_kept = False
            self._let_go(body)

    def _let_go(self, body: Body) -> None:
        if not body.is_kept and not body.readers:
            self._bodies.pop(body, None)

    async def _make(self, question: Question, network: str) -> Body:
        if not question.match:
            return await self._make_of(None, question, network)
        chosen = await select(self._site.fleet, question.match, network)
        if chosen.not_understood:
            raise NotUnderstood(chosen.why_not)
        names = [row.node_id for row in chosen.rows]
        del chosen
        async with self._turn_of_filters:  # so one at most comes before those who ask without
            return await self._make_of(names, question, network)

    async def _make_of(self, names: Sequence[str] | None, question: Question, network: str) -> Body:
        async with self._turn:
            self._make_room(question)
            pieces = []
            text = nodes_and_fleet(self._site, names, question.with_nodes, self._faces)
            async with contextlib.aclosing(packed(text)) as answer:
                async for piece in answer:
                    pieces.append(piece)
                    if not self._site.is_ready():
                        raise Busy(GOING_AWAY)
            body = Body(question, network, pieces)
            self._bodies[body] = None
            return body

    def _make_room(self, question: Question) -> None:
        """Where there is no place, one that nobody reads makes it; else one that is being sent, whose readers are left: the oldest
        of the network that has most, and one without a filter only where there is no other. Raises Busy where none may."""
        bodies = self._bodies
        if len(bodies) < MAX_BODIES:
            return
        counts = collections.Counter(body.network for body in bodies)
        rivals = [one for one in bodies if not one.readers] or [
            one for one in bodies if one.question.match or not question.match or counts[one.network] > BODIES_OF_ONE
        ]
        if not rivals:
            raise Busy(TOO_MANY)
        body = min(rivals, key=lambda one: (not one.question.match, -counts[one.network]))
        self._forget(body)
        bodies.pop(body, None)
        for reader in body.readers:
            reader.cancel()

    async def tell(self, body: Body, is_packed: bool, put: Put) -> None:
        """A body to one reader."""
        body.readers.add(own_task())
        self._bodies[body] = None
        try:
            async with contextlib.aclosing(pieces_of(body, is_packed)) as pieces:
                async for piece in pieces:
                    await put(piece)
        finally:
            body.readers.discard(own_task())  # a name for it here would be a circle, by the traceback of its end
            self._let_go(body)


async def pieces_of(body: Body, is_packed: bool) -> AsyncGenerator[bytes, None]:
    """As they are sent."""
    unpack = zlib.decompressobj(GZIP)
    async for piece in sliced(body.packed):
        if is_packed:
            yield piece
            continue
        text = unpack.decompress(piece, CHUNK_BYTES)
        while text:
            yield text
            text = unpack.decompress(unpack.unconsumed_tail, CHUNK_BYTES)


async def packed(lines: AsyncIterator[str]) -> AsyncGenerator[bytes, None]:
    """Text as gzip has it, in pieces."""
    pack = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    async for text in lines:
        if piece := pack.compress(text.encode()):
            yield piece
    yield pack.flush()


async def nodes_and_fleet(site: Site, names: Sequence[str] | None, with_nodes: bool, faces: Faces) -> AsyncIterator[str]:
    """All lines, a little at a time; of some nodes, where these are named."""
    rows: list[Row] = site.fleet.snapshot()
    now = site.fleet.clock()
    sessions = sum(row.session is not None for row in rows)
    faces.keep(rows)
    if names is not None:
        rows = [row for row in site.fleet.rows(names) if row]
    if with_nodes:
        blocks = [Block()]
        async for row in sliced(rows):
            blocks[-1].add(row, faces.of(row), now)
            if len(blocks[-1].node["labels"]) == NODES_A_BLOCK:
                blocks[-1].close()
                blocks.append(Block())
        blocks[-1].close()
        async for text in sliced(node_lines(blocks)):
            yield text
        async for _ in sliced(range(len(blocks))):  # to let go of all at once takes 20 ms of ten thousand nodes
            blocks.pop()
    singles: list[Single] = []
    async for totals in sliced(counting(rows, now)):
        singles += fleet_families(totals) if totals else ()
    async for _ in sliced(range(len(rows))):  # most are of the past by now, and go with this list
        rows.pop()
    singles += server_families(site, sessions, await asyncio.to_thread(open_files))
    for single in singles:
        yield single.text()


def routes(site: Site) -> list[Route]:
    """`/metrics`, `/metrics/fleet`."""
    scrapes = Scrapes(site)

    async def answer(request: Request, with_nodes: bool) -> Response:
        match = " ".join(request.query_params.get("match", "").split())
        try:
            body = await scrapes.body(Question(match, with_nodes), network_of(address_of(request.scope)))
        except NotUnderstood as error:
            return sentence(400, str(error))
        except Busy as error:
            return later(error)
        packing = Packing(request)
        return Stream(functools.partial(scrapes.tell, body, packing.is_wanted), CONTENT_TYPE, packing.headers)

    async def metrics(request: Request) -> Response:
        return await answer(request, with_nodes=True)

    async def fleet(request: Request) -> Response:
        return await answer(request, with_nodes=False)

    return [Route("/metrics", metrics), Route("/metrics/fleet", fleet)]
