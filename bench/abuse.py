"""The section abuse: what one peer can do to a server with honest nodes, and what it can't."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gzip
import itertools
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import node_pb2 as pb
import server
from bench.figures import Failed, Figure, say
from bench.generator import WOULD_BLOCK, Load, Plan
from bench.http2 import (
    CANCEL,
    DATA,
    END_STREAM,
    GREETING,
    HEADERS,
    RST_STREAM,
    STREAM_CALL,
    UNARY_CALL,
    WINDOW_UPDATE,
    data_frame,
    frame,
    request_headers,
    split_frames,
)
from bench.processes import Program, free_port, role
from edge.credentials import SERVER_NAME
from edge.fleet.row import State, state_of
from edge.protocol import LOST_SECONDS

HONEST = 100
PLANTED = "planted"  # a node that was lost before: the log must still say so after each attack
ELSEWHERE = "127.0.0.2"  # where the attacker is: all that one peer has is one address
ATTACK_SECONDS = 5.0
AT_MOST_MEGABYTES = 250  # of the whole server
OPENING = GREETING + frame(WINDOW_UPDATE, 0, 0, (2**30).to_bytes(4, "big"))  # the server may answer as much as it likes


def beat(**fields: Any) -> bytes:
    return pb.HeartbeatRequest(**fields).SerializeToString()


def unary(stream: int, message: bytes, authorization: str = "") -> bytes:
    return request_headers(stream, UNARY_CALL, b"", authorization) + data_frame(message, END_STREAM, stream)


def streamed(stream: int, *messages: bytes, authorization: str = "") -> bytes:
    opening = request_headers(stream, authorization=authorization)
    return opening + b"".join(data_frame(message, 0, stream) for message in messages)


MEGABYTE = b"\0" + (2**20).to_bytes(4, "big") + b"\x0a" * (2**20 - 1)
EMPTY = b"\x2a\x00" * 524_000  # samples of a backlog
ZIPPED = gzip.compress(beat(node_id="zip", processes=pb.ProcessList(processes=[pb.Process()] * 32_766)))
LARGE = pb.ProcessList(processes=[pb.Process(name="x" * 250)] * 235)
LARGER = pb.ProcessList(processes=[pb.Process(name="x" * 250)] * 640)


class Attack(NamedTuple):
    """What is sent so many times a second, over so many connections: by the number of the turn and of the stream."""

    name: str
    connections: int
    per_second: int
    data: Callable[[int, int], bytes]


def first_version(turn: int, stream: int) -> bytes:
    return unary(stream, beat(node_id=f"unary-{turn % 10_000}", gpu_temp=50))


def reset(stream: int, *messages: bytes) -> bytes:
    return streamed(stream, *messages) + frame(RST_STREAM, 0, stream, CANCEL)


def zipped(_: int, stream: int) -> bytes:
    return request_headers(stream, STREAM_CALL, b"gzip") + data_frame(ZIPPED, 0, stream, compressed=True)


def unfinished(_: int, stream: int) -> bytes:
    """A message of a megabyte, without its end."""
    parts = (frame(DATA, 0, stream, MEGABYTE[start : start + 2**14]) for start in range(0, len(MEGABYTE), 2**14))
    return request_headers(stream) + b"".join(parts)


ATTACKS = (
    Attack("streams opened and reset, 20,000/s", 1, 20_000, lambda _, stream: reset(stream)),
    Attack("silent streams, 20,000/s", 100, 20_000, lambda _, stream: streamed(stream)),
    Attack("unary calls, 10,000/s", 100, 10_000, first_version),
    Attack("unary calls, 18,000/s", 100, 18_000, first_version),
    Attack("messages of a megabyte without their end, 100/s", 50, 100, unfinished),
    Attack("zipped messages, 300/s", 300, 300, zipped),
    Attack("524,000 empty samples, 10/s", 1, 10, lambda _, stream: unary(stream, beat(node_id="empty") + EMPTY)),
    Attack("joins and goodbyes, 1,000/s", 20, 1000, lambda _, stream: streamed(stream, beat(node_id="flip"), beat(leaving=True))),
    Attack("torn streams, 1,000/s", 20, 1000, lambda turn, stream: reset(stream, beat(node_id=f"torn-{turn % 100}"))),
    Attack("rows of 60 kB, 300/s", 20, 300, lambda turn, stream: unary(stream, beat(node_id=f"large-{turn}", processes=LARGE))),
    Attack("rows of 160 kB, 100/s", 20, 100, lambda turn, stream: unary(stream, beat(node_id=f"larger-{turn}", processes=LARGER))),
)  # fmt: skip


class Connection:
    """One connection of an attacker, who reads what comes and looks at none of it."""

    def __init__(self, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 60, (ELSEWHERE, 0))
        if tls:
            self._socket = tls.wrap_socket(self._socket)
        self._socket.setblocking(False)
        self._unsent = OPENING
        self._streams = itertools.count(1, 2)

    def attack(self, data: Callable[[int, int], bytes], turn: int) -> None:
        if len(self._unsent) < 2**21:  # else the server takes no more of it
            self._unsent += data(turn, next(self._streams))

    def flow(self) -> None:
        """Send and read what goes at once. Raises OSError when the server hangs up."""
        with contextlib.suppress(*WOULD_BLOCK):
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        with contextlib.suppress(*WOULD_BLOCK):
            while self._socket.recv(65_536):
                pass


def run_attack(attack: Attack, port: int, seconds: float, tls: ssl.SSLContext | None = None) -> None:
    """Attack for so long. In the attacker's process."""
    os.nice(10)  # the honest nodes come from the same core, and must not be what is slow
    connections = [Connection(port, tls) for _ in range(attack.connections)]
    started, turn = time.monotonic(), 0
    while (now := time.monotonic()) - started < seconds:
        due = min(int((now - started) * attack.per_second), turn + 1000)  # a machine that is too slow sends less
        for turn in range(turn, due):  # noqa: B020
            connections[turn % len(connections)].attack(attack.data, turn)
        turn = max(turn, due)
        for index, connection in enumerate(connections):
            try:
                connection.flow()
            except OSError:
                with contextlib.suppress(OSError):
                    connections[index] = Connection(port, tls)
        time.sleep(0.005)


def run_listed_attack(port: int, number: int) -> None:
    """Body of the attacker's process."""
    run_attack(ATTACKS[number], port, ATTACK_SECONDS)


class WatchedRegistry(server.Registry):
    """Looks twenty times a second at how old the honest nodes are. SIGUSR1 has it write the worst, and what the log has kept."""

    def __init__(self, path: pathlib.Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._path = path
        self._worst_seconds = 0.0
        self._asked = threading.Event()
        signal.signal(signal.SIGUSR1, lambda *_: self._asked.set())
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        names = [f"bench-{number:05}" for number in range(HONEST)]
        while True:
            rows = self.rows(names)
            ages = [self.clock() - row.heartbeat_at for row in rows if row]
            self._worst_seconds = max(self._worst_seconds, *ages, 0.0) if len(ages) == HONEST else 0.0
            if self._asked.is_set():
                self._asked.clear()
                kept = [(event.kind, event.node_id) for event in self.log.since(0)[1]]
                online = sum(bool(row) and state_of(row, self.clock()) is State.ONLINE for row in rows if row)
                lines = sum(kind == "refused" for kind, _ in kept)
                result = {"worst": self._worst_seconds, "kept": ("lost", PLANTED) in kept, "online": online, "refused": lines}
                partial = self._path.with_suffix(".part")
                partial.write_text(json.dumps(result), encoding="utf-8")
                partial.rename(self._path)
                self._worst_seconds = 0.0
            time.sleep(0.05)


def serve_watched(path: str, port: int, *options: str) -> None:
    """server.py as it is, and watched."""
    make_registry = functools.partial(WatchedRegistry, pathlib.Path(path))
    sys.exit(server.main(["--headless", "--listen", f"127.0.0.1:{port}", *options], make_registry))


def ask(program: Program, path: pathlib.Path) -> dict[str, Any]:
    """What the registry saw since the question before."""
    path.unlink(missing_ok=True)
    program.process.send_signal(signal.SIGUSR1)
    give_up_at = time.monotonic() + 10
    while time.monotonic() < give_up_at and program.process.poll() is None:
        with contextlib.suppress(OSError):
            result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return result
        time.sleep(0.02)
    raise Failed("the server does not answer")


def abuse(_options: argparse.Namespace) -> Iterator[Figure]:
    """What one peer can do: each attack for some seconds, with 100 honest nodes that must not notice."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "seen")
        with Program(*role(serve_watched, str(path), port)) as program:
            program.wait_until_listening(port)
            with Load(Plan(port, HONEST, reconnect=True)) as load:
                load.connect()
                say(f"abuse: a node is lost, in {LOST_SECONDS:g} s")
                plant(port)
                time.sleep(LOST_SECONDS + 2)
                rest = program.megabytes()
                highest = rest
                ask(program, path)
                for number, attack in enumerate(ATTACKS):
                    say(f"abuse: {attack.name}")
                    peak = run_and_watch(program, port, number)
                    highest = max(highest, peak)
                    seen, lost = ask(program, path), load.report().lost()
                    yield Figure("abuse", f"{attack.name}: memory above rest", peak - rest, "MB", 200)
                    yield Figure("abuse", f"{attack.name}: oldest honest node", seen["worst"], "s", 3)
                    broken = lost + HONEST - seen["online"] + (not seen["kept"])
                    note = f"{lost} lost or refused, {seen['online']} online, planted event {'kept' if seen['kept'] else 'GONE'}"
                    yield Figure("abuse", f"{attack.name}: broken", broken, "", 0, note=note)
                yield Figure("abuse", "memory, at its highest", highest, "MB RSS", AT_MOST_MEGABYTES, note=f"{rest:.0f} at rest")


def plant(port: int) -> None:
    """A node comes and is torn away."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(OPENING + streamed(1, beat(node_id=PLANTED)))
        time.sleep(0.5)


def run_and_watch(program: Program, port: int, number: int) -> float:
    """Attack; return the most memory that the server took, in MB, until all that waited is served. Raises Failed when it ends."""
    attacker = multiprocessing.get_context("spawn").Process(target=run_listed_attack, args=(port, number), daemon=True)
    attacker.start()

    def serve_out() -> None:
        attacker.join()
        wait_until_served(port)

    served = threading.Thread(target=serve_out, daemon=True)
    served.start()
    try:
        return watch_memory(program, served, ATTACK_SECONDS + 60, ATTACKS[number].name)
    finally:
        attacker.kill()


def watch_memory(program: Program, served: threading.Thread, seconds: float, name: str) -> float:
    """The most memory that the server takes until a thread ends, in MB. Raises Failed when the server ends, or this does not."""
    peak, give_up_at = 0.0, time.monotonic() + seconds
    while served.is_alive():
        if program.process.poll() is not None:
            raise Failed(f"the server has ended under: {name}")
        peak = max(peak, program.megabytes())
        if peak > 4 * AT_MOST_MEGABYTES or time.monotonic() > give_up_at:
            raise Failed(f"{name}: {peak:.0f} MB, and no end")
        time.sleep(0.02)
    return peak


def wait_until_served(port: int, tls: ssl.SSLContext | None = None) -> None:
    """Until a call of each kind is answered, which waits behind all that came before it."""
    for call in (unary(1, beat(node_id="last")), streamed(1, beat(node_id="last-stream"))):
        wait_for_answer(port, call, tls)


def wait_for_answer(port: int, call: bytes, tls: ssl.SSLContext | None = None, seconds: float = 60) -> bool:
    """Make a call. Tells whether it is answered, with a refusal too, and not hung up on. Raises OSError where nobody answers."""
    with socket.create_connection(("127.0.0.1", port), seconds) as plain:
        with tls.wrap_socket(plain, server_hostname=SERVER_NAME) if tls else plain as connection:
            connection.sendall(OPENING + call)
            rest, kinds = b"", set[int]()
            while not kinds & {HEADERS, RST_STREAM} and (data := connection.recv(65_536)):
                frames, rest = split_frames(rest + data)
                kinds |= {kind for kind, *_ in frames}
            return bool(kinds & {HEADERS, RST_STREAM})
