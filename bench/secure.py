"""The section secure: what TLS and tokens cost beside the open server in the same run, and who comes without a token."""

from __future__ import annotations

import argparse
import contextlib
import functools
import multiprocessing
import os
import pathlib
import re
import select
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection as Pipe
from typing import NamedTuple

from bench.abuse import (
    ATTACK_SECONDS,
    ELSEWHERE,
    HONEST,
    Attack,
    ask,
    beat,
    run_attack,
    serve_watched,
    streamed,
    unary,
    wait_for_answer,
    wait_until_served,
    watch_memory,
)
from bench.agent import agent_command
from bench.figures import Failed, Figure, percentile, say
from bench.generator import WOULD_BLOCK, Load, Plan, tls_context
from bench.http2 import ACKNOWLEDGES, GREETING, PING, frame, split_frames
from bench.processes import LOAD_CORE, ROOT, Program, environment, free_port, headless, raise_open_files, role
from bench.restart import come_back
from bench.scale import measure_fleet
from edge.backoff import backoff
from edge.credentials import SECRET_BYTES, TOKEN_CHARACTERS, Role, Token, parse_token
from edge.protocol import FIRST_ANSWER_SECONDS, FIRST_MESSAGE_SECONDS, SERVER_PING_SECONDS

SOME_KEY = bytes.fromhex("036b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296")  # P-256's generator
WRONG = Token(SOME_KEY, Role.NODE, "ffffff", bytes(SECRET_BYTES)).bearer()  # well made, so that it is looked at to its end
BEAT = beat(node_id="stranger")
CROWD_SECONDS = FIRST_MESSAGE_SECONDS + 4  # that a crowd stays: what says nothing should be gone by then
SITTING_SECONDS = SERVER_PING_SECONDS + 10  # the same of those who answer pings, and may stay
DIALS_PER_SECOND = 4000  # of one attacker
NEWCOMER_SECONDS = 3.0  # from an attack's beginning to a node that wants to get in
AT_MOST_MEGABYTES = 900  # of the whole server: a fleet that it is made for takes as much
CROWD_PROCESSES = 2  # a process has no more than 20,000 files on many systems
LINES = 2  # of the log for one attack: one a minute, and an attack may lie across the end of one


class Way(NamedTuple):
    """How a server is started, and what it wants."""

    name: str
    options: tuple[str, ...] = ()
    token: str = ""


def secure(options: argparse.Namespace) -> Iterator[Figure]:
    """The secure server beside the open one: a heartbeat, a connection, a fleet's return, a node; and who has no token."""
    with tempfile.TemporaryDirectory() as folder:
        ways = Way("open"), Way("secure", ("--secure", "--state", folder), new_token(folder))
        yield from secure_cost(options.nodes, *ways)
        yield from secure_restart(options.nodes, *ways)
        yield from secure_agent(*ways)
        for way in ways:
            yield from strangers(way, options.nodes)


def new_token(folder: str) -> str:
    """Make a node's token, and the server's key with it. Raises Failed."""
    answer = subprocess.run(
        [sys.executable, "server.py", "token", "new", "--state", folder],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(rf"edge1-[\w-]{{{TOKEN_CHARACTERS - 6}}}", answer.stdout)
    if not found:
        raise Failed(f"no token: {answer.stderr.strip()}")
    return found[0]


def command(way: Way, port: int) -> tuple[str, ...]:
    return headless(port, *way.options)


def secure_cost(nodes: int, *ways: Way) -> Iterator[Figure]:
    """The whole fleet, 8 GPUs a node at 1 Hz."""
    costs = []
    for way in ways:
        say(f"secure: {way.name}, {nodes:,} nodes")
        cost, lost = measure_fleet(nodes, 8, functools.partial(command, way), way.token)
        costs.append(cost)
        yield from cost.figures("secure", way.name)[1:3]
        yield Figure("secure", f"{way.name}: lost or refused", lost, "", 0)
    plain, tls = costs
    yield Figure("secure", "secure: a heartbeat, of the open one's", tls.microseconds / plain.microseconds, "x", 1.1)
    yield Figure("secure", "secure: processor of a heartbeat, more", tls.microseconds - plain.microseconds, "µs")
    connection, of_open = (1000 * (cost.megabytes - cost.rest_megabytes) / nodes for cost in (tls, plain))
    yield Figure(
        "secure", "secure: memory more a connection", connection - of_open, "KB", 40, note=f"{connection:.1f}, {of_open:.1f} open"
    )


def secure_restart(nodes: int, *ways: Way) -> Iterator[Figure]:
    """The return of the whole fleet. The section restart says what is promised of the open server."""
    for way in ways:
        for figure in come_back(nodes, *way.options, token=way.token):
            at_most = {"all back, from the new server's start": 20, "refused or broken": 0}.get(figure.name) if way.token else None
            yield figure._replace(section="secure", name=f"{way.name}: {figure.name}", at_most=at_most)


def secure_agent(*ways: Way) -> Iterator[Figure]:
    """What a node takes, without a screen and with one GPU."""
    megabytes = []
    for way in ways:
        say(f"secure: a node of the {way.name} server")
        port = free_port()
        with tempfile.TemporaryDirectory() as folder, Program(*headless(port, *way.options), core=LOAD_CORE) as server:
            server.wait_until_listening(port)
            variables = {"XDG_STATE_HOME": folder} | ({"EDGE_TOKEN": way.token} if way.token else {})
            with Program(*agent_command(1, port, "--headless"), variables=variables) as node:
                time.sleep(12)
                if not node.is_connected():
                    raise Failed(f"the node of the {way.name} server is not connected")
                megabytes.append(node.megabytes())
        yield Figure("secure", f"a node of the {way.name} server: memory", megabytes[-1], "MB RSS")
    yield Figure("secure", "a node of the secure server: memory more", megabytes[1] - megabytes[0], "MB", 4)


# ---- Who has no token ----


class Crowd(NamedTuple):
    """Connections that come all at once, and stay as long as they are let."""

    name: str
    of_the_most: float  # how many, of all that come in the largest crowds
    says: Callable[[], bytes] = bytes
    ways: tuple[str, ...] = ("open", "secure")
    does_handshake: bool = False  # then says it, and answers pings


def client_hello() -> bytes:
    """How TLS begins."""
    said = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        stranger_context().wrap_bio(ssl.MemoryBIO(), said).do_handshake()
    return said.read()


CROWDS = (
    Crowd("connections that never speak", 1),
    Crowd("TLS hellos and no more", 1, client_hello),
    Crowd("greetings in plain HTTP/2", 1, lambda: GREETING, ("secure",)),
    Crowd("greetings without a call, pings answered", 0.1, lambda: GREETING, does_handshake=True),
)
STRANGERS = (
    Attack("calls without a token", 20, 20_000, lambda _, stream: unary(stream, BEAT)),
    Attack("streams without a token", 20, 20_000, lambda _, stream: streamed(stream, BEAT)),
    Attack("calls with a wrong token", 20, 20_000, lambda _, stream: unary(stream, BEAT, WRONG)),
    Attack("streams with a wrong token", 20, 20_000, lambda _, stream: streamed(stream, BEAT, authorization=WRONG)),
)  # fmt: skip


def stranger_context() -> ssl.SSLContext:
    """TLS of someone who does not ask whom he talks to."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    context.set_ecdh_curve("prime256v1")
    return context


def strangers(way: Way, nodes: int) -> Iterator[Figure]:
    """Each crowd and each attack, with 100 honest nodes that must not notice."""
    port = free_port()
    with contextlib.ExitStack() as stack:
        path = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()), "seen")
        program = stack.enter_context(Program(*role(serve_watched, str(path), port, *way.options)))
        program.wait_until_listening(port)
        load = stack.enter_context(Load(Plan(port, HONEST, reconnect=True, token=way.token)))
        load.connect()
        attacks: list[tuple[str, Callable[[], str]]] = [
            (crowd.name, functools.partial(gather, port, number, 2 * nodes, bool(way.token)))
            for number, crowd in enumerate(CROWDS)
            if way.name in crowd.ways
        ]
        if way.token:
            attacks += [(attack.name, functools.partial(call, port, number)) for number, attack in enumerate(STRANGERS)]
        for name, attack in attacks:
            yield from watch(f"{way.name}: {name}", program, path, load, attack)
        yield Figure("secure", f"{way.name}: memory afterwards", program.megabytes(), "MB RSS")


def watch(name: str, program: Program, path: pathlib.Path, load: Load, attack: Callable[[], str]) -> Iterator[Figure]:
    """What the server and its honest nodes go through while it is attacked."""
    say(f"secure: {name}")
    before, rest, notes, started = ask(program, path), program.megabytes(), list[str](), time.monotonic()
    waited = list[float]()
    attacking = threading.Thread(target=lambda: notes.append(attack()), daemon=True)
    attacking.start()
    coming = threading.Timer(NEWCOMER_SECONDS, lambda: waited.append(wait_to_get_in(load.plan)))
    coming.start()
    peak = watch_memory(program, attacking, 180, name)
    coming.join()
    seen, lost = ask(program, path), load.report().lost()
    broken = lost + HONEST - seen["online"]
    note = "".join(notes)
    yield Figure("secure", f"{name}: memory, at its highest", peak, "MB RSS", AT_MOST_MEGABYTES, note=f"{rest:.0f} before; {note}")
    yield Figure("secure", f"{name}: oldest honest node", seen["worst"], "s", 3)
    yield Figure("secure", f"{name}: broken", broken, "", 0, note=f"{lost} lost or refused, {seen['online']} online")
    told = f"who came {NEWCOMER_SECONDS:g} s after the first"
    yield Figure("secure", f"{name}: a newcomer, until it is in", waited[0] if waited else None, "s", note=told)
    minutes = (time.monotonic() - started) / 60
    lines = seen["refused"] - before["refused"]
    yield Figure("secure", f"{name}: lines in the log", lines, "", LINES + int(minutes), note=f"in {60 * minutes:.0f} s")


def wait_to_get_in(plan: Plan) -> float:
    """How long it takes a node to be answered, in seconds; it tries as a node does, again and again."""
    tls = tls_context(plan.token) if plan.token else None
    call = unary(1, beat(node_id="newcomer"), parse_token(plan.token).bearer() if plan.token else "")
    started = time.monotonic()
    for delay in backoff():
        with contextlib.suppress(OSError):
            if wait_for_answer(plan.port, call, tls, FIRST_ANSWER_SECONDS):
                break
        time.sleep(delay)
    return time.monotonic() - started


def gather(port: int, number: int, most: int, is_secure: bool) -> str:
    """A crowd comes and goes, from processes of its own. Returns what became of it."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for _ in range(CROWD_PROCESSES):
        ours, theirs = context.Pipe()
        process = context.Process(target=stand, args=(port, number, most // CROWD_PROCESSES, is_secure, theirs), daemon=True)
        process.start()
        pipes.append(ours)
        processes.append(process)
    stayed = [moment for pipe in pipes for moment in pipe.recv()]
    for process in processes:
        process.join()
    come = round(most * CROWDS[number].of_the_most)
    return f"{come:,} came, {len(stayed):,} were hung up on, after {percentile(stayed, 50):.1f} s at the median"


def stand(port: int, number: int, most: int, is_secure: bool, report: Pipe) -> None:
    """Body of a crowd's process: reports how long each stayed that was hung up on."""
    raise_open_files()
    os.nice(10)
    crowd = CROWDS[number]
    report.send(Standing(port, crowd, round(most * crowd.of_the_most), is_secure and crowd.does_handshake).run())


class Standing:
    """Connections that say their one thing, and wait."""

    def __init__(self, port: int, crowd: Crowd, count: int, is_tls: bool) -> None:
        self._port, self._count, self._says, self._answers = port, count, crowd.says(), crowd.does_handshake
        self._tls = stranger_context() if is_tls else None
        self._seconds = SITTING_SECONDS if crowd.does_handshake else CROWD_SECONDS
        self._epoll = select.epoll()
        self._sockets: dict[int, tuple[socket.socket, float]] = {}  # by file, and when they came
        self._silent: set[int] = set()  # files of those that have yet to say it
        self._rest: dict[int, bytes] = {}
        self._stayed: list[float] = []

    def run(self) -> list[float]:
        """Come, and stay until the time is over, or nobody is left."""
        started, come = time.monotonic(), 0
        give_up_at = started + 60
        while (now := time.monotonic()) < give_up_at and (come < self._count or self._sockets):
            due = min(int((now - started) * DIALS_PER_SECOND), self._count, come + 64)
            for _ in range(come, due):
                self._dial(now)
            if come < self._count <= due:
                give_up_at = now + self._seconds
            come = max(come, due)
            for file, _ in self._epoll.poll(0.01, 64):
                try:
                    self._on_ready(file)
                except OSError:
                    self._hang_up(file)
        return self._stayed

    def _dial(self, now: float) -> None:
        connection = socket.socket()
        if self._tls:
            connection = self._tls.wrap_socket(connection, do_handshake_on_connect=False)
        connection.setblocking(False)
        connection.bind((ELSEWHERE, 0))
        connection.connect_ex(("127.0.0.1", self._port))
        file = connection.fileno()
        self._sockets[file] = connection, now
        self._silent.add(file)
        self._epoll.register(file, select.EPOLLOUT)

    def _on_ready(self, file: int) -> None:
        connection, _ = self._sockets[file]
        if file in self._silent:
            self._epoll.modify(file, select.EPOLLIN)
            with contextlib.suppress(*WOULD_BLOCK):
                if isinstance(connection, ssl.SSLSocket):
                    connection.do_handshake()
                self._silent.discard(file)
                if self._says:
                    connection.send(self._says)
            return
        with contextlib.suppress(*WOULD_BLOCK):
            data = connection.recv(65_536)
            if not data:
                self._hang_up(file)
            elif self._answers:
                frames, self._rest[file] = split_frames(self._rest.get(file, b"") + data)
                for kind, flags, _, payload in frames:
                    if kind == PING and not flags & ACKNOWLEDGES:
                        connection.send(frame(PING, ACKNOWLEDGES, 0, payload))

    def _hang_up(self, file: int) -> None:
        connection, since = self._sockets.pop(file)
        self._rest.pop(file, None)
        self._silent.discard(file)
        connection.close()
        self._stayed.append(time.monotonic() - since)


def call(port: int, number: int) -> str:
    """Calls come for some seconds, from a process of its own; and all that waited is served."""
    attacker = multiprocessing.get_context("spawn").Process(target=run_stranger, args=(port, number), daemon=True)
    attacker.start()
    attacker.join()
    wait_until_served(port, stranger_context())
    return ""


def run_stranger(port: int, number: int) -> None:
    """Body of the attacker's process."""
    run_attack(STRANGERS[number], port, ATTACK_SECONDS, stranger_context())
