"""What is asked of the past, answered from what is kept: in threads of their own, since a disk may be slow, or hang."""

from __future__ import annotations

import asyncio
import concurrent.futures
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import grpc

import node_pb2 as pb
from edge.fleet.row import End, Refused
from edge.fleet.source import EVENTS_KEPT, NoPast, Past, Source
from edge.fleet.watch import messages_of, piece_of, update_of
from edge.fleet.wire import node_row, seconds_of
from edge.protocol import MAX_GRAPH_SECONDS, MAX_GRAPH_STEPS, MAX_NODE_ID

ANSWERS_AT_ONCE = 4  # to this machine's own user, and to all others: a moment of a large fleet takes 40 MB while it is sent
WORKERS = 2
SPAN_SECONDS = 10.0  # from one look at how far back the past goes to the next
NO_PAST = End("this server keeps no journal, so there is no past to see", grpc.StatusCode.FAILED_PRECONDITION)
T = TypeVar("T")


class Workers:
    """Threads for what may take long, or for ever. Nobody waits for them when the program ends."""

    def __init__(self, count: int) -> None:
        self._jobs: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]]] = queue.SimpleQueue()
        for _ in range(count):
            threading.Thread(target=self._work, name="past", daemon=True).start()

    def submit(self, work: Callable[[], T]) -> concurrent.futures.Future[T]:
        """Have it done, after what came before."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._jobs.put((future, work))
        return future

    def _work(self) -> None:
        while True:
            future, work = self._jobs.get()
            if future.set_running_or_notify_cancel():  # else nobody waits for it any more
                try:
                    future.set_result(work())
                except Exception as error:
                    future.set_exception(error)
            del future, work  # what a worker holds while it waits, it may hold for long


class Recall:
    """The past of a fleet, for those who look. In the network thread alone."""

    def __init__(self, past: Past | None, clock: Callable[[], float]) -> None:
        """`past` None: nothing is kept."""
        self._past, self._clock = past, clock
        # Of each its own: who never reads an answer keeps the turn, up to the call's end.
        self._turns = {is_local: asyncio.Semaphore(ANSWERS_AT_ONCE) for is_local in (True, False)}
        self._workers = Workers(WORKERS if past else 0)
        self._look_at = -1e9
        self._first_milliseconds = 0

    def status(self) -> pb.ServerStatus:
        """What there is of it: as of the last look, which is made by a worker."""
        if self._past and self._clock() >= self._look_at:
            self._look_at = self._clock() + SPAN_SECONDS
            self._workers.submit(self._past.span).add_done_callback(self._note)
        return pb.ServerStatus(has_past=self._past is not None, past_unix_milliseconds=self._first_milliseconds)

    def _note(self, span: concurrent.futures.Future[tuple[float, float]]) -> None:
        """In the worker's thread."""
        self._first_milliseconds = 0 if span.exception() else round(1000 * span.result()[0])

    async def answer(self, request: pb.WatchRequest, epoch: int, is_local: bool) -> AsyncGenerator[bytes, None]:
        """What a request asks for, a message at a time. Raises Refused."""
        past = self._past
        if past is None:
            raise Refused(*NO_PAST)
        async with self._turns[is_local]:
            if request.HasField("graph"):
                yield await self._ask(graph_of, past, request.graph, epoch)
                return
            moment = await self._ask(past.moment, request.moment_unix_milliseconds / 1000, request.after)
            for message in messages_of_moment(moment, epoch):
                yield message

    async def _ask(self, verb: Callable[..., T], *arguments: object) -> T:
        try:
            return await asyncio.wrap_future(self._workers.submit(lambda: verb(*arguments)))
        except NoPast as error:
            raise Refused(str(error), grpc.StatusCode.NOT_FOUND) from error


def is_of_the_past(request: pb.WatchRequest) -> bool:
    """Whether a first message asks for the past, and for nothing that comes. Raises Refused for what nobody can ask."""
    graph = request.graph
    if len(graph.node_id) > MAX_NODE_ID:
        raise Refused(f"graph.node_id has {len(graph.node_id)} characters: it may have {MAX_NODE_ID}")
    for asked in (request.moment_unix_milliseconds, graph.end_unix_milliseconds):
        seconds_of(asked)
    for field, most in (("seconds", MAX_GRAPH_SECONDS), ("steps", MAX_GRAPH_STEPS)):
        if request.HasField("graph") and not 0 < getattr(graph, field) <= most:
            raise Refused(f"graph.{field} is {getattr(graph, field)}: it must be from 1 to {most}")
    return request.HasField("graph") or request.moment_unix_milliseconds != 0


def graph_of(past: Past, asked: pb.GraphRequest, epoch: int) -> bytes:
    """One node's readings, as a message. Raises NoPast."""
    end = asked.end_unix_milliseconds / 1000
    readings = past.graph(asked.node_id, end, float(asked.seconds), asked.steps)
    graph = pb.Graph(devices=readings.devices, lowest=readings.lowest, highest=readings.highest)
    return update_of(epoch, 0.0, end, version=1, graph=graph)


def messages_of_moment(moment: Source, epoch: int) -> Iterator[bytes]:
    """The fleet as it was, whole, with all details."""
    now, wall = moment.clock(), moment.wall()
    yield update_of(epoch, now, wall, is_snapshot=True, events=messages_of(moment.newest_events(EVENTS_KEPT)))
    waiting = (node_row(number, row, now, details=True, processes=True) for number, row in enumerate(moment.snapshot()))
    while rows := piece_of(waiting):
        yield update_of(epoch, now, wall, rows=rows)
    yield update_of(epoch, now, wall, version=1)
