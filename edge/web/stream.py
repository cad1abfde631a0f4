"""The fleet as server-sent events, for pages: what Watch tells a viewer, in JSON. What is told to many is made and packed once."""

from __future__ import annotations

import asyncio
import collections
import functools
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

import node_pb2 as pb
from edge.fleet.admission import RateLimit, network_of
from edge.fleet.columns import device_names
from edge.fleet.row import Refused, Row
from edge.fleet.service import LOOKS, LOOKS_OF_ONE, LOOKS_SECONDS
from edge.fleet.watch import Feed, Viewer
from edge.fleet.wire import KELVIN, event_of, milliseconds
from edge.protocol import hangs_after_seconds, late_after_seconds, lost_after_seconds
from edge.text import MAX_SENTENCE, visible
from edge.web.files import status_of
from edge.web.gate import address_of, is_loopback, sentence
from edge.web.packing import Packing, Piece, piece_of
from edge.web.site import Site
from edge.web.slices import sliced

RETRY_SECONDS = 2
MADE_KEPT = 16  # messages in JSON: the pieces of what those who keep up are told, and of what those who come are
MAX_PAGES, MAX_PAGES_OF_ONE = 10, 6  # of the viewers' places elsewhere: the others are kept for those by gRPC. This machine: all
SEEN = re.compile(r"(\d{1,19})-(\d{1,19})")  # the id of a message: the epoch and the version that it completes
PLAIN_COLUMNS = ("heartbeat_age_milliseconds", "sample_lag_milliseconds", "memory_used_mebibytes")
OFFSETS = {  # what columns of Beats have added to them, so that 0 is "not reported"
    "utilization_permille": 1, "memory_permille": 1, "temperature_celsius": KELVIN, "power_deciwatts": 1, "cpu_percent": 1,
    "energy_kilojoules": 1, "round_trip_microseconds": 1,
}  # fmt: skip
Put = Callable[[bytes], Awaitable[None]]


class Pages:
    """All who look by HTTP. Each is a viewer of the feed, and counts as one from elsewhere."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._pages: collections.Counter[str] = collections.Counter()  # by network
        self._looks = RateLimit(LOOKS_SECONDS, LOOKS, LOOKS_OF_ONE)
        self._made: dict[bytes, asyncio.Task[Piece]] = {}  # the newest messages, as they are sent

    def answer(self, request: Request) -> Response:
        """A stream, from where the page was; or why there is none."""
        seen = SEEN.fullmatch(request.headers.get("last-event-id") or request.query_params.get("since", ""))
        epoch, version = map(int, seen.groups()) if seen else (0, 0)
        network = network_of(address_of(request.scope))
        try:
            if not self._looks.takes(network, self._site.fleet.clock()):
                raise Refused("too many come to look, in these seconds")
            if self._pages.total() >= MAX_PAGES:
                raise Refused(f"{MAX_PAGES} pages look already: that is all there may be")
            if self._pages[network] >= MAX_PAGES_OF_ONE and not is_loopback(network):
                raise Refused(f"{MAX_PAGES_OF_ONE} pages of {network} look already: that is all there may be of one network")
            viewer = self._site.feed.join(pb.WatchRequest(epoch=epoch, version=version), is_local=False)
        except Refused as error:
            return later(error)
        self._pages[network] += 1
        request.scope["state"]["is_endless"] = True
        packing = Packing(request)
        return Stream(functools.partial(self._tell, viewer, network, packing), "text/event-stream", packing.headers)

    async def _tell(self, viewer: Viewer, network: str, packing: Packing, put: Put) -> None:
        async def write(message: bytes) -> None:
            await put(packing.next(await self.event(message)))
            await put(b"")  # it waits until the message is taken: what a page misses meanwhile comes as one sum

        try:
            await put(packing.next(f"retry: {1000 * RETRY_SECONDS}\n\n".encode()))
            await self._site.feed.follow(viewer, write)
        finally:
            self._site.feed.leave(viewer)
            self._pages[network] -= 1
            self._pages += collections.Counter()  # those alone that have some

    async def event(self, message: bytes) -> Piece:
        """A WatchUpdate as it is sent. Those who are told the same share it, also while it is made."""
        making = self._made.get(message)
        if not making:
            making = self._made[message] = asyncio.create_task(self._event(message))
            if len(self._made) > MADE_KEPT:
                del self._made[next(iter(self._made))]
        return await asyncio.shield(making)

    async def _event(self, message: bytes) -> Piece:
        update = pb.WatchUpdate.FromString(message)
        has_agent = update.HasField("server") and await asyncio.to_thread(status_of, self._site.agent) is not None
        text = "".join([piece async for piece in sliced(pieces_of(update, self._site.feed, has_agent))])
        name = f"id: {update.epoch}-{update.version}\n" if update.version else ""  # the browser says it when it comes back
        return piece_of(f"event: update\n{name}data: {text}\n\n".encode())


class Stream(Response):
    """An answer that is sent as it is made, until it ends or its client is gone.

    Starlette's own leaves a circle of references with each, which would wait for a garbage collection with all that it holds.
    """

    def __init__(self, tell: Callable[[Put], Awaitable[None]], media_type: str, headers: Mapping[str, str] | None = None) -> None:
        """`tell` puts its pieces; each waits until those before are taken. Once this is called, it begins in any case, and is
        cancelled when its client is gone. Where others cancel it, the client is left: the answer can't be whole."""
        self._tell, self.media_type = tell, media_type
        self.status_code, self.background = 200, None
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = asyncio.create_task(self._send(send)), asyncio.create_task(until_gone(receive))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].cancelled():
                scope["state"]["is_left"] = True  # the listener ends the connection
                await tasks[1]
            elif tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()

    async def _send(self, send: Send) -> None:
        head = [{"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}]

        async def put(piece: bytes) -> None:
            while head:
                await send(head.pop())
            await send({"type": "http.response.body", "body": piece, "more_body": True})

        await self._tell(put)
        await put(b"")
        await send({"type": "http.response.body"})


def later(why: Exception) -> Response:
    """For who is not answered just now."""
    return sentence(503, f"{why}: try again in {RETRY_SECONDS} s", {"retry-after": str(RETRY_SECONDS)})


async def until_gone(receive: Receive) -> None:
    """Until the client is."""
    while (await receive())["type"] != "http.disconnect":
        pass


def pieces_of(update: pb.WatchUpdate, feed: Feed, has_agent: bool) -> Iterator[str]:
    """An update as JSON, a little at a time."""
    head: dict[str, Any] = {"epoch": str(update.epoch), "version": update.version}
    if update.is_snapshot:
        head["is_snapshot"] = True
    head |= {"clock_milliseconds": update.clock_milliseconds, "unix_milliseconds": update.unix_milliseconds}
    if update.HasField("server"):
        server = update.server
        head["server"] = {
            "version": server.version, "is_secure": server.is_secure, "journal": server.journal,
            "addresses": list(server.addresses), "has_agent": has_agent,
        }  # fmt: skip
    if update.removed:
        head["removed"] = list(update.removed)
    if update.events:
        head["events"] = [event_json(message) for message in update.events]
    yield dumped(head)[:-1]
    made_at = update.clock_milliseconds / 1000
    if update.rows:
        known = ((message.number, feed.row(message.number)) for message in update.rows)
        rows = (dumped(node_json(number, row, made_at)) for number, row in known if row)  # else it is gone since
        yield from joined(',"rows":[', rows, "]")
    if update.HasField("beats"):
        yield from joined(',"beats":{', columns_of(update.beats, feed), "}")
    yield "}"


def joined(start: str, parts: Iterable[str], end: str) -> Iterator[str]:
    """With commas between."""
    for part in parts:
        yield start + part
        start = ","
    yield end if start == "," else start + end


def node_json(number: int, row: Row, made_at: float) -> dict[str, Any]:
    """A node, whole. Its ages are as of `made_at`, by the clock of its times; what is newer is as old as that."""
    info, vitals, trip = row.info, row.vitals, row.round_trip_seconds
    return {
        "number": number,
        "node_id": row.node_id,
        "address": visible(row.address),
        "hostname": visible(info.hostname),
        "model": visible(info.host.model),
        "hardware": device_names(info.devices, info.host.model),
        "agent_version": visible(info.agent_version),
        "labels": {name: visible(value) for name, value in row.labels},
        "devices": len(row.capacities.devices),
        "failed_devices": vitals.errors,
        "has_session": row.session is not None,
        "left": row.left,
        "reason": visible(row.reason, MAX_SENTENCE),
        "token_id": visible(row.token_id),
        "interval_milliseconds": round(1000 * row.interval_seconds),
        "late_after_milliseconds": round(1000 * late_after_seconds(row.interval_seconds)),
        "lost_after_milliseconds": round(1000 * lost_after_seconds(row.interval_seconds)),
        "hangs_after_milliseconds": round(1000 * hangs_after_seconds(max(row.interval_seconds, row.capacities.sampling_seconds))),
        "awaited_milliseconds": milliseconds(row.awaited_until - made_at),
        "memory_total_bytes": vitals.memory_total_bytes,
        "heartbeat_age_milliseconds": milliseconds(made_at - row.heartbeat_at),
        "sample_age_milliseconds": None if row.sample_at is None else milliseconds(made_at - row.sample_at),
        "utilization_permille": permille(vitals.utilization),
        "memory_permille": permille(vitals.memory),
        "memory_used_bytes": vitals.memory_used_bytes,
        "temperature_celsius": None if vitals.celsius is None else round(vitals.celsius),
        "limit_celsius": vitals.limit_celsius,
        "power_milliwatts": vitals.milliwatts,
        "cpu_percent": vitals.cpu_percent,
        "energy_joules": vitals.energy_joules,
        "round_trip_microseconds": None if trip is None else round(1e6 * trip),
    }


def permille(part: float | None) -> int | None:
    """Of a fraction."""
    return None if part is None else round(1000 * part)


def event_json(message: pb.FleetEvent) -> dict[str, Any]:
    """An event as it can be shown."""
    event = event_of(message)
    return {"unix_milliseconds": message.unix_milliseconds, "kind": event.kind, "node_id": event.node_id, "text": event.text}


def columns_of(beats: pb.Beats, feed: Feed) -> Iterator[str]:
    """Each column's name and values; null is "not reported"."""
    numbers = list(itertools.accumulate(beats.number_steps))
    yield f'"number":{dumped(numbers)}'
    for name in PLAIN_COLUMNS:
        yield f'"{name}":{dumped(list(getattr(beats, name)))}'
    for name, offset in OFFSETS.items():
        yield f'"{name}":{dumped([value - offset if value else None for value in getattr(beats, name)])}'
    rows = map(feed.row, numbers)  # another device may be the hottest
    yield f'"limit_celsius":{dumped([row.vitals.limit_celsius if row else None for row in rows])}'


def dumped(value: Any) -> str:
    """As JSON in one line."""
    return json.dumps(value, separators=(",", ":"))
