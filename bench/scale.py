"""The sections scale and cost: the server under a fleet, beside a bare handler under the same load."""

from __future__ import annotations

import argparse
import array
import asyncio
import contextlib
import functools
import json
import pathlib
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import grpc
import grpc.aio

import node_pb2 as pb
import server
from bench.figures import WINDOW_SECONDS, Failed, Figure, percentile, say
from bench.generator import Load, Plan, Report
from bench.messages import STAMP
from bench.processes import SCREEN_SIZE, Program, Terminal, free_port, headless, raise_open_files, role
from edge.fleet.row import Session
from edge.protocol import server_options

END_KEY, HOME_KEY = b"\x1b[F", b"\x1b[H"
LATE_SECONDS = 0.02  # of a heartbeat's way into the registry


class Cost(NamedTuple):
    """What a process took in a window."""

    cpu_percent: float
    microseconds: float  # of processor a heartbeat
    megabytes: float
    threads: int
    sent: Report
    rest_megabytes: float = 0.0  # before anyone came

    def figures(self, section: str, name: str) -> list[Figure]:
        return [
            Figure(section, f"{name}: processor", self.cpu_percent, "% of a core", note=self.sent.warning()),
            Figure(section, f"{name}: a heartbeat", self.microseconds, "µs"),
            Figure(section, f"{name}: memory", self.megabytes, "MB RSS"),
            Figure(section, f"{name}: threads", self.threads, ""),
        ]


def measure(program: Program, load: Load) -> Cost:
    """The cost of a fleet that beats."""
    before, cpu, started = load.report(), program.cpu_seconds(), time.monotonic()
    time.sleep(WINDOW_SECONDS)
    cpu, elapsed, sent = program.cpu_seconds() - cpu, time.monotonic() - started, load.report()
    load_cpu = (sent.cpu_seconds - before.cpu_seconds) / elapsed
    cost = Cost(100 * cpu / elapsed, 1e6 * cpu / max(sent.sent, 1), program.megabytes(), program.threads(), sent)
    say(
        f"    {cost.cpu_percent:.1f} % of a core, {cost.microseconds:.1f} µs a heartbeat, {cost.megabytes:.0f} MB, "
        f"{sent.sent / elapsed:,.0f} heartbeats/s; generator {100 * load_cpu:.0f} %, late p50 {sent.late[0] * 1000:.1f} ms, "
        f"p99 {sent.late[1] * 1000:.1f} ms, at most {sent.late[2] * 1000:.0f} ms {sent.warning()}"
    )
    return cost


def measure_fleet(nodes: int, gpus: int, command: Callable[[int], tuple[str, ...]], token: str = "") -> tuple[Cost, int]:
    """The cost of a fresh server under a fleet, and how many heartbeats or sessions it lost."""
    port = free_port()
    with Program(*command(port)) as program:
        program.wait_until_listening(port)
        rest = program.megabytes()
        with Load(Plan(port, nodes, gpus, reconnect=True, token=token)) as load:
            lost = sum(report.lost() for report in load.connect())
            cost = measure(program, load)._replace(rest_megabytes=rest)
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
    result = latencies_while(program, path, lambda: time.sleep(WINDOW_SECONDS / 2))
    note = f"{result['count']:,} heartbeats {load.report().warning()}".strip()
    yield Figure("scale", "with screen: from sending to the registry, p50", 1000 * result["50"], "ms", note=note)
    yield Figure("scale", "with screen: from sending to the registry, p99", 1000 * result["99"], "ms", 100, note=note)
    yield Figure("scale", "with screen: from sending to the registry, longest", 1000 * result["100"], "ms")


def latencies_while(program: Program, path: pathlib.Path, action: Callable[[], object]) -> dict[str, float]:
    """How long heartbeats took into the registry of `serve_timed` meanwhile, in seconds by percentile; their count; and which
    part of them took longer than LATE_SECONDS."""
    path.unlink(missing_ok=True)
    program.process.send_signal(signal.SIGUSR1)
    action()
    program.process.send_signal(signal.SIGUSR2)
    for _ in range(100):
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            result: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))
            return result
    raise Failed("the server did not write its latencies")


def cost(options: argparse.Namespace) -> Iterator[Figure]:
    """What a heartbeat costs, and how that grows: 1 and 8 GPUs; a hundredth, a tenth, and all of the nodes."""
    for gpus, at_most in ((1, 160), (8, 350)):
        for nodes in (options.nodes // 100, options.nodes // 10, options.nodes):
            say(f"cost: server.py --headless, {nodes:,} nodes with {gpus} GPU{'s' * (gpus > 1)}")
            ours, lost = measure_fleet(nodes, gpus, headless)
            name, sent = f"{nodes:,} nodes with {gpus}", ours.sent
            yield Figure("cost", f"{name}: processor a heartbeat", ours.microseconds, "µs", note=sent.warning())
            yield Figure("cost", f"{name}: wire a heartbeat", sent.sent_bytes / sent.sent, "bytes up", at_most)
            yield Figure("cost", f"{name}: answers a heartbeat", sent.received_bytes / sent.sent, "bytes down")
            yield Figure("cost", f"{name}: memory", ours.megabytes, "MB RSS", note=f"{lost} lost" if lost else "")


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
        bare = grpc.aio.server(options=server_options(100_000, 100_000))
        bare.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("node.NodeService", handlers),))
        bare.add_insecure_port(f"127.0.0.1:{port}")
        await bare.start()
        await bare.wait_for_termination()

    raise_open_files()
    asyncio.run(serve())


def serve_timed(path: str, port: int, *options: str) -> None:
    """server.py as it is; between SIGUSR1 and SIGUSR2 it notes how long each heartbeat took from its sending into the registry."""
    make_registry = functools.partial(TimedRegistry, pathlib.Path(path))
    sys.exit(server.main(["--listen", f"127.0.0.1:{port}", *options], make_registry))


class TimedRegistry(server.Registry):
    """Until SIGUSR1 its heartbeats are the plain ones, since their cost is measured too."""

    def __init__(self, path: pathlib.Path, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._path = path
        self._latencies = array.array("d")
        signal.signal(signal.SIGUSR1, self._start)
        signal.signal(signal.SIGUSR2, self._finish)

    def _start(self, *_: object) -> None:
        self._latencies = array.array("d")
        setattr(self, "heartbeat", self._timed_heartbeat)  # noqa: B010

    def _timed_heartbeat(self, session: Session, request: pb.HeartbeatRequest) -> None:
        super().heartbeat(session, request)
        sent = request.sample.host.network_received_bytes_per_second
        self._latencies.append((time.monotonic_ns() // 1000 - sent) % STAMP / 1e6)

    def _finish(self, *_: object) -> None:
        delattr(self, "heartbeat")
        latencies = self._latencies
        result = {"count": len(latencies), **{str(percent): percentile(latencies, percent) for percent in (50, 99, 100)}}
        result["late"] = sum(one > LATE_SECONDS for one in latencies) / max(len(latencies), 1)
        self._path.write_text(json.dumps(result), encoding="utf-8")
