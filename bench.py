"""Benchmarks of Edge Compute Node: what a fleet costs the server, what the agent costs a box, and whether both keep their promises.

    python bench.py                    all sections but the long ones, at most ten minutes
    python bench.py scale agent        some
    python bench.py --nodes 1000 scale fewer nodes: for a quick look, not for the figures
    python bench.py --json             one JSON document instead of the table

The load is no gRPC client: the Generator writes HTTP/2 frames over epoll, in a process of its own, so that one core drives ten
thousand nodes. It sends the real messages, each second a heartbeat a node, spread over the second, and tells how late it is itself.
The measured process has one core, the generator and this process another. Milliseconds of two machines can't be compared, nor of
one machine on two days: so the server stands beside a bare grpc.aio handler under the same load, in the same run.
"""

from __future__ import annotations

import argparse
import array
import asyncio
import collections
import contextlib
import fcntl
import gc
import heapq
import itertools
import json
import math
import multiprocessing
import os
import pathlib
import platform
import pty
import random
import resource
import select
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import grpc
import grpc.aio
import psutil

import node
import node_pb2 as pb
import server

ROOT = pathlib.Path(__file__).resolve().parent
CORES = sorted(os.sched_getaffinity(0))
SERVER_CORE, LOAD_CORE = CORES[0], CORES[-1]
NODES = 10_000
WINDOW_SECONDS = 12.0  # of each measurement
SETTLE_SECONDS = 4.0  # from the last session's start to the measurement
BEHIND_SECONDS = 0.1  # a generator whose p99 is later than that is itself what is measured
SCREEN_SIZE = (160, 50)
FRAME_MARK = b"\x1b[?2026h"  # each frame is one synchronized update
END_KEY, HOME_KEY = b"\x1b[F", b"\x1b[H"


class Figure(NamedTuple):
    """One line of the table."""

    section: str
    name: str
    value: float | None  # None: it could not be measured; `note` says why
    unit: str
    at_most: float | None = None
    at_least: float | None = None
    note: str = ""

    def verdict(self) -> str:
        """Whether what was promised is held; empty where nothing was."""
        if self.at_most is None and self.at_least is None:
            return ""
        low, high = self.at_least or 0.0, float("inf") if self.at_most is None else self.at_most
        return "met" if self.value is not None and low <= self.value <= high else "MISSED"


class Failed(Exception):
    """A measurement that can't be made: what ends its section with this line."""


def say(text: str) -> None:
    """Progress, on stderr."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value that so many percent do not exceed; 0 where there are none."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)] if values else 0.0


# ---- The messages: serialized once, and patched in what changes with each heartbeat ----

DAY = 86_400  # the nodes are a day old: their counters have the length they will keep
BOXES, BEATS = 16, 16  # so many different boxes, and messages of each
STAMP = 2**27  # a heartbeat carries when it was sent, in µs modulo this, in place of a network rate
# A varint of four bytes is LOW of its 14 lower bits and HIGH of the rest; one of three, LOW and a byte. No loop a heartbeat.
LOW = [bytes((value & 127 | 128, value >> 7 | 128)) for value in range(2**14)]
HIGH = [bytes((value & 127 | 128, value >> 7)) for value in range(2**14)]
SEQUENCE_MARK, CLOCK_MARK, STAMP_MARK = 0x1A5A5A, 0xA5A5A5A, 0xB5B5B5B  # replaced in each message; found once


def stamp_microseconds() -> int:
    """Now, by the clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000 % STAMP


class Beat:
    """A heartbeat's bytes on the wire, from the HTTP/2 frame's header on, and where in them lies what changes."""

    __slots__ = ("clock_at", "frame", "sequence_at", "stamp_at", "taken_at")

    def __init__(self, host: pb.HostSample, devices: Sequence[pb.DeviceSample]) -> None:
        sample = pb.Sample(sequence=SEQUENCE_MARK, taken_milliseconds=CLOCK_MARK, host=host, devices=devices)
        sample.host.network_received_bytes_per_second = STAMP_MARK
        message = pb.HeartbeatRequest(sample=sample, clock_milliseconds=CLOCK_MARK).SerializeToString()
        self.frame = bytearray(data_frame(message))
        self.sequence_at = self._find(LOW[SEQUENCE_MARK & 0x3FFF] + bytes([SEQUENCE_MARK >> 14]))
        self.stamp_at = self._find(LOW[STAMP_MARK & 0x3FFF] + HIGH[STAMP_MARK >> 14])
        clock = LOW[CLOCK_MARK & 0x3FFF] + HIGH[CLOCK_MARK >> 14]
        self.taken_at, self.clock_at = self.frame.index(clock), self.frame.rindex(clock)
        assert self.taken_at < self.clock_at

    def _find(self, mark: bytes) -> int:
        assert self.frame.count(mark) == 1, "a mark must stand once in a message"
        return self.frame.index(mark)

    def patch(self, sequence: int, seconds: float) -> bytearray:
        """The frame of a heartbeat so long after the start: valid until the next call."""
        frame = self.frame
        milliseconds = int(seconds * 1000) + DAY * 1000
        clock = LOW[milliseconds & 0x3FFF] + HIGH[milliseconds >> 14]
        stamp = stamp_microseconds() + STAMP
        sequence += DAY
        frame[self.sequence_at : self.sequence_at + 3] = LOW[sequence & 0x3FFF] + bytes((sequence >> 14,))
        frame[self.taken_at : self.taken_at + 4] = clock
        frame[self.clock_at : self.clock_at + 4] = clock
        frame[self.stamp_at : self.stamp_at + 4] = LOW[stamp & 0x3FFF] + HIGH[stamp >> 14]
        return frame


def course(gpus: int, seed: int) -> list[pb.HeartbeatRequest]:
    """Some seconds in the life of a simulated box with so many GPUs, 1 or 8; the first message has its info."""
    model_seed = {1: 2, 8: 1}[gpus] + seed * len(node.CATALOGUE)
    now = 0.0

    def clock() -> float:
        return now

    hardware, requests = node.SimulatedHardware(model_seed, clock=clock), []
    for sequence in range(BEATS):
        now = 20.0 * sequence
        requests.append(pb.HeartbeatRequest(sample=node.take_sample(hardware, DAY + sequence, 0, clock)))
    requests[0].info.CopyFrom(node.make_info(hardware, "0" * 16))
    return requests


class Box:
    """What a kind of node says: its first message, and its heartbeats in turn."""

    def __init__(self, gpus: int, seed: int, backlog: int = 0) -> None:
        requests = course(gpus, seed)
        self._info = requests[0].info
        self.beats = [Beat(request.sample.host, request.sample.devices) for request in requests]
        self._backlog = pb.HeartbeatRequest(backlog=[request.sample for request in requests[:backlog]]).SerializeToString()

    def opening(self, name: str, instance: str, beat: bytearray) -> bytes:
        """The first message of a session. Parts of a message, one after the other, are the message."""
        info = pb.NodeInfo()
        info.CopyFrom(self._info)
        info.hostname, info.instance_id = name, instance
        request = pb.HeartbeatRequest(node_id=name, info=info)
        return data_frame(request.SerializeToString() + self._backlog + beat[DATA_OVERHEAD:])


# ---- HTTP/2: as much of it as one stream a connection needs (RFC 9113, RFC 7541) ----

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACKNOWLEDGES, END_STREAM, END_HEADERS = 1, 1, 4  # flags
FRAME_HEADER = 9
DATA_OVERHEAD = FRAME_HEADER + 5  # and gRPC's header of a message
DEFAULT_WINDOW = 65_535
INITIAL_WINDOW_SIZE = 4  # a setting
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One frame."""
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def data_frame(message: bytes, flags: int = 0) -> bytes:
    """A message on the one stream, not compressed."""
    return frame(DATA, flags, 1, b"\0" + len(message).to_bytes(4, "big") + message)


def window_updates(count: int) -> bytes:
    """So many bytes may come again, on the connection and on the stream."""
    return frame(WINDOW_UPDATE, 0, 0, count.to_bytes(4, "big")) + frame(WINDOW_UPDATE, 0, 1, count.to_bytes(4, "big"))


def request_headers() -> bytes:
    """What opens the stream. Names from HPACK's static table, values literal and not indexed."""

    def literal(name: bytes, value: bytes) -> bytes:
        return name + bytes([len(value)]) + value

    block = b"\x83\x86"  # :method POST, :scheme http
    block += literal(b"\x04", b"/node.NodeService/StreamHeartbeats") + literal(b"\x01", b"bench")  # :path, :authority
    block += literal(b"\x0f\x10", b"application/grpc") + literal(b"\x00\x02te", b"trailers")
    return frame(HEADERS, END_HEADERS, 1, block)


def status_of(block: bytes) -> str:
    """grpc-status in a block of headers, "" where there is none. gRPC's C core never uses Huffman codes for it."""
    _, found, rest = block.partition(b"grpc-status")
    return grpc_name(int(rest[1 : 1 + rest[0]])) if found else ""


def grpc_name(number: int) -> str:
    """ "UNAVAILABLE" for 14."""
    return next((code.name for code in grpc.StatusCode if code.value[0] == number), str(number))


def split_frames(data: bytes) -> tuple[list[tuple[int, int, int, bytes]], bytes]:
    """The whole frames in `data` as kind, flags, stream and payload, and what is left over."""
    frames, at = [], 0
    while len(data) - at >= FRAME_HEADER:
        end = at + FRAME_HEADER + int.from_bytes(data[at : at + 3], "big")
        if end > len(data):
            break
        frames.append((data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : at + 9], "big"), data[at + FRAME_HEADER : end]))
        at = end
    return frames, data[at:]


# ---- The load generator: a process of its own ----


class Plan(NamedTuple):
    """What the generator is to do."""

    port: int
    nodes: int
    gpus: int = 8
    sessions_per_second: int = 1000  # when the fleet dials for the first time
    backlog: int = 0  # samples in the first message of a session
    reconnect: bool = False  # after any end, with the agent's own backoff
    ids: int = 0  # so many names in all, in turn: nodes come and go
    life_seconds: float = 0.0  # mean, where they do


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
        "interval", "leave_at", "leaving", "message", "number", "open", "sequence", "socket", "stream_window", "unsent",
    )  # fmt: skip

    def __init__(self, number: int, box: Box) -> None:
        self.number = number
        self.box = box
        self.due = math.inf  # its next action: to dial, or to send
        self.delays = node.backoff()
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
            for file, _ in self._epoll.poll(min(max(wait, 0), 1.0), 4096):
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
            patience = node.SILENCE_SECONDS + 2 * peer.interval if peer.acknowledged else node.SESSION_PATIENCE_SECONDS
            if peer.socket is None:
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
        peer.socket = socket.socket()
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
            self._schedule(peer, time.monotonic() + node.SILENCE_SECONDS)
            self._send(peer, data_frame(pb.HeartbeatRequest(leaving=True).SerializeToString(), END_STREAM))
        else:
            self._end(peer, "broken on purpose")

    def _end(self, peer: Peer, how: str) -> None:
        """A session is over. What the node does next is the plan's matter."""
        assert peer.socket
        self._ended[how] += 1
        self._unacknowledged += (peer.sequence - peer.acked) * peer.acknowledged
        del self._peers[peer.socket.fileno()]
        peer.socket.close()
        left = peer.leaving
        peer.reset()
        peer.due = math.inf
        if self._plan.ids:
            peer.number, self._next_number = self._next_number, self._next_number + 1
            peer.delays = node.backoff()
            self._schedule(peer, time.monotonic())
        elif self._plan.reconnect and not left:
            self._schedule(peer, time.monotonic() + next(peer.delays))

    def _send(self, peer: Peer, data: bytes | bytearray) -> None:
        assert peer.socket
        self._sent_bytes += len(data)
        if peer.unsent:
            peer.unsent += data
            return
        try:
            sent = peer.socket.send(data)
        except BlockingIOError:
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
        except BlockingIOError:
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
        peer.connected = True
        self._epoll.modify(peer.socket, select.EPOLLIN)
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
        self._send(peer, request_headers() + opening)

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
            peer.delays = node.backoff()
            self._joined.append(peer.heard_at)
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


def generate(plan: Plan, control: Connection) -> None:
    """Body of the generator's process."""
    raise_open_files()
    gc.disable()  # its pauses would be lateness
    Generator(plan, control).run()


def raise_open_files() -> None:
    """A connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


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
        reports = self.wait_until(self.plan.nodes, self.plan.nodes / self.plan.sessions_per_second + 40)
        time.sleep(SETTLE_SECONDS)
        return reports

    def leave(self) -> Report:
        """All say goodbye: what was sent must now have been acknowledged. Returns what this did."""
        reports = [self.ask("leave", 1), *self.wait_until(0, 30)]
        ended = sum((collections.Counter(report.ended) for report in reports), collections.Counter())
        return reports[-1]._replace(ended=dict(ended), unacknowledged=sum(report.unacknowledged for report in reports))


# ---- The measured processes ----


class Terminal:
    """A pseudo-terminal with a reader that counts frames as they come."""

    def __init__(self, columns: int, lines: int) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self._changed = threading.Condition()
        self._watched: bytes | None = None  # what was drawn since the last key, while someone waits for it
        self._frames = self._bytes = 0
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        tail = b""
        with contextlib.suppress(OSError):  # EIO: the program has ended
            while data := os.read(self._master, 65_536):
                with self._changed:
                    self._frames += (tail + data).count(FRAME_MARK)
                    self._bytes += len(data)
                    tail = data[-len(FRAME_MARK) + 1 :]
                    if self._watched is not None:
                        self._watched += data
                    self._changed.notify_all()

    def counts(self) -> tuple[int, int]:
        """Frames and bytes until now."""
        with self._changed:
            return self._frames, self._bytes

    def press(self, key: bytes, answer: bytes, seconds: float) -> float | None:
        """Press a key; return after how many seconds the answer was drawn, None if it was not."""
        with self._changed:
            self._watched = b""
        started = time.monotonic()
        os.write(self._master, key)
        with self._changed:
            answered = self._changed.wait_for(lambda: answer in (self._watched or b""), seconds)
            self._watched = None
        return time.monotonic() - started if answered else None

    def type(self, key: bytes) -> None:
        """Press a key, and look for nothing."""
        os.write(self._master, key)


class Program:
    """A process whose cost is measured, on a core of its own."""

    def __init__(self, *arguments: str, terminal: Terminal | None = None, core: int | None = None) -> None:
        self.name = arguments[-1] if arguments[0] == "-c" else arguments[0]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with this object
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("EDGE_", "PYTHON", "NO_COLOR"))}
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {SERVER_CORE if core is None else core})  # the child inherits it
        try:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment | {"TERM": "xterm-256color"},
                stdin=terminal.slave if terminal else subprocess.DEVNULL,
                stdout=terminal.slave if terminal else subprocess.DEVNULL,
                stderr=self._errors,
                start_new_session=True,
            )
        finally:
            os.sched_setaffinity(0, before)
        self._psutil = psutil.Process(self.process.pid)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End it as a user would; after ten seconds, with force."""
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def cpu_seconds(self) -> float:
        """User and system time so far of the whole process: Linux has a clock for it, to the nanosecond."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def main_thread_seconds(self) -> float:
        """The same of its main thread alone, which draws."""
        path = pathlib.Path(f"/proc/{self.process.pid}/task/{self.process.pid}/schedstat")
        return int(path.read_text().split()[0]) / 1e9

    def megabytes(self) -> float:
        return self._psutil.memory_info().rss / 1e6

    def threads(self) -> int:
        return self._psutil.num_threads()

    def wait_until_listening(self, port: int, seconds: float = 20) -> float:
        """Wait until it takes connections; return when. Raises Failed with its last words when it does not."""
        give_up_at = time.monotonic() + seconds
        while time.monotonic() < give_up_at and self.process.poll() is None:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()
                return time.monotonic()
            time.sleep(0.02)
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        raise Failed(f"{self.name} does not listen: {''.join(words)}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def role(function: Callable[..., None], *arguments: object) -> tuple[str, ...]:
    """The command line that calls a function of this file in a process of its own."""
    return ("-c", f"import bench; bench.{function.__name__}(*{arguments!r})")


def serve_bare(port: int) -> None:
    """What grpc.aio costs by itself: counts raw bytes, and answers the first message and each tenth after it."""
    answer = pb.HeartbeatResponse(acknowledged=True).SerializeToString()
    received = 0

    async def handle(_requests: object, context: Any) -> None:
        nonlocal received
        count = 0
        while (request := await context.read()) is not grpc.aio.EOF:
            received += len(request)
            if count % 10 == 0 or len(request) < 10:  # a goodbye
                await context.write(answer)
            count += 1

    async def serve() -> None:
        handlers: dict[str, Any] = {"StreamHeartbeats": grpc.stream_stream_rpc_method_handler(handle)}
        bare = grpc.aio.server(options=server.SERVER_OPTIONS)
        bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("node.NodeService", handlers),))
        bare.add_insecure_port(f"127.0.0.1:{port}")
        await bare.start()
        await bare.wait_for_termination()

    raise_open_files()
    asyncio.run(serve())


def serve_timed(path: str, port: int) -> None:
    """server.py as it is; between SIGUSR1 and SIGUSR2 it notes how long each heartbeat took from its sending into the registry."""
    plain = server.Registry.heartbeat
    latencies = array.array("d")

    def timed(registry: server.Registry, session: server.Session, request: pb.HeartbeatRequest) -> None:
        plain(registry, session, request)
        sent = request.sample.host.network_received_bytes_per_second
        latencies.append((time.monotonic_ns() // 1000 - sent) % STAMP / 1e6)

    def start(*_: object) -> None:
        setattr(server.Registry, "heartbeat", timed)  # noqa: B010

    def finish(*_: object) -> None:
        setattr(server.Registry, "heartbeat", plain)  # noqa: B010
        result = {"count": len(latencies), **{str(percent): percentile(latencies, percent) for percent in (50, 99, 100)}}
        pathlib.Path(path).write_text(json.dumps(result), encoding="utf-8")

    signal.signal(signal.SIGUSR1, start)
    signal.signal(signal.SIGUSR2, finish)
    sys.exit(server.main(["--listen", f"127.0.0.1:{port}"]))


def serve_rows(count: int, port: int) -> None:
    """server.py, whose registry knows so many synthetic nodes from the start; each second a thousand of them, drawn, beat."""
    boxes = [course(8, seed) for seed in range(BOXES)]

    class FullRegistry(server.Registry):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._known = [self._start(number) for number in range(count)]
            threading.Thread(target=self._feed, daemon=True).start()

        def _start(self, number: int) -> server.Session:
            requests = boxes[number % BOXES]
            info = pb.NodeInfo()
            info.CopyFrom(requests[0].info)
            info.hostname, info.instance_id = f"bench-{number:05}", str(number)
            session = self.open(pb.HeartbeatRequest(node_id=f"bench-{number:05}", info=info), "10.0.0.1")
            self._beat(session)
            return session

        def _beat(self, session: server.Session) -> None:
            sample = pb.Sample()
            sample.CopyFrom(random.choice(random.choice(boxes)).sample)
            self.heartbeat(session, pb.HeartbeatRequest(sample=sample, clock_milliseconds=sample.taken_milliseconds))

        def _feed(self) -> None:
            while True:
                for _ in range(10):
                    self._beat(random.choice(self._known))
                time.sleep(0.01)

    setattr(server, "Registry", FullRegistry)  # noqa: B010
    sys.exit(server.main(["--listen", f"127.0.0.1:{port}", "--max-nodes", str(2 * count), "--interval", "3600"]))


def run_restless_agent(gpus: int, port: int) -> None:
    """node.py, where every number changes sixty times a second."""

    class RestlessHardware(node.SimulatedHardware):
        def sample(self) -> tuple[pb.HostSample, list[pb.DeviceSample]]:
            host, devices = random.choice(samples)
            for device in devices:
                device.utilization_percent = random.randrange(100)
                device.memory_used_bytes = random.randrange(2**34)
                device.temperature_celsius = random.randrange(30, 90)
                device.power_milliwatts = random.randrange(400_000)
            return host, devices

    samples = [(request.sample.host, list(request.sample.devices)) for request in course(gpus, 0)]
    setattr(node, "open_hardware", lambda kind, seed: RestlessHardware({1: 2, 8: 1}[gpus]))  # noqa: B010
    options = node.parse_options(["--server", f"127.0.0.1:{port}", "--id", "restless", "--hardware", "simulated"])
    options.interval = 1 / node.FRAMES_PER_SECOND
    sys.exit(node.run(options))


class Relay:
    """Stands between an agent and a server, and counts bytes and messages on their way up."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.bytes_up = self.bytes_down = self.messages = 0
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        agent, _ = self._listener.accept()
        orchestrator = socket.create_connection(("127.0.0.1", self._port))
        threading.Thread(target=self._pump_down, args=(orchestrator, agent), daemon=True).start()
        rest = agent.recv(len(PREFACE), socket.MSG_WAITALL)
        orchestrator.sendall(rest)
        rest = b""
        while data := agent.recv(65_536):
            orchestrator.sendall(data)
            self.bytes_up += len(data)
            frames, rest = split_frames(rest + data)
            self.messages += sum(kind == DATA and len(payload) > 0 for kind, _, _, payload in frames)
        orchestrator.close()

    def _pump_down(self, orchestrator: socket.socket, agent: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := orchestrator.recv(65_536):
                agent.sendall(data)
                self.bytes_down += len(data)


# ---- The sections ----


class Cost(NamedTuple):
    """What a process took in a window."""

    cpu_percent: float
    microseconds: float  # of processor a heartbeat
    megabytes: float
    threads: int
    sent: Report

    def figures(self, section: str, name: str) -> list[Figure]:
        return [
            Figure(section, f"{name}: processor", self.cpu_percent, "% of a core", note=self.sent.warning()),
            Figure(section, f"{name}: a heartbeat", self.microseconds, "µs"),
            Figure(section, f"{name}: memory", self.megabytes, "MB RSS"),
            Figure(section, f"{name}: threads", self.threads, ""),
        ]


def measure(program: Program, load: Load, seconds: float = WINDOW_SECONDS) -> Cost:
    """The cost of a fleet that beats."""
    before, cpu, started = load.report(), program.cpu_seconds(), time.monotonic()
    time.sleep(seconds)
    cpu, elapsed, sent = program.cpu_seconds() - cpu, time.monotonic() - started, load.report()
    load_cpu = (sent.cpu_seconds - before.cpu_seconds) / elapsed
    cost = Cost(100 * cpu / elapsed, 1e6 * cpu / max(sent.sent, 1), program.megabytes(), program.threads(), sent)
    say(
        f"    {cost.cpu_percent:.1f} % of a core, {cost.microseconds:.1f} µs a heartbeat, {cost.megabytes:.0f} MB, "
        f"{sent.sent / elapsed:,.0f} heartbeats/s; generator {100 * load_cpu:.0f} %, late p50 {sent.late[0] * 1000:.1f} ms, "
        f"p99 {sent.late[1] * 1000:.1f} ms, at most {sent.late[2] * 1000:.0f} ms {sent.warning()}"
    )
    return cost


def headless(port: int) -> tuple[str, ...]:
    return ("server.py", "--headless", "--listen", f"127.0.0.1:{port}")


def measure_fleet(nodes: int, gpus: int, command: Callable[[int], tuple[str, ...]]) -> tuple[Cost, int]:
    """The cost of a fresh server under a fleet, and how many heartbeats or sessions it lost."""
    port = free_port()
    with Program(*command(port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, nodes, gpus, reconnect=True)) as load:
            lost = sum(report.lost() for report in load.connect())
            cost = measure(program, load)
            return cost, lost + cost.sent.lost() + load.leave().lost()


def scale(options: argparse.Namespace) -> Iterator[Figure]:
    """The server under the whole fleet, 8 GPUs a node at 1 Hz: without a screen, with one, and beside a bare handler."""
    say(f"scale: a bare grpc.aio handler, {options.nodes:,} nodes")
    bare, _ = measure_fleet(options.nodes, 8, lambda port: role(serve_bare, port))
    yield from bare.figures("scale", "bare handler")
    say(f"scale: server.py --headless, {options.nodes:,} nodes")
    ours, lost = measure_fleet(options.nodes, 8, headless)
    yield from ours.figures("scale", "headless")
    yield Figure("scale", "headless: processor, of the bare handler's", ours.microseconds / bare.microseconds, "x", 1.35)
    yield Figure("scale", "headless: memory, of the bare handler's", ours.megabytes / bare.megabytes, "x", 1.3)
    yield Figure("scale", "headless: lost or refused", lost, "", 0)
    yield from scale_screen(options.nodes, bare)


def scale_screen(nodes: int, bare: Cost) -> Iterator[Figure]:
    """The same with a screen, with keys pressed on it, and with each heartbeat's way into the registry timed."""
    say(f"scale: server.py with its screen, {nodes:,} nodes")
    port, terminal = free_port(), Terminal(*SCREEN_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        latencies = pathlib.Path(folder, "latencies")
        with Program(*role(serve_timed, str(latencies), port), terminal=terminal) as program:
            program.wait_until_listening(port)
            with Load(Plan(port, nodes, reconnect=True)) as load:
                lost = sum(report.lost() for report in load.connect())
                frames, cost = terminal.counts()[0], measure(program, load)
                frames = terminal.counts()[0] - frames
                yield from cost.figures("scale", "with screen")[1:2]
                yield Figure("scale", "with screen: processor", cost.cpu_percent, "% of a core", 100, note=cost.sent.warning())
                yield Figure("scale", "with screen: processor, of the bare handler's", cost.microseconds / bare.microseconds, "x")
                yield Figure("scale", "with screen: memory", cost.megabytes, "MB RSS", 600)
                yield Figure("scale", "with screen: frames", frames / WINDOW_SECONDS, "/s", at_least=10)
                yield from press_keys(terminal, nodes)
                yield from time_heartbeats(program, load, latencies)
                lost += load.leave().lost() + cost.sent.lost()
                yield Figure("scale", "with screen: lost or refused", lost, "", 0)


def press_keys(terminal: Terminal, nodes: int) -> Iterator[Figure]:
    """End and Home in turn: each is answered when the last, or the first, node of the fleet is drawn."""
    times = []
    for turn in range(20):
        key, answer = (HOME_KEY, 0) if turn % 2 else (END_KEY, nodes - 1)
        times.append(terminal.press(key, f"bench-{answer:05}".encode(), 3))
        time.sleep(random.uniform(0.2, 0.5))
    answered = [seconds * 1000 for seconds in times if seconds is not None]
    note = f"{len(times) - len(answered)} of {len(times)} not answered" if len(answered) < len(times) else ""
    yield Figure("scale", "with screen: a key answered, median", percentile(answered, 50), "ms", note=note)
    longest = max(answered) if len(answered) == len(times) else None
    yield Figure("scale", "with screen: a key answered, longest", longest, "ms", 100, note=note)


def time_heartbeats(program: Program, load: Load, path: pathlib.Path) -> Iterator[Figure]:
    """From sending to the registry; the clock of both is the same."""
    say("    timing each heartbeat")
    load.report()
    program.process.send_signal(signal.SIGUSR1)
    time.sleep(WINDOW_SECONDS / 2)
    program.process.send_signal(signal.SIGUSR2)
    late = load.report()
    for _ in range(100):
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            result = json.loads(path.read_text(encoding="utf-8"))
            break
    else:
        raise Failed("the server did not write its latencies")
    note = f"{result['count']:,} heartbeats {late.warning()}".strip()
    yield Figure("scale", "with screen: from sending to the registry, p50", 1000 * result["50"], "ms", note=note)
    yield Figure("scale", "with screen: from sending to the registry, p99", 1000 * result["99"], "ms", 100, note=note)
    yield Figure("scale", "with screen: from sending to the registry, longest", 1000 * result["100"], "ms")


def cost(options: argparse.Namespace) -> Iterator[Figure]:
    """What a heartbeat costs, and how that grows: 1 and 8 GPUs; a hundredth, a tenth, and all of the nodes."""
    for gpus, at_most in ((1, 120), (8, 350)):
        for nodes in (options.nodes // 100, options.nodes // 10, options.nodes):
            say(f"cost: server.py --headless, {nodes:,} nodes with {gpus} GPU{'s' * (gpus > 1)}")
            ours, lost = measure_fleet(nodes, gpus, headless)
            name, sent = f"{nodes:,} nodes with {gpus}", ours.sent
            yield Figure("cost", f"{name}: processor a heartbeat", ours.microseconds, "µs", note=sent.warning())
            yield Figure("cost", f"{name}: wire a heartbeat", sent.sent_bytes / sent.sent, "bytes up", at_most)
            yield Figure("cost", f"{name}: answers a heartbeat", sent.received_bytes / sent.sent, "bytes down")
            yield Figure("cost", f"{name}: memory", ours.megabytes, "MB RSS", note=f"{lost} lost" if lost else "")


def restart(options: argparse.Namespace) -> Iterator[Figure]:
    """The server ends and starts again. Each node comes back in its own time, with the ten samples that it kept."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(Program(*headless(port)))
        first.wait_until_listening(port)
        load = stack.enter_context(Load(Plan(port, options.nodes, backlog=10, reconnect=True)))
        say(f"restart: {options.nodes:,} nodes connect")
        load.connect()
        load.report()
        say("restart: the server is stopped, and started again")
        stopped = time.monotonic()
        first.stop()
        second = stack.enter_context(Program(*headless(port)))
        started = second.wait_until_listening(port)
        reports = load.wait_until(options.nodes, 60)
        yield from restart_figures(reports, options.nodes, stopped, started)


def restart_figures(reports: Sequence[Report], nodes: int, stopped: float, started: float) -> Iterator[Figure]:
    """How a fleet came back."""
    joined = [moment for report in reports for moment in report.joined]
    seconds = collections.Counter(int(moment - started) for moment in joined)
    histogram = " ".join(f"{seconds[second]:,}" for second in range(max(seconds) + 1))
    ended = sum((collections.Counter(report.ended) for report in reports), collections.Counter())
    refused = sum(ended.values()) - nodes - ended["nobody there"]  # each session ended once with the old server
    steady = nodes / (max(joined) - started)
    highest = max((seconds[second] for second in seconds if second), default=0)
    yield Figure("restart", "all back, from the end of the old server's listening", max(joined) - stopped, "s", 15)
    since_start = max(joined) - started
    yield Figure("restart", "all back, from the new server's start", since_start, "s", note=f"after {started - stopped:.1f} s")
    yield Figure("restart", "refused or broken", refused, "", 0, note=str(dict(ended)))
    yield Figure("restart", "new sessions, mean", steady, "/s", note=f"in each second: {histogram}")
    yield Figure("restart", "most new sessions in a second after the first, of the mean", highest / steady, "x", 3)


def rows(options: argparse.Namespace) -> Iterator[Figure]:
    """Synthetic rows, scrolled. Five times the fleet at 30 keys a second: what is known must not cost, what is shown may."""
    yield from scroll(options.nodes, 60)
    yield from scroll(5 * options.nodes, 30)


def scroll(count: int, keys_per_second: int) -> Iterator[Figure]:
    """Page down, down, page up and up in turn, a second each; a frame for each key."""
    keys = itertools.cycle(key for key in (b"\x1b[6~", b"\x1b[B", b"\x1b[5~", b"\x1b[A") for _ in range(keys_per_second))
    say(f"rows: {count:,} in the registry, {keys_per_second} keys/s")
    port, terminal, name = free_port(), Terminal(*SCREEN_SIZE), f"{count:,} rows, {keys_per_second} keys/s"
    with Program(*role(serve_rows, count, port), terminal=terminal) as program:
        program.wait_until_listening(port, 90)
        time.sleep(2)
        frames, cpu, drawing, started = terminal.counts()[0], program.cpu_seconds(), program.main_thread_seconds(), time.monotonic()
        due = started
        while (due := due + 1 / keys_per_second) < started + WINDOW_SECONDS:
            terminal.type(next(keys))
            time.sleep(max(due - time.monotonic(), 0))
        elapsed = time.monotonic() - started
        frames, cpu = terminal.counts()[0] - frames, program.cpu_seconds() - cpu
        drawing = program.main_thread_seconds() - drawing
        yield Figure("rows", f"{name}: frames", frames / elapsed, "/s", at_least=0.96 * keys_per_second)
        most = 30 if keys_per_second <= 30 else None
        yield Figure("rows", f"{name}: the screen's thread", 100 * drawing / elapsed, "% of a core", most)
        yield Figure("rows", f"{name}: all", 100 * cpu / elapsed, "% of a core", note="with 1,000 heartbeats/s")
        yield Figure("rows", f"{name}: memory", program.megabytes(), "MB RSS")


def agent_command(gpus: int, port: int, *more: str) -> tuple[str, ...]:
    """From bytecode, as in the .pyz: a script compiled at its start keeps 5 MB of the compiler's memory."""
    seed = {1: "2", 8: "1"}[gpus]
    options = f"--hardware simulated --seed {seed} --id bench-{gpus} --server 127.0.0.1:{port}"
    return ("-c", "import node, sys; sys.exit(node.main())", *options.split(), *more)


def agent(_options: argparse.Namespace) -> Iterator[Figure]:
    """The agent with simulated GPUs at 1 Hz: without a screen, with a quiet one, with one full of change."""
    port = free_port()
    with Program(*headless(port), core=LOAD_CORE) as orchestrator:
        orchestrator.wait_until_listening(port)
        yield from agent_headless(port)
        for gpus in (1, 8):
            name = f"screen, {gpus} GPU{'s' * (gpus > 1)}"
            yield from agent_screen(f"quiet {name}", 2, None, agent_command(gpus, port))
            yield from agent_screen(f"restless {name}", 10, 57, role(run_restless_agent, gpus, port))


def agent_headless(port: int) -> Iterator[Figure]:
    """Both at once, each with a relay that counts what it sends."""
    say("agent: headless, with 1 and 8 GPUs")
    with contextlib.ExitStack() as stack:
        relays = {gpus: Relay(port) for gpus in (1, 8)}
        agents = {
            gpus: stack.enter_context(Program(*agent_command(gpus, relay.port, "--headless"))) for gpus, relay in relays.items()
        }
        time.sleep(12)  # the first answers take what is sent once
        cpu = {gpus: program.cpu_seconds() for gpus, program in agents.items()}
        counts = {gpus: (relay.bytes_up, relay.bytes_down, relay.messages) for gpus, relay in relays.items()}
        time.sleep(2 * WINDOW_SECONDS)
        for gpus, program in agents.items():
            name, relay = f"headless, {gpus} GPU{'s' * (gpus > 1)}", relays[gpus]
            used = program.cpu_seconds() - cpu[gpus]
            up, down, messages = counts[gpus]
            beats = max(relay.messages - messages, 1)
            few = gpus == 1
            yield Figure("agent", f"{name}: processor", 100 * used / 2 / WINDOW_SECONDS, "% of a core", 0.3 if few else None)
            yield Figure("agent", f"{name}: memory", program.megabytes(), "MB RSS", 40 if few else None)
            yield Figure("agent", f"{name}: wire a heartbeat", (relay.bytes_up - up) / beats, "bytes up", 120 if few else 350)
            yield Figure("agent", f"{name}: answers a heartbeat", (relay.bytes_down - down) / beats, "bytes down")


def agent_screen(name: str, at_most: float, frames_at_least: float | None, command: tuple[str, ...]) -> Iterator[Figure]:
    """The agent on a terminal."""
    say(f"agent: {name}")
    terminal = Terminal(120, 45)
    with Program(*command, terminal=terminal) as program:
        time.sleep(4)
        (frames, written), cpu = terminal.counts(), program.cpu_seconds()
        time.sleep(WINDOW_SECONDS)
        cpu, (frames_now, written_now) = program.cpu_seconds() - cpu, terminal.counts()
        frames = frames_now - frames
        note = f"{(written_now - written) / max(frames, 1):,.0f} bytes a frame"
        yield Figure("agent", f"{name}: processor", 100 * cpu / WINDOW_SECONDS, "% of a core", at_most)
        yield Figure("agent", f"{name}: frames", frames / WINDOW_SECONDS, "/s", at_least=frames_at_least, note=note)


def cadence(options: argparse.Namespace) -> Iterator[Figure]:
    """A fleet of twice the budget is told to slow down, and told again when half of it leaves."""
    yield from cadence_of_registry()
    nodes = max(options.nodes // 5, 100)
    say(f"cadence: {nodes:,} nodes, a budget of {nodes // 2:,} heartbeats/s")
    port = free_port()
    with Program(*role(serve_budget, nodes // 2, port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, nodes)) as load:
            load.connect()
            yield from watch_cadence(load, "all", 2.0, nodes)
            load.ask("leave", 2)
            time.sleep(1)
            yield from watch_cadence(load, "half of them left", 1.0, nodes - nodes // 2)


def serve_budget(heartbeats_per_second: int, port: int) -> None:
    """server.py with another budget."""
    server.HEARTBEATS_PER_SECOND = heartbeats_per_second
    sys.exit(server.main(list(headless(port)[1:])))


def watch_cadence(load: Load, name: str, expected: float, nodes: int) -> Iterator[Figure]:
    """Until all keep the cadence, and then how much they send."""
    started, told = time.monotonic(), 0.0
    while told < nodes and time.monotonic() < started + 25:
        time.sleep(0.5)
        told = sum(count for interval, count in load.report().intervals.items() if abs(interval / expected - 1) < 0.02)
    took = time.monotonic() - started
    load.report()
    time.sleep(4)
    sent = load.report().sent / 4
    yield Figure("cadence", f"{name}: told {expected:g} s", 100 * told / nodes, "%", at_least=99.9, note=f"after {took:.0f} s")
    yield Figure("cadence", f"{name}: heartbeats", sent, "/s", 1.05 * nodes / expected)


def cadence_of_registry() -> Iterator[Figure]:
    """At full scale, without its 20,000 sockets: the registry alone decides."""
    now, half = 0.0, server.HEARTBEATS_PER_SECOND
    registry = server.Registry(1.0, 3 * half, clock=lambda: now)
    sessions = [registry.open(pb.HeartbeatRequest(node_id=f"bench-{number}"), "10.0.0.1") for number in range(2 * half)]

    def told() -> float:
        nonlocal now
        now += 1
        for session in sessions:
            registry.heartbeat(session, pb.HeartbeatRequest())
        registry.watch()
        return registry.acknowledgement(sessions[0]).heartbeat_interval_milliseconds / 1000

    name = f"{2 * half:,} nodes, a budget of {half:,} heartbeats/s"
    slow = told()
    yield Figure("cadence", f"{name}: told", slow, "s", 2, 2)
    for session in sessions[half:]:
        registry.heartbeat(session, pb.HeartbeatRequest(leaving=True))
    del sessions[half:]
    yield Figure("cadence", f"{name}, half left: told", told(), "s", 1, 1)


def soak(options: argparse.Namespace) -> Iterator[Figure]:
    """Nodes come and go, half of them without a goodbye: a tenth of the fleet alive, twice the fleet's names in turn. Each name has
    come once when memory is first taken, and comes once more until the end."""
    alive, ids, port = options.nodes // 10, 2 * options.nodes, free_port()
    end = 60 * options.minutes
    settled = min(300.0, end / 6)
    life = 0.8 * alive / ids  # of a node, for each second in which all names come once
    with Program(*headless(port)) as program:
        program.wait_until_listening(port)
        with Load(Plan(port, alive, ids=ids, life_seconds=life * settled)) as load:
            started, early, sessions, since = time.monotonic(), 0.0, 0, 0
            while (elapsed := time.monotonic() - started) < end:
                time.sleep(5)
                sessions += sum(load.report().ended.values())
                if not early and elapsed >= settled:
                    early, since = program.megabytes(), sessions
                    load.ask("live", math.ceil(life * (end - settled)))
                say(f"    {elapsed / 60:.1f} of {options.minutes:g} minutes, {sessions:,} ended, {program.megabytes():.1f} MB")
            grown, since = program.megabytes() - early, sessions - since
            note = f"{alive:,} alive, {ids:,} names, {sessions:,} sessions"
            yield Figure("soak", f"memory after {settled / 60:.0f} minutes", early, "MB RSS", note=note)
            yield Figure("soak", f"growth until {options.minutes:g} minutes", 100 * grown / early, "%", 5)
            yield Figure("soak", "growth for each session since", 1e6 * grown / since, "bytes", note=f"{since:,} sessions")


def start(_options: argparse.Namespace) -> Iterator[Figure]:
    """The packed programs against the same scripts in a plain virtual environment: interleaved, median."""
    dist = ROOT / "dist"
    if not (dist / "server.pyz").exists():
        say("start: packing")
        subprocess.run([sys.executable, "build.py"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    base = getattr(sys, "_base_executable", sys.executable)
    for name in ("server", "node"):
        say(f"start: {name}.pyz")
        packed, plain = dist / f"{name}.pyz", ROOT / f"{name}.py"
        with tempfile.TemporaryDirectory() as cache:
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")} | {"EDGE_CACHE": cache}
            cold = statistics.median(cold_start(base, packed, environment) for _ in range(3))
            warms, plains = [], []
            for _ in range(15):
                warms.append(run_seconds([base, packed, "--version"], environment))
                plains.append(run_seconds([sys.executable, plain, "--version"], environment))
            update = statistics.median(start_new_version(base, packed, environment) for _ in range(5))
        warm, venv = statistics.median(warms), statistics.median(plains)
        yield Figure("start", f"{name}.pyz: size", packed.stat().st_size / 1e6, "MB")
        yield Figure("start", f"{name}.pyz: warm", 1000 * warm, "ms", note=f"plain virtual environment {1000 * venv:.0f} ms")
        yield Figure("start", f"{name}.pyz: warm, of the plain environment's", warm / venv, "x", 1.05)
        yield Figure("start", f"{name}.pyz: cold, beyond warm", cold - warm, "s", 1.0)
        yield Figure("start", f"{name}.pyz: a new version of it, of warm", update / warm, "x", 2.0)


def cold_start(python: str, packed: pathlib.Path, environment: dict[str, str]) -> float:
    """A first start on a box."""
    shutil.rmtree(pathlib.Path(environment["EDGE_CACHE"], "edge-compute-node"), ignore_errors=True)
    return run_seconds([python, packed, "--version"], environment)


def start_new_version(python: str, packed: pathlib.Path, environment: dict[str, str]) -> float:
    """A first start where another version has left the libraries."""
    for program in pathlib.Path(environment["EDGE_CACHE"], "edge-compute-node").glob(f"{packed.stem}-*"):
        shutil.rmtree(program)
    return run_seconds([python, packed, "--version"], environment)


def run_seconds(command: Sequence[str | pathlib.Path], environment: dict[str, str]) -> float:
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=120)
    return time.monotonic() - started


# ---- The program ----

Section = Callable[[argparse.Namespace], Iterator[Figure]]
SECTIONS: dict[str, Section] = {
    section.__name__: section for section in (scale, cost, restart, rows, agent, cadence, start, soak)
}  # fmt: skip
LONG = ("soak",)


def measure_all(options: argparse.Namespace) -> Iterator[Figure]:
    """Each section's figures; one that can't be measured says so, and the next goes on."""
    for name in options.names or [name for name in SECTIONS if name not in LONG]:
        started = time.monotonic()
        try:
            yield from SECTIONS[name](options)
        except (Failed, OSError, subprocess.SubprocessError) as error:
            say(f"{name}: {error}")
            yield Figure(name, "measured", None, "", 0, note=str(error))
        say(f"{name}: done in {time.monotonic() - started:.0f} s")


def print_table(figures: Sequence[Figure]) -> None:
    """All figures, with what was promised of each."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold dim", pad_edge=False)
    for title in ("SECTION", "FIGURE", "VALUE", "", "PROMISED", "", "NOTE"):
        table.add_column(title, justify="right" if title == "VALUE" else "left", style="dim" if title == "NOTE" else "")
    section = ""
    for figure in figures:
        promise = "" if figure.at_most is None else f"≤ {figure.at_most:g}"
        promise = f"≥ {figure.at_least:g}" if figure.at_least is not None and figure.at_most is None else promise
        verdict = figure.verdict()
        table.add_row(
            figure.section if figure.section != section else "", figure.name, show(figure.value), figure.unit, promise,
            f"[{'green' if verdict == 'met' else 'bold red'}]{verdict}[/]" if verdict else "", figure.note,
        )  # fmt: skip
        section = figure.section
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def show(value: float | None) -> str:
    """Three digits where there are decimals."""
    if value is None:
        return node.MISSING
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def machine() -> dict[str, Any]:
    """What all this was measured on."""
    model = next((line.partition(": ")[2] for line in read_lines("/proc/cpuinfo") if line.startswith("model name")), "")
    load = f"{os.getloadavg()[0]:.1f}"
    return {"processor": model, "cores": len(CORES), "python": platform.python_version(), "grpcio": grpc.__version__, "load": load}


def read_lines(path: str) -> list[str]:
    with contextlib.suppress(OSError):
        return pathlib.Path(path).read_text(encoding="utf-8").splitlines()
    return []


def parse_options(argv: Sequence[str] | None) -> argparse.Namespace:
    about = "\n".join(f"  {name:9}{section.__doc__}" + "  (only by name)" * (name in LONG) for name, section in SECTIONS.items())
    parser = argparse.ArgumentParser(
        prog="bench", description="What a fleet costs, measured.", epilog=f"sections:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", nargs="*", metavar="SECTION", help="which to run (default all but the long ones)")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of the table")
    parser.add_argument("--nodes", type=int, default=NODES, metavar="COUNT", help=f"in the fleet, at least 100 (default {NODES})")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the section soak (default 30)")
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SECTIONS]
    if unknown:
        parser.error(f"no section {', '.join(unknown)}: there are {', '.join(SECTIONS)}")
    if options.nodes < 100:
        parser.error("--nodes must be at least 100")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sections; return 1 when a promise is not held."""
    options = parse_options(argv)
    if SERVER_CORE == LOAD_CORE:
        say("one core only: the generator takes what the server needs, and no figure is to be trusted")
    os.sched_setaffinity(0, {LOAD_CORE})
    raise_open_files()
    figures = []
    for figure in measure_all(options):
        figures.append(figure)
        say(f"  {figure.name}: {show(figure.value)} {figure.unit} {figure.verdict()} {figure.note}".rstrip())
    if options.json:
        lines = [figure._asdict() | {"verdict": figure.verdict()} for figure in figures]
        print(json.dumps({"machine": machine(), "figures": lines}, indent=1))
    else:
        print(", ".join(f"{name} {value}" for name, value in machine().items()))
        print_table(figures)
    return int(any(figure.verdict() == "MISSED" for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
