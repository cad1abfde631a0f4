"""What Prometheus reads: `/metrics`, made a little at a time beside the heartbeats, and kept for a second."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edge.fleet.lens import counting
from edge.fleet.listening import open_files
from edge.fleet.row import Row, State, hanging_seconds, state_of
from edge.text import visible
from edge.web.exposition import CONTENT_TYPE, NODES_A_BLOCK, Block, Faces, fleet_lines, node_lines, server_lines
from edge.web.selection import select
from edge.web.site import Site
from edge.web.slices import sliced

KEPT_SECONDS = 1.0  # a body, for who asks again
MAX_BODIES = 4  # at once, those that are still being sent among them
MAX_WAITING = 16  # who wait until theirs is made
SEND_SECONDS = 60.0  # that a body may take on its way: who reads more slowly is left
GZIP = 16 + zlib.MAX_WBITS  # as zlib calls the format
BUSY_SECONDS = 2  # from then on it is worth asking again
LEVEL = 1  # a tenth as many bytes, in a third of the time that a better one takes
CHUNK_BYTES = 2**17  # of what is unpacked at once
WANTS_GZIP = re.compile(r"(?:^|[\s,])gzip\s*(?:$|,|;(?!\s*q=0(?:\.0*)?\s*(?:,|$)))", re.IGNORECASE)


class Question(NamedTuple):
    """What is asked for."""

    match: str  # the screen's filter; empty: all
    with_nodes: bool


class NotUnderstood(Exception):
    """A filter that can't be read; the text says what to do."""


class Busy(Exception):
    """There is no answer just now; the text says why."""


TOO_MANY, GOING_AWAY = "too many ask at once", "this server is going away"


class Body:
    """An answer, packed, in pieces."""

    def __init__(self, question: Question, packed: Sequence[bytes]) -> None:
        self.question, self.packed = question, packed
        self.readers = 0
        self.is_kept = True  # for who asks again


class Scrapes:
    """The answers of the last second, and those in the making: each made once for all who ask, one at a time."""

    def __init__(self, site: Site, kept_seconds: float = KEPT_SECONDS) -> None:
        self._site, self._kept_seconds = site, kept_seconds
        self._faces = Faces()
        self._tasks: dict[Question, asyncio.Task[Body]] = {}
        self._bodies: dict[Body, None] = {}  # that are kept or being sent, the oldest first
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def body(self, question: Question) -> Body:
        """Raises NotUnderstood or Busy. One who goes away meanwhile stops nothing for the others."""
        task = self._tasks.get(question)
        if not (task and task.done()):
            if self._waiting >= MAX_WAITING:
                raise Busy(TOO_MANY)
            task = task or self._begin(question)
            self._waiting += 1
            try:
                await asyncio.wait([task])
            finally:
                self._waiting -= 1
        return task.result()

    def _begin(self, question: Question) -> asyncio.Task[Body]:
        task = self._tasks[question] = asyncio.create_task(self._make(question))
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

    async def _make(self, question: Question) -> Body:
        async with self._turn:
            self._make_room()
            pieces = []
            async with contextlib.aclosing(packed(nodes_and_fleet(self._site, question, self._faces))) as answer:
                async for piece in answer:
                    pieces.append(piece)
                    if not self._site.is_ready():
                        raise Busy(GOING_AWAY)
            body = Body(question, pieces)
            self._bodies[body] = None
            return body

    def _make_room(self) -> None:
        """Raises Busy where all there may be are being sent."""
        if len(self._bodies) >= MAX_BODIES:
            idle = next((body for body in self._bodies if not body.readers), None)
            if not idle:
                raise Busy(TOO_MANY)
            self._forget(idle)

    async def pieces(self, body: Body, is_packed: bool) -> AsyncIterator[bytes]:
        """A body on its way to one reader."""
        body.readers += 1
        self._bodies[body] = None
        end = asyncio.get_running_loop().time() + SEND_SECONDS
        unpack = zlib.decompressobj(GZIP)
        try:
            async for piece in sliced(body.packed):
                if asyncio.get_running_loop().time() > end:
                    raise TimeoutError(f"who asked for the figures has not read them in {SEND_SECONDS:g} s")
                if is_packed:
                    yield piece
                    continue
                text = unpack.decompress(piece, CHUNK_BYTES)
                while text:
                    yield text
                    text = unpack.decompress(unpack.unconsumed_tail, CHUNK_BYTES)
        finally:
            body.readers -= 1
            self._let_go(body)


async def packed(lines: AsyncIterator[str]) -> AsyncGenerator[bytes, None]:
    """Text as gzip has it, in pieces."""
    pack = zlib.compressobj(LEVEL, zlib.DEFLATED, GZIP)
    async for text in lines:
        if piece := pack.compress(text.encode()):
            yield piece
    yield pack.flush()


async def nodes_and_fleet(site: Site, question: Question, faces: Faces) -> AsyncIterator[str]:
    """All lines, a little at a time. Raises NotUnderstood."""
    rows: list[Row] = site.fleet.snapshot()
    now = site.fleet.clock()
    sessions = sum(row.session is not None for row in rows)
    faces.keep(rows)
    if question.match:
        chosen = await select(site.fleet, question.match)
        if chosen.not_understood:
            told = ", ".join(visible(term) for term in chosen.not_understood)
            raise NotUnderstood(
                f"the filter can't be read at: {told}; the help of the screen, by ? after /, tells how it is written"
            )
        rows = list(chosen.rows)
        del chosen
    if question.with_nodes:
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
    failed = 0
    async for row in sliced(rows):
        if state_of(row, now) is State.ONLINE and hanging_seconds(row, now) is None:
            failed += row.vitals.errors
    async for totals in sliced(counting(rows, now)):
        for text in fleet_lines(totals, failed) if totals else ():
            yield text
    async for _ in sliced(range(len(rows))):  # most are of the past by now, and go with this list
        rows.pop()
    for text in server_lines(site, sessions, await asyncio.to_thread(open_files)):
        yield text


def routes(site: Site) -> list[Route]:
    """`/metrics`, `/metrics/fleet`."""
    scrapes = Scrapes(site)

    async def answer(request: Request, with_nodes: bool) -> Response:
        match = " ".join(request.query_params.get("match", "").split())
        try:
            body = await scrapes.body(Question(match, with_nodes))
        except NotUnderstood as error:
            return PlainTextResponse(f"{error}\n", 400)
        except Busy as error:
            return PlainTextResponse(f"{error}: ask again in {BUSY_SECONDS} s\n", 503, {"Retry-After": str(BUSY_SECONDS)})
        is_packed = bool(WANTS_GZIP.search(request.headers.get("accept-encoding", "")))
        headers = {"Content-Type": CONTENT_TYPE, "Vary": "Accept-Encoding", **({"Content-Encoding": "gzip"} if is_packed else {})}
        return StreamingResponse(scrapes.pieces(body, is_packed), headers=headers)

    async def metrics(request: Request) -> Response:
        return await answer(request, with_nodes=True)

    async def fleet(request: Request) -> Response:
        return await answer(request, with_nodes=False)

    return [Route("/metrics", metrics), Route("/metrics/fleet", fleet)]
