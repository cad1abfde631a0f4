"""JSON for programs, and for the page."""

from __future__ import annotations

import asyncio
import functools
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf import json_format
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge import history
from edge.fleet.admission import network_of
from edge.fleet.export import fleet_pieces, row_json
from edge.fleet.moments import spacing_seconds
from edge.fleet.row import Row
from edge.web.gate import address_of, sentence
from edge.web.packing import Packing, Piece, piece_of
from edge.web.selection import Busy, Selection, select
from edge.web.site import Fleet, Site
from edge.web.slices import sliced
from edge.web.stream import Pages, Put, Stream, later

JSON = "application/json"
SERIES = {"utilization_percent": history.UTILIZATION, "memory_percent": history.MEMORY, "temperature_celsius": history.TEMPERATURE}
CHUNK_CHARACTERS = 2**16  # of a fleet, that are sent at once


def routes(site: Site) -> list[Route]:
    """`/api/fleet`, `/api/nodes/ID` (or `?id=ID`: a browser makes another path of `..`), `/api/match`, `/api/events`."""
    pages, answers = Pages(site), Answers(site.fleet)

    async def fleet(request: Request) -> Response:
        text = request.query_params.get("match", "")
        try:
            network = network_of(address_of(request.scope))
            chosen = await select(site.fleet, text, network) if text else Selection(site.fleet.snapshot(), ())
        except Busy as error:
            return later(error)
        if chosen.not_understood:
            return sentence(400, chosen.why_not)
        names = [row.node_id for row in chosen.rows]
        rows = (row for node_id in names for row in site.fleet.rows([node_id]) if row)  # one who reads slowly holds no rows
        return streamed(request, fleet_pieces(rows, site.fleet.clock(), site.fleet.wall()))

    async def node(request: Request) -> Response:
        node_id = request.path_params.get("node_id") or request.query_params.get("id", "")
        (row,) = site.fleet.rows([node_id])
        if not row:
            return sentence(404, f"there is no node {node_id!r} here: /api/fleet has all")
        return streamed(request, node_pieces(row, site.fleet.clock()))

    async def match(request: Request) -> Response:
        try:
            answer = await answers.to(request.query_params.get("match", ""), network_of(address_of(request.scope)))
        except Busy as error:
            return later(error)
        packing = Packing(request)
        return Response(packing.whole(answer), headers=packing.headers, media_type=JSON)

    async def events(request: Request) -> Response:
        return pages.answer(request)

    return [
        Route("/api/fleet", fleet),
        Route("/api/nodes/{node_id:path}", node),
        Route("/api/nodes", node),
        Route("/api/match", match),
        Route("/api/events", events),
    ]


def streamed(request: Request, pieces: Iterator[str]) -> Response:
    """An answer of these, which are made while it is sent."""
    packing = Packing(request)
    return Stream(functools.partial(put_all, pieces, packing), JSON, packing.headers)


async def put_all(pieces: Iterator[str], packing: Packing, put: Put) -> None:
    """These, in larger ones."""
    held, size = [], 0
    async for piece in sliced(pieces):
        held.append(piece)
        size += len(piece)
        if size >= CHUNK_CHARACTERS:
            await put(packing.next("".join(held).encode()))
            held, size = [], 0
    await put(packing.next("".join(held).encode()) + packing.end())


# ---- One node ----


def node_pieces(row: Row, now: float) -> Iterator[str]:
    """What --json says of a node, what runs on it, and its last readings."""
    yield json.dumps(row_json(row, now))[:-1]
    yield ', "processes": ['
    for place, process in enumerate(row.processes):
        text = json.dumps(json_format.MessageToDict(process, preserving_proto_field_name=True))
        yield f"{', ' * (place > 0)}{text}"
    yield f'], "history": {{"seconds": {json.dumps(spacing_seconds(row))}, '
    yield json.dumps(series_of(row, history.WHOLE_NODE))[1:-1]
    yield ', "devices": ['
    for device in range(len(row.capacities.devices)):
        yield f"{', ' * (device > 0)}{json.dumps(series_of(row, device))}"
    yield "]}}"


def series_of(row: Row, device: int) -> dict[str, list[int | None]]:
    """The last readings of a device, or of the whole node, the oldest first. None: not reported."""
    devices = len(row.capacities.devices)
    return {
        name: [None if value == history.NOT_REPORTED else value for value in history.series(row.history, devices, device, column)]
        for name, column in SERIES.items()
    }


# ---- Which nodes a filter chooses ----

ANSWER_SECONDS = 1.0  # that an answer is good for, at least
ANSWERS_KEPT = 16
NOTHING = Piece(b"", b"")


class Answers:
    """The nodes of filters: shared by all who ask the same."""

    def __init__(self, fleet: Fleet, clock: Callable[[], float] = time.monotonic) -> None:
        self._fleet, self._clock = fleet, clock
        self._making: dict[str, asyncio.Task[Piece]] = {}
        self._kept: dict[str, tuple[float, Piece]] = {}  # by filter: until when it is good, and the answer; the oldest first

    async def to(self, text: str, network: str = "") -> Piece:
        """The answer to a filter, as it is sent. `network`: of who asks. Raises Busy."""
        until, answer = self._kept.get(text, (0.0, NOTHING))
        if self._clock() < until:
            return answer
        making = self._making.get(text)
        if not making:
            making = self._making[text] = asyncio.create_task(self._make(text, network))
            making.add_done_callback(lambda _: self._making.pop(text))
        return await asyncio.shield(making)

    async def _make(self, text: str, network: str) -> Piece:
        chosen = await select(self._fleet, text, network)
        told: dict[str, Any] = {"node_ids": [row.node_id for row in chosen.rows], "not_understood": chosen.not_understood}
        answer = piece_of(json.dumps(told).encode())
        self._kept.pop(text, None)
        self._kept[text] = self._clock() + max(ANSWER_SECONDS, chosen.rest_seconds), answer
        if len(self._kept) > ANSWERS_KEPT:
            del self._kept[next(iter(self._kept))]
        return answer
