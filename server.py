"""The orchestrator of Edge Compute Node: takes the heartbeats of a fleet, and shows all its nodes in one live table.

     Edge fleet   6 nodes   ● 5 online  ◐ 1 late                                                            12:03:11
     13 GPUs · utilization 53% · memory 512 GiB of 1.1 TiB · power 4.1 kW · hottest 83°C Node-8821
    ╭─ Nodes ────────────────────────────────────────────────────────────────────────────────────────────────────────╮
    │ NODE        HOSTNAME     STATE          HARDWARE           UTIL             MEM               TEMP   POWER  AGE │
    │ Node-8821   gpu-07       ● ONLINE       8× NVIDIA H200     █████▎···  53%   ███▎····  36%     72°C  4.1 kW   0s │

Data flows one way:  gRPC streams -> Registry -> Lens -> View -> render()

Threads: main (screen or plain lines), one network thread with grpc.aio's event loop and all the streams, and the journal's. They
meet in the Registry, under its lock; what is asked of the past waits for the disk in threads of its own. Liveness is derived from
ages, by the monotonic clock of this process; no clock of a node is believed.
With --secure a Guard stands before the streams (edge/fleet/guard.py), and lets in who has a token.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import concurrent.futures
import contextlib
import functools
import gc
import logging
import math
import os
import pathlib
import random
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # gRPC's C core writes to stderr, across the screen; what matters comes as errors

import grpc
import grpc.aio

import node_pb2 as pb
from edge.command_line import Endpoint, target_of
from edge.errors import ErrorEvents, tells_no_header
from edge.event_log import Event, EventLog
from edge.fleet.admission import PLENTY, Lines, Memory, Places, network_of
from edge.fleet.attach import attach
from edge.fleet.counters import Counters
from edge.fleet.extremes import new_extremes
from edge.fleet.guard import Guard
from edge.fleet.headless import run_headless
from edge.fleet.intake import after, identify
from edge.fleet.joining import Joining, own_addresses, own_look, told
from edge.fleet.journal import keep, restored
from edge.fleet.keys import follow, press
from edge.fleet.lens import Lens, Ui
from edge.fleet.listening import (
    Crowd,
    bind_socket,
    default_endpoint,
    most_connections,
    socket_folders,
    too_few_files,
    why_not_bound,
)
from edge.fleet.options import parse_options
from edge.fleet.replay import opened
from edge.fleet.row import End, Refused, Row, Session, State, hanging_seconds, reason_of, state_of
from edge.fleet.screen import About, look, render, room_of
from edge.fleet.service import Service
from edge.fleet.source import EVENTS_KEPT, Past, Source, Wants
from edge.fleet.token_command import main as token_main
from edge.program import Failure, OutputClosed, is_kept, is_screen, main_of, time_stamp
from edge.protocol import (
    ACKNOWLEDGE_SECONDS,
    FIRST_MESSAGE_SECONDS,
    GOODBYE_SECONDS,
    LOST_SECONDS,
    MAX_NODE_ID,
    late_after_seconds,
    server_options,
)
from edge.terminal import Inputs, Screen
from edge.text import MAX_SENTENCE, MISSING, show_seconds, visible
from edge.web.prometheus_config import print_config

if TYPE_CHECKING:
    from edge.web.listener import Listener

RECONNECTS_PER_SECOND = 700  # sessions that one process can open beside its heartbeats: a larger fleet spreads its return
HEARTBEATS_PER_SECOND = 10_000  # what one process takes in; a larger fleet is told to beat more slowly
STRAINED_SECONDS = 0.25  # that a tick comes too late where this machine is slower than that, and takes fewer
STRAINED_NODES = 1000  # from so many on; heartbeats of fewer are not what keeps it
BACKLOG_OF_MANY = 20  # samples that are read of a node's backlog then: each takes as long as three heartbeats, and all come at once
MAX_STRETCH = 5.0  # of the cadence then
FORGET_SECONDS = 24 * 3600.0
DATA_FRAMES_PER_SECOND = 12  # heartbeats come all the time; keys are answered at once
TICK_SECONDS = 1.0  # from one look at who is late to the next: for the log, since a row's state is told from its age
UNHEARD_SECONDS = 0.1  # that gRPC may take at the end to say what became of an answer that was broken off


# ---- The registry: all nodes, under one lock ----


class Registry:
    """All nodes. Both threads call it; every verb takes the lock briefly, and a snapshot is a list of rows that never change.

    Each heartbeat is read as far as its summary, whether anybody looks or not; its sample is kept as it came, and checked when
    someone reads it.
    """

    def __init__(
        self,
        interval_seconds: float,
        max_nodes: int,
        clock: Callable[[], float] = time.monotonic,
        heartbeats_per_second: int = HEARTBEATS_PER_SECOND,
        acknowledge_seconds: float = ACKNOWLEDGE_SECONDS,
    ) -> None:
        self.clock = clock
        self.wall = time.time
        self.is_over: Callable[[str], object] = lambda _token_id: False  # whether a token lets nobody in any more
        self.troubles: Callable[[], Sequence[str]] = tuple  # what is wrong with what is kept of this fleet
        self.counters = Counters()
        self.log = EventLog(EVENTS_KEPT, self.wall, PLENTY)
        self.errors: collections.deque[str] = collections.deque(maxlen=100)  # written where the lock may be held
        self._interval_seconds = interval_seconds
        self._heartbeats_per_second = heartbeats_per_second
        self._acknowledge_seconds = acknowledge_seconds
        self.max_nodes = max_nodes
        self._lock = threading.Lock()
        self._rows: dict[str, Row] = {}
        self._stretch = 1.0  # of the cadence
        self._beating = 0  # nodes that are not gone, as of the last tick
        self._places = Places(max_nodes)
        self._memory = Memory(max_nodes)
        self._hung: set[str] = set()  # nodes whose sensors hang, as of the last tick
        self._told: dict[str, State] = {}  # the worse states that the log has already told
        self._lines = Lines(self.log)

    def open(
        self, request: pb.HeartbeatRequest, address: str, close: Callable[[End], object] | None = None, token_id: str = ""
    ) -> Session:
        """Take a session's first message. Raises Refused: a bad id or field, a living holder of the id, a full server."""
        identify(request)
        now = self.clock()
        session = Session(request, address, close)
        with self._lock:
            holder, is_large = self._rows.get(session.node_id), len(self._rows) >= STRAINED_NODES
        if is_large:
            del request.backlog[:-BACKLOG_OF_MANY]
        known = holder and holder.info.instance_id == session.instance_id
        # What is costly is done outside the lock: of a node that comes back, all that it does not bring along is as it was.
        blank = Row(session.node_id, address, session, self.cadence_seconds(), token_id=token_id, heartbeat_at=now)
        row = after(self._resumed(holder, blank) if holder and known else blank, request, now)
        session.next_acknowledgement_at = now + random.uniform(0, self._acknowledge_seconds)  # spread: a fleet comes back at once
        with self._lock:
            holder = self._rows.get(session.node_id)
            self._check_holder(holder, session, request.info, request.leaving, now)
            self._memory.swap(holder, row)  # before anyone gives way: who is refused pushes out nobody
            if not holder:
                self._make_room(row)
            self._admit(session, request, holder, now)
            self._places.add(row)
            self.counters.sessions += 1
            self._put(row, session, request, holder if known else None)
        return session

    @staticmethod
    def _resumed(holder: Row, blank: Row) -> Row:
        """A new session's row, with what is known of the same instance."""
        return holder._replace(
            address=blank.address, session=blank.session, interval_seconds=blank.interval_seconds,
            heartbeat_at=blank.heartbeat_at, left=False, reason="", token_id=blank.token_id, round_trip_seconds=None,
            awaited_until=0.0,
        )  # fmt: skip

    def _check_holder(self, holder: Row | None, newcomer: Session, info: pb.NodeInfo, is_goodbye: bool, now: float) -> None:
        """Raises Refused when another instance lives under this id: one that is late, broken or gone gives way. Where either has
        drawn it, not to another box: that one can draw again, or be given another, and a box which comes back finds its name.
        It does not keep it where the token that let it in is over: whoever stole that would have the name for good."""
        if not holder:
            return
        known = holder.info
        is_kept = not (holder.token_id and self.is_over(holder.token_id))
        if is_kept and known.box_id not in ("", info.box_id) and (info.id_is_drawn or known.id_is_drawn):
            raise Refused(f"the id {newcomer.node_id} belongs to another box", grpc.StatusCode.ALREADY_EXISTS)
        if holder.session and state_of(holder, now) is State.ONLINE and not holder.session.is_the_same_as(newcomer):
            where = f"taken by {visible(known.hostname) or 'a node'} at {holder.address}"
            elsewhere = "taken by another living node (the server's events name it)"  # who it is, is not told to anyone who asks
            told = where if holder.address == newcomer.address else elsewhere
            code = grpc.StatusCode.ALREADY_EXISTS
            raise Refused(f"the id {newcomer.node_id} is {told}", code, f"the id {newcomer.node_id} is {where}")
        is_the_same = known.instance_id == newcomer.instance_id and (known.instance_id or holder.address == newcomer.address)
        if is_goodbye and not is_the_same:
            raise Refused(f"another node has the id {newcomer.node_id}: no goodbye of yours", grpc.StatusCode.ALREADY_EXISTS)

    def _make_room(self, newcomer: Row) -> None:
        """Remove the nodes that give way until one more fits. Raises Refused when there is none."""
        network = network_of(newcomer.address)
        while len(self._rows) >= self.max_nodes and (gone := self._places.next_gone(network)):
            if self._rows.get(gone.node_id) is gone:  # else it came back
                self._remove(gone, f"the server is full: {gone.node_id}, which was silent, gave way to {newcomer.node_id}")
        if len(self._rows) >= self.max_nodes and (greedy := self._places.newest_of_the_greedy(network)):
            self._remove(self._rows[greedy], f"the server is full, and most of its nodes are at the address of {greedy}")
        if len(self._rows) >= self.max_nodes:
            self._memory.swap(newcomer, None)
            reason = f"the server is full with {self.max_nodes} nodes: start it with a larger --max-nodes"
            raise Refused(reason, grpc.StatusCode.RESOURCE_EXHAUSTED)

    def _remove(self, row: Row, reason: str) -> None:
        """Take a row out. Its session, if it has one, ends for this reason."""
        self._memory.swap(row, None)
        self._take_out(row, reason)

    def _take_out(self, row: Row, reason: str) -> None:
        del self._rows[row.node_id]
        self._places.remove(row)
        self._told.pop(row.node_id, None)
        if row.session:
            row.session.finish(End(reason, grpc.StatusCode.ABORTED))

    def _admit(self, session: Session, request: pb.HeartbeatRequest, holder: Row | None, now: float) -> None:
        """Remove who held the id until now, and log who comes."""
        if holder:
            self._take_out(holder, f"another session of {session.node_id} has taken over")
        is_same = holder and holder.info.instance_id == session.instance_id
        if holder and is_same and not holder.left and (session.instance_id or holder.address == session.address):
            self._lines.add("back", f"after {show_seconds(now - holder.heartbeat_at)}", session.node_id, now)
        else:
            hostname = f"{visible(request.info.hostname)}, " if request.info.hostname else ""
            taken = self._taken(holder, request.info, session.address, now) if holder else ""
            self._lines.add("joined", f"{hostname}{session.address}{taken}", session.node_id, now)

    @staticmethod
    def _taken(holder: Row, info: pb.NodeInfo, address: str, now: float) -> str:
        """From whom another instance takes its id, where that is another box which has said no goodbye: a box that was imaged anew,
        or one that has no right to the name. Empty else."""
        known = holder.info
        if holder.left or (known.hostname, known.box_id, holder.address) == (info.hostname, info.box_id, address):
            return ""
        silent = show_seconds(now - holder.heartbeat_at)
        return f"; took the id from {visible(known.hostname, 64) or 'a node'} at {holder.address}, silent for {silent}"

    def heartbeat(self, session: Session, request: pb.HeartbeatRequest) -> None:
        """Take one more message of a session. Raises Refused for a field out of its range, or when the session is over."""
        now = self.clock()
        with self._lock:
            before = self._held(session)
            row = after(before, request, now)
            self._memory.swap(before, row)
            self._tell_return(before, now)
            self._put(row, session, request, before)

    def _tell_return(self, row: Row, now: float) -> None:
        if self._told.pop(row.node_id, None):
            self._lines.add("back", f"after {show_seconds(now - row.heartbeat_at)}", row.node_id, now)

    def take_unary(self, request: pb.HeartbeatRequest, address: str, token_id: str = "") -> Session:
        """Take a heartbeat without a stream: of the session that its row has, or of a new one. Raises Refused as `open` does."""
        identify(request)
        with self._lock:
            row = self._rows.get(request.node_id)
        session = row.session if row and row.token_id == token_id else None
        if session and session.close is None and session.takes_unary(request.info.instance_id, address):
            self.heartbeat(session, request)
            return session
        return self.open(request, address, token_id=token_id)

    def _held(self, session: Session) -> Row:
        """The row that a session holds. Raises Refused when it holds none any more."""
        row = self._rows.get(session.node_id)
        if row is None or row.session is not session:
            raise Refused(*(session.ended_for or End(f"the session of {session.node_id} is over", grpc.StatusCode.ABORTED)))
        return row

    def _put(self, row: Row, session: Session, request: pb.HeartbeatRequest, before: Row | None) -> None:
        """`before`: as it was when the log was told of it last."""
        session.sequence = request.sample.sequence or session.sequence
        self.counters.heartbeats += 1
        if request.leaving:
            row = row._replace(left=True, session=None, reason="said goodbye")
            self._places.leave(row)
            self._lines.add("left", row.reason, row.node_id, row.heartbeat_at)
        self._lines.tell_devices(before, row)
        self._rows[row.node_id] = row

    def stream_ended(self, session: Session, reason: str) -> None:
        """A stream is over. Only its own row knows of it: a newer session's stays as it is."""
        with self._lock:
            row = self._rows.get(session.node_id)
            if row and row.session is session:
                self._rows[session.node_id] = row._replace(session=None, reason=reason)
                self._lines.add("disconnected", reason, session.node_id, self.clock())

    def acknowledgement(self, session: Session) -> pb.HeartbeatResponse:
        """The answer to what a session has sent so far, with the cadence of now. When it was due, the next one is due later."""
        now = self.clock()
        if now >= session.next_acknowledgement_at:
            session.next_acknowledgement_at = now + self._acknowledge_seconds
        with self._lock:
            row = self._rows.get(session.node_id)
            interval, spread_seconds = self.cadence_seconds(), self._beating / RECONNECTS_PER_SECOND
            if row and row.session is session and row.interval_seconds != interval:
                self._rows[session.node_id] = row._replace(interval_seconds=interval)
        return pb.HeartbeatResponse(
            acknowledged=True,
            acknowledged_sequence=session.sequence,
            heartbeat_interval_milliseconds=round(interval * 1000),
            reconnect_spread_milliseconds=round(spread_seconds * 1000) if spread_seconds >= 1 else 0,
        )

    def cadence_seconds(self) -> float:
        """What the user asks for; stretched, by tenths of a second, when the whole fleet would exceed the budget, or what this
        machine is able to do just now."""
        cadence = max(self._interval_seconds, math.ceil(self._beating / self._heartbeats_per_second * 10) / 10)
        return cadence if self._stretch == 1 else math.ceil(cadence * self._stretch * 10) / 10

    def keep_up(self, late_seconds: float) -> None:
        """Have nodes beat more slowly while this process falls behind, by what a tick came too late; then at their pace again,
        little by little, since they are told in about ten seconds. Else what waits grows, is given up, and comes once more."""
        if late_seconds > STRAINED_SECONDS and self._beating >= STRAINED_NODES:
            self._stretch = min(self._stretch * 1.5, MAX_STRETCH)
        else:
            self._stretch = max(self._stretch * 0.98, 1.0)

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These rows, as they are now; None for one that is not there."""
        with self._lock:
            return [self._rows.get(node_id) for node_id in node_ids]

    def forget(self, node_id: str) -> bool:
        """Remove a node that is lost or left; any other stays. Tells whether it is gone."""
        with self._lock:
            row = self._rows.get(node_id)
            if row and state_of(row, self.clock()) not in (State.LOST, State.LEFT):
                return False
            if row:
                self._remove(row, f"{node_id} was silent, and the server's operator has forgotten it")
                self.log.add("forgotten", "by the user", node_id)
            return True

    def why_not_forget(self) -> str:
        """It is the server's own user who does."""
        return ""

    def want(self, wants: Wants) -> None:
        """All is at hand."""

    def notices(self) -> Sequence[str]:
        """What is wrong with the journal."""
        return self.troubles()

    def restore(self, row: Row) -> None:
        """Put a row as it is: for pictures and tests."""
        with self._lock:
            self._restore(row)

    def _restore(self, row: Row) -> None:
        self._memory.swap(self._rows.get(row.node_id), row)
        self._rows[row.node_id] = row
        self._places.add(row)

    def bring_back(self, moment: Source) -> None:
        """The fleet and the events of before a restart, as far as there is room; who has come already is there."""
        now = self.clock()
        self.log.recall(moment.newest_events(EVENTS_KEPT))
        for row in restored(moment, now, self.wall()):
            with self._lock, contextlib.suppress(Refused):
                if row.node_id not in self._rows and len(self._rows) < self.max_nodes:
                    self._restore(row)
                    if (state := state_of(row, now)) is State.LOST:
                        self._told[row.node_id] = state
                    if hanging_seconds(row, now) is not None:
                        self._hung.add(row.node_id)
        away = show_seconds(max(self.wall() - moment.wall(), 0))
        self.log.add("started", f"again, after {away} at most; nodes known from before: {len(self._rows):,}", "server")

    def newest_events(self, count: int) -> list[Event]:
        """The last `count` events, the newest last."""
        return self.log.newest(count)

    def snapshot(self) -> list[Row]:
        """All rows, as they are now."""
        with self._lock:
            return list(self._rows.values())

    def tick(self) -> None:
        """See what only time tells: who is late or lost, and who has been silent for a day. Called now and then."""
        while self.errors:
            self.complain("error", "server", self.errors.popleft())
        now = self.clock()
        rows = self.snapshot()
        silent = [
            (row, state_of(row, now))
            for row in rows
            if row.left or now - row.heartbeat_at > late_after_seconds(row.interval_seconds)
        ]
        hung = {row.node_id for row in rows if hanging_seconds(row, now) is not None}
        gone = [row for row, state in silent if state in (State.LOST, State.LEFT)]
        gone.sort(key=lambda row: (not row.left, row.heartbeat_at))  # who said goodbye gives way before who is lost
        extremes = new_extremes(rows, now, self.wall())
        with self._lock:
            for node_id in extremes.keys() & self._rows.keys():
                self._rows[node_id] = self._rows[node_id]._replace(extremes=extremes[node_id])
            self._beating = len(rows) - len(gone)
            self._places.set_gone(gone)
            for node_id in sorted(hung ^ self._hung):
                if row := self._rows.get(node_id):
                    self._lines.tell_sensors(row, now)
            self._hung = hung
            for row, state in silent:
                if self._rows.get(row.node_id) is not row:
                    continue
                if now - row.heartbeat_at > FORGET_SECONDS and now >= row.awaited_until:
                    self._remove(row, f"no heartbeat for {show_seconds(FORGET_SECONDS)}: the server has forgotten {row.node_id}")
                elif state in (State.LATE, State.LOST) and self._told.get(row.node_id) is not state:
                    self._told[row.node_id] = state
                    self._lines.add(state.value.lower(), reason_of(row, state, now), row.node_id, now, row.address)

    def complain(self, kind: str, node_id: str, text: str, stranger: str = "") -> None:
        """Write into the log what came from outside, and of a kind that a hostile sender could make come in masses.

        `stranger`: the address of who has not shown that it belongs here. Its network has a line a minute.
        """
        with self._lock:
            self._lines.add(kind, visible(text, MAX_SENTENCE), visible(node_id, MAX_NODE_ID) or MISSING, self.clock(), stranger)


# ---- The network thread ----


class Ticker:
    """Has the registry see what only time tells, once in TICK_SECONDS."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._ticked_at = registry.clock()

    def tick(self) -> None:
        """After a standstill what has come meanwhile is read first: it was this process that was silent."""
        now = self._registry.clock()
        elapsed, self._ticked_at = now - self._ticked_at, now
        self._registry.counters.tick(elapsed - TICK_SECONDS)
        if elapsed > TICK_SECONDS + LOST_SECONDS / 2:
            reason = f"stood still for {show_seconds(elapsed)}: suspended, or without a processor"
            self._registry.complain("warning", "server", reason)
        else:
            self._registry.keep_up(elapsed - TICK_SECONDS)
            self._registry.tick()


class Network:
    """The network thread: grpc.aio's event loop with all the streams.

    A synchronous gRPC server pins one thread a stream, and stops admitting nodes near 4,000.
    """

    def __init__(
        self,
        registry: Registry,
        listen: Sequence[Endpoint] | None,
        first_message_seconds: float = FIRST_MESSAGE_SECONDS,
        guard: Guard | None = None,
        past: Past | None = None,
        socket_folder: pathlib.Path | None = None,
        http: Endpoint | None = None,
    ) -> None:
        """Without a guard it listens in plain text, to whoever comes. `socket_folder`: for this machine's own user's socket.
        `http`: where it serves HTTP as well."""
        self._registry = registry
        self._service = Service(registry, first_message_seconds, guard, past)
        self._socket_folder = socket_folder
        self._guard = guard
        if guard:
            registry.is_over = guard.tokens.why_over
        self._listen = listen
        self._http = http
        self.http: Endpoint | None = None  # with its real port, once it listens
        self.listener: Listener | None = None
        self._bound: concurrent.futures.Future[list[Endpoint]] = concurrent.futures.Future()
        self._thread = threading.Thread(target=self._run, name="network", daemon=True)
        self.failure: Exception | None = None

    def start(self) -> list[Endpoint]:
        """Listen; return where, with the real ports. Raises Failure."""
        self._thread.start()
        return self._bound.result()

    def is_alive(self) -> bool:
        """Whether it still serves: it ends when it is stopped, or fails."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """End all sessions, within GOODBYE_SECONDS or so."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(GOODBYE_SECONDS + 1)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self.failure = error
            if not self._bound.done():
                self._bound.set_exception(error)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        most = self._registry.max_nodes
        connections = most_connections(most, self._http is not None)
        logging.getLogger("grpc._cython.cygrpc").addFilter(tells_no_header)
        server = grpc.aio.server(options=server_options(most, connections, is_secure=self._guard is not None))
        self._service.begin(server)
        bound = [self._bind(server, endpoint) for endpoint in self._listen or (default_endpoint(),)]
        self._service.feed.addresses = own_addresses(bound)
        if self._socket_folder and (warning := bind_socket(server.add_insecure_port, self._socket_folder, bound[0].port)):
            self._registry.complain("warning", "server", warning)
        if self._http:  # before any node comes, since it may fail
            await self._start_http(self._http)
        await server.start()
        self._bound.set_result(bound)
        ticking = asyncio.create_task(self._tick(Crowd(connections)))
        feeding = asyncio.create_task(self._service.feed.run())
        await self._stop.wait()
        ticking.cancel()
        feeding.cancel()
        closing = asyncio.create_task(server.stop(GOODBYE_SECONDS / 2))  # no new connections from here on
        await self._service.close()
        await closing
        if self.listener:  # the last: meanwhile it says that the server goes away
            await self.listener.stop()
        await self._wait_for_grpc()

    async def _start_http(self, endpoint: Endpoint) -> None:
        """uvicorn and starlette are imported where they are used: most servers have no need of them."""
        from edge.web.listener import Listener
        from edge.web.site import Site

        site = Site(
            fleet=self._registry,
            feed=self._service.feed,
            counters=self._registry.counters,
            guard=self._guard,
            agent=pathlib.Path(sys.argv[0]).with_name("node.pyz"),
            is_ready=lambda: self._bound.done() and not self._stop.is_set(),
            names=[endpoint.host],
            complain=self._registry.complain,
        )
        self.listener = Listener(site)
        self.http = await self.listener.start(endpoint)

    async def _wait_for_grpc(self) -> None:
        """Until gRPC knows that its calls have ended: what its poller tells a loop that is closed is an error."""
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(tasks, timeout=GOODBYE_SECONDS / 2)
        if self._service.has_unheard:
            await asyncio.sleep(UNHEARD_SECONDS)

    async def _tick(self, crowd: Crowd) -> None:
        """Here, and not with the screen, which a full pipe or Ctrl-S stops."""
        ticker = Ticker(self._registry)
        while True:
            await asyncio.sleep(TICK_SECONDS)
            ticker.tick()
            others = len(self.listener.connections) if self.listener else 0
            if warning := crowd.tick(self._registry.clock(), self._service.calls(), others):
                self._registry.complain("warning", "server", warning)
            try:
                self._service.tick()
            except Exception:  # the files are people's: what they put there must not stop this clock
                logging.getLogger(__name__).exception("the tokens and certificates were not read again")

    def _bind(self, server: grpc.aio.Server, endpoint: Endpoint) -> Endpoint:
        target = target_of(str(endpoint))
        try:
            if self._guard:
                return endpoint._replace(port=server.add_secure_port(target, self._guard.credentials()))
            return endpoint._replace(port=server.add_insecure_port(target))
        except RuntimeError as error:
            raise Failure(why_not_bound(endpoint)) from error


# ---- The program ----


def show_screen(
    source: Source | None,
    past: Past | None,
    is_alive: Callable[[], bool],
    inputs: Inputs,
    about: Callable[[], About],
    options: argparse.Namespace,
    ui: Ui = Ui(),  # noqa: B008  # it never changes
) -> None:
    """The main thread with a terminal: twelve frames a second, more while keys are pressed; only changed lines are sent."""
    lens = Lens(source, past, about().is_here)
    frame_due = drawn = 0.0
    with Screen(inputs, options.no_color) as screen:
        while not inputs.received and is_alive():
            now, told = time.monotonic(), about()
            width, height = screen.size()
            if now >= frame_due:
                lens.refresh(ui)
                ui = follow(ui, lens, room_of(ui, lens, told.joining, width, height))
                view = look(lens, ui, told, width, height)
                screen.draw(render(view, width, height))
                drawn = max(frame_due, now - 1 / options.fps)  # when it was due: a frame that is late does not delay the next
                frame_due = drawn + 1 / min(options.fps, DATA_FRAMES_PER_SECOND)
            keys = screen.keys(frame_due - time.monotonic())
            for key in keys:
                ui = press(ui, key, lens, room_of(ui, lens, told.joining, width, height))
                if ui.closed:
                    return
            if keys:
                frame_due = min(frame_due, drawn + 1 / options.fps)  # a key is answered at once


def look_elsewhere(options: argparse.Namespace) -> int:
    """The program with --attach: the same screen, of other servers. Raises Failure."""
    screen = is_screen() and not options.headless and not options.json
    with Inputs(keyboard=screen) as inputs, attach(options) as attached, contextlib.ExitStack() as ending:
        logging.getLogger().addHandler(ErrorEvents(lambda text: attached.log.add("error", visible(text, MAX_SENTENCE), "server")))
        if options.record:
            keep(options, attached, functools.partial(attached.log.add, node_id="server"), ending)
        names = ", ".join(link.name for link in attached.links)

        def about() -> About:
            return About(names, attached.joining(), is_here=False, is_known=attached.is_known())

        try:
            if screen:
                show_screen(attached, attached, attached.is_alive, inputs, about, options)
            else:
                attached.want(Wants(details=options.json))
                first = [f"{time_stamp(time.time())} looking at {names}"]
                events = (attached.own_log if options.json else attached.log).follow()
                run_headless(attached, events, attached.is_alive, inputs, first, options.json, attached.is_known)
        except OutputClosed as closed:
            inputs.take(closed)
    if attached.failure:
        raise attached.failure
    return inputs.exit_code()


def run(options: argparse.Namespace, make_registry: Callable[..., Registry] = Registry) -> int:
    """The program after its command line. Raises Failure."""
    # gRPC leaves a cycle with each call. A pass over the objects of ten thousand nodes takes half a second, and finds nothing else.
    gc.set_threshold(10_000, 50, 10_000)
    if options.debug:
        logging.basicConfig(level=logging.ERROR)
    if options.prometheus_config:
        return print_config(options)
    if options.replay:
        return run_replay(options)
    if options.attach is not None:
        return look_elsewhere(options)
    return serve(options, make_registry(options.interval, options.max_nodes))


def serve(options: argparse.Namespace, registry: Registry) -> int:
    """A server, until it is told to end. Raises Failure."""
    screen = is_screen() and not options.headless and not options.json
    guard = Guard(options.state, options.tls_cert, options.tls_key, options.client_ca) if options.secure else None
    logging.getLogger().addHandler(ErrorEvents(registry.errors.append))
    with Inputs(keyboard=screen) as inputs, contextlib.ExitStack() as ending:
        if warning := too_few_files(options.max_nodes, options.http is not None):
            registry.complain("warning", "server", warning)
        kept = keep(options, registry, lambda kind, text: registry.complain(kind, "server", text), ending, registry.bring_back)
        registry.troubles = lambda: [notice for journal in kept for notice in journal.notices()]
        registry.counters.journal = lambda: next((journal.state() for journal in kept if journal.limit_bytes), None)
        past = kept[0].past if kept else None
        folder = next(socket_folders(options.state))
        addresses: list[str] = []

        def joining() -> Joining:  # tokens come and go
            found = guard.joining(addresses) if guard else Joining(is_secure=False, addresses=addresses)
            return found._replace(web=network.listener.web if network.listener else None)

        network = Network(registry, options.listen, guard=guard, past=past, socket_folder=folder, http=options.http)
        bound = network.start()
        listening = ", ".join(map(str, bound))
        addresses += own_addresses(bound)
        try:

            def about() -> About:
                return About(listening, joining())

            if guard:
                try:
                    guard.set_listening(bound, network.http)
                except Failure as error:  # a folder that is read-only has all that a server needs
                    registry.complain("warning", "server", f"token list can't tell where this server listens: {error}")
            if screen:
                show_screen(registry, past, network.is_alive, inputs, about, options)
            else:
                is_told = not is_kept(sys.stderr if options.json else sys.stdout)
                first = [f"{time_stamp(time.time())} listening on {listening}", *told(about().joining, with_tokens=is_told)]
                first += [own_look(options.state), *(f"Its past is kept in {journal.past.path}" for journal in kept)]
                events = None if options.json else registry.log.follow()
                run_headless(registry, events, network.is_alive, inputs, first, options.json)
        except OutputClosed as closed:
            inputs.take(closed)
        finally:
            network.stop()
    if network.failure:
        raise network.failure
    return inputs.exit_code()


def run_replay(options: argparse.Namespace) -> int:
    """A recording, on this terminal. Raises Failure."""
    past, ui = opened(options.replay, options.speed)
    if not is_screen() or options.headless or options.json:
        raise Failure("--replay needs a terminal, and neither --headless nor --json: it is played on a screen")
    logging.getLogger().addHandler(logging.NullHandler())  # what can't be read is said on the screen
    about = About(options.replay.name, Joining(is_secure=False, addresses=()), is_here=False)
    with Inputs(keyboard=True) as inputs:
        show_screen(None, past, lambda: True, inputs, lambda: about, options, ui)
    return inputs.exit_code()


def main(argv: Sequence[str] | None = None, make_registry: Callable[..., Registry] = Registry) -> int:
    """Run the server; return its exit code: 0, 1 for a failure, 2 for the command line, 128 + the signal that ended it."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["token"]:
        return token_main(arguments[1:])
    if "--check" in {word.partition("=")[0] for word in arguments}:  # in the environment it would stop every server
        from edge.fleet import check_command

        return check_command.main(arguments)
    return main_of("server", parse_options, functools.partial(run, make_registry=make_registry), argv)


if __name__ == "__main__":
    sys.exit(main())
