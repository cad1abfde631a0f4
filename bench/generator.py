"""The load generator: a fleet in a process of its own."""

from __future__ import annotations

import array
import collections
import contextlib
import gc
import heapq
import math
import multiprocessing
import random
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import NamedTuple

import node_pb2 as pb
from bench.figures import Failed, percentile
from bench.http2 import (
    ACKNOWLEDGES,
    DATA,
    DEFAULT_WINDOW,
    END_STREAM,
    FRAME_HEADER,
    HEADERS,
    INITIAL_WINDOW_SIZE,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    data_frame,
    frame,
    request_headers,
    split_frames,
    status_of,
    window_updates,
)
from bench.messages import BEATS, BOXES, DAY, Box
from bench.processes import raise_open_files
from edge.backoff import backoff
from edge.credentials import SERVER_NAME, authority_of, parse_token
from edge.protocol import SILENCE_SECONDS, first_answer_seconds, silent_after_seconds

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
SETTLE_SECONDS = 4.0  # from the last session's start to the measurement
MAX_WAITING = 400  # nodes that have dialed and are not in yet: else a server that is slower than the plan is never through
READY_AT_ONCE = 64  # connections that are read before what is due is looked at again: a TLS handshake takes half a millisecond
BEHIND_SECONDS = 0.1  # a generator whose p99 is later than that is itself what is measured


class Plan(NamedTuple):
    """What the generator is to do."""

    port: int
    nodes: int
    gpus: int = 8
    sessions_per_second: int = 1000  # at most, when the fleet dials for the first time
    backlog: int = 0  # samples in the first message of a session
    reconnect: bool = False  # after any end, with the agent's own backoff
    ids: int = 0  # so many names in all, in turn: nodes come and go
    life_seconds: float = 0.0  # mean, where they do
    token: str = ""  # of a secure server: each node comes by TLS, and proves itself


class Report(NamedTuple):
    """What it did since the report before; `connected` and `intervals` are as of now."""

    cpu_seconds: float
    connected: int  # sessions that were acknowledged and have not ended
    sent: int  # heartbeats
    sent_bytes: int
    received_bytes: int
    unacknowledged: int  # samples of sessions that ended, which nobody ever acknowledged
    ended: dict[str, int]  # how sessions ended, tries that reached nobody included
    late: tuple[float, float, float]  # behind its own pace, seconds: p50, p99, longest
    held: int  # heartbeats not sent, because the server did not take what went before
    joined: list[float]  # when sessions were acknowledged, by the monotonic clock
    intervals: dict[float, int]  # cadence in seconds -> sessions that keep it

    def lost(self) -> int:
        """Sessions that no goodbye ended, and heartbeats that did not arrive."""
        return sum(count for how, count in self.ended.items() if how != "goodbye") + self.unacknowledged + self.held

    def warning(self) -> str:
        """What to say of a generator that was itself too slow."""
        return f"the generator fell behind: p99 {self.late[1] * 1000:.0f} ms" if self.late[1] > BEHIND_SECONDS else ""


class Peer:
    """One node: a connection with one stream, and what HTTP/2 wants to be remembered of it."""

    __slots__ = (
        "acked", "acknowledged", "box", "connected", "connection_window", "consumed", "delays", "due", "heard_at", "incoming",
        "interval", "leave_at", "leaving", "message", "number", "open", "sequence", "socket", "spread", "stream_window", "unsent",
    )  # fmt: skip

    def __init__(self, number: int, box: Box) -> None:
        self.number = number
        self.box = box
        self.due = math.inf  # its next action: to dial, or to send
        self.delays = backoff()
        self.spread = 0.0  # seconds, of the fleet's return
        self.sequence = 0  # of the newest sample sent
        self.leave_at = math.inf
        self.reset()

    def reset(self) -> None:
        """Before a new session."""
        self.socket: socket.socket | None = None
        self.connected = self.open = self.acknowledged = self.leaving = False
        self.acked = self.sequence  # samples up to this are safe
        self.interval = 1.0
        self.connection_window = self.stream_window = DEFAULT_WINDOW
        self.consumed = 0  # bytes that came since we last sent a window update
        self.incoming = self.message = self.unsent = b""
        self.heard_at = math.inf


class Generator:
    """A fleet in one thread: a heap of what is due, and an epoll of what came."""

    def __init__(self, plan: Plan, control: Connection) -> None:
        self._plan, self._control = plan, control
        self._epoll = select.epoll()
        self._epoll.register(control.fileno(), select.EPOLLIN)
        self._peers: dict[int, Peer] = {}  # by file descriptor
        self._heap: list[tuple[float, int, Peer]] = []
        self._tls = tls_context(plan.token) if plan.token else None
        self._request = request_headers(authorization=parse_token(plan.token).bearer() if plan.token else "")
        self._waiting = 0  # sessions that are not acknowledged yet
        self._stopped = False
        self._ticket = 0  # tells equal times in the heap apart
        self._frames: dict[int, Callable[[Peer, int, int, bytes], None]] = {
            DATA: self._on_data, HEADERS: self._on_headers, RST_STREAM: self._on_reset, SETTINGS: self._on_settings,
            PING: self._on_ping, WINDOW_UPDATE: self._on_window_update,
        }  # fmt: skip
        boxes = [Box(plan.gpus, seed, plan.backlog) for seed in range(BOXES)]
        self._fleet = [Peer(number, boxes[number % BOXES]) for number in range(plan.nodes)]
        self._next_number = plan.nodes
        self._started = time.monotonic()
        for turn, peer in enumerate(random.sample(self._fleet, plan.nodes)):  # neighbours on the screen must not beat in step
            self._schedule(peer, self._started + turn / plan.sessions_per_second)
        self._clear()

    def run(self) -> None:
        """Until told to stop."""
        while not self._stopped:
            self._act()
            wait = self._heap[0][0] - time.monotonic() if self._heap else 1.0
            for file, _ in self._epoll.poll(min(max(wait, 0), 1.0), READY_AT_ONCE):
                if peer := self._peers.get(file):
                    self._on_ready(peer)
                else:
                    self._obey(*self._control.recv())

    # What is due

    def _schedule(self, peer: Peer, due: float) -> None:
        peer.due = due
        self._ticket += 1
        heapq.heappush(self._heap, (due, self._ticket, peer))

    def _act(self) -> None:
        """Do what is due, but not so much of it that nothing is read."""
        for _ in range(256):
            now = time.monotonic()
            if not self._heap or self._heap[0][0] > now:
                return
            due, _, peer = heapq.heappop(self._heap)
            if due != peer.due:  # something else has been scheduled since
                continue
            patience = silent_after_seconds(peer.interval) if peer.acknowledged else first_answer_seconds(peer.spread)
            if peer.socket is None and peer.sequence == 0 and self._waiting >= MAX_WAITING:
                self._schedule(peer, now + random.uniform(0, MAX_WAITING / self._plan.sessions_per_second))
            elif peer.socket is None:
                self._dial(peer, now)
            elif peer.leaving or now - peer.heard_at > patience:
                self._end(peer, "silence" if peer.acknowledged else "no answer" if peer.open else "no settings")
            elif now >= peer.leave_at:
                self._depart(peer, goodbye=random.random() < 0.5)
            elif peer.open:
                self._beat(peer, now)
            else:
                self._schedule(peer, now + 1)

    def _dial(self, peer: Peer, now: float) -> None:
        peer.reset()
        peer.heard_at = now
        self._waiting += 1
        peer.socket = socket.socket()
        if self._tls:
            peer.socket = self._tls.wrap_socket(peer.socket, do_handshake_on_connect=False, server_hostname=SERVER_NAME)
        peer.socket.setblocking(False)
        peer.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._peers[peer.socket.fileno()] = peer
        self._schedule(peer, now + 1)
        peer.socket.connect_ex(("127.0.0.1", self._plan.port))
        self._epoll.register(peer.socket, select.EPOLLOUT)

    def _beat(self, peer: Peer, now: float) -> None:
        self._late.append(now - peer.due)
        self._schedule(peer, peer.due + peer.interval)
        beat = peer.box.beats[peer.sequence % BEATS]
        length = len(beat.frame)
        if peer.unsent or peer.stream_window < length or peer.connection_window < length:
            self._held += 1
            return
        peer.sequence += 1
        self._sent += 1
        peer.stream_window -= length - FRAME_HEADER
        peer.connection_window -= length - FRAME_HEADER
        self._send(peer, beat.patch(peer.sequence, now - self._started))

    def _depart(self, peer: Peer, goodbye: bool) -> None:
        if goodbye and peer.acknowledged:
            peer.leaving = True
            self._schedule(peer, time.monotonic() + SILENCE_SECONDS)
            self._send(peer, data_frame(pb.HeartbeatRequest(leaving=True).SerializeToString(), END_STREAM))
        else:
            self._end(peer, "broken on purpose")

    def _end(self, peer: Peer, how: str) -> None:
        """A session is over. What the node does next is the plan's matter."""
        assert peer.socket
        self._ended[how] += 1
        self._waiting -= not peer.acknowledged
        self._unacknowledged += (peer.sequence - peer.acked) * peer.acknowledged
        del self._peers[peer.socket.fileno()]
        peer.socket.close()
        left, was_unheard = peer.leaving, not peer.acknowledged
        peer.reset()
        peer.due = math.inf
        if self._plan.ids:
            peer.number, self._next_number = self._next_number, self._next_number + 1
            peer.delays = backoff()
            self._schedule(peer, time.monotonic())
        elif self._plan.reconnect and not left:
            spread = peer.spread * (was_unheard or how in ("UNAVAILABLE", "nobody there"))
            delay = max(next(peer.delays), random.uniform(0, spread))  # as node.py
            self._schedule(peer, time.monotonic() + delay)

    def _send(self, peer: Peer, data: bytes | bytearray) -> None:
        assert peer.socket
        self._sent_bytes += len(data)
        if peer.unsent:
            peer.unsent += data
            return
        try:
            sent = peer.socket.send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError:
            self._end(peer, "connection closed")
            return
        if sent < len(data):
            peer.unsent = bytes(data[sent:])
            self._epoll.modify(peer.socket, select.EPOLLIN | select.EPOLLOUT)

    # What came

    def _on_ready(self, peer: Peer) -> None:
        assert peer.socket
        if not peer.connected:
            self._on_connected(peer)
            return
        if peer.unsent:
            data, peer.unsent = peer.unsent, b""
            self._sent_bytes -= len(data)
            self._epoll.modify(peer.socket, select.EPOLLIN)
            self._send(peer, data)
        try:
            data = peer.socket.recv(65_536) if peer.socket else b""
        except WOULD_BLOCK:
            return
        except OSError:
            data = b""
        if not data:
            if peer.socket:
                self._end(peer, "connection closed")
            return
        self._received_bytes += len(data)
        frames, peer.incoming = split_frames(peer.incoming + data)
        for kind, flags, stream, payload in frames:
            if peer.socket and kind in self._frames:
                self._frames[kind](peer, flags, stream, payload)

    def _on_connected(self, peer: Peer) -> None:
        assert peer.socket
        if peer.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._end(peer, "nobody there")
            return
        self._epoll.modify(peer.socket, select.EPOLLIN)
        if isinstance(peer.socket, ssl.SSLSocket):
            try:
                peer.socket.do_handshake()
            except WOULD_BLOCK:
                return
            except OSError:
                self._end(peer, "no handshake")
                return
        peer.connected = True
        self._send(peer, PREFACE + frame(SETTINGS, 0, 0))

    def _on_settings(self, peer: Peer, flags: int, _stream: int, payload: bytes) -> None:
        if flags & ACKNOWLEDGES:
            return
        for identifier, value in struct.iter_unpack(">HI", payload):
            if identifier == INITIAL_WINDOW_SIZE:
                peer.stream_window += value - DEFAULT_WINDOW
        self._send(peer, frame(SETTINGS, ACKNOWLEDGES, 0))
        if peer.socket and not peer.open:
            self._open(peer)

    def _open(self, peer: Peer) -> None:
        """The session's first message."""
        now = time.monotonic()
        peer.open = True
        peer.sequence += 1
        self._sent += 1
        number = peer.number % self._plan.ids if self._plan.ids else peer.number
        if self._plan.ids:
            peer.leave_at = now + random.expovariate(1 / self._plan.life_seconds)
        beat = peer.box.beats[0].patch(peer.sequence, now - self._started)
        opening = peer.box.opening(f"bench-{number:05}", f"{peer.number:016}", beat)
        peer.stream_window -= len(opening) - FRAME_HEADER
        peer.connection_window -= len(opening) - FRAME_HEADER
        self._schedule(peer, now + peer.interval)
        self._send(peer, self._request + opening)

    def _on_data(self, peer: Peer, flags: int, _stream: int, payload: bytes) -> None:
        peer.consumed += len(payload)
        if peer.consumed > DEFAULT_WINDOW // 2:
            self._send(peer, window_updates(peer.consumed))
            peer.consumed = 0
        peer.message += payload
        while len(peer.message) >= 5 and len(peer.message) >= (end := 5 + int.from_bytes(peer.message[1:5], "big")):
            self._hear(peer, pb.HeartbeatResponse.FromString(peer.message[5:end]))
            peer.message = peer.message[end:]

    def _hear(self, peer: Peer, response: pb.HeartbeatResponse) -> None:
        peer.heard_at = time.monotonic()
        peer.acked = max(peer.acked, response.acknowledged_sequence - DAY)
        if not peer.acknowledged:
            peer.acknowledged = True
            self._waiting -= 1
            peer.delays = backoff()
            self._joined.append(peer.heard_at)
        peer.spread = response.reconnect_spread_milliseconds / 1000
        if response.heartbeat_interval_milliseconds:
            peer.interval = response.heartbeat_interval_milliseconds / 1000

    def _on_headers(self, peer: Peer, flags: int, _stream: int, payload: bytes) -> None:
        if flags & END_STREAM:
            status = status_of(payload)
            self._end(peer, "goodbye" if peer.leaving and status == "OK" else status or "no status")

    def _on_reset(self, peer: Peer, _flags: int, _stream: int, payload: bytes) -> None:
        self._end(peer, f"RST_STREAM {int.from_bytes(payload, 'big')}")

    def _on_ping(self, peer: Peer, flags: int, _stream: int, payload: bytes) -> None:
        if not flags & ACKNOWLEDGES:
            self._send(peer, frame(PING, ACKNOWLEDGES, 0, payload))

    def _on_window_update(self, peer: Peer, _flags: int, stream: int, payload: bytes) -> None:
        if stream:
            peer.stream_window += int.from_bytes(payload, "big")
        else:
            peer.connection_window += int.from_bytes(payload, "big")

    # What it is told

    def _obey(self, command: str, *arguments: int) -> None:
        if command == "leave":
            for peer in self._fleet[:: arguments[0]]:
                peer.due = math.inf
                if peer.open:
                    self._depart(peer, goodbye=True)
        elif command == "live":
            self._plan = self._plan._replace(life_seconds=arguments[0])
        self._stopped = command == "stop"
        self._control.send(self._report())

    def _report(self) -> Report:
        late = sorted(self._late)
        report = Report(
            cpu_seconds=time.process_time(),
            connected=sum(peer.acknowledged for peer in self._fleet),
            sent=self._sent,
            sent_bytes=self._sent_bytes,
            received_bytes=self._received_bytes,
            unacknowledged=self._unacknowledged,
            ended=dict(self._ended),
            late=(percentile(late, 50), percentile(late, 99), percentile(late, 100)),
            held=self._held,
            joined=list(self._joined),
            intervals=dict(collections.Counter(peer.interval for peer in self._fleet if peer.acknowledged)),
        )
        self._clear()
        return report

    def _clear(self) -> None:
        self._sent = self._sent_bytes = self._received_bytes = self._held = self._unacknowledged = 0
        self._late = array.array("d")
        self._joined: list[float] = []
        self._ended: collections.Counter[str] = collections.Counter()


def tls_context(token: str) -> ssl.SSLContext:
    """What a node knows of the server that a token names. A socket with it has nothing left to read when a read would block: it
    takes one record at a time, whole. So epoll tells of it as of any other."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority_of(parse_token(token).key).decode())
    context.set_alpn_protocols(["h2"])
    context.set_ecdh_curve("prime256v1")  # gRPC's one: another costs a round more
    return context


def generate(plan: Plan, control: Connection) -> None:
    """Body of the generator's process."""
    raise_open_files()
    gc.disable()  # its pauses would be lateness
    Generator(plan, control).run()


class Load:
    """The generator's process, from outside."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=generate, args=(plan, theirs), daemon=True)
        self._process.start()

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError, Failed):
            self.ask("stop")
        self._process.join(10)
        self._process.kill()

    def ask(self, *command: str | int) -> Report:
        """Give a command; return what it did since the last one."""
        self._pipe.send(command)
        if not self._pipe.poll(60):
            raise Failed("the generator does not answer")
        report: Report = self._pipe.recv()
        return report

    def report(self) -> Report:
        return self.ask("report")

    def wait_until(self, connected: int, seconds: float) -> list[Report]:
        """Wait for so many sessions. Raises Failed when they do not come in time."""
        give_up_at, reports = time.monotonic() + seconds, [self.report()]
        while reports[-1].connected != connected:
            if time.monotonic() > give_up_at:
                ended = sum((collections.Counter(report.ended) for report in reports), collections.Counter())
                raise Failed(f"{reports[-1].connected:,} of {connected:,} sessions after {seconds:.0f} s; ended: {dict(ended)}")
            time.sleep(0.2)
            reports.append(self.report())
        return reports

    def connect(self) -> list[Report]:
        """Wait until the whole fleet has been acknowledged, and a little longer."""
        reports = self.wait_until(self.plan.nodes, self.plan.nodes / self.plan.sessions_per_second + 120)
        time.sleep(SETTLE_SECONDS)
        return reports

    def leave(self) -> Report:
        """All say goodbye: what was sent must now have been acknowledged. Returns what this did."""
        reports = [self.ask("leave", 1), *self.wait_until(0, 30)]
        ended = sum((collections.Counter(report.ended) for report in reports), collections.Counter())
        return reports[-1]._replace(ended=dict(ended), unacknowledged=sum(report.unacknowledged for report in reports))
