"""Servers elsewhere as one fleet: what --attach looks at. Each has a thread that keeps its mirror, and all are one table.

A thread a server waits, asks and counts down; each of its sessions has one more, which reads what comes.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import pathlib
import queue
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc

import node_pb2 as pb
import node_pb2_grpc
from edge import limits
from edge.backoff import backoff
from edge.command_line import Endpoint
from edge.errors import Distrust, SessionEnded
from edge.event_log import Event, EventLog
from edge.fleet.joining import Joining
from edge.fleet.listening import socket_folders, socket_path, socket_target
from edge.fleet.mirror import Mirror
from edge.fleet.row import Refused, Row, State, state_of
from edge.fleet.source import EVENTS_KEPT, MayNot, Moment, NoPast, Readings, Source, Wants
from edge.fleet.wire import graph_of
from edge.program import Failure
from edge.protocol import DEFAULT_PORT, GOODBYE_SECONDS, MAX_OPEN_NODES, SILENCE_SECONDS
from edge.text import MAX_SENTENCE, show_seconds, visible
from edge.trust import SOCKET, VIEWER, Metadata, Trust, trust_of

ADDRESS = re.compile(r"[\w.:%\[\]-]{1,100}", re.ASCII)  # that may stand in a command which people copy
CLOCK_SECONDS = 5.0  # from one message with our clock to the next: its echo tells how old at most is what comes
UNHEARD_SECONDS = 2.5  # without an update, of which one comes each second: what is known is then as of the last one
LOOK_SECONDS = 0.5  # from one look at that to the next
REQUEST_SECONDS = 0.1  # between two messages, however fast the wishes change
RETRY_SECONDS = 5.0  # at most, to the next try of a server: viewers are few, and come back in no storm
ANSWER_SECONDS = 10.0  # that an answer from the past may take


def soon() -> Iterator[float]:
    """Delays before the next try of a server."""
    return backoff(most_seconds=RETRY_SECONDS)


class Link:
    """One server: its mirror, and one session after the other with it."""

    def __init__(
        self,
        server: str,
        name: str,
        mirror: Mirror,
        trust: Trust,
        tell: Callable[[str, str, str], object],
        new_delays: Callable[[], Iterator[float]],
    ) -> None:
        """`server`: as gRPC finds it; `name`: as people call it. `tell`: an event of its own, by kind, text and name."""
        self.server, self.name, self.mirror = server, name, mirror
        self._trust = trust
        self._tell_all = tell
        self._clock = mirror.clock
        self._new_delays = new_delays
        self._changed = threading.Condition()
        self._is_closed = self._is_over = self._was_taken = False
        self._ended: SessionEnded | None = None
        self._wants = Wants()
        self._forgotten: list[str] = []
        self._reason = ""  # why there is no session
        self._gone_at: float | None = None  # when the last one ended; None: there is one, or none has begun yet
        self._told: set[object] = set()  # the kinds of reasons that were told since
        self._retry_at = 0.0
        self._way: tuple[node_pb2_grpc.NodeServiceStub, Metadata] | None = None  # of the session, for questions beside it

    # ---- From any thread ----

    def want(self, wants: Wants) -> None:
        """What is looked at from now on."""
        with self._changed:
            if wants != self._wants:
                self._wants = wants
                self._changed.notify_all()

    def forget(self, node_id: str) -> None:
        """Ask for it."""
        with self._changed:
            self._forgotten.append(node_id)
            self._changed.notify_all()

    def close(self) -> None:
        """End the session, and the thread."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def is_connected(self) -> bool:
        """Whether there is a session which the server has taken."""
        return self._was_taken

    @property
    def reason(self) -> str:
        """Why there is no session, until it is tried again; empty: there is one, or it is tried."""
        return self._reason

    def why_not_forget(self) -> str:
        """Why its nodes can't be forgotten from here; empty where they can."""
        if not self.is_connected():
            return f"{self.name} is not connected: it can't be asked to forget a node"
        if not self.mirror.status.may_forget:
            return f"{self.name} forgets a node only for its own user, on that machine: on its screen, or by --attach alone"
        return ""

    def notice(self) -> str:
        """What is wrong with it, in a sentence; empty: nothing."""
        now = self._clock()
        if self._reason:
            return f"{self._reason}; next try in {show_seconds(self._retry_at - now + 0.999)}"
        if not self._was_taken:
            return f"connecting to {self.name}"
        silent = now - self.mirror.heard_at
        if silent > UNHEARD_SECONDS:
            return f"{self.name} is silent for {show_seconds(silent)}"
        journal = visible(self.mirror.status.journal)
        return f"{self.name}: {journal}" if journal else ""

    def ask(self, request: pb.WatchRequest) -> Any:
        """A call of its own, of the past. Raises NoPast."""
        if not self._way:
            raise NoPast(f"{self.name} is not connected: what it keeps of the past is out of reach")
        if not self.mirror.status.has_past:
            raise NoPast(f"{self.name} keeps no journal, so there is no past to see")
        stub, metadata = self._way
        return stub.Watch(iter([request]), timeout=ANSWER_SECONDS, metadata=metadata)

    def why_not(self, error: grpc.RpcError) -> NoPast:
        """Why there is no answer, in words."""
        if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION):
            return NoPast(f"{self.name}: {visible(error.details() or 'nothing is kept of that', MAX_SENTENCE)}")
        if error.code() is grpc.StatusCode.CANCELLED:  # with the channel
            return NoPast(f"the connection to {self.name} broke before it answered: try again")
        return NoPast(str(self._trust.explain(error, self.server)))

    # ---- Its own thread ----

    def keep(self) -> None:
        """Body of the thread: one session after the other, until it is closed."""
        delays = self._new_delays()
        while not self._is_closed:
            ended, was_taken = self._session(), self._was_taken
            self._was_taken, self._way = False, None
            self.mirror.unheard()
            if was_taken:
                self._gone_at = self.mirror.heard_at
            if self._is_closed or self._trust.tries_another(self.server, ended):
                continue
            if was_taken:
                delays = self._new_delays()
            delay = self._trust.retry_seconds() if isinstance(ended, Distrust) else next(delays)
            self._reason, self._retry_at = str(ended).replace(self.server, self.name), self._clock() + delay
            self._tell_end(ended)
            self._wait(lambda: False, delay)
            self._reason = ""

    def _tell(self, kind: str, text: str) -> None:
        """What happens to it is told under its name, which need not be said twice."""
        self._tell_all(kind, visible(text.removeprefix(self.name).lstrip(": "), 2 * MAX_SENTENCE), self.name)

    def _tell_end(self, ended: SessionEnded) -> None:
        """Once, however often it is tried in vain; and once for each other reason, which may need other hands."""
        kind = type(ended), ended.code
        if kind not in self._told:
            self._told.add(kind)
            self._tell("warning", self._reason)

    def _tell_begin(self) -> None:
        version = f"version {visible(self.mirror.status.version, 16)}"
        if self._gone_at is None:
            self._tell("attached", version)
        else:
            self._tell("attached", f"again, after {show_seconds(self._clock() - self._gone_at)}: {version}")
        self._gone_at, self._told = None, set()

    def _session(self) -> SessionEnded:
        """Look until one of both ends goes. Returns why."""
        self._is_over, self._ended = False, None
        try:
            with self._trust.channel(self.server) as (channel, metadata):
                self._look(node_pb2_grpc.NodeServiceStub(channel), metadata)
        except SessionEnded as ended:
            return ended
        return self._ended or SessionEnded(f"{self.name} ended the session")

    def _look(self, stub: node_pb2_grpc.NodeServiceStub, metadata: Metadata) -> None:
        outbox: queue.SimpleQueue[pb.WatchRequest | None] = queue.SimpleQueue()
        self.mirror.begin()
        call, began = stub.Watch(iter(outbox.get, None), metadata=metadata), self._clock()
        self._way = stub, metadata
        reader = threading.Thread(target=self._read, args=(call,), name="updates", daemon=True)
        reader.start()
        asked, due, is_first = self._wants, began, True
        try:
            while not self._is_over and not self._is_closed:
                now = self._clock()
                if now >= due or self._wants != asked or self._forgotten:
                    asked, due = self._wants, now + CLOCK_SECONDS
                    outbox.put(self._request(asked, is_first))
                    is_first = False
                    self._wait(lambda: self._is_over, REQUEST_SECONDS)
                self._wait(lambda: self._is_over or self._wants != asked or self._forgotten, LOOK_SECONDS)  # noqa: B023  # asked now
                self.mirror.unheard(UNHEARD_SECONDS)
                silent = self._clock() - max(self.mirror.heard_at, began)
                if silent > SILENCE_SECONDS:
                    raise SessionEnded(f"{self.name} has been silent for {silent:.0f} s: the connection is half-open")
        finally:
            outbox.put(None)  # ends gRPC's thread that reads the outbox
            call.cancel()
            reader.join(GOODBYE_SECONDS)

    def _request(self, wants: Wants, is_first: bool) -> pb.WatchRequest:
        with self._changed:
            forgotten, self._forgotten = self._forgotten[:MAX_OPEN_NODES], self._forgotten[MAX_OPEN_NODES:]
        return pb.WatchRequest(
            epoch=self.mirror.epoch if is_first else 0,
            version=self.mirror.version if is_first else 0,
            open=sorted(wants.open)[:MAX_OPEN_NODES],
            details=wants.details,
            processes=wants.processes,
            forget=forgotten,
            clock_milliseconds=int(1000 * self._clock()),
        )

    def _read(self, call: Any) -> None:
        try:
            for update in call:
                self.mirror.take(update)
                if not self._was_taken:
                    self._was_taken = True
                    self._tell_begin()
                    self._trust.accepted(self.server, lambda text, kind="info": self._tell(kind, text))
        except Refused as error:
            self._ended = SessionEnded(f"{self.name} sends what no server of this version would: {visible(str(error))}")
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                self._ended = SessionEnded(f"{self.name} is older than this screen, and can't be looked at: update it")
            elif error.code() is grpc.StatusCode.UNAVAILABLE and self.server.startswith(SOCKET):  # gRPC's words tell nothing more
                self._ended = SessionEnded(f"{self.name} has no server any more", error.code())
            elif error.code() is not grpc.StatusCode.CANCELLED:
                self._ended = self._trust.explain(error, self.server)
        except Exception as error:  # of this program: said where people see it, and not in a thread's last words
            self._ended = SessionEnded(limits.reached(error) or f"{self.name} can't be shown: {type(error).__name__}: {error}")
        finally:
            self._is_over = True
            with self._changed:
                self._changed.notify_all()

    def _wait(self, condition: Callable[[], object], seconds: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or condition(), seconds)


class Attached:
    """Servers elsewhere: a Source of all their nodes, and a Past of what they keep.

    Of nodes that two servers know by one id, the later server's has that server's name behind its own.
    """

    def __init__(
        self,
        servers: Sequence[tuple[str, str]],
        trust: Trust,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        new_delays: Callable[[], Iterator[float]] = soon,
        wants_all: bool = False,
    ) -> None:
        """`servers`: each as gRPC finds it, and as people call it. `wants_all`: whatever is looked at, it is recorded."""
        self.clock = clock
        self.log, self.own_log = EventLog(EVENTS_KEPT, wall), EventLog(EVENTS_KEPT, wall)  # all events; those of the links alone
        self.links = [
            Link(server, name, Mirror(self.log, name if len(servers) > 1 else "", clock, wall), trust, self._tell, new_delays)
            for server, name in servers
        ]
        self._endings = tuple(ending_of(name) for _, name in servers) if len(servers) > 1 else ()
        self._wants = Wants()
        self._wants_all = wants_all
        self.want(self._wants)
        self.failure: Exception | None = None
        self._earliest = math.inf  # of the moments that were asked for: servers tell theirs some seconds later
        self._threads = [threading.Thread(target=self._keep, args=(link,), name="link", daemon=True) for link in self.links]

    def __enter__(self) -> Attached:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for link in self.links:
            link.close()
        for thread in self._threads:
            thread.join(GOODBYE_SECONDS + 0.5)

    def _tell(self, kind: str, text: str, name: str) -> None:
        for log in (self.log, self.own_log):
            log.add(kind, text, name)

    def _keep(self, link: Link) -> None:
        try:
            link.keep()
        except Exception as error:
            self.failure = error

    def is_alive(self) -> bool:
        """Whether each server is still looked at, or tried."""
        return all(thread.is_alive() for thread in self._threads)

    def is_known(self) -> bool:
        """Whether any fleet has come yet."""
        return any(link.mirror.is_known for link in self.links)

    def joining(self) -> Joining:
        """How a box gets in there: where some servers are open and some are not, in an open one."""
        known = [link for link in self.links if link.mirror.is_known]
        link = min(known or self.links, key=lambda link: link.mirror.status.is_secure)
        status = link.mirror.status
        addresses = [address for address in status.addresses[:16] if ADDRESS.fullmatch(address)]
        return Joining(is_secure=status.is_secure, addresses=addresses or [link.name], is_here=False)

    # ---- A Source ----

    def wall(self) -> float:
        """The first server's wall clock: what happens there is told by it."""
        return self.links[0].mirror.wall()

    def snapshot(self) -> list[Row]:
        """All rows."""
        return joined([link.mirror.snapshot() for link in self.links], self._endings)

    def rows(self, node_ids: Iterable[str]) -> list[Row | None]:
        """These rows; None for one that is not there."""
        return [self._row(node_id) for node_id in node_ids]

    def newest_events(self, count: int) -> Sequence[Event]:
        """The last `count` events, the newest last."""
        return sorted(self.log.newest(count), key=lambda event: event.time)

    def forget(self, node_id: str) -> bool:
        """Ask the server to remove a node that is lost or left; it goes with the next update. Raises MayNot."""
        if not (found := self._find(node_id)):
            return True
        link, row = found
        if why := link.why_not_forget():
            raise MayNot(why)
        if state_of(row, self.clock()) not in (State.LOST, State.LEFT):
            return False
        link.forget(row.node_id)
        return True

    def why_not_forget(self) -> str:
        """Why no node of any server can be forgotten from here; empty where one can."""
        reasons = [link.why_not_forget() for link in self.links]
        return reasons[0] if all(reasons) else ""

    def want(self, wants: Wants) -> None:
        """What is looked at from now on."""
        if self._wants_all:
            wants = wants._replace(details=True, processes=True)
        if wants == self._wants:
            return
        self._wants = wants
        found = [pair for pair in map(self._find, wants.open) if pair]
        for link in self.links:
            link.want(wants._replace(open=frozenset(row.node_id for other, row in found if other is link)))

    def notices(self) -> Sequence[str]:
        """What is wrong with the servers."""
        return [notice for link in self.links if (notice := link.notice())]

    def _row(self, node_id: str) -> Row | None:
        found = self._find(node_id)
        return found and (found[1] if found[1].node_id == node_id else found[1]._replace(node_id=node_id))

    def _find(self, node_id: str) -> tuple[Link, Row] | None:
        """A node of that name here, and whose it is; its row has the name that it has there."""
        if node_id.endswith(self._endings):
            owner = next(link for link in self.links if node_id.endswith(ending_of(link.name)))
            row = owner.mirror.row(node_id.removesuffix(ending_of(owner.name)))
            return (owner, row) if row else None
        for link in self.links:
            if row := link.mirror.row(node_id):
                return link, row
        return None

    # ---- A Past ----

    def span(self) -> tuple[float, float]:
        """The first and the last moment that are kept, by the servers' wall clocks. Raises NoPast."""
        statuses = [link.mirror.status for link in self.links]
        told = [status.past_unix_milliseconds / 1000 for status in statuses if status.past_unix_milliseconds > 0]
        if (first := min([*told, self._earliest])) < math.inf:
            return first, self.wall()
        keeps = any(status.has_past for status in statuses)
        raise NoPast(f"{self.links[0].name} {'has kept nothing yet' if keeps else 'keeps no journal'}")

    def moment(self, wall: float, after: bool = False) -> Source:
        """The fleet as it was then, or at the first moment after it. Raises NoPast where no server has kept anything."""
        milliseconds = max(math.floor(1000 * wall + 0.5), 1)
        request, log, reasons = pb.WatchRequest(moment_unix_milliseconds=milliseconds, after=after), EventLog(EVENTS_KEPT), []
        asked: list[tuple[Link, Any]] = []
        now = self.clock()  # of all mirrors, however long each takes to come: ages are as of one moment
        for link in self.links:  # all are asked before one is waited for
            try:
                asked.append((link, link.ask(request)))
            except NoPast as reason:
                reasons.append(reason)
        mirrors = []
        for link, call in asked:
            mirror = Mirror(log, link.mirror.name, lambda: now)
            mirror.begin()
            try:
                for update in call:
                    mirror.take(update)
                mirrors.append(mirror)
            except grpc.RpcError as error:
                reasons.append(link.why_not(error))
            except Refused as error:
                reasons.append(NoPast(f"{link.name} tells a past that can't be: {visible(str(error))}"))
        if not mirrors:
            raise reasons[0]
        made_at = sorted(mirror.made_at_wall for mirror in mirrors)
        self._earliest = min(self._earliest, made_at[0])
        shown = made_at[-1]
        if after and len(made_at) > 1 and shown > made_at[0]:  # the others as of the one that comes first
            return self.moment(next((at for at in made_at if at > wall), shown))
        if not after:  # what was first kept later was not there then
            shown = max((at for at in made_at if at <= milliseconds / 1000), default=made_at[0])
        rows = joined([mirror.snapshot() for mirror in mirrors if mirror.made_at_wall <= shown], self._endings)
        events = sorted(log.newest(EVENTS_KEPT), key=lambda event: event.time)
        return Moment(now, shown, rows, events)

    def graph(self, node_id: str, end: float, seconds: float, steps: int) -> Readings:
        """Readings of the `seconds` before `end`. Raises NoPast."""
        if found := self._find(node_id):
            link, name = found[0], found[1].node_id
        elif len(self.links) == 1:  # it may have been forgotten since
            link, name = self.links[0], node_id
        else:
            raise NoPast(f"{node_id} is not known any more")
        wanted = pb.GraphRequest(node_id=name, end_unix_milliseconds=max(int(1000 * end), 1), seconds=round(seconds), steps=steps)
        try:
            return graph_of(next(link.ask(pb.WatchRequest(graph=wanted)), pb.WatchUpdate()).graph, steps)
        except grpc.RpcError as error:
            raise link.why_not(error) from error
        except Refused as error:
            raise NoPast(f"{link.name} tells a past that can't be: {visible(str(error))}") from error


def attach(options: argparse.Namespace) -> Attached:
    """The servers that the command line names, or the one of this user on this machine. Raises Failure, with what to do."""
    if not options.attach:
        return Attached([own_server(options.state)], Trust(holder=VIEWER), wants_all=bool(options.record))
    servers = list(dict.fromkeys(options.attach))
    trust = trust_of(options, VIEWER)
    if not options.headless and not options.json and sys.stdin.isatty() and sys.stdout.isatty():
        trust.ask([str(server) for server in servers])
    return Attached([(str(server), name_of(server)) for server in servers], trust, wants_all=bool(options.record))


def name_of(server: Endpoint) -> str:
    """What people call it: its port is said where it is not the usual one."""
    return server.host if server.port == DEFAULT_PORT else str(server)


def own_server(state: pathlib.Path | None) -> tuple[str, str]:
    """The socket of this user's server on this machine, as gRPC finds it and as people call it. Raises Failure."""
    found: dict[pathlib.Path, bool] = {}
    for folder in socket_folders(state):
        with contextlib.suppress(OSError):
            place = socket_path(folder, 0).parent
            if os.name != "posix" or os.geteuid() in (0, place.lstat().st_uid):  # else anybody may answer there
                found |= {path: answers(path) for path in sorted(place.glob("*.sock"))}
    living = [path for path, is_there in found.items() if is_there]
    if not living:
        folders = ", ".join(dict.fromkeys(str(socket_path(folder, 0).parent) for folder in socket_folders(state)))
        gone = f" (one left {next(iter(found))}, and is gone)" if found else ""
        what = "start one (python3 server.pyz --headless), or name it: --attach localhost:PORT, or its --state FOLDER"
        raise Failure(f"no server of this user answers in {folders}{gone}: {what}")
    usual = [path for path in living if path.stem == str(DEFAULT_PORT)]
    if len(living) > 1 and len(usual) != 1:
        ports = ", ".join(path.stem for path in living)
        raise Failure(f"several servers of this user run on this machine, on ports {ports}: name one (--attach localhost:PORT)")
    return socket_target((usual or living)[0]), "this machine"


def answers(path: pathlib.Path) -> bool:
    """Whether a server is there: a socket outlives one that was killed. Raises PermissionError where it is another user's."""
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as probe:
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        return True


def ending_of(server: str) -> str:
    """What stands behind the id of a node, to say whose it is."""
    return f" ({server})"


def joined(fleets: Sequence[Sequence[Row]], endings: tuple[str, ...]) -> list[Row]:
    """The rows of all; where one id is there twice, the later one's server stands behind it. So it does behind an id that has
    such an ending of its own: it would hide the other server's node."""
    rows: list[Row] = []
    taken: set[str] = set()
    for fleet in fleets:
        rows += [
            row._replace(node_id=row.node_id + ending_of(row.server))
            if row.node_id in taken or row.node_id.endswith(endings)
            else row
            for row in fleet
        ]
        taken |= {row.node_id for row in fleet}
    return rows
